"""Keys for programs: each says whose requests it makes."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.client import ask, client_of, contents, post
from tests.conftest import RunningApp, environment
from threadkeep.api_keys import ANY, ApiKeys, new_key
from threadkeep.errors import SettingsError
from threadkeep.server.identity import check_exposure
from threadkeep.settings import Settings

OWNERS = ["ann", "bob@example.org", "a=b, c/ü", ANY]
MADE = {owner: new_key(owner) for owner in OWNERS}
SETTING = ", ".join(entry for _, entry in MADE.values())


@pytest.fixture
def app(tmp_path: Path) -> Iterator[RunningApp]:
    """A server that takes these keys."""
    app = RunningApp(
        environment(f"sqlite:///{tmp_path}/threadkeep.db", THREADKEEP_API_KEYS=SETTING)
    )
    yield app
    app.stop()


def client(app: RunningApp, owner: str, **headers: str) -> httpx.Client:
    """A client that sends the key of an owner."""
    return client_of(app.url, **{"Authorization": f"Bearer {MADE[owner][0]}"}, **headers)


def test_a_key_is_its_owners(app: RunningApp) -> None:
    """What is made with one is seen with it, and with no other."""
    for owner in OWNERS[:3]:
        with client(app, owner) as mine:
            ask(mine, f"say {owner}", f"session of {OWNERS.index(owner)}")
            sessions = mine.get("/sessions").json()["data"]
            assert [session["id"] for session in sessions] == [f"session of {OWNERS.index(owner)}"]


def test_a_key_that_may_stand_for_anybody_says_for_whom(app: RunningApp) -> None:
    """In a header, with each request; one that does not say so is refused."""
    with client(app, ANY, **{"X-Threadkeep-Owner": "ann"}) as for_ann:
        ask(for_ann, "say one", "s")
    with client(app, "ann") as ann:
        assert contents(ann, "s") == ["say one", "one"]
    with client(app, ANY) as nobody:
        reply = nobody.get("/sessions")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "X-Threadkeep-Owner")
    with client(app, "bob@example.org", **{"X-Threadkeep-Owner": "ann"}) as bob:
        assert bob.get("/sessions").json()["data"] == []  # his key is his own


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer tk_wrong", f"Basic {MADE['ann'][0]}", MADE["ann"][0]],
    ids=["none", "empty", "no key", "wrong", "another scheme", "no scheme"],
)
def test_without_a_key_nothing_is_told(app: RunningApp, sent: str | None) -> None:
    """A 401 that says what to send; pages and health need none."""
    headers = {} if sent is None else {"Authorization": sent}
    with client_of(app.url, **headers) as stranger:
        for reply in (
            stranger.get("/sessions"),
            post(stranger, "say hi"),
            stranger.get("/approvals"),
        ):
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["code"] == "unknown_user"
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/").status_code == 200


def test_behind_a_proxy_a_key_is_another_way_in(tmp_path: Path) -> None:
    """Who comes through the proxy needs none; what is no key of ours is the proxy's affair."""
    place = environment(
        f"sqlite:///{tmp_path}/threadkeep.db",
        THREADKEEP_API_KEYS=SETTING,
        THREADKEEP_TRUST_PROXY_HEADERS="1",
    )
    app = RunningApp(place)
    with client(app, "ann") as ann:
        ask(ann, "say one", "s")
    with client_of(app.url, **{"X-Forwarded-User": "ann", "Authorization": "Bearer x"}) as same:
        assert contents(same, "s") == ["say one", "one"]
    with client(app, "ann", **{"X-Forwarded-User": "bob"}) as key_counts:
        assert contents(key_counts, "s") == ["say one", "one"]
    with client_of(app.url) as stranger:
        assert stranger.get("/sessions").status_code == 401
    app.stop()


def test_a_server_with_keys_may_be_reached_from_outside() -> None:
    """They tell users apart."""
    open_to_all = {"HOST": "0.0.0.0", "AGENT_MODEL": "x"}
    with pytest.raises(SettingsError, match="THREADKEEP_API_KEYS"):
        check_exposure(Settings.read(open_to_all))
    check_exposure(Settings.read(open_to_all | {"THREADKEEP_API_KEYS": SETTING}))


@pytest.mark.parametrize(
    ("setting", "entry"),
    [
        ("ann", 1),
        (f"{MADE['ann'][1]}, bob=secret", 2),
        (f"={'0' * 64}", 1),
        (f"{MADE['ann'][1]} {MADE['ann'][1]}", 2),
    ],
    ids=["no hash", "a key itself", "no owner", "twice"],
)
def test_a_setting_that_can_not_be_used(setting: str, entry: int) -> None:
    """The error says which entry, and nothing of what it holds."""
    with pytest.raises(SettingsError, match=f"THREADKEEP_API_KEYS, entry {entry}") as caught:
        check_exposure(Settings.read({"THREADKEEP_API_KEYS": setting}))
    assert "secret" not in str(caught.value)
    assert "0000" not in str(caught.value)


def test_the_setting_holds_no_key(app: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does a log, or what the settings say of themselves."""
    caplog.set_level(logging.DEBUG)
    with client(app, "ann") as ann:
        ask(ann, "say one", "s")
    for key, entry in MADE.values():
        assert key not in SETTING
        for text in (caplog.text, repr(app.app.state.settings)):
            assert key not in text
            assert entry.rpartition("=")[2] not in text
    assert ApiKeys.parse(SETTING).owner_of(MADE["ann"][0]) == "ann"


def test_a_new_key_from_the_command(tmp_path: Path) -> None:
    """It is shown once, with the entry that lets it in."""
    for owner in OWNERS:
        code = "from threadkeep.commands import main; main()"
        command = [sys.executable, "-c", code, "keys", "new", owner]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        key, entry = (line.rpartition(": ")[2] for line in done.stdout.splitlines())
        assert ApiKeys.parse(entry).owner_of(key) == owner
