"""The embedded model's weights: put together whole or not at all, and only when genuine."""

from __future__ import annotations

import ast
import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from threadkeep.local import weights
from threadkeep.local.errors import (
    EmbeddedModelUnavailableError,
    WeightsDamagedError,
    WeightsMissingError,
    WeightsNotReadableError,
    WeightsNotWrittenError,
)
from threadkeep.local.weights import KNOWN, QWEN, Packaged, Weights, find

PARTS = (b"GGUF" + b"a" * 3_000_000, b"b" * 3_000_000, b"c" * 5)
WHOLE = b"".join(PARTS)
FAKE = Packaged(
    name="Fake-1B",
    file="fake.gguf",
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    size=len(WHOLE),
    distributions=("fake-part1", "fake-part2", "fake-part3"),
    suffix=".bin",
)
SOURCES = Path(weights.__file__).parents[3]


def silent(_: str) -> None:
    """For those who need no progress."""


def install(site: Path, name: str, content: bytes) -> Path:
    """Put a distribution with one data file where `importlib.metadata` looks."""
    package = name.replace("-", "_")
    data = site / package / "data" / "part.bin"
    data.parent.mkdir(parents=True)
    data.write_bytes(content)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{package}/data/part.bin,,\n{info.name}/METADATA,,\n")
    return data


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def parts(site: Path) -> list[Path]:
    return [install(site, name, part) for name, part in zip(FAKE.distributions, PARTS, strict=True)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_parts_found_through_their_distributions_make_the_whole_file(
    parts: list[Path], cache: Path
) -> None:
    """The file holds all parts in order, and nothing else stays in the cache but its record."""
    whole = find(None, [FAKE]).ready(cache, silent)
    assert whole.read_bytes() == WHOLE
    assert {path.name for path in cache.iterdir()} == {"fake.gguf", "fake.gguf.checked.json"}
    assert not any(name.startswith("fake_part") for name in sys.modules)


def test_a_checked_file_is_not_read_again(parts: list[Path], cache: Path) -> None:
    """With size and time as recorded no hash is taken: other bytes pass unnoticed."""
    found = find(None, [FAKE])
    whole = found.ready(cache, silent)
    status = whole.stat()
    whole.write_bytes(b"x" * len(WHOLE))
    os.utime(whole, ns=(status.st_atime_ns, status.st_mtime_ns))
    lines: list[str] = []
    assert found.ready(cache, lines.append).read_bytes() == b"x" * len(WHOLE)
    assert lines == []


def test_a_changed_file_is_put_together_anew(parts: list[Path], cache: Path) -> None:
    """A time of change that is not the recorded one brings the hash back."""
    found = find(None, [FAKE])
    found.ready(cache, silent).write_bytes(b"x" * len(WHOLE))
    assert found.ready(cache, silent).read_bytes() == WHOLE


def test_a_touched_file_is_kept(parts: list[Path], cache: Path) -> None:
    """The same bytes at another time are hashed, recorded again and not rewritten."""
    found = find(None, [FAKE])
    whole = found.ready(cache, silent)
    os.utime(whole, ns=(1, 1))
    inode = whole.stat().st_ino
    assert found.ready(cache, silent).stat().st_ino == inode


def test_a_damaged_part_is_refused_and_leaves_nothing(parts: list[Path], cache: Path) -> None:
    """One flipped byte changes the hash; no file is left to be used by mistake."""
    parts[1].write_bytes(PARTS[1][:-1] + b"x")
    with pytest.raises(WeightsDamagedError):
        find(None, [FAKE]).ready(cache, silent)
    assert list(cache.iterdir()) == []


def test_a_genuine_single_file_is_used_where_it_lies(site: Path, cache: Path) -> None:
    """Weights in one file are checked but not copied."""
    data = install(site, "fake-one", WHOLE)
    one = Packaged("One", "one.gguf", FAKE.sha256, FAKE.size, ("fake-one",), ".bin")
    assert find(None, [one]).ready(cache, silent) == data
    data.write_bytes(b"GGUF, but another")
    with pytest.raises(WeightsDamagedError):
        find(None, [one]).ready(cache, silent)


def test_the_next_best_weights_are_used_when_a_part_is_missing(site: Path) -> None:
    """Two of three parts are as good as none."""
    install(site, "fake-part1", PARTS[0])
    install(site, "fake-part3", PARTS[2])
    install(site, "fake-one", WHOLE)
    one = Packaged("One", "one.gguf", FAKE.sha256, FAKE.size, ("fake-one",), ".bin")
    assert find(None, [FAKE, one]).name == "One"


def test_no_weights_at_all_is_one_line_that_says_what_to_do(site: Path) -> None:
    """The message is for a person at a terminal."""
    with pytest.raises(WeightsMissingError) as caught:
        find(None, [FAKE])
    message = str(caught.value)
    assert "\n" not in message
    for remedy in ("uv sync --group model", "OPENAI_API_KEY", "AGENT_MODEL"):
        assert remedy in message


def test_processes_that_start_at_once_all_get_the_whole_file(
    parts: list[Path], cache: Path
) -> None:
    """Whoever renames last wins, and each sees a whole file at any time."""
    found = find(None, [FAKE])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=spawn) as pool:
        ready = [pool.submit(read_ready, found, cache) for _ in range(4)]
        assert {future.result(60) for future in ready} == {FAKE.sha256}
    assert {path.name for path in cache.iterdir()} == {"fake.gguf", "fake.gguf.checked.json"}


def read_ready(found: Weights, cache: Path) -> str:
    """What a process sees that makes the weights ready."""
    return hashlib.sha256(found.ready(cache, silent).read_bytes()).hexdigest()


def test_a_killed_process_leaves_no_file_that_passes_for_whole(tmp_path: Path, cache: Path) -> None:
    """Killed between two parts: nothing under the final name; the rest is swept an hour later."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(PARTS[0])
    os.mkfifo(second)  # nobody writes to it, so reading it never ends
    found = Weights(FAKE.name, (first, second), FAKE)
    process = multiprocessing.get_context("spawn").Process(target=read_ready, args=(found, cache))
    process.start()
    half = _wait_for_half(cache)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert [path.name for path in cache.iterdir()] == [half.name]

    os.utime(half, (time.time() - 4000,) * 2)
    second.unlink()
    second.write_bytes(PARTS[1] + PARTS[2])
    assert found.ready(cache, silent).read_bytes() == WHOLE
    assert not half.exists()


def _wait_for_half(cache: Path) -> Path:
    for _ in range(600):
        for half in cache.glob(".fake.gguf.*.part"):
            if half.stat().st_size > 0:
                return half
        time.sleep(0.05)
    raise AssertionError("the process never began to write")


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow over 1 MB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_is_a_clear_error_and_leaves_nothing(
    parts: list[Path], cache: Path, small_files: None
) -> None:
    """The system's error becomes ours, with its cause; the half file is gone."""
    with pytest.raises(WeightsNotWrittenError) as caught:
        find(None, [FAKE]).ready(cache, silent)
    assert isinstance(caught.value.__cause__, OSError)
    assert list(cache.iterdir()) == []


def test_too_little_room_is_found_before_anything_is_written(
    parts: list[Path], cache: Path
) -> None:
    """A file larger than any disk is refused by its size alone."""
    huge = Packaged("Huge", "huge.gguf", FAKE.sha256, 1 << 60, FAKE.distributions, ".bin")
    with pytest.raises(WeightsNotWrittenError):
        find(None, [huge]).ready(cache, silent)
    assert list(cache.iterdir()) == []


def test_a_cache_folder_that_can_not_be_made_is_a_clear_error(
    parts: list[Path], tmp_path: Path
) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsNotWrittenError):
        find(None, [FAKE]).ready(tmp_path / "file" / "cache", silent)


def test_a_file_of_ones_own_is_used_as_it_is(tmp_path: Path, cache: Path) -> None:
    """No hash is known for it, and nothing is written."""
    own = tmp_path / "my-model.gguf"
    own.write_bytes(b"GGUF and more")
    found = find(own)
    assert (found.name, found.ready(cache, silent)) == ("my-model", own)
    assert not cache.exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 a zip"])
def test_what_is_no_gguf_file_is_refused_at_once(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty or of another kind: known before a process is started."""
    own = tmp_path / "my-model.gguf"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(WeightsNotReadableError):
        find(own)


def test_all_of_these_errors_are_of_one_type() -> None:
    """So that an app can say 'no embedded model' in one place."""
    for error in (WeightsDamagedError, WeightsMissingError, WeightsNotReadableError):
        assert issubclass(error, EmbeddedModelUnavailableError)


@pytest.mark.parametrize("name", QWEN.distributions)
def test_the_weights_distributions_hold_data_and_nothing_that_runs(name: str) -> None:
    """No .pth file, no script, no dependency: what installing them does is put files down."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pytest.fail(f"{name} is not installed: run `uv sync --group model`")
    files = [Path(str(file)) for file in distribution.files or ()]
    package = name.replace("-", "_")
    assert distribution.version == "0.9.0"
    assert list(distribution.entry_points) == []
    assert distribution.requires in (None, [])
    assert [file for file in files if file.suffix == ".pth"] == []
    assert {file.parts[0] for file in files} == {package, f"{package}-0.9.0.dist-info"}
    assert {file.suffix for file in files if file.parts[0] == package} <= {".py", ".bin", ".pyc"}


def test_no_source_imports_weights_and_only_the_child_imports_llama_cpp() -> None:
    """Code of packages that nobody vouches for never runs; llama.cpp's runs apart."""
    packages = {name.replace("-", "_") for packaged in KNOWN for name in packaged.distributions}
    importers: dict[str, set[str]] = {}
    for source in [
        *SOURCES.glob("src/**/*.py"),
        *SOURCES.glob("agent_server/**/*.py"),
        *SOURCES.glob("benchmarks/*.py"),
        *SOURCES.glob("benchmarks/databricks_openai/*.py"),  # beside an environment of its own
    ]:
        for name in imported(source):
            importers.setdefault(name.partition(".")[0], set()).add(source.name)
    assert packages.isdisjoint(importers)
    assert importers["xllamacpp"] == {"child.py"}


def imported(source: Path) -> set[str]:
    """The modules that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_importing_the_package_starts_nothing_heavy() -> None:
    """`import threadkeep.local` costs an app with another model next to nothing."""
    code = (
        "import sys, threadkeep.local; loaded = {'threadkeep.local.runtime', 'xllamacpp', "
        "'threadkeep.local.model'} & set(sys.modules); sys.exit(str(loaded) if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
