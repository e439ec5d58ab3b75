"""A library of skills: learn, ask, check, roll back, forget; every step is committed whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.library import consolidation, routing, steps
from shoal.library.consolidation import Consolidated
from shoal.library.contents import Contents
from shoal.library.gate import BOUND, Verdict
from shoal.library.history import History, history
from shoal.library.learning import LAYER, Training, none_moments
from shoal.library.lessons import EXEMPLARS, prepare
from shoal.library.models import MAX_NEW_TOKENS, Models
from shoal.library.skills import Skill
from shoal.library.steps import Gate, Learnt
from shoal.library.store import Store
from shoal.library.versions import Version
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.records import Solved
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA
from shoal.transformer2.router import Decision

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LibraryAnswer:
    """An answer of a library.

    Attributes:
        request: that was asked.
        answer: the text.
        decision: the skill that answered, `NONE` for the base model, and how likely each was.
    """

    request: str
    answer: str
    decision: Decision


class Library:
    """Skills in one directory, learnt one after another; one object is used by one thread.

    Each skill is a frozen adapter that was learnt from its sentence and its examples alone. A router that is
    the sum of their statistics finds the skill of a request. A step that would harm an older skill is not
    committed, and every step can be undone.
    """

    def __init__(self, store: Store, models: Models) -> None:
        """Read the current version; use `open` or `create`."""
        self._store, self._models = store, models
        self._contents = Contents.read(store, store.current())

    @classmethod
    def create(
        cls,
        folder: str | Path,
        backbone: Backbone | None = None,
        *,
        generator: TextToLoRA | None = None,
        encoder: TaskEncoder | None = None,
        layer: int | None = None,
        others: Mapping[str, Sequence[str]] | None = None,
    ) -> Library:
        """Make an empty library.

        Args:
            folder: new or empty directory.
            backbone: the base model; None loads the default.
            generator: makes the adapters that skills start from; None is the shipped one for the model.
            encoder: embeds sentences that ask for a skill; None is all-MiniLM-L6-v2.
            layer: decoder layer whose input the router reads; None is 8, or the last.
            others: kind -> texts that need no skill; None is those that the package ships.

        Raises:
            UsageError: the directory holds something, the model lacks the layer, or no texts.
            ShoalError: it cannot be written.
        """
        Store.check_free(folder)
        backbone = backbone or load_backbone(DEFAULT_MODEL)
        layers = backbone.shape.num_layers
        chosen = min(LAYER, layers - 1) if layer is None else layer
        if not 0 <= chosen < layers:
            raise UsageError(f"layer {chosen}: the model has 0 to {layers - 1}; choose one of these")
        log.info("reading texts of no skill")
        models = Models(backbone.shape.base_model, backbone, generator, encoder)
        none = none_moments(models, chosen, others)
        return cls(Store.create(folder, models.base_model, chosen, none), models)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        backbone: Backbone | None = None,
        *,
        generator: TextToLoRA | None = None,
        encoder: TaskEncoder | None = None,
    ) -> Library:
        """Open a library; its model is loaded when it is needed. Arguments as `create`.

        Raises:
            UsageError: it is none, or is for another base model than `backbone`.
            ShoalError: it is damaged.
        """
        store = Store(folder)
        return cls(store, Models(store.facts.base_model, backbone, generator, encoder))

    @property
    def base_model(self) -> str:
        """Hub id or path of the model that its adapters are for."""
        return self._store.facts.base_model

    @property
    def version(self) -> Version:
        """The current version."""
        return self._contents.version

    @property
    def versions(self) -> list[Version]:
        """All versions, the oldest first."""
        return self._store.versions()

    @property
    def skills(self) -> Mapping[str, Skill]:
        """Name -> skill, in the order of names."""
        return self._contents.skills

    @property
    def contents(self) -> Contents:
        """The skills with their router."""
        return self._contents

    def adapter(self, name: str) -> LoRA:
        """A skill's adapter.

        Raises:
            UsageError: there is no such skill.
            ShoalError: it is missing or was changed.
        """
        self._contents.check_known(name)
        return self.skills[name].lora

    def learn(
        self,
        name: str,
        examples: Sequence[Solved],
        description: str,
        *,
        labels: Sequence[str] | None = None,
        keep: int = EXEMPLARS,
        bound: float = BOUND,
        allow_loss: Collection[str] = (),
        training: Training | None = None,
    ) -> Learnt:
        """Learn a skill, or a new version of one, and commit it if no older skill loses by it.

        The learnt adapter is kept where the exemplars' answers are likelier under it than under what it
        started from: else the skill has the adapter of its sentence, or that of the version before.

        Args:
            name: as of adapters in the registry.
            examples: at least 8 solved ones with different inputs; a quarter of them is held out.
            description: the sentence that it starts from, in English.
            labels: the answers that there are, as in `TextToLoRA.generate`; None reads them from the
                description or the examples.
            keep: exemplars to keep, at most 64; with 0 no later step is checked against this skill.
            bound: points of ROUGE-L that an older skill may lose.
            allow_loss: skills that may lose more.
            training: how to train; None refines fewer than 100 examples, and trains on more.

        Raises:
            UsageError: a name, description, bound, labels or examples that cannot be used, or examples that
                contradict an older skill.
            LeakageError: an older skill is tested on an example.
            RefusedError: an older skill would lose more than its bound; nothing was changed.
            ConflictError: another process writes.
            ShoalError: the library is damaged or cannot be written.
        """
        lesson = prepare(name, description, examples, keep, labels)
        gate = Gate(bound, frozenset(allow_loss))
        found = steps.learn(self._store, self._models, lesson, gate, training or Training())
        self._reread()
        return found

    def check(self, *, bound: float = BOUND) -> list[Verdict]:
        """Ask the exemplars of every skill again: states, routes and answers. Writes nothing.

        Raises:
            UsageError: a bound out of range.
            ShoalError: a skill's files are missing or were changed.
        """
        return steps.check(self._store, self._models, Gate(bound))

    def rollback(self, number: int) -> Version:
        """Write a version that is equal to an older one.

        Raises:
            UsageError: there is none of this number, or it had a skill that was forgotten since.
            ConflictError: another process writes.
            ShoalError: a file of it is missing or was changed.
        """
        version = steps.rollback(self._store, number)
        self._reread()
        return version

    def forget(self, name: str) -> Version:
        """Remove a skill with every file of it; versions that had it can no longer be restored.

        Adapters and router are then, bit for bit, those of a library that never learnt it. There is no gate:
        a skill can always be withdrawn. The scores of others are recorded.

        Raises:
            UsageError: there is no such skill.
            ConflictError: another process writes.
            ShoalError: the library is damaged or cannot be written.
        """
        version = steps.forget(self._store, self._models, name)
        self._reread()
        return version

    def decide(
        self, requests: Sequence[str], *, skill: str | None = None, describe: str | None = None
    ) -> list[Decision]:
        """The skill of every request: that of the name, the one nearest to a sentence, or by the input alone.

        Raises:
            UsageError: no requests, no such skill, or a name and a sentence.
        """
        return routing.decide(self._contents, self._models, requests, skill, describe)

    def ask(
        self,
        requests: Sequence[str],
        *,
        skill: str | None = None,
        describe: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[LibraryAnswer]:
        """The answer of every request under the adapter of its skill: greedy, or its likeliest label.

        Raises:
            UsageError: as `decide`; or a request goes by its input to a skill whose inputs look like
                another's.
            ShoalError: an adapter is missing or was changed.
        """
        decisions = self.decide(requests, skill=skill, describe=describe)
        if skill is None and describe is None:
            routing.check_told_apart(self._contents, requests, decisions)
        answers = [""] * len(requests)
        for name in dict.fromkeys(decision.skill for decision in decisions):
            places = [i for i, decision in enumerate(decisions) if decision.skill == name]
            asked = [requests[i] for i in places]
            lora, labels = self._contents.adapted(name)
            found = self._models.answers(asked, lora, labels, max_new_tokens)
            for place, text in zip(places, found, strict=True):
                answers[place] = text
        rows = zip(requests, answers, decisions, strict=True)
        return [LibraryAnswer(request, answer, decision) for request, answer, decision in rows]

    def consolidate(
        self, rank: int = consolidation.RANK, *, least: float = consolidation.LEAST, replay: int = 0
    ) -> Consolidated:
        """One adapter from all skills; as `shoal.library.consolidation.consolidate`."""
        return consolidation.consolidate(self._contents, self._models, rank, least=least, replay=replay)

    def history(self) -> History:
        """Scores over time and their measures.

        Raises:
            ShoalError: the history is damaged.
        """
        facts = {name: skill.facts for name, skill in self.skills.items()}
        return history(
            self._store.versions(),
            {name: own.points("base") for name, own in facts.items()},
            {name: own.points("sentence") for name, own in facts.items()},
        )

    def _reread(self) -> None:
        self._contents = Contents.read(self._store, self._store.current())
