"""An adapter as one ZIP file: its PEFT directory, packed and unpacked. Knows files, not what they hold."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from shoal.adapters.files import ADAPTER_FILES
from shoal.errors import UsageError, reason, shorten
from shoal.file_errors import failures_named

MAX_ENTRIES = 64
_BLOCK = 2**20
# What zipfile raises at a damaged file, at an unknown compression (NotImplementedError), at a password
# (RuntimeError) and at numbers that cannot be (ValueError).
NOT_A_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


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

    No name in the ZIP becomes a path: entries count by their last part, which must be one of `ADAPTER_FILES`.

    Args:
        file: the ZIP.
        directory: where to.
        max_bytes: largest sum of the unpacked files.

    Raises:
        UsageError: no whole ZIP, too many entries, a file twice, or more bytes than allowed.
        ShoalError: the disk is full, or another failure of the file system.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise UsageError(
                    f"the ZIP has {len(entries)} entries, the limit is {MAX_ENTRIES}; pack the adapter alone"
                )
            wanted = [e for e in entries if PurePosixPath(e.filename).name in ADAPTER_FILES]
            size = sum(e.file_size for e in wanted)
            if size > max_bytes:
                raise UsageError(f"the ZIP unpacks to {size} bytes, the limit is {max_bytes}")
            for entry in wanted:
                _extract(archive, entry, directory / PurePosixPath(entry.filename).name)
    except UsageError:
        raise
    except NOT_A_ZIP as error:
        raise UsageError(f"the upload is no whole ZIP file ({reason(error)}); pack it again") from None


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
