"""The page that `unseen_tasks.py` writes: scores, paired differences, steering margins, training, answers."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from _machine import table
from _unseen_tasks_rows import SALAD

from shoal.evaluation.baselines import GIBBERISH, NONE, OTHER, RIGHT
from shoal.evaluation.label_sets import SUFFIX
from shoal.evaluation.reports import METRICS, MethodResult, Report, cell
from shoal.tasks.answer_kinds import has_labels
from shoal.tasks.loading import Task

ECHO, BASE, DESCRIBED, SHOTS = "echo", "base", "base + description", "base + 3 examples"
MULTI_TASK, NEAREST, ORACLE = "multi-task LoRA", "nearest-task LoRA", "oracle LoRA"
TUNED_ORACLE = "oracle LoRA, tuned rate"
DESCRIBED_MULTI_TASK = "multi-task LoRA, prompted with the description"
INPUTS = "Text-to-LoRA, trained on 16 inputs without answers"
FEW_SHOT = "Text-to-LoRA, refined on 16 examples"
LONG_WORDS = 10  # mean words of a long task's references
MOST_OF_ONE, MOST_OF_REFERENCES = 0.8, 0.6  # shares of one answer


def page(report: Report) -> str:
    """Markdown; tables of rows that the report lacks are shorter or left out."""
    names = [r.name for r in report.results]
    parts = [f"# Unseen tasks, {report.base_model}", report.to_markdown(RIGHT if RIGHT in names else None)]
    if RIGHT in names:
        parts += [text for text in (_differences(report, names), _margins(report, names)) if text]
        if DESCRIBED in names and ORACLE in names:
            parts.append(_share_of_the_way(report))
    notes = report.notes
    parts.append(_answer_facts(notes["answers"]))
    if notes["description_spread"] is not None:
        parts.append(
            f"Between descriptions of one task, {RIGHT}'s ROUGE-L has a standard deviation of "
            f"{100 * notes['description_spread']:.1f} points on the median task."
        )
    parts.append(
        f"{RIGHT} is the mean over {notes['descriptions']} descriptions a task and {notes['hypernetworks']} "
        f"trained hypernetwork(s); seed {notes['seed']}; answers of up to {notes['max_new_tokens']} tokens; "
        f"{notes['machine']}."
    )
    parts.append("Trained on:\n\n" + "\n".join(f"* {n}: {what}" for n, what in notes["trained_on"].items()))
    parts.append(f"Command: `{notes['command']}`")
    shown = [n for n in (DESCRIBED, MULTI_TASK, RIGHT) if n in names]
    if shown:
        parts.append("## Answers\n\nTo the first test example of every task.\n\n" + _answers(report, shown))
    return "\n\n".join(parts) + "\n"


def answer_facts(results: Sequence[MethodResult], tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Row -> what its answers are like; `samples` must hold all of them."""
    echoed = next((r.scores["rouge_l"] for r in results if r.name == ECHO), None)
    closed = [task.name for task in tasks if has_labels(task)]
    found: dict[str, dict[str, Any]] = {}
    for row in results:
        ratios, fallen, counted = [], 0, 0
        for name, answers in row.samples.items():
            references = [a.references[0] for a in answers]
            if sum(len(text.split()) for text in references) >= LONG_WORDS * len(references):
                ratios += [len(a.answer.split()) / max(1, len(a.references[0].split())) for a in answers]
            if name in closed and _largest_share(references) < MOST_OF_REFERENCES:
                counted += 1
                fallen += _largest_share([a.answer for a in answers]) > MOST_OF_ONE
        scores = row.scores["rouge_l"]
        below = None if echoed is None else [name for name in scores if scores[name] < echoed[name]]
        found[row.name] = {
            "median_length_ratio": statistics.median(ratios) if ratios else None,
            "closed_tasks": counted,
            "of_one_answer": fallen,
            "below_echo": below,
        }
    return found


def _largest_share(texts: Sequence[str]) -> float:
    return max(Counter(texts).values()) / len(texts)


def _answer_facts(facts: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            "-" if own["median_length_ratio"] is None else f"{own['median_length_ratio']:.2f}",
            f"{own['of_one_answer']} of {own['closed_tasks']}",
            "-" if own["below_echo"] is None else str(len(own["below_echo"])),
        ]
        for name, own in facts.items()
    ]
    header = [
        "answers (of the first repetition)",
        f"median length / reference's, tasks of {LONG_WORDS} words and more",
        f"closed tasks of one answer (> {MOST_OF_ONE:.0%})",
        "tasks below echo",
    ]
    return table(header, rows)


def _differences(report: Report, names: Sequence[str]) -> str:
    rows = [
        [f"{RIGHT} minus {name}", *(cell(report.difference(RIGHT, name, m), m) for m in METRICS)]
        for name in (DESCRIBED, MULTI_TASK, DESCRIBED_MULTI_TASK, NEAREST, ORACLE, TUNED_ORACLE)
        if name in names
    ]
    pairs = [(FEW_SHOT, RIGHT), (INPUTS, RIGHT)]
    pairs += [(RIGHT + SUFFIX, name + SUFFIX) for name in (DESCRIBED, MULTI_TASK, DESCRIBED_MULTI_TASK, NONE)]
    for one, other in pairs:
        if one in names and other in names:
            cells = (cell(report.difference(one, other, m), m) for m in METRICS)
            rows.append([f"{one} minus {other}", *cells])
    return table(["paired over tasks", *METRICS.values()], rows) if rows else ""


def _margins(report: Report, names: Sequence[str]) -> str:
    rows = [
        [
            f"{name.removeprefix(RIGHT + ', ')}, minus right",
            cell(report.difference(name, RIGHT, "nll"), "nll"),
        ]
        for name in (OTHER, GIBBERISH, SALAD, NONE)
        if name in names
    ]
    return table(["steering margin", "nats per token"], rows) if rows else ""


def _share_of_the_way(report: Report) -> str:
    """How far adapters get from the described prompt to the LoRAs that were trained on the task itself."""
    mean = {result.name: result.intervals["rouge_l"].mean for result in report.results}
    low, sentences = mean[DESCRIBED], []
    for oracle in (ORACLE, TUNED_ORACLE):
        if oracle not in mean:
            continue
        said = [
            f"{name} goes {100 * (mean[name] - low) / (mean[oracle] - low):.0f}%"
            for name in (RIGHT, RIGHT + SUFFIX, INPUTS, FEW_SHOT)
            if name in mean
        ]
        sentences.append(f"Of the way from {DESCRIBED} to the {oracle} in ROUGE-L " + "; ".join(said) + ".")
    return " ".join(sentences)


def _answers(report: Report, shown: Sequence[str]) -> str:
    header = ["task", "input", "right", *shown]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for task in report.tasks:
        first = [report.result(name).samples[task][0] for name in shown]
        texts = [task, first[0].input, first[0].references[0], *(a.answer for a in first)]
        lines.append("| " + " | ".join(_shortened(text) for text in texts) + " |")
    return "\n".join(lines)


def _shortened(text: str, limit: int = 120) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)
