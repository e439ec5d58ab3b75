"""Text-to-LoRA: a task description in, a LoRA out.

The base model's weights are used only by a hypernetwork that reads its states, as the shipped one does, and
where examples, inputs or labels are given. Joins shape, task encoder, hypernetwork and skill detection; each
knows nothing of the others. Where no hypernetwork was trained for a base model and configuration, the adapter
is the identity and says so.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache

from shoal.adapters.lora import LoRA
from shoal.config import MIN_EXAMPLES, TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_shape
from shoal.models.modules import check_rank
from shoal.models.sources import check_downloaded
from shoal.tasks.records import Example, Solved
from shoal.text_to_lora.base_weights import BaseWeights
from shoal.text_to_lora.checkpoint import load_hypernetwork, save_hypernetwork
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER, TaskEncoder, check_description
from shoal.text_to_lora.generated_adapter import GeneratedAdapter, noted
from shoal.text_to_lora.identity import Identity, within
from shoal.text_to_lora.label_similarity import LabelSimilarity
from shoal.text_to_lora.material import (
    Material,
    adapted_to,
    check_material,
    check_needs_no_adapter,
    check_suggestion,
    described_label_set,
    distilled,
    say_unused,
    with_sample_inputs,
)
from shoal.text_to_lora.shipped import config_of, find_hypernetwork
from shoal.text_to_lora.skills import SkillDetector

log = logging.getLogger(__name__)

CACHED_ADAPTERS = 32


class TextToLoRA:
    """Generates adapters for one base model; may be used by several threads.

    Attributes:
        shape: of the base model.
        config: sizes of adapters and hypernetwork.
        checkpoint: the hypernetwork in use; None where none is trained for this base model and configuration.
        label_similarity: evidence for labels from what they mean; its encoder is loaded when first needed.
    """

    def __init__(
        self,
        base_model: str | None = None,
        config: TextToLoRAConfig | None = None,
        *,
        backbone: Backbone | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        hypernetwork: str | Path | None = None,
        skills: SkillDetector | None = None,
    ) -> None:
        """Find the hypernetwork; without `backbone` the base model's weights are not loaded yet.

        Args:
            base_model: alias, directory or hub id; by default that of `backbone`, else `DEFAULT_MODEL`.
            config: fields that are set choose what is needed; those that are not come from the hypernetwork.
            backbone: the base model, where it is loaded already: its weights are shared, and it may answer
                requests under any adapters while descriptions are read. Nothing may be attached to it now.
            device: where to load the base model if it is needed; by default as `load_backbone`.
            dtype: of its weights then.
            hypernetwork: directory of a checkpoint; by default the first shipped one that fits.
            skills: detector to use, for example one with custom skills.

        Raises:
            UsageError: no such base model, a rank or module that it cannot take, a checkpoint of another
                model, of another configuration, or without training, or a `backbone` beside another name,
                device or dtype.
            ShoalError: the base model is half downloaded, or the checkpoint is damaged.
        """
        if backbone is not None and (base_model, device, dtype) != (None, None, None):
            raise UsageError("backbone is a loaded model: leave base_model, device and dtype out")
        name = str(base_model or DEFAULT_MODEL)  # a Path is one too
        self.shape = backbone.shape if backbone else load_shape(name)
        if backbone is None:
            check_downloaded(name)
        self._weights = BaseWeights(self.shape.base_model, backbone, device=device, dtype=dtype)
        config = config or TextToLoRAConfig()
        found = find_hypernetwork(self.shape, config, Path(hypernetwork) if hypernetwork else None)
        self.checkpoint = found.checkpoint
        if self.checkpoint:
            self.config = config_of(self.checkpoint.network, self.shape)
            self._targets = self.checkpoint.network.targets
        else:
            self.config = within(config, self.shape.num_layers)
            self._targets = self.shape.select(self.config.target_modules, self.config.num_layers_to_adapt)
            check_rank(self._targets, self.config.adapter_rank)
        self._identity = Identity(self.shape.base_model, self.config, self._targets, found.misfits)
        self._skills = skills
        self.label_similarity = LabelSimilarity(lambda: self.skills.encoder)
        self._cache: LRUCache[str, GeneratedAdapter] = LRUCache(CACHED_ADAPTERS)
        self._lock = threading.Lock()

    @cached_property
    def encoder(self) -> TaskEncoder:
        """The encoder that the hypernetwork was trained with, loaded when first needed, or `ShoalError`."""
        name = self.checkpoint.task_encoder if self.checkpoint else DEFAULT_ENCODER
        return self.skills.encoder if name == DEFAULT_ENCODER else TaskEncoder(name)

    @cached_property
    def emitter(self) -> Emitter:
        """The hypernetwork with what reads its descriptions, loaded when first needed.

        Raises:
            ShoalError: none is trained; the base model, where its states are read, or the encoder cannot be
                loaded; or the encoder is not as wide as the hypernetwork reads.
        """
        if self.checkpoint is None:
            raise ShoalError(str(self._identity))
        states = self.checkpoint.network.architecture.reads == "states"
        return Emitter(self.checkpoint, self.encoder, self._weights.read if states else None)

    @cached_property
    def skills(self) -> SkillDetector:
        """The skill detector; its encoder is also that of the hypernetwork where both need the same."""
        return self._skills or SkillDetector()

    @property
    def backbone(self) -> Backbone:
        """The base model with its weights, loaded when they are first needed; errors as `load_backbone`.

        Whatever is attached to it changes no adapter that is generated.
        """
        return self._weights.backbone

    @property
    def trained(self) -> bool:
        """True where adapters come from a trained hypernetwork."""
        return self.checkpoint is not None

    def generate(
        self,
        description: str,
        examples: Sequence[Solved] = (),
        *,
        inputs: Sequence[str] = (),
        labels: Sequence[str] | None = None,
        sample_inputs: bool = False,
        refine: bool = True,
        careful: bool = False,
        suggest: int = 0,
    ) -> GeneratedAdapter:
        """One adapter; a description asked before comes from the cache.

        Args:
            description: what the adapter shall do, in English.
            examples: at least 4 solved ones with different inputs, as records or as (input, output), where
                an output may be several that are right. A network that was trained to reads some of them
                behind the description (`shoal.text_to_lora.shots`); the adapter is then trained on all of
                them, for which the base model is loaded (`shoal.text_to_lora.few_shot`).
            inputs: at least 4 different ones without answers, on which a closed label set is calibrated and
                the adapter trained; see `shoal.text_to_lora.self_training`.
            labels: the answers that there are, 2 to 256; none of them ([]) where answers are open; None reads
                them from the description, else from 8 examples or more whose answers all come again.
            sample_inputs: take inputs that the package ships, of the kind that fits the description best.
            refine: train on the examples. False leaves it at one forward pass, in which only a network that
                was trained to read examples uses them, then also fewer than 4.
            careful: hold a quarter of the examples out and stop by them, even where the network's directory
                says how to refine on all of them.
            suggest: so many of `inputs` are named that are worth labelling next, in the adapter's facts as
                `next_examples`; see `shoal.text_to_lora.next_examples`.

        Raises:
            UsageError: the description is empty, too short or long, or not English; examples or inputs are
                too few, too long or blank; the labels cannot be used; or there are examples or inputs but no
                trained hypernetwork.
            ShoalError: the base model is needed and damaged, or the extra `train` is needed and not
                installed.
            UnavailableError: the generator was closed while it trained.
        """
        fewest = 1 if self._reads_shots and not refine else MIN_EXAMPLES
        material = check_material(description, examples, inputs, labels, min_examples=fewest, suggest=suggest)
        check_suggestion(material, refine=refine)
        if sample_inputs:
            material = with_sample_inputs(material, self.skills.encoder)
        if self.checkpoint is None:
            check_needs_no_adapter(material, self.shape.base_model)
        adapter = self._first(material)
        say_unused(material, examples=not refine and not self._reads_shots)
        if not refine:
            material = replace(material, examples=())
        if not material.needs_weights:
            return noted(replace(adapter, label_set=material.label_set))
        learned = None if careful or self.checkpoint is None else self.checkpoint.refining
        with self._weights.training() as backbone:
            return noted(adapted_to(backbone, adapter, material, learned, self.label_similarity))

    def distil(
        self,
        description: str,
        inputs: Sequence[str],
        *,
        labels: Sequence[str] | None = None,
        show_progress: bool = True,
    ) -> GeneratedAdapter:
        """An adapter that answers as the base model with the description in its prompt; no hypernetwork.

        For any base model whose weights are there, in minutes; see `shoal.text_to_lora.distillation`.

        Args:
            description: what the adapter shall do, in English.
            inputs: at least 4 different ones without answers; some dozens are better.
            labels: as in `generate`.
            show_progress: on standard error: a bar on a terminal, else a line every ten seconds.

        Raises:
            UsageError: the description, the inputs or the labels cannot be used.
            ShoalError: the base model is damaged or not there.
            UnavailableError: the generator was closed while it trained.
        """
        material = check_material(description, (), inputs, labels, needs_inputs=True)
        with self._weights.training() as backbone:
            lora, label_set, facts = distilled(
                backbone, self._identity.lora, material, self.label_similarity, show_progress=show_progress
            )
        return GeneratedAdapter(
            material.description,
            lora,
            self.skills.detect_many([material.description])[0],
            {**self._sizes(), "trained": True, "distilled": facts},
            facts["seconds"],
            self.shape,
            label_set,
        )

    def generate_many(self, descriptions: Sequence[str]) -> list[GeneratedAdapter]:
        """One adapter per description, in one pass of encoder and hypernetwork; errors as `generate`."""
        return [noted(adapter) for adapter in self._described(descriptions)]

    @property
    def _reads_shots(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.shots > 0

    def _first(self, material: Material) -> GeneratedAdapter:
        """The adapter before anything is trained."""
        if not (material.examples and self._reads_shots):
            return self._described([material.description])[0]
        with self._lock:
            (adapter,) = self._generated([material.description], [material.examples]).values()
        return adapter

    def _described(self, descriptions: Sequence[str]) -> list[GeneratedAdapter]:
        if isinstance(descriptions, str):
            raise UsageError("generate_many takes a list of descriptions, got one string; put it in a list")
        texts = [check_description(text) for text in descriptions]
        with self._lock:
            cached = {text: self._cache[text] for text in texts if text in self._cache}
            new = self._generated([text for text in dict.fromkeys(texts) if text not in cached])
            self._cache.update(new)
        found = {**{text: replace(adapter, duration=0.0) for text, adapter in cached.items()}, **new}
        return [found[text].copy() for text in texts]

    def clear_cache(self) -> None:
        """Forget the adapters generated so far, for example after the skill detector learnt other skills."""
        with self._lock:
            self._cache.clear()

    def close(self) -> None:
        """End what trains on examples or inputs within one forward pass, and refuse such calls from now on.

        Those calls raise `UnavailableError`. Adapters are still generated from descriptions alone.
        """
        self._weights.close()

    def facts(self) -> dict[str, Any]:
        """The facts of the generator that each of its adapters carries."""
        if self.checkpoint is None:
            how_to_train = self._identity.how_to_train
            return {**self._sizes(), "trained": False, "adapter": "identity", "how_to_train": how_to_train}
        return {**self._sizes(), "trained": True, "sha256": self.checkpoint.sha256}

    def _sizes(self) -> dict[str, Any]:
        return {
            "base_model": self.shape.base_model,
            "rank": self.config.adapter_rank,
            "modules": len(self._targets),
        }

    def save(self, directory: str | Path) -> None:
        """Write the hypernetwork with its description.

        Raises:
            ShoalError: there is no trained hypernetwork, or the directory cannot be written.
        """
        if self.checkpoint is None:
            raise ShoalError(str(self._identity))
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

    def _generated(
        self, texts: Sequence[str], examples: Sequence[Sequence[Example]] = ()
    ) -> dict[str, GeneratedAdapter]:
        """New adapters by their descriptions, which are checked and differ; `examples` are of each task."""
        if not texts:
            return {}
        started = time.perf_counter()
        if self.checkpoint is None:
            self._identity.warn()
            emitted: list[tuple[LoRA, dict[str, Any]]] = [(self._identity.lora, {})] * len(texts)
        else:
            emission = self.emitter.emit(texts, examples)
            emitted = list(zip(emission.rows(), emission.facts(), strict=True))
        found = self.skills.detect_many(texts)
        share = (time.perf_counter() - started) / len(texts)
        return {
            text: GeneratedAdapter(
                text, lora, skills, {**self.facts(), **own}, share, self.shape, described_label_set(text)
            )
            for text, (lora, own), skills in zip(texts, emitted, found, strict=True)
        }
