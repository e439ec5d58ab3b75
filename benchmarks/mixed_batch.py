"""A batch in which every sample has its own LoRA against the same batch with one LoRA for all.

    python benchmarks/mixed_batch.py

Both are attached, not merged. The adapters are noise too small to change an answer's length, so both ways
generate as many tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _long_requests import COMPLETION, REQUEST
from _machine import machine, table

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import stack
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import load_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modules", default="q_proj,v_proj")
    parser.add_argument("--tokens", type=int, default=24, help="generated for every sample")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    backbone = load_backbone()
    targets = backbone.shape.select(args.modules.split(","), None)
    generator = torch.Generator().manual_seed(args.seed)
    loras = [
        noise(LoRA.identity(targets, args.rank, 2.0 * args.rank, generator=generator), generator)
        for _ in range(args.samples)
    ]
    loras = [lora.to(backbone.device, backbone.dtype) for lora in loras]
    requests = [REQUEST.format(number) for number in range(args.samples)]
    pairs = [(backbone.encode_prompt(r), backbone.encode_completion(COMPLETION)) for r in requests]
    batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
    mixed = stack(loras)

    @torch.no_grad()
    def forward(lora) -> None:
        with attach(backbone.model, lora):
            answer_losses(backbone, batch)

    answers: dict[str, int] = {}

    def generate(name: str, adapters) -> None:
        made = generate_greedy(backbone, requests, adapters, max_new_tokens=args.tokens)
        answers[name] = sum(len(backbone.encode_completion(text)) - 1 for text in made)

    one, own = "one LoRA", f"{args.samples} LoRAs"
    passes = compared({one: lambda: forward(loras[0]), own: lambda: forward(mixed)}, args.repeats)
    answered = compared(
        {one: lambda: generate(one, loras[0]), own: lambda: generate(own, loras)}, max(2, args.repeats // 2)
    )
    rows = []
    for what, times in (
        (f"forward pass, {batch.tokens} tokens", passes),
        (f"{args.tokens} tokens each, greedy", answered),
    ):
        ratio = times[own] / times[one]
        rows.append([what, f"{times[one] * 1e3:.0f}", f"{times[own] * 1e3:.0f}", f"{ratio:.2f}"])
    print(f"{args.samples} samples, rank {args.rank}, {args.modules}; {machine(backbone.dtype)}\n")
    print(table(["median ms", one, own, "ratio (target: at most 1.25)"], rows))
    print(f"\nTokens generated: {answers[one]} with {one}, {answers[own]} with {own}.")


def noise(lora: LoRA, generator: torch.Generator) -> LoRA:
    factors = {
        name: LoraFactors(f.a, torch.empty_like(f.b).uniform_(-1e-4, 1e-4, generator=generator))
        for name, f in lora.factors.items()
    }
    return LoRA(factors, lora.alpha)


def compared(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each call; they take turns, and the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name in sorted(calls, reverse=bool(number % 2)):
            started = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


if __name__ == "__main__":
    main()
