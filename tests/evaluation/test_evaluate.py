"""Evaluation of a tiny model, against scores computed by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.evaluation.evaluate import Method, described, echo, evaluate, score, with_shots
from shoal.evaluation.reports import Report
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Example, Task, load_split


def task(name: str = "colours", test: int = 3) -> Task:
    return Task(
        name=name,
        category="test",
        definition="Say which colour it is.",
        descriptions=("Name the colour of a thing.", "Colours of things."),
        train=tuple(Example(f"{name} thing {i}", (f"colour {i}", "any")) for i in range(9)),
        test=tuple(Example(f"{name} other {i}", (f"hue {i}", f"shade {i}")) for i in range(test)),
    )


@pytest.fixture(scope="module")
def backbone(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def lora(backbone: Backbone) -> LoRA:
    identity = LoRA.identity(backbone.shape.select(("q_proj", "v_proj"), None), 2, 4.0)
    generator = torch.Generator().manual_seed(1)
    return LoRA(
        {
            n: LoraFactors(f.a, torch.empty_like(f.b).normal_(generator=generator))
            for n, f in identity.factors.items()
        },
        4.0,
    )


@torch.no_grad()
def loss_by_hand(backbone: Backbone, request: str, reference: str) -> float:
    prompt, completion = backbone.encode_prompt(request), backbone.encode_completion(reference)
    logits = backbone.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return float(cross_entropy(logits, torch.tensor(completion)))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_losses_are_means_over_the_tokens_of_each_reference(backbone: Backbone, batch_size: int) -> None:
    requests = ["a", "a much longer request", "b c"]
    references = ["one", "2", "three and four"]
    by_hand = [loss_by_hand(backbone, r, a) for r, a in zip(requests, references, strict=True)]
    got = reference_losses(backbone, requests, references, batch_size=batch_size)
    assert got == pytest.approx(by_hand, rel=1e-4)


def test_a_reference_that_does_not_fit_into_the_model(backbone: Backbone) -> None:
    positions = backbone.model.config.max_position_embeddings
    with pytest.raises(UsageError, match=f"exceed the {positions} positions"):
        reference_losses(backbone, ["a", "a"], ["b", "b " * positions])


def test_answers_are_scored_against_every_reference(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["SHADE 0.", "a hue", "nothing of it"]
    monkeypatch.setattr("shoal.evaluation.evaluate.generate_greedy", lambda *args, **options: said)
    examples = task().test
    answers = score(backbone, examples, [e.input for e in examples], None)
    assert [a.answer for a in answers] == said
    assert [a.exact_match for a in answers] == [1.0, 0.0, 0.0]
    # "shade 0" is a reference; "a hue" shares 1 of 2 words with "hue 1": precision 1/2, recall 1/2.
    assert [a.rouge_l for a in answers] == [1.0, 0.5, 0.0]
    assert answers[1].references == ("hue 1", "shade 1") and answers[1].input == "colours other 1"


def test_an_adapter_is_attached_for_answers_and_losses(backbone: Backbone, lora: LoRA) -> None:
    examples = task().test
    requests = [e.input for e in examples]
    answers = score(backbone, examples, requests, lora, max_new_tokens=5)
    bare = score(backbone, examples, requests, None, max_new_tokens=5)
    with attach(backbone.model, lora):
        by_hand = [loss_by_hand(backbone, r, e.outputs[0]) for r, e in zip(requests, examples, strict=True)]
        said = generate_greedy(backbone, requests, max_new_tokens=5)
    assert [a.nll for a in answers] == pytest.approx(by_hand, rel=1e-4)
    assert [a.answer for a in answers] == said
    assert [a.nll for a in bare] != pytest.approx(by_hand, rel=1e-2)


def test_every_method_is_scored_on_the_same_examples(backbone: Backbone, lora: LoRA) -> None:
    tasks = [task("colours"), task("shapes", test=5)]
    asked: list[tuple[str, str]] = []
    finished: list[str] = []

    def request(task: Task, example: Example) -> str:
        asked.append((task.name, example.input))
        return described(task, example)

    methods = [
        Method("base"),
        Method("described", request=request),
        Method("adapter", adapter=lambda task: lora if task.name == "shapes" else None),
    ]
    report = evaluate(
        backbone,
        tasks,
        methods,
        examples=4,
        max_new_tokens=3,
        samples=2,
        notes={"seed": 0},
        on_method=lambda result: finished.append(result.name),
    )
    assert finished == ["base", "described", "adapter"] == [r.name for r in report.results]
    assert asked == [(t.name, e.input) for t in tasks for e in t.test[:4]]
    assert report.tasks == ("colours", "shapes") and report.notes == {"seed": 0}
    assert {len(kept) for r in report.results for kept in r.samples.values()} == {2}
    base, adapted = report.result("base").scores["nll"], report.result("adapter").scores["nll"]
    losses = [loss_by_hand(backbone, e.input, e.outputs[0]) for e in tasks[1].test[:4]]
    assert base["shapes"] == pytest.approx(sum(losses) / 4, rel=1e-4)
    assert adapted["colours"] == pytest.approx(base["colours"], rel=1e-4)
    assert adapted["shapes"] != pytest.approx(base["shapes"], rel=1e-2)


def test_bad_input_is_refused(backbone: Backbone) -> None:
    only = [Method("base")]
    with pytest.raises(UsageError, match="at least one of tasks"):
        evaluate(backbone, [], only)
    with pytest.raises(UsageError, match="at least one of methods"):
        evaluate(backbone, [task()], [])
    with pytest.raises(UsageError, match=r"methods, each of its own name, got \['base', 'base'\]"):
        evaluate(backbone, [task()], only * 2)
    with pytest.raises(UsageError, match="tasks, each of its own name"):
        evaluate(backbone, [task(), task()], only)
    with pytest.raises(UsageError, match="task colours has no test examples"):
        evaluate(backbone, [task(test=0)], only)
    with pytest.raises(UsageError, match="examples 0 must be at least 1"):
        evaluate(backbone, [task()], only, examples=0)


def test_the_description_stands_before_the_input() -> None:
    colours = task()
    assert described(colours, colours.test[1]) == "Name the colour of a thing.\n\ncolours other 1"


def test_shots_are_drawn_by_seed() -> None:
    colours = task()
    first = with_shots(3, seed=0)(colours, colours.test[0])
    assert first == with_shots(3, seed=0)(colours, colours.test[0])
    assert first != with_shots(3, seed=1)(colours, colours.test[0])
    assert first.count("Output: colour") == 3 and first.endswith("Input: colours other 0\nOutput:")
    with pytest.raises(UsageError, match="9 training examples, 10 shots need as many; show fewer"):
        with_shots(10)(colours, colours.test[0])


def test_shots_never_show_a_test_example(shared_data: Path) -> None:
    for held_out in load_split(shared_data).validation:
        answers = {e.input: e.outputs for e in held_out.test}
        for example in held_out.test[:5]:
            *shots, asked = with_shots(3)(held_out, example).split("Input: ")[1:]
            assert asked == f"{example.input}\nOutput:" or "Input: " in example.input
            assert not any(f"{text}\nOutput: " in shot for shot in shots for text in answers)


def test_tasks_share_batches_and_keep_their_own_adapters(backbone: Backbone, lora: LoRA) -> None:
    other = LoRA({n: LoraFactors(f.a, -f.b) for n, f in lora.factors.items()}, lora.alpha)
    fewer = LoRA(dict(list(lora.factors.items())[:2]), lora.alpha)
    loras = {"a": lora, "b": other, "c": None, "d": fewer}
    tasks = [task(name) for name in loras]
    method = Method("mixed", adapter=lambda task: loras[task.name])
    together = evaluate(backbone, tasks, [method], max_new_tokens=4).results[0]
    for each in tasks:
        requests = [e.input for e in each.test]
        alone = score(backbone, each.test, requests, loras[each.name], max_new_tokens=4, batch_size=1)
        assert together.scores["nll"][each.name] == pytest.approx(sum(a.nll for a in alone) / 3, rel=1e-4)
        assert [a.answer for a in together.samples[each.name]] == [a.answer for a in alone]
        assert [a.input for a in together.samples[each.name]] == requests


def test_adapters_are_one_or_as_many_as_requests(backbone: Backbone, lora: LoRA) -> None:
    with pytest.raises(UsageError, match="got 1 adapters for 2 requests"):
        reference_losses(backbone, ["a", "b"], ["c", "d"], [lora])


def test_the_echo_row_asks_no_model(backbone: Backbone) -> None:
    same = Task(
        "same",
        "test",
        "Repeat it.",
        ("Repeat it.",),
        (Example("a b", ("a b",)),),
        (Example("c d", ("c d",)),),
    )
    report = evaluate(
        backbone, [task(), same], [echo(), Method("base")], label_sets={"colours": ("hue 0", "x")}
    )
    row = report.result("echo")
    assert [r.name for r in report.results] == ["echo", "base", "base, labels"]
    assert row.scores["rouge_l"]["same"] == 1 and row.scores["exact_match"]["colours"] == 0
    assert "nll" not in row.scores and report.difference("base", "echo", "rouge_l").n == 2
    assert "| echo | " in (text := report.to_markdown()) and " | - |" in text
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
