"""What Threadkeep costs before it does anything: size installed, time to start, memory at rest.

    uv run --group dev python benchmarks/footprint.py

Start is given as a ratio to `python -c 'import agents'`, measured in turn with it in the same run:
importing the Agents SDK is what nobody who uses it can save.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
UV = os.environ.get("UV") or shutil.which("uv") or "uv"
ROUNDS = 7


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"installed, uv sync --no-default-groups: {installed_mb(Path(folder)):.0f} MB")
        ratios, direct, rests = [], [], []
        for _ in range(ROUNDS):
            imported = import_seconds()
            started, rest = start_seconds([UV, "run", "start-app"], Path(folder))
            bare, _ = start_seconds([str(Path(sys.executable).parent / "start-app")], Path(folder))
            ratios.append(started / imported)
            direct.append(bare / imported)
            rests.append(rest)
        print(f"`uv run start-app` to /health, over `import agents`: {spread(ratios)}")
        print(f"`.venv/bin/start-app` to /health, over `import agents`: {spread(direct)}")
        print(f"memory at rest, without a model: {statistics.median(rests):.0f} MB")


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def installed_mb(folder: Path) -> float:
    """Size of an environment with the app and no groups, in MB of disk blocks' contents."""
    environment = os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder / "venv")}
    environment.pop("VIRTUAL_ENV", None)
    command = [UV, "sync", "--no-default-groups", "--quiet", "--link-mode", "copy"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    files = (path for path in (folder / "venv").rglob("*") if not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6


def import_seconds() -> float:
    """How long a Python takes to import the Agents SDK and end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import agents"], check=True)
    return time.perf_counter() - began


def start_seconds(command: list[str], folder: Path) -> tuple[float, float]:
    """From the command to the first healthy answer, in seconds; then its memory, in MB."""
    environment = os.environ | {
        "DATABASE_URL": f"sqlite:///{folder}/bench.db",
        "AGENT_MODEL": "none",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    }
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", "8765"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not healthy():
            time.sleep(0.01)
        took = time.perf_counter() - began
        return took, memory_mb(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def healthy() -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen("http://127.0.0.1:8765/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except urllib.error.URLError:
        return False


def memory_mb(group: int) -> float:
    """Resident memory of the largest process of a group, in MB."""
    listed = subprocess.run(
        ["ps", "-o", "pgid=,rss=", "-A"], capture_output=True, text=True, check=True
    )
    pairs = [re.findall(r"\d+", line) for line in listed.stdout.splitlines()]
    return max(int(rss) for pgid, rss in pairs if int(pgid) == group) / 1024


if __name__ == "__main__":
    main()
