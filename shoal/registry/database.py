"""The registry's database: SQLite in a file, or PostgreSQL by URL, opened, migrated and used in transactions.

SQLite runs in WAL mode with a busy timeout, so several processes share one file. Every failure to reach the
database is one `UnavailableError`. Knows nothing of what the tables mean.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from shoal.errors import ShoalError, UnavailableError, UsageError, reason
from shoal.file_errors import failures_named

BUSY_SECONDS, CONNECT_SECONDS = 10, 5
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x5E0A1  # PostgreSQL's advisory locks are numbers that applications agree on


class Database:
    """One database, used by threads and processes at once.

    Attributes:
        shown: its URL without a password.
    """

    def __init__(self, url: str) -> None:
        """Open it and bring its tables to this version.

        Args:
            url: `sqlite:///path/of.db` or `postgresql://user:password@host/name`.

        Raises:
            UsageError: another kind of URL.
            UnavailableError: it cannot be reached.
            ShoalError: it is no database, or one of a newer version.
        """
        parsed = _parse(url)
        self.shown = parsed.render_as_string(hide_password=True)
        self._file = _SqliteFile(Path(parsed.database or "")) if parsed.drivername == "sqlite" else None
        self._engine = self._file.engine() if self._file else _postgresql(parsed)
        try:
            self._upgrade()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads.

        Raises:
            UsageError: a value that the database cannot compare with.
            UnavailableError: the database cannot be reached.
        """
        with self._transaction("read") as connection:
            yield connection

    @contextmanager
    def writing(self, *alone: str) -> Iterator[Connection]:
        """A transaction that writes: committed at the end, rolled back on an error.

        Args:
            alone: whatever is counted or looked for before something is inserted: no other transaction has
                one of the same at once. (In SQLite there is one writer at a time anyway.)

        Raises:
            UsageError: a value that the database cannot keep.
            UnavailableError: the database cannot be reached, or stayed locked.
        """
        with self._transaction("write") as connection:
            if connection.dialect.name == "postgresql":
                for what in sorted(alone):  # in one order, or two could wait for each other
                    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:what))"), {"what": what})
            yield connection

    @contextmanager
    def counting(self) -> Iterator[Connection]:
        """A transaction that writes what may be lost with the power: it does not wait for the disk.

        Raises:
            UnavailableError: the database cannot be reached, or stayed locked.
        """
        with self._transaction("count") as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL synchronous_commit TO OFF"))
            yield connection

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[Connection]:
        try:
            if self._file:
                self._file.check()
            with self._engine.connect() as raw, raw.execution_options(shoal=kind).begin():
                yield raw
        except IntegrityError:
            raise
        except DataError as error:  # NUL, which PostgreSQL keeps in no text
            raise UsageError(
                f"a value is none that a database takes ({reason(error.orig or error)}); correct it"
            ) from error
        except (DBAPIError, PoolTimeout) as error:
            said = reason(error.orig if isinstance(error, DBAPIError) and error.orig else error)
            raise UnavailableError(
                f"the database {self.shown} cannot be used ({said}); start or repair it, then try again"
            ) from error

    def _upgrade(self) -> None:
        script = ScriptDirectory(str(_MIGRATIONS), version_locations=[str(_MIGRATIONS)])
        head = script.get_current_head()
        with self.reading() as connection:
            if MigrationContext.configure(connection).get_current_revision() == head:
                return

        def steps(revision: Any, context: Any) -> Any:
            if revision and revision[0] not in {known.revision for known in script.walk_revisions()}:
                raise ShoalError(
                    f"the database {self.shown} is at revision {revision[0]}, this version knows {head}; "
                    "use a newer version of shoal"
                )
            return script._upgrade_revs("head", revision)  # as alembic's own command does

        with self.writing() as connection, EnvironmentContext(Config(), script, fn=steps) as environment:
            if connection.dialect.name == "postgresql":  # SQLite's writers wait for one another anyway
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            environment.configure(connection=connection, transactional_ddl=True)
            environment.run_migrations()


class _SqliteFile:
    """A SQLite file that is not made anew when it was lost while in use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with failures_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(
                FileExistsError
            ):  # to open and close one in use would drop this process's locks on it
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._identity = self._stat()

    def check(self) -> None:
        try:
            same = self._stat() == self._identity
        except OSError:
            same = False
        if not same:
            raise UnavailableError(
                f"the database {self._path} was removed or replaced while in use; put it back, then restart"
            )

    def engine(self) -> Engine:
        engine = create_engine(
            "sqlite://", creator=self._connect, poolclass=QueuePool, pool_timeout=BUSY_SECONDS
        )
        event.listen(engine, "begin", _begin)
        return engine

    def _connect(self) -> sqlite3.Connection:
        address = f"{self._path.resolve().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _stat(self) -> tuple[int, int]:
        status = os.stat(self._path)
        return status.st_dev, status.st_ino


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work at once. SQLite itself does not wait for the lock that this takes."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _begin(connection: Connection) -> None:
    """A writer takes its lock at once: one that read first could not wait for another writer.

    An acknowledged commit outlives the power, unless it only counts.
    """
    kind = connection.get_execution_options()["shoal"]
    connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if kind == 'count' else 'FULL'}")
    connection.exec_driver_sql("BEGIN" if kind == "read" else "BEGIN IMMEDIATE")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UsageError(
            "the database URL cannot be read; write sqlite:///path/of.db or postgresql://user@host/name"
        ) from None
    kind = parsed.drivername.partition("+")[0]
    if kind not in ("sqlite", "postgresql") or not parsed.database or parsed.database == ":memory:":
        raise UsageError(
            f"the database {parsed.render_as_string(hide_password=True)} is not supported; write "
            "sqlite:///path/of.db or postgresql://user@host/name"
        )
    return parsed.set(drivername="sqlite" if kind == "sqlite" else "postgresql+psycopg")


def _postgresql(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_timeout=BUSY_SECONDS,
            connect_args={"connect_timeout": CONNECT_SECONDS, "options": "-c statement_timeout=30000"},
        )
    except (ImportError, NoSuchModuleError) as error:
        raise ShoalError(
            f"PostgreSQL needs {getattr(error, 'name', None) or 'psycopg'}, which is not installed; "
            "pip install 'shoal[serve]'"
        ) from None
