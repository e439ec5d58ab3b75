"""`shoal tune`: settings found within a budget, or the word that the defaults stay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.budgets import seconds_of
from shoal.apps.cli.experts import ExpertData, ExpertSizes, ExpertTraining
from shoal.apps.cli.model import AdapterSizes, Place, check_directories, load, shape_of
from shoal.apps.cli.settings import Output, check_extra, read_mapping
from shoal.apps.cli.tasks import Data, divided
from shoal.config import LoraTrainingConfig, TextToLoRAConfig
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.lora import LoRA
    from shoal.models.backbone import Backbone
    from shoal.tasks.loading import Task
    from shoal.tuning.limits import Limit
    from shoal.tuning.search_space import SearchSpace
    from shoal.tuning.spaces import Kind
    from shoal.tuning.workloads import Workload

log = logging.getLogger(__name__)

STORAGE_HELP = (
    "where the study is kept: sqlite:///FILE for one process, journal:FILE or postgresql://HOST/NAME for "
    "more; none means SQLite in the folder of runs"
)

LIMIT_HELP = (
    "that settings must keep, such as adapter_rank<=16; of a LoRA also bytes of its tensors, seconds of one "
    "request, and general_kept, the share of general questions that it still answers"
)


class Tuning(BaseModel):
    """Space, end and storage of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Path | None = Field(
        None, description="YAML file of ranges under the flags' names; none means the command's own"
    )
    budget: str | None = Field(
        None, description="of search and confirmation: 90s, 20m or 1.5h; the first trial turns it into tokens"
    )
    trials: int | None = Field(None, ge=1, le=10_000, description="of the search, at most")
    storage: str | None = Field(None, description=STORAGE_HELP)
    study: str | None = Field(None, min_length=1, description="its name; none means the command's")
    sampler: str = Field("tpe", description="tpe, or as a baseline random, qmc, gp or cmaes")
    pruner: str | None = Field(
        None,
        description="ends trials early: none, median, halving, hyperband or wilcoxon; by default median, "
        "with --second none",
    )
    limit: tuple[str, ...] = Field((), description=LIMIT_HELP)
    second: str | None = Field(
        None,
        description="of a LoRA, a second aim beside the loss, bytes or seconds: the verdict has the front",
    )
    nearest: bool = Field(
        True, description="of a LoRA: try the settings first that were best on the nearest recorded tasks"
    )


class Judging(BaseModel):
    """How settings are judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(
        "nll", description="on training examples that are held out: nll, rouge_l or exact_match"
    )
    max_new_tokens: int = Field(40, ge=1, le=4096, description="limit of an answer, where answers are judged")


def tune_lora(
    place: Place,
    data: Data,
    sizes: AdapterSizes,
    training: LoraTrainingConfig,
    tuning: Tuning,
    judging: Judging,
) -> Output:
    """Find settings for a LoRA on one task.

    The directory --out gets best.yaml, which `shoal train lora --config` takes, and verdict.json. Flags of
    training fix what is not searched. The same command goes on where it was stopped.
    """
    return _tune("lora", place, data, sizes, training, tuning, judging)


def tune_refine(
    place: Place,
    data: Data,
    sizes: AdapterSizes,
    training: LoraTrainingConfig,
    tuning: Tuning,
    judging: Judging,
) -> Output:
    """Find settings for going on from the adapter of --start on a few examples.

    As `shoal tune lora`, with rates and numbers of steps of short runs.
    """
    if data.start is None:
        raise UsageError("--start is missing; give it: directory of the adapter that is refined")
    return _tune("refine", place, data, sizes, training, tuning, judging)


def _tune(
    kind: Kind,
    place: Place,
    data: Data,
    sizes: TextToLoRAConfig,
    training: LoraTrainingConfig,
    tuning: Tuning,
    judging: Judging,
) -> Output:
    _check_extras()
    check_directories(start=data.start)
    given = {n: getattr(m, n) for m in (training, sizes) for n in m.model_fields_set}
    if kind == "refine":
        from shoal.text_to_lora.few_shot import REFINING

        training = REFINING.model_copy(update={n: getattr(training, n) for n in training.model_fields_set})
    space = _space(kind, tuning, given, training.steps)
    url, limits = _checked(kind, tuning, data)
    task = _one_task(data)
    from shoal.text_to_lora.recipe import check_start
    from shoal.text_to_lora.starts import check_sizes, load_start, lora_of
    from shoal.tuning.limits import MEASURED
    from shoal.tuning.lora import LoraWorkload, check_modules

    shape = shape_of(place)
    if data.start is None:
        check_modules(space, shape, sizes.num_layers_to_adapt)
    start = load_start(data.start) if data.start else None
    check_start(start, shape)
    check_sizes(lora_of(start), sizes)
    steps, measured = space["steps"], {*(limit.name for limit in limits), tuning.second}
    backbone = load(place)
    workload = LoraWorkload(
        backbone,
        task,
        training,
        sizes,
        lengths=sorted(steps.choices) if steps else (),
        start=lora_of(start),
        measured=[name for name in MEASURED if name in measured],
        general=_general(backbone),
        **judging.model_dump(),
    )
    first = _nearest(kind, task, tuning)
    return _run(kind, workload, space, tuning, data, url, limits, training.seed, first)


def _general(backbone: Backbone) -> Callable[[LoRA | None], float]:
    """The share of general questions that the base model answers, or an adapter of it."""
    from shoal.evaluation.predictors import Predictor
    from shoal.evaluation.retention import base_ability

    return lambda adapter: base_ability(Predictor(backbone, adapter)).accuracy


def _nearest(kind: Kind, task: Task, tuning: Tuning) -> Sequence[Mapping[str, Any]]:
    """Settings of the nearest recorded tasks, of a LoRA from the identity."""
    if kind != "lora" or not tuning.nearest:
        return ()
    from shoal.text_to_lora.encoders.sentence import TaskEncoder
    from shoal.tuning.nearest import nearest_settings, read_table

    return nearest_settings(task.descriptions[0], TaskEncoder(), read_table())


def tune_expert(
    place: Place, data: ExpertData, sizes: ExpertSizes, training: ExpertTraining, tuning: Tuning
) -> Output:
    """Find settings for an expert on one task.

    The directory --out gets best.yaml, which `shoal train expert --config` takes, and verdict.json. Flags of
    training fix what is not searched. The same command goes on where it was stopped.
    """
    _check_extras()
    given = {n: getattr(training, n) for n in training.model_fields_set}
    space = _space("expert", tuning, given, training.steps)
    url, limits = _checked("expert", tuning, data)
    task = _one_task(data)
    from shoal.adapters.svf_cache import decompose_model
    from shoal.transformer2.model import mlp_modules
    from shoal.tuning.expert import ExpertWorkload

    names = mlp_modules(shape_of(place), sizes.adaptation_layers)
    backbone = load(place)
    basis = decompose_model(backbone.model, names, components=sizes.expert_vector_dim)
    workload = ExpertWorkload(backbone, basis, task, training)
    return _run("expert", workload, space, tuning, data, url, limits, training.seed)


def export(
    study: Annotated[str, typer.Argument(help="directory that `shoal tune --out` wrote, or a study's name")],
    out: Annotated[Path, typer.Option(help="YAML file to write, for `shoal train --config`")],
    storage: Annotated[str | None, typer.Option(help="of a study that is given by its name")] = None,
) -> Output:
    """Write the settings of a study as a file for `shoal train --config`."""
    check_extra("tuning", "tune", "optuna")
    from shoal.files import write_file
    from shoal.tuning import recipe
    from shoal.tuning.spaces import MODELS

    if storage is not None:
        text = recipe.export(storage, study, (*MODELS["lora"], *MODELS["expert"]))
    else:
        found = Path(study) / recipe.BEST
        if not found.is_file():
            raise UsageError(
                f"{study} holds no {recipe.BEST}; give a directory of `shoal tune --out`, or --storage URL "
                "with a study's name"
            )
        text = found.read_text(encoding="utf-8")
    write_file(out, text)
    return Output({"study": study, "out": str(out)}, f"settings of {study} written to {out}")


def _check_extras() -> None:
    check_extra("training", "train", "accelerate", "tensorboard", "tqdm")
    check_extra("tuning", "tune", "optuna")


def _one_task(data: Data) -> Task:
    tasks = [task for part in divided(data) for task in part]
    if len(tasks) != 1:
        raise UsageError(
            f"--tasks {data.tasks} gives {len(tasks)} tasks, settings are found for one; name it with --task"
        )
    return tasks[0]


def _space(kind: Kind, tuning: Tuning, given: Mapping[str, Any], steps: int) -> SearchSpace:
    from shoal.tuning.search_space import read_space
    from shoal.tuning.spaces import MODELS, default_space

    content = read_mapping(tuning.space, "--space") if tuning.space else default_space(kind, steps, given)
    return read_space(content, MODELS[kind], given)


def _pruner(tuning: Tuning) -> str:
    """The pruner that was asked for, or the default."""
    return tuning.pruner or ("median" if tuning.second is None else "none")


def _checked(kind: Kind, tuning: Tuning, data: Data) -> tuple[str, list[Limit]]:
    """(the storage's URL, the limits), after a look at all that needs no model."""
    from shoal.files import check_place
    from shoal.tuning.limits import MEASURED, check_second, read_limit
    from shoal.tuning.pruners import pruner_of
    from shoal.tuning.recipe import BEST, VERDICT
    from shoal.tuning.samplers import sampler_of
    from shoal.tuning.search_space import numeric_fields
    from shoal.tuning.spaces import MODELS
    from shoal.tuning.storage import default_url, open_storage

    if tuning.budget is None and tuning.trials is None:
        raise UsageError("a study needs an end; give --budget, such as 20m, or --trials")
    if tuning.budget is not None:
        seconds_of(tuning.budget)
    sampler_of(tuning.sampler, 0, 0)
    pruner_of(_pruner(tuning))
    check_second(tuning.second, tuning.sampler, _pruner(tuning))
    if kind == "expert" and tuning.second is not None:
        raise UsageError(f"--second {tuning.second} is of a LoRA; leave it out")
    measured = () if kind == "expert" else MEASURED
    limits = [read_limit(text, (*measured, *numeric_fields(MODELS[kind]))) for text in tuning.limit]
    check_place(data.out, (VERDICT, BEST))
    url = tuning.storage or default_url(data.run_folder)
    open_storage(url)
    return url, limits


def _run(
    kind: Kind,
    workload: Workload,
    space: SearchSpace,
    tuning: Tuning,
    data: Data,
    url: str,
    limits: Sequence[Limit],
    seed: int,
    first: Sequence[Mapping[str, Any]] = (),
) -> Output:
    from shoal.tuning.plan import StudyPlan
    from shoal.tuning.recipe import tune
    from shoal.tuning.spaces import MODELS

    plan = StudyPlan(
        tuning.study or f"tune {kind}",
        tuning.sampler,
        _pruner(tuning),
        seconds_of(tuning.budget) if tuning.budget else None,
        tuning.trials,
        seed,
        first,
        limits,
        tuning.second,
    )
    found = tune(workload, space, plan, url, data.run_folder, data.out, MODELS[kind], log.info)
    if found.verdict is None:
        return Output({"study": plan.name, "verdict": None}, "the search is done; another process confirms")
    record = {"study": plan.name, "storage": url, "out": str(data.out), **found.verdict.to_json()}
    counted = ", ".join(f"{count} {state}" for state, count in found.verdict.trials.items())
    return Output(record, f"trials: {counted}\n{found.verdict}\nwritten to {data.out}")
