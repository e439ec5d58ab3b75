"""Chats with an adapter that has a label set: one of its labels by calibrated likelihood, as a whole stream.

Knows labels and streams, nothing of HTTP. How labels are scored is `shoal.inference.labels`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cachetools import LRUCache

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.inference.engine.records import Delta, Event
from shoal.inference.engine.runner import Runner
from shoal.inference.engine.stream import Stream
from shoal.inference.labels import (
    LabelAnswer,
    answer_with_labels,
    content_free_priors,
    label_log_likelihoods,
)
from shoal.models.backbone import Backbone
from shoal.registry.registry import AdapterRecord, Registry

KEPT = 32  # adapters whose factors and priors stay in memory


class LabelAnswers:
    """Chooses labels between two steps of the engine; may be used by several threads."""

    def __init__(self, backbone: Backbone, runner: Runner, registry: Registry) -> None:
        self._backbone = backbone
        self._runner = runner
        self._registry = registry
        self._lock = threading.Lock()
        self._adapters: LRUCache[str, LoRA] = LRUCache(KEPT)
        self._priors: LRUCache[tuple[str, tuple[str, ...]], Sequence[float]] = LRUCache(KEPT)

    def choose(self, prompt: Sequence[int], record: AdapterRecord, label_set: LabelSet) -> LabelAnswer:
        """The label of a prompt, with every label's probability.

        Raises:
            UsageError: a label does not fit behind the prompt.
            UnavailableError: the engine was closed, or the adapter cannot be read.
        """
        with self._lock:
            lora = self._adapters.get(record.sha256)
        if lora is None:
            lora = self._registry.load(record).lora
            with self._lock:
                self._adapters[record.sha256] = lora
        return self._runner.run(lambda: self._scored(prompt, record.sha256, lora, label_set))

    def _scored(self, prompt: Sequence[int], sha256: str, lora: LoRA, label_set: LabelSet) -> LabelAnswer:
        labels = label_set.labels
        scores = label_log_likelihoods(self._backbone, [prompt], labels, lora)
        priors = label_set.priors or self._priors.get((sha256, labels))
        if priors is None:  # on the engine's thread alone
            priors = self._priors[sha256, labels] = content_free_priors(self._backbone, labels, lora)
        return answer_with_labels(labels, scores, priors)[0]


def label_stream(backbone: Backbone, label: str, n: int) -> Stream:
    """A stream that has ended, with n times the label as its answers."""
    tokens = len(backbone.encode_completion(label))
    stream = Stream(lambda: None, n)
    for index in range(n):
        delta = Delta(index, label, finish_reason="stop", completion_tokens=tokens)
        stream.put(Event(0, delta, None, index == n - 1))
    return stream
