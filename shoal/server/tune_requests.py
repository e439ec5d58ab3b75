"""`POST /v1/jobs/tune`: a study, checked before it is taken on, and the folder that its process reads.

Knows the settings of `shoal tune lora`; nothing of how jobs run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from shoal.config import LoraTrainingConfig, ServiceConfig, TextToLoRAConfig
from shoal.errors import UsageError
from shoal.models.shapes import BackboneShape
from shoal.server.body import Body
from shoal.server.schemas import Description, SolvedExample
from shoal.tasks.loading import Example, Task
from shoal.tasks.records import divide
from shoal.tuning.examples import LEAST_EXAMPLES
from shoal.tuning.limits import MEASURED, Limit, check_defaults, check_second, read_limit
from shoal.tuning.lora import check_modules
from shoal.tuning.search_space import SearchSpace, numeric_fields, read_space
from shoal.tuning.spaces import MODELS, default_space

JOURNAL = "study.log"
MOST_MINUTES, MOST_TRIALS, HUNDREDTHS = 24 * 60, 1000, 100
# Fields that decide how good a run is, and not how much memory or time it may take.
SEARCHED = (
    "learning_rate",
    "steps",
    "adapter_rank",
    "adapter_alpha",
    "target_modules",
    "warmup",
    "decay",
    "weight_decay",
    "clip_norm",
    "label_smoothing",
    "average_decay",
)
_DEFAULTS: Mapping[str, Any] = {**dict(LoraTrainingConfig()), **dict(TextToLoRAConfig())}
PLAIN: Mapping[str, int] = {name: _DEFAULTS[name] for name in ("steps", "adapter_rank")}
Dimension = (
    list[bool | int | float | str | list[Annotated[str, Field(max_length=64)]] | None] | dict[str, Any]
)


class NewStudy(Body):
    """A study that finds settings for a LoRA on one task, to be run as a job."""

    name: Annotated[str, Field(min_length=1, max_length=56, description="1 to 56 of a-z, 0-9, '.', '_', '-'")]
    definition: Description
    examples: list[SolvedExample] = Field(min_length=LEAST_EXAMPLES, max_length=4096)
    minutes: float | None = Field(None, ge=0.1, le=MOST_MINUTES, description="of search and confirmation")
    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description="of the search at most")
    steps: int | None = Field(None, ge=1, le=2**31, description="of every trial; none means searched")
    rank: int | None = Field(None, ge=1, le=1024, description="of every trial; none means searched")
    space: dict[Annotated[str, Field(max_length=40)], Dimension] | None = Field(
        None, max_length=len(SEARCHED), description="ranges by field; none means those of `shoal tune lora`"
    )
    metric: Literal["nll", "rouge_l", "exact_match"] = "nll"
    sampler: Literal["tpe", "random", "qmc"] = "tpe"
    pruner: Literal["none", "median", "halving", "hyperband", "wilcoxon"] | None = Field(
        None, description="by default median, with a second aim none"
    )
    limits: list[Annotated[str, Field(max_length=64)]] = Field(
        [], max_length=16, description="that settings must keep, such as adapter_rank<=16 or bytes<=2e6"
    )
    second: Literal["bytes", "seconds"] | None = Field(
        None, description="a second aim beside the loss: the verdict has the front"
    )
    nearest: bool = Field(True, description="try the best settings of the nearest recorded tasks first")
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def total(self) -> int:
        """Steps by which the job's progress is counted: trials, else hundredths of the budget."""
        return self.trials or HUNDREDTHS

    def check(self, shape: BackboneShape, layers: int, config: ServiceConfig) -> None:
        """See that it can be run.

        Raises:
            UsageError: no end, numbers above the service's limits, a space that cannot be searched, limits
                that cannot be read or that the defaults break, a second aim with a pruner, or fewer than 16
                different inputs.
        """
        if self.minutes is None and self.trials is None:
            raise UsageError("a study needs an end; give minutes or trials")
        space = self._space()
        defaults = {**PLAIN, **self._fixed()}
        longest, largest = (_most(space, name, defaults[name]) for name in ("steps", "adapter_rank"))
        if longest > config.max_steps or largest > config.max_rank:
            raise UsageError(
                f"steps {longest} and rank {largest} must be at most {config.max_steps} and "
                f"{config.max_rank}; lower them"
            )
        check_modules(space, shape, layers)
        check_defaults(self._limits(), {**_DEFAULTS, **self._fixed()})
        check_second(self.second, self.sampler, self._pruner)
        if (count := len(divide(self._solved(), test_size=0)[0])) < LEAST_EXAMPLES:
            raise UsageError(
                f"{count} different inputs, {LEAST_EXAMPLES} are needed to divide them; give more examples"
            )
        Task(self.name, "uploaded", self.definition, (self.definition,), tuple(self._solved()), ())

    def write(self, folder: Path, study: Path, base: str, layers: int) -> dict[str, Any]:
        """Write what the job's process reads, and give the settings of its `shoal tune lora`.

        Args:
            folder: of the job; its `run` leads to that of the study, where progress is written.
            study: folder that stays.
            base: as `--base` takes it.
            layers: that adapters change.
        """
        (study / "run").mkdir(parents=True, exist_ok=True)
        (folder / "run").symlink_to((study / "run").resolve(), target_is_directory=True)
        file = study / "examples.jsonl"
        rows = [json.dumps({"input": e.input, "output": e.output}) for e in self.examples]
        file.write_text("\n".join(rows), encoding="utf-8")
        settings: dict[str, Any] = {
            "base": base,
            **self.training(file, layers),
            **self._fixed(),
            "metric": self.metric,
            "sampler": self.sampler,
            "pruner": self._pruner,
            "limit": self.limits,
            "nearest": self.nearest,
            "seed": self.seed,
            "study": self.name,
            "storage": storage_of(study),
            "out": str(study / "found"),
            "run": str(study / "run"),
        }
        settings |= {"trials": self.trials} if self.trials else {}
        settings |= {"budget": f"{60 * self.minutes:f}s"} if self.minutes else {}
        settings |= {"second": self.second} if self.second else {}
        if self.space is not None:
            (study / "space.yaml").write_text(json.dumps(self.space), encoding="utf-8")  # YAML too
            settings["space"] = str(study / "space.yaml")
        return settings

    def training(self, examples: Path, layers: int) -> dict[str, Any]:
        """Settings that the study and a training with what it found have in common."""
        return {
            "tasks": str(examples),
            "definition": self.definition,
            "test_size": 0,
            "num_layers_to_adapt": layers,
        }

    def _fixed(self) -> dict[str, Any]:
        """Settings that all trials have, as flags."""
        rank = {} if self.rank is None else {"adapter_rank": self.rank, "adapter_alpha": 2 * self.rank}
        return rank | ({} if self.steps is None else {"steps": self.steps})

    @property
    def _pruner(self) -> str:
        return self.pruner or ("median" if self.second is None else "none")

    def _limits(self) -> list[Limit]:
        known = (*MEASURED, *numeric_fields(MODELS["lora"]))
        return [read_limit(text, known) for text in self.limits]

    def _space(self) -> SearchSpace:
        fixed = self._fixed()
        if self.space is None:
            return read_space(default_space("lora", PLAIN["steps"], fixed), MODELS["lora"], fixed)
        odd = next((name for name in self.space if name.replace("-", "_") not in SEARCHED), None)
        if odd is not None:
            raise UsageError(
                f"the space names {odd}, which the service does not search; choose from {', '.join(SEARCHED)}"
            )
        return read_space(self.space, MODELS["lora"], fixed)

    def _solved(self) -> list[Example]:
        return [
            Example(e.input, (e.output,) if isinstance(e.output, str) else tuple(e.output))
            for e in self.examples
        ]


def _most(space: SearchSpace, name: str, default: float) -> float:
    """The largest value of a field that a trial may have."""
    dimension = space[name]
    drawn = [*dimension.choices, dimension.high or default] if dimension else []
    return max([default, *drawn])


def storage_of(study: Path) -> str:
    """The URL of a study's storage: a journal, which a process may read while another one writes."""
    return f"journal:{study / JOURNAL}"
