"""What every Session keeps to, on every backend."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from agents import Agent, RunConfig, RunContextWrapper, Runner, SessionSettings
from agents.testing import ScriptedModel, assistant_message
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.backends import Backend
from threadkeep import Session
from threadkeep.connect import connect
from threadkeep.database import Database
from threadkeep.errors import ClosedError, InvalidInputError, SessionNotFoundError
from threadkeep.settings import DatabaseSettings

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ITEMS = st.dictionaries(TEXTS, JSON, max_size=4)


@pytest.fixture
async def database(backend: Backend) -> AsyncIterator[Database]:
    database = connect(DatabaseSettings.read(backend.variables))
    yield database
    await database.close()


def user(text: str) -> Any:
    return {"role": "user", "content": text}


async def test_items_come_back_in_order(database: Database) -> None:
    """Batches and the items in them keep their order, over several Session objects."""
    session = Session("s", database=database)
    await session.add_items([user("1"), user("2")])
    await Session("s", database=database).add_items([user("3")])
    assert await session.get_items() == [user("1"), user("2"), user("3")]


async def test_limit_gives_the_newest_in_order(database: Database) -> None:
    """Explicit wins over the session's setting; 0 is none; more than there are is all."""
    session = Session("s", database=database, session_settings={"limit": 2})
    await session.add_items([user(str(n)) for n in range(5)])
    for _ in range(2):  # the second time from the cache
        assert await session.get_items() == [user("3"), user("4")]
        assert await session.get_items(limit=1) == [user("4")]
        assert await session.get_items(limit=0) == []
        assert len(await session.get_items(limit=99)) == 5
    with pytest.raises(InvalidInputError, match="0 or more"):
        await session.get_items(limit=-1)


async def test_limit_of_a_run_wins_over_that_of_the_session(database: Database) -> None:
    """The Runner resolves it and passes it on."""
    session = Session("s", database=database, session_settings=SessionSettings(limit=1))
    await session.add_items([user("1"), user("2"), user("3")])
    model = ScriptedModel([[assistant_message("ok")]])
    config = RunConfig(session_settings=SessionSettings(limit=2), tracing_disabled=True)
    await Runner.run(Agent(name="a", model=model), "4", session=session, run_config=config)
    assert model.last_call is not None
    assert [item["content"] for item in model.last_call.input] == ["2", "3", "4"]


def test_settings_may_be_a_dict_and_are_checked(tmp_path: Path) -> None:
    """An unknown field is refused by name."""
    session = Session("s", database="sqlite://", session_settings={"limit": 3})
    assert session.session_settings == SessionSettings(limit=3)
    with pytest.raises(InvalidInputError, match="limit"):
        session.session_settings = {"limits": 3}


async def test_wrapper_is_taken_by_all_four(database: Database) -> None:
    """Each method has it as a keyword, which the SDK asks for before it passes the context."""
    session = Session("s", database=database)
    await session.add_items([user("1")], wrapper=None)
    assert await session.get_items(wrapper=None) == [user("1")]
    assert await session.pop_item(wrapper=None) == user("1")
    await session.clear_session(wrapper=None)


async def test_pop_takes_the_newest(database: Database) -> None:
    """And None when there is nothing."""
    session = Session("s", database=database)
    assert await session.pop_item() is None
    await session.add_items([user("1"), user("2")])
    assert await session.pop_item() == user("2")
    assert await session.get_items() == [user("1")]


async def test_clear_leaves_nothing_and_the_session_can_go_on(database: Database) -> None:
    """Clearing a session that never was is no error."""
    session = Session("s", database=database)
    await session.clear_session()
    await session.add_items([user("1")])
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items([user("2")])
    assert await session.get_items() == [user("2")]


async def test_what_is_returned_may_be_changed(database: Database) -> None:
    """The SDK changes what it gets; nobody else must see that."""
    session = Session("s", database=database)
    await session.add_items([{"role": "user", "content": [{"type": "input_text", "text": "a"}]}])
    first: Any = await session.get_items()
    first[0]["content"][0]["text"] = "b"
    first.clear()
    second: Any = await session.get_items()
    assert second[0]["content"][0]["text"] == "a"


async def test_a_run_gets_no_tool_output_whose_call_is_gone(database: Database) -> None:
    """No model takes one, so every turn to come would fail. All others read what is stored."""
    session = Session("s", database=database)
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    stored: list[Any] = [
        {"type": "function_call_output", "call_id": "1", "output": "before its call"},
        call,
        {"type": "function_call_output", "call_id": "1", "output": "of the call"},
        {"type": "custom_tool_call_output", "call_id": "1", "output": "of a call of another kind"},
        user("a"),
    ]
    await session.add_items(stored)
    wrapper: Any = RunContextWrapper(context=None)
    assert await session.get_items() == stored
    assert await session.get_items(wrapper=wrapper) == [call, stored[2], user("a")]
    assert await session.get_items(limit=3, wrapper=wrapper) == stored[2:]
    model = ScriptedModel([[assistant_message("ok")]])
    config = RunConfig(tracing_disabled=True)
    await Runner.run(Agent(name="a", model=model), "b", session=session, run_config=config)
    assert model.last_call is not None
    assert model.last_call.input == [call, stored[2], user("a"), user("b")]


@pytest.mark.parametrize(
    "bad",
    [
        {"a": math.nan},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {1: "a"},
        {"a": (1, 2)},
        "text",
        ["list"],
        None,
    ],
    ids=repr,
)
async def test_an_item_that_would_not_come_back_refuses_its_whole_batch(
    database: Database, bad: Any
) -> None:
    """Nothing of the batch is written, and the error names the item."""
    session = Session("s", database=database)
    with pytest.raises(InvalidInputError) as caught:
        await session.add_items([user("1"), bad])
    assert caught.value.param == "items[1]"
    assert await session.get_items() == []


async def test_nesting_too_deep_is_refused(database: Database) -> None:
    """It would not survive any JSON parser."""
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidInputError):
        await Session("s", database=database).add_items([deep])


@pytest.mark.parametrize("bad", ["", "x" * 513, "a\0b", "a\nb", "\ud800", 7, None], ids=ascii)
def test_bad_session_ids_are_refused(bad: Any) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidInputError) as caught:
        Session(bad, database="sqlite://")
    assert caught.value.param == "session_id"


async def test_owners_do_not_meet(database: Database) -> None:
    """Another owner's session is neither read nor changed, and no owner is an owner of its own."""
    ann = Session("s", database=database, owner="ann")
    await ann.add_items([user("secret")])
    for other in (
        Session("s", database=database, owner="bob"),
        Session("s", database=database),
    ):
        for attempt in (
            other.get_items(),
            other.get_items(limit=1),
            other.add_items([user("x")]),
            other.pop_item(),
            other.clear_session(),
        ):
            with pytest.raises(SessionNotFoundError):
                await attempt
    assert await ann.get_items() == [user("secret")]


async def test_concurrent_appends_pops_and_reads_lose_nothing(database: Database) -> None:
    """Every item appended is either there in the end or was popped, once; batches stay together."""
    session = Session("s", database=database)

    async def append(n: int) -> None:
        await Session("s", database=database).add_items([user(f"{n}a"), user(f"{n}b")])

    async def pop() -> Any:
        return await Session("s", database=database).pop_item()

    results = await asyncio.gather(
        *(append(n) for n in range(40)), *(pop() for _ in range(20)), return_exceptions=True
    )
    popped = [result["content"] for result in results if result is not None]
    left = [item["content"] for item in await session.get_items()]
    assert sorted(popped + left) == sorted(f"{n}{half}" for n in range(40) for half in "ab")


async def test_readers_follow_what_others_change(database: Database, backend: Backend) -> None:
    """Two connections, as two processes have, see each other's changes at once."""
    other = connect(DatabaseSettings.read(backend.variables))
    here, there = Session("s", database=database), Session("s", database=other)
    await here.add_items([user("1"), user("2")])
    assert await there.get_items() == [user("1"), user("2")]
    await here.pop_item()
    await here.add_items([user("3")])
    assert await there.get_items() == [user("1"), user("3")]
    await there.clear_session()
    assert await here.get_items() == []
    await there.add_items([user("4"), user("5"), user("6")])
    assert await here.get_items() == [user("4"), user("5"), user("6")]
    await other.close()


async def test_a_damaged_row_hides_nothing_and_is_reported(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are read, the newest readable one is popped, and the damaged row stays."""
    session = Session("s", database=database)
    await session.add_items([user("1"), user("2"), user("3")])
    backend.execute("UPDATE threadkeep.items SET data = '{broken' WHERE seq = 3")
    fresh = connect(DatabaseSettings.read(backend.variables))
    session = Session("s", database=fresh)
    assert await session.get_items(limit=1) == [user("2")]
    assert await session.get_items() == [user("1"), user("2")]
    assert "damaged" in caplog.text
    assert "seq 3" in caplog.text
    assert "broken" not in caplog.text
    assert await session.pop_item() == user("2")
    await session.add_items([user("4")])
    assert await session.get_items() == [user("1"), user("4")]
    rows = await fresh.call("read_first_items", session_id="s", owner="", after=0, limit=9)
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert rows[1]["data"] == "{broken"
    await fresh.close()


def test_run_sync_works_twice_in_a_row(tmp_path: Path) -> None:
    """Each run_sync may use another event loop than the one before."""
    session = Session.from_url("s", url=f"sqlite:///{tmp_path}/a.db")
    model = ScriptedModel([[assistant_message("one")], [assistant_message("two")]])
    agent = Agent(name="a", model=model)
    config = RunConfig(tracing_disabled=True)

    def turn(text: str) -> Any:
        async def run() -> Any:
            return await Runner.run(agent, text, session=session, run_config=config)

        return asyncio.run(run()).final_output

    assert turn("first") == "one"
    assert turn("second") == "two"
    assert model.last_call is not None
    assert len(model.last_call.input) == 3


async def test_close_lets_go_of_the_file(tmp_path: Path) -> None:
    """The last session of a URL closes the database; a closed session says so."""
    url = f"sqlite:///{tmp_path}/a.db"
    first, second = Session.from_url("1", url=url), Session.from_url("2", url=url)
    await first.add_items([user("1")])
    await first.close()
    await first.close()
    with pytest.raises(ClosedError):
        await first.get_items()
    await second.add_items([user("2")])
    assert (tmp_path / "a.db-wal").exists()
    await second.close()
    assert not (tmp_path / "a.db-wal").exists()
    async with Session.from_url("1", url=url) as again:
        assert await again.get_items() == [user("1")]


async def test_the_default_database_is_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DATABASE_URL, else a file in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    async with Session("s") as session:
        await session.add_items([user("1")])
    assert (tmp_path / "threadkeep.db").exists()
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/other.db")
    async with Session("s") as session:
        assert await session.get_items() == []


@given(items=st.lists(ITEMS, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_json_object_comes_back_equal(items: list[Any]) -> None:
    """NUL, emoji, lone surrogates and unknown fields included."""

    async def round_trip() -> list[Any]:
        async with Session("s", database="sqlite://") as session:
            await session.add_items(items)
            again: list[Any] = list(await session.get_items())
            return again

    back = asyncio.run(round_trip())
    assert json.dumps(back) == json.dumps(items)


class SessionAgainstList(RuleBasedStateMachine):
    """Any sequence of calls on two sessions, each read through two caches, equals plain lists."""

    place = DatabaseSettings()

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.databases = [connect(self.place), connect(self.place)]
        self.models: dict[str, list[Any]] = {"a": [], "b": []}
        self.example = uuid4()

    def session(self, name: str, which: int) -> Session:
        return Session(f"{name}-{self.example}", database=self.databases[which])

    names = st.sampled_from(["a", "b"])
    which = st.integers(0, 1)

    @rule(name=names, which=which, items=st.lists(ITEMS, max_size=3))
    def add(self, name: str, which: int, items: list[Any]) -> None:
        self.runner.run(self.session(name, which).add_items(items))
        self.models[name] += items

    @rule(name=names, which=which)
    def pop(self, name: str, which: int) -> None:
        popped = self.runner.run(self.session(name, which).pop_item())
        model = self.models[name]
        assert popped == (model.pop() if model else None)

    @rule(name=names, which=which)
    def clear(self, name: str, which: int) -> None:
        self.runner.run(self.session(name, which).clear_session())
        self.models[name].clear()

    @rule(name=names, which=which, limit=st.integers(0, 5))
    def read_some(self, name: str, which: int, limit: int) -> None:
        model = self.models[name]
        items = self.runner.run(self.session(name, which).get_items(limit))
        assert items == model[max(0, len(model) - limit) :]

    @invariant()
    def equal(self) -> None:
        for name, model in self.models.items():
            for which in (0, 1):
                assert self.runner.run(self.session(name, which).get_items()) == model

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for database in self.databases:
                self.runner.run(database.close())
            self.runner.close()


@pytest.mark.parametrize("backend", ["sqlite", "postgres"], indirect=True)
def test_any_sequence_of_calls_equals_a_list(backend: Backend, prove: bool) -> None:
    """Found by Hypothesis, if there is one that does not."""

    class Machine(SessionAgainstList):
        place = DatabaseSettings.read(backend.variables)

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=200 if prove else 20, stateful_step_count=20, deadline=None),
    )
