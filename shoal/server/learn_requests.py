"""`POST /v1/jobs/learn` and `/v1/jobs/forget`: a step of a library, checked before it is taken on.

Knows the settings of `shoal learn` and `shoal library forget`; nothing of how jobs run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shoal.errors import UsageError
from shoal.library.gate import BOUND
from shoal.library.lessons import EXEMPLARS, LEAST, prepare
from shoal.server.body import Body
from shoal.server.schemas import Description, Name, Phrase, SolvedExample

SkillName = Annotated[Name, Field(description="of the skill")]


class LibraryStep(Body):
    """A step of a library that needs a model."""

    library: Name
    name: SkillName


class NewSkill(LibraryStep):
    """A skill to be learnt by a job; the library is made at its first one."""

    description: Description
    examples: list[SolvedExample] = Field(min_length=LEAST, max_length=1024)
    labels: list[Phrase] | None = Field(
        None, max_length=256, description="all answers there are, [] where they are open; by default read"
    )
    keep: int = Field(EXEMPLARS, ge=0, le=EXEMPLARS, description="exemplars that are held out and kept")
    bound: float = Field(BOUND, ge=0, le=100, description="points of ROUGE-L that an older skill may lose")
    allow_loss: list[Name] = Field([], max_length=64, description="skills that may lose more")

    def check(self) -> None:
        """See that a skill can be learnt from it.

        Raises:
            UsageError: a name, a description, labels or examples that cannot be used.
        """
        if self.labels and (odd := next((label for label in self.labels if "," in label), None)):
            raise UsageError(f"the label {odd[:40]!r} holds a comma; word it without")
        examples = [(example.input, example.output) for example in self.examples]
        prepare(self.name, self.description, examples, self.keep, self.labels)

    def write(self, folder: Path, directory: Path, base: str) -> dict[str, Any]:
        """Write what a job's process reads, and give the settings of its `shoal learn`."""
        file = folder / "examples.jsonl"
        rows = [json.dumps({"input": e.input, "output": e.output}) for e in self.examples]
        file.write_text("\n".join(rows), encoding="utf-8")
        settings = {
            "base": base,
            "library": str(directory),
            "examples": str(file),
            "describe": self.description,
            "keep": self.keep,
            "bound": self.bound,
            "allow_loss": self.allow_loss,
        }
        return settings | ({} if self.labels is None else {"labels": self.labels or ["none"]})
