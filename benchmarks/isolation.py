"""Whether an answer depends on who else is in the batch: each request alone against all of them mixed.

    python benchmarks/isolation.py

Every request has an adapter of its own, from the shipped hypernetwork, and is answered greedily: alone, and
in several rounds among the others in another order each, joining and leaving as places come free. In float32
no answer may change. In bfloat16 sums round otherwise in a batch, and near ties may fall to the other side.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

import torch
from _machine import machine, table

from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Limits, Request
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.text_to_lora.generator import TextToLoRA

DTYPES = (torch.float32, torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer, at most")
    parser.add_argument("--max-batch", type=int, default=8)
    args = parser.parse_args()
    tasks = procedural_tasks(size=8, test_size=4)[: args.requests]
    loras = [a.lora for a in TextToLoRA().generate_many([t.definition for t in tasks])]
    rows = []
    for dtype in DTYPES:
        backbone = load_backbone(dtype=dtype)
        prompts = backbone.encode_prompts([t.test[0].input for t in tasks])
        requests = [
            Request(prompt, lora.to(dtype), args.tokens, sampling=Sampling(temperature=0.0))
            for prompt, lora in zip(prompts, loras, strict=True)
        ]
        alone = [answers(backbone, [r], 1)[0] for r in requests]
        changed = 0
        for seed in range(args.rounds):
            order = random.Random(seed).sample(range(len(requests)), len(requests))
            mixed = answers(backbone, [requests[i] for i in order], args.max_batch)
            different = [(i, text) for i, text in zip(order, mixed, strict=True) if text != alone[i]]
            changed += len(different)
            for i, text in different:
                print(f"{dtype} {tasks[i].name}: {alone[i]!r} became {text!r}", file=sys.stderr)
        rows.append([str(dtype).removeprefix("torch."), str(args.rounds * len(requests)), str(changed)])
    print(machine() + "\n")
    print(table(["base model in", "answers in mixed batches", "other than alone"], rows))


def answers(backbone: Backbone, requests: Sequence[Request], max_batch: int) -> list[str]:
    """Greedy answers, with at most so many in a batch."""
    engine = Engine(backbone, limits=Limits(max_batch=max_batch))
    tickets = [engine.submit(request) for request in requests]
    said = dict.fromkeys(tickets, "")
    while engine.busy:
        for event in engine.step():
            if event.error is not None:
                raise event.error
            if event.delta is not None:
                said[event.ticket] += event.delta.text
    return [said[ticket] for ticket in tickets]


if __name__ == "__main__":
    main()
