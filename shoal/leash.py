"""A process that ends as soon as the one that started it does, however that one ends.

The holder keeps the other end of standard input. The kernel closes it also where the holder was killed, on
every system that has pipes, and nothing else does. What is written meanwhile must be whole or not there.
"""

from __future__ import annotations

import os
import sys
import threading

LET_GO = 75  # exit code of one whose holder is gone


def end_with_holder() -> None:
    """End this process once its standard input is closed, which its holder must have opened as a pipe."""
    threading.Thread(target=_watch, name="leash", daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(LET_GO)
