"""Files that exist whole or not at all, and digests that name them.

A killed process must never leave a half-written file under its final name, so everything is
written beside its destination under a temporary name and renamed, which POSIX makes atomic.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from snapfit.core.errors import CorruptFile, SnapfitError

_T = TypeVar("_T")


@contextlib.contextmanager
def atomic_path(destination: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it onto `destination` if the block succeeds.

    Raises:
        SnapfitError: the disk is full or the folder cannot be written.

    """
    destination = Path(destination)
    temporary = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(destination)
    except OSError as error:
        raise SnapfitError(_write_failed(destination, error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary directory; rename it onto `destination` if the block succeeds.

    Raises:
        SnapfitError: `destination` exists and `overwrite` is false, or writing failed.

    """
    destination = Path(destination)
    check_new_directory(destination, overwrite=overwrite)
    temporary = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        yield temporary
        temporary.chmod(0o755)
        put_in_place(temporary, destination)
    except OSError as error:
        raise SnapfitError(_write_failed(destination, error)) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(folder: Path, destination: Path) -> None:
    """Rename a folder, over one that may be there already.

    Raises:
        OSError: either cannot be renamed.

    """
    if not destination.exists():
        folder.replace(destination)
        return
    retired = Path(tempfile.mkdtemp(prefix=".old.", dir=destination.parent))
    destination.replace(retired / destination.name)
    folder.replace(destination)
    shutil.rmtree(retired, ignore_errors=True)


def check_new_directory(destination: Path, *, overwrite: bool = False) -> None:
    """Fail early, before hours of work, when the output could not be put in place.

    Raises:
        SnapfitError: `destination` is a file, or a non-empty folder and `overwrite` is false, or
            cannot be renamed onto; or nothing can be written there.

    """
    if destination.name in {"", ".."}:
        raise SnapfitError(f"{str(destination)!r} cannot be replaced; give a folder by its name")
    if destination.is_file():
        raise SnapfitError(f"{destination} is a file; give a folder that does not exist yet")
    if destination.is_dir() and any(destination.iterdir()) and not overwrite:
        raise SnapfitError(
            f"{destination} already exists and is not empty; choose another folder "
            "or pass --overwrite"
        )
    check_writable(destination)


def check_writable(destination: Path) -> None:
    """Fail early when nothing could be written at a path, whose folders need not exist yet.

    Raises:
        SnapfitError: the nearest folder that exists is none, or is read-only, or the name is too
            long.

    """
    try:
        place = destination.absolute().parent
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(prefix=f".{destination.name}.", dir=place):
            pass
    except OSError as error:
        raise SnapfitError(_write_failed(destination, error)) from error


def write_json(destination: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_path(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        SnapfitError: there is no such file.
        CorruptFile: the file is not JSON.

    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SnapfitError(f"no such file: {path}") from error
    except (OSError, ValueError, RecursionError) as error:  # a number or a nesting without end too
        raise CorruptFile(f"{path} is not readable JSON ({error})") from error


def read_kept(path: Path, made: Callable[[Any], _T]) -> _T:
    """What `made` makes of a file of the work folder, which snapfit wrote itself.

    Raises:
        CorruptFile: the file is damaged; says which to delete.

    """
    try:
        return made(read_json(path))
    except CorruptFile as error:
        raise CorruptFile(f"{error}; delete it and rerun") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{path} is damaged ({error!r}); delete it and rerun") from error


def digest_json(value: Any) -> str:
    """SHA-256 (16 hex digits) of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_files(paths: list[Path]) -> str:
    """SHA-256 (16 hex digits) over the names and contents of `paths`, in the order given."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()[:16]


def readable_bytes(count: float) -> str:
    """'1.5 GB', '20 kB': decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _write_failed(destination: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"cannot write {destination}: {reason}; free space or choose another place, then rerun"
