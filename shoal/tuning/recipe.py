"""From a workload and a space to a verdict: open the storage, search, confirm, and write what was found.

A study's verdict is an attribute of it in the storage, so that it can be exported from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout

import shoal
from shoal.config import Frozen
from shoal.errors import ShoalError, UsageError
from shoal.files import write_file
from shoal.tuning.confirmation import Verdict, confirm
from shoal.tuning.plan import StudyPlan
from shoal.tuning.search_space import SearchSpace
from shoal.tuning.storage import failure, open_storage, taking_part
from shoal.tuning.study import Study
from shoal.tuning.workloads import Workload

VERDICT, BEST = "verdict.json", "best.yaml"
CODE = ("training", "adapters", "inference", "tuning")  # packages that decide what a trial gives


@dataclass(frozen=True)
class Tuned:
    """The end of a process's part in a study.

    Attributes:
        verdict: None where another process confirms.
        study: as Optuna has it.
    """

    verdict: Verdict | None
    study: optuna.Study


def tune(
    workload: Workload,
    space: SearchSpace,
    plan: StudyPlan,
    url: str,
    folder: Path,
    out: Path,
    models: Sequence[type[Frozen]],
    on_line: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Search and confirm, and write the verdict and the settings to `out`; the same call goes on.

    Args:
        workload: what is tuned.
        space: of its settings.
        plan: of the study.
        url: of the storage.
        folder: of runs and locks; shared by all processes of the study.
        out: directory of verdict and settings.
        models: whose fields the settings are.
        on_line: gets a line about every run.

    Raises:
        UsageError: as `open_storage`, `taking_part` and `Study`.
        ShoalError: the storage fails, or every trial did.
        Interrupted: Ctrl-C.
    """
    with taking_part(url, folder):
        storage = open_storage(url)
        try:
            study = Study(workload, space, plan, storage, folder, code_fingerprint(), on_line)
            study.search()
            try:
                with FileLock(folder / ".confirm", timeout=0):
                    verdict = confirm(study, on_line)
                    study.optuna.set_user_attr("verdict", json.loads(json.dumps(verdict.to_json())))
                    study.optuna.set_user_attr("defaults", json.loads(json.dumps(workload.defaults)))
            except Timeout:
                return Tuned(None, study.optuna)
        except (ShoalError, KeyboardInterrupt):
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("sqlalchemy", "optuna", "sqlite3", "psycopg"):
                raise failure(url, error) from None
            raise
    write_file(out / VERDICT, json.dumps(verdict.to_json(), indent=1) + "\n")
    write_file(out / BEST, settings_yaml(verdict.recommended, workload.defaults, models))
    study.runs.forget_checkpoints()
    study.note_progress(ended=True)
    return Tuned(verdict, study.optuna)


def export(url: str, name: str, models: Sequence[type[Frozen]]) -> str:
    """The settings of a study, as YAML that `shoal train --config` takes.

    Raises:
        UsageError: there is no such study, or it has no verdict yet.
        ShoalError: as `open_storage`.
    """
    storage = open_storage(url)
    try:
        attributes = optuna.load_study(study_name=name, storage=storage).user_attrs
    except KeyError:
        known = ", ".join(optuna.get_all_study_names(storage)) or "none"
        raise UsageError(f"there is no study {name}; the storage has {known}") from None
    if "verdict" not in attributes:
        raise UsageError(f"the study {name} has no verdict yet; give its command again, it goes on")
    return settings_yaml(attributes["verdict"]["recommended"], attributes["defaults"], models)


def settings_yaml(
    recommended: Mapping[str, Any] | None, defaults: Mapping[str, Any], models: Sequence[type[Frozen]]
) -> str:
    """Settings that differ from the command's own, by the names of its flags, with a line on their origin."""
    head = "# found by shoal tune: better than the defaults on fresh seeds\n"
    if recommended is None:
        head = "# shoal tune: the defaults stay\n"
    shipped = {n: f.get_default(call_default_factory=True) for m in models for n, f in m.model_fields.items()}
    settings = dict(defaults if recommended is None else recommended)
    plain = json.loads(json.dumps(settings))
    kept = {n: v for n, v in plain.items() if json.loads(json.dumps(shipped.get(n))) != v and n != "seed"}
    return head + (yaml.safe_dump(kept, sort_keys=True) if kept else "{}\n")


def code_fingerprint() -> str:
    """A hash of the code that trains and tunes."""
    root = Path(shoal.__file__).parent
    digest = hashlib.sha256(optuna.__version__.encode())
    for path in sorted(path for package in CODE for path in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
