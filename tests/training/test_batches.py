"""Batches: the tokens that the tokenizer itself gives, little padding, and an order known from its seed."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from shoal.errors import UsageError
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Example, Task, load_task_directory
from shoal.training.batches import POOL_BATCHES, BatchOrder, Corpus, LengthWeights, TokenisedExample, tokenise

FAMILIES = ("llama", "qwen2", "gemma", "gpt2", "gpt_neox", "opt", "phi")


def one_by_one(task: Task, backbone: Backbone, describe: bool) -> list[tuple[list[int], list[int]]]:
    """The slow way: every example through the template and the tokenizer by itself."""
    rows = []
    for i, example in enumerate(task.train):
        description = task.descriptions[i % len(task.descriptions)]
        text = f"{description}\n\n{example.input}" if describe else example.input
        message = [{"role": "user", "content": text}]
        prompt = backbone.tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_dict=False
        )
        answer = backbone.tokenizer(example.outputs[0], add_special_tokens=False)["input_ids"]
        rows.append((prompt, [*answer, backbone.end_of_turn]))
    return rows


def corpus_of(lengths: list[list[int]], task: Task) -> Corpus:
    """Examples of given lengths, task by task."""
    index, examples = 0, []
    for number, row in enumerate(lengths):
        own = []
        for length in row:
            own.append(TokenisedExample(number, index, (1,) * (length - 1), (2,), len(own)))
            index += 1
        examples.append(tuple(own))
    return Corpus((task,) * len(lengths), tuple(examples))


@pytest.fixture
def uneven(toy: ModuleType) -> Corpus:
    """Forty tasks with lengths as real ones have: many short, a long tail."""
    chance = random.Random(0)
    lengths = [[min(256, 20 + int(chance.expovariate(1 / 50))) for _ in range(60)] for _ in range(40)]
    return corpus_of(lengths, toy.toy_task("upper"))


def real_share(batches: list[list[TokenisedExample]]) -> float:
    """Share of the tokens of padded batches that are not padding."""
    real = sum(e.length for batch in batches for e in batch)
    return real / sum(len(batch) * max(e.length for e in batch) for batch in batches)


@pytest.mark.parametrize("describe", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_one_example_at_a_time(
    family: str, describe: bool, toy: ModuleType, tiny_models: dict[str, Path]
) -> None:
    backbone = load_backbone(str(tiny_models[family]), device="cpu")
    odd = toy.toy_task(
        "upper", (" spaces ", "new\nline", "Ünïcode 漢字", "<|im_end|>", "{{ braces }}", "last")
    )
    tasks = [*toy.toy_tasks(), dataclasses.replace(odd, name="odd")]
    corpus = tokenise(tasks, backbone, 512, describe=describe)
    assert corpus.tasks == tuple(tasks)
    for number, task in enumerate(tasks):
        rows = corpus.examples[number]
        expected = one_by_one(task, backbone, describe)
        assert [(list(e.prompt), list(e.completion)) for e in rows] == expected
        assert {e.task for e in rows} == {number}
        assert [e.place for e in rows] == list(range(len(rows)))
    assert [e.index for rows in corpus.examples for e in rows] == list(range(45))


@pytest.mark.slow
def test_tokens_of_the_default_model(shared_data: Path) -> None:
    backbone = load_backbone()
    for task in load_task_directory(shared_data / "tasks")[::120]:
        task = dataclasses.replace(task, train=task.train[:40])
        rows = tokenise([task], backbone, 100_000).examples[0]
        assert [(list(e.prompt), list(e.completion)) for e in rows] == one_by_one(task, backbone, False)


def test_long_examples_are_left_out_and_counted(
    toy: ModuleType, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    task = toy.toy_task("upper")
    lengths = sorted(len(p) + len(c) for p, c in one_by_one(task, backbone, False))
    with caplog.at_level(logging.INFO):
        corpus = tokenise([task], backbone, lengths[3])
    kept = [e.length for e in corpus.examples[0]]
    assert sorted(kept) == [n for n in lengths if n <= lengths[3]]
    assert f"left out {10 - len(kept)} of 10 examples longer than {lengths[3]} tokens" in caplog.text


def test_a_task_of_which_nothing_fits(toy: ModuleType, backbone: Backbone) -> None:
    with pytest.raises(
        UsageError, match="none of the 10 .* of task upper has at most 8 tokens; raise max_len"
    ):
        tokenise(toy.toy_tasks(), backbone, 8)
    empty = dataclasses.replace(toy.toy_task("upper"), train=())
    with pytest.raises(UsageError, match="task upper has no training examples; add some"):
        tokenise([empty], backbone, 512)


def test_the_first_answer_is_learned(toy: ModuleType, backbone: Backbone) -> None:
    task = dataclasses.replace(toy.toy_task("upper"), train=(Example("a", ("first", "second")),))
    (example,) = tokenise([task], backbone, 512).examples[0]
    assert backbone.decode(example.completion) == "first"


def test_buckets_leave_little_padding(uneven: Corpus) -> None:
    steps = range(4 * POOL_BATCHES)
    order = BatchOrder(uneven, 16, seed=0)
    bucketed = real_share([order.batch(step) for step in steps])
    chance = random.Random(0)
    everything = [e for row in uneven.examples for e in row]
    naive = real_share([chance.sample(everything, 16) for _ in steps])
    assert naive < 0.5 and bucketed > 0.9, (naive, bucketed)


def test_the_order_is_a_function_of_seed_and_step(uneven: Corpus) -> None:
    forwards = BatchOrder(uneven, 8, seed=1)
    batches = [forwards.batch(step) for step in range(100)]
    backwards = BatchOrder(uneven, 8, seed=1)
    assert [backwards.batch(step) for step in reversed(range(100))] == batches[::-1]
    assert [BatchOrder(uneven, 8, seed=2).batch(step) for step in range(100)] != batches
    assert all(len(batch) == 8 for batch in batches)


def test_tasks_are_drawn_evenly_whatever_their_size(toy: ModuleType) -> None:
    corpus = corpus_of([[10] * 2, [50] * 500, [90] * 20], toy.toy_task("upper"))
    order = BatchOrder(corpus, 6, seed=0)
    drawn = Counter(e.task for step in range(3 * POOL_BATCHES) for e in order.batch(step))
    assert max(drawn.values()) - min(drawn.values()) <= 3


def test_tasks_are_drawn_by_their_weights(toy: ModuleType) -> None:
    corpus = corpus_of([[10] * 20, [50] * 500, [90] * 20], toy.toy_task("upper"))
    order = BatchOrder(corpus, 6, seed=0, group=2, weights=[0.5, 0.0, 1.5])
    batches = [order.batch(step) for step in range(8 * POOL_BATCHES)]
    drawn = Counter(e.task for batch in batches for e in batch)
    assert drawn[1] == 0 and 2.5 < drawn[2] / drawn[0] < 3.8
    assert all(a.task == b.task for batch in batches for a, b in zip(batch[::2], batch[1::2], strict=True))


def test_length_weights_have_mean_one_over_what_is_drawn(toy: ModuleType) -> None:
    one, four, nine = (TokenisedExample(t, t, (1,), (2,) * n, 0) for t, n in enumerate((1, 4, 9)))
    corpus = Corpus((toy.toy_task("upper"),) * 3, ((one,), (four,), (nine,)))
    weigh = LengthWeights(corpus, 0.5)
    assert weigh([one, four, nine]).tolist() == pytest.approx([0.5, 1.0, 1.5])
    assert LengthWeights(corpus, 0.5, [1.0, 1.0, 0.0])([one, four]).tolist() == pytest.approx(
        [1 / 1.5, 2 / 1.5]
    )
    assert LengthWeights(corpus, 1.0)([four, nine]).tolist() == pytest.approx([4 * 3 / 14, 9 * 3 / 14])
    assert LengthWeights(corpus, 0.0)([one, nine]).tolist() == [1.0, 1.0]


def test_lengths_come_in_random_order(uneven: Corpus) -> None:
    order = BatchOrder(uneven, 8, seed=0)
    lengths = [order.batch(step)[0].length for step in range(POOL_BATCHES)]
    assert (
        lengths != sorted(lengths) and sum(lengths[:16]) < 2 * sum(lengths[16:]) < 4 * sum(lengths[:16]) * 2
    )
