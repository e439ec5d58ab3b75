"""Text-to-LoRA: a task description in, a LoRA out, without loading the model that it adapts.

Joins shape, task encoder, hypernetwork and skill detection; each knows nothing of the others. Where no
hypernetwork was trained for a base model and configuration, the adapter is the identity and says so.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from shoal.adapter_store import save_adapter
from shoal.backbone import DEFAULT_MODEL, BackboneShape, load_shape
from shoal.config import HeadName, TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.familiarity import Familiarity
from shoal.files import read_json
from shoal.hypernetwork import Architecture, Hypernetwork
from shoal.hypernetwork_store import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    HypernetworkCheckpoint,
    load_hypernetwork,
    save_hypernetwork,
)
from shoal.lora import LoRA, LoraFactors
from shoal.model_card import AdapterCard
from shoal.model_source import check_downloaded
from shoal.skills import SkillDetection, SkillDetector
from shoal.task_embedding import DEFAULT_ENCODER, TaskEncoder, check_description

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "weights"
CACHED_ADAPTERS = 32


@dataclass(frozen=True, eq=False)
class GeneratedAdapter:
    """An adapter with what is known of it.

    Attributes:
        description: the task description, stripped.
        lora: the factors, float32 on the CPU.
        skills: skills that the description asks for.
        hypernetwork: facts of its generator; `trained` is False where the adapter is the identity, else there
            are also `nearest_tasks` (name -> distance), `distance` and `confidence`: see `shoal.familiarity`.
        duration: seconds that generating took, of several made at once its share; 0 from the cache.
        shape: of the base model.
    """

    description: str
    lora: LoRA
    skills: SkillDetection
    hypernetwork: dict[str, Any]
    duration: float
    shape: BackboneShape = field(repr=False)

    @property
    def trained(self) -> bool:
        """Whether a trained hypernetwork made it."""
        return bool(self.hypernetwork["trained"])

    def save(self, directory: str | Path) -> None:
        """Write it as a PEFT adapter directory, whole or not at all; errors as `save_adapter`."""
        card = AdapterCard(
            generator="text-to-lora",
            trained=self.trained,
            description=self.description,
            checkpoint_sha256=self.hypernetwork.get("sha256"),
        )
        save_adapter(directory, self.lora, shape=self.shape, card=card)


class TextToLoRA:
    """Generates adapters for one base model; may be used by several threads.

    Attributes:
        shape: of the base model.
        config: sizes of adapters and hypernetwork.
        checkpoint: the hypernetwork in use; None where none is trained for this base model and configuration.
    """

    def __init__(
        self,
        base_model: str = DEFAULT_MODEL,
        config: TextToLoRAConfig | None = None,
        *,
        hypernetwork: str | Path | None = None,
        skills: SkillDetector | None = None,
    ) -> None:
        """Find the hypernetwork; the base model's weights are not loaded.

        Args:
            base_model: alias, directory or hub id.
            config: fields that are set choose what is needed; those that are not come from the hypernetwork.
            hypernetwork: directory of a checkpoint; by default the shipped one, if there is one that fits.
            skills: detector to use, for example one with custom skills.

        Raises:
            UsageError: no such base model, a rank or module that it cannot take, or a checkpoint of another
                model, of another configuration, or without training.
            ShoalError: the base model is half downloaded, or the checkpoint is damaged.
        """
        self.shape = load_shape(str(base_model))  # a Path is one too
        check_downloaded(str(base_model))
        self.config = config or TextToLoRAConfig()
        self.checkpoint: HypernetworkCheckpoint | None = None
        self._sha256: str | None = None
        folder = Path(hypernetwork) if hypernetwork else _shipped_for(self.shape.base_model)
        if folder:
            loaded = load_hypernetwork(folder, base_model=self.shape.base_model, targets=self.shape.targets)
            misfit = _misfit(self.config, loaded, self.shape)
            if misfit and hypernetwork:
                raise UsageError(f"{folder} {misfit}")
            if not misfit:
                self.checkpoint = loaded
                self.config = _config_of(loaded.network, self.shape)
                self._sha256 = _sha256(folder / WEIGHTS_FILE)
        if self.checkpoint:
            self._targets = self.checkpoint.network.targets
        else:
            self._targets = self.shape.select(self.config.target_modules, self.config.num_layers_to_adapt)
            self._identity = LoRA.identity(
                self._targets,
                self.config.adapter_rank,
                float(self.config.adapter_alpha),
                generator=torch.Generator().manual_seed(0),
            )
        self._skills = skills
        self._cache: OrderedDict[str, GeneratedAdapter] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def encoder(self) -> TaskEncoder:
        """The task encoder that the hypernetwork was trained with, loaded when first needed.

        Raises:
            ShoalError: it cannot be loaded, or is not as wide as the hypernetwork reads.
        """
        name = self.checkpoint.task_encoder if self.checkpoint else DEFAULT_ENCODER
        encoder = self.skills.encoder if name == DEFAULT_ENCODER else TaskEncoder(name)
        if self.checkpoint and encoder.dim != self.checkpoint.network.architecture.task_dim:
            raise ShoalError(
                f"the task encoder {name} gives {encoder.dim} numbers, the hypernetwork reads "
                f"{self.checkpoint.network.architecture.task_dim}; train the hypernetwork again"
            )
        return encoder

    @cached_property
    def skills(self) -> SkillDetector:
        """The skill detector; its encoder is also that of the hypernetwork where both need the same."""
        return self._skills or SkillDetector()

    @property
    def trained(self) -> bool:
        """Whether adapters come from a trained hypernetwork."""
        return self.checkpoint is not None

    def generate(self, description: str) -> GeneratedAdapter:
        """One adapter; a description asked before comes from the cache.

        Raises:
            UsageError: the description is empty, too short or long, or not English.
        """
        return self.generate_many([description])[0]

    def generate_many(self, descriptions: Sequence[str]) -> list[GeneratedAdapter]:
        """One adapter a description, in one pass of encoder and hypernetwork; errors as `generate`."""
        if isinstance(descriptions, str):
            raise UsageError("generate_many takes a list of descriptions, got one string; put it in a list")
        started = time.perf_counter()
        texts = [check_description(text) for text in descriptions]
        with self._lock:
            hits = {text: self._cache[text] for text in texts if text in self._cache}
            new = [text for text in dict.fromkeys(texts) if text not in hits]
            loras, known = self._emit(new) if new else ([], [])
            found = self.skills.detect_many(new) if new else []
            share = (time.perf_counter() - started) / max(1, len(new))
            made = {
                text: GeneratedAdapter(text, lora, skills, {**self.facts(), **of}, share, self.shape)
                for text, lora, skills, of in zip(new, loras, found, known, strict=True)
            }
            self._remember({**hits, **made})
        return [made[text] if text in made else replace(hits[text], duration=0.0) for text in texts]

    def clear_cache(self) -> None:
        """Forget the adapters made so far, for example after the skill detector has learnt other skills."""
        with self._lock:
            self._cache.clear()

    def facts(self) -> dict[str, Any]:
        """What an adapter says of its generator."""
        base = {
            "base_model": self.shape.base_model,
            "rank": self.config.adapter_rank,
            "modules": len(self._targets),
        }
        if self.checkpoint is None:
            return {**base, "trained": False, "adapter": "identity", "how_to_train": self._training_command()}
        return {**base, "trained": True, "sha256": self._sha256}

    def save(self, directory: str | Path) -> None:
        """Write the hypernetwork with its description.

        Raises:
            ShoalError: there is no trained hypernetwork, or the directory cannot be written.
        """
        if self.checkpoint is None:
            raise ShoalError(
                f"no hypernetwork is trained for {self.shape.base_model} with this configuration; "
                f"train one with: {self._training_command()}"
            )
        save_hypernetwork(self.checkpoint, Path(directory))

    @classmethod
    def load(cls, directory: str | Path, base_model: str | None = None) -> TextToLoRA:
        """A generator from a saved hypernetwork.

        Args:
            directory: of the checkpoint.
            base_model: name that the checkpoint must be for; by default whichever it records.

        Raises:
            UsageError: it is for another base model, or was never trained.
            ShoalError: it is missing or damaged.
        """
        return cls(base_model or load_hypernetwork(Path(directory)).base_model, hypernetwork=directory)

    @torch.no_grad()
    def _emit(self, descriptions: Sequence[str]) -> tuple[list[LoRA], list[dict[str, Any]]]:
        """Adapters, and what each one's description has to do with the training tasks."""
        if self.checkpoint is None:
            log.warning(
                "no hypernetwork is trained for %s with this configuration: the adapter changes nothing; "
                "train one with: %s",
                self.shape.base_model,
                self._training_command(),
            )
            return [self._identity] * len(descriptions), [{}] * len(descriptions)
        emission = self.checkpoint.emit(self.encoder, descriptions)
        rows = [emission.adapters.row(row) for row in range(len(descriptions))]
        if len(rows) > 1:  # copies: one kept row would keep the whole batch in memory
            rows = [
                LoRA({n: LoraFactors(f.a.clone(), f.b.clone()) for n, f in lora.factors.items()}, lora.alpha)
                for lora in rows
            ]
        for text, familiarity in zip(descriptions, emission.familiarities or [], strict=False):
            if familiarity.confidence < 1:
                log.warning(
                    "%.60r is far from every training task (distance %.2f): its adapter keeps %.0f%% of its "
                    "difference from the multi-task adapter",
                    text,
                    familiarity.distance,
                    100 * familiarity.confidence,
                )
        familiarities: Sequence[Familiarity | None] = emission.familiarities or [None] * len(rows)
        return rows, [_known(familiarity) for familiarity in familiarities]

    def _remember(self, adapters: dict[str, GeneratedAdapter]) -> None:
        self._cache.update(adapters)
        for text in adapters:
            self._cache.move_to_end(text)
        while len(self._cache) > CACHED_ADAPTERS:
            self._cache.popitem(last=False)

    def _training_command(self) -> str:
        """The command that trains what is missing; DATA and OUT are the user's to fill in."""
        flags = ["--base", self.shape.base_model]
        for name, value in self.config.model_dump(exclude_defaults=True).items():
            text = ",".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
            flags += [f"--{name.replace('_', '-')}", text]
        return f"shoal train text-to-lora {shlex.join(flags)} --tasks DATA --out OUT"


def new_hypernetwork(shape: BackboneShape, config: TextToLoRAConfig, task_dim: int) -> Hypernetwork:
    """A fresh hypernetwork of a configuration for a base model.

    Raises:
        UsageError: the model has no such modules or layers, or is too small for the rank.
    """
    targets = shape.select(config.target_modules, config.num_layers_to_adapt)
    architecture = Architecture(
        task_dim=task_dim,
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


def _known(familiarity: Familiarity | None) -> dict[str, Any]:
    """The facts of an adapter about its description; nothing where the training tasks are not known."""
    if familiarity is None:
        return {}
    return {
        "nearest_tasks": dict(familiarity.nearest),
        "distance": round(familiarity.distance, 4),
        "confidence": round(familiarity.confidence, 4),
    }


def _shipped_for(base_model: str) -> Path | None:
    """The shipped checkpoint for exactly this base model."""
    folder = SHIPPED / base_model.rsplit("/", 1)[-1].lower()
    if not (folder / CONFIG_FILE).is_file():
        return None
    return folder if read_json(folder / CONFIG_FILE).get("base_model") == base_model else None


def _config_of(network: Hypernetwork, shape: BackboneShape) -> TextToLoRAConfig:
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


def _misfit(wanted: TextToLoRAConfig, loaded: HypernetworkCheckpoint, shape: BackboneShape) -> str | None:
    """Why a checkpoint does not serve a configuration: no training, or fields that were set to other values.

    Dropout only matters to training.
    """
    if not loaded.trained:
        return "was never trained; train it with: shoal train text-to-lora"
    has, asked = _config_of(loaded.network, shape), wanted.model_fields_set
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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
