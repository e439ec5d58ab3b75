"""Evidence for labels from what they mean: how near a text is to each label, by the sentence encoder.

A small language model often knows neither the name of a label nor which texts it is for; a sentence encoder,
which is loaded for descriptions anyway, puts "Play some jazz." near "music" and far from "alarm". A label's
evidence for a text is the cosine of their sentence vectors, less the label's mean cosine to texts whose
labels are not known, times a weight that turns it into nats. Labels that mean nothing by themselves ("A",
"B") are all about as near, so that little is added to the language model's own scores.

Source: Yin et al., "Benchmarking Zero-shot Text Classification", arXiv 1909.00161 (labels as texts), with the
vectors of Sentence-BERT (arXiv 1908.10084) and the calibration of `shoal.inference.labels`. Knows texts and
labels; nothing of adapters.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence

from cachetools import LRUCache
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.card import LabelSet
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.sample_inputs import input_kinds

WEIGHT = 20.0  # nats per unit of cosine, chosen on training tasks: benchmarks/label_similarity.py
KEPT = 64  # label sets whose vectors are kept
_SEPARATORS = re.compile(r"[\s_/-]+")


class LabelSimilarity:
    """Gives the evidence for labels; may be used by several threads."""

    def __init__(self, encoder: Callable[[], TaskEncoder]) -> None:
        """`encoder` loads the sentence encoder when it is first needed."""
        self._encoder = encoder
        self._lock = threading.Lock()
        self._labels: LRUCache[tuple[str, ...], tuple[Tensor, Tensor]] = LRUCache(KEPT)
        self._samples: Tensor | None = None

    def cosines(self, texts: Sequence[str], labels: Sequence[str]) -> Float[Tensor, "texts labels"]:
        """Cosine of every text to every label, float32 on the CPU.

        Raises:
            ShoalError: the encoder cannot be loaded.
        """
        return self._encoder().unit_vectors(texts) @ self._known(labels)[0].T

    def evidence(self, label_set: LabelSet, texts: Sequence[str]) -> Float[Tensor, "texts labels"]:
        """What the meaning of labels adds to their log-likelihoods as answers to texts, in nats.

        Raises:
            ShoalError: the encoder cannot be loaded.
        """
        vectors, means = self._known(label_set.labels)
        means = means if label_set.cosines is None else means.new_tensor(label_set.cosines)
        return WEIGHT * (self._encoder().unit_vectors(texts) @ vectors.T - means)

    def _known(self, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(Vectors of labels, their mean cosines to texts of many kinds)."""
        key = tuple(labels)
        with self._lock:
            if key not in self._labels:
                encoder = self._encoder()
                if self._samples is None:  # one text of each kind
                    self._samples = encoder.unit_vectors([kind.inputs[0] for kind in input_kinds()])
                vectors = encoder.unit_vectors([in_words(label) for label in key])
                self._labels[key] = vectors, (self._samples @ vectors.T).mean(0)
            return self._labels[key]


def in_words(label: str) -> str:
    """A label as people would write it: `set_alarm` and `set-alarm` are "set alarm"."""
    return _SEPARATORS.sub(" ", label).strip() or label
