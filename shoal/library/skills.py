"""One skill on disk: a PEFT directory with its card, the sums of its requests, and its exemplars.

    adapter_config.json, adapter_model.safetensors, README.md, shoal.json    as every adapter's
    sums.safetensors      count, sum and second moment of states; the states of the exemplars
    exemplars.jsonl       solved examples that were held out from training
    skill.json            its facts, with the SHA-256 of the others

It is never changed: the SHA-256 of `skill.json` is the skill's digest. Knows files; nothing of versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from pydantic import Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from shoal.adapters.card import AdapterCard, LabelSet
from shoal.adapters.files import WEIGHTS_FILE, load_adapter, save_adapter
from shoal.adapters.lora import LoRA
from shoal.errors import ShoalError
from shoal.file_formats import read_json, read_tensors_hashed, sha256_of
from shoal.files import write_file
from shoal.library.moments import Moments
from shoal.library.versions import Digest, Name, Record
from shoal.models.shapes import BackboneShape
from shoal.tasks.records import Example

SUMS_FILE, EXEMPLARS_FILE, FACTS_FILE = "sums.safetensors", "exemplars.jsonl", "skill.json"
HASHED = (WEIGHTS_FILE, SUMS_FILE, EXEMPLARS_FILE)


# Adapters that a skill could have: that of the version before, of its sentence, and the learnt one.
Candidate = Literal["earlier", "sentence", "learnt"]
NAMES = {
    "earlier": "the earlier adapter",
    "sentence": "the sentence's adapter",
    "learnt": "the learnt adapter",
}


class SkillFacts(Record):
    """Facts of one skill."""

    format: Literal[1] = 1
    name: Name
    description: str = Field(min_length=1, description="the sentence that it was learnt from")
    base_model: str = Field(description="that its adapter is for")
    layer: int = Field(ge=0, description="whose input the states are")
    examples: int = Field(ge=1, description="that were trained on")
    way: Literal["refined", "trained"] = Field(description="how")
    start: Literal["text-to-lora", "identity"] = Field(description="what it began as")
    label_set: LabelSet | None = Field(None, description="its answers, where they are closed")
    kept: Candidate = Field(description="the adapter that it has")
    scores: Mapping[Candidate | Literal["base"], tuple[float, ...]] = Field(
        description="of each exemplar under each adapter and the base model, in [0, 1]"
    )
    losses: Mapping[Candidate, float] = Field(
        description="mean negative log-likelihood of the exemplars' answers under each adapter, in nats"
    )
    kinds: tuple[str, ...] = Field((), description="kinds of texts of no skill that its inputs are like")
    files: dict[str, Digest] = Field(default_factory=dict, description="file -> SHA-256")

    @property
    def own_scores(self) -> tuple[float, ...]:
        """Of each exemplar under the adapter that it has, in [0, 1]."""
        return self.scores[self.kept]

    def points(self, of: Candidate | Literal["base"]) -> float | None:
        """Mean score under an adapter or the base model, in points; None without exemplars."""
        return mean_points(self.scores.get(of, ()))

    @property
    def why(self) -> str:
        """The reason why its adapter was kept, as a clause."""
        if not self.losses:
            return f"{NAMES[self.kept]} is kept: no exemplar tells more"
        rest = [f"{loss:.2f} of {NAMES[name]}" for name, loss in self.losses.items() if name != self.kept]
        return (
            f"{NAMES[self.kept]} is kept: its mean loss on {len(self.own_scores)} exemplars is "
            f"{self.losses[self.kept]:.2f} nats, that {' and '.join(rest)}"
        )


@dataclass(frozen=True, eq=False)
class Content:
    """A skill before it is written.

    Attributes:
        facts: without the hashes of its files.
        lora: its adapter.
        card: of the adapter.
        moments: sums over the states of its requests.
        states: of the exemplars' inputs, float32.
        exemplars: that were held out.
    """

    facts: SkillFacts
    lora: LoRA
    card: AdapterCard
    moments: Moments
    states: Float[Tensor, "exemplars width"]
    exemplars: tuple[Example, ...]


def write_skill(folder: Path, content: Content, shape: BackboneShape) -> str:
    """Write a skill into a directory of its own; its digest.

    Raises:
        ShoalError: it cannot be written.
    """
    save_adapter(folder, content.lora, shape=shape, card=content.card)
    tensors = {**content.moments.tensors(), "states": content.states.contiguous()}
    write_file(folder / SUMS_FILE, lambda path: save_file(tensors, path))
    rows = [json.dumps({"input": e.input, "output": list(e.outputs)}) + "\n" for e in content.exemplars]
    write_file(folder / EXEMPLARS_FILE, "".join(rows))
    files = {name: sha256_of(folder / name) for name in HASHED}
    text = content.facts.model_copy(update={"files": files}).model_dump_json(indent=1) + "\n"
    write_file(folder / FACTS_FILE, text)
    return hashlib.sha256(text.encode()).hexdigest()


class Skill:
    """A skill as read from disk; what is large is read when it is first needed, and checked then.

    Attributes:
        facts: its facts.
        folder: where its files are.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        """Read the facts.

        Raises:
            ShoalError: they are missing or were changed.
        """
        path = folder / FACTS_FILE
        if not path.is_file() or sha256_of(path) != digest:
            state = "was changed" if path.is_file() else "is missing"
            raise ShoalError(f"{path} {state}; roll the library back, learn the skill again, or forget it")
        try:
            self.facts = SkillFacts.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            raise ShoalError(f"{path}: {first['loc'][0]}: {first['msg']}; learn the skill again") from None
        self.folder = folder

    @cached_property
    def lora(self) -> LoRA:
        """The adapter.

        Raises:
            ShoalError: its file is missing or is not the one that was written.
        """
        self._check(WEIGHTS_FILE, sha256_of(self._there(WEIGHTS_FILE)))
        return load_adapter(self.folder).lora

    @cached_property
    def moments(self) -> Moments:
        """The sums over its requests; errors as `lora`."""
        return Moments.read((self.facts.name,), self._sums, self.folder / SUMS_FILE)

    @property
    def states(self) -> Float[Tensor, "exemplars width"]:
        """The states of the exemplars' inputs; errors as `lora`."""
        return self._sums["states"]

    @cached_property
    def exemplars(self) -> tuple[Example, ...]:
        """The solved examples that were held out; errors as `lora`."""
        path = self._there(EXEMPLARS_FILE)
        self._check(EXEMPLARS_FILE, sha256_of(path))
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        return tuple(Example(row["input"], tuple(row["output"])) for row in rows)

    def check_files(self) -> None:
        """See that every file is there and is the one that was written; errors as `lora`."""
        for name in HASHED:
            self._check(name, sha256_of(self._there(name)))

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @cached_property
    def _sums(self) -> dict[str, Tensor]:
        found = read_tensors_hashed(self._there(SUMS_FILE))
        self._check(SUMS_FILE, found.sha256)
        return found.tensors

    def _there(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise ShoalError(
                f"{path} is gone; learn {self.facts.name} again, roll the library back, or forget it"
            )
        return path

    def _check(self, name: str, found: str) -> None:
        if self.facts.files.get(name) != found:
            raise ShoalError(
                f"{self.folder / name} does not match the skill {self.facts.name}: it was changed; learn it "
                "again, roll the library back, or forget it"
            )


def mean_points(scores: Sequence[float]) -> float | None:
    """The mean of scores in [0, 1], in points of 100; None of none."""
    return 100 * sum(scores) / len(scores) if scores else None
