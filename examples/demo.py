"""A sentence in, an adapter out, and the model's answers before and after: what `make demo` runs.

The descriptions and inputs in examples/tasks were written for this demo and never trained on. It needs no
network: model, encoder and hypernetwork are installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from shoal.errors import ShoalError
from shoal.evaluation.baselines import OTHER, RIGHT, other_description, right_description
from shoal.evaluation.evaluate import Method, Report, described, evaluate
from shoal.models.backbone import DEFAULT_MODEL
from shoal.tasks.loading import Task, load_task_directory
from shoal.text_to_lora.generator import TextToLoRA

TASKS = Path(__file__).parent / "tasks"
NAMES = ("party_size", "word_tone", "place_name", "fluent_question", "sort_words")
BASE, DESCRIBED = "base", "base + description"
SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=DEFAULT_MODEL)
    parser.add_argument("--hypernetwork", type=Path, help="another one than the shipped")
    parser.add_argument("--adapters", type=Path, default=Path("adapters"), help="where to keep an adapter")
    args = parser.parse_args(arguments)
    console = Console()

    tasks = load_task_directory(TASKS, NAMES)
    generator = TextToLoRA(args.base, hypernetwork=args.hypernetwork)
    if generator.checkpoint is None or not generator.trained:
        raise ShoalError(f"there is no trained hypernetwork for {args.base}; train one: shoal train --help")
    generate_adapters(generator, tasks, args.adapters)

    methods = [
        Method(BASE),
        Method(DESCRIBED, request=described),
        right_description(generator.emitter),
        other_description(generator.emitter, tasks),
    ]
    with console.status("Answering every input four ways, which takes a minute or two on a CPU ..."):
        report = evaluate(generator.backbone, tasks, methods, examples=8, max_new_tokens=24, samples=SHOWN)
    for task in tasks:
        console.print(side_by_side(report, task))
    console.print(scores(report))


def generate_adapters(generator: TextToLoRA, tasks: Sequence[Task], folder: Path) -> None:
    """Generate every task's adapter, say how long each took, and keep the first on disk."""
    base = generator.shape.base_model
    print(f"One description in, one LoRA adapter for {base} out, without training:\n")
    # This loads the encoder, so that no adapter below is timed with it.
    generator.generate("Write the word in capital letters.")
    adapters = [generator.generate(task.descriptions[0]) for task in tasks]
    for adapter in adapters:
        print(f"  {adapter.duration * 1000:4.0f} ms   {adapter.description}")
    path, lora = folder / tasks[0].name, adapters[0].lora
    adapters[0].save(path)
    print(
        f"\nEach has rank {lora.rank} in {len(lora.factors)} modules. The first is kept in {path} for PEFT."
    )
    print(f'Ask it something:  shoal ask "{tasks[0].test[0].input}" --adapter {path}\n')


def side_by_side(report: Report, task: Task) -> Table:
    """The first answers of the base model, with the description in its prompt, and of the adapted model."""
    title = f'\n"{task.descriptions[0]}"'
    table = Table(
        "input", "reference", "base model, told the description", "adapter", title=title, expand=True
    )
    before, after = report.result(DESCRIBED).samples[task.name], report.result(RIGHT).samples[task.name]
    for one, other in zip(before, after, strict=True):
        table.add_row(*(cut(text) for text in (one.input, one.references[0], one.answer, other.answer)))
    return table


def scores(report: Report) -> Markdown:
    """The table over all inputs, and what it says."""
    lead = {m: report.difference(RIGHT, DESCRIBED, m).mean for m in ("rouge_l", "exact_match", "nll")}
    won = sum([lead["rouge_l"] > 0, lead["exact_match"] > 0, lead["nll"] < 0])
    margin = report.difference(OTHER, RIGHT, "nll").mean
    verdict = "the description matters" if margin > 0 else "here the description did not help"
    return Markdown(
        f"{report.to_markdown()}\n\n"
        "Higher is better, except for NLL. The adapted model reads the input alone. It beats the base model "
        f"that is told the description in {won} of 3 scores. With another task's description its NLL is "
        f"{margin:+.2f} nats per token higher: {verdict}. These are {len(report.tasks)} tasks of a few "
        "inputs each, so the intervals are wide; README.md says what was measured on more."
    )


def cut(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


if __name__ == "__main__":
    try:
        main()
    except ShoalError as error:
        sys.exit(f"error: {error}")
