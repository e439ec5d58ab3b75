"""A library on disk: contents that never change, and manifests, each of which is a commit.

    LIBRARY/library.json                base model, layer, kinds of texts of no skill
    LIBRARY/none.safetensors            the sums of these texts
    LIBRARY/skills/NAME/<sha12>/        one skill (`shoal.library.skills`)
    LIBRARY/versions/0001.json          one version (`shoal.library.versions`); the newest is current
    LIBRARY/staging/                    what a step has begun

A step writes contents first and then one manifest, by one rename: a process that is killed before it leaves
the library as it was, with files that no version names, and the next writer sweeps these. Knows files; no
model.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError
from safetensors.torch import save_file

from shoal.errors import ConflictError, ShoalError, UsageError
from shoal.file_errors import failures_named
from shoal.file_formats import read_json, read_tensors_hashed, sha256_of
from shoal.files import (
    check_place,
    check_writable,
    move_directory,
    remove_directory,
    write_directory,
    write_file,
)
from shoal.library.moments import Moments
from shoal.library.skills import Content, Skill, write_skill
from shoal.library.versions import Digest, Record, Step, Version, live_contents, parse_version
from shoal.models.shapes import BackboneShape

LIBRARY_FILE, NONE_FILE, LOCK_FILE = "library.json", "none.safetensors", ".lock"
SKILLS, VERSIONS, STAGING = "skills", "versions", "staging"
_MANIFEST = re.compile(r"(\d{4,})\.json")


class LibraryFacts(Record):
    """Facts of a library that never change."""

    format: Literal[1] = 1
    base_model: str = Field(min_length=1, description="that all its adapters are for")
    layer: int = Field(ge=0, description="whose input the router reads")
    kinds: tuple[str, ...] = Field(description="of texts of no skill")
    none_sha256: Digest = Field(description="of their sums")


class Store:
    """The directory of one library.

    Attributes:
        folder: its path.
        facts: of the library.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the facts.

        Raises:
            UsageError: it is no library.
            ShoalError: it is damaged.
        """
        self.folder = Path(folder)
        path = self.folder / LIBRARY_FILE
        if not path.is_file():
            raise UsageError(f"{self.folder} is no library; `shoal learn` makes one at its first skill")
        try:
            self.facts = LibraryFacts.model_validate(read_json(path, format=1))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ShoalError(f"{path}: {where}: {first['msg']}; restore it from a backup") from None

    @classmethod
    def create(cls, folder: str | Path, base_model: str, layer: int, none: Moments) -> Store:
        """Write a library without skills, whole or not at all.

        Raises:
            UsageError: there is one already, or the directory holds something else.
            ShoalError: it cannot be written.
        """
        cls.check_free(folder)

        def write(draft: Path) -> None:
            save_file(none.tensors(), draft / NONE_FILE)
            facts = LibraryFacts(
                base_model=base_model, layer=layer, kinds=none.kinds, none_sha256=sha256_of(draft / NONE_FILE)
            )
            (draft / LIBRARY_FILE).write_text(facts.model_dump_json(indent=1) + "\n", "utf-8")
            (draft / VERSIONS).mkdir()
            first = Version(number=1, step=Step(kind="create"))
            (draft / VERSIONS / "0001.json").write_text(first.text(), "utf-8")

        write_directory(folder, write)
        return cls(folder)

    @staticmethod
    def check_free(folder: str | Path) -> None:
        """See that a library can be made in a directory; errors as `create`."""
        target = Path(folder)
        if (target / LIBRARY_FILE).exists():
            raise UsageError(f"{target} is a library already; open it, or name another directory")
        check_place(target, ())

    @cached_property
    def none(self) -> Moments:
        """The sums of texts of no skill.

        Raises:
            ShoalError: they are missing or were changed.
        """
        path = self.folder / NONE_FILE
        found = read_tensors_hashed(path)
        if found.sha256 != self.facts.none_sha256:
            raise ShoalError(
                f"{path} does not match {LIBRARY_FILE}: it was changed; restore it from a backup"
            )
        return Moments.read(self.facts.kinds, found.tensors, path)

    def versions(self) -> list[Version]:
        """All versions, the oldest first.

        Raises:
            ShoalError: there is none, one is damaged, or one is missing between others.
        """
        numbers = self._numbers()
        missing = next((n for n in range(1, numbers[-1]) if n not in numbers), None)
        if missing is not None:
            raise ShoalError(
                f"{self._manifest(missing)} is missing and later versions are there: the history is "
                "damaged; restore it from a backup"
            )
        return [self._read(number) for number in numbers]

    def current(self) -> Version:
        """The newest version; errors as `versions`."""
        return self._read(self._numbers()[-1])

    def skill(self, name: str, digest: str) -> Skill:
        """A skill of a version; errors as `Skill`."""
        return Skill(self._content(name, digest), digest)

    @contextmanager
    def writing(self) -> Iterator[Version]:
        """The current version, while no other process writes; leftovers of a killed step are swept first.

        Raises:
            ConflictError: another process writes.
            ShoalError: the history is damaged, or the directory cannot be written.
        """
        check_writable(self.folder / STAGING)
        lock = FileLock(self.folder / LOCK_FILE, timeout=0)
        with failures_named(self.folder):
            try:
                lock.acquire()
            except Timeout:
                raise ConflictError(
                    f"{self.folder} is written by another process; wait until it ends, then try again"
                ) from None
        try:
            versions = self.versions()
            self._sweep(versions)
            yield versions[-1]
        finally:
            with failures_named(self.folder, "remove"):
                shutil.rmtree(self.folder / STAGING, ignore_errors=True)
            lock.release()

    def staging(self) -> Path:
        """A new directory for what a step writes before its commit; it is gone after the step."""
        path = self.folder / STAGING / secrets.token_hex(6)
        with failures_named(path):
            path.mkdir(parents=True)
        return path

    def add(self, content: Content, shape: BackboneShape) -> str:
        """Write a skill that no version names yet; its digest. Errors as `write_skill`."""
        draft = self.staging() / "skill"
        digest = write_skill(draft, content, shape)
        target = self._content(content.facts.name, digest)
        if not target.exists():
            move_directory(draft, target)
        return digest

    def commit(self, version: Version) -> None:
        """Write a manifest; the library is then of this version.

        Raises:
            ShoalError: it cannot be written; the library is then as it was.
        """
        write_file(self._manifest(version.number), version.text())

    def remove(self, name: str) -> None:
        """Remove every file of a skill; errors as `remove_directory`."""
        path = self.folder / SKILLS / name
        if path.is_dir():
            remove_directory(path)

    def _sweep(self, versions: list[Version]) -> None:
        kept = {self._content(name, digest) for name, digest in live_contents(versions)}
        with failures_named(self.folder, "remove"):
            shutil.rmtree(self.folder / STAGING, ignore_errors=True)
            for path in (self.folder / SKILLS).glob("*/*"):
                if path not in kept:
                    shutil.rmtree(path)
            names = {path.parent for path in kept}
            for path in (self.folder / SKILLS).glob("*"):
                if path not in names:
                    shutil.rmtree(path)

    def _content(self, name: str, digest: str) -> Path:
        return self.folder / SKILLS / name / digest[:12]

    def _manifest(self, number: int) -> Path:
        return self.folder / VERSIONS / f"{number:04d}.json"

    def _numbers(self) -> list[int]:
        folder = self.folder / VERSIONS
        with failures_named(folder, "read"):
            found = [_MANIFEST.fullmatch(path.name) for path in folder.iterdir()]
        numbers = sorted(int(match[1]) for match in found if match)
        if not numbers:
            raise ShoalError(f"{folder} holds no version; restore it from a backup")
        return numbers

    def _read(self, number: int) -> Version:
        path = self._manifest(number)
        return parse_version(read_json(path), number, path)
