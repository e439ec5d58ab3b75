"""The ways to adapt a model that are compared, in one literal table: from a task to its predictor.

An adapter replaces the instruction, so its requests carry the input alone; the base model and Transformer²
read the task's first description in every request. Knows how each method is used; nothing of scores.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from shoal.config import LoraTrainingConfig, TextToLoRAConfig, Transformer2Config
from shoal.errors import ShoalError, UsageError
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.evaluate import described
from shoal.evaluation.predictors import Predictor
from shoal.integration import SakanaAIIntegration
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.text_to_lora.generator import TextToLoRA
from shoal.training.checkpoints import LOG_FILE
from shoal.training.lora import train_lora

GENERATIONS = 5  # adapters that the time of one is the median of


@dataclass(frozen=True, eq=False)
class Adapted:
    """A model that a method adapted to a task.

    Attributes:
        predictor: who answers.
        request: how an example is asked.
        seconds: from the task to the adapter; None where nothing is adapted.
        tokens_per_second: of training; None without any.
        losses: of every training step, nats per token.
        note: what a reader must know.
    """

    predictor: Predictor
    request: Callable[[Task, Example], str]
    seconds: float | None = None
    tokens_per_second: float | None = None
    losses: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Method:
    """One way to adapt.

    Attributes:
        title: what a report calls it.
        prepare: backbone and settings -> the function that adapts to a task; it loads what is loaded once.
        per_task: whether each task has an adapter of its own.
    """

    title: str
    prepare: Callable[[Backbone, BenchmarkConfig], Callable[[Task], Adapted]] = field(repr=False)
    per_task: bool = True


def _input_alone(task: Task, example: Example) -> str:
    return example.input


def _base(backbone: Backbone, config: BenchmarkConfig) -> Callable[[Task], Adapted]:
    adapted = Adapted(Predictor(backbone), described, note="no adapter; reads the description")
    return lambda task: adapted


def _lora(backbone: Backbone, config: BenchmarkConfig) -> Callable[[Task], Adapted]:
    sizes = TextToLoRAConfig()
    layers = min(sizes.num_layers_to_adapt or backbone.shape.num_layers, backbone.shape.num_layers)
    targets = backbone.shape.select(sizes.target_modules, layers)
    training = LoraTrainingConfig(
        steps=config.lora_steps,
        batch_size=config.lora_batch,
        checkpoint_every=config.lora_steps,
        seed=config.seed,
    )

    def adapt(task: Task) -> Adapted:
        if not task.train:
            raise UsageError(f"task {task.name} has no training examples, which a LoRA needs; leave it out")
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            lora, run = train_lora(
                backbone,
                [task],
                targets,
                Path(folder),
                training,
                rank=sizes.adapter_rank,
                alpha=float(sizes.adapter_alpha),
                show_progress=False,
            )
            seconds = time.perf_counter() - started
            lines = (Path(folder) / LOG_FILE).read_text("utf-8").splitlines()
        return Adapted(
            Predictor(backbone, lora),
            _input_alone,
            seconds,
            run.tokens / run.seconds,
            tuple(float(json.loads(line)["loss"]) for line in lines),
            f"{run.steps} steps of {config.lora_batch} examples of each task",
        )

    return adapt


def _text_to_lora(backbone: Backbone, config: BenchmarkConfig) -> Callable[[Task], Adapted]:
    generator = TextToLoRA(backbone=backbone)
    if not generator.trained:
        raise ShoalError(
            f"no hypernetwork is trained for {generator.shape.base_model}, so Text-to-LoRA has no adapters; "
            f"train one with: {generator.facts()['how_to_train']}"
        )
    generator.generate("A first description loads the encoder and warms the caches.")

    def adapt(task: Task) -> Adapted:
        description = task.descriptions[0]
        seconds = []
        for _ in range(GENERATIONS):
            generator.clear_cache()
            started = time.perf_counter()
            adapter = generator.generate(description)
            seconds.append(time.perf_counter() - started)
        model = Predictor(backbone, adapter.lora)
        return Adapted(model, _input_alone, statistics.median(seconds), note="one forward pass, no examples")

    return adapt


def _transformer2(backbone: Backbone, config: BenchmarkConfig) -> Callable[[Task], Adapted]:
    full_strength = Transformer2Config(expert_vector_dim=None, adaptation_strength=1.0)
    wrapped = SakanaAIIntegration().create_transformer2_model(backbone.model, full_strength)
    predictor = Predictor(backbone, wrapped=wrapped)
    if not wrapped.experts:
        note = "no experts are released: the mixture is the identity, and answers are the base model's"
        identity = Adapted(predictor, described, note=note)
        return lambda task: identity

    note = f"a first pass chooses one of {len(wrapped.experts)} experts, or none, for each request"
    wrapped.decide(
        torch.tensor(backbone.encode_prompts(["A first request warms the model."])).to(backbone.device)
    )

    def adapt(task: Task) -> Adapted:
        requests = [described(task, example) for example in task.test[:GENERATIONS]]
        prompts = [torch.tensor([ids]).to(backbone.device) for ids in backbone.encode_prompts(requests)]
        started = time.perf_counter()
        for ids in prompts:
            wrapped.decide(ids)
        seconds = (time.perf_counter() - started) / len(prompts)
        return Adapted(predictor, described, seconds, note=note)

    return adapt


METHODS: Mapping[str, Method] = {
    "base": Method("base + description", _base, per_task=False),
    "lora": Method("classic LoRA", _lora),
    "text-to-lora": Method("Text-to-LoRA", _text_to_lora),
    "transformer2": Method("Transformer²", _transformer2, per_task=False),
}


def method(name: str) -> Method:
    """One of the table.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]
