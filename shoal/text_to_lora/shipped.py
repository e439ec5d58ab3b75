"""Hypernetworks and their configurations: a fresh one, that of a given one, and which trained one serves.

Knows checkpoints and settings; nothing of descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from shoal.config import HeadName, TextToLoRAConfig
from shoal.errors import UsageError
from shoal.models.backbone import BackboneShape
from shoal.text_to_lora.checkpoint import (
    CONFIG_FILE,
    HypernetworkCheckpoint,
    check_targets,
    load_hypernetwork,
)
from shoal.text_to_lora.heads import HEADS, Architecture
from shoal.text_to_lora.hypernetwork import Hypernetwork

SHIPPED = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Found:
    """The hypernetwork that serves a base model and a configuration.

    Attributes:
        checkpoint: None where none does.
        misfits: why each of the shipped ones for the base model does not, where they do not.
    """

    checkpoint: HypernetworkCheckpoint | None
    misfits: tuple[str, ...] = ()


def find_hypernetwork(shape: BackboneShape, config: TextToLoRAConfig, folder: Path | None = None) -> Found:
    """The hypernetwork of a directory, or by default the first shipped one that fits.

    Raises:
        UsageError: the directory's is for another base model or configuration, or was never trained.
        ShoalError: a checkpoint is damaged.
    """
    if folder is not None:
        checkpoint = load_hypernetwork(folder, base_model=shape.base_model, targets=shape.targets)
        fault = misfit(config, checkpoint, shape)
        if fault:
            raise UsageError(f"{folder} {fault}")
        return Found(checkpoint)
    misfits = []
    for shipped in shipped_folders(shape.base_model):
        checkpoint = load_hypernetwork(shipped)
        if not checkpoint.made_for(shape.base_model):
            continue
        check_targets(shipped, checkpoint, shape.targets)
        fault = misfit(config, checkpoint, shape)
        if not fault:
            return Found(checkpoint)
        misfits.append(f"{shipped.name} {fault}")
    return Found(None, tuple(misfits))


def shipped_folders(base_model: str) -> list[Path]:
    """Directories of shipped checkpoints whose names are those of a base model's, the default one first.

    That is named after the model; the names of others go on with a dash and what they adapt. A model of
    another owner may have the same name, so each checkpoint says itself which base model it is for.
    """
    name = base_model.rsplit("/", 1)[-1].lower()
    folders = sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    return [f for f in folders if (f.name + "-").startswith(name + "-") and (f / CONFIG_FILE).is_file()]


def new_hypernetwork(shape: BackboneShape, config: TextToLoRAConfig, task_dim: int) -> Hypernetwork:
    """A fresh hypernetwork of a configuration for a base model.

    Raises:
        UsageError: the model has no such modules or layers, or is too small for the rank.
    """
    targets = shape.select(config.target_modules, config.num_layers_to_adapt)
    architecture = Architecture(
        task_dim=shape.targets[0].in_features if HEADS[config.head].reads == "states" else task_dim,
        rank=config.adapter_rank,
        alpha=float(config.adapter_alpha),
        head=config.head,
        latent_size=config.skill_embeddings_dim,
        hidden_size=config.hyper_network_size,
        dropout=config.dropout,
        num_bases=config.num_bases,
        offset=config.offset,
    )
    return Hypernetwork(targets, architecture)


def config_of(network: Hypernetwork, shape: BackboneShape) -> TextToLoRAConfig:
    """The configuration that a hypernetwork was made from; every field counts as set."""
    a = network.architecture
    first = min(t.layer for t in network.targets)
    return TextToLoRAConfig(
        hyper_network_size=a.hidden_size,
        skill_embeddings_dim=a.latent_size,
        adapter_rank=a.rank,
        adapter_alpha=a.alpha,
        dropout=a.dropout,
        num_layers_to_adapt=None if first == 0 else shape.num_layers - first,
        target_modules=tuple(dict.fromkeys(t.type for t in network.targets)),
        head=cast(HeadName, a.head),
        num_bases=a.num_bases,
        offset=a.offset,
    )


def misfit(wanted: TextToLoRAConfig, loaded: HypernetworkCheckpoint, shape: BackboneShape) -> str | None:
    """Why a checkpoint does not serve a configuration: no training, or fields that were set to other values.

    Dropout only matters to training.
    """
    if not loaded.trained:
        return "was never trained; train it with: shoal train text-to-lora"
    has, asked = config_of(loaded.network, shape), wanted.model_fields_set
    odd = {n for n in asked - {"dropout"} if getattr(wanted, n) != getattr(has, n)}
    if wanted.num_layers_to_adapt == shape.num_layers and has.num_layers_to_adapt is None:
        odd.discard("num_layers_to_adapt")
    same_modules = "target_modules" in odd and "num_layers_to_adapt" not in odd
    if (
        same_modules
        and shape.select(wanted.target_modules, has.num_layers_to_adapt) == loaded.network.targets
    ):
        odd.discard("target_modules")
    return f"has another {', '.join(sorted(odd))} than was asked for; leave that unset" if odd else None
