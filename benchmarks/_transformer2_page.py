"""The page that `transformer2.py` writes: own tasks, two passes, dispatch, few-shot mixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _expert_controls import IA3, LORA, recipe
from _machine import table

from shoal.adapters.svf_files import StoredExpert
from shoal.text_to_lora.skill_keywords import SKILLS
from shoal.transformer2.router_files import StoredProbe

BASE, BEST_PROMPT = "base model", "base model, best prompt"
ORACLE, RANDOM, UNIFORM = "own expert (oracle dispatch)", "random expert", "uniform mixture"
PROBE, PROMPT = "Transformer², probe", "Transformer², asked by prompt"
FEW_SHOT, RANDOM_MIXTURE = "few-shot mixture", "random mixture"


UNSEEN = "unseen"


def ships(row: Mapping[str, Any]) -> bool:
    """The rule: an expert ships if the interval of its gain on unseen tasks of its skill lies above 0."""
    return bool(row["gain"]["low"] is not None and row["gain"]["low"] > 0)


def page(results: Mapping[str, Any]) -> str:
    """Markdown."""
    parts = [
        "# Transformer² on SmolLM2-135M-Instruct",
        "What answers earn, in points of 100: a right label, or ROUGE-L, as each expert's reward says. "
        "Brackets are 95% bootstrap intervals over requests. Requests are `test` inputs behind descriptions "
        "that were kept from dispatch; experts and controls are means over the training seeds "
        f"{_listed(results['seeds'])}. The best prompt is chosen for each task on training examples, among "
        "six: the input alone, two descriptions, one that names the labels, three examples, and both.",
    ]
    parts += [text for part, write in SECTIONS.items() if part in results for text in write(results)]
    measured: dict[tuple[str, str], list[str]] = {}
    for part, (where, command) in results["measured"].items():
        measured.setdefault((where, command), []).append(part.replace("_", " "))
    parts += [
        f"{', '.join(names)}: {where}. Command: `{command}`" for (where, command), names in measured.items()
    ]
    if left := [part for part in SECTIONS if part not in results] + ["controls"] * (
        "controls" not in results
    ):
        parts.append(
            f"Not measured for these experts: {', '.join(left)}. "
            f"`python benchmarks/transformer2.py --parts {' '.join(left)}` does."
        )
    return "\n\n".join(parts) + "\n"


def card(results: Mapping[str, Any], stored: Mapping[str, StoredExpert], probe: StoredProbe) -> str:
    """The card of the experts that are shipped: data, recipe, tokens, time, scores, limits."""
    own = {row["skill"]: row for row in results.get("own_task", ())}
    unseen = {row["skill"]: row for row in results.get(UNSEEN, ())}
    first = next(iter(stored.values()))
    parts = [
        f"# Experts for {first.base_model}",
        "Expert vectors of Transformer²: each scales the 128 largest singular values of every MLP weight, "
        "11,520 numbers. All were trained by reinforcement learning on verifiable rewards, from z = 1, "
        "with the commands below; seed 0 is shipped, not the best seed. Scores are points of 100 on `test` "
        "inputs, against the base model with the best of six prompts; brackets are 95% intervals over "
        "requests. They were printed by `benchmarks/transformer2.py`. " + RULE,
    ]
    for skill, expert in stored.items():
        facts = expert.provenance
        data = "" if "procedural" in recipe(skill) else " --tasks DATA"
        scores = [
            f"* {where}: {points(row[ORACLE])}; base model {points(row[BASE])}, with its best prompt "
            f"{points(row[BEST_PROMPT])}: {points(row['gain'])} more.\n"
            for where, row in (
                ("Its own tasks", own.get(skill)),
                (
                    f"Tasks that it never saw ({', '.join(unseen.get(skill, {}).get('tasks', ()))})",
                    unseen.get(skill),
                ),
            )
            if row
        ]
        parts.append(
            f"## {skill.replace('_', ' ')}\n\n"
            f"* Trained on: {', '.join(facts['tasks'])}.\n"
            f"* Reward: {facts['config']['reward']}; objective: {facts['config']['objective']}; "
            f"{facts['steps']} steps, {facts['tokens']:,} tokens, {facts['seconds']:.0f} s.\n"
            f"{''.join(scores)}"
            f"* Command: `shoal train expert --config configs/experts/{skill}.yaml{data} --out {skill}`"
        )
    facts = probe.provenance
    parts += [
        "## dispatch\n\n"
        f"A linear probe of the mean hidden state before layer {probe.probe.layer}, trained on "
        f"{facts['requests']:,} requests, {facts['everyday']} of them in people's own words "
        f"(`benchmarks/request_wordings.jsonl`). It knows {', '.join(probe.probe.skills)}; a request for a "
        f"skill without an expert is answered by the base model. {100 * facts['accuracy']:.1f}% of "
        f"{facts['test_requests']} requests of the experts' tasks and of others with unseen descriptions and "
        "inputs are right, those of no skill included. Command: `shoal train dispatch --config "
        "configs/experts/dispatch.yaml --experts DIR --tasks DATA --out DIR/dispatch`",
        "## Limits\n\n"
        "Each expert was trained on a few narrow tasks, most of them made in code, in English. What is "
        "gained is in good part the form of answers: a bare label, a short answer.",
    ]
    return "\n\n".join(parts) + "\n"


def _own_task(results: Mapping[str, Any]) -> list[str]:
    controls = results.get("controls", {})
    skilled = [{**row, **controls.get(row["skill"], {})} for row in results["own_task"]]
    names = [n for n in (BASE, BEST_PROMPT, ORACLE, IA3, LORA) if n in skilled[0]]
    rows = [
        [row["skill"].replace("_", " "), results["rewards"][row["skill"]], str(row[BASE]["n"])]
        + [f"{100 * row[n]['mean']:.1f}" for n in names]
        + [points(row["gain"])]
        for row in skilled
    ]
    head = ["skill", "reward", "requests", *names, "expert minus best prompt"]
    return ["## Experts that ship, each for a few tasks, on these tasks", table(head, rows)]


def _unseen(results: Mapping[str, Any]) -> list[str]:
    rows = [
        [row["skill"].replace("_", " "), ", ".join(row["tasks"]), str(row["requests"])]
        + [f"{100 * row[n]['mean']:.1f}" for n in (BASE, BEST_PROMPT, ORACLE)]
        + [points(row["gain"]), "yes" if ships(row) else "no"]
        for row in results[UNSEEN]
    ]
    head = ["skill", "tasks", "requests", BASE, BEST_PROMPT, "expert", "expert minus best prompt", "ships"]
    title = "## Experts for whole skills, on tasks that none of them saw"
    measured = {row["skill"] for row in results[UNSEEN]}
    left = [skill.replace("_", " ") for skill in SKILLS if skill not in measured]
    rest = f"Not trained or not measured: {', '.join(left)}." if left else ""
    seeds = "Training seeds and the examples that prompts are chosen on are those of the commands below."
    return [title, table(head, rows), f"{RULE} {seeds} {rest}".strip()]


def _dispatch(results: Mapping[str, Any]) -> list[str]:
    found = results["dispatch"]
    rows = [
        [
            name,
            points(row["own_tasks"]),
            points(row["everyday"]),
            f"{100 * row['none_at_other_tasks']:.0f}%",
            f"{100 * row['base_at_other_tasks']:.0f}%",
            f"{100 * row['first_pass_share']:.1f}%",
        ]
        for name, row in found["routers"].items()
    ]
    head = [
        "dispatch",
        f"right, %, of {found['requests']} requests of the experts' tasks",
        f"right, %, of {found['everyday']} everyday requests",
        f"`none` at {found['other_tasks']} requests of validation tasks",
        "of these left to the base model",
        "first pass in an answer of 32 tokens",
    ]
    return ["## Dispatch", table(head, rows)]


def _two_passes(results: Mapping[str, Any]) -> list[str]:
    two = results["two_passes"]
    rows = [[name, points(value)] for name, value in two["rows"].items()]
    answers = table([f"{two['matrix_requests']} requests of all skills, first seed", "points"], rows)
    against = [[name, points(value)] for name, value in two["against_own_expert"].items()]
    loss = table([f"{two['requests']} requests", "answers minus own expert's"], against)
    return ["## Two passes", answers, loss]


def _few_shot(results: Mapping[str, Any]) -> list[str]:
    few = results["few_shot"]
    rows = [[name, points(value)] for name, value in few["rows"].items()]
    against = [[f"{FEW_SHOT} minus {name}", points(value)] for name, value in few["against"].items()]
    return [
        "## Mixtures from ten examples of a new task",
        f"ROUGE-L on {', '.join(few['tasks'])} (the first {len(few['tasks'])} validation tasks of at most 8 "
        "answers); mixtures from 10 training examples.",
        table(["ROUGE-L", "points"], rows + against),
    ]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


RULE = (
    "An expert ships under the name of a skill if the interval of what it gains over the best prompt, on two "
    "tasks of the skill that no expert was trained on, lies above 0. A request for a skill without an expert "
    "is answered by the base model; an expert for a few tasks bears a name of its own and answers requests "
    "of these."
)
SECTIONS: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "own_task": _own_task,
    UNSEEN: _unseen,
    "dispatch": _dispatch,
    "two_passes": _two_passes,
    "few_shot": _few_shot,
}


def points(found: Mapping[str, Any]) -> str:
    """Mean with its interval, in hundredths."""
    if found["low"] is None:
        return f"{100 * found['mean']:.1f}"
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
