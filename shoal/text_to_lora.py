"""Text-to-LoRA: a task description in, a LoRA out, without loading the model that it adapts.

Joins shape, task encoder, hypernetwork and skill detection; each knows nothing of the others. Where no hypernetwork
was trained for a base model and configuration, the adapter is the identity and says so.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from shoal.adapter_store import save_adapter
from shoal.backbone import DEFAULT_MODEL, BackboneShape, load_shape
from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.hypernetwork import Architecture, Hypernetwork
from shoal.hypernetwork_store import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    HypernetworkCheckpoint,
    load_hypernetwork,
    save_hypernetwork,
)
from shoal.lora import LoRA
from shoal.model_card import AdapterCard
from shoal.skills import SkillDetection, SkillDetector
from shoal.task_embedding import TaskEncoder, check_description

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
        hypernetwork: facts of its generator; `trained` is False where the adapter is the identity.
        duration: seconds that generating took, 0 where it came from the cache.
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
        """Write it as a PEFT adapter directory, whole or not at all; errors as `adapter_store.save_adapter`."""
        card = AdapterCard(
            generator="text-to-lora",
            trained=self.trained,
            description=self.description,
            checkpoint_sha256=self.hypernetwork.get("sha256"),
        )
        save_adapter(directory, self.lora, shape=self.shape, card=card)


class TextToLoRA:
    """Generates adapters for one base model.

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
            hypernetwork: directory of a checkpoint; by default the shipped one for this base model, if it fits.
            skills: detector to use, for example one with custom skills.

        Raises:
            UsageError: no such base model, a rank or module that it cannot take, or a checkpoint of another model.
            ShoalError: the checkpoint is damaged.
        """
        self.shape = load_shape(base_model)
        wanted = config or TextToLoRAConfig()
        folder = Path(hypernetwork) if hypernetwork else _shipped_for(self.shape.base_model)
        self.checkpoint: HypernetworkCheckpoint | None = None
        if folder:
            loaded = load_hypernetwork(folder, base_model=self.shape.base_model, targets=self.shape.targets)
            odd = _differences(wanted, loaded.network, self.shape)
            if not odd:
                self.checkpoint = loaded
            elif hypernetwork:
                raise UsageError(f"{folder} does not fit the configuration in {', '.join(odd)}; leave them unset")
        self.config = _config_of(self.checkpoint.network, self.shape) if self.checkpoint else wanted
        self._targets = (
            self.checkpoint.network.targets
            if self.checkpoint
            else self.shape.select(self.config.target_modules, self.config.num_layers_to_adapt)
        )
        self._sha256 = _hash_of(folder / WEIGHTS_FILE) if self.checkpoint and folder else None
        self._identity = None if self.checkpoint else self._make_identity()
        self._skills = skills
        self._cache: OrderedDict[str, GeneratedAdapter] = OrderedDict()

    @cached_property
    def encoder(self) -> TaskEncoder:
        """The task encoder, loaded when first needed."""
        return TaskEncoder()

    @cached_property
    def skills(self) -> SkillDetector:
        """The skill detector."""
        return self._skills or SkillDetector(self.encoder)

    @property
    def trained(self) -> bool:
        """Whether adapters come from a trained hypernetwork."""
        return self.checkpoint is not None and self.checkpoint.trained

    def generate(self, description: str) -> GeneratedAdapter:
        """One adapter; a description asked before comes from the cache.

        Raises:
            UsageError: the description is empty, too short or long, or not English.
        """
        return self.generate_many([description])[0]

    def generate_many(self, descriptions: Sequence[str]) -> list[GeneratedAdapter]:
        """One adapter a description, in one pass of encoder and hypernetwork; errors as `generate`."""
        started = time.perf_counter()
        texts = [check_description(text) for text in descriptions]
        hits = {text: self._cache[text] for text in texts if text in self._cache}
        new = [text for text in dict.fromkeys(texts) if text not in hits]
        loras = self._emit(new) if new else []
        found = self.skills.detect_many(new) if new else []
        seconds = time.perf_counter() - started
        made = {}
        for text, lora, skills in zip(new, loras, found, strict=True):
            made[text] = GeneratedAdapter(text, lora, skills, self.facts(), seconds / len(new), self.shape)
        self._remember(made)
        return [made[text] if text in made else _from_cache(hits[text]) for text in texts]

    def facts(self) -> dict[str, Any]:
        """What an adapter says of its generator."""
        base = {"base_model": self.shape.base_model, "rank": self.config.adapter_rank, "modules": len(self._targets)}
        if self.checkpoint is None:
            how = f"shoal train text-to-lora --base {self.shape.base_model}"
            return {**base, "trained": False, "adapter": "identity", "how_to_train": how}
        return {**base, "trained": self.checkpoint.trained, "sha256": self._sha256}

    def save(self, directory: str | Path) -> None:
        """Write the hypernetwork with its description.

        Raises:
            ShoalError: there is no trained hypernetwork, or the directory cannot be written.
        """
        if self.checkpoint is None:
            raise ShoalError(f"no hypernetwork is trained for {self.shape.base_model}; {self.facts()['how_to_train']}")
        save_hypernetwork(self.checkpoint, Path(directory))

    @classmethod
    def load(cls, directory: str | Path, base_model: str | None = None) -> TextToLoRA:
        """A generator from a saved hypernetwork, for the base model that it names unless another path is given."""
        name = base_model or load_hypernetwork(Path(directory)).base_model
        return cls(name, hypernetwork=directory)

    @torch.no_grad()
    def _emit(self, descriptions: Sequence[str]) -> list[LoRA]:
        if self.checkpoint is None or self._identity is not None:
            assert self._identity is not None
            log.warning(
                "no hypernetwork is trained for %s with this configuration: the adapter changes nothing; train one "
                "with: %s",
                self.shape.base_model,
                self.facts()["how_to_train"],
            )
            return [self._identity] * len(descriptions)
        emitted = self.checkpoint.network(self.encoder.encode(descriptions))
        return [emitted.row(row) for row in range(len(descriptions))]

    def _make_identity(self) -> LoRA:
        generator = torch.Generator().manual_seed(0)
        config = self.config
        return LoRA.identity(self._targets, config.adapter_rank, config.adapter_alpha, generator=generator)

    def _remember(self, adapters: dict[str, GeneratedAdapter]) -> None:
        self._cache.update(adapters)
        while len(self._cache) > CACHED_ADAPTERS:
            self._cache.popitem(last=False)


def new_hypernetwork(shape: BackboneShape, config: TextToLoRAConfig, task_dim: int) -> Hypernetwork:
    """A fresh hypernetwork of a configuration for a base model.

    Raises:
        UsageError: the model has no such modules or layers, or is too small for the rank.
    """
    targets = shape.select(config.target_modules, config.num_layers_to_adapt)
    architecture = Architecture(
        task_dim=task_dim,
        rank=config.adapter_rank,
        alpha=config.adapter_alpha,
        head=config.head,
        latent_size=config.skill_embeddings_dim,
        hidden_size=config.hyper_network_size,
        dropout=config.dropout,
        num_bases=config.num_bases,
        offset=config.offset,
    )
    return Hypernetwork(targets, architecture)


def _shipped_for(base_model: str) -> Path | None:
    folder = SHIPPED / base_model.split("/")[-1].lower()
    return folder if (folder / CONFIG_FILE).is_file() else None


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
        head=a.head,
        num_bases=a.num_bases,
        offset=a.offset,
    )


def _differences(wanted: TextToLoRAConfig, network: Hypernetwork, shape: BackboneShape) -> list[str]:
    """The fields that were set to something else than the network has; dropout only matters to training."""
    has = _config_of(network, shape)
    odd = [n for n in wanted.model_fields_set - {"dropout"} if getattr(wanted, n) != getattr(has, n)]
    if "target_modules" in odd and shape.select(wanted.target_modules, has.num_layers_to_adapt) == network.targets:
        odd.remove("target_modules")
    return sorted(odd)


def _from_cache(adapter: GeneratedAdapter) -> GeneratedAdapter:
    return GeneratedAdapter(
        adapter.description, adapter.lora, adapter.skills, adapter.hypernetwork, 0.0, adapter.shape
    )


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
