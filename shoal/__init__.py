"""Shoal: one frozen language model, many adapters; a sentence in, a working LoRA adapter out.

The names below load on first use (PEP 562): `import shoal` costs milliseconds, loads no torch, and asks for
nothing that only an extra installs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.adapters.hooks import attach, merge
    from shoal.adapters.lora import LoRA
    from shoal.adapters.merging import compose, stack, truncate
    from shoal.config import (
        HypernetworkTrainingConfig,
        LoraTrainingConfig,
        TextToLoRAConfig,
        Transformer2Config,
    )
    from shoal.errors import ShoalError, UsageError
    from shoal.integration import SakanaAIIntegration
    from shoal.library.library import Library
    from shoal.models.backbone import Backbone, load_backbone, load_shape
    from shoal.tasks.loading import load_split
    from shoal.text_to_lora.generator import TextToLoRA

__version__ = "0.1.0"

_HOME = {
    "Backbone": "shoal.models.backbone",
    "HypernetworkTrainingConfig": "shoal.config",
    "Library": "shoal.library.library",
    "LoRA": "shoal.adapters.lora",
    "LoraTrainingConfig": "shoal.config",
    "SakanaAIIntegration": "shoal.integration",
    "ShoalError": "shoal.errors",
    "TextToLoRA": "shoal.text_to_lora.generator",
    "TextToLoRAConfig": "shoal.config",
    "Transformer2Config": "shoal.config",
    "UsageError": "shoal.errors",
    "attach": "shoal.adapters.hooks",
    "compose": "shoal.adapters.merging",
    "load_backbone": "shoal.models.backbone",
    "load_shape": "shoal.models.backbone",
    "load_split": "shoal.tasks.loading",
    "merge": "shoal.adapters.hooks",
    "stack": "shoal.adapters.merging",
    "truncate": "shoal.adapters.merging",
}

__all__ = [
    "Backbone",
    "HypernetworkTrainingConfig",
    "Library",
    "LoRA",
    "LoraTrainingConfig",
    "SakanaAIIntegration",
    "ShoalError",
    "TextToLoRA",
    "TextToLoRAConfig",
    "Transformer2Config",
    "UsageError",
    "attach",
    "compose",
    "load_backbone",
    "load_shape",
    "load_split",
    "merge",
    "stack",
    "truncate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
