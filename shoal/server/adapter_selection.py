"""Which adapter answers a request: named by `model`, described, mixed, or chosen by the model itself.

A name that this owner may not see is as unknown as one that nobody has. Knows no prompts and no answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.adapters.lora import LoRA
from shoal.adapters.svf import ExpertVector
from shoal.errors import NotFoundError, UsageError
from shoal.registry.registry import AdapterRecord, Registry
from shoal.server.errors import not_a_model
from shoal.server.schemas import AdapterChoice
from shoal.transformer2.experts import ExpertSet
from shoal.transformer2.router import NONE, Decision

Adapter = str | Mapping[str, float] | LoRA | ExpertVector | None


class Describer(Protocol):
    """Turns a description into an adapter."""

    def described(self, description: str) -> tuple[LoRA, dict[str, Any]]:
        """The adapter and what is known of it."""


@dataclass(frozen=True)
class Chosen:
    """An adapter as the engine takes it, and what the answer says of it."""

    adapter: Adapter
    facts: Mapping[str, Any] | None


class Choices:
    """Resolves `model` and `adapter` of a request."""

    def __init__(
        self,
        registry: Registry,
        base_names: Sequence[str],
        describer: Describer,
        experts: ExpertSet | None,
        decide: Callable[[Callable[[], list[Decision]]], list[Decision]],
        max_mix: int,
    ) -> None:
        """Take what knows adapters.

        Args:
            registry: of adapters.
            base_names: hub id or path of the base model first, then its other names.
            describer: of descriptions.
            experts: for `auto`; None leaves every request to the base model.
            decide: calls a function that needs the model for itself.
            max_mix: adapters in one mix.
        """
        self.base_names = tuple(base_names)
        self._registry, self._describer, self._experts = registry, describer, experts
        self._decide, self._max_mix = decide, max_mix

    def named(self, name: str, owner: str | None) -> AdapterRecord:
        """The adapter of a name.

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

    def chosen(
        self, model: str, choice: AdapterChoice | str | None, prompt: Sequence[int], owner: str | None
    ) -> Chosen:
        """The adapter of a request; may take as long as generating one takes.

        Raises:
            Failure: 404: a name that is not there.
            UsageError: both `model` and `adapter` name adapters, or a choice of nothing or of two things.
            UnavailableError: the database cannot be reached.
        """
        record = None if model in self.base_names else self.named(model, owner)
        if choice is None:
            if record is None:
                return Chosen(None, None)
            return Chosen(record.sha256, {"name": record.name, "version": record.version})
        if record is not None:
            raise UsageError(
                f"model {model!r} is an adapter, `adapter` cannot name another; give {self.base_names[0]!r}"
            )
        if isinstance(choice, str):
            return self._automatic(prompt)
        if (choice.describe is None) == (choice.mix is None):
            raise UsageError("`adapter` holds one of describe and mix; give one")
        if choice.describe is not None:
            lora, facts = self._describer.described(choice.describe)
            return Chosen(lora, facts)
        return self._mixed(choice, owner)

    def _mixed(self, choice: AdapterChoice, owner: str | None) -> Chosen:
        parts = choice.mix or []
        if len(parts) > self._max_mix:
            raise UsageError(f"a mix of {len(parts)} adapters is above the limit of {self._max_mix}")
        weights: dict[str, float] = {}
        for part in parts:
            sha256 = self.named(part.name, owner).sha256  # two names may have one content
            weights[sha256] = weights.get(sha256, 0.0) + part.weight
        return Chosen(weights, {"mix": [part.model_dump() for part in parts]})

    def _automatic(self, prompt: Sequence[int]) -> Chosen:
        known = self._experts
        if known is None:
            return Chosen(None, {"auto": NONE})
        decision = self._decide(lambda: known.dispatch.decide([prompt]))[0]
        return Chosen(known.experts.get(decision.skill), {"auto": decision.skill})
