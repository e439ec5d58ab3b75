"""`shoal train average` and `shoal train fallback`: a hypernetwork from those that are trained already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.settings import Output
from shoal.errors import UsageError


class Averaged(BaseModel):
    """Hypernetworks to average, and the target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: tuple[Path, ...] = Field((), description="directory of a hypernetwork; give at least two")
    out: Path = Field(description="directory to write the result to")


def average_networks(averaged: Averaged) -> Output:
    """Average the weights of hypernetworks.

    They must be of one architecture, such as one and what it was trained on to; facts are the last one's.
    """
    import torch

    from shoal.files import check_place
    from shoal.text_to_lora.checkpoint import (
        HYPERNETWORK_FILES,
        average,
        load_hypernetwork,
        save_hypernetwork,
    )

    check_place(averaged.out, HYPERNETWORK_FILES)
    mean = average([load_hypernetwork(folder) for folder in averaged.network])
    save_hypernetwork(mean, averaged.out, torch.bfloat16)
    count = len(averaged.network)
    return Output(
        {"averaged": count, "path": str(averaged.out)}, f"mean of {count} written to {averaged.out}"
    )


class Fallback(BaseModel):
    """A hypernetwork, the adapter that nonsense gets, and the target of both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Path = Field(description="directory of a hypernetwork")
    adapter: Path = Field(description="directory of the LoRA, as of `shoal train multi-task`")
    out: Path = Field(description="directory to write the result to")


def set_fallback(given: Fallback) -> Output:
    """Give a hypernetwork the LoRA that nonsense gets.

    Without one, nonsense gets the hypernetwork's own adapter of no description. Only a hypernetwork that
    knows where its training tasks are tells nonsense.
    """
    import torch

    from shoal.adapters.files import load_adapter
    from shoal.files import check_place
    from shoal.text_to_lora.checkpoint import HYPERNETWORK_FILES, load_hypernetwork, save_hypernetwork

    check_place(given.out, HYPERNETWORK_FILES)
    network = load_hypernetwork(given.network)
    adapter = load_adapter(given.adapter)
    if not adapter.made_for(network.base_model):
        raise UsageError(
            f"{given.adapter} is for {adapter.base_model}, not {network.base_model}; train another"
        )
    card = adapter.card.model_dump(mode="json") if adapter.card else None
    facts = {**network.provenance, "multi_task": card}
    both = replace(network, multi_task=adapter.lora, provenance=facts)
    save_hypernetwork(both, given.out, torch.bfloat16)
    return Output(
        {"path": str(given.out)}, f"hypernetwork with {given.adapter} for nonsense written to {given.out}"
    )
