"""Answers in a format: the cost of a grammar on a step of 16 rows, and answers to generated JSON schemas.

    python benchmarks/structured.py [--model DIR] [--steps 32] [--schemas 500]

The step: 16 rows go on together, and what the masks and states of their grammars take of each step is
compared with what the model and the choice of tokens take of the same step, in CPU time, on which other work
has little influence. Where the model runs on two cores, the grammar's share is twice as large. The schemas
come from a seeded generator; the model answers each greedily.
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
import torch
from _machine import machine, table

from shoal.adapters.output_format import OutputFormat
from shoal.errors import UsageError
from shoal.inference.decoding import Rows
from shoal.inference.generate import generate_greedy
from shoal.inference.grammar import Grammar, GrammarCompiler, mask_logits
from shoal.inference.sampling import Sampling, choose_tokens
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
    parser.add_argument("--steps", type=int, default=32, help="per format; 0 measures none")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--answer-tokens", type=int, default=48)
    args = parser.parse_args()
    backbone = load_backbone(args.model)
    print(machine(backbone.dtype) + "\n")
    if args.steps:
        steps(backbone, args.steps)
    if args.schemas:
        schemas(backbone, args.schemas, args.answer_tokens)


def steps(backbone: Backbone, tokens: int) -> None:
    """Print median CPU seconds per step of the model with the choice of tokens, and of the grammar."""
    compiler = GrammarCompiler(backbone)
    prompts = backbone.encode_prompts(
        [f"Number {number}: tell me of a town by the sea." for number in range(ROWS)]
    )
    rows = []
    for name, wanted in FORMATS.items():
        grammar = compiler.compile(wanted)
        model, held = measured(backbone, prompts, grammar, tokens)
        share = statistics.median(g / m for m, g in zip(model, held, strict=True))
        rows.append(
            [
                name,
                f"{1000 * statistics.median(model):.1f}",
                f"{1000 * statistics.median(held):.2f}",
                f"{100 * share:.1f}%",
            ]
        )
    print(table([f"format, {ROWS} rows", "model, CPU ms", "grammar, CPU ms", "grammar / model"], rows))


def measured(
    backbone: Backbone, prompts: list[list[int]], grammar: Grammar, tokens: int
) -> tuple[list[float], list[float]]:
    """CPU seconds per step: of the model with the choice of tokens, and of the grammars."""
    states = [grammar.begin() for _ in prompts]
    rules, numbers = [Sampling(temperature=0.0)] * ROWS, [0.0] * ROWS
    model, held = [], []
    rows = Rows(backbone, prompts)
    logits = rows.read()
    for _ in range(tokens):
        begun = time.process_time()
        masked = mask_logits(logits, states).logits
        middle = time.process_time()
        chosen = choose_tokens(masked, rules, numbers)
        after = time.process_time()
        for state, token in zip(states, chosen, strict=True):
            assert token is not None
            state.take(token)
        taken = time.process_time()
        logits = rows.step(torch.tensor(chosen))
        model.append(time.process_time() - taken + after - middle)
        held.append(middle - begun + taken - after)
    return model, held


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
