"""All tasks of one method, measured one after the other in this process; finished cells are kept at once.

`python -m shoal.evaluation.benchmark.measuring FOLDER METHOD SETTINGS` is the process in which
`shoal.evaluation.benchmark.run` measures a method: what another method holds or has loaded is no part of its
memory.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from shoal.errors import ShoalError, reason
from shoal.evaluation.benchmark.cells import Cell, CellFolder
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.benchmark.device_use import DeviceUse, utilisation_counter
from shoal.evaluation.benchmark.methods import Adapted, method
from shoal.evaluation.benchmark.tasks import benchmark_tasks
from shoal.evaluation.reports import Answer
from shoal.evaluation.retention import BaseAbility, base_ability
from shoal.models.backbone import Backbone, load_backbone
from shoal.process import end_with_holder, forget_peak, peak
from shoal.tasks.loading import Task
from shoal.tasks.metrics import exact_match, rouge_l
from shoal.tasks.rewards import label

log = logging.getLogger(__name__)


def measure_method(folder: Path, name: str, config: BenchmarkConfig) -> None:
    """Measure every task of a method that was not measured yet.

    A task whose adaptation fails has a cell that says why, and the others go on.

    Raises:
        UsageError: no such method or base model.
        ShoalError: the model is damaged, the method cannot work at all, or the folder cannot be written.
    """
    chosen, cells = method(name), CellFolder(folder)
    tasks = [task for task in benchmark_tasks(config) if not cells.is_finished(name, task.name)]
    if not tasks:
        return
    backbone = load_backbone(config.base)
    adapt = chosen.prepare(backbone, config)
    ability: BaseAbility | None = None
    for number, task in enumerate(tasks, 1):
        started = time.perf_counter()
        forget_peak()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            adapted = adapt(task)
            if ability is None or chosen.per_task:
                ability = base_ability(adapted.predictor, config.base_questions)
            cell = _cell(name, task, adapted, ability, config, started)
        except (ShoalError, RuntimeError, MemoryError) as error:  # out of memory, for example
            cell = Cell(name, task.name, failure=reason(error), seconds=time.perf_counter() - started)
        cells.write(cell)
        log.info("%s %d of %d, %s: %.1f s", chosen.title, number, len(tasks), task.name, cell.seconds)


def _cell(
    name: str,
    task: Task,
    adapted: Adapted,
    ability: BaseAbility,
    config: BenchmarkConfig,
    started: float,
) -> Cell:
    examples = task.test[: config.examples]
    requests = [adapted.request(task, example) for example in examples]
    predictor, limit = adapted.predictor, config.max_new_tokens
    begun = time.perf_counter()
    with DeviceUse(utilisation_counter()) as use:
        said = predictor.answers(requests, max_new_tokens=limit)
    seconds = time.perf_counter() - begun
    losses = predictor.losses(requests, [e.outputs[0] for e in examples])
    answers = tuple(
        Answer(e.input, a, e.outputs, rouge_l(a, e.outputs), exact_match(a, e.outputs), nll)
        for e, a, nll in zip(examples, said, losses, strict=True)
    )
    latencies = []
    for request in requests[: config.single_requests]:
        begun = time.perf_counter()
        predictor.answers([request], max_new_tokens=limit)
        latencies.append(time.perf_counter() - begun)
    metrics = {
        "throughput": _tokens(predictor.backbone, said, limit) / seconds,
        "peak_memory": float(peak()),
        "adaptation_seconds": adapted.seconds,
        "device_utilisation": use.mean,
        "training_tokens_per_second": adapted.tokens_per_second,
        **_training(adapted.losses),
    }
    if torch.cuda.is_available():
        metrics["device_memory"] = float(torch.cuda.max_memory_allocated())
    return Cell(
        name,
        task.name,
        note=adapted.note,
        metrics={n: value for n, value in metrics.items() if value is not None},
        answers=answers,
        latencies=tuple(latencies),
        losses=adapted.losses,
        base_accuracy=ability.accuracy,
        base_perplexity=ability.perplexity,
        target_accuracy=sum(label(e, a) for e, a in zip(examples, said, strict=True)) / len(examples),
        seconds=time.perf_counter() - started,
    )


def _training(losses: Sequence[float]) -> dict[str, float]:
    """Metrics from the losses of a training: the final loss is the mean of the last tenth of the steps."""
    if not losses:
        return {}
    part = max(1, len(losses) // 10)
    first, final = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return {
        "final_loss": final,
        "best_loss": min(losses),
        "convergence": 1 - final / first if first else 0.0,
    }


def _tokens(backbone: Backbone, answers: Sequence[str], limit: int) -> int:
    """Tokens that were generated, the end of turn included where there was room for it."""
    return sum(min(limit, len(ids)) for ids in backbone.encode_completions(answers))


def main() -> None:
    """Measure one method, as the command line says; one line on standard error where it cannot be."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    folder, name, settings = sys.argv[1:]
    end_with_holder()
    try:
        measure_method(Path(folder), name, BenchmarkConfig.model_validate_json(settings))
    except ShoalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
