"""How often the router that ships finds the skill of everyday requests, in wordings that it never saw.

    python benchmarks/everyday_requests.py

`request_wordings.jsonl` (600 requests, which `shoal train dispatch` fits the router on, beside requests of
the experts' tasks) and `everyday_requests.jsonl` (200, which it is scored on and never fitted or chosen on)
were written apart from each other, without a look at the tasks or at the other file. A request of two skills
may be sent to either. Beside the router stands what the skill detector of descriptions says of the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from _machine import machine, table

from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.text_to_lora.skill_keywords import SKILLS
from shoal.text_to_lora.skills import SkillDetector
from shoal.transformer2.experts import ROUTER, SHIPPED
from shoal.transformer2.router import NONE, ProbeRouter
from shoal.transformer2.router_files import load_probe

ASKED = Path(__file__).with_name("everyday_requests.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help = "directory of a probe; by default that which ships"
    parser.add_argument("--router", type=Path, default=SHIPPED / DEFAULT_MODEL / ROUTER, help=help)
    args = parser.parse_args()
    asked, backbone = read(ASKED), load_backbone(DEFAULT_MODEL)
    found = chosen(backbone, args.router, asked)
    detected = [(d.skills or (NONE,))[0] for d in SkillDetector().detect_many([r["request"] for r in asked])]
    columns = [right(asked, found), right(asked, detected)]
    rows = [
        [skill, *(share([own[i] for i, r in enumerate(asked) if r["skill"] == skill]) for own in columns)]
        for skill in (*SKILLS, NONE)
    ]
    print(machine(backbone.dtype), "\n")
    print(table(["", "router that ships", "skill detector"], [*rows, ["all", *map(share, columns)]]))


def read(path: Path) -> list[dict]:
    """The requests of a file: `request`, `skill`, and in `also` others that would be right."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def chosen(backbone: Backbone, router: Path, requests: Sequence[dict]) -> list[str]:
    """The skill that a router chooses for each request."""
    decide = ProbeRouter(backbone.model, load_probe(router).probe).decide
    return [d.skill for d in decide(backbone.encode_prompts([r["request"] for r in requests]))]


def right(requests: Sequence[dict], skills: Sequence[str]) -> list[bool]:
    """Where the skill is one of those that are right."""
    return [skill in {r["skill"], *r.get("also", [])} for r, skill in zip(requests, skills, strict=True)]


def share(hits: Sequence[bool]) -> str:
    """How many of how many, and in percent."""
    return f"{sum(hits)} of {len(hits)} ({fmean(hits):.0%})"


if __name__ == "__main__":
    main()
