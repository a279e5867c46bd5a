"""Artefacts on disk: written whole or not at all, and verified when read.

An artefact is a directory with a ``checksums.json`` that lists the SHA-256 of every other file in it. It is written
beside its destination and moved there in one rename, so that a killed process leaves the previous artefact as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hawker.shop.errors import InputError

CHECKSUMS = "checksums.json"

WRITING = "writing-"
"""In the name of a scratch directory beside its destination: ``.NAME.writing-...``."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def write_directory(destination: Path, kind: str) -> Iterator[Path]:
    """Yield an empty scratch directory that becomes ``destination`` when the block ends without an error.

    Args:
        destination: The artefact's directory; a previous artefact of the same kind there is replaced.
        kind: What it is ("shoppers", "bundle"), kept in ``checksums.json``.

    Raises:
        InputError: As in ``refuse_others``, or nothing can be written there.
    """
    destination = Path(destination).resolve()  # behind a link, so that the link stays
    refuse_others(destination, kind)
    with scratch_directory(destination) as scratch:
        yield scratch
        files = {}
        for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
            path.chmod(0o644)  # some libraries write files that only their owner can read
            files[str(path.relative_to(scratch))] = sha256(path)
        (scratch / CHECKSUMS).write_text(json.dumps({"kind": kind, "files": files}, indent=1) + "\n")
        scratch.chmod(0o755)
        _replace(scratch, destination)


def copy_directory(source: Path, destination: Path, kind: str) -> None:
    """Copy an artefact to where another of its kind may stand; errors are those of ``write_directory``."""
    with write_directory(destination, kind) as scratch:
        shutil.copytree(source, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKSUMS))


@contextlib.contextmanager
def scratch_directory(beside: Path) -> Iterator[Path]:
    """Yield an empty directory beside a path that is removed when the block ends, and swept when this one is killed.

    Raises:
        InputError: Nothing can be written there.
    """
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        sweep(beside)
        scratch, lock = _scratch(beside)
    except OSError as error:
        raise InputError(f"cannot write here ({error.strerror})", where=beside.parent) from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def sweep(destination: Path) -> None:
    """Remove the scratch directories that writers of ``destination`` left behind when they were killed.

    A living writer holds a lock on its own, which the system lets go of when the process ends, however it ends.
    """
    for left in destination.parent.glob(f".{glob.escape(destination.name)}.{WRITING}*"):
        if left.is_symlink() or not left.is_dir():
            continue
        with contextlib.suppress(OSError):  # locked, or swept by another process
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _scratch(destination: Path) -> tuple[Path, int]:
    """Make a scratch directory and lock it; returns it with the lock, an open file descriptor."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{destination.name}.{WRITING}", dir=destination.parent))
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked: once more
            lock = os.open(scratch, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if scratch.exists():
                return scratch, lock
            os.close(lock)


def refuse_others(destination: Path, kind: str) -> None:
    """Refuse to write over anything but an artefact of the same kind, so that no mistyped path deletes files.

    Raises:
        InputError: ``destination`` is a file, another artefact, or a directory with files that Hawker did not write.
    """
    if destination.exists() and not destination.is_dir():
        raise InputError("a file stands where a directory is to be written", where=destination)
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    remedy = "name another directory"
    try:
        found = read_json(destination / CHECKSUMS)["kind"]
    except (InputError, KeyError, TypeError):
        raise InputError(
            "the directory holds files that Hawker did not write", where=destination, remedy=remedy
        ) from None
    if found != kind:
        raise InputError(
            "the directory holds something else", where=destination, got=found, expected=kind, remedy=remedy
        )


def _replace(scratch: Path, destination: Path) -> None:
    previous = _previous(destination)
    if destination.exists():
        shutil.rmtree(previous, ignore_errors=True)
        destination.rename(previous)
    scratch.rename(destination)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.previous")


def find_directory(path: Path) -> Path:
    """Return ``path``, putting back the previous artefact if a process died between the two renames of a write."""
    path = Path(path)
    real = path.resolve()
    if not real.exists() and _previous(real).is_dir():
        _previous(real).rename(real)
    return path


def verify_directory(path: Path, kind: str) -> Path:
    """Check every file of an artefact against its checksum and return the directory.

    Args:
        path: The artefact's directory.
        kind: What it should be ("shoppers", "bundle").

    Raises:
        InputError: The directory or a file is missing, a file was changed, or it is an artefact of another kind.
    """
    path = find_directory(path)
    if not path.is_dir():
        raise InputError(f"no {kind} here", where=path, expected=f"a directory with {kind}")
    try:
        listed = json.loads((path / CHECKSUMS).read_text())
        found, items = listed["kind"], [(str(name), str(digest)) for name, digest in listed["files"].items()]
    except FileNotFoundError:
        raise InputError(f"not a directory of {kind}", where=path, expected=f"a {CHECKSUMS} in it") from None
    except (ValueError, AttributeError, KeyError, TypeError, OSError):
        raise InputError("the list of checksums is damaged", where=path / CHECKSUMS, remedy="write it anew") from None
    if found != kind:
        raise InputError("a directory of another kind", where=path, got=found, expected=kind)
    for name, digest in items:
        if not (path / name).is_file():
            raise InputError("a file is missing", where=path / name, remedy=f"write the {kind} anew")
        if sha256(path / name) != digest:
            raise InputError(
                "the file was changed after it was written",
                where=path / name,
                got=sha256(path / name)[:12],
                expected=f"SHA-256 {digest[:12]}...",
                remedy=f"write the {kind} anew",
            )
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename.

    Raises:
        InputError: No file can be written there.
    """
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
    except OSError as error:
        raise InputError(f"cannot write here ({error.strerror})", where=path) from None
    finally:
        if scratch:
            Path(scratch).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON in one rename; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (ValueError, OSError) as error:
        raise InputError("not a JSON file", where=path, got=str(error), expected="JSON") from None
