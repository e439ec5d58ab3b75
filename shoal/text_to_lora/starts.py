"""The adapter or hypernetwork that a training goes on from.

Knows both formats on disk; nothing of tasks or of how training goes.
"""

from __future__ import annotations

from pathlib import Path

from shoal.adapters.files import StoredAdapter, load_adapter
from shoal.adapters.lora import LoRA
from shoal.config import TextToLoRAConfig
from shoal.errors import UsageError
from shoal.models.shapes import BackboneShape
from shoal.text_to_lora.checkpoint import CONFIG_FILE, HypernetworkCheckpoint, load_hypernetwork
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.text_to_lora.shipped import config_of

Start = StoredAdapter | HypernetworkCheckpoint


def load_start(directory: Path) -> Start:
    """The adapter or the hypernetwork of a directory.

    Raises:
        ShoalError: it holds neither, or one that is damaged.
    """
    if (directory / CONFIG_FILE).is_file():
        return load_hypernetwork(directory)
    return load_adapter(directory)


def lora_of(start: Start | None) -> LoRA | None:
    """The adapter to start from; of a hypernetwork, its shared one."""
    if isinstance(start, HypernetworkCheckpoint):
        return start.network.offset_lora()
    return start.lora if start is not None else None


def same_weights(one: Hypernetwork, other: Hypernetwork) -> bool:
    """True where the weights of one make sense in the other."""
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (one, other)]
    means = [(net.targets, net.architecture.head, net.architecture.alpha) for net in (one, other)]
    return means[0] == means[1] and shapes[0] == shapes[1]


def check_start(start: Start | None, shape: BackboneShape) -> None:
    """Raises UsageError where the start is for another base model."""
    if start is not None and not start.made_for(shape.base_model):
        raise UsageError(
            f"what training is to start from is for {start.base_model}, not {shape.base_model}; train one "
            "for it"
        )


def check_sizes(start: LoRA | None, sizes: TextToLoRAConfig) -> None:
    """Raises UsageError where another rank or alpha is asked for than the adapter at the start has."""
    if start is None:
        return
    for name, has in (("adapter_rank", start.rank), ("adapter_alpha", start.alpha)):
        asked = getattr(sizes, name)
        if name in sizes.model_fields_set and asked != has:
            raise UsageError(f"{name} {asked:g}: the LoRA to start from has {has:g}; leave it out")


def rehearsing_sizes(start: Start | None, sizes: TextToLoRAConfig, shape: BackboneShape) -> TextToLoRAConfig:
    """Sizes of a hypernetwork that goes on as it is: those of the start.

    Raises:
        UsageError: the start is no hypernetwork, or other sizes are asked for.
    """
    if not isinstance(start, HypernetworkCheckpoint):
        given = "no start" if start is None else "an adapter to start from"
        raise UsageError(
            f"rehearse has {given}, and keeps what a hypernetwork emits; name one as --start, or leave it out"
        )
    own = config_of(start.network, shape)
    for name in sizes.model_fields_set - {"dropout"}:
        asked, has = getattr(sizes, name), getattr(own, name)
        if asked != has:
            raise UsageError(f"{name} {asked}: the hypernetwork to start from has {has}; leave it out")
    return own.model_copy(update={"dropout": sizes.dropout} if "dropout" in sizes.model_fields_set else {})


def origin(start: Start) -> str:
    """The training that the start had behind it, as a sentence."""
    if isinstance(start, HypernetworkCheckpoint):
        return "It went on from the shared adapter of a hypernetwork."
    tokens = None if start.card is None else start.card.scores.get("training tokens")
    return "It went on from an adapter" + (f" of {tokens:,.0f} training tokens." if tokens else ".")
