"""`threadkeep memories`: what the API does, in a shell, and for those that several share."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.test_commands import Done
from threadkeep.commands import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One without settings, with a database."""
    monkeypatch.chdir(tmp_path)
    for logger in (logging.getLogger(), logging.getLogger("threadkeep")):
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))
    assert run("migrate")[0] == 0
    return tmp_path


def run(*arguments: str) -> Done:
    """Runs a command in this process: starting another one takes most of its time."""
    done = CliRunner().invoke(main, arguments, env={"DATABASE_URL": "sqlite:///threadkeep.db"})
    return done.exit_code, done.stdout, done.stderr


def test_all_that_is_done_to_memories(folder: Path) -> None:
    """By id or by path; what was said can't command a terminal; each owner has their own."""
    options = ("--contents", "No \x1b[2Jfish.\nNor meat.", "--keyword", "food", "--pin")
    times = ("--valid-from", "2024-05-01", "--valid-to", "2999-01-01T12:00:00")
    diet = "/memories/diet.md"
    code, out, _ = run("memories", "add", "Vegetarian", "--path", diet, *options, *times)
    assert (code, out.endswith(f"  {diet}\n")) == (0, True)
    memory_id = out.split()[0]
    assert run("memories", "add", "Vegan", "--path", diet)[0] == 2
    tea = run("memories", "add", "Likes tea")[1].split()
    assert tea[1] == "/memories/notes/likes-tea.md"
    code, out, _ = run("memories", "list")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, [tea[0], memory_id])
    assert out.endswith("  pinned  Vegetarian\n")
    assert run("memories", "search", "fish", "food")[1].startswith(f"{memory_id}  {diet}  ")
    assert run("memories", "search", "zebra") == (1, "", "")
    assert run("memories", "edit", diet)[0] == 2
    changes = ("--description", "Eats all", "--contents", "", "--no-pin")
    edited = run("memories", "edit", diet, *changes)
    assert (edited[0], edited[1].endswith("  Eats all\n")) == (0, True)
    for wrong in ("--superseded-by", diet), ("--valid-to", "2999-01-01"):
        assert run("memories", "edit", tea[0], "--no-valid-to", *wrong)[0] == 2
    ended = run("memories", "edit", tea[0], "--superseded-by", diet)
    assert (ended[0], ended[1].endswith("  ended  Likes tea\n")) == (0, True)
    assert run("memories", "edit", tea[0], "--no-valid-to")[1].endswith("  Likes tea\n")
    later = run("memories", "edit", tea[0], "--valid-from", "2998-01-01")
    assert later[1].endswith("  not yet  Likes tea\n")
    back = json.loads(run("memories", "show", tea[0], "--json")[1])
    assert (back["valid_to"], back["superseded_by"]) == (None, None)
    times = ("--valid-from", "2025-01-01", "--superseded-by", diet)
    assert run("memories", "edit", tea[0], *times)[0] == 0
    code, out, _ = run("memories", "show", diet)
    lines = out.splitlines()
    assert lines[1].endswith(" until 2999-01-01 12:00")
    assert lines[2] == "  keywords: food"
    assert lines[3].startswith("  before, 2024-05-01 00:00 to ")
    assert lines[3].endswith(": Vegetarian")
    assert lines[4:] == ["    No \\x1b[2Jfish.", "    Nor meat."]
    shown = run("memories", "show", memory_id, "--json")[1]
    assert json.loads(shown)["history"][0]["contents"] == "No \x1b[2Jfish.\nNor meat."
    exported = run("memories", "export")[1]
    assert exported.splitlines()[1] + "\n" == shown
    assert json.loads(exported.splitlines()[0])["superseded_by"] == memory_id
    for command in (("show", diet), ("delete", memory_id, "--yes"), ("edit", diet, "--pin")):
        code, out, error = run("memories", *command, "--owner", "ann")
        assert (code, out, error.count("\n")) == (2, "", 1)
    assert run("memories", "delete", diet)[0] != 0
    assert run("memories", "delete", diet, "--yes") == (0, f"Deleted: {diet}\n", "")
    assert run("memories", "show", memory_id)[0] == 2


@pytest.fixture
def live_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the zone of the local time."""

    def live_in(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield live_in
    monkeypatch.undo()
    time.tzset()


def test_the_ends_of_time(folder: Path, live_in: Callable[[str], None]) -> None:
    """They are told in every part of the world, and what lies before is refused."""
    for zone in ("America/New_York", "Asia/Tokyo", "UTC"):
        live_in(zone)
        ends = ("--valid-from", "1970-01-02", "--valid-to", "9999-12-31T12:00:00")
        code, out, _ = run("memories", "add", zone, *ends)
        assert code == 0
        assert " until 9999-12-31 12:00" in run("memories", "show", out.split()[0])[1]
        last = run("memories", "add", zone, "--valid-to", "9999-12-31T23:59:59")
        assert last[0] == (2 if zone == "America/New_York" else 0)
        refused = run("memories", "add", zone, "--valid-from", "0001-01-01")
        assert (refused[0], refused[2].count("\n")) == (2, 1)
    memory_id = run("memories", "add", "x", "--valid-to", "9999-12-31T23:59:59")[1].split()[0]
    live_in("Asia/Tokyo")
    assert " until 9999-12-31 23:59" in run("memories", "show", memory_id)[1]


def test_those_that_several_share(folder: Path) -> None:
    """They are no owner's, and no owner can name them as their own."""
    assert run("memories", "add", "Ship on Fridays", "--shared", "team")[0] == 0
    assert len(run("memories", "list", "--shared", "team")[1].splitlines()) == 1
    for other in ((), ("--owner", "team"), ("--shared", "another")):
        assert run("memories", "list", *other) == (0, "", "")
    for wrong in (("--owner", "ann", "--shared", "team"), ("--owner", "\x02team")):
        assert run("memories", "list", *wrong)[0] == 2
