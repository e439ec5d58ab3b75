"""Label sets and solved examples: what examples show to be closed, and where they contradict a named set.

Examples show a set where each of their few, short answers comes twice and more, so that one more answer is
hardly a new one (Good 1953: the share of unseen kinds is about that of kinds seen once). Numbers are never
closed: a count may be larger tomorrow. Knows texts only, no models.

Of 8 drawn examples of 322 training tasks, 91% of the sets that were taken had (nearly) all the other answers,
97.9% of them on the mean; of 16, 93% and 98.7% (`python benchmarks/label_sets.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from shoal.adapters.card import MAX_LABELS, LabelSet
from shoal.errors import UsageError, shorten
from shoal.tasks.records import Example
from shoal.text_to_lora.label_sets import MAX_WORDS, label_key

log = logging.getLogger(__name__)

FEWEST = 8  # examples that can show a set


def shown_label_set(examples: Sequence[Example]) -> LabelSet | None:
    """The set that the first answers of examples show, in their own spelling and order; None where unsure."""
    counts = Counter(label_key(example.outputs[0]) for example in examples)
    if len(examples) < FEWEST or not 2 <= len(counts) <= MAX_LABELS or min(counts.values()) < 2:
        return None
    if all(_is_number(key) for key in counts) or any(len(key.split()) > MAX_WORDS for key in counts):
        return None
    return LabelSet(labels=tuple(_spellings(examples)[key] for key in counts), source="examples")


def closed_in_examples(described: LabelSet | None, examples: Sequence[Example]) -> LabelSet | None:
    """The set that a description names, spelled as examples answer; else the one that they show.

    A described set that an answer contradicts is not taken, which a warning says.
    """
    if not examples:
        return described
    if described is None:
        return shown_label_set(examples)
    other = _outside(described, examples)
    if other is None:
        return _respelled(described, examples)
    log.warning(
        "the description names the labels %s, but an example answers %s: that set is not taken",
        shorten(", ".join(described.labels)),
        shorten(other.outputs[0]),
    )
    return shown_label_set(examples)


def given_in_examples(given: LabelSet | None, examples: Sequence[Example]) -> LabelSet | None:
    """The set that the user gave, after a look at the answers of examples; None for none.

    Raises:
        UsageError: an answer is none of the labels.
    """
    other = None if given is None else _outside(given, examples)
    if given is not None and other is not None:
        raise UsageError(
            f"an example answers {shorten(other.outputs[0])}, which is none of the {len(given.labels)} "
            "labels; give it as a label too, or correct the example"
        )
    return given


def _outside(label_set: LabelSet, examples: Sequence[Example]) -> Example | None:
    """The first example whose answer is none of the labels, without regard to case and whitespace."""
    keys = set(map(label_key, label_set.labels))
    return next((example for example in examples if label_key(example.outputs[0]) not in keys), None)


def _respelled(label_set: LabelSet, examples: Sequence[Example]) -> LabelSet:
    spellings = _spellings(examples)
    labels = tuple(spellings.get(label_key(label), label) for label in label_set.labels)
    return label_set.model_copy(update={"labels": labels})


def _spellings(examples: Sequence[Example]) -> dict[str, str]:
    """Label without regard to case and whitespace -> its first spelling."""
    found: dict[str, str] = {}
    for example in examples:
        found.setdefault(label_key(example.outputs[0]), " ".join(example.outputs[0].split()))
    return found


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
