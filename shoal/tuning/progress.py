"""How far a search is, as lines of JSON in its folder: whoever waits for it reads the last one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

LOG = "log.jsonl"
WHOLE = 100  # hundredths of a budget


def note_progress(
    folder: Path, rows: Sequence[FrozenTrial], trials: int | None, budget: float, *, ended: bool = False
) -> None:
    """Add a line with `step`, trials that ended or hundredths of the budget, and `loss`, the best one.

    Args:
        folder: of the study.
        rows: its trials.
        trials: of the whole search; None where only the budget ends it.
        budget: in tokens; infinite before it is known.
        ended: all is done, whatever the counts say.
    """
    done = [t for t in rows if t.state.is_finished()]
    losses = [t.values[0] for t in done if t.state == TrialState.COMPLETE]
    if not losses:
        return
    spent = sum(t.user_attrs.get("tokens", 0) for t in done)
    of = trials or WHOLE
    step = len(done) if trials else math.floor(WHOLE * spent / budget)
    line = json.dumps({"step": of if ended else min(step, of), "loss": min(losses)})
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(line + "\n")
