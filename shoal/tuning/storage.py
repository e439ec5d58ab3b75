"""Where a study is kept: any URL of Optuna, a file of SQLite or a journal; and which process may use it.

SQLite serves one process: with more, its users meet "database is locked" and damaged files (Optuna's issues
820, 4002, 5385). A lock beside the study says whether another one lives, also after a kill. Knows nothing of
trials.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

from shoal.errors import ShoalError, UsageError, reason
from shoal.file_errors import failures_named

JOURNAL, SQLITE = "journal:", "sqlite:"
MEMORY = ("sqlite://", "sqlite:///:memory:")


def default_url(folder: Path) -> str:
    """SQLite in the study's own folder."""
    return f"sqlite:///{folder.resolve() / 'study.db'}"


def open_storage(url: str) -> BaseStorage:
    """The storage of a URL: `sqlite:///FILE`, `journal:FILE`, or a server's, such as `postgresql://...`.

    Raises:
        UsageError: it is no URL, one of a storage that forgets, or a driver is not installed.
        ShoalError: it cannot be reached, is locked, or was written by another major version of Optuna.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    if url in MEMORY:
        raise UsageError(
            f"--storage {url} forgets a study with the process; give sqlite:///FILE or journal:FILE"
        )
    if url.startswith(JOURNAL):
        return _open_journal(Path(url.removeprefix(JOURNAL)))
    if "://" not in url:
        raise UsageError(
            f"--storage {url} is no URL; give sqlite:///FILE, journal:FILE or postgresql://HOST/NAME"
        )
    shown = _without_password(url)
    if url.startswith(SQLITE):
        path = Path(url.partition(":///")[2].partition("?")[0])
        with failures_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return RDBStorage(url)
    except RuntimeError as error:
        if "compatible" in str(error) or "upgrade" in str(error):
            raise ShoalError(
                f"--storage {shown} was written by another version of Optuna; bring it up to date with: "
                f"optuna storage upgrade --storage {shown}"
            ) from None
        raise ShoalError(f"--storage {shown} cannot be used: {reason(error, 120)}") from None
    except (ImportError, ValueError) as error:
        raise UsageError(f"--storage {shown} cannot be used: {reason(error, 120)}; correct it") from None
    except Exception as error:  # of whichever driver
        raise failure(shown, error) from None


def failure(url: str, error: Exception) -> ShoalError:
    """A failure of a storage, in one line."""
    shown, text = _without_password(url), str(error)
    if "locked" in text or "locked" in str(error.__cause__):
        return ShoalError(f"--storage {shown} is locked by another process; end that, or give journal:FILE")
    return ShoalError(f"--storage {shown} cannot be reached: {reason(error, 160)}; check that it is there")


@contextmanager
def taking_part(url: str, folder: Path) -> Iterator[None]:
    """Hold the place of a process in a study: the only one where its storage is SQLite.

    Raises:
        UsageError: another process uses the same SQLite study.
    """
    if not url.startswith(SQLITE):
        yield
        return
    with failures_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"--storage {_without_password(url)} serves one process, and another one tunes in {folder}; for "
            "more give --storage journal:FILE or postgresql://HOST/NAME from the start"
        ) from None


def _open_journal(path: Path) -> BaseStorage:
    if not path.name:
        raise UsageError("--storage journal: names no file; give journal:FILE")
    with failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
    except Exception as error:
        raise failure(f"{JOURNAL}{path}", error) from None


def _without_password(url: str) -> str:
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url
