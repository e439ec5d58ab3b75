"""The registry: adapters by name and version, their facts in a database, their files by content beside it.

Files are written, flushed and put in place before the row that names them is committed, and a row is removed
before its files: a process killed at any moment leaves no half adapter and loses none that was acknowledged,
only files that no row names, which `sweep` removes. Several processes use one registry at once. A viewer is
an owner's name, or None for the operator, who sees everything. Knows nothing of HTTP or of how adapters run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import StoredAdapter, check_name, save_adapter
from shoal.config import DEFAULT_MODEL
from shoal.errors import ConflictError, NotFoundError, ShoalError, UnavailableError, UsageError, check_unicode
from shoal.registry.database import Database
from shoal.registry.holds import lock_of
from shoal.registry.objects import AdapterFiles
from shoal.registry.quotas import Quota, check_free, count_of, holder
from shoal.registry.records import AdapterRecord, Page, card_columns, record_of
from shoal.registry.schema import ADAPTERS, NAMES, check_row

if TYPE_CHECKING:
    from shoal.adapters.lora import LoRA
    from shoal.models.shapes import BackboneShape

MAX_PAGE = 200
SPARE_BYTES = 2**16  # in which a database can delete something
_A = ADAPTERS.c


class Registry:
    """Adapters under one directory, with a database inside it or elsewhere.

    Attributes:
        root: the directory.
        database: also of keys and jobs.
    """

    def __init__(
        self, root: str | os.PathLike[str], url: str | None = None, *, reserved: Collection[str] = ()
    ) -> None:
        """Open it, made if missing.

        Args:
            root: directory of the files.
            url: of the database; by default a SQLite file in `root`.
            reserved: names that no adapter may take, such as those of base models.

        Raises:
            UsageError: another kind of URL.
            UnavailableError: the database cannot be reached.
            ShoalError: the directory cannot be written, or the database is a newer version's.
        """
        self.root = Path(os.path.realpath(root))
        self._reserved = frozenset(reserved)
        self._files = AdapterFiles(self.root)
        self._spare = self.root / "spare"
        self._keep_spare()
        self.database = Database(url or f"sqlite:///{self.root / 'registry.db'}")

    def reserve(self, names: Collection[str]) -> None:
        """Let no adapter take these names either."""
        self._reserved |= frozenset(names)

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def add(
        self,
        name: str,
        lora: LoRA,
        *,
        shape: BackboneShape,
        card: AdapterCard,
        owner: str,
        public: bool = False,
        revision: str | None = None,
        quota: Quota | None = None,
        job: str | None = None,
    ) -> AdapterRecord:
        """Keep an adapter; a name that its owner used before gets the next version.

        Args:
            name: what it is called.
            lora: the factors.
            shape: of its base model.
            card: provenance.
            owner: who may change it.
            public: whether others may use it.
            revision: version of the base model.
            quota: of the owner, this one among them; None for any number.
            job: that made it, and holds its name.

        Raises:
            UsageError: no name, a reserved one, a text that is too long, or an adapter that does not fit its
                base.
            ConflictError: the name is or was another owner's, or another job holds it, or the quota is used
                up.
            UnavailableError: the database cannot be reached, or the disk is full.
        """
        self.check(name, owner, quota=quota, base=shape.base_model, job=job)  # before anything is written
        with self._files.writing():
            content = self._files.write(
                lambda draft: save_adapter(draft, lora, shape=shape, card=card, revision=revision)
            )
            facts = {"base": shape.base_model, "revision": revision, "rank": lora.rank, "owner": owner}
            facts |= {"public": public, **vars(content), **card_columns(card)}
            return self._commit(name, facts, quota, job)

    def check(
        self,
        name: str,
        owner: str,
        *,
        quota: Quota | None = None,
        base: str | None = None,
        job: str | None = None,
    ) -> None:
        """Refuse what `add` would refuse of a name, before the adapter is made; errors as there."""
        if check_name(name) in {*self._reserved, base}:
            raise UsageError(f"the name {name!r} is a model's own; choose another")
        with self.database.reading() as connection:
            check_free(connection, name, owner, quota, job=job)

    def get(self, name: str, viewer: str | None, version: int | None = None) -> AdapterRecord:
        """The newest version of a name, or the one asked for.

        Raises:
            UsageError: no name.
            NotFoundError: there is none, or none that this viewer may see.
            UnavailableError: the database cannot be reached.
        """
        which = _A.newest if version is None else _A.version == version
        with self.database.reading() as connection:
            rows = select(ADAPTERS).where(_A.name == check_name(name), which, _visible_to(viewer))
            row = connection.execute(rows).mappings().first()
        if row is None:
            named = repr(name) if version is None else f"{name!r} of version {version}"
            raise NotFoundError(f"there is no adapter {named}; list those that there are")
        return record_of(row)

    def page(
        self, viewer: str | None, *, after: str = "", limit: int = 50, search: str | None = None
    ) -> Page:
        """The newest versions that a viewer may see, by name.

        Args:
            viewer: an owner, or None for the operator.
            after: the last name of the page before.
            limit: at most 200.
            search: text in the name or description, in any case.

        Raises:
            UsageError: a limit outside 1..200, or a text that is not Unicode.
            UnavailableError: the database cannot be reached.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise UsageError(f"a page of {limit} is outside 1..{MAX_PAGE}; ask for less, then for the next")
        for text in (after, search or ""):
            check_unicode(text, "search")
        rows = select(ADAPTERS).where(_A.newest, _A.name > after, _visible_to(viewer))
        if search:
            searched = (_A.name, _A.description)
            rows = rows.where(or_(*(column.icontains(search, autoescape=True) for column in searched)))
        with self.database.reading() as connection:
            found = connection.execute(rows.order_by(_A.name).limit(limit + 1)).mappings().all()
        records = tuple(record_of(row) for row in found[:limit])
        return Page(records, records[-1].name if len(found) > limit else None)

    def load(self, record: AdapterRecord) -> StoredAdapter:
        """Read an adapter's files, after comparing them with what was written.

        Raises:
            NotFoundError: it was deleted meanwhile.
            ShoalError: its files are damaged or missing.
        """
        try:
            return self.read(record.sha256)
        except ShoalError:
            self.get(record.name, None, record.version)  # what was deleted is not damaged
            raise

    def read(self, sha256: str) -> StoredAdapter:
        """Read files by their content; NotFoundError if no name has it, else as `AdapterFiles.read`."""
        with suppress(ShoalError):
            return self._files.read(sha256)
        if not self._used(sha256):
            raise NotFoundError("the adapter was deleted meanwhile; choose another")
        return self._files.read(sha256)  # damaged, or made again meanwhile

    def directory(self, record: AdapterRecord) -> Path:
        """Where its files are, as a PEFT adapter directory; not to be changed."""
        return self.files_of(record.sha256)

    def files_of(self, sha256: str) -> Path:
        """Where the files of a content are or would be; not to be changed."""
        return self._files.path(sha256)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A new directory for what is being looked at; gone afterwards, or at the next `sweep`."""
        with self._files.writing(), self._files.draft() as folder:
            folder.mkdir(parents=True)
            yield folder

    def publish(self, name: str, viewer: str | None, public: bool) -> AdapterRecord:
        """Let others use an adapter, or no longer.

        Raises:
            UsageError, NotFoundError, UnavailableError: as `get`.
            ConflictError: it is another owner's.
        """
        record = self._own(name, viewer)
        with self.database.writing() as connection:
            connection.execute(update(ADAPTERS).where(_A.name == name).values(public=public))
        return self.get(record.name, viewer)

    def delete(self, name: str, viewer: str | None) -> set[str]:
        """Remove every version of an adapter, also where the disk is full.

        Its name stays its owner's, lest another's adapter answers for it; the operator sets it free.

        Returns:
            What its versions' contents were called; another adapter may have the same.

        Raises:
            UsageError, NotFoundError, UnavailableError: as `get`.
            ConflictError: it is another owner's.
        """
        owner = self._own(name, viewer).owner
        try:
            contents = self._delete_rows(name, owner, free=viewer is None)
        except UnavailableError:
            if not self._spare.is_file():
                raise
            self._spare.unlink()  # a full disk has this much room
            contents = self._delete_rows(name, owner, free=viewer is None)
        with suppress(ShoalError):  # it is gone; `sweep` finds what could not be removed now
            self._files.remove(contents, self._used)
        self._keep_spare()
        return contents

    def count(self, viewer: str | None) -> int:
        """Versions that a viewer owns; of all owners for the operator."""
        with self.database.reading() as connection:
            return count_of(connection, viewer)

    def sweep(self) -> int:
        """Remove files that no adapter names, left by killed processes; the number of adapters' worth.

        Raises:
            UnavailableError: others write all the time, or the database cannot be reached.
            ShoalError: files cannot be removed.
        """
        return self._files.sweep(self._used)

    def _own(self, name: str, viewer: str | None) -> AdapterRecord:
        record = self.get(name, viewer)
        if viewer not in (None, record.owner):
            raise ConflictError(f"the adapter {name!r} is {record.owner}'s; only its owner may change it")
        return record

    def _delete_rows(self, name: str, owner: str, *, free: bool) -> set[str]:
        with self.database.writing() as connection:
            gone = delete(ADAPTERS).where(_A.name == name, _A.owner == owner).returning(_A.sha256)
            contents = set(connection.execute(gone).scalars())
            if free:
                connection.execute(delete(NAMES).where(NAMES.c.name == name))
            return contents

    def _keep_spare(self) -> None:
        """Keep some room on the disk, with which what fills it can be deleted."""
        with suppress(OSError):
            if not self._spare.is_file():
                self._spare.write_bytes(bytes(SPARE_BYTES))

    def _commit(
        self, name: str, facts: Mapping[str, Any], quota: Quota | None, job: str | None
    ) -> AdapterRecord:
        for _ in range(20):
            try:
                with self.database.writing(facts["owner"], lock_of(name)) as connection:
                    check_free(connection, name, facts["owner"], quota, facts["bytes"], job)
                    newest = select(func.max(_A.version)).where(_A.name == name)
                    version = (connection.execute(newest).scalar() or 0) + 1
                    connection.execute(update(ADAPTERS).where(_A.name == name).values(newest=False))
                    row = {"name": name, "version": version, "newest": True, "created": time.time(), **facts}
                    connection.execute(insert(ADAPTERS).values(check_row(ADAPTERS, row)))
                    if holder(connection, name) is None:
                        connection.execute(insert(NAMES).values(name=name, owner=facts["owner"]))
                return record_of(row)
            except IntegrityError:  # another process took this name or version: PostgreSQL lets both try
                continue
        raise UnavailableError(f"the adapter {name!r} is written by too many at once; try again")

    def _used(self, sha256: str) -> bool:
        wanted = select(_A.sha256).where(_A.sha256 == sha256).limit(1)
        with self.database.reading() as connection:
            return connection.execute(wanted).first() is not None


def open_registry(root: str | os.PathLike[str] | None = None, url: str | None = None) -> Registry:
    """The registry of this machine, unless another is named; errors as `Registry`.

    Args:
        root: by default `$SHOAL_REGISTRY`, else `~/.local/share/shoal`.
        url: by default `$SHOAL_DATABASE`, else a SQLite file in `root`.
    """
    folder = root or os.environ.get("SHOAL_REGISTRY") or Path.home() / ".local" / "share" / "shoal"
    return Registry(folder, url or os.environ.get("SHOAL_DATABASE"), reserved=[DEFAULT_MODEL])


def _visible_to(viewer: str | None) -> ColumnElement[bool]:
    return true() if viewer is None else or_(_A.public, _A.owner == viewer)
