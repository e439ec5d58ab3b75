"""Answers from a request's label set: prompt and labels are scored pass by pass, in the room of the request.

Knows jobs; how labels are scored and calibrated is `shoal.inference.labels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import partial

import torch
from cachetools import LRUCache

from shoal.adapters.decomposition import Decompositions
from shoal.inference.engine.records import Delta
from shoal.inference.engine.sequences import Job
from shoal.inference.labels import CONTENT_FREE, answer_with_labels, label_priors, score_labels
from shoal.inference.sampling import not_finite
from shoal.models.backbone import Backbone

KEPT = 256  # priors of label sets that state none; a float per label


class LabelScoring:
    """A request whose labels are being scored; see `Reading`.

    Attributes:
        answer: the whole answer, as its first one; None until it is found.
    """

    def __init__(
        self, job: Job, scored: Callable[[Job, Callable[[], int]], Generator[int, None, Delta]]
    ) -> None:
        """No pass has been done; `scored` does one after the other, and asks before each for its tokens."""
        self.jobs: Sequence[Job] = (job,)
        self.room = job.rows * job.width
        self.answer: Delta | None = None
        self._tokens = 0
        self._passes = scored(job, lambda: self._tokens)

    def advance(self, tokens: int) -> int:
        """Do one forward pass, over about so many tokens of the prompt; the tokens that it took.

        Raises:
            ShoalError: the logits are not finite.
        """
        self._tokens = tokens
        try:
            return next(self._passes)
        except StopIteration as end:
            self.answer = end.value
            return 0


class LabelChooser:
    """Chooses labels for one engine, on its thread."""

    def __init__(self, backbone: Backbone, basis: Decompositions) -> None:
        """No priors yet."""
        self._backbone = backbone
        self._basis = basis
        self._priors: LRUCache[tuple[str | None, tuple[str, ...]], Sequence[float]] = LRUCache(KEPT)

    def begin(self, job: Job) -> LabelScoring:
        """Take on a job that has labels and room."""
        return LabelScoring(job, self._scored)

    def _scored(self, job: Job, tokens: Callable[[], int]) -> Generator[int, None, Delta]:
        assert job.request.labels is not None
        labels = job.request.labels.labels
        priors: Sequence[float] | None = job.request.labels.priors
        score = partial(
            score_labels,
            self._backbone,
            labels=labels,
            adapter=job.adapter,
            basis=self._basis,
            places=job.rows * job.width,
            prefill_tokens=tokens,
        )
        key = (job.adapter.fingerprint() if job.adapter else None, labels)
        priors = priors or self._priors.get(key)
        if priors is None:  # measured once for each adapter
            texts = self._backbone.encode_prompts(CONTENT_FREE)
            priors = self._priors[key] = label_priors((yield from score(texts)))
        scores = yield from score([job.request.prompt])
        if job.request.evidence is not None:
            scores = scores + torch.tensor(job.request.evidence)
        (found,) = answer_with_labels(labels, scores, priors)
        if not all(map(math.isfinite, found.probabilities.values())):
            raise not_finite(self._backbone.dtype)
        return Delta(
            index=0,
            text=found.label,
            finish_reason="stop",
            completion_tokens=len(self._backbone.encode_completion(found.label)),
            probabilities=found.probabilities,
        )
