"""The skills of one version of a library with their router, what they score, and how it is committed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError, shorten
from shoal.library.discriminant import Discriminant, fit_discriminant
from shoal.library.gate import Answering, Exam, ask_exams
from shoal.library.models import Models
from shoal.library.skills import Skill
from shoal.library.store import Store
from shoal.library.versions import Asked, Confusion, Step, Version
from shoal.tasks.records import Example
from shoal.transformer2.router import NONE


@dataclass(frozen=True, eq=False)
class Contents:
    """Skills, and the version that they belong to or go on from.

    Attributes:
        store: where they are.
        version: that was read.
        skills: name -> skill, in the order of names.
    """

    store: Store
    version: Version
    skills: Mapping[str, Skill]

    @classmethod
    def read(cls, store: Store, version: Version) -> Contents:
        """The skills of a version; errors as `Skill`."""
        found = {name: store.skill(name, digest) for name, digest in sorted(version.skills.items())}
        return cls(store, version, found)

    @cached_property
    def discriminant(self) -> Discriminant:
        """The router's weights, from the sums of the skills and of no skill; errors as `Skill.moments`."""
        without = {kind for skill in self.skills.values() for kind in skill.facts.kinds}
        moments = {name: skill.moments for name, skill in self.skills.items()}
        return fit_discriminant(moments, self.store.none, self.store.facts.layer, without=without)

    def added(self, name: str, digest: str) -> Contents:
        """With one more skill, or another of its name."""
        skills = {**self.skills, name: self.store.skill(name, digest)}
        return replace(self, skills=dict(sorted(skills.items())))

    def removed(self, name: str) -> Contents:
        """Without a skill."""
        return replace(self, skills={n: skill for n, skill in self.skills.items() if n != name})

    def check_known(self, name: str) -> None:
        """Raises UsageError where there is no such skill."""
        if name not in self.skills:
            known = ", ".join(self.skills) or "it is empty"
            raise UsageError(f"the library has no skill {shorten(name)}; it has {known}")

    def adapted(self, name: str) -> tuple[LoRA | None, LabelSet | None]:
        """The adapter of a skill and its labels; nothing for `NONE`. Errors as `Skill.lora`."""
        if name == NONE:
            return None, None
        skill = self.skills[name]
        return skill.lora, skill.facts.label_set

    def answering(self, models: Models) -> Answering:
        """Scores of the answers of these skills, each with its labels; `NONE` is the base model."""

        def scores(name: str, examples: Sequence[Example]) -> list[float]:
            return models.scores(examples, *self.adapted(name))

        return scores

    def asked(self, changed: str, models: Models) -> dict[str, Asked]:
        """The scores of every skill, now that one has come, has gone, or is another than in `version`.

        Only requests whose route is another than on record are answered.
        """
        exams = [
            Exam(
                name,
                skill.exemplars,
                self.discriminant.routes(skill.states) if skill.exemplars else (),
                skill.facts.own_scores,
            )
            for name, skill in self.skills.items()
        ]
        known = {name: asked for name, asked in self.version.asked.items() if name != changed}
        return ask_exams(exams, known, {changed}, self.answering(models))

    def committed(
        self,
        step: Step,
        digests: Mapping[str, str],
        asked: Mapping[str, Asked],
        accepted: Mapping[str, tuple[float, ...]],
        confused: tuple[Confusion, ...],
    ) -> Contents:
        """The next version, written; errors as `Store.commit`."""
        version = Version(
            number=self.version.number + 1,
            step=step,
            skills=dict(sorted(digests.items())),
            asked=dict(sorted(asked.items())),
            accepted=dict(sorted(accepted.items())),
            confused=confused,
        )
        self.store.commit(version)
        return Contents.read(self.store, version)


def accepted_scores(
    before: Mapping[str, tuple[float, ...]], asked: Mapping[str, Asked], reset: Collection[str]
) -> dict[str, tuple[float, ...]]:
    """The scores that later losses count from: those before, and of some skills those now."""
    return {name: own.scores if name in reset else before[name] for name, own in asked.items()}
