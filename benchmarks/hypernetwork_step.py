"""One SFT step of the hypernetwork against one of a multi-task LoRA, on the same batches.

    python benchmarks/hypernetwork_step.py

A step is forward, backward, clipping and AdamW. The two take turns batch by batch; who is first alternates.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import torch
from _machine import DATA, machine, table
from torch import nn

from shoal.adapters.lora import LoRA
from shoal.config import HypernetworkTrainingConfig, LoraTrainingConfig, TextToLoRAConfig
from shoal.models.backbone import load_backbone
from shoal.tasks.loading import load_split
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.heads import HEADS
from shoal.text_to_lora.shipped import new_hypernetwork
from shoal.text_to_lora.train import SftObjective
from shoal.training.batches import tokenise
from shoal.training.loop import adamw
from shoal.training.lora import LoraObjective, set_for_training

RANK, ALPHA = 8, 16


class Step:
    """An objective with its optimiser."""

    def __init__(self, objective, clip_norm: float) -> None:
        self._objective, self._clip_norm = objective, clip_norm
        self._optimizer = adamw(objective)

    def seconds(self, number: int) -> tuple[float, int]:
        """(time of one step, real tokens that it read)."""
        started = time.perf_counter()
        result = self._objective.loss(number)
        result.loss.backward()
        nn.utils.clip_grad_norm_(self._objective.module.parameters(), self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started, result.tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="after two that are not counted")
    parser.add_argument(
        "--examples-a-task", type=int, default=2, help="that share a description and its adapter"
    )
    parser.add_argument(
        "--contrastive-share", type=float, default=0.0, help="of the batch, read again under a wrong one"
    )
    parser.add_argument("--head", default="reader", choices=HEADS, help="default: the shipped one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    backbone = load_backbone()
    tasks = random.Random(args.seed).sample(load_split(args.data).train, args.tasks)
    targets = backbone.shape.select(("q_proj", "v_proj"), None)
    shared = {"steps": args.steps, "batch_size": args.batch, "seed": args.seed}
    shared["examples_a_task"] = args.examples_a_task
    corpus = tokenise(tasks, backbone, LoraTrainingConfig(**shared).max_length)
    torch.manual_seed(args.seed)
    lora = LoRA.identity(targets, RANK, ALPHA)
    encoder = TaskEncoder()
    sizes = TextToLoRAConfig(
        target_modules=("q_proj", "v_proj"),
        num_layers_to_adapt=None,
        adapter_rank=RANK,
        adapter_alpha=ALPHA,
        head=args.head,
    )
    network = new_hypernetwork(backbone.shape, sizes, encoder.dim).train()
    embeddings = Descriptions(description_reader(network, encoder, backbone), tasks)
    wrong = {"contrastive_weight": 0.5, "contrastive_share": args.contrastive_share}
    config = HypernetworkTrainingConfig(**shared, **(wrong if args.contrastive_share else {}))
    sft = SftObjective(network, backbone, corpus, embeddings, config)
    plain = LoraObjective(backbone, corpus, targets, lora, LoraTrainingConfig(**shared))
    steps = {"hypernetwork": Step(sft, 1.0), "multi-task LoRA": Step(plain, 1.0)}

    times: dict[str, list[float]] = {name: [] for name in steps}
    tokens = 0
    with set_for_training(backbone):
        for number in range(args.steps + 2):
            for name in sorted(steps, reverse=bool(number % 2)):
                seconds, read = steps[name].seconds(number)
                times[name].append(seconds)
            tokens += read if number >= 2 else 0
    rows = [
        [name, f"{statistics.median(taken[2:]):.2f}", f"{tokens / sum(taken[2:]):.0f}"]
        for name, taken in times.items()
    ]
    ratio = sum(times["hypernetwork"][2:]) / sum(times["multi-task LoRA"][2:])
    print(f"batch {args.batch}, {args.steps} batches; {machine(backbone.dtype)}\n")
    print(table(["SFT step", "median s", "real tokens per second"], rows))
    print(f"\nHypernetwork / multi-task LoRA, all batches: {ratio:.2f} x the time (target: at most 1.15).")


if __name__ == "__main__":
    main()
