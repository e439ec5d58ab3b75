"""`shoal train expert`, `shoal train dispatch` and `shoal adapt`: the experts of Transformer²."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import Place, check_directories, load, shape_of
from shoal.apps.cli.settings import Only, Output, check_extra, read_mapping
from shoal.apps.cli.tasks import Data, divided
from shoal.apps.cli.train import summarised
from shoal.config import ExpertTrainingConfig, MixtureSearchConfig, Transformer2Config
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.svf import LowRankExpert
    from shoal.models.backbone import Backbone
    from shoal.tasks.loading import Task
    from shoal.transformer2.experts import ExpertSet
    from shoal.transformer2.mixture_search import FoundMixture
    from shoal.transformer2.router_recipe import EverydayRequest

ExpertData = Annotated[Data, Only(*(name for name in Data.model_fields if name != "start"))]
ExpertTraining = Annotated[
    ExpertTrainingConfig,
    Only(
        *(
            n
            for n in ExpertTrainingConfig.model_fields
            if n not in ("gradient_checkpointing", "label_smoothing", "length_exponent", "mix")
        )
    ),
]
ExpertSizes = Annotated[Transformer2Config, Only("expert_vector_dim", "adaptation_layers")]
DispatchData = Annotated[Data, Only("tasks", "definition", "procedural", "out")]
EXPERTS_HELP = "directory of experts, one in each folder; none means the shipped ones for the base model"


class Naming(BaseModel):
    """Purpose of an expert."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skill: str = Field(min_length=1, max_length=64, description="what the expert is for, such as mathematics")


class Dispatching(BaseModel):
    """Experts and other tasks that a probe learns to tell apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: Path = Field(description="directory of experts, one in each folder, whose tasks are told apart")
    others: tuple[str, ...] = Field(min_length=1, description="names of tasks that no expert serves")
    layers: tuple[int, ...] = Field(
        (1, 2, 4, 8), min_length=1, description="decoder layers, from 0; the best one's input is read"
    )
    requests: int = Field(24, ge=1, description="requests to train on, of each task")
    test_requests: int = Field(50, ge=1, description="requests to score on, of each skill and of none")
    penalty: float = Field(1e-3, ge=0, description="weight of the mean squared weights")
    wordings: Path | None = Field(
        None, description="YAML file of more descriptions to train on, a list under each task's name"
    )
    everyday: Path | None = Field(
        None,
        description="JSONL of requests of no task to train on (`request`, `skill`; none is a skill)",
    )
    seed: int = Field(0, ge=0, description="seed of the choice of requests")


class Adapting(BaseModel):
    """Files that `adapt` reads and writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: Path = Field(description="JSONL of solved examples (`input`, `output`), such as 10")
    describe: str | None = Field(None, description="instruction that stands before every input")
    experts: Path | None = Field(None, description=EXPERTS_HELP)
    out: Path = Field(description="directory to write the mixture to, as an expert")
    lora: Path | None = Field(None, description="also write it there as a LoRA, a PEFT directory")
    rank: int = Field(16, ge=1, description="rank of that LoRA")


def train_expert(
    place: Place, data: ExpertData, naming: Naming, sizes: ExpertSizes, training: ExpertTraining
) -> Output:
    """Train an expert on verifiable rewards.

    It scales singular values of the MLP's weights. The same command resumes a run that was stopped.
    """
    evolving = ("cma",) if training.objective == "evolution" else ()
    check_extra("training", "train", "accelerate", "tensorboard", "tqdm", *evolving)
    tasks, held_out = divided(data)
    from shoal.transformer2.recipe import check_expert_training, make_expert

    common: dict[str, Any] = {"skill": naming.skill, "sizes": sizes, "run": data.run_folder}
    check_expert_training(shape_of(place), data.out, **common)
    trained = make_expert(
        load(place),
        tasks,
        data.out,
        training=training,
        held_out=held_out,
        **common,
    )
    output = summarised(trained.summary, data, len(tasks), "expert")
    first = f"the base model earns {trained.base_success:.2f} of 1 on training examples"
    return Output({**output.record, "base_success": trained.base_success}, f"{first}\n{output.text}")


def train_dispatch(place: Place, data: DispatchData, choice: Dispatching) -> Output:
    """Train the probe that chooses an expert for a request.

    It reads which tasks the experts were trained on, and is scored on descriptions and inputs that it never
    saw.
    """
    check_directories(experts=choice.experts)
    from shoal.files import check_place
    from shoal.transformer2.experts import tasks_of
    from shoal.transformer2.router_files import PROBE_FILES
    from shoal.transformer2.router_recipe import make_router

    check_place(data.out, PROBE_FILES)
    wanted = tasks_of(choice.experts)
    tasks = {task.name: task for part in divided(data) for task in part}
    missing = [n for names in (*wanted.values(), choice.others) for n in names if n not in tasks]
    if missing:
        raise UsageError(
            f"the task {missing[0]} is not among the {len(tasks)} given; add --tasks or --procedural"
        )
    skills: dict[str, list[Task]] = {skill: [tasks[n] for n in names] for skill, names in wanted.items()}
    settings: dict[str, Any] = choice.model_dump(exclude={"experts", "others", "wordings", "everyday"})
    if choice.wordings:
        settings["wordings"] = read_wordings(choice.wordings)
    if choice.everyday:
        settings["everyday"] = read_everyday(choice.everyday)
    shape_of(place)
    stored = make_router(load(place), skills, [tasks[n] for n in choice.others], data.out, **settings)
    record = {**stored.provenance, "skills": list(stored.probe.skills), "out": str(data.out)}
    text = (
        f"trained on {record['requests']} requests for {len(record['skills'])} skills and none\n"
        f"reads the input of layer {stored.probe.layer}\n"
        f"{record['accuracy']:.1%} of {record['test_requests']} requests of unseen wording are right\n"
        f"probe written to {data.out}"
    )
    return Output(record, text)


def read_wordings(path: Path) -> dict[str, list[str]]:
    """Descriptions by task; errors as `read_mapping`, or where one is not a list of texts."""
    wordings = read_mapping(path, "--wordings")
    for task, texts in wordings.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UsageError(f"--wordings {path}: {task} is not a list of texts; write one a line, after a -")
    return wordings


def read_everyday(path: Path) -> list[EverydayRequest]:
    """Requests of no task with their skills; errors as `read_table`, or where a row has no such text."""
    from shoal.tasks.tables import read_table
    from shoal.transformer2.router_recipe import EverydayRequest
    from shoal.transformer2.skill_names import skill_name

    found = []
    for row in read_table(path).rows:
        request, skill = row.values.get("request"), row.values.get("skill")
        if not all(isinstance(text, str) and text.strip() for text in (request, skill)):
            raise UsageError(
                f"--everyday {path}: {row.place} has no text under `request` or `skill`; give both"
            )
        found.append(EverydayRequest(str(request), skill_name(str(skill))))
    return found


def adapt(place: Place, files: Adapting, search: MixtureSearchConfig) -> Output:
    """Find a mixture of experts from a few solved examples.

    The mixture is written as an expert; `shoal ask --expert` answers with it.
    """
    from shoal.tasks.loading import load_jsonl

    task = load_jsonl(files.examples, definition=files.describe or "adapt", test_size=0)
    check_directories(experts=files.experts)
    from shoal.adapters.files import ADAPTER_FILES
    from shoal.adapters.svf_files import EXPERT_FILES, StoredExpert, save_expert
    from shoal.files import check_place
    from shoal.transformer2.experts import experts_of
    from shoal.transformer2.mixture_search import search_mixture

    check_place(files.out, EXPERT_FILES)
    if files.lora is not None:
        check_place(files.lora, ADAPTER_FILES)
    shape_of(place)
    backbone = load(place)
    known = experts_of(backbone.model, files.experts)
    shots = [
        (
            backbone.encode_prompt(task.described(e.input) if files.describe else e.input),
            backbone.encode_completion(e.outputs[0]),
        )
        for e in task.train
    ]
    found = search_mixture(backbone, known.basis, list(known.experts.values()), shots, search)
    provenance = {
        "mixture": _coefficients(known, found),
        "shots": len(shots),
        "loss": found.loss,
        "base_loss": found.base_loss,
        "search": search.model_dump(mode="json"),
    }
    stored = StoredExpert(found.expert, backbone.shape.base_model, files.out.name, provenance)
    save_expert(files.out, stored, known.basis)
    written = {"out": str(files.out)}
    if files.lora is not None:
        low_rank = _write_lora(backbone, known, found, files.lora, files.rank)
        provenance["lora_error"] = low_rank.measured_error / low_rank.norm if low_rank.norm else 0.0
        written["lora"] = str(files.lora)
    return Output({**provenance, "written": written}, _about(provenance, written))


def _write_lora(
    backbone: Backbone, known: ExpertSet, found: FoundMixture, directory: Path, rank: int
) -> LowRankExpert:
    """The best LoRA of a rank, as a PEFT directory."""
    from shoal.adapters.card import AdapterCard
    from shoal.adapters.files import save_adapter
    from shoal.adapters.svf import expert_as_lora

    low_rank = expert_as_lora(known.basis, found.expert, rank)
    share = low_rank.measured_error / low_rank.norm if low_rank.norm else 0.0
    note = f"The mixture's change of the weights but for {share:.1%} of its Frobenius norm, at rank {rank}."
    card = AdapterCard(generator="mixture of experts", trained=True, notes=(note,))
    save_adapter(directory, low_rank.lora, shape=backbone.shape, card=card)
    return low_rank


def _coefficients(known: ExpertSet, found: FoundMixture) -> dict[str, float]:
    """Skill, or `none` for the base model, -> coefficient, the mean over layers where each has its own."""
    from shoal.transformer2.router import NONE

    means = found.coefficients.mean(0).tolist()
    return {name: round(value, 4) for name, value in zip((*known.experts, NONE), means, strict=True)}


def _about(facts: Mapping[str, Any], written: Mapping[str, str]) -> str:
    parts = sorted(facts["mixture"].items(), key=lambda item: -item[1])
    rows = {
        "mixture": ", ".join(f"{name} {value:.2f}" for name, value in parts if value >= 0.01),
        "loss": f"{facts['loss']:.3f} on {facts['shots']} examples; base model {facts['base_loss']:.3f}",
        "as LoRA": f"{facts['lora_error']:.1%} of the change is lost" if "lora_error" in facts else None,
        "written to": ", ".join(written.values()),
    }
    return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items() if value)
