"""The engine with the real model in bfloat16: every token is the plain model's, within what rounding does."""

from collections.abc import Callable

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Limits, Request, TokenScore
from shoal.inference.sampling import Sampling
from shoal.models.backbone import load_backbone

TOLERANCE = 0.25  # nats, bfloat16: its numbers near 20, where logits are, are 0.125 apart


@pytest.mark.slow
def test_answers_with_many_adapters_are_the_plain_models(
    make_lora: Callable[..., LoRA], plain_logits: Callable[..., torch.Tensor]
) -> None:
    backbone = load_backbone(device="cpu", dtype=torch.bfloat16)
    loras = [None, *(make_lora(backbone, seed, rank) * 0.05 for seed, rank in enumerate((2, 8, 16)))]
    questions = [
        "Name a colour.",
        "What is the capital of France, and why is it known?",
        "Count to ten.",
        "Hi",
    ]
    engine = Engine(backbone, limits=Limits(max_batch=3))
    requests = {}
    for question, lora in zip(questions, loras, strict=True):
        request = Request(backbone.encode_prompt(question), lora, 16, sampling=Sampling(0.0), logprobs=0)
        requests[engine.submit(request)] = request
    scores: dict[int, list[TokenScore]] = {ticket: [] for ticket in requests}
    while engine.busy:
        for event in engine.step():
            assert event.delta is not None, event.error
            scores[event.ticket] += event.delta.tokens
    changed = 0
    for ticket, request in requests.items():
        told = scores[ticket]
        ids = [*request.prompt, *(score.token for score in told)]
        with_adapter, bare = (
            torch.log_softmax(plain_logits(backbone, ids, lora).float(), -1)[len(request.prompt) - 1 : -1]
            for lora in (request.adapter, None)
        )
        assert len(told) > 1
        for score, row in zip(told, with_adapter, strict=True):
            assert score.logprob == pytest.approx(float(row[score.token]), abs=TOLERANCE)
            assert score.logprob > float(row.max()) - TOLERANCE
        changed += bool((with_adapter - bare).abs().max() > 4 * TOLERANCE)
    assert changed == 3
