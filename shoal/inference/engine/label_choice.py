"""Answers from a request's label set: prompt and labels are scored pass by pass, in the room of the request.

Knows jobs; how labels are scored and calibrated is `shoal.inference.labels`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from functools import partial

from cachetools import LRUCache

from shoal.adapters.decomposition import Decompositions
from shoal.errors import ShoalError
from shoal.inference.engine.records import NOT_FINITE, Delta
from shoal.inference.engine.sequences import Job
from shoal.inference.labels import CONTENT_FREE, answer_with_labels, label_priors, score_labels
from shoal.models.backbone import Backbone

KEPT = 256  # priors of label sets that state none; a float per label


class LabelChooser:
    """Chooses labels for one engine, on its thread, for one request at a time.

    Attributes:
        job: that is being answered; None where there is none.
    """

    def __init__(self, backbone: Backbone, basis: Decompositions, prefill_tokens: int) -> None:
        """No priors yet; of a prompt at most `prefill_tokens` are read in one pass."""
        self.job: Job | None = None
        self._backbone = backbone
        self._basis = basis
        self._prefill_tokens = prefill_tokens
        self._passes: Generator[None, None, Delta] | None = None
        self._priors: LRUCache[tuple[str | None, tuple[str, ...]], Sequence[float]] = LRUCache(KEPT)

    def begin(self, job: Job) -> None:
        """Take on a job that has labels and a place."""
        self.job, self._passes = job, self._scored(job)

    def advance(self) -> Delta | None:
        """Do one forward pass of the job; the whole answer, as its first one, after the last pass.

        Raises:
            ShoalError: the logits are not finite.
        """
        assert self._passes is not None
        try:
            next(self._passes)
        except StopIteration as end:
            answer: Delta = end.value
            return answer
        return None

    def end(self) -> None:
        """Let go of the job, finished or not."""
        self.job = self._passes = None

    def _scored(self, job: Job) -> Generator[None, None, Delta]:
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
            prefill_tokens=self._prefill_tokens,
        )
        key = (job.adapter.fingerprint() if job.adapter else None, labels)
        priors = priors or self._priors.get(key)
        if priors is None:  # measured once for each adapter
            texts = self._backbone.encode_prompts(CONTENT_FREE)
            priors = self._priors[key] = label_priors((yield from score(texts)))
        scores = yield from score([job.request.prompt])
        (found,) = answer_with_labels(labels, scores, priors)
        if not all(map(math.isfinite, found.probabilities.values())):
            raise ShoalError(NOT_FINITE)
        return Delta(
            index=0,
            text=found.label,
            finish_reason="stop",
            completion_tokens=len(self._backbone.encode_completion(found.label)),
            probabilities=found.probabilities,
        )
