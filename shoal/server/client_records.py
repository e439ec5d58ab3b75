"""Adapters and training jobs as the service shows them, and how they are read from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Adapter:
    """An adapter as the service shows it.

    Attributes:
        name: 1 to 64 of a-z, 0-9, `.`, `_`, `-`.
        version: counts from 1.
        base: the base model.
        rank: of the LoRA.
        owner: whose it is.
        public: whether others may use it.
        bytes: of its files.
        created: seconds since 1970.
        sha256: of its content.
        description: what it shall do, None where nobody said.
        card: what else its card says.
    """

    name: str
    version: int
    base: str
    rank: int
    owner: str
    public: bool
    bytes: int
    created: float
    sha256: str
    description: str | None
    card: Mapping[str, Any]


@dataclass(frozen=True)
class GeneratedAdapter:
    """A new adapter, and what to expect of it.

    Attributes:
        adapter: as it is kept.
        trained: False where no hypernetwork is trained for the base model: the adapter changes nothing.
        confidence: share of a trained LoRA's score to be expected, in [0, 1]; None where that is unknown.
        nonsense: the description reads as random letters or words.
        notes: plain sentences on what to know before relying on it, each with what to do about it.
        curve: (steps, loss in nats per token) while it was refined on examples; empty where it was not.
        more: solved examples that would pay, by what they promise; 0 where they would not, or nobody knows.
        promised: by how much they would lower the loss, nats per token.
        to_label: inputs without answers that are worth labelling first.
    """

    adapter: Adapter
    trained: bool
    confidence: float | None
    nonsense: bool
    notes: tuple[str, ...]
    curve: tuple[tuple[int, float], ...] = ()
    more: int = 0
    promised: float = 0.0
    to_label: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterPage:
    """Adapters by name; `after` asks for the next page, None where there is none."""

    adapters: tuple[Adapter, ...]
    after: str | None


@dataclass(frozen=True)
class TrainingJob:
    """A training as the service shows it; see `shoal.server.jobs.Job`."""

    id: str
    adapter: str
    state: str
    step: int
    steps: int
    loss: float | None
    error: str | None
    created: float

    @property
    def active(self) -> bool:
        """True while it waits or runs."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class SkillLibrary:
    """A library of skills as the service shows it; see `shoal.library.report`.

    Attributes:
        name: of the library.
        version: the current one.
        skills: facts of each.
        versions: the steps that made them, oldest first.
        history: scores over time in points, with their measures.
        confused: skills that inputs do not tell apart.
    """

    name: str
    version: int
    skills: Sequence[Mapping[str, Any]]
    versions: Sequence[Mapping[str, Any]]
    history: Mapping[str, Any]
    confused: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SettingsStudy:
    """A study of settings as the service shows it; see `shoal.tuning.report`.

    Attributes:
        name: of the study.
        trials: in order, each with its settings, loss and curve.
        importance: field -> its share and spread.
        verdict: None before there is one.
        settings: that were found, by field, where they differ from the defaults; None before the verdict.
    """

    name: str
    trials: Sequence[Mapping[str, Any]]
    importance: Mapping[str, Mapping[str, float]]
    verdict: Mapping[str, Any] | None
    settings: Mapping[str, Any] | None


def read_adapter(body: Mapping[str, Any]) -> Adapter:
    """An adapter from the service's JSON."""
    return Adapter(**{name: body[name] for name in Adapter.__dataclass_fields__})


def read_generated(body: Mapping[str, Any]) -> GeneratedAdapter:
    """A new adapter from the service's JSON."""
    confidence = body["confidence"]
    refined, following = (body.get(name) or {} for name in ("few_shot", "next_examples"))
    return GeneratedAdapter(
        adapter=read_adapter(body),
        trained=bool(body["trained"]),
        confidence=None if confidence is None else float(confidence),
        nonsense=bool(body["nonsense"]),
        notes=tuple(map(str, body["notes"])),
        curve=tuple((int(step), float(loss)) for step, loss in refined.get("curve", ())),
        more=int(following["examples"]) if following.get("pays") else 0,
        promised=float(following.get("gain", 0.0)),
        to_label=tuple(map(str, following.get("inputs", ()))),
    )


def read_job(body: Mapping[str, Any]) -> TrainingJob:
    """A job from the service's JSON."""
    return TrainingJob(**{name: body[name] for name in TrainingJob.__dataclass_fields__})


def read_library(body: Mapping[str, Any]) -> SkillLibrary:
    """A library from the service's JSON."""
    return SkillLibrary(**{name: body[name] for name in SkillLibrary.__dataclass_fields__})


def read_study(body: Mapping[str, Any]) -> SettingsStudy:
    """A study from the service's JSON."""
    return SettingsStudy(**{name: body[name] for name in SettingsStudy.__dataclass_fields__})
