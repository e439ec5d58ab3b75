"""All families of procedural tasks, and the tasks that they give.

Whether an input is for training or for testing follows from a hash of the seed and the input alone, so no input
that one family is tested on is trained on by another. Knows nothing of tokens, prompts or models.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Iterable

from shoal.errors import ShoalError, UsageError, shorten
from shoal.tasks.procedural import (
    arithmetic,
    code,
    dates,
    extraction,
    formats,
    labels,
    lists,
    lookups,
    markup,
    number_lists,
    records,
    single_numbers,
    strings,
    topics,
    units,
    words,
)
from shoal.tasks.procedural.family import Family
from shoal.tasks.records import Example, Task
from shoal.tasks.texts import normalise

FAMILIES: tuple[Family, ...] = (
    *strings.FAMILIES,
    *lists.FAMILIES,
    *number_lists.FAMILIES,
    *words.FAMILIES,
    *dates.FAMILIES,
    *units.FAMILIES,
    *formats.FAMILIES,
    *markup.FAMILIES,
    *records.FAMILIES,
    *arithmetic.FAMILIES,
    *single_numbers.FAMILIES,
    *lookups.FAMILIES,
    *code.FAMILIES,
    *labels.FAMILIES,
    *topics.FAMILIES,
    *extraction.FAMILIES,
)

DRAWS_PER_EXAMPLE = 20


def procedural_tasks(
    names: Iterable[str] | None = None, *, size: int = 240, test_size: int = 40, seed: int = 0
) -> list[Task]:
    """The tasks of the families `names`, or of all of them in the order of `FAMILIES`.

    A task has `size` examples of different inputs, `test_size` of them (at most half) for testing; fewer if
    its family has not as many. It depends on its name, the sizes and the seed alone, not on the other names.

    Raises:
        UsageError: a name is unknown or given twice, `size` is below 2, or `test_size` is negative.
        ShoalError: a family cannot give 2 different inputs.
    """
    if size < 2:
        raise UsageError(f"size {size}: must be at least 2; give a number of examples for each task")
    if test_size < 0:
        raise UsageError(f"test_size {test_size}: must be at least 0; give a number of examples")
    chosen = _choose(names)
    return [make_task(family, size, min(test_size, size // 2), seed) for family in chosen]


def make_task(family: Family, size: int, test_size: int, seed: int) -> Task:
    """The task of one family, with at most `size` examples, `test_size` of them for testing.

    Raises:
        ShoalError: the family cannot give 2 different inputs.
    """
    rng = random.Random(f"{seed}\n{family.name}")
    train: list[Example] = []
    test: list[Example] = []
    seen: set[str] = set()
    for _ in range(DRAWS_PER_EXAMPLE * size + 200):
        question, answer = family.make(rng)
        key = normalise(question)
        if key in seen:
            continue
        seen.add(key)
        tested = _is_for_test(key, test_size / size, seed)
        side, limit = (test, test_size) if tested else (train, size - test_size)
        if len(side) < limit:
            side.append(Example(question, (answer,)))
        if len(train) + len(test) == size:
            break
    if len(seen) < 2:
        raise ShoalError(
            f"procedural task {family.name}: {len(seen)} different inputs; at least 2 are needed, vary what "
            "its family draws"
        )
    return Task(
        name=family.name,
        category=family.category,
        definition=family.definition,
        descriptions=family.descriptions,
        train=tuple(train),
        test=tuple(test),
        source=("procedural",),
        license=("MIT",),
    )


def _choose(names: Iterable[str] | None) -> list[Family]:
    families = {family.name: family for family in FAMILIES}
    if isinstance(names, str):
        raise UsageError(f"names {shorten(names)}: is one string; it must be a list of names, bracket it")
    chosen = list(families if names is None else names)
    for name in chosen:
        if name not in families:
            close = difflib.get_close_matches(str(name), families, n=1)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else "shoal.tasks.procedural.catalogue.FAMILIES lists them"
            )
            raise UsageError(f"procedural task {shorten(name)}: not one of {len(families)}; {hint}")
        if chosen.count(name) > 1:
            raise UsageError(f"procedural task {name}: named {chosen.count(name)} times; name it once")
    return [families[name] for name in chosen]


def _is_for_test(question: str, share: float, seed: int) -> bool:
    """True where a hash of `seed` and the normalised input falls into the first `share` of its range."""
    digest = hashlib.blake2b(f"{seed}\n{question}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
