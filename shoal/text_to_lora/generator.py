"""Text-to-LoRA: a task description in, a LoRA out.

The base model's weights are loaded only for a hypernetwork that reads its states, as the shipped one does.
Joins shape, task encoder, hypernetwork and skill detection; each knows nothing of the others. Where no
hypernetwork was trained for a base model and configuration, the adapter is the identity and says so.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy, deepcopy
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache

from shoal.adapters.lora import LoRA
from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.files import sha256_of
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone, load_shape
from shoal.models.sources import check_downloaded
from shoal.tasks.loading import Example
from shoal.text_to_lora.checkpoint import (
    WEIGHTS_FILE,
    HypernetworkCheckpoint,
    load_hypernetwork,
    save_hypernetwork,
)
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER, TaskEncoder, check_description
from shoal.text_to_lora.encoders.states import StateReader
from shoal.text_to_lora.familiarity import Familiarity
from shoal.text_to_lora.generated_adapter import GeneratedAdapter, familiarity_note
from shoal.text_to_lora.inputs import Asked, asked_for, described_labels, distilled, with_inputs
from shoal.text_to_lora.shipped import config_of, misfit, shipped_for
from shoal.text_to_lora.skills import SkillDetector

log = logging.getLogger(__name__)

CACHED_ADAPTERS = 32


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
        """Find the hypernetwork; the base model's weights are not loaded yet.

        Args:
            base_model: alias, directory or hub id.
            config: fields that are set choose what is needed; those that are not come from the hypernetwork.
            hypernetwork: directory of a checkpoint; by default the first shipped one that fits.
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
        self._sha256: Future[str] | None = None
        self._unfit: list[str] = []
        for folder in [Path(hypernetwork)] if hypernetwork else shipped_for(self.shape.base_model):
            sha256 = _hashing(folder / WEIGHTS_FILE)
            loaded = load_hypernetwork(folder, base_model=self.shape.base_model, targets=self.shape.targets)
            fault = misfit(self.config, loaded, self.shape)
            if not fault:
                self.checkpoint = loaded
                self.config = config_of(loaded.network, self.shape)
                self._sha256 = sha256
                break
            if hypernetwork:
                raise UsageError(f"{folder} {fault}")
            self._unfit.append(f"{folder.name} {fault}")
        if self.checkpoint:
            self._targets = self.checkpoint.network.targets
        else:
            if "num_layers_to_adapt" not in self.config.model_fields_set:
                every = self.shape.num_layers
                layers = min(self.config.num_layers_to_adapt or every, every)
                self.config = self.config.model_copy(update={"num_layers_to_adapt": layers})
            self._targets = self.shape.select(self.config.target_modules, self.config.num_layers_to_adapt)
            self._identity = LoRA.identity(
                self._targets,
                self.config.adapter_rank,
                float(self.config.adapter_alpha),
                generator=torch.Generator().manual_seed(0),
            )
        self._skills = skills
        self._cache: LRUCache[str, GeneratedAdapter] = LRUCache(CACHED_ADAPTERS)
        self._lock = threading.Lock()
        self._refining = threading.Lock()

    @cached_property
    def encoder(self) -> TaskEncoder:
        """The task encoder that the hypernetwork was trained with, loaded when first needed.

        Raises:
            ShoalError: it cannot be loaded, or is not as wide as the hypernetwork reads.
        """
        name = self.checkpoint.task_encoder if self.checkpoint else DEFAULT_ENCODER
        encoder = self.skills.encoder if name == DEFAULT_ENCODER else TaskEncoder(name)
        wanted = self.checkpoint.network.architecture if self.checkpoint else None
        if wanted and wanted.reads == "states":
            encoder = copy(encoder)  # of the same weights and cache, for other generators share it
            encoder.states = self._states
        elif wanted and encoder.dim != wanted.task_dim:
            raise ShoalError(
                f"the task encoder {name} gives {encoder.dim} numbers, the hypernetwork reads "
                f"{wanted.task_dim}; train the hypernetwork again"
            )
        return encoder

    @cached_property
    def _reader(self) -> StateReader:
        with self._refining:  # while nothing is attached that a twin would inherit
            twin = self.backbone.twin()
        return StateReader(twin, self._targets)

    @cached_property
    def skills(self) -> SkillDetector:
        """The skill detector; its encoder is also that of the hypernetwork where both need the same."""
        return self._skills or SkillDetector()

    @cached_property
    def backbone(self) -> Backbone:
        """The base model with its weights, loaded when they are first needed; errors as `load_backbone`."""
        return load_backbone(self.shape.base_model)

    @property
    def trained(self) -> bool:
        """Whether adapters come from a trained hypernetwork."""
        return self.checkpoint is not None

    def generate(
        self,
        description: str,
        examples: Sequence[Example | tuple[str, str]] = (),
        *,
        inputs: Sequence[str] = (),
        labels: Sequence[str] | None = None,
    ) -> GeneratedAdapter:
        """One adapter; a description asked before comes from the cache.

        Args:
            description: what the adapter shall do, in English.
            examples: at least 4 solved ones, as records or as (input, output), on which the adapter is then
                trained for some seconds; for that the base model is loaded. See
                `shoal.text_to_lora.few_shot`.
            inputs: at least 4 different ones without answers, on which a closed label set is calibrated and
                the adapter trained for some seconds; see `shoal.text_to_lora.self_training`.
            labels: the answers that there are, 2 to 256; none of them ([]) where answers are open; None reads
                them from the description.

        Raises:
            UsageError: the description is empty, too short or long, or not English; the examples are too few,
                too long, or blank; or there are examples but no trained hypernetwork.
            ShoalError: there are examples, and the base model is damaged or the extra `train` not installed.
        """
        asked = asked_for(description, inputs, labels)
        adapter = self.generate_many([description])[0]
        adapter = self._refined(adapter, examples) if len(examples) else adapter
        return self._with_inputs(adapter, asked)

    def distil(
        self, description: str, inputs: Sequence[str], *, labels: Sequence[str] | None = None
    ) -> GeneratedAdapter:
        """An adapter that answers as the base model with the description in its prompt; no hypernetwork.

        For any base model whose weights are there, in minutes; see `shoal.text_to_lora.distillation`.

        Args:
            description: what the adapter shall do, in English.
            inputs: at least 4 different ones without answers; some dozens are better.
            labels: as in `generate`.

        Raises:
            UsageError: the description, the inputs or the labels cannot be used.
            ShoalError: the base model is damaged or not there.
        """
        asked = asked_for(check_description(description), inputs, labels, needed=True)
        with self._refining:  # the adapter that is trained hangs on the backbone
            lora, label_set, facts = distilled(self.backbone, self._targets, self.config, asked)
        base = {"base_model": self.shape.base_model, "rank": lora.rank, "modules": len(self._targets)}
        return GeneratedAdapter(
            asked.description,
            lora,
            self.skills.detect_many([asked.description])[0],
            {**base, "trained": True, "distilled": facts},
            facts["seconds"],
            self.shape,
            label_set,
        )

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
                text: GeneratedAdapter(
                    text, lora, skills, {**self.facts(), **of}, share, self.shape, described_labels(text)
                )
                for text, lora, skills, of in zip(new, loras, found, known, strict=True)
            }
            self._cache.update(made)
        return [_own(made[text] if text in made else replace(hits[text], duration=0.0)) for text in texts]

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
        if self._sha256 is None:
            return {**base, "trained": False, "adapter": "identity", "how_to_train": self._training_command()}
        return {**base, "trained": True, "sha256": self._sha256.result()}

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

    def _refined(
        self, adapter: GeneratedAdapter, examples: Sequence[Example | tuple[str, str]]
    ) -> GeneratedAdapter:
        if self.checkpoint is None:
            raise UsageError(
                f"{len(examples)} examples have no adapter to refine: no hypernetwork is trained for "
                f"{self.shape.base_model} with this configuration; use `shoal train lora` with them"
            )
        try:
            from shoal.text_to_lora.few_shot import refine
        except ImportError as error:
            raise ShoalError(
                f"examples need {error.name}, which is not installed; pip install 'shoal[train]'"
            ) from None
        records = [_example(e) for e in examples]
        with self._refining:  # the adapter that is trained hangs on the backbone
            refinement = refine(self.backbone, adapter.lora, records, description=adapter.description)
        facts = {f.name: getattr(refinement, f.name) for f in fields(refinement) if f.name != "lora"}
        return replace(
            adapter,
            lora=refinement.lora,
            hypernetwork={**adapter.hypernetwork, "few_shot": facts},
            duration=adapter.duration + refinement.seconds,
        )

    def _with_inputs(self, adapter: GeneratedAdapter, asked: Asked) -> GeneratedAdapter:
        """The adapter with the labels that are asked for, calibrated and trained on the inputs."""
        if not asked.inputs and not asked.calibrates:
            return replace(adapter, label_set=asked.label_set)
        with self._refining:  # the adapter that is trained hangs on the backbone
            lora, label_set, facts = with_inputs(self.backbone, adapter, asked)
        return replace(
            adapter,
            lora=lora,
            label_set=label_set,
            hypernetwork={**adapter.hypernetwork, **facts},
            duration=adapter.duration + facts.get("self_training", {}).get("seconds", 0.0),
        )

    @torch.no_grad()
    def _emit(self, descriptions: Sequence[str]) -> tuple[list[LoRA], list[dict[str, Any]]]:
        """Adapters, and what each one's description has to do with the training tasks."""
        if self.checkpoint is None:
            log.warning(
                "no hypernetwork is trained for %s with this configuration: the adapter changes nothing; "
                "%strain one with: %s",
                self.shape.base_model,
                "".join(f"{why}; " for why in self._unfit),
                self._training_command(),
            )
            return [self._identity] * len(descriptions), [{}] * len(descriptions)
        emission = self.checkpoint.emit(self.encoder, descriptions)
        rows = [emission.adapters.row(row) for row in range(len(descriptions))]
        if len(rows) > 1:  # copies: one kept row would keep the whole batch in memory
            rows = [lora.copy() for lora in rows]
        familiarities: Sequence[Familiarity | None] = emission.familiarities or [None] * len(rows)
        facts = [_known(familiarity) for familiarity in familiarities]
        for text, known in zip(descriptions, facts, strict=True):
            if known.get("confidence", 1) < 1:
                log.warning("%.60r: %s", text, familiarity_note(known))
        return rows, facts

    def _states(self, texts: Sequence[str]) -> list[torch.Tensor]:
        return self._reader.read(texts)

    def _training_command(self) -> str:
        """The command that trains what is missing; DATA and OUT are the user's to fill in."""
        flags = ["--base", self.shape.base_model]
        for name, value in self.config.model_dump(exclude_defaults=True).items():
            text = ",".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
            flags += [f"--{name.replace('_', '-')}", text]
        return f"shoal train text-to-lora {shlex.join(flags)} --tasks DATA --out OUT"


def _example(given: Example | tuple[str, str]) -> Example:
    if isinstance(given, Example):
        return given
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise UsageError(f"example {given!r:.80} is no pair; give Example records or (input, output)")
    return Example(given[0], (given[1],))


def _own(adapter: GeneratedAdapter) -> GeneratedAdapter:
    """The adapter with tensors and facts of its own: what a caller does to them stays out of the cache."""
    return replace(adapter, lora=adapter.lora.copy(), hypernetwork=deepcopy(adapter.hypernetwork))


def _known(familiarity: Familiarity | None) -> dict[str, Any]:
    """The facts of an adapter about its description; nothing where the training tasks are not known."""
    if familiarity is None:
        return {}
    return {
        "nearest_tasks": dict(familiarity.nearest),
        "distance": round(familiarity.distance, 4),
        "confidence": round(familiarity.confidence, 4),
        "nonsense": familiarity.nonsense,
    }


def _hashing(path: Path) -> Future[str]:
    """The SHA-256 of a file, in hex, computed while other work goes on."""
    pool = ThreadPoolExecutor(1, "sha256")
    try:
        return pool.submit(sha256_of, path)
    finally:
        pool.shutdown(wait=False)
