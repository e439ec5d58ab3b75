"""Sketches of examples: a few of their hashes, by which it is seen later that others are among them.

The least hashes of a set stay, so that a set which is given again is always recognised, and a part of it with
the more certainty the larger it is. Knows examples; nothing of adapters or files.

Source: Broder, "On the resemblance and containment of documents", SEQUENCES 1997, section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence

from shoal.errors import shorten
from shoal.tasks.records import Example, LeakageError, Task
from shoal.tasks.texts import normalise

KEPT = 64  # hashes of a sketch
DIGITS = 12


def sketch_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """The least hashes of pairs of input and output, in hex."""
    return tuple(sorted({own for example in examples for own in _hashes(example)})[:KEPT])


def check_not_learnt(examples: Iterable[Example], trained_on: Mapping[str, Collection[str]]) -> None:
    """See that no adapter was trained on any of the examples, as far as sketches show.

    Args:
        examples: that will judge.
        trained_on: name of every adapter -> sketch of what it was trained on; empty where that is not known.

    Raises:
        LeakageError: one was.
    """
    seen = {own: name for name, sketch in trained_on.items() for own in sketch}
    for example in examples:
        if name := next((seen[own] for own in _hashes(example) if own in seen), None):
            raise LeakageError(
                f"{name} was trained on {shorten(example.input)}, which is to judge it; 0 such are allowed, "
                "give examples that it has not seen"
            )


def examples_of(tasks: Sequence[Task], *, test_only: bool = False) -> list[Example]:
    """All examples of some tasks."""
    return [e for task in tasks for e in (*(() if test_only else task.train), *task.test)]


def _hashes(example: Example) -> list[str]:
    pairs = [f"{normalise(example.input)}\0{normalise(output)}" for output in example.outputs]
    return [hashlib.sha256(pair.encode()).hexdigest()[:DIGITS] for pair in pairs]
