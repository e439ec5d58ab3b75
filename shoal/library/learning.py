"""One skill from a sentence and solved examples: its adapter, the sums of its requests, and its exemplars.

The adapter starts from the sentence, never from another skill, and is trained on this skill's examples alone:
so a skill is the same whatever was learnt before, and can be undone. It is kept only where the exemplars'
answers are likelier under it than under its start. Knows models; nothing of libraries on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA
from shoal.config import MANY_EXAMPLES, LoraTrainingConfig
from shoal.errors import UsageError
from shoal.inference.labels import content_free_priors
from shoal.library.discriminant import kinds_like
from shoal.library.lessons import Lesson
from shoal.library.models import Models
from shoal.library.moments import Moments
from shoal.library.skills import Candidate, Content, Skill, SkillFacts
from shoal.models.backbone import Backbone
from shoal.text_to_lora.material import training_installed
from shoal.text_to_lora.sample_inputs import input_kinds

LAYER = 8  # whose input the router reads, where the model has as many
MOST_STATES = 512  # requests of a skill that are in its sums
TRAINING = LoraTrainingConfig(steps=40, batch_size=8)


@dataclass(frozen=True)
class Training:
    """The training of an adapter on the examples of a skill.

    Attributes:
        config: settings; None are those of few or of many examples.
        way: `refined` by a few steps that held-out examples or learned rates stop, or `trained`; None trains
            on `MANY_EXAMPLES` and more.
        show_progress: on standard error, while it trains.
    """

    config: LoraTrainingConfig | None = None
    way: Literal["refined", "trained"] | None = None
    show_progress: bool = False

    def way_for(self, examples: int) -> Literal["refined", "trained"]:
        """The way for so many examples."""
        return self.way or ("refined" if examples < MANY_EXAMPLES else "trained")


def learn_skill(
    models: Models,
    lesson: Lesson,
    none: Moments,
    layer: int,
    run: Path,
    training: Training,
    earlier: Skill | None = None,
) -> Content:
    """The content of a skill, the same whatever else was learnt.

    Args:
        models: the frozen model, and what makes the adapter of the sentence.
        lesson: what to learn from.
        none: sums of texts of no skill.
        layer: whose input the router reads.
        run: folder for checkpoints.
        training: how to train.
        earlier: the version of the skill that this one replaces.

    Raises:
        UsageError: too many examples are too long.
        ShoalError: the extra `train` is not installed.
    """
    backbone, label_set, exemplars = models.backbone, lesson.label_set, lesson.exemplars
    start = models.generator.generate(lesson.description)
    way = training.way_for(len(lesson.train))
    if way == "refined":
        learnt = _refined(models, start.lora, lesson, training)
    else:
        learnt = _trained(backbone, start.lora, lesson, run, training)
    candidates: dict[Candidate, LoRA] = {} if earlier is None else {"earlier": earlier.lora}
    candidates |= {"sentence": start.lora, "learnt": learnt}
    losses = _losses(models, lesson, candidates)
    kept = likeliest(losses)
    lora = candidates[kept]
    if label_set is not None:
        priors = content_free_priors(backbone, label_set.labels, lora)
        label_set = label_set.calibrated(priors, "content-free texts")
    requests = [e.input for e in lesson.train[:MOST_STATES]]
    moments = Moments.of({lesson.name: models.states(requests, layer)})
    states = models.states([e.input for e in exemplars], layer)
    facts = SkillFacts(
        name=lesson.name,
        description=lesson.description,
        base_model=backbone.shape.base_model,
        layer=layer,
        examples=len(lesson.train),
        way=way,
        start="text-to-lora" if start.trained else "identity",
        label_set=label_set,
        kept=kept,
        scores={
            "base": tuple(models.scores(exemplars, None, lesson.label_set)),
            **{n: tuple(models.scores(exemplars, own, lesson.label_set)) for n, own in candidates.items()},
        },
        losses=losses,
        kinds=kinds_like(moments, none, states, layer),
    )
    points = facts.points(kept)
    card = AdapterCard(
        generator="skill library",
        trained=start.trained or kept != "sentence",
        description=lesson.description,
        checkpoint_sha256=start.hypernetwork.get("sha256"),
        start_sha256=start.lora.fingerprint(),
        label_set=label_set,
        scores={} if points is None else {"ROUGE-L of exemplars": points},
        notes=(f"The skill {lesson.name}, {way} on {facts.examples} examples; {facts.why}.",),
    )
    return Content(facts, lora, card, moments, states, exemplars)


def likeliest(losses: Mapping[Candidate, float]) -> Candidate:
    """The adapter of the least loss, the first of those that are equal; the learnt one where none is known.

    The likelihood of an exemplar's answer says more than a right or wrong answer does: with three exemplars
    one answer is a third of the score.
    """
    return min(losses, key=losses.__getitem__, default="learnt")


def none_moments(models: Models, layer: int, others: Mapping[str, Sequence[str]] | None = None) -> Moments:
    """The sums over texts that need no skill, by their kind; None are those that the package ships.

    Raises:
        UsageError: no kinds, or one without texts.
    """
    texts = {kind.kind: kind.inputs for kind in input_kinds()} if others is None else others
    if not texts or not all(texts.values()):
        raise UsageError(
            f"{len(texts)} kinds of texts of no skill; at least 1 is needed, each of 1 text; add some"
        )
    states = models.states([text for own in texts.values() for text in own], layer)
    parts = states.split([len(own) for own in texts.values()])
    return Moments.of(dict(zip(texts, parts, strict=True)))


def _losses(models: Models, lesson: Lesson, candidates: Mapping[Candidate, LoRA]) -> dict[Candidate, float]:
    if not lesson.exemplars:
        return {}
    return {
        name: fmean(models.losses(lesson.exemplars, lora, lesson.label_set))
        for name, lora in candidates.items()
    }


def _refined(models: Models, start: LoRA, lesson: Lesson, training: Training) -> LoRA:
    with training_installed("examples"):
        from shoal.text_to_lora.few_shot import REFINING, refine
    checkpoint = models.generator.checkpoint
    return refine(
        models.backbone,
        start,
        lesson.train,
        description=lesson.description,
        config=training.config or REFINING,
        learned=checkpoint.refining if checkpoint and training.config is None else None,
    ).lora


def _trained(backbone: Backbone, start: LoRA, lesson: Lesson, run: Path, training: Training) -> LoRA:
    with training_installed("examples"):
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
