"""Answers from a request's label set: its prompt and labels are scored in the room that the request has.

Knows jobs; how labels are scored and calibrated is `shoal.inference.labels`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cachetools import LRUCache

from shoal.adapters.card import LabelSet
from shoal.adapters.decomposition import Decompositions
from shoal.errors import ShoalError
from shoal.inference.engine.records import NOT_FINITE, Delta
from shoal.inference.engine.sequences import Job
from shoal.inference.labels import choose_labels, content_free_priors
from shoal.models.backbone import Backbone

KEPT = 256  # priors of label sets that state none; a float per label


class LabelChooser:
    """Chooses labels for one engine, on its thread."""

    def __init__(self, backbone: Backbone, basis: Decompositions) -> None:
        """No priors yet."""
        self._backbone = backbone
        self._basis = basis
        self._priors: LRUCache[tuple[str | None, tuple[str, ...]], Sequence[float]] = LRUCache(KEPT)

    def choose(self, job: Job) -> Delta:
        """The whole answer to a job that has labels and a place, as its first answer.

        Raises:
            ShoalError: the logits are not finite.
        """
        assert job.request.labels is not None
        label_set = self._calibrated(job, job.request.labels)
        places = job.rows * job.width
        found = choose_labels(
            self._backbone, [job.request.prompt], label_set, job.adapter, basis=self._basis, places=places
        )[0]
        if not all(map(math.isfinite, found.probabilities.values())):
            raise ShoalError(NOT_FINITE)
        return Delta(
            index=0,
            text=found.label,
            finish_reason="stop",
            completion_tokens=len(self._backbone.encode_completion(found.label)),
            probabilities=found.probabilities,
        )

    def _calibrated(self, job: Job, label_set: LabelSet) -> LabelSet:
        """The label set with priors: its own, or content-free ones, measured once for each adapter."""
        if label_set.priors is not None:
            return label_set
        key = (job.adapter.fingerprint() if job.adapter else None, label_set.labels)
        priors = self._priors.get(key)
        if priors is None:
            places = job.rows * job.width
            priors = content_free_priors(
                self._backbone, label_set.labels, job.adapter, basis=self._basis, places=places
            )
            self._priors[key] = priors
        return label_set.model_copy(update={"priors": tuple(priors)})
