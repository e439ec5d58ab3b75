"""Hybrid and recurrent models: each is continued as in one plain pass, or refused before it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA
from shoal.errors import ShoalError
from shoal.inference.decoding import Rows
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import prompt_scores
from shoal.models.backbone import load_backbone, load_shape
from shoal.models.memories import LayerMemory
from tests.conftest import byte_tokenizer
from tests.fixtures.cli import SMALL, in_process

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 8,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
CONV = {"layer_types": ["conv", "full_attention", "conv"]}

ANSWERED: dict[str, dict[str, Any]] = {
    "lfm2": CONV,
    "lfm2_moe": {**CONV, **EXPERTS, "num_dense_layers": 1},
    "qwen3_next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "olmo_hybrid": LINEAR,
    "nemotron_h": {
        "hybrid_override_pattern": "M*-",
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "head_dim": 8,
        "use_mamba_kernels": False,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "head_dim": 8},
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention", "mamba"],
        "shared_intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
}
IN_ONE = {"jamba"}  # its states do not go on over several tokens
REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {},
    "falcon_mamba": {},
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {},
    "minimax": {"layer_types": LINEAR["layer_types"], "num_local_experts": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"], "lru_width": 32},
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny random model of a family, whose weights are large enough that its past matters."""

    def saved(family: str, **settings: Any) -> Path:
        tokenizer = byte_tokenizer()
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **SIZES | settings)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.15)
        model.save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return tmp_path / family

    return saved


@pytest.mark.parametrize("family", ANSWERED)
def test_rows_that_come_and_go_have_the_logits_that_they_have_alone(
    family: str, save: Callable[..., Path]
) -> None:
    backbone = load_backbone(str(save(family, **ANSWERED[family])), device="cpu", dtype=torch.float32)
    assert backbone.in_pieces == (family not in IN_ONE)
    texts: list[list[int]] = []
    rows = Rows(backbone)

    def check(logits: torch.Tensor, texts: list[list[int]]) -> None:
        for own, ids in zip(logits, texts, strict=True):
            alone = backbone.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(own, alone, atol=2e-4, rtol=1e-4)

    def join(prompts: list[list[int]], picks: list[int]) -> None:
        more = Rows(backbone, prompts)
        while more.unread:
            logits = more.read(4)
        check(logits, prompts)
        rows.join(more, picks)
        texts.extend(list(prompts[pick]) for pick in picks)

    def step(token: int) -> None:
        appended = [token + place for place in range(len(texts))]
        for ids, new in zip(texts, appended, strict=True):
            ids.append(new)
        check(rows.step(torch.tensor(appended)), texts)

    join([list(range(9)), [7], [5, 6, 4]], [0, 2, 1, 1])
    step(30)
    rows.drop(1)
    texts[1] = texts.pop()
    step(50)
    join([list(range(40, 61))], [0])  # longer than all that are there
    rows.drop(0)
    texts[0] = texts.pop()
    step(70)
    while texts:
        rows.drop(len(texts) - 1)
        texts.pop()


@pytest.mark.parametrize("family", ["lfm2", "jamba"])
def test_answers_and_scores_are_those_of_transformers(family: str, save: Callable[..., Path]) -> None:
    backbone = load_backbone(str(save(family, **ANSWERED[family])), device="cpu", dtype=torch.float32)
    asked = ["Hi", "a longer request than the other one"]
    answers = generate_greedy(backbone, asked, max_new_tokens=8)
    for request, answer in zip(asked, answers, strict=True):
        prompt = torch.tensor([backbone.encode_prompt(request)])
        ended = backbone.model.generate(
            prompt, max_new_tokens=8, do_sample=False, eos_token_id=sorted(backbone.end_tokens)
        )
        kept = [t for t in ended[0, prompt.shape[1] :].tolist() if t not in backbone.end_tokens]
        assert answer == backbone.tokenizer.decode(kept, skip_special_tokens=True).strip()
    prompt = backbone.encode_prompt(asked[1])
    logits = backbone.model(torch.tensor([prompt]), use_cache=False).logits[0].log_softmax(-1)
    found = [s for piece in prompt_scores(backbone, prompt, 0, columns=8) for s in piece]
    expected = logits[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    torch.testing.assert_close(
        torch.tensor([s.chosen.logprob for s in found]), expected, atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("family", ["lfm2", "jamba", "qwen3_next"])
def test_hybrid_models_are_trained_and_answer_with_what_they_learned(
    family: str, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOAL_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    shoal, folder = in_process(monkeypatch, capsys), save(family, **ANSWERED[family])
    lines = [json.dumps({"input": f"film {i}", "output": "good"}) for i in range(8)]
    Path("examples.jsonl").write_text("\n".join(lines))
    arguments = (
        "--tasks",
        "examples.jsonl",
        "--definition",
        "Judge.",
        "--steps",
        "2",
        "--out",
        "out",
        *SMALL,
    )
    ended = shoal("train", "lora", "--base", folder, *arguments)
    assert ended.code == 0, ended.err
    ended = shoal("ask", "Hi", "--base", folder, "--adapter", "out", "--max-new-tokens", "2")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_loses_what_it_read_is_refused_before_it_is_trained(
    family: str, save: Callable[..., Path]
) -> None:
    folder = save(family, **REFUSED[family])
    with pytest.raises(ShoalError, match="cannot answer here") as caught:
        load_backbone(str(folder), device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_a_model_that_takes_no_cache_is_refused_by_its_configuration(save: Callable[..., Path]) -> None:
    with pytest.raises(ShoalError, match="takes no cache of keys and values"):
        load_shape(str(save("rwkv", **REFUSED["rwkv"])))


class ForgetfulForCausalLM(LlamaForCausalLM):
    """A made-up architecture that ignores its cache."""

    config_class = type("ForgetfulConfig", (LlamaConfig,), {"model_type": "forgetful"})

    def forward(self, input_ids: Any, cache: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        kept = {name: value for name, value in kwargs.items() if name not in ("attention_mask", "use_cache")}
        return super().forward(input_ids, use_cache=False, **kept)


class BrokenForCausalLM(ForgetfulForCausalLM):
    """Another, that fails in its own way when it is given a cache."""

    config_class = type("BrokenConfig", (LlamaConfig,), {"model_type": "broken_memory"})

    def forward(self, input_ids: Any, cache: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(input_ids) if cache is None else cache.no_such_state


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ForgetfulForCausalLM, "lose what they read before"),
        (BrokenForCausalLM, "no attribute 'no_such_state'"),
    ],
)
def test_an_unknown_architecture_that_cannot_go_on_is_refused(
    model: Any, message: str, save: Callable[..., Path]
) -> None:
    name = model.config_class.model_type
    AutoConfig.register(name, model.config_class, exist_ok=True)
    AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
    with pytest.raises(ShoalError, match=message) as caught:
        load_backbone(str(save(name)), device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dry_run_sees_through_rounding(
    dtype: torch.dtype, save: Callable[..., Path], tiny_llama: Path
) -> None:
    assert load_backbone(str(tiny_llama), device="cpu", dtype=dtype).in_pieces
    assert not load_backbone(str(save("jamba", **ANSWERED["jamba"])), device="cpu", dtype=dtype).in_pieces


def test_layers_are_known_by_what_they_remember(save: Callable[..., Path]) -> None:
    backbone = load_backbone(str(save("lfm2", **ANSWERED["lfm2"])), device="cpu", dtype=torch.float32)
    conv, attention = LayerMemory(keys=False, states=1), LayerMemory()
    assert backbone.memories == (conv, attention, conv)


def test_an_adapter_of_a_hybrid_model_computes_the_same_in_rows(save: Callable[..., Path]) -> None:
    backbone = load_backbone(str(save("lfm2", **ANSWERED["lfm2"])), device="cpu", dtype=torch.float32)
    lora = LoRA.identity(backbone.shape.targets, 2, 8.0, generator=torch.Generator().manual_seed(0))
    for factors in lora.factors.values():
        factors.b.normal_(0, 0.1)
    found = Rows(backbone, [[5, 6, 7], [8, 9]], [lora, None]).read()
    with attach(backbone.model, lora):
        expected = backbone.model(torch.tensor([[5, 6, 7]]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(found[0], expected, atol=2e-4, rtol=1e-4)
