"""Two skills on one input: an adapter for each part, only the pair scored, to the letter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

from _merging_bench import Bench, inputs_of

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import merge
from shoal.adapters.merging.closed_form import RANK
from shoal.inference.covariances import input_covariances
from shoal.tasks.loading import Example, Task
from shoal.tasks.procedural.catalogue import procedural_tasks

Rule = Callable[[list[str]], list[str]]
ORDERS: Mapping[str, Rule] = {
    "sort": sorted,
    "reverse": lambda items: items[::-1],
    "drop last": lambda items: items[:-1],
}
FORMS: Mapping[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "bars": lambda text: text.replace(", ", " | "),
}
PAIRS = tuple((order, form) for order in ORDERS for form in FORMS)
SELECTION = 12  # examples of a pair that choose a weight
WEIGHTS = (0.5, 0.75, 1.0)
LONGEST = 4  # items


def made(name: str, order: str | None, form: str | None) -> Task:
    """A task on lists of things: an order, a form, or both."""
    source = next(t for t in procedural_tasks(size=400, test_size=100) if t.name == "list-sort")

    def answered(example: Example) -> Example:
        items = example.input.split(", ")
        text = ", ".join(ORDERS[order](items) if order else items)
        return Example(example.input, (FORMS[form](text) if form else text,))

    def short(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(answered(e) for e in examples if e.input.count(",") < LONGEST)

    return Task(
        name=name.replace(" ", "_"),
        category="lists",
        definition=name,
        descriptions=(name,),
        train=short(source.train),
        test=short(source.test),
    )


def composed(bench: Bench, seed: int) -> None:
    """Measure every pair: parts, merges, random adapters, and a new LoRA on the selection examples."""
    parts = {name: made(name, name, None) for name in ORDERS} | {
        name: made(name, None, name) for name in FORMS
    }

    def parent(name: str) -> LoRA:
        own = replace(parts[name], train=parts[name].train[:-SELECTION])
        return bench.trained(f"part_{name.replace(' ', '_')}-{seed}", [own], seed=seed)

    @cache
    def measured(name: str) -> dict[str, object]:
        return input_covariances(bench.backbone, parent(name), inputs_of(parts[name], 16))

    for pair in PAIRS[: bench.args.pairs]:
        name = " and ".join(pair)
        task = made(name, *pair)
        chosen = [replace(task, train=task.train[-SELECTION:])]
        loras = [parent(part) for part in pair]
        unlike = [bench.random_like(lora, seed + number) for number, lora in enumerate(loras)]
        rows: dict[str, Callable[[], LoRA]] = {
            **{part: partial(parent, part) for part in pair},
            "mean": partial(bench.sum_of, loras, 0.5, RANK),
            "regmean": lambda loras=loras, pair=pair: (
                merge(
                    dict(zip(pair, loras, strict=True)),
                    covariances={part: measured(part) for part in pair},
                    start=bench.start,
                ).lora
            ),
        }
        for row, of in {"sum": loras, "sum of random adapters": unlike}.items():
            tried: dict[str, Callable[[], LoRA]] = {
                str(x): partial(bench.sum_of, of, x, RANK) for x in WEIGHTS
            }
            weight = bench.chosen(f"composed/{seed}/{name}/{row}", chosen, tried)
            rows[row] = tried[weight]
        rows["start"] = lambda: bench.start
        for row, make in rows.items():
            bench.scored(f"composed/{seed}/{name}/{row}", [task], make)
        if bench.args.new_steps:
            key = f"new_{name.replace(' ', '_')}-{seed}"
            settings = {"steps": bench.args.new_steps, "seed": seed}
            make_new = partial(bench.trained, key, chosen, **settings)
            bench.scored(f"composed/{seed}/{name}/new LoRA on selection", [task], make_new)
