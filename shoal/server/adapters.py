"""Adapters from descriptions and uploads into the registry, and how the API shows them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

from shoal.adapters.archive import pack, unpack
from shoal.adapters.files import check_name
from shoal.adapters.lora import LoRA
from shoal.config import MIN_EXAMPLES, ServiceConfig
from shoal.errors import ConflictError, UnavailableError, UsageError
from shoal.models.known import DEFAULT_HUB_ID, KNOWN_MODELS
from shoal.models.sources import DEFAULT_MODEL
from shoal.registry.importing import keep_foreign, without_paths
from shoal.registry.records import AdapterRecord
from shoal.registry.registry import Quota, Registry
from shoal.server.metrics import Monitoring
from shoal.server.microbatching import MicroBatcher
from shoal.server.schemas import NewAdapter
from shoal.server.skills import OwnerSkills
from shoal.tasks.records import check_examples
from shoal.text_to_lora.generated_adapter import GeneratedAdapter
from shoal.text_to_lora.generator import TextToLoRA

UNPACKED_BYTES, UNPACKED_FACTOR = 2**24, 16  # that an upload may take; for a large one, times its size
LINGER_SECONDS = 0.02  # a fraction of what one description takes
MAX_TRAINING = 4  # adapters that are trained on examples or inputs, or wait for that: one runs at a time
MAX_GENERATORS = 3  # base models besides the served one whose generators are kept


class Adapters:
    """Generates, imports, shows and deletes adapters for the routes."""

    def __init__(
        self,
        registry: Registry,
        generator: TextToLoRA,
        skills: OwnerSkills,
        monitoring: Monitoring,
        discard: Callable[[str], None],
        config: ServiceConfig,
    ) -> None:
        self._registry = registry
        self._generator = generator
        self._skills = skills
        self._monitoring = monitoring
        self._discard = discard
        self._config = config
        self._quota = quota_of(config)
        self._training = threading.BoundedSemaphore(MAX_TRAINING)
        self._batched = MicroBatcher(generator.generate_many, config.max_generated, LINGER_SECONDS)
        self._others: dict[str, TextToLoRA] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Generate no more; what trains ends within one forward pass."""
        self._generator.close()
        self._batched.close()

    def describe(self, description: str) -> tuple[LoRA, dict[str, Any]]:
        """An adapter that is not kept; see `TextToLoRA.generate` for errors."""
        with self._monitoring.adapter_seconds.time():
            adapter = self._batched(description)
        facts = {"description": adapter.description, "skills": list(adapter.skills.skills)}
        return adapter.lora, facts | judgement(adapter)

    def create(self, new: NewAdapter, owner: str) -> tuple[AdapterRecord, GeneratedAdapter]:
        """Generate an adapter and keep it; with examples or inputs it is then trained.

        Raises:
            UsageError: a name, a description, examples, inputs or labels that cannot be used.
            ConflictError: the name is taken, or the owner has as many as may be.
            UnavailableError: as many others are being trained as may be, the service is stopped meanwhile,
                the database cannot be reached, or the disk is full.
        """
        self._registry.check(new.name, owner, quota=self._quota)
        if new.examples:
            check_examples(new.solved, MIN_EXAMPLES if new.refine else 1)
        adapter = self._trained(new) if _is_more_than_a_sentence(new) else self._fast(new)
        return self._keep(new, adapter, owner), adapter

    def create_many(
        self, wanted: Sequence[NewAdapter], owner: str
    ) -> list[tuple[AdapterRecord, GeneratedAdapter]]:
        """Generate adapters in one pass and keep them, all checked before the first is kept.

        Raises:
            UsageError, ConflictError, UnavailableError: as `create`, or too many at once.
        """
        if len(wanted) > self._config.max_generated:
            raise UsageError(
                f"{len(wanted)} adapters at once, the limit is {self._config.max_generated}; ask for fewer"
            )
        if len({new.name for new in wanted}) < len(wanted):
            raise UsageError("a name is given twice; give every adapter its own")
        if any(map(_is_more_than_a_sentence, wanted)):
            raise UsageError(
                "examples, inputs and labels take training each; ask for such an adapter "
                "alone, at POST /v1/adapters"
            )
        most = self._config.max_adapters
        for new in wanted:
            self._registry.check(new.name, owner, quota=self._quota)
        if (used := self._registry.count(owner)) + len(wanted) > most:
            raise ConflictError(
                f"{owner} has {used} adapters, {len(wanted)} more are above the limit of {most}; delete some"
            )
        with self._monitoring.adapter_seconds.time():
            adapters = self._generator.generate_many([new.description for new in wanted])
        return [
            (self._keep(new, adapter, owner), adapter) for new, adapter in zip(wanted, adapters, strict=True)
        ]

    def _fast(self, new: NewAdapter) -> GeneratedAdapter:
        with self._monitoring.adapter_seconds.time():
            return self._batched(new.description)

    def _trained(self, new: NewAdapter) -> GeneratedAdapter:
        if not self._training.acquire(blocking=False):
            raise UnavailableError(
                f"{MAX_TRAINING} adapters are being trained already, no more are taken; try later"
            )
        try:
            with self._monitoring.adapter_seconds.time():
                return self._generator.generate(
                    new.description,
                    new.solved,
                    inputs=new.unsolved,
                    labels=new.labels,
                    sample_inputs=new.sample_inputs,
                    refine=new.refine,
                    careful=new.careful,
                    suggest=new.suggest,
                )
        finally:
            self._training.release()

    def _keep(self, new: NewAdapter, adapter: GeneratedAdapter, owner: str) -> AdapterRecord:
        return self._registry.add(
            new.name,
            adapter.lora,
            shape=adapter.shape,
            card=adapter.card(),
            owner=owner,
            public=new.public,
            quota=self._quota,
        )

    def upload(self, name: str, file: IO[bytes], owner: str, *, public: bool) -> AdapterRecord:
        """Check a ZIP of a PEFT directory and keep its adapter; errors as `keep_foreign` and `unpack`."""
        self._registry.check(check_name(name), owner, quota=self._quota)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        most = min(self._config.max_upload_bytes, max(UNPACKED_BYTES, UNPACKED_FACTOR * size))
        with self._registry.incoming() as folder, without_paths(folder):
            unpack(file, folder, max_bytes=most)
            return keep_foreign(
                self._registry,
                name,
                folder,
                self._generator.shape,
                owner=owner,
                public=public,
                quota=self._quota,
                max_rank=self._config.max_rank,
                max_bytes=most,
            )

    def delete(self, name: str, owner: str) -> None:
        """Remove an adapter with all its versions, from memory too; errors as `Registry.delete`."""
        for sha256 in self._registry.delete(name, owner):
            self._discard(sha256)

    def download(self, name: str, owner: str) -> IO[bytes]:
        """A temporary file with an adapter as a PEFT ZIP, at its beginning; to be closed by who reads it."""
        record = self._registry.get(name, owner)
        self._registry.load(record)  # nothing damaged leaves
        file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            pack(self._registry.directory(record), file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def norms(self, name: str, owner: str) -> dict[str, float]:
        """Module name -> Frobenius norm of the delta weight."""
        return self._registry.load(self._registry.get(name, owner)).lora.norms()

    def guide(self, prompt: str, model_path: str, owner: str) -> dict[str, Any]:
        """The body of the guide's `POST /generate-adapter`, `success` and `skills`; the adapter is not kept.

        Raises:
            UsageError: a base model outside the list, or a description that cannot be used.
        """
        with self._monitoring.adapter_seconds.time():
            generator = self._of(model_path)
            adapter = self._batched(prompt) if generator is self._generator else generator.generate(prompt)
        found = self._skills.own(prompt, owner) or adapter.skills
        return {"success": True, "skills": list(found.skills)}

    def _of(self, base: str) -> TextToLoRA:
        """The generator of a base model; names of files are never looked at."""
        own = self._generator.shape.base_model
        if base == own or (base == DEFAULT_MODEL and own == DEFAULT_HUB_ID):
            return self._generator
        if base not in KNOWN_MODELS:
            known = ", ".join(dict.fromkeys([own, *KNOWN_MODELS]))
            raise UsageError(f"model_path {base[:80]!r} is not among the base models here: {known}")
        with self._lock:
            if base not in self._others:
                while len(self._others) >= MAX_GENERATORS:
                    self._others.pop(next(iter(self._others)))
                self._others[base] = TextToLoRA(base, skills=self._generator.skills)
            return self._others[base]


def quota_of(config: ServiceConfig) -> Quota:
    """What an owner may keep."""
    return Quota(config.max_adapters, config.max_stored_bytes)


def shown(record: AdapterRecord) -> dict[str, Any]:
    """An adapter as the API shows it."""
    facts = {key: value for key, value in vars(record).items() if key != "card"}
    card = record.card.model_dump(mode="json")
    return {
        **facts,
        "object": "adapter",
        "description": card["description"],
        "scores": card["scores"],
        "card": card,
    }


def _is_more_than_a_sentence(new: NewAdapter) -> bool:
    return bool(new.examples or new.inputs or new.sample_inputs) or new.labels is not None


def judgement(adapter: GeneratedAdapter) -> dict[str, Any]:
    """The quality to expect of a generated adapter, for its user.

    `confidence` is in [0, 1] and None where no training tasks are known; `notes` are plain sentences, each
    with what to do about it.
    """
    facts = adapter.hypernetwork
    return {
        "trained": adapter.trained,
        "confidence": facts.get("confidence"),
        "nonsense": facts.get("nonsense", False),
        "notes": list(adapter.notes),
        **{name: facts.get(name) for name in ("shots", "few_shot", "next_examples")},
    }


def shown_generated(record: AdapterRecord, adapter: GeneratedAdapter) -> dict[str, Any]:
    """A new adapter as the API shows it."""
    return {**shown(record), **judgement(adapter)}
