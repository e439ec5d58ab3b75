"""Names of skills: a table of synonyms, and values and directories that are found under any of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SYNONYMS = {
    "code": "code_generation",
    "languages": "translation",
    "routing": "analysis",
}


def skill_name(name: str) -> str:
    """The name of the guide for a synonym; any other name is its own."""
    return SYNONYMS.get(name, name)


def known_name(name: str, known: Iterable[str]) -> str | None:
    """The one of some names that a name stands for: itself, else the first synonym; None without any."""
    names = list(known)
    if name in names:
        return name
    return next((other for other in names if skill_name(other) == skill_name(name)), None)


def under_either_name(directory: Path) -> Path:
    """The directory of an expert, or where there is none that beside it which is named by a synonym."""
    if directory.exists() or not directory.parent.is_dir():
        return directory
    beside = known_name(directory.name, sorted(path.name for path in directory.parent.iterdir()))
    return directory.with_name(beside) if beside else directory


class BySkill(dict[str, T]):
    """Values under names of skills, each found under its synonyms too, whichever of them it was put under."""

    def __missing__(self, name: str) -> T:
        found = known_name(name, self)
        if found is None:
            raise KeyError(name)
        return self[found]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and known_name(name, self) is not None

    def get(self, name: str, default: T | None = None) -> T | None:  # type: ignore[override]
        """The value of a skill, or a default."""
        found = known_name(name, self)
        return default if found is None else self[found]
