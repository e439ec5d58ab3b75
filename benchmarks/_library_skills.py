"""The skills of the libraries that are measured: their tasks, their examples, and how one is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from _merging_apart import TASKS
from _merging_bench import RATE, Bench, divided

from shoal.adapters.card import LabelSet
from shoal.config import LoraTrainingConfig
from shoal.library.learning import Training
from shoal.library.library import Library
from shoal.library.models import Models
from shoal.tasks.loading import load_split
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.tasks.records import Example, Task
from shoal.text_to_lora.generator import TextToLoRA

# Training tasks of different form that the shipped hypernetwork never saw.
TRAINED = (
    *TASKS,
    "chess_opening_name",
    "cldr_language_name",
    "math_time_shift",
    "path_file_stem",
    "pubchem_name_to_formula",
    "pyname_snake_to_camel",
    "proverb_completion",
    "sms_spam",
    "gemoji_category",
    "tldr_explain_command",
)
# Expert that ships -> the first task that it was trained on.
EXPERTS = {
    "opinion_labels": "mr_review_polarity",
    "assigned_name": "assigned-name",
    "language_names": "phrase-language",
    "largest_number": "numbers-largest",
    "names_in_messages": "extract-name",
    "prices_in_lists": "price-of",
    "news_topics": "news-topic",
    "sentence_compression": "task1355_sent_comp_summarization",
}


class Skills:
    """The model with what makes adapters, the skills' tasks, and all other training tasks."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.known: Mapping[str, Task] = {t.name: t for t in load_split(bench.args.data).train}

    @cached_property
    def generator(self) -> TextToLoRA:
        """Makes the adapters that skills start from, with the bench's model."""
        return TextToLoRA(backbone=self.bench.backbone)

    @cached_property
    def models(self) -> Models:
        """As libraries use them."""
        return Models(self.bench.backbone.shape.base_model, self.bench.backbone, self.generator)

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Skill -> its task, whose `train` list holds no input of its `test` list."""
        names = {**{name: name for name in TRAINED}, **EXPERTS}
        made = {t.name: t for t in procedural_tasks(set(names.values()) - self.known.keys(), size=300)}
        chosen = list(names.items())[: self.bench.args.skills]
        return {skill: divided(self.known.get(name) or made[name], 0)[0] for skill, name in chosen}

    def others(self, count: int, skip: int = 0) -> list[Task]:
        """Training tasks that are no skill's, in the order of a hash of their names."""
        used = {*TRAINED, *EXPERTS.values()}
        names = sorted(self.known.keys() - used, key=lambda name: hashlib.sha256(name.encode()).digest())
        return [divided(self.known[name], 0)[0] for name in names[skip : skip + count]]

    def library(self, name: str) -> Library:
        """The library of one part of the measurement."""
        folder = self.bench.args.out / name / "library"
        tools = {"generator": self.generator}
        if folder.exists():
            return Library.open(folder, self.bench.backbone, **tools)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Library.create(folder, self.bench.backbone, **tools)


def training(bench: Bench) -> Training:
    """How every skill of these libraries is trained: shortly."""
    steps, batch = bench.args.skill_steps, bench.args.skill_batch
    config = LoraTrainingConfig(steps=steps, batch_size=batch, learning_rate=RATE, max_length=160)
    return Training(config, "trained")


def learnt_cell(
    bench: Bench, library: Library, key: str, name: str, learn: Callable[[], dict[str, Any]]
) -> None:
    """The cell of a step; where it came with the page, without the library, both are made again."""
    if name not in library.skills:
        bench.cells.pop(key, None)
    bench.cell(key, learn)


def files_of(library: Library) -> dict[str, str]:
    """Every file of every skill, by its hash."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for skill in library.skills.values()
        for path in sorted(skill.folder.iterdir())
    }


def uncalibrated(labels: LabelSet | None) -> LabelSet | None:
    """Labels without the priors of a skill's own adapter, so that another's are measured."""
    return labels and labels.model_copy(update={"priors": None})


def inputs(examples: Sequence[Example]) -> list[str]:
    """What is asked."""
    return [e.input for e in examples]
