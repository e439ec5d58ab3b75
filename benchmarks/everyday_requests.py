"""How often a router finds the skill of everyday requests, in wordings that it never saw.

    python benchmarks/everyday_requests.py

`request_wordings.jsonl` (600 requests, which a probe of the base model's states is fitted on) and
`everyday_requests.jsonl` (200, which it is scored on and never fitted on) were written apart from each other,
without a look at the tasks or at the other file. A request of two skills may be sent to either. The layer is
chosen by five-fold cross-validation on the first file. Beside the probe stands what the skill detector of
descriptions says of the same requests.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from _machine import machine, table
from torch import Tensor

from shoal.models.backbone import DEFAULT_MODEL, load_backbone
from shoal.text_to_lora.skill_keywords import SKILLS
from shoal.text_to_lora.skills import SkillDetector
from shoal.transformer2.router import NONE, mean_states, train_probe

HERE = Path(__file__).parent
NAMES = (*SKILLS, NONE)
FOLDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    fitted, asked = (read(HERE / f"{name}.jsonl") for name in ("request_wordings", "everyday_requests"))
    backbone = load_backbone(DEFAULT_MODEL)
    labels = torch.tensor([NAMES.index(r["skill"]) for r in fitted])
    prompts = [backbone.encode_prompts([r["request"] for r in rows]) for rows in (fitted, asked)]
    states = {layer: [mean_states(backbone.model, own, layer) for own in prompts] for layer in args.layers}
    validated = {layer: cross_validated(own[0], labels, layer) for layer, own in states.items()}
    layer = max(validated, key=lambda number: validated[number])
    probe = train_probe(states[layer][0], labels, SKILLS, layer)
    found = [NAMES[i] for i in probe.probabilities(states[layer][1]).argmax(-1).tolist()]
    detected = [(d.skills or (NONE,))[0] for d in SkillDetector().detect_many([r["request"] for r in asked])]
    columns = [right(asked, found), right(asked, detected)]
    rows = [
        [skill, *(share([own[i] for i, r in enumerate(asked) if r["skill"] == skill]) for own in columns)]
        for skill in NAMES
    ]
    print(machine(backbone.dtype), "\n")
    print("cross-validated by layer:", {number: f"{score:.1%}" for number, score in validated.items()}, "\n")
    head = ["", f"probe of the states before layer {layer}", "skill detector"]
    print(table(head, [*rows, ["all", *map(share, columns)]]))


def read(path: Path) -> list[dict]:
    """The requests of a file: `request`, `skill`, and in `also` others that would be right."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def cross_validated(states: Tensor, labels: Tensor, layer: int) -> float:
    """Share of the requests that a probe finds which was not fitted on them."""
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    hits = []
    for out in range(FOLDS):
        probe = train_probe(states[fold != out], labels[fold != out], SKILLS, layer)
        hits += (probe.probabilities(states[fold == out]).argmax(-1) == labels[fold == out]).tolist()
    return fmean(hits)


def right(requests: Sequence[dict], skills: Sequence[str]) -> list[bool]:
    """Where the skill is one of those that are right."""
    return [skill in {r["skill"], *r.get("also", [])} for r, skill in zip(requests, skills, strict=True)]


def share(hits: Sequence[bool]) -> str:
    """How many of how many, and in percent."""
    return f"{sum(hits)} of {len(hits)} ({fmean(hits):.0%})"


if __name__ == "__main__":
    main()
