"""Failures of the file system in words: one line with the path and the fix. Knows no formats."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from shoal.errors import ShoalError, UnavailableError, reason

_FIXES = {
    errno.ENOSPC: "the disk is full; free some space or choose a path on another disk",
    errno.EDQUOT: "your disk quota is used up; free some space or choose a path on another disk",
    errno.EFBIG: "the file exceeds this process's or file system's limit; raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only; choose a path that you may write to",
    errno.EACCES: "permission denied; choose a path that you may use, or change its permissions",
    errno.EPERM: "operation not permitted; choose a path that you may use",
    errno.ENOTDIR: "a part of this path is a file, not a directory; choose another path",
    errno.EISDIR: "it is a directory, not a file; choose another path",
    errno.EEXIST: "a part of this path is a file, not a directory; choose another path",
    errno.ENOENT: "there is no such file or directory; check the path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter path",
    errno.EBUSY: "it is a mount point; name a directory inside it",
    errno.EXDEV: "it is a mount point; name a directory inside it",
}


@contextmanager
def failures_named(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn failures of the file system, also those inside safetensors, into one line with the fix.

    Raises:
        UnavailableError: the disk or a quota is full.
        ShoalError: another failure of the file system, whatever `verb` was being done to `path`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        stated = re.search(r"os error (\d+)", str(error))
        code = int(stated[1]) if code is None and stated else code
        if code is not None:
            fix = _FIXES.get(code, os.strerror(code))
        elif isinstance(error, OSError):  # numpy's, of a write cut short: it has no number
            fix = f"{reason(error)}; if the disk is full, free some space"
        else:
            raise
        kind = UnavailableError if code in (errno.ENOSPC, errno.EDQUOT) else ShoalError
        raise kind(f"cannot {verb} {path}: {fix}") from error
