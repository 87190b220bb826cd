"""What the documents say is true: commands, replies, snippets, settings and options."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tests.client import ask, client_of, session_of
from tests.conftest import RunningApp, environment
from tests.fake_openai import fake_openai
from threadkeep.commands import main
from threadkeep.connect import DEFAULT_URL
from threadkeep.settings import Settings
from threadkeep.testing import checks, damage_checks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONFORMANCE = (ROOT / "docs" / "conformance.md").read_text()
SESSIONS = (ROOT / "docs" / "sessions.md").read_text()
MEMORY = (ROOT / "docs" / "memory.md").read_text()
CURL = shutil.which("curl")


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of a document, by default the README, in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with fake_openai() as url:
        yield url


def test_the_test_command_is_what_ci_runs() -> None:
    """What a newcomer gets is what is checked."""
    run, test = blocks("bash")[:2]
    assert run == "pip install uv && uv run start-app\n"
    assert (ROOT / ".ci" / "run").read_text().endswith(test)


def test_the_curl_commands_of_the_readme(running_app: RunningApp) -> None:
    """Each is run as it stands, but for the address and the session; replies look as shown."""
    assert CURL, "curl is missing: apt-get install -y curl"
    commands = [block for block in blocks("bash") if block.startswith("curl")]
    assert len(commands) == 3
    session_id, replies = "", []
    for command in commands:
        text = command.replace("http://localhost:8000", running_app.url)
        text = text.replace("<session_id>", session_id).replace("curl ", "curl -s ", 1)
        done = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, timeout=60, check=True
        )
        replies.append(done.stdout)
        if not session_id:
            session_id = json.loads(done.stdout)["custom_outputs"]["session_id"]
    for shown, reply in zip(blocks("json"), replies, strict=False):
        assert shape(json.loads(shown)).items() <= shape(json.loads(reply)).items()
    assert "SF" in replies[1]
    assert replies[2].startswith("id: 0\ndata: {")
    assert replies[2].endswith("data: [DONE]\n\n")


def shape(value: dict[str, Any]) -> dict[str, str]:
    """The types of a reply's fields."""
    return {name: type(field).__name__ for name, field in value.items()}


def test_the_openai_snippet_of_the_readme(running_app: RunningApp, tmp_path: Path) -> None:
    """It goes on with the session of its first answer."""
    snippet = blocks("python")[0].replace("http://localhost:8000", running_app.url)
    assert python(snippet, tmp_path) == "You live in SF.\n"


def test_the_library_snippet_of_the_readme(model_url: str, tmp_path: Path) -> None:
    """Run twice in a folder, it goes on where it was."""
    snippet = blocks("python")[1]
    variables = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": model_url}
    for _ in range(2):
        assert python(snippet, tmp_path, **variables) == "You live in SF.\n"
    assert (tmp_path / "threadkeep.db").exists()


def python(code: str, folder: Path, **variables: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    } | variables
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_snippets_about_approvals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool asks, the client decides, and the context can be stored."""
    tool, client, context = blocks("python", (ROOT / "docs" / "approvals.md").read_text())
    (tmp_path / "snippets.py").write_text(tool + context)
    monkeypatch.syspath_prepend(tmp_path)
    snippets = importlib.import_module("snippets")
    app = RunningApp(
        environment(f"sqlite:///{tmp_path}/threadkeep.db"),
        tools=[snippets.refund],
        create_context=snippets.create_context,
    )
    text = client.replace("http://localhost:8000", app.url)
    text = text.replace("Refund order 7, please.", "use refund; say refunded")
    assert python(text, tmp_path) == "refunded\n"
    app.stop()


def test_the_curl_commands_about_sessions(running_app: RunningApp, tmp_path: Path) -> None:
    """Each is run as it stands, but for the address and the session; none fails."""
    commands = [b for b in blocks("bash", SESSIONS) if b.startswith("curl")]
    assert len(commands) == 5
    with client_of(running_app.url) as client:
        session_id = session_of(ask(client, "say hi"))
        for command in commands:
            text = command.replace("http://localhost:8000", running_app.url)
            text = text.replace("<session_id>", session_id).replace("curl ", "curl -sS --fail ")
            done = subprocess.run(
                ["bash", "-ec", text], cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
        rewound = client.get(f"/sessions/{session_id}").json()
        assert (rewound["title"], rewound["item_count"]) == ("A trip to SF", 0)
        (shown,) = blocks("json", SESSIONS)
        assert client.post("/sessions/import", content=shown).is_success
        assert client.get("/sessions/s/export").text == shown


def test_the_curl_commands_about_memory(running_app: RunningApp, tmp_path: Path) -> None:
    """None fails, and what is stored is found and exported."""
    [commands] = [b for b in blocks("bash", MEMORY) if b.startswith("curl")]
    text = commands.replace("http://localhost:8000", running_app.url)
    text = text.replace("curl ", "curl -sS --fail ")
    done = subprocess.run(
        ["bash", "-ec", text], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"path":"/memories/diet.md"') == 3


@pytest.mark.prove
def test_the_conformance_snippets(tmp_path: Path) -> None:
    """Both find in the SDK's SQLiteSession what the table says, but for what needs damage."""
    script, tests = blocks("python", CONFORMANCE)
    failing = in_table("SQLiteSession") - {check.name for check in damage_checks}
    said = python(script, tmp_path)
    assert set(re.findall(r"\| ([a-z0-9 ]+) \| \*\*fails:", said)) == failing
    assert said.endswith(f"{len(checks) - len(failing)} of {len(checks)} pass.\n")
    (tmp_path / "test_mine.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    failed = re.findall(
        r"^FAILED test_mine.py::test_conformance\[(.+?)\]", done.stdout, re.MULTILINE
    )
    assert set(failed) == failing, done.stdout


def test_the_conformance_table_is_whole() -> None:
    """It has every check, and of ours it says what tests/test_conformance.py does."""
    for column in ("ours, SQLite", "ours, Postgres"):
        assert in_table(column) == set()
    for check in (*checks, *damage_checks):
        assert f"\n| {check.name} |" in CONFORMANCE


def in_table(column: str) -> set[str]:
    """The checks that fail in a column of the table of docs/conformance.md."""
    rows = [row.split(" | ") for row in re.findall(r"^\| (.+) \|$", CONFORMANCE, re.MULTILINE)]
    place = rows[0].index(column)
    return {row[0] for row in rows if len(row) > place and row[place] == "fails"}


def test_every_setting_is_in_the_example_and_no_other() -> None:
    """With the values that are the defaults."""
    example = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", example, re.MULTILINE))
    fields = {field.alias: field for field in Settings.model_fields.values()}
    assert shown.keys() == fields.keys()
    assert Settings.read({**shown, "OPENAI_BASE_URL": ""}) == Settings.read(
        {
            "DATABASE_URL": DEFAULT_URL,
            "AGENT_MODEL": "local",
            "HOST": "127.0.0.1",
            "OPENAI_API": "chat_completions",
        }
    )


def test_every_option_is_in_the_readme() -> None:
    """Those that `start-app --help` tells."""
    command = Path(sys.executable).parent / "start-app"
    told = subprocess.run([command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for option in set(re.findall(r"--[a-z-]+", told.stdout)) - {"--help"}:
        assert f"`{option}`" in README


def test_every_command_is_in_a_document() -> None:
    """Those of `threadkeep`, and their options, but for aliases."""
    text = "\n".join(file.read_text() for file in [*ROOT.glob("docs/*.md"), ROOT / "README.md"])
    for name, command in commands_of(main):
        assert f"threadkeep {name}" in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert any(word in text for word in option.opts), f"{name} {option.opts}"


def commands_of(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{path}{name} ")
        elif command.name == name:
            yield path + name, command


def test_every_call_is_described(running_app: RunningApp) -> None:
    """In the OpenAPI document, and so at /docs."""
    for path, operations in running_app.app.openapi()["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), f"{method} {path}"


def test_every_message_of_the_troubleshooting_is_ours() -> None:
    """What stands first in a row is said somewhere in the code, word for word."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("agent_server/*.py")]
    # Strings that follow each other are one.
    said = re.sub(r'"\s*f?"', "", "\n".join(file.read_text() for file in files))
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "docs/troubleshoot.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall("`(.+?)`", row)]
    assert len(messages) > 15
    for message in messages:
        assert message in said, message


def test_links_lead_somewhere() -> None:
    """In every document of the project."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_documents_stay_short() -> None:
    """The README fits in one reading, the map in one look."""
    assert len(README.splitlines()) < 200
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) <= 80
