"""Answers of random weights that a grammar holds to a format: each fits, whatever its neighbours are."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.output_format import MAX_CHOICES, MAX_SCHEMA_BYTES, OutputFormat
from shoal.errors import UsageError
from shoal.inference.generate import generate_greedy
from shoal.inference.grammar import GrammarCompiler, mask_logits
from shoal.models.backbone import Backbone, load_backbone

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE: dict[str, Any] = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}
GBNF = 'root ::= ("yes" | "no") "!"'


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def compiler(backbone: Backbone) -> GrammarCompiler:
    return GrammarCompiler(backbone)


def fits_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


FORMATS: dict[str, tuple[OutputFormat, Callable[[str], object]]] = {
    "choice": (
        OutputFormat.choice(["apple", "apple pie", ' "q"\n']),
        {"apple", "apple pie", ' "q"\n'}.__contains__,
    ),
    "regex": (OutputFormat.regex(r" \d{3}-[a-f]{1,4}"), re.compile(r" \d{3}-[a-f]{1,4}").fullmatch),
    "schema": (OutputFormat.json_schema(PERSON), fits_person),
    "gbnf": (OutputFormat.grammar(GBNF), {"yes!", "no!"}.__contains__),
    "lark": (OutputFormat.grammar('start: "a" start | "b"'), re.compile("a*b").fullmatch),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_answer_of_random_weights_fits(
    kind: str, backbone: Backbone, compiler: GrammarCompiler
) -> None:
    wanted, fits = FORMATS[kind]
    requests = [f"request {i}" for i in range(4)]
    answers = generate_greedy(backbone, requests, grammars=compiler.compile(wanted), max_new_tokens=200)
    if kind == "lark":  # which has no longest answer
        assert all(fits(answer) or set(answer) == {"a"} for answer in answers)
    else:
        assert all(fits(answer) for answer in answers), answers


def test_rows_with_and_without_formats_are_as_alone(backbone: Backbone, compiler: GrammarCompiler) -> None:
    grammars = [compiler.compile(wanted) for wanted, _ in FORMATS.values()] + [None, None]
    requests = [f"number {i}" * (i + 1) for i in range(len(grammars))]
    together = generate_greedy(backbone, requests, grammars=grammars, max_new_tokens=40)
    for request, grammar, answer in zip(requests, grammars, together, strict=True):
        assert generate_greedy(backbone, [request], grammars=grammar, max_new_tokens=40) == [answer]


def test_an_adapter_answers_within_the_format(backbone: Backbone, compiler: GrammarCompiler) -> None:
    generator = torch.Generator().manual_seed(0)
    identity = LoRA.identity(backbone.shape.select(("q_proj", "v_proj"), None), 2, 8.0, generator=generator)
    factors = {
        n: LoraFactors(f.a, torch.randn(f.b.shape, generator=generator)) for n, f in identity.factors.items()
    }
    lora, grammar = LoRA(factors, identity.alpha), compiler.compile(OutputFormat.json_schema(PERSON))
    (answer,) = generate_greedy(backbone, ["who?"], lora, grammars=grammar, max_new_tokens=200)
    assert fits_person(answer)


def test_a_recursive_schema_is_followed_to_the_limit(backbone: Backbone, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(OutputFormat.json_schema(TREE))
    (answer,) = generate_greedy(backbone, ["x"], grammars=grammar, max_new_tokens=100)
    assert answer.startswith("{") and "next" in answer


def test_the_end_of_turn_comes_only_where_the_format_is_complete(
    backbone: Backbone, compiler: GrammarCompiler
) -> None:
    state = compiler.compile(OutputFormat.regex("ab?")).begin()
    end = backbone.end_of_turn

    def allowed() -> list[int]:
        masked = mask_logits(torch.zeros(1, backbone.model.config.vocab_size), [state]).logits
        return masked[0].isfinite().nonzero()[:, 0].tolist()

    (a,), (b,) = (backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in "ab")
    assert allowed() == [a]
    state.take(a)
    assert allowed() == sorted([b, end])
    state.take(b)
    assert allowed() == [end]


def test_an_end_of_turn_within_a_grammar_is_an_error(backbone: Backbone, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(OutputFormat.grammar('start: <|im_end|> "b"'))
    with pytest.raises(UsageError, match="end of turn within"):
        generate_greedy(backbone, ["x"], grammars=grammar)


def test_logits_without_formats_are_the_same_tensor() -> None:
    logits = torch.zeros(2, 3)
    assert mask_logits(logits, [None, None]).logits is logits


def test_compiled_formats_are_kept_apart_for_owners(compiler: GrammarCompiler) -> None:
    wanted = OutputFormat.choice(["kept", "apart"])
    mine = compiler.compile(wanted, "ada")
    assert compiler.compile(wanted, "ada") is mine and compiler.compile(wanted, "eve") is not mine


REFUSED: dict[str, tuple[Callable[[], OutputFormat], str]] = {
    "remote reference": (lambda: OutputFormat.json_schema({"$ref": "https://x.org/a.json"}), r"\$defs"),
    "enormous schema": (lambda: OutputFormat.json_schema({"title": "x" * 40_000}), str(MAX_SCHEMA_BYTES)),
    "deep schema": (lambda: OutputFormat.json_schema('{"items":' * 9000 + "{}" + "}" * 9000), "no JSON"),
    "no schema": (lambda: OutputFormat.json_schema("[1]"), "object"),
    "no choices": (lambda: OutputFormat.choice([]), str(MAX_CHOICES)),
    "many choices": (lambda: OutputFormat.choice(list(map(str, range(2000)))), str(MAX_CHOICES)),
    "long choice": (lambda: OutputFormat.choice(["x" * 2000]), "1024 characters"),
    "a choice twice": (lambda: OutputFormat.choice(["a", "b", "a"]), "twice"),
    "large counts": (lambda: OutputFormat.regex("((a{100}b){100}){9}"), "counts"),
    "long regex": (lambda: OutputFormat.regex("a?" * 1000), "1024"),
    "pattern of a schema": (lambda: OutputFormat.json_schema({"pattern": "x{100000}"}), "counts"),
    "blank grammar": (lambda: OutputFormat.grammar(" "), "blank"),
    "long grammar": (lambda: OutputFormat.grammar('start: "' + "x" * 9000 + '"'), "8192 bytes|limit is 8192"),
    "half a character": (lambda: OutputFormat.choice(["\ud800", "a"]), "Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_too_large_or_no_format_is_refused_when_it_is_made(kind: str) -> None:
    make, named = REFUSED[kind]
    with pytest.raises(UsageError, match=named):
        make()


def test_counts_side_by_side_are_not_multiplied() -> None:
    assert OutputFormat.regex(r"[a-z]{1,64}@[a-z]{1,64}\.[a-z]{2,9}").kind == "regex"


IMPOSSIBLE: dict[str, OutputFormat] = {
    "impossible schema": OutputFormat.json_schema({"type": "integer", "minimum": 5, "maximum": 3}),
    "contradiction": OutputFormat.json_schema({"allOf": [{"type": "integer"}, {"type": "string"}]}),
    "a schema of itself": OutputFormat.json_schema({"$ref": "#"}),
    "no such definition": OutputFormat.json_schema({"$ref": "#/$defs/x"}),
    "what llguidance does not know": OutputFormat.json_schema({"type": "array", "uniqueItems": True}),
    "look-ahead": OutputFormat.regex("(?=a)b"),
    "back-reference": OutputFormat.regex(r"(a)\1"),
    "open class": OutputFormat.regex("["),
    "nothing matches": OutputFormat.regex(r"[^\x00-\U0010ffff]"),
    "no rules": OutputFormat.grammar("x: y"),
    "a rule of itself": OutputFormat.grammar("start: start"),
    "deep grammar": OutputFormat.grammar("root ::= " + "(" * 3000 + '"a"' + ")" * 3000),
    "deep Lark": OutputFormat.grammar("start: " + "(" * 3000 + '"a"' + ")" * 3000),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_what_does_not_compile_is_one_sentence(kind: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(UsageError, match="correct") as caught:
        compiler.compile(IMPOSSIBLE[kind])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a*)*b", "(a|aa)+c", "(x+x+)+y", "(a|b)*a(a|b){99}c", "(.*a){20}"]
)
def test_backtracking_costs_nothing(pattern: str, backbone: Backbone, compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(OutputFormat.regex(pattern))
    (answer,) = generate_greedy(backbone, ["aaaaaaaa"], grammars=grammar, max_new_tokens=60)
    assert answer


def test_an_expression_that_becomes_too_dear_is_an_error(
    backbone: Backbone, compiler: GrammarCompiler
) -> None:
    with pytest.raises(UsageError, match="too many expressions"):
        grammar = compiler.compile(OutputFormat.regex("a?" * 500))
        generate_greedy(backbone, ["x"], grammars=grammar, max_new_tokens=60)


def test_a_tokenizer_without_its_json_is_named(backbone: Backbone) -> None:
    slow = SimpleNamespace(tokenizer=object(), shape=backbone.shape)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        GrammarCompiler(slow).compile(OutputFormat.json_object())


def test_without_llguidance_the_extra_is_named(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(Exception, match=r"shoal\[structured\]"):
        GrammarCompiler(backbone).compile(OutputFormat.json_object())


def test_as_many_grammars_as_requests_are_wanted(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match="1 grammars for 2 requests"):
        generate_greedy(backbone, ["a", "b"], grammars=[None])


@pytest.mark.slow
def test_the_embedded_model_answers_json_with_keys() -> None:
    backbone = load_backbone()
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "colour": {"enum": ["red", "green", "blue"]},
        },
        "required": ["name", "colour"],
        "additionalProperties": False,
    }
    grammar = GrammarCompiler(backbone).compile(OutputFormat.json_schema(schema))
    requests = ["Name a fruit and its colour, as JSON.", "Which colour is the sky?"]
    for answer in generate_greedy(backbone, requests, grammars=grammar, max_new_tokens=64):
        jsonschema.validate(json.loads(answer), schema)
