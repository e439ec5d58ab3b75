"""Chats with an adapter that has a label set: one of its labels by calibrated likelihood, as a whole stream.

Knows labels and streams, nothing of HTTP. How labels are scored is `shoal.inference.labels`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cachetools import LRUCache

from shoal.adapters.base import Adapter
from shoal.adapters.card import LabelSet
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.records import Delta, Event, FinishedRecord, Observer
from shoal.inference.engine.runner import Runner
from shoal.inference.engine.stream import Stream
from shoal.inference.labels import LabelAnswer, answer_with_labels, content_free_priors, label_log_likelihoods
from shoal.models.backbone import Backbone

KEPT = 256  # priors of label sets that state none; a float per label


class LabelStream(NamedTuple):
    """A stream that has ended, with the label as each of its answers, and the probability of every label."""

    stream: Stream
    probabilities: Mapping[str, float]


class LabelAnswers:
    """Chooses labels between two steps of the engine, in the room that its requests leave; for any thread."""

    def __init__(self, backbone: Backbone, runner: Runner, adapters: AdapterCache, observe: Observer) -> None:
        """Nothing is answered yet.

        Args:
            backbone: the model of the engine.
            runner: of the engine.
            adapters: of the engine, by their content.
            observe: called with the record of every chat that is answered or fails.
        """
        self._backbone = backbone
        self._runner = runner
        self._adapters = adapters
        self._observe = observe
        self._priors: LRUCache[tuple[str, tuple[str, ...]], Sequence[float]] = LRUCache(KEPT)

    def answer(self, prompt: Sequence[int], sha256: str, label_set: LabelSet, n: int) -> LabelStream:
        """The label of a prompt, n times.

        Args:
            prompt: token ids.
            sha256: content of the adapter.
            label_set: of the adapter.
            n: equal answers.

        Raises:
            UsageError: a label does not fit behind the prompt.
            UnavailableError: the engine was closed, or the adapter cannot be read.
        """
        arrived, placed = time.monotonic(), None

        def scored() -> LabelAnswer:
            nonlocal placed
            placed = time.monotonic()
            return self._scored(prompt, sha256, adapter, label_set)

        tokens = 0
        try:
            adapter = self._adapters.get(sha256)
            found = self._runner.run(scored)
            tokens = len(self._backbone.encode_completion(found.label))
        finally:
            now = time.monotonic()
            seconds = now - arrived
            self._observe(
                FinishedRecord(
                    outcome="stop" if tokens else "failed",
                    queue_seconds=(placed or now) - arrived,
                    first_token_seconds=seconds if tokens else None,
                    total_seconds=seconds,
                    prompt_tokens=len(prompt),
                    completion_tokens=n * tokens,
                )
            )
        stream = Stream(lambda: None, n)
        for index in range(n):
            delta = Delta(index, found.label, finish_reason="stop", completion_tokens=tokens)
            stream.put(Event(0, delta, None, index == n - 1))
        return LabelStream(stream, found.probabilities)

    def _scored(
        self, prompt: Sequence[int], sha256: str, adapter: Adapter, label_set: LabelSet
    ) -> LabelAnswer:
        """On the engine's thread: label and probabilities."""
        labels = label_set.labels
        places = self._runner.limits.kv_tokens - self._runner.state().kv_tokens
        scores = label_log_likelihoods(self._backbone, [prompt], labels, adapter, places=places)
        priors = label_set.priors or self._priors.get((sha256, labels))
        if priors is None:
            priors = content_free_priors(self._backbone, labels, adapter, places=places)
            self._priors[sha256, labels] = priors
        return answer_with_labels(labels, scores, priors)[0]
