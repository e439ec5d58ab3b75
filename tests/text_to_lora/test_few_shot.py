"""A few examples: better on examples that were held out, or the adapter stays what it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example
from shoal.text_to_lora import few_shot
from shoal.text_to_lora.few_shot import REFINING, refine
from shoal.text_to_lora.refining import Refining, StoppingRule, group_modules

FAST = REFINING.model_copy(update={"learning_rate": 1e-2})
SAME = [Example(f"word number {i}", ("yes",)) for i in range(16)]


@pytest.fixture
def start(sharp: Backbone) -> LoRA:
    targets = sharp.shape.select(["q_proj", "v_proj"], None)
    return LoRA.identity(targets, 4, 8.0, generator=torch.Generator().manual_seed(0))


def equal(one: LoRA, other: LoRA) -> bool:
    return all(
        torch.equal(a, b)
        for name in one.factors
        for a, b in zip(one.factors[name], other.factors[name], strict=True)
    )


def test_a_rule_that_the_examples_share_is_learnt(sharp: Backbone, start: LoRA) -> None:
    refinement = refine(sharp, start, SAME, description="Answer yes.", config=FAST)
    assert (refinement.examples, refinement.held_out) == (12, 4)
    assert 0 < refinement.steps <= FAST.steps and refinement.seconds > 0
    assert refinement.loss_after < refinement.loss_before - 1
    assert not equal(refinement.lora, start) and refinement.lora.factors.keys() == start.factors.keys()


def test_the_same_examples_give_the_same_adapter(sharp: Backbone, start: LoRA) -> None:
    one, two = (refine(sharp, start, SAME, description="Answer yes.", config=FAST) for _ in range(2))
    assert equal(one.lora, two.lora) and one.loss_after == two.loss_after


def test_steps_that_harm_are_not_kept(sharp: Backbone, start: LoRA) -> None:
    good = refine(sharp, start, SAME, description="Answer yes.", config=FAST).lora
    harmful = LoraTrainingConfig(steps=4, batch_size=8, learning_rate=100.0)
    refinement = refine(sharp, good, SAME, description="Answer yes.", config=harmful)
    assert refinement.steps == 0 and refinement.loss_after == refinement.loss_before
    assert equal(refinement.lora, good)


def test_examples_that_are_too_long_are_left_out_and_counted(
    sharp: Backbone, start: LoRA, caplog: pytest.LogCaptureFixture
) -> None:
    long = [Example(f"{i} " + "word " * 400, ("yes",)) for i in range(8)]
    with pytest.raises(UsageError, match="0 of 8 examples have at most 256 tokens, at least 4"):
        refine(sharp, start, long, description="Answer yes.")
    refinement = refine(sharp, start, [*long, *SAME[:8]], description="Answer yes.")
    assert (refinement.examples, refinement.held_out) == (6, 2)
    assert "left out 8 of 16 examples of more than 256 tokens" in caplog.text


def test_long_examples_get_fewer_steps(sharp: Backbone, start: LoRA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot, "MAX_TOKENS", 1)
    refinement = refine(sharp, start, SAME, description="Answer yes.", config=FAST)
    assert refinement.steps == 1 and refinement.loss_after < refinement.loss_before


def learned(backbone: Backbone, lora: LoRA, rule: StoppingRule | None = None) -> Refining:
    targets = [t for t in backbone.shape.targets if t.name in lora.factors]
    rates = dict.fromkeys(group_modules(targets).values(), 1e-2)
    return Refining(backbone.shape.base_model, "00" * 32, rates, 0.0, {4: 6, 16: 12}, rule)


def test_as_learned_all_examples_are_trained_on(sharp: Backbone, start: LoRA) -> None:
    how = learned(sharp, start)
    refinement = refine(sharp, start, SAME, description="Answer yes.", learned=how)
    assert (refinement.examples, refinement.held_out, refinement.steps) == (16, 0, 12)
    assert refinement.rates == how.sha256 and refinement.tokens > 0
    assert refinement.loss_after < refinement.loss_before - 1


def test_fewer_examples_than_steps_are_known_for_are_stopped_by_held_out_ones(
    sharp: Backbone, start: LoRA
) -> None:
    how = replace(learned(sharp, start), steps={16: 12})
    refinement = refine(sharp, start, SAME[:8], description="Answer yes.", learned=how)
    assert (refinement.examples, refinement.held_out, refinement.rates) == (6, 2, None)


def test_a_learned_rule_stops_by_the_first_steps(sharp: Backbone, start: LoRA) -> None:
    rule = StoppingRule((0.0, 0.0, 0.0, 0.0), 1.7, 1, 40)  # five, whatever is seen
    refinement = refine(sharp, start, SAME, description="Answer yes.", learned=learned(sharp, start, rule))
    assert refinement.steps == 5


def test_a_learned_rule_decides_where_few_steps_were_best_on_average(sharp: Backbone, start: LoRA) -> None:
    rule = StoppingRule((0.0, 0.0, 0.0, 0.0), 1.7, 1, 40)
    how = replace(learned(sharp, start, rule), steps={4: 1, 16: 2})
    assert refine(sharp, start, SAME, description="Answer yes.", learned=how).steps == 5


def test_outputs_that_contradict_each_other_are_said_and_kept(
    sharp: Backbone, start: LoRA, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [*SAME[:4], Example("word number 0", ("no",))]
    refinement = refine(sharp, start, examples, description="Answer.", learned=learned(sharp, start))
    assert refinement.examples == 5
    assert "1 inputs are given with outputs that contradict each other; all are kept" in caplog.text
