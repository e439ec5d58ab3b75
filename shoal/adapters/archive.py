"""An adapter as one ZIP file: its PEFT directory, packed and unpacked. Knows files, not what they hold."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from shoal.adapters.files import ADAPTER_FILES, CONFIG_FILE
from shoal.errors import UsageError, reason, shorten
from shoal.file_errors import failures_named

MAX_ENTRIES = 64
MAX_DIRECTORY = 2**17  # bytes of the list of entries, which is read in one piece
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # any other could ask for gigabytes to unpack with
_BLOCK = 2**20
# Errors of the standard library's zipfile: of a damaged file, of a compression or encryption that it does not
# know, and of numbers that cannot be.
NOT_A_ZIP = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError),
    *(struct.error, UnicodeError),
)


def pack(directory: Path, file: IO[bytes]) -> None:
    """Write a directory's files as a ZIP; the same files give the same bytes.

    Raises:
        ShoalError: the disk is full, or another failure of the file system.
    """
    with failures_named(directory, "pack"), zipfile.ZipFile(file, "w") as archive:
        for path in sorted(directory.iterdir()):
            entry = zipfile.ZipInfo(path.name)  # of 1980: no date of ours
            entry.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while block := source.read(_BLOCK):
                    target.write(block)


def unpack(file: IO[bytes], directory: Path, *, max_bytes: int) -> None:
    """Write the adapter's files of a ZIP into an empty directory; whatever else it holds is left out.

    No name in the ZIP becomes a path: entries count by their last part, which must be one of `ADAPTER_FILES`,
    and of several adapters the one nearest the top is meant.

    Args:
        file: the ZIP.
        directory: where to.
        max_bytes: largest sum of the unpacked files.

    Raises:
        UsageError: no whole ZIP, too many entries, a file twice, another compression than deflate, or more
            bytes than allowed.
        ShoalError: the disk is full, or another failure of the file system.
    """
    try:
        with zipfile.ZipFile(cast(IO[bytes], bounded := _BoundedReads(file))) as archive:
            bounded.limit = None
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise UsageError(
                    f"the ZIP has {len(entries)} entries, the limit is {MAX_ENTRIES}; pack the adapter alone"
                )
            wanted = _at_the_top([e for e in entries if _path(e).name in ADAPTER_FILES])
            size = sum(e.file_size for e in wanted)
            if size > max_bytes:
                raise UsageError(f"the ZIP unpacks to {size} bytes, the limit is {max_bytes}")
            for entry in wanted:
                if entry.compress_type not in METHODS:
                    raise UsageError(
                        f"{_path(entry).name} is packed by method {entry.compress_type}; "
                        "pack it with deflate, as zip does, or without compression"
                    )
                _extract(archive, entry, directory / _path(entry).name)
    except UsageError:
        raise
    except NOT_A_ZIP as error:
        raise UsageError(f"the upload is no whole ZIP file ({reason(error)}); pack it again") from None


def _path(entry: zipfile.ZipInfo) -> PurePosixPath:
    """The path of an entry, also where Windows wrote it."""
    return PurePosixPath(entry.filename.replace("\\", "/"))


def _at_the_top(entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The entries of the folder nearest the top: `checkpoint-*` below it are steps on the way to it."""
    entries = [e for e in entries if "__MACOSX" not in _path(e).parts]
    configs = [_path(e).parent for e in entries if _path(e).name == CONFIG_FILE]
    if not configs:
        return entries
    top = min(configs, key=lambda folder: len(folder.parts))
    beside = [folder for folder in configs if len(folder.parts) == len(top.parts)]
    if len(set(beside)) > 1:
        named = " and ".join(shorten(str(folder), 40) for folder in sorted(set(beside))[:2])
        raise UsageError(f"the ZIP holds several adapters, {named}; pack one of them")
    return [e for e in entries if _path(e).parent == top]


class _BoundedReads:
    """A file whose reads are refused above a limit, as long as there is one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.limit: int | None = MAX_DIRECTORY
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if self.limit is None:
            return self._file.read(size)
        read = self._file.read(min(size, self.limit + 1) if size >= 0 else self.limit + 1)
        if len(read) > self.limit:
            raise UsageError(f"the ZIP's list of files is above {self.limit} bytes; pack the adapter alone")
        return read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    if target.exists():
        raise UsageError(f"the ZIP holds {shorten(target.name)} twice; pack one adapter")
    left = entry.file_size
    with failures_named(target), archive.open(entry) as source, target.open("wb") as sink:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise UsageError(f"{target.name} is larger than the ZIP states; pack it again")
            sink.write(block)
