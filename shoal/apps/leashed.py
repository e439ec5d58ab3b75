"""The command line for a process that another one holds: it ends as soon as that one does, however it ends.

    python -m shoal.apps.leashed train lora --config settings.yaml

The holder keeps the other end of standard input. The kernel closes it also where the holder was killed, on
every system that has pipes, and nothing else does. What the command writes is whole or not there, so it may
end at any moment.
"""

from __future__ import annotations

import os
import sys
import threading

from shoal.apps.cli import main

LET_GO = 75  # exit code of one whose holder is gone


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(LET_GO)


if __name__ == "__main__":
    threading.Thread(target=_watch, name="leash", daemon=True).start()
    main()
