"""IA3 and LoRA with as many parameters as an expert, trained on the same rewards by the same steps.

    python benchmarks/_expert_controls.py SKILL [SEED ...]

trains both for the skill and keeps them under runs/experts/controls. Both are PEFT's own, put into the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from _machine import DATA, ROOT
from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save
from torch import nn

from shoal.config import ExpertTrainingConfig
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Task, load_split
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.transformer2.train import train_on_rewards

RECIPES = ROOT / "configs" / "experts"
PLACE = ROOT / "runs" / "experts"
# 11,520 numbers each, as 128 singular values of 90 MLP weights:
# 30 layers x (192 + 192) and 15 layers x (576 + 192).
IA3, LORA = "IA3 on k and v", "LoRA of rank 1 on v of the last 15 layers"
RATES = {IA3: 2e-2, LORA: 5e-3}
CONFIGS = {
    IA3: IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    LORA: LoraConfig(r=1, lora_alpha=1, target_modules=["v_proj"], layers_to_transform=list(range(15, 30))),
}


class PeftTuned:
    """An adapter of PEFT in a model, off unless attached."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        inject_adapter_in_model(CONFIGS[kind], model)
        self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        named = [(n, p) for n, p in model.named_parameters() if ".lora_" in n or ".ia3_" in n]
        for _, parameter in named:
            parameter.data = parameter.data.float()
        self.names, self.module = [n for n, _ in named], nn.ParameterList(p for _, p in named)
        self._kind = kind
        self._enable(False)

    @contextmanager
    def attached(self) -> Iterator[None]:
        self._enable(True)
        try:
            yield
        finally:
            self._enable(False)

    def fingerprint(self) -> object:
        return self._kind, len(self.names)

    def _enable(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        for parameter in self.module:
            parameter.requires_grad_(True)


def recipe(skill: str) -> dict[str, object]:
    return yaml.safe_load((RECIPES / f"{skill}.yaml").read_text("utf-8"))


def skills() -> list[str]:
    return sorted(p.stem for p in RECIPES.glob("*.yaml") if p.stem != "dispatch")


def tasks_of(skill: str, size: int = 256, data: Path = DATA) -> list[Task]:
    """The tasks of a recipe, as `shoal train expert` makes them; those not made in code are in `data`."""
    wanted = recipe(skill)["task"]
    known = {t.name: t for t in procedural_tasks(size=size, test_size=size // 8)}
    if not set(wanted) <= known.keys():
        known = {t.name: t for t in load_split(data).train}
    return [known[name] for name in wanted]


def control(kind: str, skill: str, seed: int, backbone: Backbone | None = None) -> tuple[Backbone, PeftTuned]:
    """The model with the trained control in it, from the folder or trained now."""
    backbone = backbone or load_backbone(DEFAULT_MODEL)
    torch.manual_seed(seed)
    tuned = PeftTuned(backbone.model, kind)
    name = f"{'ia3' if kind == IA3 else 'lora'}-{skill}-{seed}"
    path = PLACE / "controls" / f"{name}.safetensors"
    if not path.is_file():
        fields = {k: v for k, v in recipe(skill).items() if k in ExpertTrainingConfig.model_fields}
        config = ExpertTrainingConfig(**{**fields, "seed": seed, "learning_rate": RATES[kind]})
        folder = PLACE / "controls" / f"{name}.run"
        summary, _ = train_on_rewards(backbone, tuned, tasks_of(skill), folder, config, show_progress=False)
        print(f"{name}: {summary.seconds:.0f} s", file=sys.stderr, flush=True)
        state = {n: p.detach().contiguous() for n, p in zip(tuned.names, tuned.module, strict=True)}
        write_file(path, save(state))
    stored = load_file(path)
    with torch.no_grad():
        for own, parameter in zip(tuned.names, tuned.module, strict=True):
            parameter.copy_(stored[own])
    return backbone, tuned


if __name__ == "__main__":
    skill, *seeds = sys.argv[1:]
    for seed in map(int, seeds or [0]):
        for kind in CONFIGS:
            control(kind, skill, seed)
