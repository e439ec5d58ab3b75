"""Libraries of skills in the service: each owner's own, kept beside the registry's objects.

They are learnt by jobs, in processes of their own, and read here: a request by the library's name is routed
by its router. Another owner's library is as unknown as one that nobody has.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.adapters.files import ADAPTER_NAME, check_name
from shoal.errors import ConflictError, NotFoundError, ShoalError, UsageError, shorten
from shoal.files import remove_directory
from shoal.library.library import Library
from shoal.library.report import library_record
from shoal.library.store import LIBRARY_FILE, Store
from shoal.registry.registry import Registry
from shoal.server.job_folders import owner_folder, write_command
from shoal.server.jobs import Job, Jobs
from shoal.server.learn_requests import LibraryStep, NewSkill
from shoal.text_to_lora.generator import TextToLoRA

log = logging.getLogger(__name__)

MOST_LIBRARIES, MOST_SKILLS = 16, 64  # of one owner; of one library
MOST_OPEN = 8  # kept in memory


@dataclass(frozen=True, eq=False)
class NamedLibrary:
    """A library by its name."""

    name: str
    library: Library


class Libraries:
    """Finds, lists, rolls back and removes the libraries of owners."""

    def __init__(
        self, registry: Registry, jobs: Jobs, base_model: str, base: str, generator: TextToLoRA
    ) -> None:
        """Take what libraries need.

        Args:
            registry: whose directory holds them.
            jobs: run the steps that need a model.
            base_model: that they are for.
            base: the same as `--base` takes it.
            generator: embeds the sentences that ask for a skill.
        """
        self._registry, self._jobs, self._generator = registry, jobs, generator
        self._base_model, self._base = base_model, base
        self._open: dict[Path, Library] = {}  # the last that was used comes last
        self._lock = threading.Lock()

    def find(self, name: str, owner: str | None) -> NamedLibrary | None:
        """The library of this name for this owner, at its newest version; None where there is none.

        Raises:
            ShoalError: it is damaged.
        """
        if owner is None or not ADAPTER_NAME.fullmatch(name):
            return None
        folder = self.folder(name, owner)
        if not (folder / LIBRARY_FILE).is_file():
            return None
        number = Store(folder).current().number
        with self._lock:
            library = self._open.pop(folder, None)
        if library is None or library.version.number != number:
            library = Library.open(folder, generator=self._generator)
        with self._lock:
            self._open[folder] = library
            while len(self._open) > MOST_OPEN:
                self._open.pop(next(iter(self._open)))
        return NamedLibrary(name, library) if library.base_model == self._base_model else None

    def get(self, name: str, owner: str) -> Library:
        """The library of this name.

        Raises:
            NotFoundError: there is none for this owner.
        """
        found = self.find(name, owner)
        if found is None:
            raise NotFoundError(
                f"there is no library {shorten(name, 64)}; GET /v1/libraries lists those that there are"
            )
        return found.library

    def names(self, owner: str) -> list[str]:
        """Names of an owner's libraries."""
        return sorted(path.parent.name for path in self._folder_of(owner).glob(f"*/{LIBRARY_FILE}"))

    def page(self, owner: str) -> list[dict[str, Any]]:
        """An owner's libraries in brief, by name, without those that are damaged."""
        rows = []
        for name in self.names(owner):
            try:
                named = self.find(name, owner)
            except ShoalError as error:
                log.warning("library %s: %s", name, error)
                continue
            if named is not None:
                rows.append(_brief(name, named.library))
        return rows

    def shown(self, name: str, owner: str) -> dict[str, Any]:
        """A library as the API shows it; errors as `get` and `library_record`."""
        return {"object": "library", "name": name, **library_record(self.get(name, owner))}

    def rollback(self, name: str, owner: str, number: int) -> dict[str, Any]:
        """Restore an older version as a new one; errors as `get` and `Library.rollback`."""
        self.get(name, owner)
        library = Library.open(self.folder(name, owner))  # of its own: one object is used by one thread
        library.rollback(number)
        return self.shown(name, owner)

    def delete(self, name: str, owner: str) -> None:
        """Remove a library with all its skills; errors as `get` and `Store.writing`."""
        self.get(name, owner)
        folder = self.folder(name, owner)
        with Store(folder).writing():
            remove_directory(folder)

    def learn(self, new: NewSkill, owner: str) -> Job:
        """Take the learning of a skill on, as a job.

        Raises:
            UsageError: a name, or what `NewSkill.check` refuses.
            ConflictError: the name is an adapter's, or the owner has as much as may be.
            UnavailableError: as `Jobs.enter`.
        """
        new.check()
        self._check_room(new.library, new.name, owner)
        directory = self.folder(new.library, owner)

        def prepare(folder: Path) -> None:
            write_command(folder, ("learn", new.name), new.write(folder, directory, self._base))

        return self._jobs.enter(_named(new), owner, 1, prepare)

    def forget(self, step: LibraryStep, owner: str) -> Job:
        """Take the forgetting of a skill on, as a job; errors as `get`, `Contents.check_known`, `learn`."""
        self.get(step.library, owner).contents.check_known(step.name)
        settings = {"base": self._base, "library": str(self.folder(step.library, owner))}

        def prepare(folder: Path) -> None:
            write_command(folder, ("library", "forget", step.name), settings)

        return self._jobs.enter(_named(step), owner, 1, prepare)

    def _check_room(self, name: str, skill: str, owner: str) -> None:
        """See that an owner may learn a skill into a library; errors as `learn`."""
        named = self.find(check_name(name), owner)
        if named is not None:
            skills = named.library.skills
            if skill not in skills and len(skills) >= MOST_SKILLS:
                raise ConflictError(f"{name} has {MOST_SKILLS} skills, as many as may be; forget one")
            return
        self._registry.check(name, owner)
        if (count := len(self.names(owner))) >= MOST_LIBRARIES:
            raise ConflictError(f"{owner} has {count} libraries, as many as may be; delete one")
        with suppress(NotFoundError):
            self._registry.get(name, owner)
            raise ConflictError(f"{name} is the name of an adapter; choose another for the library")

    def folder(self, name: str, owner: str) -> Path:
        """The directory of a library, which need not be there."""
        return self._folder_of(owner) / name

    def _folder_of(self, owner: str) -> Path:
        return owner_folder(self._registry.root, owner)


def check_choice(skill: str | None, describe: str | None, mix: object) -> None:
    """See that a request for a library says at most one thing about its skill.

    Raises:
        UsageError: it mixes, or names and describes one.
    """
    if mix is not None or (skill is not None and describe is not None):
        raise UsageError(
            "a library answers with one skill: `adapter` holds skill or describe, or is left out"
        )


def _brief(name: str, library: Library) -> dict[str, Any]:
    return {
        "object": "library",
        "name": name,
        "version": library.version.number,
        "base_model": library.base_model,
        "skills": list(library.skills),
    }


def _named(step: LibraryStep) -> str:
    """LIBRARY/SKILL, which no adapter is called, cut to what a job's name may have."""
    return f"{step.library}/{step.name}"[:64]
