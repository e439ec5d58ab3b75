"""vLLM behind our API: every request that goes to it, against a recording of vLLM itself."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.adapters.hooks import attach
from shoal.adapters.svf import ExpertVector
from shoal.config import EngineConfig
from shoal.errors import UnavailableError, UsageError
from shoal.inference.engine.detokenizer import UNFINISHED
from shoal.inference.engine.records import Request
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import load_backbone
from shoal.registry.registry import Registry
from shoal.server.service import open_service


def said(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def is_503(answer: Any) -> bool:
    assert answer.status_code == 503, answer.text
    return answer.headers["retry-after"] == "5" and set(answer.json()) == {"error"}


def test_the_base_model_answers_as_our_own_engine_does(start: Callable[..., Any], model: Path) -> None:
    vllm = start()
    answer = vllm.ask(max_tokens=12)
    usage = answer.json()["usage"]
    events = vllm.ask(max_tokens=12, stream=True).text.split("\n\n")
    pieces = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    assert "".join(p["choices"][0]["delta"].get("content") or "" for p in pieces) == said(answer)
    assert len(pieces) > 3 and events[-2] == "data: [DONE]"
    assert usage["completion_tokens"] == 12 and answer.json()["choices"][0]["finish_reason"] == "length"
    backbone = load_backbone(str(model), dtype=torch.float32)
    own = generate_greedy(backbone, ["Say it."], max_new_tokens=12)
    assert said(answer).strip() == own[0].rstrip(UNFINISHED)  # vLLM leaves half a character out


def test_an_adapter_is_loaded_once_before_its_first_use(start: Callable[..., Any], model: Path) -> None:
    vllm = start()
    content = vllm.add("loud", seed=1)
    first, again = vllm.ask("loud"), vllm.ask("loud")
    assert said(first) == said(again) != said(vllm.ask())
    assert first.json()["adapter"] == {"name": "loud", "version": 1}
    assert vllm.paths() == ["models", "load_lora_adapter", *["completions"] * 3]
    load, asked = vllm.exchange.asked[1]["body"], vllm.exchange.asked[2]["body"]
    assert load == {"lora_name": "shoal-{CONTENT 0}", "lora_path": "{REGISTRY}/objects/{CONTENT 0}"}
    assert vllm.exchange.names.contents == [content] and asked["model"] == "shoal-{CONTENT 0}"
    backbone = load_backbone(str(model), dtype=torch.float32)
    with attach(backbone.model, vllm.service.registry.read(content).lora):
        own = generate_greedy(backbone, ["Say it."], max_new_tokens=6)
    assert said(first).strip() == own[0].rstrip(UNFINISHED)


def test_the_one_used_longest_ago_makes_room_and_a_deleted_one_goes(start: Callable[..., Any]) -> None:
    vllm = start(most=1)
    for number, name in enumerate(("one", "two")):
        vllm.add(name, seed=number)
    said(vllm.ask("one"))
    said(vllm.ask("two"))
    assert vllm.http.delete("/v1/adapters/two").status_code == 200
    assert vllm.paths()[1:] == [
        *("load_lora_adapter", "completions", "unload_lora_adapter"),
        *("load_lora_adapter", "completions", "unload_lora_adapter"),
    ]
    names = [asked["body"].get("lora_name") for asked in vllm.exchange.asked[1:]]
    first, second = "shoal-{CONTENT 0}", "shoal-{CONTENT 1}"
    assert names == [first, None, first, second, None, second]
    assert vllm.service.runner.state().adapters.evictions == 1


def test_mixes_and_descriptions_are_written_and_removed(start: Callable[..., Any], tmp_path: Path) -> None:
    vllm = start(most=1)
    for number, name in enumerate(("one", "two")):
        vllm.add(name, seed=number)
    mix = {"mix": [{"name": "one", "weight": 0.5}, {"name": "two", "weight": 0.5}]}
    assert vllm.ask(adapter=mix).json()["adapter"] == mix
    said(vllm.ask(adapter={"describe": "Write the plural of the given noun."}))
    loads = [a["body"]["lora_path"] for a in vllm.exchange.asked if a["path"].endswith("/load_lora_adapter")]
    assert vllm.paths()[1:4] == ["load_lora_adapter", "completions", "unload_lora_adapter"]
    assert loads[0].startswith("{REGISTRY}/{PASSING}/objects/") and len(loads) == 2
    (folder,) = (tmp_path / "registry").glob("vllm-*")
    assert len(list(folder.glob("objects/*/*"))) == 1  # the mix is gone
    vllm.service.close()
    assert not folder.exists()


def test_an_adapter_that_cannot_be_loaded_is_503(start: Callable[..., Any]) -> None:
    vllm = start()
    vllm.add("wide", seed=1, rank=96)  # above --max-lora-rank
    assert is_503(vllm.ask("wide")) and "did not load" in vllm.ask("wide").json()["error"]["message"]
    assert vllm.paths() == ["models", "load_lora_adapter", "load_lora_adapter"]
    said(vllm.ask())


def test_what_another_service_loaded_is_used(start: Callable[..., Any]) -> None:
    vllm = start()
    vllm.add("loud", seed=1)
    first = said(vllm.ask("loud"))
    vllm.service.close()
    assert said(start().ask("loud")) == first
    assert vllm.exchange.steps[4]["said"]["status"] == 400  # it has already been loaded


def test_what_vllm_forgot_is_loaded_again(start: Callable[..., Any]) -> None:
    vllm = start()
    content = vllm.add("loud", seed=1)
    first = said(vllm.ask("loud"))
    vllm.service.runner._client.unload(f"shoal-{content}")  # as a restart would
    assert said(vllm.ask("loud")) == first
    tail = ["unload_lora_adapter", "completions", "load_lora_adapter", "completions"]
    assert vllm.paths()[3:] == tail and vllm.exchange.steps[4]["said"]["status"] == 404


def test_several_answers_stop_strings_and_log_probabilities(start: Callable[..., Any]) -> None:
    vllm = start()
    answer = vllm.ask(n=2, logprobs=True, top_logprobs=2, max_tokens=4).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert vllm.exchange.asked[1]["body"]["n"] == 1  # vLLM refuses n above 1 at temperature 0
    drawn = vllm.ask(n=2, temperature=1, seed=7, max_tokens=8).json()["choices"]
    assert drawn[0]["message"] != drawn[1]["message"] and [choice["index"] for choice in drawn] == [0, 1]
    for choice in answer["choices"]:
        scores = choice["logprobs"]["content"]
        assert len(scores) == 4 and all(len(score["top_logprobs"]) >= 2 for score in scores)
        assert all(score["logprob"] <= 0 and score["bytes"] for score in scores)
        assert bytes(byte for score in scores for byte in score["bytes"]).decode(errors="replace")
    text = said(vllm.ask(max_tokens=12))
    end = text[3:5]
    stopped = vllm.ask(max_tokens=12, stop=end).json()["choices"][0]
    assert stopped["finish_reason"] == "stop" and stopped["message"]["content"] == text[: text.index(end)]
    prompts = {"model": vllm.service.base_names[0], "prompt": ["ab", "cd"], "max_tokens": 3, "seed": 1}
    both = vllm.http.post("/v1/completions", json={**prompts, "temperature": 0}).json()
    assert [choice["index"] for choice in both["choices"]] == [0, 1]


def test_a_server_that_is_gone_is_503_and_comes_back(start: Callable[..., Any]) -> None:
    vllm = start()
    vllm.add("loud", seed=1)
    there = vllm.service.runner._client._http
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        there.base_url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert is_503(vllm.ask("loud"))
        assert is_503(vllm.ask())
    there.base_url = vllm.service.runner._client.url
    said(vllm.ask("loud"))


def test_experts_and_other_models_are_refused(start: Callable[..., Any], tmp_path: Path, model: Path) -> None:
    vllm = start()
    with pytest.raises(UsageError, match="vLLM takes LoRA adapters alone, not a ExpertVector"):
        vllm.service.runner.submit(Request([1], ExpertVector({"x": torch.ones(2)})))
    assert vllm.ask(adapter="auto").json()["adapter"] == {"auto": "none"}
    client = vllm.service.runner._client
    with pytest.raises(UsageError, match="add --served-model-name other/model"):
        type(vllm.service.runner)(
            client,
            type(vllm.service.completions._backbone)(
                None, vllm.service.completions._backbone.tokenizer, Other
            ),
            None,
            limits=vllm.service.runner.limits,
            read=None,
            keep=None,
            observe=None,
        )


class Other:
    base_model = "other/model"


def test_nothing_starts_without_it(tmp_path: Path, model: Path) -> None:
    registry = Registry(tmp_path / "r")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="cannot be reached"):
            open_service(registry, str(model), engine=EngineConfig(engine="vllm", vllm_url=url))
    with pytest.raises(UsageError, match="needs --vllm-url"):
        open_service(registry, str(model), engine=EngineConfig(engine="vllm"))
    assert not list((tmp_path / "r").glob("vllm-*"))
    registry.close()
