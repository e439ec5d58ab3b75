"""The manifest of a version of a library: which skills it has, and what they score. Knows no files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.adapters.files import ADAPTER_NAME
from shoal.errors import ShoalError, UsageError

Name = Annotated[str, Field(pattern=f"^{ADAPTER_NAME.pattern}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A value that is kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Asked(Record):
    """Answers to one skill's exemplars, by the input alone."""

    routes: tuple[str, ...] = Field(description="of each exemplar, the skill that answered it, or `none`")
    scores: tuple[float, ...] = Field(description="of each answer, in [0, 1]")

    @property
    def mean(self) -> float | None:
        """Mean score in [0, 1]; None without exemplars."""
        return fmean(self.scores) if self.scores else None


class Confusion(Record):
    """Requests of one skill that the router takes for those of another."""

    skill: Name
    other: Name
    share: float = Field(ge=0, le=1, description="of the skill's exemplars")

    def __str__(self) -> str:
        """As a clause."""
        return f"{self.share:.0%} of {self.skill}'s inputs look like {self.other}'s"


class Step(Record):
    """The step that made a version."""

    kind: Literal["create", "learn", "rollback", "forget"]
    skill: Name | None = Field(None, description="that was learnt or forgotten")
    to: int | None = Field(None, description="the version that was restored")
    allowed: tuple[Name, ...] = Field((), description="skills that were allowed to lose")
    seconds: float = Field(0.0, ge=0, description="that it took")


class Version(Record):
    """One version of a library."""

    format: Literal[1] = 1
    number: int = Field(ge=1, description="counted from 1")
    step: Step = Field(description="that made it")
    skills: Mapping[Name, Digest] = Field(default_factory=dict, description="name -> SHA-256 of its facts")
    asked: Mapping[Name, Asked] = Field(default_factory=dict, description="what every skill scores")
    accepted: Mapping[Name, tuple[float, ...]] = Field(
        default_factory=dict,
        description="scores that later losses count from: when learnt, or last allowed to lose",
    )
    confused: tuple[Confusion, ...] = Field((), description="skills that inputs do not tell apart")

    def text(self) -> str:
        """The manifest, with a checksum of itself."""
        content = self.model_dump(mode="json")
        return json.dumps({**content, "sha256": _sum_of(content)}, indent=1) + "\n"


def parse_version(content: Mapping[str, Any], number: int, source: object) -> Version:
    """The version that a manifest describes.

    Raises:
        ShoalError: it was changed or damaged, or is that of another version.
    """
    own = {key: value for key, value in content.items() if key != "sha256"}
    fix = f"delete it to go back to version {number - 1}" if number > 1 else "restore it from a backup"
    try:
        version = Version.model_validate(own)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ShoalError(f"{source}: {where}: {first['msg']}; {fix}") from None
    if content.get("sha256") != _sum_of(own) or version.number != number:
        raise ShoalError(f"{source} is damaged: its checksum or number is another; {fix}")
    return version


def forgotten_in(versions: Sequence[Version], number: int) -> dict[str, int]:
    """Skill -> the later version in which it was forgotten, of those that a version had."""
    had = next(version.skills for version in versions if version.number == number)
    later = [v for v in reversed(versions) if v.number > number and v.step.kind == "forget"]
    return {v.step.skill: v.number for v in later if v.step.skill is not None and v.step.skill in had}


def check_restorable(versions: Sequence[Version], number: int) -> Version:
    """The version of a number, if it can be restored.

    Raises:
        UsageError: there is none, or it had a skill that was forgotten later.
    """
    found = next((version for version in versions if version.number == number), None)
    if found is None:
        raise UsageError(f"there is no version {number}; choose 1 to {versions[-1].number}")
    for skill, later in forgotten_in(versions, number).items():
        raise UsageError(
            f"version {number} had the skill {skill}, which was forgotten in version {later}: its files are "
            "gone; choose another version"
        )
    return found


def live_contents(versions: Sequence[Version]) -> set[tuple[str, str]]:
    """(name, digest) of every skill whose files some version can still need."""
    kept = set()
    for version in versions:
        gone = forgotten_in(versions, version.number)
        kept |= {(name, digest) for name, digest in version.skills.items() if name not in gone}
    return kept


def lineage(versions: Sequence[Version]) -> list[Version]:
    """The steps that led to the newest version, oldest first, without what was rolled back."""
    by_number = {version.number: version for version in versions}
    found: list[Version] = []
    version: Version | None = versions[-1]
    while version is not None:
        back = version.step.to if version.step.kind == "rollback" else version.number - 1
        if version.step.kind != "rollback":
            found.append(version)
        version = by_number.get(back or 0)
    return found[::-1]


def _sum_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
