"""The log of a service: one JSON object a line on standard error, for those who collect it.

Every line has `time` (UTC), `level`, `logger` and `message`, one of a request also what the guard says of it,
and one of a failure `traceback`. Knows nothing of requests.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

FACTS = "facts"  # of `extra`: a mapping whose entries become keys of the line
_WITH_OWN_FORMATS = ("transformers", "huggingface_hub")


class JsonLines(logging.Formatter):
    """One record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; line breaks within it are escaped."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_json_lines() -> None:
    """Log like this from now on, in this process: warnings of all, and what our modules and uvicorn tell."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines())
    logging.basicConfig(handlers=[lines], force=True)
    logging.captureWarnings(True)
    for name in _WITH_OWN_FORMATS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in ("shoal", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
    quoting = logging.getLogger("shoal.text_to_lora.generator")  # descriptions, in its warnings
    quoting.setLevel(logging.ERROR)
