"""The crash kit: kills processes in the middle of turns, and checks what is promised all the same.

    python -m threadkeep.testing.crash --every --kills 2000

A parent that has everything imported, but neither threads nor an open database, forks a process
for each attempt at a turn. The process is killed at a point that it was told, such as after its
fifth statement, or after some time; the next one goes on, and may be killed as well, until one
lives. Then the turn must be as if nothing had happened (crash_promises.py).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from threadkeep.connect import connect
from threadkeep.postgres import PostgresDatabase
from threadkeep.settings import DatabaseSettings
from threadkeep.testing.crash_process import (
    LOST_AFTER_MS,
    Case,
    Fate,
    Known,
    Message,
    Place,
    Tell,
    in_child,
    live,
    prepare,
    warm_up,
)
from threadkeep.testing.crash_promises import Story, broken_promises
from threadkeep.testing.crash_world import SCENARIOS, is_statement

_HUNG_SECONDS = 40.0
_MOST_KILLS = 4

_FREEZES = 4
"""How often another process freezes while one is frozen at a statement: sooner and later."""

_AT_WORK = "before read_journal"
"""Where a process has taken over a run, and begins to work on it."""


@dataclass
class Report:
    """What came of some cases.

    Attributes:
        cases: How many there were.
        kills: How many processes were killed, by scenario and place.
        freezes: How many were frozen and went on later.
        approvals: How many calls somebody was asked about.
        broken: Each promise that was broken, with its case.
    """

    cases: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    freezes: int = 0
    approvals: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        """How many processes were killed."""
        return self.kills.total()

    def add(self, other: Report) -> None:
        """Takes in another report."""
        self.cases += other.cases
        self.kills += other.kills
        self.freezes += other.freezes
        self.approvals += other.approvals
        self.broken += other.broken

    def as_json(self) -> dict[str, Any]:
        """The report as JSON, with the kills by their places alone."""
        places: Counter[str] = Counter()
        for name, number in self.kills.items():
            places[name.partition(": ")[2]] += number
        return {
            "cases": self.cases,
            "killed": self.killed,
            "places": dict(places.most_common()),
            "kills": dict(self.kills.most_common()),
            "freezes": self.freezes,
            "approvals": self.approvals,
            "broken": self.broken,
        }


class Process:
    """A forked process, and what it tells.

    Args:
        work: What it does there.
    """

    def __init__(self, work: Callable[[Tell], Any]) -> None:
        self.messages: list[Message] = []
        self.status: int | None = None
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            in_child(writing, work)
        os.close(writing)
        self._pipe: int = reading
        self._rest = b""

    def listen(self, seconds: float) -> bool:
        """Hears what it tells, until it has ended or frozen, or the time is over: then False."""
        until = time.monotonic() + seconds
        while self.status is None and time.monotonic() < until:
            ready, _, _ = select.select([self._pipe], [], [], min(0.005, seconds))
            if ready:
                self._hear()
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self.status = status
                while self._hear():
                    continue
                os.close(self._pipe)
        return self.status is not None

    def send(self, signal_number: int) -> None:
        """Kills it, or lets it go on."""
        if self.status is None:
            os.kill(self.pid, signal_number)

    @property
    def was_killed(self) -> bool:
        """Whether it did not end by itself."""
        return self.status is not None and os.WIFSIGNALED(self.status)

    def _hear(self) -> bool:
        data = os.read(self._pipe, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.messages += [json.loads(line) for line in lines]
        return bool(data)


def run_case(place: Place, case: Case) -> tuple[Report, Story]:
    """Plays a case to its end, and looks at what came of it."""
    story, report, frozen = Story(), Report(cases=1), list[Process]()
    finish(Process(lambda tell: asyncio.run(prepare(place, case))))
    for number in range(len(case.fates) + 1):
        fate = case.fates[number] if number < len(case.fates) else Fate()
        known = _known(story)
        process = Process(partial(_live, place, case, number, known))
        story.told.append(process.messages)
        process.listen(fate.seconds if fate.seconds is not None else _HUNG_SECONDS)
        if fate.seconds is not None and process.status is None:
            process.send(signal.SIGKILL)
            process.messages.append({"stopped": f"some time in process {number}"})
        if process.status is None and fate.freeze:
            frozen.append(process)
            if len(frozen) < 2:
                continue
        _thaw(frozen)
        finish(process)
        if not process.was_killed:
            break
        report.kills[f"{case.scenario}: {_stopped_at(process)}"] += 1
    _thaw(frozen)
    story.froze = bool(frozen)
    report.freezes = len(frozen)
    checks = Process(partial(_check, place, case, story))
    finish(checks)
    found = [text for message in checks.messages for text in message.values()]
    report.approvals = sum("asks_about" in mark for mark in place.marks(case, 0).read())
    report.broken = [f"{case}: {text}" for texts in found for text in _list(texts)]
    return report, story


def _list(texts: Any) -> list[str]:
    return texts if isinstance(texts, list) else [str(texts)]


def _thaw(frozen: Sequence[Process]) -> None:
    """Lets the frozen go on, oldest first: each sees what the next has not done yet."""
    for process in frozen:
        process.send(signal.SIGCONT)
        process.listen(LOST_AFTER_MS * 2 / 1000)
    for process in frozen:
        finish(process)


def finish(process: Process) -> None:
    """Waits until a process has ended; one that does not end is a fault."""
    if process.status is None and not process.listen(_HUNG_SECONDS):
        process.send(signal.SIGKILL)
        process.messages.append({"fault": "it hung"})
        process.listen(_HUNG_SECONDS)


def _live(place: Place, case: Case, number: int, known: Known, tell: Tell) -> None:
    asyncio.run(live(place, case, number, known, tell))


def _check(place: Place, case: Case, story: Story, tell: Tell) -> None:
    tell({"broken": asyncio.run(broken_promises(place, case, story))})


def _stopped_at(process: Process) -> str:
    places = [message["stopped"] for message in process.messages if "stopped" in message]
    return str(places[-1]) if places else "nowhere"


def _known(story: Story) -> Known:
    """What the client was told so far: the run it waits for, and how much of it."""
    known = Known()
    for message in (message for messages in story.told for message in messages):
        if "run" in message and message["run"] != known.run_id:
            known = Known(message["run"])
        elif "event" in message and message["of"] == known.run_id:
            known.last = max(known.last, message["event"]["sequence_number"])
    return known


@dataclass(frozen=True)
class Measure:
    """A turn that nobody interrupts.

    Args:
        points: What it passes.
        seconds: How long it takes.
    """

    points: Sequence[str]
    seconds: float


def measure(place: Place, scenario: str, name: str) -> tuple[Measure, Report]:
    """Plays a scenario without interruption."""
    report, story = run_case(place, Case(name, scenario))
    for message in story.told[-1]:
        if "passed" in message:
            return Measure(message["passed"], message["seconds"]), report
    raise RuntimeError(f"{scenario} did not come to its end: {report.broken}")


def every_kill(scenario: str, points: Sequence[str], seed: int) -> Iterator[Case]:
    """A case for each point of a scenario; every third session has items before.

    By name: how often something is written in between is not the same each time.
    """
    for point, name in enumerate(points):
        fates = (Fate(point=points[:point].count(name), only=name),)
        yield Case(f"every-{scenario}-{point}", scenario, fates, point % 3 == 0, seed + point)


def every_freeze(scenario: str, points: Sequence[str], seed: int) -> Iterator[Case]:
    """A process freezes at each statement, another goes on and freezes too; then both go on."""
    statements = sum(is_statement(point) for point in points)
    for point in range(statements):
        dice = random.Random(f"{seed} {point}")  # noqa: S311 - no secret
        for number in range(_FREEZES):
            part = statements / _FREEZES
            later_point = int(dice.uniform(number * part, (number + 1) * part))
            later = Fate(point=later_point, behind=_AT_WORK, freeze=True)
            fates = (Fate(point=point, freeze=True), later)
            name = f"freeze-{scenario}-{point}-{number}"
            yield Case(name, scenario, fates, point % 3 == 0, seed + point)


def random_case(name: str, measures: dict[str, Measure], dice: random.Random) -> Case:
    """A turn that is killed up to four times, each time at some point or after some time."""
    scenario = dice.choice(list(measures))
    measured, fates = measures[scenario], list[Fate]()
    for number in range(dice.choice((1, 1, 2, 3, _MOST_KILLS))):
        waits = 0 if number == 0 else LOST_AFTER_MS / 1000
        if dice.random() < 0.5:
            fates.append(Fate(seconds=dice.uniform(0, 1.2 * measured.seconds + waits)))
        else:
            behind = _AT_WORK if number and dice.random() < 0.7 else ""
            fates.append(Fate(point=dice.randrange(len(measured.points)), behind=behind))
    return Case(name, scenario, tuple(fates), dice.random() < 0.3, dice.randrange(1 << 30))


@dataclass(frozen=True)
class Plan:
    """What a kit does.

    Args:
        seed: Of all that is random.
        scenarios: Which turns.
        every: Whether to kill at each point once.
        freezes: Whether to freeze at each statement.
        kills: How many random kills, at least.
        stops: Whether a worker stops at the first promise that is broken.
        jobs: How many workers, each with a database of its own.
    """

    seed: int
    scenarios: Sequence[str]
    every: bool = False
    freezes: bool = False
    kills: int = 0
    stops: bool = False
    jobs: int = 2


def work_off(place: Place, plan: Plan, worker: int) -> Report:
    """Does one worker's share of a plan."""
    total, measures, fixed = Report(), dict[str, Measure](), list[Case]()
    for scenario in plan.scenarios:
        measures[scenario], report = measure(place, scenario, f"whole-{scenario}")
        total.add(report)
        points = measures[scenario].points
        if plan.every:
            fixed += every_kill(scenario, points, plan.seed)
        if plan.freezes:
            fixed += every_freeze(scenario, points, plan.seed)
    dice, killed = random.Random(f"{plan.seed} {worker}"), 0  # noqa: S311 - no secret
    for case in fixed:
        # By what it kills: the workers have measured for themselves, and not all the same.
        share = f"{case.scenario} {case.fates[0].only or case.name} {case.fates[0].point}"
        if zlib.crc32(share.encode()) % plan.jobs != worker:
            continue
        if _stops(place, plan, total):
            break
        total.add(run_case(place, case)[0])
    for number in count():
        if killed >= plan.kills / plan.jobs or _stops(place, plan, total):
            break
        report, _ = run_case(place, random_case(f"random-{worker}-{number}", measures, dice))
        killed += report.killed
        total.add(report)
    return total


def _stops(place: Place, plan: Plan, total: Report) -> bool:
    """Whether a worker, this or another one, has found a promise broken, and that is enough."""
    found = place.folder.parent / "broken"
    if plan.stops and total.broken:
        found.touch()
    return found.exists()


def prove(url: str | None, plan: Plan) -> Report:
    """Does what is planned, with several workers at once.

    Args:
        url: Of a Postgres, in which each worker makes a schema of its own; None: SQLite files.
        plan: What to do.
    """
    total = Report()
    with tempfile.TemporaryDirectory(prefix="threadkeep-crash-") as folder:
        workers = []
        asyncio.run(warm_up(Path(folder)))
        gc.freeze()  # a collection in a child would copy all of it
        for number in range(plan.jobs):
            path = Path(folder, str(number))
            path.mkdir()
            place = Place(_settings(url, path, number), path)
            workers.append(Process(partial(_worker, place, plan, number)))
        while any(worker.status is None for worker in workers):
            for worker in workers:
                worker.listen(0.05)
        for worker in workers:
            reports = [m["report"] for m in worker.messages if "report" in m]
            total.broken += [f"a worker: {m['fault']}" for m in worker.messages if "fault" in m]
            for told in reports:
                kills = Counter(told.pop("kills"))
                total.add(Report(**told, kills=kills))
            if not reports:
                total.broken.append("a worker did not end")
    return total


def _worker(place: Place, plan: Plan, number: int, tell: Tell) -> None:
    finish(Process(lambda tell: asyncio.run(_clear(place))))
    report = work_off(place, plan, number)
    finish(Process(lambda tell: asyncio.run(_clear(place))))
    kept = report.as_json()
    tell({"report": {name: kept[name] for name in Report.__dataclass_fields__}})


async def _clear(place: Place) -> None:
    """Removes a worker's schema; its files go with their folder."""
    database = connect(place.settings)
    if isinstance(database, PostgresDatabase):
        await database.execute(f"DROP SCHEMA IF EXISTS {database.schema} CASCADE")
    await database.close()


def _settings(url: str | None, folder: Path, worker: int) -> DatabaseSettings:
    where = {
        "DATABASE_URL": url or f"sqlite:///{folder}/crash.db",
        "LAKEBASE_AGENT_MEMORY_SCHEMA": f"crash_{os.getpid()}_{worker}",
    }
    return DatabaseSettings.read(where)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Kills processes and checks what is promised.")
    parser.add_argument("--database", help="URL of a Postgres; by default SQLite files")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="which turns")
    parser.add_argument("--every", action="store_true", help="kill once at each point")
    parser.add_argument("--freezes", action="store_true", help="freeze at each statement, too")
    parser.add_argument("--kills", type=int, default=0, help="random kills, at least")
    parser.add_argument("--stop", action="store_true", help="stop at the first broken promise")
    parser.add_argument("--seed", type=int, help="of all that is random; by default a new one")
    parser.add_argument("--jobs", type=int, default=2, help="workers at once")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 30) if given.seed is None else given.seed
    plan = Plan(
        seed,
        given.scenarios.split(","),
        every=given.every,
        freezes=given.freezes,
        kills=given.kills,
        stops=given.stop,
        jobs=given.jobs,
    )
    started = time.monotonic()
    report = prove(given.database, plan)
    seconds = round(time.monotonic() - started)
    if given.json:
        print(json.dumps({"seed": seed, "seconds": seconds} | report.as_json()))
    else:
        print(f"seed {seed}: {report.cases} turns in {seconds} s, {report.killed} processes killed")
        print(f"{report.freezes} frozen and back, {report.approvals} calls in doubt decided")
        for place, number in report.as_json()["places"].items():
            print(f"{number:6} killed at: {place}")
        print("\n".join([f"{len(report.broken)} promises broken", *report.broken]))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
