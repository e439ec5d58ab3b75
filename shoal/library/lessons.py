"""A skill before it is learnt: its sentence, examples and labels, checked; exemplars are held out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.adapters.card import LabelSet
from shoal.adapters.files import check_name
from shoal.config import MIN_EXAMPLES
from shoal.errors import UsageError, shorten
from shoal.tasks.records import Example, Solved, Task, check_no_leakage, divide, remove_tested
from shoal.tasks.texts import normalise
from shoal.text_to_lora.material import check_material
from shoal.transformer2.router import NONE

LEAST = 8  # different examples
EXEMPLARS = 64


@dataclass(frozen=True)
class Lesson:
    """A skill before it is learnt: its sentence and examples, checked.

    Attributes:
        name: of the skill.
        description: the sentence.
        train: examples to train on.
        exemplars: examples that are held out.
        label_set: its answers, given, described or shown by the examples; None where they are open.
    """

    name: str
    description: str
    train: tuple[Example, ...]
    exemplars: tuple[Example, ...]
    label_set: LabelSet | None

    @property
    def task(self) -> Task:
        """As trainings take it."""
        return Task(self.name, "library", self.description, (self.description,), self.train, self.exemplars)

    def without(self, tested: Sequence[Example]) -> Lesson:
        """Without training on some examples, the exemplars of the skill as it was.

        Raises:
            UsageError: too few are left.
        """
        train = remove_tested(self.train, tested)
        if len(train) < MIN_EXAMPLES:
            raise UsageError(
                f"{len(train)} examples are left beside the exemplars of the skill as it was, the least is "
                f"{MIN_EXAMPLES}; give more that differ from them"
            )
        return replace(self, train=train)


def prepare(
    name: str,
    description: str,
    examples: Sequence[Solved],
    keep: int = EXEMPLARS,
    labels: Sequence[str] | None = None,
) -> Lesson:
    """Hold exemplars out of some examples: a quarter of them, at least 2 and at most `keep`.

    Args:
        name: of the skill.
        description: the sentence.
        examples: solved ones.
        keep: exemplars at most; 0 keeps none.
        labels: as in `TextToLoRA.generate`.

    Raises:
        UsageError: the name, the description or the labels cannot be used, fewer than `LEAST` inputs differ,
            or `keep` is out of range.
    """
    if check_name(name) == NONE:
        raise UsageError(f"{name!r} is the name of no skill; choose another")
    if not 0 <= keep <= EXEMPLARS:
        raise UsageError(f"keep {keep} exemplars: 0 to {EXEMPLARS} are kept; choose a number in that range")
    try:
        material = check_material(description, examples, labels=labels, min_examples=LEAST)
    except UsageError as error:
        raise UsageError(str(error).replace("refine an adapter on", "learn a skill from")) from None
    if not material.examples:
        raise UsageError(f"0 examples are too few to learn a skill from, the least is {LEAST}; give more")
    train, exemplars = divide(material.examples, test_size=min(keep, max(2, len(material.examples) // 4)))
    return Lesson(name, material.description, train, exemplars, material.label_set)


def check_against(
    lesson: Lesson, others: Mapping[str, Sequence[Example]], allowed: Collection[str] = ()
) -> None:
    """See that a lesson's examples are not what older skills are tested on, with the same answer or another.

    Args:
        lesson: to be learnt.
        others: older skill -> its exemplars.
        allowed: skills whose inputs may be given with other answers.

    Raises:
        LeakageError: an older skill's exemplar is among the examples.
        UsageError: its input is, with another answer.
    """
    tests = [Task(name, "library", name, (name,), (), tuple(own)) for name, own in others.items() if own]
    check_no_leakage([Task(lesson.name, "library", lesson.name, (lesson.name,), lesson.train, ())], tests)
    given = {normalise(e.input): e for e in (*lesson.train, *lesson.exemplars)}
    for name, exemplars in others.items():
        both = [(e, given[key]) for e in exemplars if (key := normalise(e.input)) in given]
        against = [(old, new) for old, new in both if not _agree(old, new)]
        if against and name not in allowed:
            old, new = against[0]
            raise UsageError(
                f"{len(against)} of the examples contradict the skill {name}: for {shorten(old.input)} it "
                f"has {shorten(old.outputs[0])}, and here stands {shorten(new.outputs[0])}; correct them, "
                f"or give --allow-loss {name}"
            )


def _agree(one: Example, other: Example) -> bool:
    answers = {normalise(output) for output in one.outputs}
    return any(normalise(output) in answers for output in other.outputs)
