"""Base models as known without a file of theirs: names of their modules, and sizes of some. Tables."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What a role is called in each family, as the end of a module's name within its layer. Families that fuse the
# query, key and value projections name one module for all three; those that read keys and values from a
# narrow state name the projection out of it.
_QKV = ("attn.c_attn", "attention.query_key_value", "self_attention.query_key_value", "self_attn.qkv_proj")
_LATENT = "self_attn.kv_b_proj"
ROLES: dict[str, tuple[str, ...]] = {
    "q_proj": ("self_attn.q_proj", "attn.q_proj", "self_attn.q_b_proj", *_QKV),
    "k_proj": ("self_attn.k_proj", "attn.k_proj", _LATENT, *_QKV),
    "v_proj": ("self_attn.v_proj", "attn.v_proj", _LATENT, *_QKV),
    "o_proj": (
        "self_attn.o_proj",
        "self_attn.out_proj",
        "self_attn.dense",
        "attn.out_proj",
        "attn.c_proj",
        "attention.dense",
        "self_attention.dense",
    ),
    "gate_proj": ("mlp.gate_proj", "mlp.gate_up_proj"),
    "up_proj": (
        "mlp.up_proj",
        "mlp.gate_up_proj",
        "mlp.c_fc",
        "mlp.dense_h_to_4h",
        "mlp.fc1",
        "mlp.fc_in",
        "fc1",
    ),
    "down_proj": ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "fc2"),
}


@dataclass(frozen=True)
class KnownModel:
    """Sizes of a base model.

    Attributes:
        model_type: architecture name of `transformers`: `gpt2` or `llama`.
        layers: decoder layers.
        width: of the hidden states.
        heads: attention heads of queries.
        key_value_heads: those of keys and values.
        intermediate: width inside the MLP.
        vocabulary: tokens.
        tied: the output layer is the embedding.
    """

    model_type: str
    layers: int
    width: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    tied: bool


_GPT2_SMALL = KnownModel("gpt2", 12, 768, 12, 12, 4 * 768, 50257, True)
_GPT2_MEDIUM = KnownModel("gpt2", 24, 1024, 16, 16, 4 * 1024, 50257, True)
# The default model, and those that the documentation names.
KNOWN_MODELS: dict[str, KnownModel] = {
    DEFAULT_HUB_ID: KnownModel("llama", 30, 576, 9, 3, 1536, 49152, True),
    "gpt2": _GPT2_SMALL,
    "openai-community/gpt2": _GPT2_SMALL,
    "gpt2-medium": _GPT2_MEDIUM,
    "openai-community/gpt2-medium": _GPT2_MEDIUM,
    "microsoft/DialoGPT-small": _GPT2_SMALL,
    "microsoft/DialoGPT-medium": _GPT2_MEDIUM,
    "meta-llama/Llama-2-7b-hf": KnownModel("llama", 32, 4096, 32, 32, 11008, 32000, False),
    "mistralai/Mistral-7B-v0.1": KnownModel("llama", 32, 4096, 32, 8, 14336, 32000, False),
}
