"""Formats in the engine: per row of a mixed batch, streamed, sampled, with every kind of adapter."""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import jsonschema
import pytest

from shoal.adapters.base import Adapter
from shoal.adapters.card import LabelSet
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.lora import LoRA
from shoal.adapters.merging import compose
from shoal.adapters.output_format import OutputFormat
from shoal.adapters.svf import ExpertVector
from shoal.errors import UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Delta, Request
from shoal.inference.engine.runner import EngineRunner
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone

SCHEMA = {"type": "string", "maxLength": 3}  # without room for spaces, of which random weights are fond
JSON = OutputFormat.json_schema(SCHEMA)
DATE = OutputFormat.regex(r"[0-9]{2}-[0-9]{2}")
GREEDY = Sampling(temperature=0.0)


def run(engine: Engine, *requests: Request) -> list[dict[int, list[Delta]]]:
    """The pieces of every answer of every request; a request that fails raises."""
    tickets = {engine.submit(request): number for number, request in enumerate(requests)}
    pieces: list[dict[int, list[Delta]]] = [defaultdict(list) for _ in requests]
    while engine.busy:
        for event in engine.step():
            if event.error is not None:
                raise event.error
            assert event.delta is not None
            pieces[tickets[event.ticket]][event.delta.index].append(event.delta)
    return pieces


def text(pieces: list[Delta]) -> str:
    return "".join(piece.text for piece in pieces)


def asked(backbone: Backbone, said: str, wanted: OutputFormat | None, **options: object) -> Request:
    return Request(backbone.encode_prompt(said), max_tokens=30, sampling=GREEDY, format=wanted, **options)


def test_rows_of_a_mixed_batch_are_as_alone(llama_backbone: Backbone) -> None:
    requests = [
        replace(asked(llama_backbone, f"row {i}", wanted), sampling=Sampling(seed=i))
        for i, wanted in enumerate([JSON, None, DATE, OutputFormat.choice(["a", "b"]), None, JSON])
    ]
    together = run(Engine(llama_backbone), *requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = run(Engine(llama_backbone), request)
        assert text(alone[0]) == text(found[0]) and alone[0][-1].finish_reason == found[0][-1].finish_reason
        if request.format == JSON:
            jsonschema.validate(json.loads(text(found[0])), SCHEMA)
        if request.format == DATE:
            assert re.fullmatch(r"[0-9]{2}-[0-9]{2}", text(found[0])) and found[0][-1].finish_reason == "stop"


def test_n_answers_fit_each(llama_backbone: Backbone) -> None:
    (found,) = run(
        Engine(llama_backbone), replace(asked(llama_backbone, "x", JSON, n=4), sampling=Sampling(seed=3))
    )
    texts = [text(found[i]) for i in range(4)]
    assert len(set(texts)) > 1
    for answer in texts:
        jsonschema.validate(json.loads(answer), SCHEMA)


def test_scores_are_the_models_own(llama_backbone: Backbone) -> None:
    request = asked(llama_backbone, "x", DATE, logprobs=3)
    (found,) = run(Engine(llama_backbone), request)
    scores = [score for piece in found[0] for score in piece.tokens]
    assert len(scores) == 5 and all(score.logprob is not None and score.logprob < 0 for score in scores)
    (free,) = run(Engine(llama_backbone), replace(request, format=None))
    assert scores[0].top == next(score for piece in free[0] for score in piece.tokens).top


def test_a_stop_string_ends_an_answer_before_its_format_does(llama_backbone: Backbone) -> None:
    (found,) = run(Engine(llama_backbone), asked(llama_backbone, "x", DATE, stop=("-",)))
    assert re.fullmatch("[0-9]{2}", text(found[0])) and found[0][-1].finish_reason == "stop"


def test_an_answer_at_its_limit_says_so(llama_backbone: Backbone) -> None:
    (found,) = run(Engine(llama_backbone), replace(asked(llama_backbone, "x", DATE), max_tokens=2))
    assert re.fullmatch("[0-9]{2}", text(found[0])) and found[0][-1].finish_reason == "length"


@pytest.mark.parametrize("kind", ["lora", "mixture", "expert"])
def test_every_kind_of_adapter_answers_within_the_format(
    kind: str,
    backbone: Backbone,
    basis: Decompositions,
    make_lora: Callable[..., LoRA],
    make_expert: Callable[..., ExpertVector],
) -> None:
    modules = ("q_proj", "v_proj")
    adapters: dict[str, Callable[[], Adapter]] = {
        "lora": lambda: make_lora(backbone, 0, modules=modules),
        "mixture": lambda: compose([make_lora(backbone, 0), make_lora(backbone, 1)], [0.5, 2.0]),
        "expert": lambda: make_expert(basis, 0),
    }
    (found,) = run(Engine(backbone, basis=basis), asked(backbone, "x", JSON, adapter=adapters[kind]()))
    jsonschema.validate(json.loads(text(found[0])), SCHEMA)


def test_what_does_not_compile_is_refused_before_it_waits(llama_backbone: Backbone) -> None:
    engine = Engine(llama_backbone)
    with pytest.raises(UsageError, match="cannot be used"):
        engine.submit(asked(llama_backbone, "x", OutputFormat.regex("(?=a)b")))
    assert not engine.busy


def test_a_format_beside_labels_or_past_the_end_is_refused(llama_backbone: Backbone) -> None:
    with pytest.raises(UsageError, match="format"):
        Engine(llama_backbone).submit(asked(llama_backbone, "x", JSON, labels=LabelSet(labels=("a", "b"))))
    with pytest.raises(UsageError, match="format"):
        Engine(llama_backbone).submit(asked(llama_backbone, "x", JSON, stop_at_end=False))


def test_a_format_that_becomes_too_dear_fails_its_own_request_alone(llama_backbone: Backbone) -> None:
    engine = Engine(llama_backbone)
    dear = engine.submit(asked(llama_backbone, "x", OutputFormat.regex("a?" * 500)))
    other = engine.submit(asked(llama_backbone, "y", DATE))
    failed, said = [], ""
    while engine.busy:
        for event in engine.step():
            failed += [event.ticket] if event.error else []
            said += event.delta.text if event.delta and event.ticket == other else ""
    assert failed == [dear] and re.fullmatch(r"[0-9]{2}-[0-9]{2}", said)


def test_others_go_on_while_a_format_is_compiled(
    llama_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.inference.grammar import GrammarCompiler

    compiling, go_on = threading.Event(), threading.Event()
    plain = GrammarCompiler._compiled

    def slow(self: GrammarCompiler, tokenizer: object, wanted: OutputFormat) -> object:
        compiling.set()
        assert go_on.wait(60)
        return plain(self, tokenizer, wanted)

    monkeypatch.setattr(GrammarCompiler, "_compiled", slow)
    answers: list[str] = []
    with EngineRunner(Engine(llama_backbone)) as runner:
        slowly = threading.Thread(
            target=lambda: answers.append(text(list(runner.submit(asked(llama_backbone, "x", DATE)))))
        )
        slowly.start()
        assert compiling.wait(60)
        assert list(runner.submit(asked(llama_backbone, "y", None)))[-1].finish_reason
        assert not answers
        go_on.set()
        slowly.join()
    assert re.fullmatch(r"[0-9]{2}-[0-9]{2}", answers[0])
