"""The webhook: who is told of a call that waits for a person, when, how often, and how."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, Request, Response
from openai import InvalidWebhookSignatureError, OpenAI

from tests.backends import Backend, SQLite, free_port
from tests.client import Json, ask, client_of
from tests.conftest import RunningApp, environment, running
from tests.serving import served
from tests.workshop import Workshop, move, until
from threadkeep import approval_webhook
from threadkeep.approval_webhook import LEASE_MS, PAUSES_MS, Webhook, tell_all
from threadkeep.doctor import Finding, examine
from threadkeep.errors import SettingsError
from threadkeep.settings import Settings

both = pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PATH = "/of-nobody-else"
USER = {"X-Forwarded-User": "ann"}
DOCUMENT = Path(__file__).parent.parent / "docs" / "approvals-webhook.md"


@dataclass
class Receiver:
    """What the webhook is.

    Attributes:
        url: Its address.
        answers: The status of each next call; 204 for those behind them.
        seconds: How long it takes over an answer.
        calls: Headers and body of each call.
        strays: How often it was called elsewhere.
    """

    url: str = ""
    answers: list[int] = field(default_factory=list)
    seconds: float = 0
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    strays: int = 0

    @property
    def told(self) -> list[Json]:
        """The approvals it was told of."""
        return [json.loads(body)["data"] for _, body in self.calls]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver, app = Receiver(), FastAPI()

    @app.post(PATH)
    async def take(request: Request) -> Response:
        receiver.calls.append((dict(request.headers), await request.body()))
        status = receiver.answers.pop(0) if receiver.answers else 204
        await asyncio.sleep(receiver.seconds)
        return Response(status_code=status, headers={"Location": "/elsewhere"})

    @app.api_route("/elsewhere", methods=["GET", "POST"])
    async def stray() -> None:
        receiver.strays += 1

    with served(app) as url:
        receiver.url = url + PATH
        yield receiver


@pytest.fixture
def receiver(caplog: pytest.LogCaptureFixture) -> Iterator[Receiver]:
    """A receiver; in the end no log has what is secret, of whatever level and library."""
    caplog.set_level(logging.DEBUG)
    with receiving() as receiver:
        yield receiver
        log = "\n".join(
            record.getMessage() for when in ("setup", "call") for record in caplog.get_records(when)
        )
    assert PATH not in log
    assert SECRET not in log
    assert SECRET.removeprefix("whsec_") not in log
    assert "'pay'" not in log


@pytest.fixture
def webhook(receiver: Receiver) -> Webhook:
    return Webhook(receiver.url, SECRET)


@pytest.fixture
def settings(receiver: Receiver) -> dict[str, str]:
    """The webhook, for each of `apps`."""
    return {"APPROVAL_WEBHOOK_URL": receiver.url, "APPROVAL_WEBHOOK_SECRET": SECRET}


@pytest.fixture
def app(backend: Backend, shop: Workshop) -> Iterator[RunningApp]:
    """A server without a webhook, so that only the test calls it."""
    with running(backend, shop, 1, {}) as (app,):
        yield app


def tell(app: RunningApp, webhook: Webhook) -> int:
    """What the loop does once; gives how many approvals were told of."""

    async def work() -> int:
        async with webhook.client() as client:
            return await tell_all(app.app.state.database, webhook, client)

    return app.do(work())


def pass_time(backend: Backend, seconds: float) -> None:
    """As if so much time had passed, for all that is to be told."""
    ago = f"{seconds * 1000:.0f}" if isinstance(backend, SQLite) else f"interval '{seconds} s'"
    backend.execute(f"UPDATE threadkeep.approvals SET tell_at = tell_at - {ago}")


def wait(client: httpx.Client, session_id: str = "s") -> str:
    """Has a call wait for its approval; gives the approval's id."""
    *_, item = ask(client, "use pay; say done", session_id)["output"]
    assert item["type"] == "mcp_approval_request"
    approval_id: str = item["id"]
    return approval_id


@both
def test_told_soon_once_and_signed(
    backend: Backend, apps: list[RunningApp], receiver: Receiver, webhook: Webhook
) -> None:
    """What GET shows, and its owner, by one of two servers; OpenAI's client verifies it."""
    with client_of(apps[0].url, **USER) as client:
        approval_id = wait(client)
        began = time.monotonic()
        until(lambda: receiver.calls)
        assert time.monotonic() - began < 3
        shown = client.get(f"/approvals/{approval_id}").json()
    (headers, body) = receiver.calls[0]
    message = json.loads(body)
    assert message["type"] == "approval.requested"
    assert message["data"] == shown | {"owner": "ann"}
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shown["created_at"]))
    assert message["timestamp"] == at
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == approval_id
    client_of_openai = OpenAI(api_key="none", webhook_secret=SECRET)
    client_of_openai.webhooks.verify_signature(body, headers)
    with pytest.raises(InvalidWebhookSignatureError):
        client_of_openai.webhooks.verify_signature(body + b" ", headers)
    pass_time(backend, 3600)
    assert tell(apps[1], webhook) == 0
    assert len(receiver.calls) == 1


@both
def test_two_servers_tell_of_each_once(
    backend: Backend, apps: list[RunningApp], receiver: Receiver
) -> None:
    """However many there are."""
    with client_of(apps[0].url, **USER) as here, client_of(apps[1].url, **USER) as there:
        ids = [wait((here, there)[number % 2], f"s{number}") for number in range(12)]
        until(lambda: len(receiver.calls) >= len(ids))
    pass_time(backend, 30)  # less than a claim lasts
    time.sleep(2.5)  # for another look of both
    assert sorted(approval["id"] for approval in receiver.told) == sorted(ids)


@both
def test_many_at_once(
    backend: Backend,
    app: RunningApp,
    receiver: Receiver,
    webhook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than one batch of them, those that are over among them."""
    with client_of(app.url, **USER) as client:
        ids = [wait(client, f"s{number}") for number in range(5)]
        ask(client, "say else", "s2")
    monkeypatch.setattr(approval_webhook, "BATCH", 2)
    assert tell(app, webhook) == 4
    assert {approval["id"] for approval in receiver.told} == {*ids} - {ids[2]}


@both
def test_a_call_in_doubt(
    backend: Backend, apps: list[RunningApp], receiver: Receiver, shop: Workshop
) -> None:
    """Is told of as such, when the server that made it is lost."""
    with client_of(apps[0].url, **USER) as client:
        run_id = ask(client, "use work; say done", "s", background=True)["id"]
        shop.until_begun("work")
        move(backend, run_id, apps[1])
        until(lambda: receiver.calls)
    (approval,) = receiver.told
    assert (approval["kind"], approval["name"]) == ("in_doubt", "work")


@both
def test_nobodys(backend: Backend, receiver: Receiver, webhook: Webhook, shop: Workshop) -> None:
    """On a machine of one's own the owner is null."""
    app = RunningApp(environment(backend), tools=shop.tools())
    with client_of(app.url) as client:
        wait(client)
    assert tell(app, webhook) == 1
    assert receiver.told[0]["owner"] is None
    app.stop()


@both
def test_a_failure_is_tried_again_and_later_each_time(
    backend: Backend,
    app: RunningApp,
    receiver: Receiver,
    webhook: Webhook,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the same id and body, whatever went wrong; a redirect is followed nowhere."""
    receiver.answers = [500, 307, 404, 410, 503, 302]
    with client_of(app.url, **USER) as client:
        approval_id = wait(client)
    pauses = [*PAUSES_MS, PAUSES_MS[-1]]
    for tries, (status, pause) in enumerate(
        zip(list(receiver.answers), pauses, strict=True), start=1
    ):
        assert tell(app, webhook) == 0
        assert len(receiver.calls) == tries
        assert f"{approval_id} (status {status}, try {tries}). It is tried again in " in caplog.text
        pass_time(backend, pause / 1000 - 3)
        assert tell(app, webhook) == 0
        assert len(receiver.calls) == tries, "too soon"
        pass_time(backend, 3)
    assert tell(app, webhook) == 1
    pass_time(backend, 7 * 3600)
    assert tell(app, webhook) == 0
    assert len(receiver.calls) == len(pauses) + 1
    assert {body for _, body in receiver.calls} == {receiver.calls[0][1]}
    assert {headers["webhook-id"] for headers, _ in receiver.calls} == {approval_id}
    assert receiver.strays == 0


@both
def test_a_receiver_that_is_not_there_or_does_not_answer(
    backend: Backend,
    app: RunningApp,
    receiver: Receiver,
    webhook: Webhook,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Holds nothing up for longer than the time for a call, and is called again."""
    with client_of(app.url, **USER) as client:
        wait(client)
    nowhere = Webhook(f"http://127.0.0.1:{free_port()}{PATH}", SECRET)
    assert tell(app, nowhere) == 0
    assert "(ConnectError, try 1)" in caplog.text
    pass_time(backend, 5)
    monkeypatch.setattr(approval_webhook, "TIMEOUT_SECONDS", 0.3)
    receiver.seconds = 1
    assert tell(app, webhook) == 0
    assert "(TimeoutError, try 2)" in caplog.text or "(ReadTimeout, try 2)" in caplog.text
    receiver.seconds = 0
    pass_time(backend, 60)
    monkeypatch.setattr(approval_webhook, "TIMEOUT_SECONDS", 10)
    assert tell(app, webhook) == 1


@both
def test_a_process_that_dies_in_the_middle(
    backend: Backend, app: RunningApp, receiver: Receiver, webhook: Webhook
) -> None:
    """Has claimed it for a while; then another tells of it. When the first was only slow, it may
    say late that it did, but not that it failed."""
    database = app.app.state.database
    with client_of(app.url, **USER) as client:
        approval_id = wait(client)
    (claimed,) = app.do(database.call("claim_approvals_to_tell", lease=LEASE_MS, limit=9))
    assert (claimed["approval_id"], claimed["tell_tries"]) == (approval_id, 1)
    pass_time(backend, LEASE_MS / 1000 - 3)
    assert tell(app, webhook) == 0
    assert not receiver.calls
    pass_time(backend, 3)
    receiver.answers = [500]
    assert tell(app, webhook) == 0
    late = {"approval_id": approval_id, "owner": claimed["owner"]}
    late |= {"tell_tries": 1, "again_after": 0}
    app.do(database.call("record_telling", **late))
    assert tell(app, webhook) == 0
    app.do(database.call("record_telling", **late | {"again_after": None}))
    pass_time(backend, 3600)
    assert tell(app, webhook) == 0
    assert len(receiver.calls) == 1


@both
@pytest.mark.parametrize("first", [[], [500]], ids=["at once", "after a failure"])
@pytest.mark.parametrize("how", ["decided", "closed", "expired", "deleted"])
def test_what_is_over_is_not_told(
    backend: Backend,
    app: RunningApp,
    receiver: Receiver,
    webhook: Webhook,
    first: list[int],
    how: str,
) -> None:
    """Nor told again."""
    with client_of(app.url, **USER) as client:
        approval_id = wait(client)
        receiver.answers = list(first)
        if first:
            assert tell(app, webhook) == 0
        if how == "decided":
            reply = client.post(f"/approvals/{approval_id}", json={"approve": False})
            assert reply.status_code == 200
        elif how == "closed":
            ask(client, "say else", "s")
        elif how == "deleted":
            assert client.delete("/sessions/s").is_success
        else:
            now = "0" if isinstance(backend, SQLite) else "now()"
            backend.execute(f"UPDATE threadkeep.approvals SET expires_at = {now}")
    for _ in range(2):
        pass_time(backend, 24 * 3600)
        assert tell(app, webhook) == 0
    assert len(receiver.calls) == len(first)


@both
def test_decided_between_claim_and_call(
    backend: Backend, app: RunningApp, receiver: Receiver, webhook: Webhook
) -> None:
    """It is looked at once more just before."""
    database = app.app.state.database

    class Slow:
        """The database of a server that is held up behind its claim."""

        async def call(self, statement: str, **parameters: Any) -> Any:
            rows = await database.call(statement, **parameters)
            if statement == "claim_approvals_to_tell" and rows:
                await database.call(
                    "decide_approvals",
                    run_id=run_id,
                    owner="ann",
                    approval_ids=[approval_id],
                    statuses=["rejected"],
                    reasons=[""],
                    tools=[],
                )
            return rows

    with client_of(app.url, **USER) as client:
        approval_id = wait(client)
        run_id = client.get(f"/approvals/{approval_id}").json()["previous_response_id"]

    async def work() -> int:
        async with webhook.client() as client:
            return await tell_all(Slow(), webhook, client)  # type: ignore[arg-type]

    assert app.do(work()) == 0
    assert not receiver.calls


@both
def test_the_document(
    backend: Backend, app: RunningApp, receiver: Receiver, webhook: Webhook
) -> None:
    """Its function takes our calls and no others, and its example has the fields of ours."""
    text = DOCUMENT.read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    documented: dict[str, Any] = {}
    exec(code, documented)
    is_ours = documented["is_ours"]
    with client_of(app.url, **USER) as client:
        wait(client)
    in_text = "a secret that is no base64"
    for secret in (SECRET, in_text):
        receiver.answers = [500]
        assert tell(app, Webhook(receiver.url, secret)) == 0
        pass_time(backend, 3600)
        headers, body = receiver.calls[-1]
        assert is_ours(body, headers, secret)
        assert not is_ours(body, headers, "whsec_" + "QUJD" * 8)
        assert not is_ours(body.replace(b"ann", b"eve"), headers, secret)
        old = headers | {"webhook-timestamp": str(int(time.time()) - 301)}
        assert not is_ours(body, old, secret)
    ours, shown = json.loads(body), json.loads(example)
    assert [*ours], [*ours["data"]] == ([*shown], [*shown["data"]])


@pytest.mark.parametrize(
    ("url", "secret", "wrong"),
    [
        ("https://example.com/hook", "", "APPROVAL_WEBHOOK_SECRET: is missing"),
        ("https://example.com/hook", "x" * 23, "APPROVAL_WEBHOOK_SECRET: is too short"),
        ("https://example.com/hook", "whsec_" + "QUJD" * 7, "APPROVAL_WEBHOOK_SECRET: behind"),
        ("https://example.com/hook", "whsec_" + "QUJD" * 22, "APPROVAL_WEBHOOK_SECRET: behind"),
        ("https://example.com/hook", "whsec_" + "Ü" * 40, "APPROVAL_WEBHOOK_SECRET: behind"),
        ("https://example.com/hook", "whsec_" + "QUJD" * 8 + "!", "APPROVAL_WEBHOOK_SECRET: behi"),
        ("ftp://example.com/hook", SECRET, "APPROVAL_WEBHOOK_URL: is no URL"),
        ("example.com/hook", SECRET, "APPROVAL_WEBHOOK_URL: is no URL"),
        ("https:///hook", SECRET, "APPROVAL_WEBHOOK_URL: is no URL"),
        ("https://example.com:port/hook", SECRET, "APPROVAL_WEBHOOK_URL: is no URL"),
    ],
)
def test_settings_that_can_not_be_used(url: str, secret: str, wrong: str) -> None:
    """No app starts with them, nor does `threadkeep doctor` pass; and neither is told."""
    settings = {"APPROVAL_WEBHOOK_URL": url, "APPROVAL_WEBHOOK_SECRET": secret}
    place = environment("sqlite://", **{name: text for name, text in settings.items() if text})
    with pytest.raises(SettingsError) as raised:
        RunningApp(place)
    told = str(raised.value)
    assert told.startswith(wrong)
    assert "hook" not in told.replace("https://host/path", "")
    assert not secret or secret not in told

    async def first() -> Finding:
        return await anext(examine(place, with_turn=False))

    assert asyncio.run(first()) == Finding("settings", "failed", told)


@pytest.mark.parametrize("secret", ["x" * 24, "whsec_" + "QUJD" * 8, "whsec_" + "QUJD" * 21])
def test_settings_are_kept_secret(secret: str) -> None:
    """By all that can be printed."""
    url = f"https://ann:pass@example.com{PATH}"
    settings = Settings.read({"APPROVAL_WEBHOOK_URL": url, "APPROVAL_WEBHOOK_SECRET": secret})
    printed = f"{settings!r} {settings} {Webhook.of(settings)!r}"
    assert not [text for text in (PATH, "pass@", secret) if text in printed]


def test_without_a_url_there_is_none() -> None:
    """Also when a secret is left."""
    assert Webhook.of(Settings.read({"APPROVAL_WEBHOOK_SECRET": SECRET})) is None
