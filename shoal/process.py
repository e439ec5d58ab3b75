"""This process: the memory that it holds and held at most, in bytes, and its end with its parent process."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_THE_PEAK = "5"  # of proc(5): the peak becomes what is resident now
LET_GO = 75  # exit code of one whose holder is gone


def resident() -> int:
    """Bytes of main memory that the process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes that the process held, since it began or since `forget_peak`.

    Where the kernel tells a process its own peak, that is taken: getrusage would count its parent's before
    exec.
    """
    if _STATUS.is_file():
        lines = _STATUS.read_text("ascii", "replace").splitlines()
        stated = next((line for line in lines if line.startswith("VmHWM")), None)
        if stated is not None:
            return int(stated.split()[1]) * 1024
    import resource

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(held if sys.platform == "darwin" else held * 1024)


def forget_peak() -> bool:
    """Begin to count the peak anew; False where the kernel cannot, and it stays that since the start."""
    try:
        _CLEAR.write_text(_FORGET_THE_PEAK)
    except OSError:
        return False
    return True


def give_back() -> bool:
    """Return to the system the pages that are free within the heap; False where the C library cannot.

    A heap in which tensors of many sizes come and go, from many threads, keeps pages between those in use,
    and grows while what is in use does not.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc, for all its arenas
    return trim is not None and trim(0) in (0, 1)


def end_with_holder() -> None:
    """End this process once its standard input is closed, which its holder must have opened as a pipe.

    The kernel closes it also where the holder was killed, on every system that has pipes, and nothing else
    does. What is written meanwhile must be whole or not there.
    """
    threading.Thread(target=_watch, name="end-with-holder", daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(LET_GO)
