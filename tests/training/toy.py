"""Toy runs of each kind of training: what the tests call, and a program that they start, kill and interrupt.

    python tests/training/toy.py KINDS MODEL FOLDER SETTINGS

KINDS are names of `TRAININGS` with commas, SETTINGS a JSON object for their configurations.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.lora import LoRA, LoraFactors, TargetModule
from shoal.adapters.svf import Decomposition, decompose
from shoal.adapters.svf_hooks import dense_weight
from shoal.config import ExpertTrainingConfig, HypernetworkTrainingConfig, LoraTrainingConfig
from shoal.errors import ShoalError
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Example, Task
from shoal.text_to_lora.hypernetwork import Architecture, Hypernetwork
from shoal.text_to_lora.train import train_hypernetwork, train_reconstruction
from shoal.training.loop import RunSummary
from shoal.training.lora import train_lora
from shoal.transformer2.train import train_expert

WORDS = ("apple", "banana", "cherry", "dates", "elder", "figs", "grape", "honey", "iris", "juniper", "kale")
RULES: dict[str, Callable[[str], str]] = {
    "upper": str.upper,
    "reverse": lambda word: word[::-1],
    "first": lambda word: word[0],
    "double": lambda word: f"{word} {word}",
}
MODULES = ("q_proj", "v_proj")


class HashEncoder:
    """Stands for the task encoder: an embedding from a hash of the text."""

    dim, name = 16, "hash"

    def encode(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
            rows.append(torch.randn(self.dim, generator=generator))
        return torch.stack(rows)

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        return [self.encode([text, *text.split()]) for text in texts]


def toy_task(rule: str, words: Sequence[str] = WORDS) -> Task:
    """Words in, what a rule makes of them out; the last word is for tests."""
    examples = [Example(word, (RULES[rule](word),)) for word in words]
    descriptions = (f"Apply {rule} to the word.", f"What does {rule} give for this word?")
    return Task(rule, "words", f"Apply {rule}.", descriptions, tuple(examples[:-1]), tuple(examples[-1:]))


def toy_tasks(count: int = len(RULES)) -> list[Task]:
    return [toy_task(rule) for rule in list(RULES)[:count]]


def toy_network(targets: Sequence[TargetModule], **changes: Any) -> Hypernetwork:
    """A small hypernetwork, always the same."""
    sizes = {"rank": 2, "alpha": 4.0, "latent_size": 8, "hidden_size": 16, "dropout": 0.1, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Hypernetwork(targets, Architecture(**{"task_dim": HashEncoder.dim, **sizes}))


def toy_adapters(targets: Sequence[TargetModule], count: int, rank: int = 2) -> list[LoRA]:
    """Adapters as a training may leave them."""
    generator = torch.Generator().manual_seed(4)
    loras = []
    for _ in range(count):
        factors = {
            t.name: LoraFactors(
                torch.randn(rank, t.in_features, generator=generator) / 8,
                torch.randn(t.out_features, rank, generator=generator) / 8,
            )
            for t in targets
        }
        loras.append(LoRA(factors, 2.0 * rank))
    return loras


def toy_backbone(model: str | Path) -> Backbone:
    return load_backbone(str(model), device="cpu", dtype=torch.float32)


def run_lora(backbone: Backbone, folder: Path, **settings: Any) -> tuple[list[Tensor], RunSummary]:
    """A LoRA on the last two layers, so that the frozen prefix is cached; (its factors, how the run went)."""
    config = LoraTrainingConfig(**settings)
    targets = backbone.shape.select(MODULES, 2)
    lora, summary = train_lora(
        backbone, toy_tasks(), targets, folder, config, rank=2, alpha=4.0, show_progress=False
    )
    return [t for f in lora.factors.values() for t in f], summary


def run_hypernetwork(backbone: Backbone, folder: Path, **settings: Any) -> tuple[list[Tensor], RunSummary]:
    """A hypernetwork end to end, with every random part of its objective."""
    random_parts = {"contrastive_weight": 0.5, "description_dropout": 0.2, "embedding_noise": 0.1}
    config = HypernetworkTrainingConfig(**{"learning_rate": 1e-3, **random_parts, **settings})
    network = toy_network(backbone.shape.select(MODULES, 2))
    summary = train_hypernetwork(
        network, backbone, HashEncoder(), toy_tasks(), folder, config, show_progress=False
    )
    return list(network.state_dict().values()), summary


def run_reconstruction(backbone: Backbone, folder: Path, **settings: Any) -> tuple[list[Tensor], RunSummary]:
    """A hypernetwork that reproduces one adapter a task."""
    config = HypernetworkTrainingConfig(objective="reconstruction", **{"learning_rate": 1e-3, **settings})
    targets = backbone.shape.select(MODULES, 2)
    network = toy_network(targets)
    adapters = toy_adapters(targets, len(RULES))
    summary = train_reconstruction(
        network, HashEncoder(), toy_tasks(), adapters, folder, config, show_progress=False
    )
    return list(network.state_dict().values()), summary


def label_task() -> Task:
    """A closed set of labels: does a word begin in the first half of the alphabet?"""
    examples = [Example(word, ("f" if word[0] < "f" else "l",)) for word in WORDS]
    return Task("half", "words", "Which half?", ("Which half?",), tuple(examples[:-1]), tuple(examples[-1:]))


def run_expert(backbone: Backbone, folder: Path, **settings: Any) -> tuple[list[Tensor], RunSummary]:
    """An expert on sampled answers, rewarded for how many letters of the word they repeat."""
    config = ExpertTrainingConfig(
        **{"samples": 3, "max_new_tokens": 3, "least_success": 0, "most_success": 1, **settings}
    )
    trained = train_expert(
        backbone,
        toy_basis(backbone),
        toy_tasks(),
        folder,
        config,
        reward=lambda example, answer: len(set(example.input) & set(answer)) / 8,
        show_progress=False,
    )
    return list(trained.expert.z.values()), trained.summary


def run_evolution(backbone: Backbone, folder: Path, **settings: Any) -> tuple[list[Tensor], RunSummary]:
    """An expert without gradients, on labels and on greedy answers."""
    config = ExpertTrainingConfig(
        objective="evolution",
        **{"population": 4, "max_new_tokens": 3, "least_success": 0, "most_success": 1, **settings},
    )
    tasks = [label_task(), toy_task("upper")]
    trained = train_expert(backbone, toy_basis(backbone), tasks, folder, config, show_progress=False)
    return list(trained.expert.z.values()), trained.summary


def toy_basis(backbone: Backbone) -> dict[str, Decomposition]:
    """Decompositions of all linear weights."""
    names = [t.name for t in backbone.shape.targets]
    return {name: decompose(dense_weight(backbone.model.get_submodule(name))) for name in names}


TRAININGS = {
    "lora": run_lora,
    "hypernetwork": run_hypernetwork,
    "reconstruction": run_reconstruction,
    "expert": run_expert,
    "evolution": run_evolution,
}


def main() -> None:
    kinds, model, folder, settings = sys.argv[1:]
    torch.set_num_threads(1)
    backbone = toy_backbone(model)
    try:
        for kind in kinds.split(","):
            TRAININGS[kind](backbone, Path(folder) / kind, **json.loads(settings))
    except ShoalError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
