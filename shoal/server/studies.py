"""Studies of settings in the service: each owner's own, kept beside the registry's objects.

They are searched by jobs, in processes of their own, and read here from their storage. A study that was cut
short goes on where it is asked for again; of what it found a LoRA is trained, by another job.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from shoal.adapters.files import ADAPTER_NAME, check_name
from shoal.config import ServiceConfig
from shoal.errors import ConflictError, NotFoundError, UnavailableError, shorten
from shoal.files import remove_directory, write_file
from shoal.models.shapes import BackboneShape
from shoal.registry.registry import Registry
from shoal.server.job_folders import owner_folder, write_command
from shoal.server.jobs import QUEUED, RUNNING, Job, Jobs
from shoal.server.tune_requests import JOURNAL, PLAIN, NewStudy, storage_of

MOST_STUDIES = 16  # of one owner
FOLDER = ".studies"  # which no library is called
REQUEST, EXAMPLES, BEST = "request.json", "examples.jsonl", Path("found", "best.yaml")


class Studies:
    """Takes on, lists, shows and removes the studies of owners."""

    def __init__(
        self, registry: Registry, jobs: Jobs, shape: BackboneShape, base: str, config: ServiceConfig
    ) -> None:
        """Take what studies need.

        Args:
            registry: whose directory holds them.
            jobs: search and train.
            shape: of the base model.
            base: the same as `--base` takes it.
            config: limits.
        """
        self._registry, self._jobs, self._shape = registry, jobs, shape
        self._base, self._config = base, config

    def tune(self, new: NewStudy, owner: str) -> Job:
        """Take a study on, or let it go on, as a job.

        Raises:
            UsageError: a name, or what `NewStudy.check` refuses.
            ConflictError: it runs, there is another one of this name, or the owner has as many as may be.
            UnavailableError: the service has no Optuna; or as `Jobs.enter`.
        """
        if find_spec("optuna") is None:
            raise UnavailableError("this service has no Optuna; install shoal[train,tune] where it runs")
        new.check(self._shape, self._jobs.layers, self._config)
        folder, said = self._folder(check_name(new.name), owner), new.model_dump_json()
        self._check_idle(new.name, owner)
        if (known := folder / REQUEST).is_file():
            if known.read_text(encoding="utf-8") != said:
                raise ConflictError(
                    f"there is a study {new.name} of another request; delete it, or choose another name"
                )
        elif (count := len(self.names(owner))) >= MOST_STUDIES:
            raise ConflictError(f"{owner} has {count} studies, as many as may be; delete one")

        def prepare(job: Path) -> None:
            settings = new.write(job, folder, self._base, self._jobs.layers)
            write_command(job, ("tune", "lora"), settings)
            write_file(known, said)

        return self._jobs.enter(_named(new.name), owner, new.total, prepare)

    def train(self, name: str, adapter: str, owner: str) -> Job:
        """Take the training of an adapter on, with a study's examples and what it found.

        Raises:
            NotFoundError: there is no such study.
            ConflictError: it has no verdict yet; or as `Jobs.enter`.
        """
        folder = self._known(name, owner)
        if not (folder / BEST).is_file():
            raise ConflictError(f"the study {name} has no verdict yet; wait for its job, or ask for it again")
        request, found = self._request(folder), self._settings(folder)
        steps = int(found.get("steps", PLAIN["steps"]))

        def prepare(job: Path) -> None:
            settings = {
                "base": self._base,
                **request.training(folder / EXAMPLES, self._jobs.layers),
                **found,
                "checkpoint_every": steps,
                "out": str(job / "adapter"),
                "run": str(job / "run"),
            }
            write_command(job, ("train", "lora"), settings)

        return self._jobs.enter(check_name(adapter), owner, steps, prepare)

    def names(self, owner: str) -> list[str]:
        """Names of an owner's studies."""
        return sorted(path.parent.name for path in self._root(owner).glob(f"*/{REQUEST}"))

    def shown(self, name: str, owner: str) -> dict[str, Any]:
        """A study with its trials, the importance of its fields, and its verdict once there is one.

        Raises:
            NotFoundError: there is none for this owner.
            ShoalError: its storage is damaged.
        """
        from shoal.tuning.report import study_record

        folder = self._known(name, owner)
        request = self._request(folder)
        record: dict[str, Any] = {"trials": [], "importance": {}, "verdict": None, "defaults": None}
        if (folder / JOURNAL).is_file():
            with suppress(NotFoundError):  # its job has not come so far
                record = study_record(storage_of(folder), name)
        asked = request.model_dump(include={"definition", "minutes", "trials", "metric"})
        settings = self._settings(folder) if (folder / BEST).is_file() else None
        return {"object": "study", "name": name, **asked, "settings": settings, **record}

    def delete(self, name: str, owner: str) -> None:
        """Remove a study with all its runs.

        Raises:
            NotFoundError: there is none for this owner.
            ConflictError: its job waits or runs.
        """
        folder = self._known(name, owner)
        self._check_idle(name, owner)
        remove_directory(folder)

    def _check_idle(self, name: str, owner: str) -> None:
        for job in self._jobs.page(owner):
            if job.adapter == _named(name) and job.state in (QUEUED, RUNNING):
                raise ConflictError(f"job {job.id} is at the study {name}; wait for it, or cancel it")

    def _known(self, name: str, owner: str) -> Path:
        folder = self._folder(name, owner) if ADAPTER_NAME.fullmatch(name) else None
        if folder is None or not (folder / REQUEST).is_file():
            raise NotFoundError(
                f"there is no study {shorten(name, 64)}; GET /v1/studies lists those that there are"
            )
        return folder

    def _request(self, folder: Path) -> NewStudy:
        return NewStudy.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))

    def _settings(self, folder: Path) -> dict[str, Any]:
        return dict(yaml.safe_load((folder / BEST).read_text(encoding="utf-8")) or {})

    def _folder(self, name: str, owner: str) -> Path:
        return self._root(owner) / name

    def _root(self, owner: str) -> Path:
        return owner_folder(self._registry.root, owner) / FOLDER


def _named(name: str) -> str:
    """The job's name of a study, which no adapter has."""
    return f"study/{name}"
