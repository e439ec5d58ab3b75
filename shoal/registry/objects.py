"""Adapter directories named by their content: written whole, verified when read, removed when unused.

A directory's name is the SHA-256, in hex, of the lines that `sha256sum` prints for its files by name. Knows
nothing of names, owners or databases.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal.adapters.files import StoredAdapter, load_adapter
from shoal.errors import ShoalError, UnavailableError
from shoal.file_errors import failures_named
from shoal.file_formats import sha256_of
from shoal.files import move_directory, remove_directory

SWEEP_SECONDS = 2.0  # how long removing files waits for those who write some


@dataclass(frozen=True)
class Content:
    """Written content: the name of its directory, and its size in bytes."""

    sha256: str
    bytes: int


class AdapterFiles:
    """The adapter directories of one registry, for several threads and processes."""

    def __init__(self, root: Path) -> None:
        """Make what is missing.

        Raises:
            ShoalError: the directory cannot be written.
        """
        self._root = root
        self._objects = root / "objects"
        self._incoming = root / "incoming"
        for folder in (self._objects, self._incoming):
            with failures_named(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the files of a content are or would be; not to be changed."""
        return self._objects / sha256[:2] / sha256

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held from before `write` until what it wrote is named somewhere: nothing is removed meanwhile."""
        with self._lock(fcntl.LOCK_SH):
            yield

    def write(self, save: Callable[[Path], object]) -> Content:
        """Keep what `save` writes as a directory at the path it is given; the same content is kept once.

        Raises:
            UnavailableError: the disk is full.
            ShoalError: another failure of the file system; `save` may raise others.
        """
        with self.draft() as draft:
            save(draft)
            content = Content(_digest(draft), sum(p.stat().st_size for p in draft.iterdir()))
            self._place(draft, content.sha256)
        return content

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A path where nothing is, within `writing`; whatever is there afterwards is removed."""
        draft = self._incoming / secrets.token_hex(8)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def read(self, sha256: str) -> StoredAdapter:
        """Read an adapter, after comparing its files with what was written.

        Raises:
            ShoalError: they are damaged or missing.
        """
        directory = self.path(sha256)
        if _digest(directory) != sha256:
            raise ShoalError(
                f"the files of an adapter in {directory} are not those that were written; restore them, or "
                "delete the adapter and add it again"
            )
        return load_adapter(directory)

    def remove(self, contents: Collection[str], used: Callable[[str], bool]) -> int:
        """Remove contents that are not `used`, which is asked while nobody writes; how many there were.

        Raises:
            UnavailableError: others write all the time.
            ShoalError: files cannot be removed; `used` may raise others.
        """
        removed = 0
        with self._lock(fcntl.LOCK_EX):
            for sha256 in contents:
                directory = self.path(sha256)
                if not used(sha256) and directory.is_dir():
                    try:
                        remove_directory(directory)
                    except UnavailableError:  # no room to move it aside first
                        shutil.rmtree(directory, ignore_errors=True)
                    removed += 1
        return removed

    def sweep(self, used: Callable[[str], bool]) -> int:
        """Remove what killed writers left, and every content that is not `used`; errors as `remove`."""
        with self._lock(fcntl.LOCK_EX):
            for leftover in (*self._incoming.iterdir(), *self._objects.glob("*/.*")):  # drafts, half removed
                shutil.rmtree(leftover, ignore_errors=True)
        return self.remove({path.name for path in self._objects.glob("*/*")}, used)

    def _place(self, draft: Path, sha256: str) -> None:
        """Give written files the name of their content; the same content may be there."""
        target = self.path(sha256)
        if target.is_dir():
            if _digest(target) == sha256:
                return
            remove_directory(target)  # damaged: the draft is what it should be
        try:
            move_directory(draft, target)
        except ShoalError:
            if not target.is_dir():  # else another writer of the same content was there first
                raise

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Writers share the lock, from their first file to the commit; who removes files has it alone."""
        path = self._root / ".lock"
        with failures_named(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            until = time.monotonic() + SWEEP_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, kind | (fcntl.LOCK_NB if kind == fcntl.LOCK_EX else 0))
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise UnavailableError(
                            f"{self._root} is being written all the time; try again"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)


def _digest(directory: Path) -> str:
    """SHA-256, in hex, of the lines that `sha256sum` prints for the files of a directory, by name."""
    with failures_named(directory, "read"):
        lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
