"""Training, tuning and merging as jobs, each in a process of its own, with progress and cancel.

Jobs are rows of the registry's database, so every service process sees them; the one that took a job on runs
it, and holds a lock in its folder as long as it lives. A job's process ends with its service, also where that
is killed; the next service that opens the registry finds the lock free, and the job has failed. Until then it
is recognised by its last sign of life, which is then old.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import Connection, func, insert, select, true, update

from shoal.config import ServiceConfig, TextToLoRAConfig
from shoal.errors import ConflictError, NotFoundError, ShoalError, UnavailableError, UsageError, reason
from shoal.models.shapes import BackboneShape
from shoal.registry.holds import LOST_SECONDS, QUEUED, RUNNING, is_active, lock_of
from shoal.registry.importing import keep_foreign
from shoal.registry.quotas import check_free
from shoal.registry.registry import Registry
from shoal.registry.schema import JOBS, check_row
from shoal.server.adapters import quota_of
from shoal.server.job_folders import last_words, owner_folder, read_command, write_command, write_training
from shoal.server.merge_requests import NewMerge

log = logging.getLogger(__name__)

SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
LOOK_SECONDS, STOP_SECONDS = 0.5, 10.0
LOST, STOPPED = "its service ended; ask for it again", "the service was stopped; ask for it again"
_J = JOBS.c


@dataclass(frozen=True)
class Job:
    """One training, merge or study, or one step of a library.

    Attributes:
        id: 32 hex digits.
        owner: who asked for it.
        adapter: name that the result gets; LIBRARY/SKILL of a library's step; study/NAME.
        state: queued, running, succeeded, failed or cancelled.
        step: optimiser steps, generations, trials or hundredths of a study's budget that are done.
        steps: of how many.
        loss: of the last step, of a study the best; None before it.
        error: why it failed.
        created: seconds since 1970.
        updated: last sign of life.
    """

    id: str
    owner: str
    adapter: str
    state: str
    step: int
    steps: int
    loss: float | None
    error: str | None
    created: float
    updated: float


class Jobs:
    """The jobs of a registry; those that this process takes on run one after the other."""

    def __init__(self, registry: Registry, shape: BackboneShape, base: str, config: ServiceConfig) -> None:
        """Start the thread that runs jobs; `base` is the base model as `--base` takes it."""
        self._registry = registry
        self._shape = shape
        own = TextToLoRAConfig().num_layers_to_adapt or shape.num_layers
        self.layers = min(own, shape.num_layers)  # that trainings adapt
        self._base = base
        self._config = config
        self._database = registry.database
        self._root = registry.root / "jobs"
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._mine: dict[str, FileLock] = {}  # that wait here or run -> their locks
        self._closing = threading.Event()
        self._sweep()
        self._thread = threading.Thread(target=self._work, name="shoal-jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the job that runs, and those that wait."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(STOP_SECONDS + 5)
        for identity in list(self._mine):  # that waited
            with contextlib.suppress(ShoalError):
                self._change(identity, state=FAILED, error=STOPPED)
            self._forget(identity)

    def submit(
        self, adapter: str, definition: str, examples: bytes, owner: str, *, steps: int, rank: int
    ) -> Job:
        """Take a training on.

        Args:
            adapter: name that the result gets.
            definition: the instruction that the examples follow.
            examples: as `load_jsonl` reads them, JSON Lines for example.
            owner: who asks.
            steps: optimiser steps.
            rank: of the LoRA.

        Raises:
            UsageError: a name, examples or numbers that cannot be used.
            ConflictError: the name is taken, or another job holds it, or the owner has as many adapters as
                may be.
            UnavailableError: as many jobs as may wait or run; or the database or the disk.
        """
        config = self._config
        if not (1 <= steps <= config.max_steps and 1 <= rank <= config.max_rank):
            raise UsageError(
                f"steps {steps} and rank {rank} must be 1 to {config.max_steps} and 1 to {config.max_rank}"
            )

        def prepare(folder: Path) -> None:
            write_training(
                folder, examples, definition, steps, rank, base=self._base, layers=self.layers, config=config
            )

        return self.enter(adapter, owner, steps, prepare)

    def merge(self, new: NewMerge, owner: str) -> Job:
        """Take a merge on; errors as `submit` and `NewMerge.check`."""
        directories = new.check(self._registry, owner, self._config)

        def prepare(folder: Path) -> None:
            write_command(folder, ("merge",), new.write(folder, directories, self._base))

        return self.enter(new.name, owner, new.steps, prepare)

    def enter(self, adapter: str, owner: str, steps: int, prepare: Callable[[Path], None]) -> Job:
        """Take on a job whose folder `prepare` fills; errors as `submit`."""
        if makes_adapter := "/" not in adapter:
            self._registry.check(adapter, owner, quota=quota_of(self._config))
        with self._database.reading() as connection:  # before anything is written
            self._check_room(connection, owner)
        now = time.time()
        job = Job(secrets.token_hex(16), owner, adapter, QUEUED, 0, steps, None, None, now, now)
        try:
            self._prepare(job.id, prepare)
            with self._database.writing("jobs", lock_of(adapter)) as connection:
                self._check_room(connection, owner)
                if makes_adapter:
                    check_free(connection, adapter, owner, quota_of(self._config))
                connection.execute(insert(JOBS).values(check_row(JOBS, vars(job))))
        except BaseException:
            self._forget(job.id)
            raise
        self._queue.put(job.id)
        return job

    def get(self, identity: str, viewer: str | None) -> Job:
        """A job of this viewer.

        Raises:
            NotFoundError: there is none.
        """
        mine = true() if viewer is None else _J.owner == viewer
        with self._database.reading() as connection:
            row = connection.execute(select(JOBS).where(_J.id == identity, mine)).mappings().first()
        if row is None:
            raise NotFoundError(f"there is no job {identity[:40]!r}")
        return _seen(Job(**row))

    def page(self, viewer: str | None, limit: int = 50) -> list[Job]:
        """The newest jobs of a viewer."""
        mine = true() if viewer is None else _J.owner == viewer
        rows = select(JOBS).where(mine).order_by(_J.created.desc()).limit(limit)
        with self._database.reading() as connection:
            return [_seen(Job(**row)) for row in connection.execute(rows).mappings()]

    def cancel(self, identity: str, viewer: str | None) -> Job:
        """End a job, in whichever process it runs.

        Raises:
            NotFoundError: there is none.
            ConflictError: it has ended.
        """
        job = self.get(identity, viewer)
        if not self._change(job.id, state=CANCELLED):
            raise ConflictError(f"job {job.id} is {job.state}; only one that waits or runs can be cancelled")
        return self.get(identity, viewer)

    def _sweep(self) -> None:
        """End the jobs that a killed service left, and remove their folders: nobody locks those any more."""
        for folder in self._root.glob("*"):
            with contextlib.suppress(OSError):  # another service's, or it is gone
                changed = folder.stat().st_mtime
                with _lock(folder):
                    if self._change(folder.name, state=FAILED, error=LOST) or self._is_left(folder, changed):
                        shutil.rmtree(folder, ignore_errors=True)

    def _is_left(self, folder: Path, changed: float) -> bool:
        """True where nothing will use the folder of a job: it ended, or was never entered as a row."""
        try:
            self.get(folder.name, None)
        except NotFoundError:
            return changed < time.time() - LOST_SECONDS  # else its row may be yet to come
        return True

    def _check_room(self, connection: Connection, owner: str) -> None:
        """See that one more job may wait, of all processes together and of its owner."""
        rows = connection.execute(select(_J.owner, func.count()).where(is_active()).group_by(_J.owner)).all()
        counts = {name: int(count) for name, count in rows}
        config, own, total = self._config, counts.get(owner, 0), sum(counts.values())
        if total >= config.max_jobs:
            raise UnavailableError(f"{total} jobs wait or run, the limit is {config.max_jobs}; try later")
        if own >= config.max_jobs_a_key:
            raise UnavailableError(
                f"{own} jobs of {owner} wait or run, the limit is {config.max_jobs_a_key}; try later"
            )

    def _forget(self, identity: str) -> None:
        """Remove a job's folder, then give up its lock."""
        shutil.rmtree(self._root / identity, ignore_errors=True)
        lock = self._mine.pop(identity, None)
        if lock is not None:
            lock.release()

    def _prepare(self, identity: str, prepare: Callable[[Path], None]) -> None:
        folder = self._root / identity
        try:
            folder.mkdir(parents=True)
            lock = _lock(folder)
            lock.acquire()
            self._mine[identity] = lock
            prepare(folder)
        except OSError as error:
            raise UnavailableError(f"the job's files cannot be kept: {reason(error)}") from error

    def _work(self) -> None:
        while (identity := self._queue.get()) is not None and not self._closing.is_set():
            try:
                if self._change(identity, state=RUNNING):
                    self._train(identity, self._root / identity)
            except Exception as error:  # a job's failure is its own
                log.exception("job %s failed", identity)
                with contextlib.suppress(ShoalError):
                    self._change(identity, state=FAILED, error=reason(error))
            finally:
                self._forget(identity)

    def _train(self, identity: str, folder: Path) -> None:
        command = [sys.executable, "-m", "shoal.apps.cli.child", *read_command(folder)]
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("SHOAL_DATABASE", "HF_TOKEN"))
        }
        with (folder / "output.txt").open("wb") as output:
            pipe = subprocess.PIPE  # nothing is written: the process ends where this end is closed
            process = subprocess.Popen(
                command, stdin=pipe, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                while process.poll() is None:
                    time.sleep(LOOK_SECONDS)
                    if self._closing.is_set() or not self._change(identity, **_progress(folder)):
                        break  # cancelled, or the service ends
                    for waiting in set(self._mine) - {identity}:
                        self._change(waiting)  # a sign of life
            finally:
                _stop(process)
        if self._closing.is_set():
            self._change(identity, state=FAILED, error=STOPPED)
        elif process.returncode == 0:
            self._finish(identity, folder)
        else:
            hidden = owner_folder(self._registry.root, self.get(identity, None).owner)
            self._change(identity, state=FAILED, error=last_words(folder, hidden))  # none where cancelled

    def _finish(self, identity: str, folder: Path) -> None:
        job = self.get(identity, None)
        if "/" not in job.adapter:  # else its result is in a library or study
            self._keep(job, job.adapter, folder / "adapter")
        for member in sorted(folder.glob("front/*")):  # trade-offs of a search, as far as there is room
            name = re.sub(r"[^a-z0-9._-]", "-", f"{job.adapter}.{member.name.lower()}")[:64]
            try:
                self._keep(job, name, member)
            except ConflictError as error:
                log.warning("job %s: %s is not kept: %s", identity, name, error)
        self._change(identity, state=SUCCEEDED, **({"step": job.steps} | _progress(folder)))

    def _keep(self, job: Job, name: str, folder: Path) -> None:
        quota = quota_of(self._config)
        keep_foreign(self._registry, name, folder, self._shape, owner=job.owner, quota=quota, job=job.id)

    def _change(self, identity: str, **values: Any) -> bool:
        """Update a job that waits or runs; whether it still does."""
        alive = (_J.id == identity, _J.state.in_((QUEUED, RUNNING)))
        with self._database.writing() as connection:
            changed = update(JOBS).where(*alive).values(updated=time.time(), **values).returning(_J.id)
            return connection.execute(changed).first() is not None


def _seen(job: Job) -> Job:
    """A job as it is known: without a sign of life for long, its process is gone."""
    if job.state in (QUEUED, RUNNING) and job.updated < time.time() - LOST_SECONDS:
        return Job(**{**vars(job), "state": FAILED, "error": LOST})
    return job


def _progress(folder: Path) -> dict[str, Any]:
    try:
        last = json.loads((folder / "run" / "log.jsonl").read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return {"step": int(last["step"]), "loss": float(last["loss"])}


def _lock(folder: Path) -> FileLock:
    """The lock of a job, once acquired held until it is released, by whatever ends this process too.

    Acquiring it raises OSError where another process holds it. It is a file of its own: training locks the
    folder where it writes.
    """
    return FileLock(folder / "lock", timeout=0, mode=0o600, thread_local=False)  # released by any thread


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    assert process.stdin is not None
    process.stdin.close()
    if process.poll() is not None:
        return
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return
