"""Skills as each owner sees them: the built-in ones, and the owner's own, which live with the process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from shoal.errors import ConflictError
from shoal.service.schemas import CustomSkill
from shoal.skills import SkillDetection, SkillDetector

MAX_OWNERS = 256  # with skills of their own; who has not asked longest loses them


class OwnersSkills:
    """Skill detection for every owner, over one encoder."""

    def __init__(self, shared: SkillDetector, max_custom: int) -> None:
        self._shared, self._max_custom = shared, max_custom
        self._own: OrderedDict[str, tuple[SkillDetector, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def detect(self, text: str, owner: str) -> SkillDetection:
        """The skills that a text asks for."""
        with self._lock:
            own = self._own.get(owner)
            if own is not None:
                self._own.move_to_end(owner)
            return (own[0] if own else self._shared).detect(text)

    def own(self, text: str, owner: str) -> SkillDetection | None:
        """The skills of a text, its owner's among them; None for an owner without skills of their own."""
        with self._lock:
            own = self._own.get(owner)
            return own[0].detect(text) if own else None

    def names(self, owner: str) -> list[str]:
        """Built-in skills and the owner's."""
        with self._lock:
            own = self._own.get(owner)
            return list((own[0] if own else self._shared).names)

    def add(self, skill: CustomSkill, owner: str) -> None:
        """Learn a skill for one owner, or replace it.

        Raises:
            UsageError: a name or definition that skill detection does not take.
            ConflictError: the owner has as many as may be.
        """
        with self._lock:
            detector, known = self._own.get(owner) or (SkillDetector(self._shared.encoder), {})
            if skill.name not in known and len(known) >= self._max_custom:
                raise ConflictError(
                    f"{owner} has {len(known)} custom skills, the limit is {self._max_custom}"
                )
            detector.add_custom_skills({skill.name: skill.definition()})
            known[skill.name] = skill
            self._own[owner] = (detector, known)
            self._own.move_to_end(owner)
            while len(self._own) > MAX_OWNERS:
                self._own.popitem(last=False)
