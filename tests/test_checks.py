"""The checks of the code itself: ruff, types, and who may import whom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ],
    ids=" ".join,
)
def test_check(command: list[str]) -> None:
    """It finds nothing; `make fix` mends what can be mended by itself."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_stay_readable() -> None:
    """No file of ours is longer than 500 lines."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.js", "*.css", "*.sql"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in listed.stdout.split()}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_nothing_is_committed_that_names_a_registry() -> None:
    """Lock files hold addresses of one machine's registries."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    locks = {"uv.lock", "poetry.lock", "package-lock.json", "pylock.toml"}
    assert [n for n in listed.stdout.split() if n.rpartition("/")[2] in locks] == []
