"""The eight shipped experts as one z, beside their uniform mixture, on requests of all skills."""

from __future__ import annotations

from functools import partial
from typing import Any

from _expert_controls import recipe, tasks_of
from _merging_bench import Bench

from shoal.adapters.merging.experts import merge_experts
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.svf import ExpertVector
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import DEFAULT_MODEL
from shoal.tasks.rewards import REWARDS
from shoal.transformer2.experts import SHIPPED, load_expert_set
from shoal.transformer2.router_recipe import TEST, TRAIN, LabelledRequest, labelled_requests

TOKENS = 24  # of an answer
REQUESTS = 10  # of every skill; those of docs/results/transformer2.md
SELECTION = 3  # of every skill, from `train` lists and other descriptions
METHODS: dict[str, tuple[tuple[str, dict[str, float]], ...]] = {
    "uniform mixture": (("linear", {}),),
    "sum": tuple(("task_arithmetic", {"lambda": x}) for x in (0.25, 0.4, 0.6, 0.8, 1.0)),
    "TIES": tuple(("ties", {"density": d, "lambda": x}) for d in (0.2, 0.5) for x in (1.0, 2.0)),
    "multislerp": (("multislerp", {}),),
}


def experts(bench: Bench, seed: int) -> None:
    """Measure one z of each method, its parameters chosen on requests that train."""
    shipped = load_expert_set(SHIPPED / DEFAULT_MODEL, bench.backbone.model)
    tasks = {skill: tasks_of(skill, data=bench.args.data) for skill in sorted(shipped.experts)}
    # The first of 50, as in the table of all experts.
    asked = labelled_requests(tasks, 50, TEST)
    requests = [r for s in tasks for r in [r for r in asked if r.skill == s][:REQUESTS]]
    chosen = labelled_requests(tasks, SELECTION, TRAIN)

    def merged(method: str, parameters: dict[str, float]) -> ExpertVector:
        plan = Recipe.of(method, tuple(shipped.experts), (), parameters)
        return merge_experts(plan, list(shipped.experts.values()))

    def earned(method: str, parameters: dict[str, float]) -> dict[str, Any]:
        expert, texts = merged(method, parameters), [r.text for r in requests]
        answers = generate_greedy(bench.backbone, texts, expert, basis=shipped.basis, max_new_tokens=TOKENS)
        scores = [_earned(r, a) for r, a in zip(requests, answers, strict=True)]
        return {"parameters": parameters, "scores": scores}

    def losses(candidates: tuple[tuple[str, dict[str, float]], ...]) -> dict[str, Any]:
        found = []
        for name, parameters in candidates:
            each = reference_losses(
                bench.backbone,
                [r.text for r in chosen],
                [r.example.outputs[0] for r in chosen],
                merged(name, parameters),
                basis=shipped.basis,
            )
            found.append(sum(each) / len(each))
        return {"losses": found, "chosen": min(range(len(found)), key=lambda i: found[i])}

    for row, candidates in METHODS.items():
        number = 0
        if len(candidates) > 1:
            number = bench.cell(f"choice/experts/{row}", partial(losses, candidates))["chosen"]
        bench.cell(f"experts/{row}", partial(earned, *candidates[number]))


def _earned(request: LabelledRequest, answer: str) -> float:
    return float(REWARDS[str(recipe(request.skill)["reward"])](request.example, answer))
