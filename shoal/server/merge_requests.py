"""`POST /v1/jobs/merge`: a merge, checked before it is taken on, and the folder that its process reads.

Knows the registry's adapters by name and the settings of `shoal merge`; nothing of how jobs run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.merging.regmean import MIN_INPUTS
from shoal.config import ServiceConfig
from shoal.errors import UsageError
from shoal.merging.config import check_searched
from shoal.registry.registry import Registry
from shoal.server.body import Body
from shoal.server.schemas import Description, Name, SolvedExample, Text
from shoal.tasks.inputs import check_inputs
from shoal.tasks.loading import Example, Task
from shoal.tasks.records import divide

MOST_PARENTS = 16
MOST_MINUTES = 24 * 60
MOST_TESTED = 60  # examples of a task that decide; at most half
Parent = Annotated[str, Field(min_length=1, max_length=80, description="name of an adapter, or NAME@VERSION")]


class MergeTask(Body):
    """A task of the parents, with solved examples: half of them at most decide, the others choose."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    definition: Description
    examples: list[SolvedExample] = Field(min_length=8, max_length=1024)

    def task(self) -> Task:
        """As training and evaluation take it; errors as `Task`."""
        solved = [
            Example(e.input, (e.output,) if isinstance(e.output, str) else tuple(e.output))
            for e in self.examples
        ]
        train, test = divide(solved, test_size=MOST_TESTED)
        return Task(self.name, "uploaded", self.definition, (self.definition,), train, test)


class NewMerge(Body):
    """A merge to be run as a job."""

    name: Name
    parents: list[Parent] = Field(min_length=2, max_length=MOST_PARENTS)
    method: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="of the table of merge methods; none means regmean with `inputs`, else linear"
    )
    weights: list[float] = Field([], max_length=MOST_PARENTS)
    parameters: dict[Annotated[str, Field(max_length=40)], bool | float] = Field({}, max_length=16)
    inputs: dict[Parent, list[Text]] = Field(
        {},
        max_length=MOST_PARENTS,
        description="for regmean, and for a search that goes on from it: 16 or more requests of every parent",
    )
    start: Parent | None = Field(
        None, description="adapter that the parents were trained on from; deltas count from it"
    )
    tasks: list[MergeTask] = Field([], max_length=MOST_PARENTS, description="what the parents are for")
    evolve: bool = Field(False, description="search for weights with `tasks`")
    generations: int = Field(12, ge=1, le=10_000, description="of the search at most")
    minutes: float | None = Field(None, ge=0.1, le=MOST_MINUTES, description="of the search at most")
    rank: int = Field(16, ge=1, le=1024)
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def steps(self) -> int:
        """Steps by which the job's progress is counted."""
        return self.generations if self.evolve else 1

    def check(self, registry: Registry, owner: str, config: ServiceConfig) -> dict[str, Path]:
        """The files of every parent, and of the start, by name.

        Raises:
            UsageError: numbers above the service's limits, or a merge that cannot be run.
            NotFoundError: a parent or start that this owner may not see.
        """
        if self.rank > config.max_rank or self.steps > config.max_steps:
            raise UsageError(
                f"rank {self.rank} and generations {self.generations} must be at most {config.max_rank} and "
                f"{config.max_steps}; lower them"
            )
        if len(set(self.parents)) < len(self.parents):
            raise UsageError("a parent is named twice; name each once, and give it a larger weight")
        if self.evolve and (not self.tasks or self.weights):
            raise UsageError("evolve finds the weights with tasks: give tasks, and no weights")
        if self.minutes is not None and not self.evolve:
            raise UsageError(f"minutes {self.minutes:g} are of a search; set evolve, or leave them out")
        plain = "task_arithmetic" if self.evolve else "linear"
        self._check_inputs(method := self.method or ("regmean" if self.inputs else plain))
        if self.evolve:
            check_searched(method, self.parameters, by_inputs=bool(self.inputs))
        recipe = Recipe.of(method, self.parents, self.weights, self.parameters)
        recipe.check()
        recipe.values("layers.0.module", 1)
        if len({task.name for task in self.tasks}) < len(self.tasks):
            raise UsageError("two tasks have one name; rename one")
        for task in self.tasks:
            task.task()
        named = [*self.parents, *([self.start] if self.start else [])]
        return {name: registry.directory(_record(registry, name, owner)) for name in named}

    def _check_inputs(self, method: str) -> None:
        if (method == "regmean") != bool(self.inputs):
            raise UsageError(
                f"{method} with inputs of {len(self.inputs)} parents; regmean alone reads inputs"
            )
        if self.inputs and (odd := set(self.parents) ^ set(self.inputs)):
            raise UsageError(
                f"{min(odd)[:64]} is not both among parents and inputs; give inputs of every parent"
            )
        for parent, texts in self.inputs.items():
            if len(found := check_inputs(texts)) < MIN_INPUTS:
                raise UsageError(
                    f"{parent} has {len(found)} different inputs, the least is {MIN_INPUTS}; add some"
                )

    def write(self, folder: Path, directories: Mapping[str, Path], base: str) -> dict[str, Any]:
        """Write what a job's process reads, and give the settings of its `shoal merge`."""
        settings: dict[str, Any] = {
            "base": base,
            "adapter": {parent: str(directories[parent]) for parent in self.parents},
            **({"start": str(directories[self.start])} if self.start else {}),
            "rank": self.rank,
            "seed": self.seed,
            "out": str(folder / "adapter"),
        }
        if self.evolve:
            settings |= {
                "evolve": True,
                "generations": self.generations,
                **({"budget": f"{60 * self.minutes:f}s"} if self.minutes else {}),
                "run": str(folder / "run"),
                "front": str(folder / "front"),
            }
        settings |= {
            "weights": self.weights,
            "parameters": [f"{name}={_written(value)}" for name, value in self.parameters.items()],
            **({"method": self.method} if self.method else {}),
        }
        if self.inputs:
            files = {parent: folder / f"inputs-{number}.jsonl" for number, parent in enumerate(self.inputs)}
            for parent, file in files.items():
                lines = [json.dumps({"input": text}) for text in self.inputs[parent]]
                file.write_text("\n".join(lines), encoding="utf-8")
            settings["inputs"] = [f"{parent}={file}" for parent, file in files.items()]
        if self.tasks:
            (folder / "tasks").mkdir()
            for task in self.tasks:
                text = json.dumps(asdict(task.task()))
                (folder / "tasks" / f"{task.name}.json").write_text(text, encoding="utf-8")
            settings["tasks"] = str(folder / "tasks")
        return settings


def _record(registry: Registry, parent: str, owner: str) -> Any:
    name, at, version = parent.partition("@")
    if at and not version.isdecimal():
        raise UsageError(f"{parent} is no NAME@VERSION; write for example {name}@2")
    return registry.get(name, owner, int(version) if at else None)


def _written(value: bool | float) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(float(value))
