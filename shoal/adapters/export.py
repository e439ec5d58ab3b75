"""Adapters for other engines: merged into a whole model, or as a GGUF adapter for llama.cpp.

Knows the layout of weights in each; nothing of how adapters are made or served.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shoal.adapters.hooks import merge
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.files import write_directory, write_file

# What a merged model's directory may hold, and is replaced.
MODEL_FILES = (
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
GGUF_DTYPES = (torch.float32, torch.float16)
_ENDS = ("token_embd.", "output.")  # embedding, whose A llama.cpp reads by rows, and output layer


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model: of queries, and of keys and values."""

    query: int
    key_value: int


Reorder = Callable[[Float[Tensor, "out rank"], int], Float[Tensor, "out rank"]]


def _interleave_rotary(b: Float[Tensor, "out rank"], heads: int) -> Float[Tensor, "out rank"]:
    """Rows of each head from (first halves, second halves) of the rotary pairs to the pairs themselves."""
    return b.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _split_fused(b: Float[Tensor, "out rank"], heads: int) -> Float[Tensor, "out rank"]:
    """Rows from (head, query key value, size) to (query key value, head, size)."""
    return b.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


@dataclass(frozen=True)
class GgufFamily:
    """The layout of a family in llama.cpp.

    Attributes:
        architecture: its name in GGUF.
        reorder: end of a module's name -> what llama.cpp's converter does to the rows of its weight.
    """

    architecture: str
    reorder: Mapping[str, Reorder] = field(default_factory=dict)


_ROTARY = {"q_proj": _interleave_rotary, "k_proj": _interleave_rotary}
# `model_type` in transformers -> family. The reorderings are those of llama.cpp's conversion/*.py.
GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("llama", _ROTARY),
    "mistral": GgufFamily("llama", _ROTARY),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "gemma": GgufFamily("gemma"),
    "gemma2": GgufFamily("gemma2"),
    "gemma3_text": GgufFamily("gemma3"),
    "gpt2": GgufFamily("gpt2"),
    "gpt_neox": GgufFamily("gptneox", {"query_key_value": _split_fused}),
    "phi": GgufFamily("phi2"),
}


def export_merged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: LoRA, directory: str | os.PathLike[str]
) -> None:
    """Write the model with the adapter in its weights, for tools without adapters; the model stays as it was.

    Args:
        model: the base model, not quantised; its weights are changed while they are written.
        tokenizer: written beside it.
        lora: the adapter.
        directory: where to; made if missing, replaced as a whole.

    Raises:
        UsageError: the adapter does not fit the model.
        ShoalError: the directory cannot be written.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    with merge(model, lora):
        write_directory(directory, write)


def export_gguf(
    lora: LoRA,
    path: str | os.PathLike[str],
    *,
    config: PretrainedConfig,
    name: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the adapter as a GGUF file, which llama.cpp scales by alpha / rank.

    Args:
        lora: the adapter.
        path: of the file, replaced as a whole.
        config: configuration of the base model: its family, layers and heads.
        name: what llama.cpp shows as the adapter's name.
        dtype: float32 or float16.

    Raises:
        UsageError: no layout is known for the family or a module, or the dtype or alpha cannot be written.
        ShoalError: the file cannot be written.
    """
    import gguf  # only this export needs it

    family = GGUF_FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(GGUF_FAMILIES)
        raise UsageError(
            f"no GGUF layout is known for {config.model_type!r} models, only for {known}; export merged"
        )
    if dtype not in GGUF_DTYPES:
        raise UsageError(f"GGUF adapters are float32 or float16, not {dtype}; choose one of these")
    if not lora.alpha > 0:
        raise UsageError(f"alpha {lora.alpha} is not above 0, which llama.cpp ignores; fold the scale into B")
    architecture = next(a for a, known in gguf.MODEL_ARCH_NAMES.items() if known == family.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)

    def write(file: Path) -> None:
        writer = gguf.GGUFWriter(file, family.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora.alpha)
        for tensor_name, tensor in tensors.items():
            writer.add_tensor(tensor_name, tensor.detach().to("cpu", dtype).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    tensors = {}
    for module, (a, b) in lora.factors.items():
        target = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if target is None:
            raise UsageError(
                f"llama.cpp has no name for {module} of {family.architecture} models; leave it out"
            )
        if target.startswith(_ENDS) and getattr(config, "tie_word_embeddings", True):
            raise UsageError(
                f"{module} and the model's other end are one weight, which llama.cpp cannot split; "
                "export merged"
            )
        tensors[f"{target}.lora_a"] = a.T if target.startswith("token_embd") else a
        tensors[f"{target}.lora_b"] = _reordered(module, b, family, _heads(config))
    write_file(path, write)


def _heads(config: PretrainedConfig) -> Heads:
    query = config.num_attention_heads
    return Heads(query, getattr(config, "num_key_value_heads", None) or query)


def _reordered(module: str, b: Tensor, family: GgufFamily, heads: Heads) -> Tensor:
    kind = module.rsplit(".", 1)[-1]
    if kind not in family.reorder:
        return b
    return family.reorder[kind](b, heads.key_value if kind == "k_proj" else heads.query)
