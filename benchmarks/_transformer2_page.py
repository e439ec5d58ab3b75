"""The page that `transformer2.py` writes: own tasks, two passes, dispatch, few-shot mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _expert_controls import IA3, LORA, recipe, skills
from _machine import table

from shoal.adapters.svf_files import StoredExpert
from shoal.transformer2.router_files import StoredProbe

BASE, BEST_PROMPT = "base model", "base model, best prompt"
ORACLE, RANDOM, UNIFORM = "own expert (oracle dispatch)", "random expert", "uniform mixture"
MADE_IN_CODE = {skill: "procedural" in recipe(skill) for skill in skills()}
PROBE, PROMPT = "Transformer², probe", "Transformer², asked by prompt"
FEW_SHOT, RANDOM_MIXTURE = "few-shot mixture", "random mixture"


def page(results: Mapping[str, Any]) -> str:
    """Markdown."""
    seeds = len(results["seeds"])
    parts = [
        "# Transformer² on SmolLM2-135M-Instruct",
        "What answers earn, in points of 100: a right label, or ROUGE-L, as each expert's reward says. "
        "Brackets are 95% bootstrap intervals over requests. Requests are `test` inputs behind descriptions "
        f"that were kept from dispatch; experts and controls are means over {seeds} training seeds.",
        "## Each expert on its own skill",
        _own_task(results),
        "The best prompt is chosen for each task on training examples, among six: the input alone, two "
        "descriptions, one that names the labels, three examples, and both.",
    ]
    if "two_passes" in results:
        parts += ["## Two passes", _two_passes(results)]
    if "few_shot" in results:
        parts += ["## Tasks that no expert was trained on", _few_shot(results)]
    measured: dict[tuple[str, str], list[str]] = {}
    for part, (where, command) in results["measured"].items():
        measured.setdefault((where, command), []).append(part.replace("_", " "))
    parts += [
        f"{', '.join(names)}: {where}. Command: `{command}`" for (where, command), names in measured.items()
    ]
    return "\n\n".join(parts) + "\n"


def card(results: Mapping[str, Any], stored: Mapping[str, StoredExpert], probe: StoredProbe) -> str:
    """The card of the experts that are shipped: data, recipe, tokens, time, scores, limits."""
    gains = {row["skill"]: row for row in results["own_task"]}
    first = next(iter(stored.values()))
    parts = [
        f"# Experts for {first.base_model}",
        "Expert vectors of Transformer²: each scales the 128 largest singular values of every MLP weight, "
        "11,520 numbers. All were trained by reinforcement learning on verifiable rewards, from z = 1, "
        "with the commands below; seed 0 is shipped, not the best seed. Scores are points of 100 on `test` "
        "inputs, means over the seeds, against the base model with the best of six prompts; "
        "brackets are 95% intervals over requests. They were printed by `benchmarks/transformer2.py`.",
    ]
    for skill, expert in stored.items():
        facts, row = expert.provenance, gains[skill]
        data = "" if MADE_IN_CODE[skill] else " --tasks DATA"
        parts.append(
            f"## {skill.replace('_', ' ')}\n\n"
            f"* Trained on: {', '.join(facts['tasks'])}.\n"
            f"* Reward: {facts['config']['reward']}; objective: {facts['config']['objective']}; "
            f"{facts['steps']} steps, {facts['tokens']:,} tokens, {facts['seconds']:.0f} s on one core.\n"
            f"* Score {points(row[ORACLE])}; base model {points(row[BASE])}, with its best prompt "
            f"{points(row[BEST_PROMPT])}: {points(row['gain'])} more.\n"
            f"* Command: `shoal train expert --config configs/experts/{skill}.yaml{data} --out {skill}`"
        )
    facts = probe.provenance
    parts += [
        "## dispatch\n\n"
        f"A linear probe of the mean hidden state before layer {probe.probe.layer}, trained on "
        f"{facts['requests']:,} requests. {100 * facts['accuracy']:.1f}% of {facts['test_requests']} "
        "with unseen descriptions and inputs are right, those of no skill included. Command: `shoal train "
        "dispatch --config configs/experts/dispatch.yaml --experts DIR --tasks DATA --out DIR/dispatch`",
        "## Limits\n\n"
        "Each expert was trained on a few narrow tasks of its skill, most of them made in code, in English. "
        "What is gained is in good part the form of answers: a bare label, a short answer. Requests of other "
        "tasks may get an expert that does not serve them.",
    ]
    return "\n\n".join(parts) + "\n"


def _own_task(results: Mapping[str, Any]) -> str:
    controls = results.get("controls", {})
    skilled = [{**row, **controls.get(row["skill"], {})} for row in results["own_task"]]
    names = [n for n in (BASE, BEST_PROMPT, ORACLE, IA3, LORA) if n in skilled[0]]
    rows = [
        [row["skill"].replace("_", " "), results["rewards"][row["skill"]]]
        + [f"{100 * row[n]['mean']:.1f}" for n in names]
        + [points(row["gain"])]
        for row in skilled
    ]
    means = [sum(row[n]["mean"] for row in skilled) / len(skilled) for n in names]
    gain = sum(row["gain"]["mean"] for row in skilled) / len(skilled)
    rows.append(["mean", "", *(f"{100 * m:.1f}" for m in means), f"{100 * gain:.1f}"])
    return table(["skill", "reward", *names, "expert minus best prompt"], rows)


def _two_passes(results: Mapping[str, Any]) -> str:
    two = results["two_passes"]
    rows = [[name, points(value)] for name, value in two["rows"].items()]
    answers = table([f"{two['matrix_requests']} requests of all skills, first seed", "points"], rows)
    chosen = [
        [
            name,
            points(two["accuracy"][name]),
            points(two["accuracy_otherwise_worded"][name]),
            points(two["against_own_expert"][name]),
            f"{100 * two['abstained_on_other_tasks'][name]:.0f}%",
            f"{100 * two['first_pass_share'][name]:.1f}%",
        ]
        for name in two["accuracy"]
    ]
    head = [
        f"dispatch, {two['requests']} requests",
        "right, %",
        f"right, %, of {two['otherwise_worded']} worded otherwise",
        "answers minus own expert's",
        "of other tasks' requests left to the base model",
        "first pass in an answer of 32 tokens",
    ]
    return answers + "\n\n" + table(head, chosen)


def _few_shot(results: Mapping[str, Any]) -> str:
    few = results["few_shot"]
    rows = [[name, points(value)] for name, value in few["rows"].items()]
    against = [[f"{FEW_SHOT} minus {name}", points(value)] for name, value in few["against"].items()]
    return (
        f"ROUGE-L on {', '.join(few['tasks'])} (the first {len(few['tasks'])} validation tasks of at most 8 "
        "answers); mixtures from 10 training examples.\n\n" + table(["ROUGE-L", "points"], rows + against)
    )


def points(found: Mapping[str, Any]) -> str:
    """Mean with its interval, in hundredths."""
    if found["low"] is None:
        return f"{100 * found['mean']:.1f}"
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
