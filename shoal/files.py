"""Files and directories that exist whole or not at all.

Everything is written beside its target, flushed to the disk, and put in place by one rename: a reader, or a
process that starts after a crash, sees the old content or the new, never a mixture. Needs Linux or macOS.
Knows no
formats: those are `shoal.file_formats`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from shoal.errors import ShoalError, UsageError
from shoal.file_errors import failures_named

T = TypeVar("T")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `path` could be written; nothing is left there.

    Raises:
        ShoalError: the place is read-only, its parent is a file, or another failure of the file system.
    """
    target = Path(os.path.realpath(path))
    nearest = next(parent for parent in target.parents if parent.exists())
    with failures_named(target), _workspace(nearest / target.name):
        pass


def check_place(directory: Path, own: Collection[str]) -> None:
    """Before anything is computed, refuse a directory that cannot be written or holds more than a result.

    Raises:
        UsageError: it is a file, or holds something else than `own`.
        ShoalError: it cannot be written.
    """
    if directory.is_file():
        raise UsageError(f"{directory} is a file; name a directory")
    others = sorted({p.name for p in directory.iterdir()} - set(own)) if directory.is_dir() else []
    if others:
        raise UsageError(f"{directory} holds {others[0]}, which is not replaced; name another directory")
    check_writable(directory)


def write_file(path: str | os.PathLike[str], content: bytes | str | Callable[[Path], object]) -> None:
    """Write one file, whole or not at all; an old file of that name is replaced.

    Args:
        path: the target; missing parent directories are made.
        content: bytes, text (UTF-8), or a function that writes the file whose path it is given.

    Raises:
        ShoalError: the disk is full, the place read-only, or another failure of the file system.
    """
    target = Path(os.path.realpath(path))
    with failures_named(target), _workspace(target) as workspace:
        draft = workspace / target.name
        if callable(content):
            content(draft)
        else:
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
        _flush(workspace)
        os.replace(draft, target)
        _sync(target.parent)


def write_directory(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a directory, whole or not at all; an old one of that name is swapped out.

    An old directory is replaced only where each of its files has a successor in the new one, so nothing else
    that a person keeps there can be lost.

    Args:
        path: the target; missing parent directories are made.
        write: fills the empty directory whose path it is given.

    Raises:
        UsageError: the target holds other files, or is the current directory.
        ShoalError: the disk is full, the place read-only, or another failure of the file system.
    """
    target = Path(os.path.realpath(path))
    if os.path.isfile(target):
        raise UsageError(f"{target} is a file; name a directory")
    if os.path.isdir(target) and Path.cwd().is_relative_to(target):
        raise UsageError(f"cannot replace the current directory {target}; name a new directory inside it")
    with failures_named(target), _workspace(target) as workspace:
        write(workspace)
        _flush(workspace)
        with _locked(target.parent):
            if target.is_dir():
                _check_replaceable(target, workspace)
                _swap(workspace, target)
            else:
                os.rename(workspace, target)
        _sync(target.parent)


def move_directory(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Put a directory that is on the disk at a path of the same file system; nothing may be there.

    Raises:
        ShoalError: something is there, or another failure of the file system.
    """
    source, target = Path(source), Path(target)
    with failures_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        for folder in (target.parent, target.parent.parent, source.parent):
            _sync(folder)


def remove_directory(path: str | os.PathLike[str]) -> None:
    """Remove a directory: a reader sees it whole or not at all.

    Raises:
        ShoalError: there is none, or it cannot be removed.
    """
    target = Path(os.path.realpath(path))
    with failures_named(target, "remove"), _workspace(target) as workspace:
        os.rename(target, workspace / target.name)
        _sync(target.parent)


def read_directory(path: str | os.PathLike[str], read: Callable[[Path], T]) -> T:
    """Whatever `read` makes of a directory, from one version of it even if a writer swaps it meanwhile.

    Raises:
        UsageError: there is no such directory.
        ShoalError: it changed at each of 20 tries; `read` may raise others.
    """
    directory = Path(path)
    for _ in range(20):
        with _held(directory) as unchanged:
            try:
                value = read(directory)
            except Exception:  # a mixture of two versions may raise anything
                if unchanged():
                    raise
                continue
            if unchanged():
                return value
    raise ShoalError(f"{directory} is rewritten faster than it can be read; stop its writers")


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A new directory beside the target, locked while its writer lives, and gone afterwards.

    A killed writer's lock goes with it, which is how the next writer of the same target knows its leftovers.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):  # until the new workspace has its own lock, no writer may look for leftovers
        for leftover in target.parent.glob(f".{_literal(target.name)}.*.tmp"):
            _remove_unlocked(leftover)
        workspace = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
        workspace.mkdir()
        held = os.open(workspace, os.O_RDONLY)
        _lock(held, fcntl.LOCK_EX)
    try:
        yield workspace
    finally:
        os.close(held)
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except OSError:  # held by a living writer, or a file system without locks: leave what is there alone
        return False
    return True


def _remove_unlocked(leftover: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(descriptor)


def _flush(directory: Path) -> None:
    """Put a tree on the disk; its files get the modes of ordinary ones (safetensors makes them private)."""
    mode = directory.stat().st_mode & 0o666
    entries = [directory, *directory.rglob("*")]
    for file in filter(Path.is_file, entries):
        file.chmod(mode)
    with ThreadPoolExecutor(8) as pool:  # the journal commits what is flushed together once
        list(pool.map(_sync, entries))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_replaceable(old: Path, new: Path) -> None:
    kept = [p.relative_to(old) for p in old.rglob("*") if not (new / p.relative_to(old)).exists()]
    if kept:
        raise UsageError(f"replacing {old} would lose its {min(kept)}; name another directory, or delete it")


def _swap(new: Path, old: Path) -> None:
    """Exchange two directories in one step; elsewhere in two, between which the target is absent."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(new), os.fsencode(old)
    if sys.platform == "darwin":
        failed = libc.renamex_np(*paths, 2)  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(-100, paths[0], -100, paths[1], 2)  # AT_FDCWD twice, RENAME_EXCHANGE
    else:
        failed = ctypes.set_errno(errno.ENOSYS) or -1
    code = ctypes.get_errno() if failed else 0
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        aside = new.with_suffix(".old.tmp")
        os.rename(old, aside)
        os.rename(new, old)
        shutil.rmtree(aside, ignore_errors=True)
    elif code:
        raise OSError(code, os.strerror(code), str(old))


@contextmanager
def _held(directory: Path) -> Iterator[Callable[[], bool]]:
    """True while this very directory is in place; held open, so that no later one can take its inode."""
    if not directory.is_dir():
        raise UsageError(f"there is no directory {directory}; check the path")
    with failures_named(directory, "read"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def unchanged() -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), directory.stat())
        except OSError:
            return False

    try:
        yield unchanged
    finally:
        os.close(descriptor)
