"""One skill from a sentence and solved examples: its adapter, the sums of its requests, and its exemplars.

The adapter starts from the sentence, never from another skill, and is trained on this skill's examples alone:
so a skill is the same whatever was learnt before, and can be undone. Knows a model; nothing of libraries on
disk.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA
from shoal.config import MANY_EXAMPLES, MIN_EXAMPLES, LoraTrainingConfig
from shoal.errors import ShoalError, UsageError, shorten
from shoal.library.discriminant import kinds_like
from shoal.library.gate import Answering
from shoal.library.moments import Moments, NoneMoments
from shoal.library.skills import Content, SkillFacts, check_kept, mean_points
from shoal.models.backbone import Backbone
from shoal.tasks.records import (
    Example,
    Solved,
    Task,
    check_examples,
    check_no_leakage,
    divide,
    remove_tested,
)
from shoal.tasks.texts import normalise
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.sample_inputs import input_kinds
from shoal.transformer2.router import NONE, mean_states

log = logging.getLogger(__name__)

LEAST = 8  # different examples
EXEMPLARS = 64
LAYER = 8  # whose input the router reads, where the model has as many
MOST_STATES = 512  # requests of a skill that are in its sums
TRAINING = LoraTrainingConfig(steps=40, batch_size=8)


@dataclass(frozen=True)
class Training:
    """The training of an adapter on the examples of a skill.

    Attributes:
        config: settings; None are those of few or of many examples.
        way: `refined` by a few steps that held-out examples or learned rates stop, or `trained`; None trains
        on
            `MANY_EXAMPLES` and more.
        show_progress: on standard error, while it trains.
    """

    config: LoraTrainingConfig | None = None
    way: Literal["refined", "trained"] | None = None
    show_progress: bool = False

    def way_for(self, examples: int) -> Literal["refined", "trained"]:
        """The way for so many examples."""
        return self.way or ("refined" if examples < MANY_EXAMPLES else "trained")


@dataclass(frozen=True)
class Lesson:
    """A skill before it is learnt: its sentence and examples, checked.

    Attributes:
        name: of the skill.
        description: the sentence.
        train: examples to train on.
        exemplars: examples that are held out.
    """

    name: str
    description: str
    train: tuple[Example, ...]
    exemplars: tuple[Example, ...]

    @property
    def task(self) -> Task:
        """As trainings take it."""
        return Task(self.name, "library", self.description, (self.description,), self.train, self.exemplars)


def prepare(
    name: str, description: str, examples: Sequence[Solved], keep: int, tested: Sequence[Example] = ()
) -> Lesson:
    """Hold exemplars out of some examples: a quarter of them, at least 2 and at most `keep`.

    Args:
        name: of the skill, checked.
        description: the sentence, checked.
        examples: solved ones.
        keep: exemplars at most; 0 keeps none.
        tested: exemplars of the skill as it was, which are not trained on.

    Raises:
        UsageError: fewer than `LEAST` inputs differ, or `keep` is out of range.
    """
    check_kept(keep)
    if name == NONE:
        raise UsageError(f"{name!r} is the name of no skill; choose another")
    try:
        checked = check_examples(examples, LEAST)
    except UsageError as error:
        raise UsageError(str(error).replace("refine an adapter on", "learn a skill from")) from None
    train, exemplars = divide(checked, test_size=min(keep, max(2, len(checked) // 4)))
    train = remove_tested(train, tested)
    if len(train) < MIN_EXAMPLES:
        raise UsageError(
            f"{len(train)} examples are left beside the exemplars of the skill as it was, the least is "
            f"{MIN_EXAMPLES}; give more that differ from them"
        )
    return Lesson(name, description, train, exemplars)


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


def learn_skill(
    backbone: Backbone,
    generator: TextToLoRA,
    lesson: Lesson,
    none: NoneMoments,
    layer: int,
    run: Path,
    answer: Answering,
    training: Training,
) -> Content:
    """The content of a skill, the same whatever else was learnt.

    Args:
        backbone: the frozen model.
        generator: makes the adapter of the sentence.
        lesson: what to learn from.
        none: sums of texts of no skill.
        layer: whose input the router reads.
        run: folder for checkpoints.
        answer: scores of answers.
        training: how to train.

    Raises:
        UsageError: too many examples are too long.
        ShoalError: the extra `train` is not installed.
    """
    start = generator.generate(lesson.description)
    way = training.way_for(len(lesson.train))
    if way == "refined":
        lora = _refined(backbone, generator, start.lora, lesson, training)
    else:
        lora = _trained(backbone, start.lora, lesson, run, training)
    moments = Moments.of(read_states(backbone, [e.input for e in lesson.train[:MOST_STATES]], layer))
    states = read_states(backbone, [e.input for e in lesson.exemplars], layer)
    base, own = answer(lesson.exemplars, None), answer(lesson.exemplars, lora)
    facts = SkillFacts(
        name=lesson.name,
        description=lesson.description,
        base_model=backbone.shape.base_model,
        layer=layer,
        examples=len(lesson.train),
        way=way,
        start="text-to-lora" if start.trained else "identity",
        base_scores=tuple(base),
        start_scores=tuple(answer(lesson.exemplars, start.lora) if start.trained else base),
        own_scores=tuple(own),
        kinds=kinds_like(moments, none, states, layer),
    )
    points = mean_points(own)
    card = AdapterCard(
        generator="skill library",
        trained=True,
        description=lesson.description,
        checkpoint_sha256=start.hypernetwork.get("sha256"),
        start_sha256=start.lora.fingerprint(),
        label_set=start.label_set,
        scores={} if points is None else {"ROUGE-L of exemplars": points},
        notes=(f"The skill {lesson.name}, {facts.way} on {facts.examples} examples.",),
    )
    return Content(facts, lora, card, moments, states, lesson.exemplars)


def read_states(backbone: Backbone, texts: Sequence[str], layer: int) -> torch.Tensor:
    """States of some requests, as the router reads them: (requests, width) in float32 on the CPU."""
    if not texts:
        return torch.empty(0, backbone.model.config.hidden_size)
    return mean_states(backbone.model, backbone.encode_prompts(texts), layer)


def none_moments(
    backbone: Backbone, layer: int, others: Mapping[str, Sequence[str]] | None = None
) -> NoneMoments:
    """The sums over texts that need no skill, by their kind; None are those that the package ships.

    Raises:
        UsageError: no kinds, or one without texts.
    """
    texts = {kind.kind: kind.inputs for kind in input_kinds()} if others is None else others
    if not texts or not all(texts.values()):
        raise UsageError(
            f"{len(texts)} kinds of texts of no skill; at least 1 is needed, each of 1 text; add some"
        )
    states = read_states(backbone, [text for own in texts.values() for text in own], layer)
    parts = states.split([len(own) for own in texts.values()])
    return NoneMoments.of(dict(zip(texts, parts, strict=True)))


def _refined(
    backbone: Backbone, generator: TextToLoRA, start: LoRA, lesson: Lesson, training: Training
) -> LoRA:
    with _training_installed():
        from shoal.text_to_lora.few_shot import REFINING, refine
    learned = generator.checkpoint.refining if generator.checkpoint and training.config is None else None
    return refine(
        backbone,
        start,
        lesson.train,
        description=lesson.description,
        config=training.config or REFINING,
        learned=learned,
    ).lora


def _trained(backbone: Backbone, start: LoRA, lesson: Lesson, run: Path, training: Training) -> LoRA:
    with _training_installed():
        from shoal.training.lora import train_lora
    targets = [t for t in backbone.shape.targets if t.name in start.factors]
    return train_lora(
        backbone,
        [lesson.task],
        targets,
        run,
        training.config or TRAINING,
        start=start,
        show_progress=training.show_progress,
    )[0]


def _agree(one: Example, other: Example) -> bool:
    answers = {normalise(output) for output in one.outputs}
    return any(normalise(output) in answers for output in other.outputs)


@contextmanager
def _training_installed() -> Iterator[None]:
    """Say what to install where the import of a training fails."""
    try:
        yield
    except ImportError as error:
        raise ShoalError(
            f"learning needs {error.name}, which is not installed; pip install 'shoal[train,evaluate]'"
        ) from None
