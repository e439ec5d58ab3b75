"""A library pressed into one adapter: a closed form, then a short replay of exemplars, under a stated loss.

The merge is RegMean where every skill has exemplars enough for covariances, else the mean. What each skill
keeps is measured on its exemplars; replay trains on half of them, and then the other half alone is measured.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import save_adapter
from shoal.adapters.lora import LoRA
from shoal.adapters.merging import Merged, merge
from shoal.adapters.merging.closed_form import RANK
from shoal.adapters.merging.regmean import MIN_INPUTS
from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError, UsageError
from shoal.inference.covariances import input_covariances
from shoal.library.contents import Contents
from shoal.library.models import Models
from shoal.library.skills import Skill, mean_points
from shoal.models.shapes import BackboneShape
from shoal.tasks.records import Example, Task

LEAST = 0.5  # share of its gain that every skill keeps
SMALLEST_GAIN = 1.0  # point, below which a share of it means nothing
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Retention:
    """The share of one skill in a merge, on exemplars, in points of ROUGE-L.

    Attributes:
        skill: its name.
        base: score of the base model.
        own: score of the skill's own adapter.
        merged: score of the merge.
        exemplars: that were asked.
    """

    skill: str
    base: float
    own: float
    merged: float
    exemplars: int

    @property
    def kept(self) -> float | None:
        """Share of the gain over the base model that is left; None where there is hardly any."""
        gain = self.own - self.base
        return (self.merged - self.base) / gain if gain >= SMALLEST_GAIN else None

    def __str__(self) -> str:
        """As a clause."""
        kept = "gains nothing" if self.kept is None else f"keeps {self.kept:.0%}"
        return f"{self.skill} {kept} ({self.base:.1f} -> {self.own:.1f}, merged {self.merged:.1f})"


@dataclass(frozen=True, eq=False)
class Consolidated:
    """One adapter from all skills of a library.

    Attributes:
        lora: the adapter.
        card: its provenance.
        retentions: of every skill.
        report: facts for machines, JSON values.
    """

    lora: LoRA
    card: AdapterCard
    retentions: tuple[Retention, ...]
    report: Mapping[str, Any]


def consolidate(
    contents: Contents, models: Models, rank: int = RANK, *, least: float = LEAST, replay: int = 0
) -> Consolidated:
    """One adapter from all skills of a library.

    Args:
        contents: the skills.
        models: their base model.
        rank: of the result at most.
        least: share of its gain over the base model that every skill must keep; 0 sets no limit.
        replay: steps of training on half of the exemplars after the merge.

    Raises:
        UsageError: fewer than 2 skills, one without exemplars (2 with replay), or a value out of range.
        ShoalError: a skill keeps less than `least`.
    """
    skills = contents.skills
    _check(skills, least, replay)
    asked, taught = (slice(0, None, 2), slice(1, None, 2)) if replay else (slice(None),) * 2
    merged = _merged(models, skills, {n: skill.exemplars[taught] for n, skill in skills.items()}, rank)
    lora = _replayed(models, merged.lora, skills, taught, replay) if replay else merged.lora
    retentions = []
    for name, skill in skills.items():
        facts, exemplars = skill.facts, skill.exemplars[asked]
        # The priors of its labels are those of its own adapter: others are measured for the merge.
        labels = facts.label_set and facts.label_set.model_copy(update={"priors": None})
        base, own, found = (
            mean_points(scores) or 0.0
            for scores in (
                facts.scores["base"][asked],
                facts.own_scores[asked],
                models.scores(exemplars, lora, labels),
            )
        )
        retentions.append(Retention(name, base, own, found, len(exemplars)))
    if least and (lost := [r for r in retentions if r.kept is not None and r.kept < least]):
        raise ShoalError(
            f"no adapter of rank {rank} is written: {'; '.join(map(str, lost))}, the least is {least:.0%}; "
            "raise the rank, replay more steps, or lower the least share"
        )
    return _described(merged, lora, retentions, replay)


def save_consolidated(directory: str | Path, found: Consolidated, shape: BackboneShape) -> None:
    """Write it as a PEFT directory with a report; errors as `save_adapter`."""
    text = json.dumps(found.report, indent=2) + "\n"
    save_adapter(directory, found.lora, shape=shape, card=found.card, beside={REPORT_FILE: text})


def _check(skills: Mapping[str, Skill], least: float, replay: int) -> None:
    if len(skills) < 2:
        has = f"1, {next(iter(skills))}" if skills else "none"
        raise UsageError(f"2 skills or more are consolidated, the library has {has}; learn another")
    if not 0 <= least <= 1 or replay < 0:
        raise UsageError(f"least {least:g} must be from 0 to 1, and replay {replay} at least 0; change them")
    needed = 2 if replay else 1
    short = next((n for n, skill in skills.items() if len(skill.exemplars) < needed), None)
    if short is not None:
        raise UsageError(
            f"{short} has {len(skills[short].exemplars)} exemplars, and at least {needed} tell what it "
            "keeps; learn it again without --keep 0"
        )


def _merged(
    models: Models, skills: Mapping[str, Skill], inputs: Mapping[str, Sequence[Example]], rank: int
) -> Merged:
    loras = {name: skill.lora for name, skill in skills.items()}
    if min(len(own) for own in inputs.values()) < MIN_INPUTS:
        return merge(loras, rank=rank)
    modules = dict.fromkeys(name for lora in loras.values() for name in lora.factors)
    covariances = {
        name: input_covariances(models.backbone, lora, [e.input for e in inputs[name]], modules)
        for name, lora in loras.items()
    }
    return merge(loras, rank=rank, covariances=covariances)


def _replayed(models: Models, lora: LoRA, skills: Mapping[str, Skill], taught: slice, steps: int) -> LoRA:
    from shoal.training.lora import train_lora

    tasks = [
        Task(name, "library", text := skill.facts.description, (text,), skill.exemplars[taught], ())
        for name, skill in skills.items()
    ]
    targets = [t for t in models.backbone.shape.targets if t.name in lora.factors]
    config = LoraTrainingConfig(steps=steps, batch_size=8, learning_rate=3e-4)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        return train_lora(models.backbone, tasks, targets, run, config, start=lora, show_progress=False)[0]


def _described(merged: Merged, lora: LoRA, retentions: Sequence[Retention], replay: int) -> Consolidated:
    notes = [*merged.card.notes, *(f"{retention}." for retention in retentions)]
    if replay:
        notes.append(
            f"After the merge, {replay} steps on half of the exemplars; the other half was measured."
        )
    card = merged.card.model_copy(update={"generator": "skill library", "notes": tuple(notes)})
    report = {
        **merged.report,
        "replay": replay,
        "rank": lora.rank,
        "retention": {r.skill: {**asdict(r), "kept": r.kept} for r in retentions},
    }
    return Consolidated(lora, card, tuple(retentions), report)
