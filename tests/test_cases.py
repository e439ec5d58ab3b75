"""Inputs of real users, rebuilt small: each folder of ../shared/cases ends as its README says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import transformers
from safetensors.torch import load_file
from starlette.testclient import TestClient

from shoal.adapters.files import load_adapter
from shoal.models.backbone import load_backbone
from shoal.tasks.files import load_jsonl
from shoal.tasks.metrics import bleu
from tests.fixtures.cli import SMALL, Ended, Shoal, in_process
from tests.fixtures.service import Running, small

CASES = Path(os.environ.get("SHOAL_CASES", Path(__file__).resolve().parents[2] / "shared" / "cases"))
TRAIN = ("--definition", "Judge the review.", "--steps", "1", "--out", "out", *SMALL)

pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason=f"no {CASES}: set SHOAL_CASES to the folder of cases"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The following .* keys:RuntimeWarning"),
]


class _Names(dict[str, Any]):
    """Names of a script that begins with `from transformers import *`, which would import every model."""

    def __missing__(self, name: str) -> Any:
        try:
            return getattr(transformers, name)
        except AttributeError:
            raise KeyError(name) from None


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Copies a case into the working directory, and runs its make.py there."""

    def copied(name: str) -> Path:
        shutil.copytree(CASES / name, tmp_path / "case")
        monkeypatch.chdir(tmp_path / "case")
        make = tmp_path / "case" / "make.py"
        if make.is_file():
            source = make.read_text().replace("from transformers import *\n", "")
            exec(source.replace("shoal.model_source", "shoal.models.sources"), {}, _Names())
        return tmp_path / "case"

    return copied


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shoal:
    monkeypatch.setenv("SHOAL_REGISTRY", str(tmp_path / "registry"))
    return in_process(monkeypatch, capsys)


def succeeded(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended


def failed(ended: Ended, *parts: str) -> None:
    assert ended.code == 1 or ended.code == 2, ended.err
    assert ended.err.count("\n") == 1 and "unexpected" not in ended.err, ended.err
    for part in parts:
        assert part in ended.err


PLAIN = [
    "adapter-base-other-machine",
    "adapter-base-other-name",
    "adapter-compiled-prefix",
    "adapter-language-model-prefix",
    "adapter-mixed-dtypes",
    "adapter-name-in-keys",
    "adapter-rank-pattern-regex",
]


@pytest.mark.parametrize("name", PLAIN)
def test_an_adapter_is_imported_with_all_its_numbers(
    name: str, case: Callable[[str], Path], shoal: Shoal
) -> None:
    folder = case(name) / "adapter"
    succeeded(shoal("adapters", "import", "mine", "adapter"))
    succeeded(shoal("adapters", "export", "mine", "--out", "exported"))
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = load_adapter("exported").lora
    assert kept.rank == (2 if name == "adapter-rank-pattern-regex" else 1)
    for role in ("q_proj", "v_proj"):
        a, b = (
            next(t.float() for key, t in tensors.items() if role in key and f"lora_{letter}" in key)
            for letter in "AB"
        )
        found = kept.delta_weight(f"model.layers.0.self_attn.{role}").float()
        torch.testing.assert_close(found, 2 / a.shape[0] * (b @ a))


def test_a_lora_of_the_head_is_imported(case: Callable[[str], Path], shoal: Shoal) -> None:
    case("adapter-head-lora")
    succeeded(shoal("adapters", "import", "mine", "adapter"))
    succeeded(shoal("adapters", "export", "mine", "--out", "exported"))
    assert "lm_head" in load_adapter("exported").lora.factors


def test_links_into_the_hub_cache_are_followed(case: Callable[[str], Path], shoal: Shoal) -> None:
    cache = case("adapter-hub-links") / "models--someone--lora"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(Path("adapter").iterdir())):
        shutil.copy(file, cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    succeeded(shoal("adapters", "import", "mine", snapshot.relative_to(Path.cwd())))


@pytest.mark.parametrize("name", ["adapter-base-relative", "adapter-saved-embeddings"])
def test_an_adapter_of_a_model_here_is_imported(name: str, case: Callable[[str], Path], shoal: Shoal) -> None:
    case(name)
    succeeded(shoal("adapters", "import", "mine", "adapter", "--base", "model"))


def test_an_adapter_of_fused_experts_is_imported(case: Callable[[str], Path], shoal: Shoal) -> None:
    case("adapter-moe-parameters")
    succeeded(shoal("adapters", "import", "mine", "adapter", "--base", "model"))
    succeeded(shoal("adapters", "export", "mine", "--out", "exported"))
    factors = load_adapter("exported").lora.factors
    assert factors["model.layers.1.mlp.experts.down_proj"].a.shape == (2, 4, 32)


def test_the_adapter_at_the_top_of_a_zip_is_taken(case: Callable[[str], Path], shoal: Shoal) -> None:
    case("adapter-zip-with-checkpoint")
    succeeded(shoal("adapters", "import", "mine", "adapter.zip"))


def test_an_instruction_is_part_of_the_prompt(case: Callable[[str], Path]) -> None:
    task = load_jsonl(case("data-instruction-column") / "examples.jsonl", definition="x", test_size=2)
    examples = [*task.train, *task.test]
    assert len(examples) == 12
    for example in examples:
        assert len(example.outputs) == 1
        assert example.input.startswith(("Translate into German.", "Write in capital letters."))
        assert example.outputs[0].isupper() == example.input.startswith("Write")


@pytest.mark.parametrize(
    "name",
    [
        "data-json-array/examples.json",
        "data-messages/examples.jsonl",
        "data-prompt-completion/examples.jsonl",
    ],
)
def test_common_forms_of_examples_are_trained_on(
    name: str, case: Callable[[str], Path], shoal: Shoal, tiny_llama: Path
) -> None:
    folder, _, file = name.partition("/")
    case(folder)
    succeeded(shoal("train", "lora", "--base", tiny_llama, "--tasks", file, *TRAIN))


def test_half_a_surrogate_pair_is_an_error_with_its_line(
    case: Callable[[str], Path], shoal: Shoal, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = case("data-lone-surrogate")
    failed(shoal("train", "lora", "--base", tiny_llama, "--tasks", "examples.jsonl", *TRAIN), "line 9")
    service, http = small(tiny_llama, tmp_path / "served")
    try:
        sent = {"data": {"name": "x", "definition": "Judge the review."}}
        sent |= {"files": {"examples": (folder / "examples.jsonl").read_bytes()}}
        answer = http.post("/v1/jobs", **sent)  # type: ignore[arg-type]
        assert answer.status_code == 400, answer.text
    finally:
        service.close()


def test_bleu_splits_scripts_without_spaces(case: Callable[[str], Path]) -> None:
    given = json.loads((case("metric-bleu-chinese") / "case.json").read_text())
    assert bleu(given["answers"], given["references"]).score == pytest.approx(51.2, abs=0.1)


def test_logits_that_overflow_are_an_error(case: Callable[[str], Path], shoal: Shoal) -> None:
    case("model-half-precision")
    failed(shoal("ask", "Hi", "--base", "model", "--dtype", "float16"), "not finite", "float16", "float32")


def test_a_hybrid_model_answers_as_transformers_and_is_trained(
    case: Callable[[str], Path], shoal: Shoal
) -> None:
    case("model-hybrid")
    arguments = ("--base", "model", "--dtype", "float32", "--max-new-tokens", "6", "--json")
    record = succeeded(shoal("ask", "Hi", *arguments)).record
    backbone = load_backbone("model", device="cpu", dtype=torch.float32)
    prompt = torch.tensor([backbone.encode_prompt("Hi")])
    ended = backbone.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
    assert record["answer"] == backbone.tokenizer.decode(ended, skip_special_tokens=True).strip()
    lines = [json.dumps({"input": f"film {i}", "output": "good"}) for i in range(8)]
    Path("examples.jsonl").write_text("\n".join(lines))
    succeeded(shoal("train", "lora", "--base", "model", "--tasks", "examples.jsonl", *TRAIN))


def test_named_templates_are_named(case: Callable[[str], Path], shoal: Shoal) -> None:
    case("model-named-templates")
    failed(shoal("ask", "Hi", "--base", "model"), "rag", "tool_use", "default")


def test_a_template_that_wants_parts_gets_parts(case: Callable[[str], Path]) -> None:
    case("model-parts-template")
    backbone = load_backbone("model")
    assert "Hi there" in backbone.tokenizer.decode(backbone.encode_prompt("Hi there"))
    assert backbone.end_of_turn == 2


def test_every_end_token_of_the_model_ends_an_answer(
    case: Callable[[str], Path], shoal: Shoal, capsys: pytest.CaptureFixture[str]
) -> None:
    case("model-two-ends")
    expected = capsys.readouterr().out.partition("expected:")[2].strip()
    arguments = ("--base", "model", "--dtype", "float32", "--max-new-tokens", "6", "--json")
    record = succeeded(shoal("ask", "Hi", *arguments)).record
    assert record["answer"].strip() == expected


@pytest.fixture
def http(running: Running) -> Any:
    with running.http(running.ada) as http:
        yield http


ANSWERED = {
    "request-cache-control": "chat/completions",
    "request-echo-logprobs": "completions",
    "request-empty-tools": "chat/completions",
    "request-five-stops": "completions",
    "request-message-type": "chat/completions",
    "request-neutral-extensions": "chat/completions",
    "request-null-fields": "chat/completions",
    "request-reply-in-history": "chat/completions",
}


def sent(http: httpx2.Client, running: Running, name: str, route: str) -> httpx2.Response:
    body = json.loads((CASES / name / "request.json").read_text()) | {"model": running.model}
    return http.post(f"/v1/{route}", json=body)


@pytest.mark.parametrize("name", ANSWERED)
def test_a_request_of_a_real_client_is_answered(name: str, http: httpx2.Client, running: Running) -> None:
    answer = sent(http, running, name, ANSWERED[name])
    assert answer.status_code == 200, answer.text
    if name == "request-echo-logprobs":
        scores = answer.json()["choices"][0]["logprobs"]
        assert scores["token_logprobs"][0] is None
        assert "".join(scores["tokens"]).startswith("The capital of France is Paris")


def test_an_image_is_refused_by_name(http: httpx2.Client, running: Running) -> None:
    answer = sent(http, running, "request-image-part", "chat/completions")
    assert answer.status_code == 400
    assert "image_url" in answer.json()["error"]["message"] and "text" in answer.json()["error"]["message"]


@pytest.mark.parametrize("allowed", [True, False])
def test_a_preflight_is_answered_per_setting(tiny_llama: Path, tmp_path: Path, allowed: bool) -> None:
    origin = "http://localhost:3000"
    settings: dict[str, Any] = {"allowed_origins": (origin,)} if allowed else {}
    service, client = small(tiny_llama, tmp_path / "registry", **settings)
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    try:
        answer = TestClient(client.app).options("/v1/chat/completions", headers={"Origin": origin, **asked})
        if allowed:
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        else:
            assert answer.status_code == 403 and "allowed_origins" in answer.text
    finally:
        service.close()
