"""The frozen language model with its tokenizer: loading it, and how a request is worded.

Its shape alone, without weights, is `shoal.models.shapes`; where its files are is `shoal.models.sources`.
Knows nothing of training, adapters on disk or descriptions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shoal.errors import ShoalError, UsageError, check_unicode, reason
from shoal.models.chat import ChatFormat, no_tools, probe_chat, refuse_calls
from shoal.models.memories import LayerMemory, dry_run, layer_memories
from shoal.models.shapes import (
    ROLES,
    BackboneShape,
    decoder_layers,
    load_shape,
    not_answering,
    on_meta,
    shape_of,
)
from shoal.models.sources import DEFAULT_MODEL, ModelSource, find_model, quietly, read_config
from shoal.models.tokenizer import read_tokenizer

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of weights

__all__ = [
    "DEFAULT_MODEL",
    "DTYPES",
    "ROLES",
    "Backbone",
    "BackboneShape",
    "load_backbone",
    "load_shape",
    "pick_device",
    "pick_dtype",
    "shape_of",
    "usable_device",
]


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: the model, in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        shape: its shape.
        in_pieces: False where a prompt must be read in one forward pass.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shape: BackboneShape
    in_pieces: bool = True

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of its weights."""
        return self.model.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """Its decoder layers."""
        return decoder_layers(self.model)[1]

    @property
    def layers_name(self) -> str:
        """The name of its list of decoder layers, for example `model.layers`."""
        return decoder_layers(self.model)[0]

    @cached_property
    def memories(self) -> tuple[LayerMemory, ...]:
        """What each layer remembers of the tokens before."""
        return layer_memories(self.model.config, len(self.layers))

    def twin(self) -> Backbone:
        """The same weights in modules of their own: what is attached to one is not at work in the other."""
        weights = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return replace(self, model=deepcopy(self.model, weights))

    @cached_property
    def chat(self) -> ChatFormat | None:
        """How its template words conversations; None where it has none. Errors as `probe_chat`."""
        return probe_chat(self.tokenizer, self.shape.base_model)

    @cached_property
    def end_of_turn(self) -> int:
        """The token that closes a completion: the first that the template puts after one, else eos.

        Raises:
            ShoalError: there is neither.
        """
        closer = self.chat.closer if self.chat else None
        token = self.tokenizer.eos_token_id if closer is None else closer
        if token is None:
            raise ShoalError(
                f"the tokenizer of {self.shape.base_model} has no end-of-turn token; set its eos_token"
            )
        return int(token)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """All tokens that end an answer: the end of turn, the tokenizer's, those of both configurations."""
        config: Any = self.model.config
        ends = {self.end_of_turn}
        for source in (self.tokenizer, config, config.get_text_config(), self.model.generation_config):
            stated = getattr(source, "eos_token_id", None)
            ends |= {t for t in (stated if isinstance(stated, list) else [stated]) if type(t) is int}
        return frozenset(ends)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a request: one user message in the chat template, or a bare line without one."""
        return self.encode_prompts([text])[0]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many requests, several times faster than one by one."""
        return self.encode_chats([[{"role": "user", "content": text}] for text in texts])

    def encode_chats(
        self, chats: Sequence[Sequence[Mapping[str, Any]]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[list[int]]:
        """Token ids of conversations, each a list of `role` and `content`, up to where the model answers.

        Raises:
            UsageError: the model's template refuses a conversation, for example two answers in a row, or
                would leave a message, a call of a tool or the tools out; or a text is not Unicode.
        """
        if not chats:
            return []
        for text in (message["content"] for chat in chats for message in chat):
            check_unicode(text, "message")
        if self.chat is None:
            if tools:
                raise UsageError(no_tools(self.shape.base_model))
            refuse_calls(self.shape.base_model, chats)
            texts = ["".join(message["content"] + "\n" for message in chat) for chat in chats]
            return self._encode(texts, add_special_tokens=True)
        return self._encode(self.chat.render(self.tokenizer, chats, tools), add_special_tokens=False)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text that the model goes on with, without a chat template."""
        return self._encode([text], add_special_tokens=True)[0]

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of an answer, closed by the end-of-turn token."""
        return self.encode_completions([text])[0]

    def encode_completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many answers."""
        closed = self.end_of_turn
        return [[*ids, closed] for ids in self._encode(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, strip: bool = True) -> str:
        """The text of an answer's token ids, without special tokens, end of turn or surrounding space."""
        # Not every tokenizer calls these special.
        said = [token for token in ids if token not in self.end_tokens]
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        return text.strip() if strip else text

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        for text in texts:
            check_unicode(text, "text")
        return self.tokenizer(
            list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )["input_ids"]


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
        ShoalError: it is incomplete, broken, not a causal language model, larger than the memory, or cannot
            go on from what it has read.
    """
    device = usable_device(device)
    source = find_model(model)
    log.info("loading the base model %s on %s", source.name, device)
    empty = on_meta(read_config(source), source.name)  # refuses other models before any weight is read
    dtype = dtype or pick_dtype(device)
    _check_memory(empty, source.name, device, dtype)
    loaded, tokenizer = _read(source, dtype)
    loaded.requires_grad_(False).eval().to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    broken = next((name for name, w in loaded.named_parameters() if not _finite(w)), None)
    if broken is not None:
        raise ShoalError(
            f"cannot use {source.name!r}: its weight {broken} holds NaN or infinity; {source.repair}"
        )
    backbone = Backbone(loaded, tokenizer, shape_of(loaded, source.name))
    try:
        return replace(backbone, in_pieces=dry_run(loaded, backbone.memories))
    except ShoalError as error:
        raise ShoalError(not_answering(source.name, loaded, error)) from error


def load_wording(model: str = DEFAULT_MODEL) -> Backbone:
    """A model without its weights: tokenizer, template and shape, for prompts that are answered elsewhere.

    Raises:
        UsageError, ShoalError: as `load_backbone`.
    """
    source = find_model(model)
    empty = on_meta(read_config(source), source.name)
    with suppress(OSError, ValueError):  # many models have none
        empty.generation_config = GenerationConfig.from_pretrained(
            source.location, local_files_only=source.local_only
        )
    return Backbone(empty, read_tokenizer(source), shape_of(empty, source.name))


def pick_device() -> torch.device:
    """CUDA where there is a device (the process's own under `accelerate launch`), else MPS, else the CPU."""
    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(rank)) if rank else torch.device("cuda")
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


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device, if something can be put there; the best there is for None.

    Raises:
        UsageError: nothing can be computed on it here.
    """
    if device is None:
        return pick_device()
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("nothing is computed on it")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {str(device)!r} cannot be used here: {reason(error, 150)}; try 'cpu'"
        ) from error


def _check_memory(empty: nn.Module, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ShoalError if the weights are larger than what is free; where that is not told, go on."""
    needed = sum(w.numel() for w in empty.parameters()) * dtype.itemsize
    free = free_memory(device)
    if free is not None and needed > free:
        raise ShoalError(
            f"{name!r} needs {needed / 2**30:.1f} GiB for its weights in {str(dtype)[6:]}, "
            f"{free / 2**30:.1f} GiB are free on {device}; choose a smaller model or a narrower dtype"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _finite(weight: torch.Tensor) -> bool:
    """True where no number is NaN or infinite; quantised weights and narrower floats are not read."""
    if weight.numel() == 0 or weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return True
    return bool(torch.stack(weight.aminmax()).isfinite().all())


def _read(source: ModelSource, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer; safetensors only."""
    where, local = source.location, source.local_only
    tokenizer = read_tokenizer(source)
    try:
        with quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
                local_files_only=local,
                trust_remote_code=False,
            )
    except Exception as error:  # foreign files: each reader underneath has its own class of error
        raise ShoalError(
            f"cannot load {source.name!r}: {reason(error)}; {source.repair}, with its weights as safetensors"
        ) from error
    model, report = loaded
    wrong = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if wrong:
        raise ShoalError(
            f"cannot load {source.name!r}: {len(wrong)} of its weights are missing or of another shape than "
            f"its config.json says, the first is {wrong[0]}; {source.repair}"
        )
    return model, tokenizer
