"""Skills as each owner sees them: built-in ones, and the owner's own, which a database keeps for all."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache
from sqlalchemy import delete, insert, select

from shoal.errors import ConflictError
from shoal.registry.database import Database
from shoal.registry.schema import SKILLS, check_row
from shoal.server.schemas import CustomSkill
from shoal.text_to_lora.skills import SkillDetection, SkillDetector

MAX_CHARACTERS = 2**15  # of an owner's skills; each may take a kilobyte in memory
MAX_KEPT = 2**18  # of all owners' in memory; others' are made again when they ask
_S = SKILLS.c


@dataclass(frozen=True)
class _Own:
    """An owner's skills as the database had them, and what detects them."""

    definitions: dict[str, Any]
    detector: SkillDetector


class OwnerSkills:
    """Skill detection for every owner, over one encoder.

    Any call may raise `UnavailableError`: the database cannot be reached.
    """

    def __init__(self, shared: SkillDetector, database: Database, max_custom: int) -> None:
        self._shared = shared
        self._database = database
        self._max_custom = max_custom
        self._own: LRUCache[str, _Own] = LRUCache(MAX_KEPT, lambda own: min(MAX_KEPT, _size(own.definitions)))
        self._lock = threading.Lock()

    def detect(self, text: str, owner: str) -> SkillDetection:
        """The skills that a text asks for."""
        return (self._of(owner) or self._shared).detect(text)

    def own(self, text: str, owner: str) -> SkillDetection | None:
        """The skills of a text, its owner's among them; None for an owner without skills of their own."""
        detector = self._of(owner)
        return None if detector is None else detector.detect(text)

    def names(self, owner: str) -> list[str]:
        """Built-in skills and the owner's."""
        return list((self._of(owner) or self._shared).names)

    def add(self, skill: CustomSkill, owner: str) -> None:
        """Learn a skill for one owner, or replace it.

        Raises:
            UsageError: a name or definition that skill detection does not take.
            ConflictError: the owner has as many as may be.
        """
        definition = skill.definition()
        SkillDetector(self._shared.encoder).add_custom_skills({skill.name: definition})  # refused, or good
        with self._database.writing(owner) as connection:
            mine = _S.owner == owner
            rows = connection.execute(select(_S.name, _S.definition).where(mine)).all()
            others = {name: known for name, known in rows if name != skill.name}
            if len(others) >= self._max_custom:
                raise ConflictError(f"{owner} has {len(rows)} custom skills, the limit is {self._max_custom}")
            if (size := _size(others) + _size({skill.name: definition})) > MAX_CHARACTERS:
                raise ConflictError(
                    f"{owner}'s custom skills would have {size} characters, the limit is {MAX_CHARACTERS}; "
                    "give fewer keywords and examples"
                )
            connection.execute(delete(SKILLS).where(mine, _S.name == skill.name))
            row = {"owner": owner, "name": skill.name, "definition": definition}
            connection.execute(insert(SKILLS).values(check_row(SKILLS, row)))

    def _of(self, owner: str) -> SkillDetector | None:
        """The detector of an owner's skills, built anew where another service has changed them."""
        with self._database.reading() as connection:
            rows = connection.execute(select(_S.name, _S.definition).where(_S.owner == owner)).all()
        definitions = {name: definition for name, definition in sorted(rows)}
        if not definitions:
            return None
        with self._lock:
            own = self._own.get(owner)
        if own is None or own.definitions != definitions:
            detector = SkillDetector(self._shared.encoder)
            detector.add_custom_skills(definitions)
            own = _Own(definitions, detector)
            with self._lock:
                self._own[owner] = own
        return own.detector


def _size(definitions: Mapping[str, Any]) -> int:
    """Characters of skills as they are kept."""
    return len(json.dumps(definitions))
