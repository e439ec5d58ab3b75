"""Hypernetworks on disk: weights as safetensors beside a JSON description, read back strictly or not at all.

A checkpoint holds the hypernetwork, where its training tasks are, the adapter that nonsense gets, and the
name and shapes of its base model, never the base model's weights. Knows nothing of adapters on disk, of
encoders or of training; `shoal.text_to_lora.emission` puts a checkpoint to work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import ShoalError, UsageError, reason
from shoal.file_formats import read_json, read_tensors, read_tensors_hashed, sha256_of
from shoal.files import read_directory, write_directory
from shoal.models.modules import TargetModule
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.hypernetwork import Architecture, Hypernetwork, check_shots
from shoal.text_to_lora.refining import REFINING_FILE, Refining, read_refining

log = logging.getLogger(__name__)

WEIGHTS_FILE = "hypernetwork.safetensors"
CONFIG_FILE = "hypernetwork.json"
KNOWN_TASKS_FILE = "known_tasks.safetensors"
MULTI_TASK_FILE = "multi_task.safetensors"
HYPERNETWORK_FILES = (CONFIG_FILE, WEIGHTS_FILE, KNOWN_TASKS_FILE, MULTI_TASK_FILE, REFINING_FILE)
FORMAT = 1


@dataclass(frozen=True, eq=False)
class HypernetworkCheckpoint:
    """A hypernetwork with what must be known to use it.

    Attributes:
        network: the network, in evaluation mode where it was loaded.
        base_model: hub id or path of the only model that its adapters fit.
        task_encoder: name of the encoder whose embeddings it reads.
        trained: False for a network that was only initialised.
        provenance: data, recipe, tokens seen, scores; free JSON.
        known_tasks: where its training tasks are; None where that was not measured.
        multi_task: LoRA of the network's targets, rank and alpha that nonsense gets, trained on many tasks.
        sha256: of the file that the weights were read from, in hex; None where they were not.
        refining: how its adapters are refined on examples, where that was learned.
        shots: solved examples that it was trained to read behind a description, at most; 0 for none.
    """

    network: Hypernetwork
    base_model: str
    task_encoder: str
    trained: bool
    provenance: Mapping[str, Any]
    known_tasks: KnownTasks | None = None
    multi_task: LoRA | None = None
    sha256: str | None = None
    refining: Refining | None = None
    shots: int = 0

    def __post_init__(self) -> None:
        """Check that `multi_task` and `shots` fit; raises UsageError."""
        check_shots(self.network.architecture.head, self.shots)
        if self.multi_task is not None:
            self.network.check_fits(self.multi_task)

    def made_for(self, base_model: str) -> bool:
        """True where its adapters fit a base model."""
        return self.base_model == base_model


def average(checkpoints: Sequence[HypernetworkCheckpoint]) -> HypernetworkCheckpoint:
    """One whose weights are the mean of several networks' weights; all else is the last one's.

    Of a network and what it was trained on to, that can be better on unseen tasks than either.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903, section 3.

    Raises:
        UsageError: fewer than two, or they differ in base model, task encoder, targets or architecture.
    """
    if len(checkpoints) < 2:
        raise UsageError(f"an average needs at least 2 hypernetworks, got {len(checkpoints)}; name another")
    *others, last = checkpoints
    for other in others:
        for name, one, own in (
            ("base model", other.base_model, last.base_model),
            ("task encoder", other.task_encoder, last.task_encoder),
            ("targets", other.network.targets, last.network.targets),
            ("architecture", _without_dropout(other.network), _without_dropout(last.network)),
        ):
            if one != own:
                raise UsageError(
                    f"hypernetworks of another {name} have no average; name those of one training"
                )
    states = [checkpoint.network.state_dict() for checkpoint in checkpoints]
    network = deepcopy(last.network)
    network.load_state_dict({name: sum(s[name] for s in states) / len(states) for name in states[0]})
    facts = {**last.provenance, "averaged_with": [other.provenance for other in others]}
    return replace(last, network=network, provenance=facts, sha256=None, refining=None)


def _without_dropout(network: Hypernetwork) -> Architecture:
    return replace(network.architecture, dropout=0.0)


def save_hypernetwork(
    checkpoint: HypernetworkCheckpoint, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write weights (safetensors, in `dtype` if given) and description (JSON); whole or not at all.

    Raises:
        UsageError: the directory holds other files.
        ShoalError: the disk is full or the directory cannot be written.
    """
    state = {
        name: value.detach().to(dtype or value.dtype).contiguous()
        for name, value in checkpoint.network.state_dict().items()
    }
    description = {
        "format": FORMAT,
        "base_model": checkpoint.base_model,
        "task_encoder": checkpoint.task_encoder,
        "trained": checkpoint.trained,
        "architecture": asdict(checkpoint.network.architecture),
        "targets": [asdict(t) for t in checkpoint.network.targets],
        "provenance": dict(checkpoint.provenance),
    }
    known, multi_task = checkpoint.known_tasks, checkpoint.multi_task
    description["multi_task"] = multi_task is not None
    description["shots"] = checkpoint.shots
    if known is not None:
        description["known_tasks"] = {
            **{"names": known.names, "near": known.near, "far": known.far},
            **{"reached": known.reached, "hard": dict(known.hard)},
        }

    def write(temporary: Path) -> None:
        save_file(state, temporary / WEIGHTS_FILE)
        if known is not None:
            located = {"centres": known.centres.to(torch.float16), "sense": known.sense}
            save_file(located, temporary / KNOWN_TASKS_FILE)
        if multi_task is not None:
            factors = {
                f"{name}.{side}": factor.detach().to(dtype or factor.dtype).contiguous()
                for name, pair in multi_task.factors.items()
                for side, factor in zip("ab", pair, strict=True)
            }
            save_file(factors, temporary / MULTI_TASK_FILE)
        (temporary / CONFIG_FILE).write_text(json.dumps(description, indent=1), "utf-8")
        if checkpoint.refining is not None:
            own = replace(checkpoint.refining, network=sha256_of(temporary / WEIGHTS_FILE))
            (temporary / REFINING_FILE).write_text(json.dumps(own.to_json(), indent=1), "utf-8")

    write_directory(folder, write)


def load_hypernetwork(
    folder: Path, *, base_model: str | None = None, targets: Sequence[TargetModule] | None = None
) -> HypernetworkCheckpoint:
    """Read a checkpoint strictly: every tensor, none left over, of the recorded shapes, for this base model.

    Args:
        folder: the checkpoint's directory.
        base_model: name that the checkpoint must be for, if given.
        targets: modules of the base model; if given, the checkpoint's must be among them, shapes included.

    Raises:
        ShoalError: a file is missing, truncated, of another format, or holds numbers that are not finite.
        UsageError: it is for another base model, or for modules of other shapes.
    """
    log.info("reading the hypernetwork %s", folder)
    checkpoint = read_directory(folder, _read)
    if base_model is not None and not checkpoint.made_for(base_model):
        raise UsageError(
            f"{folder} is for {checkpoint.base_model}, not for {base_model}; choose its own base model"
        )
    if targets is not None:
        check_targets(folder, checkpoint, targets)
    return checkpoint


def check_targets(folder: Path, checkpoint: HypernetworkCheckpoint, targets: Sequence[TargetModule]) -> None:
    """Raises UsageError where the checkpoint of a directory adapts other modules than the base model has."""
    odd = [t for t in checkpoint.network.targets if t not in set(targets)]
    if odd:
        raise UsageError(
            f"{folder} adapts {odd[0].name} ({odd[0].out_features} x {odd[0].in_features}), which "
            f"{checkpoint.base_model} lacks here or has in another shape; choose its own base model"
        )


def _read(folder: Path) -> HypernetworkCheckpoint:
    description = read_json(folder / CONFIG_FILE, format=FORMAT)
    checkpoint = _described(folder / CONFIG_FILE, description)
    path = folder / WEIGHTS_FILE
    stored = read_tensors_hashed(path)
    state = _finite(path, stored.tensors)
    try:
        checkpoint.network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ShoalError(f"{path} is not this network's ({reason(error)}); copy or train it again") from None
    architecture = checkpoint.network.architecture
    dim = None if architecture.reads == "states" else architecture.task_dim
    known = description.get("known_tasks")
    refining = folder / REFINING_FILE
    return replace(
        checkpoint,
        known_tasks=None if known is None else _known_tasks(folder, known, dim),
        multi_task=_multi_task(folder, checkpoint.network) if description.get("multi_task") else None,
        sha256=stored.sha256,
        refining=read_refining(
            refining,
            base_model=checkpoint.base_model,
            network=stored.sha256,
            targets=checkpoint.network.targets,
        )
        if refining.is_file()
        else None,
    )


def _finite(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, float32."""
    broken = next((name for name, tensor in stored.items() if not bool(tensor.isfinite().all())), None)
    if broken is not None:
        raise ShoalError(f"{path}: {broken} holds numbers that are not finite; copy or train it again")
    return {name: tensor.float() for name, tensor in stored.items()}


def _known_tasks(folder: Path, record: Any, dim: int | None) -> KnownTasks:
    """Where tasks are, by sentence vectors of `dim` numbers; None: the network does not tell how many."""
    path = folder / KNOWN_TASKS_FILE
    located = _finite(path, read_tensors(path))
    centres, sense = located.get("centres"), located.get("sense")
    fits = centres is not None and centres.dim() == 2 and dim in (None, centres.shape[1])
    if centres is None or sense is None or not fits:
        raise ShoalError(
            f"{path} does not hold centres of {dim or 'some'} numbers and a probe; copy or train it again"
        )
    try:
        names = tuple(_typed(name, str) for name in _typed(record["names"], list))
        near, far = (float(_typed(record[end], int | float)) for end in ("near", "far"))
        first, last = (float(_typed(share, int | float)) for share in record.get("reached", (1, 0)))
        hard = {
            _typed(k, str): float(_typed(v, int | float)) for k, v in dict(record.get("hard", {})).items()
        }
        unit = torch.nn.functional.normalize(centres, dim=-1)
        return KnownTasks(names, unit, near, far, sense, (first, last), hard)
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise ShoalError(f"{folder / CONFIG_FILE}: known_tasks ({error}); copy or train it again") from None


def _multi_task(folder: Path, network: Hypernetwork) -> LoRA:
    path = folder / MULTI_TASK_FILE
    state = _finite(path, read_tensors(path))
    try:
        factors = {t.name: LoraFactors(state[f"{t.name}.a"], state[f"{t.name}.b"]) for t in network.targets}
        lora = LoRA(factors, network.architecture.alpha)
        network.check_fits(lora)
    except (UsageError, KeyError, IndexError) as error:
        raise ShoalError(
            f"{path} is no LoRA of this network's modules ({reason(error)}); copy it again"
        ) from None
    return lora


def _described(path: Path, description: Mapping[str, Any]) -> HypernetworkCheckpoint:
    """The checkpoint whose network has no weights yet, so that a description cannot ask for any memory."""
    try:
        targets = [_target(record) for record in description["targets"]]
        sizes = dict(description["architecture"])
        for name in ("alpha", "dropout"):  # JSON has one kind of number
            sizes[name] = float(_typed(sizes[name], int | float))
        with torch.device("meta"):
            network = Hypernetwork(targets, Architecture(**sizes))
        return HypernetworkCheckpoint(
            network.eval(),
            _typed(description["base_model"], str),
            _typed(description["task_encoder"], str),
            _typed(description["trained"], bool),
            _typed(description["provenance"], dict),
            shots=_typed(description.get("shots", 0), int),
        )
    except (UsageError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ShoalError(
            f"{path} does not describe a hypernetwork ({reason(error)}); copy or train it again"
        ) from None


def _target(record: Mapping[str, Any]) -> TargetModule:
    for name in ("name", "type"):
        _typed(record[name], str)
    for name in ("layer", "in_features", "out_features"):
        _typed(record[name], int)
    if not 0 <= record["layer"] < 10_000:
        raise ValueError(f"{record['name']} is in layer {record['layer']}")
    return TargetModule(**record)


def _typed(value: Any, kind: type | UnionType) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.60} is no {getattr(kind, '__name__', kind)}")
    return value
