"""Loading: every family, frozen and quiet, on the device asked for; broken files are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import Backbone, load_backbone, pick_device, pick_dtype

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt", "phi")
WEIGHTS = "model.safetensors"
TEXTS = (
    "plain",
    "  spaces around \n",
    "",
    "line\nbreaks\n\nand\ttabs",
    "Ünïcode — 漢字 🦊",
    "<|im_end|> in the text",
    "{{ template }} {% code %}",
    "long " * 90,
)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


@pytest.fixture
def llama(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


def test_a_family_is_loaded_frozen(backbone: Backbone) -> None:
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert (backbone.device, backbone.dtype) == (torch.device("cpu"), torch.float32)
    assert len(backbone.layers) == backbone.shape.num_layers == 3
    assert backbone.model.get_submodule(backbone.layers_name) is backbone.layers


def test_loading_is_quiet(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_backbone(str(tiny_llama), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_dtype_is_chosen_by_the_caller(tiny_llama: Path) -> None:
    assert load_backbone(str(tiny_llama), device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_devices_are_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize("hardware", [True, False])
def test_bfloat16_is_picked_where_the_hardware_has_it(
    hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = torch.bfloat16 if hardware else torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: hardware)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware, raising=False)
    assert pick_dtype(torch.device("cuda")) == picked
    assert pick_dtype(torch.device("cpu")) == picked
    assert pick_dtype(torch.device("mps")) == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can be used here")
@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_devices_that_cannot_be_used(device: str, tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used here: .*; try 'cpu'") as caught:
        load_backbone(str(tiny_llama), device=device)
    assert "\n" not in str(caught.value)


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(model: Path) -> None:
        weights = load_file(model / WEIGHTS)
        change(weights)
        save_file(weights, model / WEIGHTS, metadata={"format": "pt"})

    return changed


QUERY = "model.layers.1.self_attn.q_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "half downloaded": (lambda m: (m / WEIGHTS).unlink(), "no file named model.safetensors"),
    "pickled": (lambda m: (m / WEIGHTS).rename(m / "pytorch_model.bin"), "weights as safetensors"),
    "truncated": (
        lambda m: (m / WEIGHTS).write_bytes((m / WEIGHTS).read_bytes()[:9000]),
        "not fully covered|MetadataIncompleteBuffer",
    ),
    "only begun": (lambda m: (m / WEIGHTS).write_bytes(b"\x09"), "(?i)header ?too ?small"),
    "a weight missing": (change_weights(lambda w: w.pop(QUERY)), f"1 of its weights .* {QUERY}"),
    "another shape": (change_weights(lambda w: w.update({QUERY: w[QUERY][:5].clone()})), f"1 of .* {QUERY}"),
    "not finite": (change_weights(lambda w: w[QUERY].fill_(torch.nan)), f"weight {QUERY} holds NaN"),
    "no tokenizer": (lambda m: [p.unlink() for p in m.glob("tokenizer*")], "tokenizer"),
    "broken tokenizer": (lambda m: (m / "tokenizer.json").write_text("{}"), "added_tokens"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models(
    damage: str, tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    inflict, message = DAMAGE[damage]
    inflict(tmp_path / "model")
    with pytest.raises(ShoalError, match=message) as caught:
        load_backbone(str(tmp_path / "model"), device="cpu")
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value) and "download or convert it again" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_what_hangs_on_a_model_is_not_at_work_in_its_twin(llama: Backbone) -> None:
    ids = torch.tensor([llama.encode_prompt("some words")])
    before, twin = llama.model(ids).logits, llama.twin()
    lora = LoRA.identity(llama.shape.targets, 2, 4.0, generator=torch.Generator().manual_seed(0))
    moved = {name: LoraFactors(f.a, f.b + 1) for name, f in lora.factors.items()}
    with attach(llama.model, LoRA(moved, 4.0)):
        assert not torch.allclose(llama.model(ids).logits, before, atol=1e-2)
        assert torch.equal(twin.model(ids).logits, before)
    own, shared = (b.model.get_input_embeddings().weight for b in (llama, twin))
    assert own is shared and twin.shape == llama.shape


def test_requests_are_encoded_as_by_the_tokenizer_itself(backbone: Backbone) -> None:
    expected = [
        backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in TEXTS
    ]
    assert backbone.encode_prompts(TEXTS) == expected
    assert [backbone.encode_prompt(text) for text in TEXTS] == expected
    rows = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert backbone.encode_completions(TEXTS) == [[*row, backbone.end_of_turn] for row in rows]
    assert backbone.encode_completions(TEXTS) == [backbone.encode_completion(text) for text in TEXTS]
    assert backbone.encode_prompts([]) == backbone.encode_completions([]) == []


def test_long_requests_are_no_warning(llama: Backbone, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(llama.encode_prompt("x" * 5000)) > 5000  # more than the tokenizer's model_max_length
    assert capfd.readouterr().err == ""


def test_without_a_template_a_request_is_a_line(llama: Backbone) -> None:
    llama.tokenizer.chat_template = None
    assert llama.encode_prompt("hi") == llama.tokenizer("hi\n")["input_ids"]
    assert llama.end_of_turn == llama.tokenizer.eos_token_id


def test_a_completion_is_closed_as_the_template_does(llama: Backbone) -> None:
    assert llama.end_of_turn == llama.tokenizer.eos_token_id == llama.encode_completion("yes")[-1]
    other = Backbone(llama.model, llama.tokenizer, llama.shape)  # the first has seen its template
    # As Gemma's, whose token for the end of a turn is not eos.
    other.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    assert other.end_of_turn == other.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert other.end_of_turn != other.tokenizer.eos_token_id


def test_without_end_of_turn(llama: Backbone) -> None:
    llama.tokenizer.chat_template = llama.tokenizer.eos_token = None
    with pytest.raises(ShoalError, match="has no end-of-turn token; set its eos_token"):
        _ = llama.end_of_turn


def test_answers_are_decoded_without_special_tokens(llama: Backbone) -> None:
    assert llama.decode(llama.encode_completion(" Ünïcode \n")) == "Ünïcode"


@pytest.mark.slow
def test_the_default_model_speaks() -> None:
    backbone = load_backbone()
    prompt = torch.tensor([backbone.encode_prompt("What is the capital of France?")])
    answer = backbone.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
    )
    assert "Paris" in backbone.decode(answer[0, prompt.shape[1] :].tolist())
    expected = [
        backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in TEXTS
    ]
    assert backbone.encode_prompts(TEXTS) == expected


def test_a_model_larger_than_the_memory_says_so_before_it_is_read(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    huge = {"hidden_size": 2**15, "intermediate_size": 2**20, "num_hidden_layers": 100}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, **huge})
    )  # no weights: they are not looked for
    with pytest.raises(
        ShoalError, match=r"needs [0-9.]+ GiB for its weights in float32, [0-9.]+ GiB are free on cpu"
    ):
        load_backbone(str(tmp_path), device="cpu", dtype=torch.float32)


def test_conversations_are_encoded_like_requests(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    chat = [{"role": "user", "content": "hello"}]
    assert backbone.encode_chats([chat]) == [backbone.encode_prompt("hello")]
    longer = [*chat, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    assert backbone.tokenizer.decode(backbone.encode_chats([longer])[0]) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    backbone.tokenizer.chat_template = "{{ raise_exception('two answers in a row') }}"
    with pytest.raises(UsageError, match="refuses the messages: two answers in a row"):
        backbone.encode_chats([chat])
