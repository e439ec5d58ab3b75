"""The adapter that answers a request: named by `model`, described, mixed, or chosen by the model itself.

A name that this owner may not see is as unknown as one that nobody has. Knows no prompts and no answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.adapters.output_format import OutputFormat
from shoal.errors import NotFoundError, UsageError
from shoal.inference.engine.records import RequestedAdapter
from shoal.library.routing import check_told_apart
from shoal.models.backbone import Backbone
from shoal.registry.records import AdapterRecord
from shoal.registry.registry import Registry
from shoal.server.errors import not_a_model
from shoal.server.libraries import Libraries, NamedLibrary, check_choice
from shoal.server.schemas import AdapterChoice
from shoal.text_to_lora.suggested_format import suggest_format
from shoal.transformer2.experts import ExpertSet
from shoal.transformer2.router import NONE, Decision, mean_states, without_expert


class Describer(Protocol):
    """Turns a description into an adapter."""

    def describe(self, description: str) -> tuple[LoRA, dict[str, Any]]:
        """The adapter and the facts of its generation."""


@dataclass(frozen=True)
class SelectedAdapter:
    """An adapter as the engine takes it.

    Attributes:
        adapter: None for the base model.
        facts: shown in the answer; None shows none.
        greedy: the adapter was made for a task, so its answers are greedy unless the request says otherwise.
        label_set: its answers, where they are closed.
        suggested_format: that its description names.
    """

    adapter: RequestedAdapter = None
    facts: Mapping[str, Any] | None = None
    greedy: bool = False
    label_set: LabelSet | None = None
    suggested_format: OutputFormat | None = None


class AdapterSelector:
    """Resolves `model` and `adapter` of a request."""

    def __init__(
        self,
        registry: Registry,
        base_names: Sequence[str],
        describer: Describer,
        experts: ExpertSet | None,
        decide: Callable[[Callable[[], list[Decision]]], list[Decision]],
        max_mix: int,
        libraries: Libraries,
        backbone: Backbone,
    ) -> None:
        """Take the sources of adapters.

        Args:
            registry: of adapters.
            base_names: hub id or path of the base model first, then its other names.
            describer: of descriptions.
            experts: for `auto`; None leaves every request to the base model.
            decide: calls a function that needs the model for itself.
            max_mix: adapters in one mix.
            libraries: of skills.
            backbone: whose states a library's router reads.
        """
        self.base_names = tuple(base_names)
        self._registry = registry
        self._describer = describer
        self._experts = experts
        self._decide = decide
        self._max_mix = max_mix
        self._libraries = libraries
        self._backbone = backbone

    def record(self, model: str, owner: str | None) -> AdapterRecord | NamedLibrary | None:
        """The library or adapter that `model` names, None for the base model; errors as `find`."""
        if model in self.base_names:
            return None
        return self._libraries.find(model, owner) or self.find(model, owner)

    def find(self, name: str, owner: str | None) -> AdapterRecord:
        """The registered adapter of a name.

        Raises:
            Failure: 404: there is none for this owner, or it is for another base model.
            UnavailableError: the database cannot be reached.
        """
        try:
            record = self._registry.get(name, owner)
        except (NotFoundError, UsageError):
            raise not_a_model(name) from None
        if record.base != self.base_names[0]:
            raise not_a_model(name)
        return record

    def select(
        self,
        record: AdapterRecord | NamedLibrary | None,
        choice: AdapterChoice | str | None,
        prompt: Sequence[int],
        owner: str | None,
    ) -> SelectedAdapter:
        """The adapter of a request; may take as long as generating one takes.

        Args:
            record: what `model` names, see `record`.
            choice: the request's `adapter`.
            prompt: token ids, by which `auto` decides.
            owner: who asks.

        Raises:
            Failure: 404: a name in a mix that is not there.
            UsageError: both `model` and `adapter` name adapters, or a choice of nothing or of two things.
            UnavailableError: the database cannot be reached.
        """
        if isinstance(record, NamedLibrary):
            return self._skill(record, choice, prompt)
        if record is not None:
            if choice is not None:
                raise UsageError(
                    f"model {record.name!r} is an adapter, `adapter` cannot name another; "
                    f"give {self.base_names[0]!r}"
                )
            facts = {"name": record.name, "version": record.version}
            card = record.card
            return SelectedAdapter(
                record.sha256, facts, card.names_task, card.label_set, card.suggested_format
            )
        if choice is None:
            return SelectedAdapter()
        if isinstance(choice, str):
            return self._automatic(prompt)
        if choice.skill is not None:
            raise UsageError(
                f"skill {choice.skill!r} is one of a library; give the library's name as `model`"
            )
        if (choice.describe is None) == (choice.mix is None):
            raise UsageError("`adapter` holds one of describe and mix; give one")
        if choice.describe is not None:
            lora, facts = self._describer.describe(choice.describe)
            suggested = suggest_format(choice.describe)
            return SelectedAdapter(lora, facts, greedy=True, suggested_format=suggested)
        return self._mixed(choice, owner)

    def _skill(
        self, named: NamedLibrary, choice: AdapterChoice | str | None, prompt: Sequence[int]
    ) -> SelectedAdapter:
        """The skill of a library that a request is for: by name, by a sentence, or by the request alone."""
        library, contents = named.library, named.library.contents
        skill = describe = None
        if isinstance(choice, AdapterChoice):
            check_choice(choice.skill, choice.describe, choice.mix)
            skill, describe = choice.skill, choice.describe
        if skill is None and describe is None and library.skills:
            model, router = self._backbone.model, contents.discriminant
            (decision,) = self._decide(lambda: router.decide(mean_states(model, [prompt], router.layer)))
            check_told_apart(contents, ["the request"], [decision])
        else:
            (decision,) = library.decide(["the request"], skill=skill, describe=describe)
        lora, label_set = contents.adapted(decision.skill)
        facts = {
            "library": named.name,
            "version": contents.version.number,
            "skill": decision.skill,
            "probability": decision.probabilities[decision.skill],
        }
        return SelectedAdapter(lora, facts, decision.skill != NONE, label_set)

    def _mixed(self, choice: AdapterChoice, owner: str | None) -> SelectedAdapter:
        parts = choice.mix or []
        if len(parts) > self._max_mix:
            raise UsageError(f"a mix of {len(parts)} adapters is above the limit of {self._max_mix}")
        weights: dict[str, float] = {}
        records = [self.find(part.name, owner) for part in parts]
        for part, record in zip(parts, records, strict=True):  # two names may have one content
            weights[record.sha256] = weights.get(record.sha256, 0.0) + part.weight
        greedy = all(record.card.names_task for record in records)
        return SelectedAdapter(weights, {"mix": [part.model_dump() for part in parts]}, greedy)

    def _automatic(self, prompt: Sequence[int]) -> SelectedAdapter:
        known = self._experts
        if known is None:
            return SelectedAdapter(facts={"auto": NONE})
        decision = self._decide(lambda: known.router.decide([prompt]))[0]
        facts = {"auto": decision.skill}
        if note := without_expert(decision.skill, known.experts):
            facts["note"] = note
        return SelectedAdapter(known.experts.get(decision.skill), facts)
