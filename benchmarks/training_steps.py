"""What each device of fast training is worth: LoRA steps as they ship against steps with one device changed.

    python benchmarks/training_steps.py

A step is forward, backward, clipping and AdamW; speeds are in real (unpadded) tokens per second, and a ratio
below 1 says that training was slower with the change. All ways take turns batch by batch over the same
examples, and who is first moves on, so that a noisy machine is noisy for all. The changes:

* random order: the same examples, dealt into batches whatever their lengths;
* logits of every position: the loss of `transformers` itself, with labels on the answers alone;
* float32: the frozen weights, and so every activation;
* fused attention: `scaled_dot_product_attention` in place of the plain product;
* compiled layers: `torch.compile` of every decoder layer, with dynamic lengths. The first two steps compile;
  they are timed apart, and use no cache of an earlier run;
* no prefix cache: where only the last 8 layers are adapted, those below run for every batch, without
  gradients. The cache is filled before it is timed, as one pass over the data does.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch._inductor.config
from _machine import DATA, machine, table
from hypernetwork_step import Step
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError, reason
from shoal.inference.forward import adapted, pad_sequences
from shoal.models.backbone import Backbone, load_backbone
from shoal.models.modules import TargetModule
from shoal.tasks.loading import load_split
from shoal.training.batches import BatchOrder, Corpus, TokenisedExample, tokenise
from shoal.training.lora import LoraObjective, set_for_training
from shoal.training.prefix_cache import PrefixCache

UNCOUNTED = 2  # steps of every way, before they take turns
ALL, LAST = "all layers, q v, rank 8", "last 8 layers, q k v o, rank 16"
SHIPPED, COMPILED = "as shipped", "compiled layers"


@dataclass(frozen=True)
class Way:
    """A step, what is replaced while it is taken, and (seconds, real tokens) of each time that counts."""

    step: Step
    replaced: Callable[[], AbstractContextManager] = nullcontext
    taken: list[tuple[float, int]] = field(default_factory=list)

    def take(self, number: int) -> tuple[float, int]:
        with self.replaced():
            return self.step.seconds(number)


class RandomOrder:
    """The examples of an order's first batches, dealt again whatever their lengths."""

    def __init__(self, order: BatchOrder, batches: int) -> None:
        examples = [example for number in range(batches) for example in order.batch(number)]
        random.Random(0).shuffle(examples)
        self._batches = [examples[number::batches] for number in range(batches)]

    def batch(self, step: int) -> list[TokenisedExample]:
        return self._batches[step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24, help="of every way, after two that are not counted")
    parser.add_argument("--compile-limit", type=int, default=300, help="seconds; after them it has failed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    try:
        tasks = random.Random(args.seed).sample(load_split(args.data).train, args.tasks)
    except ShoalError as error:
        parser.error(str(error))
    backbone = load_backbone(dtype=torch.bfloat16)
    torch._inductor.config.force_disable_caches = True
    config = LoraTrainingConfig(steps=args.steps, batch_size=args.batch, seed=args.seed)
    corpus = tokenise(tasks, backbone, config.max_length)
    with ExitStack() as stack:
        settings = {
            ALL: ways_of_all_layers(backbone, corpus, config, stack),
            LAST: ways_of_last_layers(backbone, corpus, config),
        }
        compiling = warm_up(settings, args.compile_limit)
        graphs = counters["stats"]["unique_graphs"]
        take_turns([way for ways in settings.values() for way in ways.values()], args.steps)
        graphs_later = counters["stats"]["unique_graphs"] - graphs
    tokens = sum(tokens for _, tokens in settings[ALL][SHIPPED].taken)
    print(f"batch {args.batch}, {args.steps} batches, {tokens} tokens; {machine(backbone.dtype)}\n")
    header = ["LoRA step", "median s", "real tokens per second", "ratio", "95% interval"]
    print(table(header, [row for setting, ways in settings.items() for row in rows_of(setting, ways)]))
    print(f"\ntorch.compile: {compiling}")
    if COMPILED in settings[ALL]:
        print(
            f"It made {graphs} graphs in these, and {graphs_later} more in the {args.steps} steps that count."
        )


def ways_of_all_layers(
    backbone: Backbone, corpus: Corpus, config: LoraTrainingConfig, stack: ExitStack
) -> dict[str, Way]:
    """Ways to train all layers; on the stack, their models are set for training, but for fused attention."""
    fused, compiled = backbone.twin(), backbone.twin()
    for layer in compiled.layers:
        layer.compile(dynamic=True)
    whole = load_backbone(dtype=torch.float32)
    for model in (backbone, compiled, whole):
        stack.enter_context(set_for_training(model))

    def step(model: Backbone) -> Step:
        return step_of(model, corpus, model.shape.select(("q_proj", "v_proj"), None), 8, config)

    with patch(
        "shoal.training.lora.BatchOrder", lambda *given: RandomOrder(BatchOrder(*given), config.steps)
    ):
        shuffled = step(backbone)
    every_logit = partial(patch.object, PrefixCache, "answer_losses", loss_of_every_position)
    return {
        SHIPPED: Way(step(backbone)),
        "random order": Way(shuffled),
        "logits of every position": Way(step(backbone), every_logit),
        "float32": Way(step(whole)),
        "fused attention": Way(step(fused)),
        COMPILED: Way(step(compiled)),
    }


def ways_of_last_layers(backbone: Backbone, corpus: Corpus, config: LoraTrainingConfig) -> dict[str, Way]:
    """With the prefix cache, filled, and without."""
    targets = backbone.shape.select(("q_proj", "k_proj", "v_proj", "o_proj"), 8)
    cache = PrefixCache(backbone, min(target.layer for target in targets))
    order = BatchOrder(corpus, config.batch_size, config.seed)
    with patch("shoal.training.lora.PrefixCache", lambda *given: cache):
        cached = step_of(backbone, corpus, targets, 16, config)
    for number in range(config.steps):
        examples = order.batch(number)
        pairs = [(e.prompt, e.completion) for e in examples]
        cache.hidden(examples, pad_sequences(pairs, backbone.end_of_turn, backbone.device))
    with patch("shoal.training.lora.PrefixCache", lambda model, start: PrefixCache(model, 0)):
        return {SHIPPED: Way(cached), "no prefix cache": Way(step_of(backbone, corpus, targets, 16, config))}


def step_of(
    backbone: Backbone, corpus: Corpus, targets: Sequence[TargetModule], rank: int, config: LoraTrainingConfig
) -> Step:
    lora = LoRA.identity(targets, rank, 2.0 * rank, generator=torch.Generator().manual_seed(config.seed))
    return Step(LoraObjective(backbone, corpus, targets, lora, config), config.clip_norm)


def loss_of_every_position(
    cache: PrefixCache, examples: Sequence[TokenisedExample], adapters: LoRA, config: LoraTrainingConfig
) -> tuple[Tensor, int]:
    """The loss that `transformers` computes, in place of `PrefixCache.answer_losses`."""
    backbone = cache._backbone
    batch = pad_sequences([(e.prompt, e.completion) for e in examples], backbone.end_of_turn, backbone.device)
    labels = batch.ids.masked_fill(~batch.answer, -100)
    mask = None if bool(batch.real.all()) else batch.real.long()
    with adapted(backbone, adapters):
        loss = backbone.model(input_ids=batch.ids, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss.expand(len(examples)), batch.tokens


def warm_up(settings: dict[str, dict[str, Way]], limit: int) -> str:
    """Take the steps that do not count; what compiling took, or why there is no compiled way any more."""
    for ways in settings.values():
        for name, way in ways.items():
            for number in range(UNCOUNTED if name != COMPILED else 0):
                way.take(number)
    try:
        with time_limit(limit):
            compiling = sum(settings[ALL][COMPILED].take(number)[0] for number in range(UNCOUNTED))
    except (TorchDynamoException, TimeoutError) as error:
        del settings[ALL][COMPILED]
        return f"failed: {reason(error)}."
    return f"the first {UNCOUNTED} steps took {compiling:.0f} s."


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A `TimeoutError` after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def take_turns(ways: list[Way], steps: int) -> None:
    """Every way takes every step once; who is first moves on."""
    for number in range(steps):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            way.taken.append(way.take(number))


def rows_of(setting: str, ways: dict[str, Way]) -> list[list[str]]:
    """One row a way: its speed, and its ratio to the shipped way's with a bootstrap interval over turns."""
    steps = len(ways[SHIPPED].taken)
    drawn = np.vstack([np.arange(steps), np.random.default_rng(0).integers(steps, size=(2000, steps))])
    speeds = {}
    for name, way in ways.items():
        seconds, tokens = np.array(way.taken).T
        speeds[name] = tokens[drawn].sum(1) / seconds[drawn].sum(1)
    rows = []
    for name, way in ways.items():
        ratios = speeds[name] / speeds[SHIPPED]
        low, high = np.quantile(ratios[1:], [0.025, 0.975])
        median = statistics.median(seconds for seconds, _ in way.taken)
        interval = "" if name == SHIPPED else f"{low:.2f} to {high:.2f}"
        rows.append(
            [f"{setting}: {name}", f"{median:.2f}", f"{speeds[name][0]:.0f}", f"{ratios[0]:.2f}", interval]
        )
    return rows


if __name__ == "__main__":
    main()
