"""Experts at work: a different z for every sample, long answers against merging, and candidates of a search.

    python benchmarks/experts.py

Experts scale every MLP weight. They are noise around z = 1: what is measured does not depend on their values.
The published way, for comparison, merges: it rebuilds every weight from its decomposition for each expert.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from _long_requests import COMPLETION, REQUEST
from _machine import machine, table
from torch import nn

from shoal.adapters.decomposition import Decompositions
from shoal.adapters.svf import ExpertVector, mix
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import MixtureSearchConfig
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import load_backbone
from shoal.transformer2.mixture_search import search_mixture
from shoal.transformer2.model import mlp_modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--components", type=int, default=128, help="of the truncated experts")
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 16, 64, 256], help="tokens of answers")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    backbone = load_backbone(device="cpu")
    names = mlp_modules(backbone.shape)
    whole = decompose_model(backbone.model, names)
    cut = decompose_model(backbone.model, names, components=args.components)
    print(f"{len(names)} MLP weights; {machine(backbone.dtype)}\n")
    print(forward_passes(backbone, {"all": whole, str(args.components): cut}, args), "\n")
    print(answers(backbone, cut, args), "\n")
    print(candidates(backbone, whole, args))


def forward_passes(backbone, bases: dict[str, Decompositions], args: argparse.Namespace) -> str:
    """One forward pass of a batch, the base model's and those with a z for every sample, taking turns."""
    batch = requests(backbone, args.samples)

    @torch.no_grad()
    def forward() -> None:
        answer_losses(backbone, batch)

    ways: dict[str, Callable[[], None]] = {"base model": forward}
    for kept, basis in bases.items():
        own = ExpertVector.stack(experts_of(basis, args.samples, args.seed))

        def attached(basis=basis, own=own) -> None:
            with attach_expert(backbone.model, basis, own):
                forward()

        ways[f"{args.samples} experts, {kept} components"] = attached
    seconds = timed(ways, args.repeats)
    base = seconds["base model"]
    rows = [[name, f"{1e3 * taken:.0f}", f"{taken / base:.2f}"] for name, taken in seconds.items()]
    return table([f"forward pass, {batch.tokens} tokens", "median ms", "x base"], rows)


def answers(backbone, basis: Decompositions, args: argparse.Namespace) -> str:
    """One answer with one expert: attached beside the weights, against merged into them for the answer."""
    (expert,) = experts_of(basis, 1, args.seed)
    ids = torch.tensor([backbone.encode_prompt(REQUEST.format(0))])
    fixed = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    rows = []
    for tokens in args.lengths:

        def generate(tokens=tokens) -> None:
            backbone.model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **fixed)

        def attached(generate=generate) -> None:
            with attach_expert(backbone.model, basis, expert):
                generate()

        def in_the_weights(generate=generate) -> None:
            with merged(backbone.model, basis, expert):
                generate()

        ways = {"base": generate, "attached": attached, "merged": in_the_weights}
        seconds = timed(ways, max(2, args.repeats // 5))
        ratios = [f"{seconds[name] / seconds['base']:.2f}" for name in ("attached", "merged")]
        rows.append([str(tokens), f"{1e3 * seconds['base']:.0f}", *ratios])
    columns = ["tokens of an answer", "base model, median ms", "attached, x base", "merged, x base"]
    return table(columns, rows)


@contextmanager
def merged(model: nn.Module, basis: Decompositions, expert: ExpertVector) -> Iterator[None]:
    """The expert in the weights: `W + U diag(s (z - 1)) V^T`, built anew; the old ones return."""
    pristine = {}
    for name, z in expert.z.items():
        weight, (u, s, vt) = model.get_submodule(name).weight, basis[name]
        pristine[weight] = weight.data
        weight.data = (weight.float() + (u.float() * (s * (z - 1))) @ vt.float()).to(weight.dtype)
    try:
        yield
    finally:
        for weight, data in pristine.items():
            weight.data = data


def candidates(backbone, basis: Decompositions, args: argparse.Namespace) -> str:
    """One iteration of a search, against rebuilding every weight for each candidate; the same shots."""
    shots = [
        (backbone.encode_prompt(REQUEST.format(number)), backbone.encode_completion("A short answer."))
        for number in range(args.shots)
    ]
    experts = experts_of(basis, args.experts, args.seed)
    weights = torch.full((args.experts,), 1 / args.experts)
    batch = pad_sequences(shots, backbone.end_of_turn, backbone.device)

    @torch.no_grad()
    def rebuilt() -> None:
        with merged(backbone.model, basis, mix(experts, weights)):
            answer_losses(backbone, batch)

    search = MixtureSearchConfig(population=args.population, iterations=1)
    ours = elapsed(lambda: search_mixture(backbone, basis, experts, shots, search)) / (args.population + 1)
    theirs = statistics.median(elapsed(rebuilt) for _ in range(args.repeats))
    rows = [["batched, no rebuild", f"{1e3 * ours:.0f}"], ["rebuilt for each", f"{1e3 * theirs:.0f}"]]
    ratio = f"Rebuilding takes {theirs / ours:.1f} x the time of a batched candidate (target: at least 10)."
    return table([f"a candidate on {args.shots} shots", "ms"], rows) + f"\n\n{ratio}"


def requests(backbone, samples: int):
    prompts = [backbone.encode_prompt(REQUEST.format(number)) for number in range(samples)]
    pairs = [(prompt, backbone.encode_completion(COMPLETION)) for prompt in prompts]
    return pad_sequences(pairs, backbone.end_of_turn, backbone.device)


def experts_of(basis: Decompositions, count: int, seed: int) -> list[ExpertVector]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ExpertVector({n: 1 + 0.01 * torch.randn(d.s.shape, generator=generator) for n, d in basis.items()})
        for _ in range(count)
    ]


def timed(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            times[name].append(elapsed(way))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def elapsed(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
