"""`adapter: "auto"`: a request is answered with the expert that the probe chooses, or by the base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_hooks import attach_expert
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import Backbone, load_backbone
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.service import open_service
from shoal.transformer2.experts import ExpertSet
from shoal.transformer2.model import mlp_modules
from shoal.transformer2.router import ProbeRouter, mean_states, train_probe

SHOUTING, OTHER = "!!!! !!!!", "What is it?"


def shouting_experts(backbone: Backbone) -> ExpertSet:
    """One expert, and a probe that chooses it for what is shouted."""
    basis = decompose_model(backbone.model, mlp_modules(backbone.shape))
    generator = torch.Generator().manual_seed(1)
    expert = ExpertVector({n: 1 + torch.randn(d.s.shape, generator=generator) for n, d in basis.items()})
    states = mean_states(backbone.model, backbone.encode_prompts([SHOUTING, OTHER]), 1)
    probe = train_probe(states, torch.tensor([0, 1]), ["shouting"], 1)
    return ExpertSet({"shouting": expert}, {}, basis, ProbeRouter(backbone.model, probe))


def test_auto_answers_with_the_expert_of_the_request(tiny_llama: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_llama))
    experts = shouting_experts(backbone)
    base = generate_greedy(backbone, [SHOUTING, OTHER], max_new_tokens=8)
    with attach_expert(backbone.model, experts.basis, experts.experts["shouting"]):
        adapted = generate_greedy(backbone, [SHOUTING], max_new_tokens=8)[0]
    assert adapted != base[0] and adapted and base[1]

    service = open_service(
        Registry(tmp_path / "r"), str(tiny_llama), open=True, backbone=backbone, experts=experts
    )
    http = TestClient(create_app(service))
    for request, skill, wanted in ((SHOUTING, "shouting", adapted), (OTHER, "none", base[1])):
        ask = {"messages": [{"role": "user", "content": request}], "max_tokens": 8, "temperature": 0}
        answer = http.post(
            "/v1/chat/completions", json={"model": str(tiny_llama), "adapter": "auto", **ask}
        ).json()
        assert answer["adapter"] == {"auto": skill}, answer
        assert answer["choices"][0]["message"]["content"].strip() == wanted
    service.close()


def test_limits_come_before_an_adapter_is_chosen(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that cannot be answered has the model read nothing, and no adapter made."""
    backbone = load_backbone(str(tiny_llama))
    service = open_service(
        Registry(tmp_path / "r"),
        str(tiny_llama),
        open=True,
        backbone=backbone,
        experts=shouting_experts(backbone),
    )
    http, work = TestClient(create_app(service)), list[str]()
    run, generate = service.runner.run, service.adapters.describe
    monkeypatch.setattr(service.selector, "_decide", lambda call: work.append("decided") or run(call))
    monkeypatch.setattr(service.adapters, "describe", lambda text: work.append("generated") or generate(text))

    def status(prompt: object, adapter: object, **others: object) -> int:
        ask = {"model": str(tiny_llama), "prompt": prompt, "adapter": adapter, "max_tokens": 2, **others}
        return http.post("/v1/completions", json=ask).status_code

    describe, long = {"describe": "Write the plural of the given noun."}, "x" * 600
    for adapter in ("auto", describe):
        assert status(long, adapter) == 400 and status("x" * 505, adapter, max_tokens=100) == 400
        assert status("x", adapter, n=100) == 400
        assert status("x", adapter, stop=["a"] * 65) == 400
    assert status(["x", long], describe) == 400  # not the first alone
    assert status(["x", "y"], "auto") == 400  # one choice would not be both prompts'
    assert not work and not service.runner.state().running
    assert status("x", "auto") == 200 and status(["x", "y"], describe) == 200
    assert work == ["decided", "generated"]
    service.close()
