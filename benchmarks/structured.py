"""Answers in a format: the cost of a grammar on a step of 16 rows, and answers to generated JSON schemas.

    python benchmarks/structured.py [--model DIR] [--repeats 5] [--schemas 500]

The step: 16 rows of the embedded model go on with and without a format, in turns, and medians of the seconds
per step are compared. The schemas come from a seeded generator; the model answers each greedily.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from typing import Any

import jsonschema
from _machine import machine, table

from shoal.adapters.output_format import OutputFormat
from shoal.errors import UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Limits, Request
from shoal.inference.generate import generate_greedy
from shoal.inference.grammar import Grammar, GrammarCompiler
from shoal.inference.sampling import Sampling
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone

ROWS = 16
LONG = {"type": "array", "items": {"type": "string", "minLength": 20}, "minItems": 20}
FORMATS = {
    "JSON schema": OutputFormat.json_schema(LONG),
    "regular expression": OutputFormat.regex("[a-z]+( [a-z]+){60,200}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="steps of one measurement")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--answer-tokens", type=int, default=48)
    args = parser.parse_args()
    backbone = load_backbone(args.model)
    print(machine(backbone.dtype) + "\n")
    if args.repeats:
        steps(backbone, args.tokens, args.repeats)
    if args.schemas:
        schemas(backbone, args.schemas, args.answer_tokens)


def steps(backbone: Backbone, tokens: int, repeats: int) -> None:
    """Print the median seconds of a step, with each format against without one."""
    found: dict[str, list[float]] = {name: [] for name in ("none", *FORMATS)}
    engine = Engine(backbone, limits=Limits(max_batch=ROWS))
    step(engine, backbone, FORMATS["JSON schema"], 2)
    for _ in range(repeats):
        for name in found:
            found[name].append(step(engine, backbone, FORMATS.get(name), tokens))
    free = statistics.median(found["none"])
    rows = []
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        rows.append([name, f"{1000 * middle:.1f}", f"{100 * (middle / free - 1):+.1f}%"])
    print(table([f"format, {ROWS} rows", "ms per step", "against none"], rows) + "\n")


def step(engine: Engine, backbone: Backbone, wanted: OutputFormat | None, tokens: int) -> float:
    """Median seconds of a step in which all rows get a token."""
    for number in range(ROWS):
        prompt = backbone.encode_prompt(f"Number {number}: tell me of a town by the sea.")
        engine.submit(Request(prompt, max_tokens=tokens, sampling=Sampling(0.0), format=wanted))
    seconds = []
    while engine.busy:
        full = engine.state().running == ROWS
        begun = time.perf_counter()
        engine.step()
        if full and engine.state().running == ROWS:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def schemas(backbone: Backbone, count: int, tokens: int) -> None:
    """Print how many generated schemas compile, and how many of the answers that ended validate."""
    draw, compiler = random.Random(0), GrammarCompiler(backbone)
    compiled: list[tuple[dict[str, Any], Grammar]] = []
    counts: Counter[str] = Counter()
    for _ in range(count):
        schema = generated(draw, 3)
        try:
            compiled.append((schema, compiler.compile(OutputFormat.json_schema(schema))))
        except UsageError:
            counts["refused with an error"] += 1
    requests = [f"Example {number}: give me some data." for number in range(len(compiled))]
    answers = generate_greedy(
        backbone, requests, grammars=[grammar for _, grammar in compiled], max_new_tokens=tokens
    )
    for (schema, _), answer in zip(compiled, answers, strict=True):
        counts[verdict(schema, answer)] += 1
    print(table([f"{count} generated schemas", "number"], [[k, str(v)] for k, v in counts.most_common()]))


def verdict(schema: dict[str, Any], answer: str) -> str:
    try:
        jsonschema.validate(json.loads(answer), schema)
    except json.JSONDecodeError:
        return "not ended within the limit"
    except jsonschema.ValidationError:
        return "ended and does not validate"
    return "ended and validates"


def generated(draw: random.Random, depth: int) -> dict[str, Any]:
    """A random schema, now and then with a keyword that llguidance may not know."""
    kinds = ["string", "integer", "number", "boolean", "enum", "pattern"] + ["object", "array", "anyOf"] * (
        depth > 0
    )
    kind = draw.choice(kinds)
    if kind == "string":
        return {"type": "string", "maxLength": draw.randint(1, 12)}
    if kind in ("integer", "number"):
        low = draw.randint(-50, 50)
        return {"type": kind, "minimum": low, "maximum": low + draw.randint(0, 90)}
    if kind == "enum":
        return {"enum": draw.sample(["red", "green", 3, 4.5, None, True, "a b"], draw.randint(1, 4))}
    if kind == "pattern":
        return {"type": "string", "pattern": draw.choice(["^[a-c]{1,4}$", "^[0-9]{4}-[0-9]{2}$", "^x+y?$"])}
    if kind == "anyOf":
        return {"anyOf": [generated(draw, depth - 1) for _ in range(draw.randint(1, 3))]}
    if kind == "array":
        few = draw.randint(0, 2)
        found = {"type": "array", "items": generated(draw, depth - 1), "minItems": few, "maxItems": few + 1}
        return found | ({"uniqueItems": True} if draw.random() < 0.1 else {})
    if kind == "object":
        names = draw.sample(["name", "size", "tags", "when", "who"], draw.randint(1, 3))
        properties = {name: generated(draw, depth - 1) for name in names}
        required = [name for name in names if draw.random() < 0.7]
        closed = {"type": "object", "properties": properties, "required": required}
        return closed | {"additionalProperties": False}
    return {"type": "boolean"}


if __name__ == "__main__":
    main()
