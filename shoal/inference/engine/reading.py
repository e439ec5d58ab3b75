"""Prompts on their way to a first token: read in pieces, beside others, as much as a step has time for.

Knows jobs and rows; nothing of who is next (`fairness`) or of answers that go on (`batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from shoal.adapters.decomposition import Decompositions
from shoal.inference.decoding import Rows
from shoal.inference.engine.sequences import Job
from shoal.models.backbone import Backbone

READ_SECONDS = 0.25  # that a step spends on prompts; running answers wait as long for their next token
LEAST = 32  # tokens that a step reads however slow the machine is


class Reading(Protocol):
    """Work on the prompts of some jobs, a forward pass at a time.

    Attributes:
        jobs: whose prompts they are.
        room: places for keys and values that it takes.
    """

    jobs: Sequence[Job]
    room: int

    def advance(self, tokens: int) -> int:
        """Do one forward pass, over about so many tokens of prompts; the tokens that it took."""


class PromptGroup:
    """Prompts that are read together; see `Reading`.

    Attributes:
        rows: with what is read.
        logits: of every job's first token, (jobs, vocabulary); None until all is read.
    """

    def __init__(self, backbone: Backbone, jobs: Sequence[Job], basis: Decompositions) -> None:
        """Nothing is read yet."""
        prompts = [job.request.prompt for job in jobs]
        self.jobs = jobs
        self.room = len(jobs) * max(map(len, prompts))
        self.rows = Rows(backbone, prompts, [job.adapter for job in jobs], basis=basis)
        self.logits: Float[Tensor, "jobs vocabulary"] | None = None

    def advance(self, tokens: int) -> int:
        """Read the next columns; the tokens that they have."""
        before = self.rows.unread
        logits = self.rows.read(min(before, max(1, tokens // len(self.jobs))))
        if not self.rows.unread:
            self.logits = logits
        return (before - self.rows.unread) * len(self.jobs)


class Pace:
    """Tokens of prompts that a step has time for, by how long the last ones took."""

    def __init__(self, most: int) -> None:
        """Begin with a small part of the most that a step may read."""
        self._most = most
        self.tokens = min(most, 4 * LEAST)

    def left(self, tokens: int, seconds: float) -> int:
        """Tokens that may be read in a step that has read so many in so long; 0 where the rest is too few."""
        rest = self.tokens - tokens
        return rest if not tokens or (rest >= LEAST and seconds < READ_SECONDS) else 0

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from one pass; one of few tokens says nothing of more of them."""
        if tokens < min(LEAST, self.tokens):
            return
        possible = self._most if seconds <= 0 else int(tokens * READ_SECONDS / seconds)
        self.tokens = max(min(LEAST, self._most), min(self._most, possible, 2 * self.tokens))
