"""Stages of a long command on standard error, as the library logs them.

Below the command line a stage is one line of `logging`, written when it begins. With `--verbose` all of them
are printed; without, only those after which nothing else was logged for two seconds, so quick commands stay
silent and slow ones say what they wait for.
"""

from __future__ import annotations

import logging
import sys
import threading

PATIENCE_SECONDS = 2.0


class StageHandler(logging.Handler):
    """Prints a stage of Shoal once it has lasted for some seconds."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        """Wait `patience` seconds for each stage."""
        super().__init__(logging.INFO)
        self._patience = patience
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Begin to wait for a stage; whatever is logged ends the one before."""
        self.stop()
        if record.levelno == logging.INFO and record.name.split(".")[0] == "shoal":
            self._timer = threading.Timer(self._patience, _say, (record.getMessage(),))
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Forget the last stage: it has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Forget the last stage, since others log from now on."""
        self.stop()
        super().close()


def _say(stage: str) -> None:
    bars = sys.modules.get("tqdm")
    if bars is not None:
        bars.tqdm.write(f"{stage} ...", file=sys.stderr)  # above a bar, where there is one
    else:
        print(f"{stage} ...", file=sys.stderr, flush=True)


def show_stages(verbose: bool) -> None:
    """Print warnings, and stages as `verbose` asks for; nothing changes where the process logs already."""
    if logging.root.handlers:
        return
    lines = logging.StreamHandler(sys.stderr)
    lines.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.basicConfig(
        handlers=[lines] if verbose else [lines, StageHandler()], format="%(levelname)s: %(message)s"
    )
    logging.getLogger("shoal").setLevel(logging.INFO)


def end_stages() -> None:
    """Forget the last stage: the command has ended."""
    for handler in logging.root.handlers:
        if isinstance(handler, StageHandler):
            handler.stop()
