"""Costs of generating an adapter as the base model grows: time, memory and size, for shapes alone.

No weight of any base model is read: a hypernetwork of the guide's configuration is built for the shape, with
random weights in every layer, and emits one adapter. A trained one takes the same time and memory. Each shape
is measured in a process of its own, whose peak memory is therefore its own; `python -m
shoal.evaluation.scaling MODEL` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, reason
from shoal.models.backbone import load_shape
from shoal.models.shapes import on_meta
from shoal.models.sources import find_config
from shoal.process import peak
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.shipped import new_hypernetwork

# The sizes that the guide names, and what they are the shapes of.
GUIDE_SHAPES = {"117M": "gpt2", "345M": "gpt2-medium", "7B": "meta-llama/Llama-2-7b-hf"}
DESCRIPTION = "Sort the words of a sentence by length"
REPEATS = 5
TIMEOUT = 600


@dataclass(frozen=True)
class ShapeCost:
    """Costs of one base model's shape.

    Attributes:
        base_model: hub id or path.
        base_parameters: of the base model.
        hypernetwork_parameters: of the hypernetwork that was built for it.
        adapter_parameters: of the adapter.
        adapter_bytes: of the adapter in float32.
        modules: linear maps that the adapter changes.
        build_seconds: to build the hypernetwork.
        generation_seconds: from a description to its adapter, median of several, encoder warm.
        peak_bytes: the most memory that the process held, imports and task encoder included.
    """

    base_model: str
    base_parameters: int
    hypernetwork_parameters: int
    adapter_parameters: int
    adapter_bytes: int
    modules: int
    build_seconds: float
    generation_seconds: float
    peak_bytes: int


def measure_shapes(
    models: Sequence[str], config: TextToLoRAConfig | None = None, *, timeout: float = TIMEOUT
) -> list[ShapeCost]:
    """The cost of every shape, each in a process of its own.

    Args:
        models: hub ids whose shapes are known, or directories.
        config: of adapter and hypernetwork; by default the guide's.
        timeout: seconds that one shape may take.

    Raises:
        UsageError: there is no such model, or the configuration does not fit it.
        ShoalError: a process failed or took too long.
    """
    settings = config or TextToLoRAConfig()
    for model in models:  # refused here, with the error's own class, and not in the process
        load_shape(model).select(settings.target_modules, settings.num_layers_to_adapt)
    return [_measured_apart(model, settings, timeout) for model in models]


@torch.no_grad()
def measure_shape(model: str, config: TextToLoRAConfig) -> ShapeCost:
    """The cost of one shape, in this process; errors as `measure_shapes`."""
    shape, encoder = load_shape(model), TaskEncoder()
    whole = on_meta(find_config(model), model)
    embedding = encoder.encode([DESCRIPTION])
    started = time.perf_counter()
    network = new_hypernetwork(shape, config, encoder.dim).eval()
    build = time.perf_counter() - started
    for parameter in network.parameters():  # no page of it stays untouched, or the memory would not count
        parameter.uniform_(-1e-3, 1e-3)
    lora, seconds = None, []
    for number in range(REPEATS):
        started = time.perf_counter()
        embedding = encoder.encode([f"{DESCRIPTION} {number}"])
        lora = network(embedding).row(0)
        seconds.append(time.perf_counter() - started)
    assert lora is not None
    factors = [f for pair in lora.factors.values() for f in pair]
    return ShapeCost(
        base_model=shape.base_model,
        base_parameters=sum(p.numel() for p in whole.parameters()),
        hypernetwork_parameters=sum(p.numel() for p in network.parameters()),
        adapter_parameters=sum(f.numel() for f in factors),
        adapter_bytes=sum(f.numel() * f.element_size() for f in factors),
        modules=len(lora.factors),
        build_seconds=build,
        generation_seconds=sorted(seconds)[REPEATS // 2],
        peak_bytes=peak(),
    )


def scaling_table(costs: Sequence[ShapeCost]) -> str:
    """The costs as Markdown."""
    lines = [
        "| base model | parameters | hypernetwork | build | description to adapter | peak memory | adapter |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for c in costs:
        cells = [
            c.base_model,
            f"{c.base_parameters / 1e6:,.0f}M",
            f"{c.hypernetwork_parameters / 1e6:.1f}M",
            f"{c.build_seconds:.2f} s",
            f"{c.generation_seconds * 1e3:.0f} ms",
            f"{c.peak_bytes / 1e9:.2f} GB",
            f"{c.modules} modules, {c.adapter_parameters / 1e6:.2f}M, {c.adapter_bytes / 1e6:.1f} MB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _measured_apart(model: str, config: TextToLoRAConfig, timeout: float) -> ShapeCost:
    command = [sys.executable, "-m", "shoal.evaluation.scaling", model, config.model_dump_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ShoalError(f"measuring {model} took more than {timeout:g} s; give it longer") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ShoalError(f"measuring {model} failed: {reason(ShoalError(last))}; free some memory, or retry")
    return ShapeCost(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(asdict(measure_shape(sys.argv[1], TextToLoRAConfig.model_validate_json(sys.argv[2])))))
