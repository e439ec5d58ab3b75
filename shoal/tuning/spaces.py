"""The space that is searched where none is given, for each command: few axes, the learning rate before all.

Sources: "LoRA Without Regret" (Schulman et al., 2025): the best rate is high in short runs and nearly the
same for every rank at a fixed alpha; arXiv 2602.04998: with it tuned, the rest is worth one or two percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from shoal.config import ExpertTrainingConfig, Frozen, LoraTrainingConfig, TextToLoRAConfig
from shoal.errors import UsageError

Kind = Literal["lora", "expert", "refine"]
MODELS: Mapping[Kind, tuple[type[Frozen], ...]] = {  # whose fields can be searched
    "lora": (LoraTrainingConfig, TextToLoRAConfig),
    "expert": (ExpertTrainingConfig,),
    "refine": (LoraTrainingConfig,),
}
_MODULES = [["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]]

DEFAULT_SPACES: Mapping[Kind, Mapping[str, Any]] = {
    "lora": {
        "learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
        "steps": [0.25, 0.5, 1],
        "adapter_rank": [4, 8, 16],
        "target_modules": _MODULES,
    },
    "expert": {
        "learning_rate": {"low": 2e-3, "high": 5e-2, "log": True},
        "kl_weight": [0.0, 0.002, 0.02],
    },
    "refine": {
        "learning_rate": {"low": 2e-4, "high": 5e-3, "log": True},
        "steps": [0.25, 0.5, 1],
    },
}


def default_space(kind: Kind, steps: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The shipped space without what flags fix; its steps are shares of those of the defaults.

    Raises:
        UsageError: flags fix every field of it.
    """
    space = {name: entry for name, entry in DEFAULT_SPACES[kind].items() if name not in fixed}
    if "steps" in space:
        space["steps"] = sorted({max(1, round(share * steps)) for share in space["steps"]})
    if not space:
        raise UsageError(
            f"flags fix every field that is searched by default ({', '.join(DEFAULT_SPACES[kind])}); "
            "leave one out, or give --space"
        )
    return space
