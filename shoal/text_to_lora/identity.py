"""The adapter of a base model for which no hypernetwork is trained: it changes nothing, and says so.

Knows shapes and settings; nothing of descriptions or hypernetworks.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from shoal.adapters.lora import LoRA
from shoal.config import TextToLoRAConfig
from shoal.models.modules import TargetModule

log = logging.getLogger(__name__)

_said: set[str] = set()  # base models of which the log has said it


@dataclass(frozen=True)
class Identity:
    """What stands where no hypernetwork is trained.

    Attributes:
        base_model: hub id or path.
        config: sizes of the adapter.
        targets: its modules.
        misfits: why each shipped hypernetwork for the base model does not serve.
    """

    base_model: str
    config: TextToLoRAConfig
    targets: Sequence[TargetModule]
    misfits: tuple[str, ...] = ()

    @cached_property
    def lora(self) -> LoRA:
        """The adapter: A is noise, always the same, and B is zero."""
        noise = torch.Generator().manual_seed(0)
        alpha = float(self.config.adapter_alpha)
        return LoRA.identity(self.targets, self.config.adapter_rank, alpha, generator=noise)

    @property
    def how_to_train(self) -> str:
        """The command that trains what is missing; DATA and OUT are the user's to fill in."""
        flags = ["--base", self.base_model]
        for name, value in self.config.model_dump(exclude_defaults=True).items():
            text = ",".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
            flags += [f"--{name.replace('_', '-')}", text]
        return f"shoal train text-to-lora {shlex.join(flags)} --tasks DATA --out OUT"

    def __str__(self) -> str:
        """That no hypernetwork is trained, and what to do."""
        return (
            f"no hypernetwork is trained for {self.base_model} with this configuration; "
            f"train one with: {self.how_to_train}"
        )

    def warn(self) -> None:
        """Warn, once for this process and base model, that its adapters change nothing."""
        if self.base_model not in _said:
            _said.add(self.base_model)
            distil = "or distil the prompted model: shoal generate --distil --inputs FILE"
            log.warning("%s", "; ".join(["the adapter changes nothing", *self.misfits, str(self), distil]))


def within(config: TextToLoRAConfig, num_layers: int) -> TextToLoRAConfig:
    """The configuration with at most as many layers as there are, where their number was left open."""
    if "num_layers_to_adapt" in config.model_fields_set:
        return config
    layers = min(config.num_layers_to_adapt or num_layers, num_layers)
    return config.model_copy(update={"num_layers_to_adapt": layers})
