"""`shoal tune lora` live on tasks that nothing was chosen by, and what its settings are worth on `test`.

    python benchmarks/tuning_live.py [--tasks 4] [--minutes 15] [--grid] [--few-shot 4 16] [--page FILE]

Each way to tune has the same minutes: `shoal tune lora` as it is, random search and a quasi-random sequence
with its confirmation (`--sampler`), and with `--grid` five rates. It reads a file of the task's `train` list
alone. A LoRA with the settings that it found, or the defaults where these stay, and one with those of the
nearest recorded task are then trained on the same file and answer `test` examples. With `--few-shot`, a
study of its own, over training tasks, finds rate and steps of refining on so many examples, and with
`--few-shot-only` nothing else is done.

All is kept in `--work`: a command that was stopped goes on. `--page` is written only once there are scores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import yaml
from _machine import DATA, ROOT, machine, table
from _tuning_few_shot import SPACE, FewShotWorkload

from shoal.adapters.files import load_adapter
from shoal.config import DEFAULT_MODEL
from shoal.evaluation.evaluate import score
from shoal.files import write_file
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Task, load_split
from shoal.tasks.metrics import bootstrap_interval
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA
from shoal.tuning.nearest import nearest_settings, read_table
from shoal.tuning.plan import StudyPlan
from shoal.tuning.recipe import VERDICT, tune
from shoal.tuning.report import importance_of
from shoal.tuning.search_space import read_space
from shoal.tuning.spaces import MODELS
from shoal.tuning.storage import default_url

DEFAULTS, NEAREST, TUNED = "defaults", "nearest task's settings", "`shoal tune lora`"
EXAMPLES, BATCH, TOKENS, GRID = 240, 8, 40, [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
WAYS: Mapping[str, Sequence[str]] = {
    TUNED: (),
    "random search": ("--sampler", "random", "--pruner", "none", "--no-nearest"),
    "quasi-random sequence": ("--sampler", "qmc", "--pruner", "none", "--no-nearest"),
}
GRID_WAY = "grid of five rates"


@dataclass(frozen=True)
class Cell:
    """Adapter of one way on one task: ROUGE-L of every answer, and the study's verdict where there is one."""

    scores: Sequence[float]
    settings: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    importance: Mapping[str, Sequence[float]]


def main() -> None:
    args = parse()
    print(f"{machine()}; {vars(args)}", flush=True)
    lines = [] if args.few_shot_only else live(args)
    for shots in args.few_shot:
        lines += [few_shot(args, shots)]
        print(lines[-1], flush=True)
    if args.page and lines:
        head = [
            "# Tuning, live",
            f"```console\n$ python benchmarks/tuning_live.py {shlex.join(sys.argv[1:])}\n```",
        ]
        write_file(args.page, "\n\n".join([*head, *lines, machine()]) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tuning_live")
    parser.add_argument("--tasks", type=int, default=4, help="of validation, the first ones")
    parser.add_argument("--minutes", type=float, default=15, help="of every study")
    parser.add_argument("--steps", type=int, default=30, help="of the defaults, batches of 8")
    parser.add_argument("--scored", type=int, default=60, help="test examples of a task, at most")
    parser.add_argument("--grid", action="store_true", help="also a grid of five rates")
    parser.add_argument("--few-shot", type=int, nargs="*", default=[], help="numbers of examples")
    parser.add_argument("--few-shot-only", action="store_true", help="no study of a LoRA")
    parser.add_argument("--few-shot-tasks", type=int, default=6, help="of training, every so many-th one")
    parser.add_argument("--few-shot-trials", type=int, default=12)
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    return parser.parse_args()


def live(args: argparse.Namespace) -> list[str]:
    """The tables of scores and of verdicts."""
    tasks = load_split(args.data).validation[: args.tasks]
    backbone, encoder = load_backbone(), TaskEncoder()
    ways = {**WAYS, **({GRID_WAY: ("--sampler", "random", "--no-nearest")} if args.grid else {})}
    found: dict[str, dict[str, Cell]] = {}
    lines: list[str] = []
    for task in tasks:
        bench = Bench(args, backbone, task)
        near = nearest_settings(task.descriptions[0], encoder, read_table(), 1)[0]
        own = {DEFAULTS: bench.cell(DEFAULTS, {}), NEAREST: bench.cell(NEAREST, near)}
        found[task.name] = {**own, **{way: bench.tuned(way, flags) for way, flags in ways.items()}}
        lines = [scores_table(found), verdicts_table(found)]
        print("\n\n".join(lines), flush=True)
    return lines


class Bench:
    """One task: its folder, and adapters that are trained and scored once."""

    def __init__(self, args: argparse.Namespace, backbone: Backbone, task: Task) -> None:
        self._args, self._backbone, self._task = args, backbone, task
        self._folder = args.work / f"{args.minutes:g}-{args.steps}" / task.name
        self._plain = {"steps": args.steps, "batch_size": BATCH, "test_size": 0}
        rows = [{"input": e.input, "output": list(e.outputs)} for e in task.train[:EXAMPLES]]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._folder / "solved.jsonl", "\n".join(map(json.dumps, rows)))

    def tuned(self, way: str, flags: Sequence[str]) -> Cell:
        """The settings that a study finds within the minutes, and what they are worth."""
        out = self._folder / _file_name(way)
        if way == GRID_WAY:
            write_file(self._folder / "grid.yaml", yaml.safe_dump({"learning_rate": GRID}))
            flags = [*flags, "--space", str(self._folder / "grid.yaml")]
        if not (out / VERDICT).is_file():
            config = self._written("plain", self._plain)
            budget = f"{60 * self._args.minutes:g}s"
            self._shoal(
                "tune", "lora", "--config", str(config), "--budget", budget, *flags, "--out", str(out)
            )
        verdict = json.loads((out / VERDICT).read_text("utf-8"))
        study = optuna.load_study(
            study_name="tune lora", storage=default_url(out.with_name(f"{out.name}.run"))
        )
        matters = {field: (own.share, own.spread) for field, own in importance_of(study.trials).items()}
        return self.cell(way, verdict["recommended"] or {}, verdict, matters)

    def cell(
        self,
        way: str,
        settings: Mapping[str, Any],
        verdict: Mapping[str, Any] | None = None,
        importance: Mapping[str, Sequence[float]] | None = None,
    ) -> Cell:
        """Train with settings in place of the defaults', and answer `test` examples."""
        place = self._folder / f"{_file_name(way)}-{self._args.scored}.json"
        if place.is_file():
            return Cell(**json.loads(place.read_text("utf-8")))
        own = {**self._plain, **{name: value for name, value in settings.items() if name != "seed"}}
        if "adapter_rank" in settings:
            own["adapter_alpha"] = 2 * settings["adapter_rank"]
        if settings or way == DEFAULTS:
            config, out = self._written(way, own), self._folder / f"{_file_name(way)}-adapter"
            self._shoal("train", "lora", "--config", str(config), "--out", str(out))
            scores = self._scores(out)
        else:
            scores = self.cell(DEFAULTS, {}).scores
        cell = Cell(scores, own if settings else {}, verdict, importance or {})
        write_file(place, json.dumps(vars(cell)))
        return cell

    def _written(self, name: str, settings: Mapping[str, Any]) -> Path:
        """A file for `--config`."""
        path = self._folder / f"{_file_name(name)}.yaml"
        write_file(path, yaml.safe_dump(json.loads(json.dumps(dict(settings)))))
        return path

    def _shoal(self, *words: str) -> None:
        """Run a command on the file of `train` examples."""
        own = ["--tasks", str(self._folder / "solved.jsonl"), "--definition", self._task.descriptions[0]]
        command = [sys.executable, "-m", "shoal", *words, *own]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"shoal {' '.join(words)} ended with {done.returncode}\n{done.stderr[-2000:]}")

    def _scores(self, adapter: Path) -> list[float]:
        """ROUGE-L of every answer to `test` examples."""
        asked = self._task.test[: self._args.scored]
        lora = load_adapter(adapter).lora
        answers = score(self._backbone, asked, [e.input for e in asked], lora, max_new_tokens=TOKENS)
        return [answer.rouge_l for answer in answers]


def scores_table(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """ROUGE-L on `test` by way and task, and what each gains over the defaults."""
    ways = list(next(iter(found.values())))
    rows = []
    for way in ways:
        gains = {task: [_points(b - a) for a, b in _pairs(own, way)] for task, own in found.items()}
        means = {task: fmean(own) for task, own in gains.items()}
        over = bootstrap_interval([gain for own in gains.values() for gain in own])
        scores = [f"{_points(fmean(own[way].scores)):.1f}" for own in found.values()]
        least = "" if way == DEFAULTS else f"{min(means.values()):+.1f}"
        mean = "" if way == DEFAULTS else f"{over.mean:+.1f} ({over.low:+.1f} to {over.high:+.1f})"
        rows.append([way, *scores, mean, least])
    head = "ROUGE-L on `test`; gain over the defaults with its 95% interval over examples"
    return f"{head}\n\n" + table(["settings", *found, "gain", "least of a task"], rows)


def verdicts_table(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """The verdict of every study."""
    rows = []
    for task, own in found.items():
        for way, cell in own.items():
            if cell.verdict is not None:
                rows.append([f"{task}, {way}", *_said(cell.verdict, cell.importance)])
    return table(
        ["study", "defaults, fresh seeds", "best confirmed", "gain", "search said", "optimism"]
        + ["recommended rate", "trials", "training s", "tuner s", "importance"],
        rows,
    )


def few_shot(args: argparse.Namespace, shots: int) -> str:
    """The verdict on rate and steps of refining on so many examples, over training tasks."""
    train = load_split(args.data).train
    tasks = train[:: max(1, len(train) // args.few_shot_tasks)][: args.few_shot_tasks]
    folder = args.work / f"few_shot-{shots}-{len(tasks)}-{args.few_shot_trials}"
    workload = FewShotWorkload(TextToLoRA(DEFAULT_MODEL), tasks, shots)
    space = read_space(SPACE, MODELS["refine"])
    plan = StudyPlan(f"refine on {shots}", trials=args.few_shot_trials, pruner="none")
    folder.mkdir(parents=True, exist_ok=True)
    own = tune(workload, space, plan, default_url(folder), folder, folder / "found", MODELS["refine"], print)
    assert own.verdict is not None
    names = ", ".join(task.name for task in tasks)
    return (
        f"Refining on {shots} examples, from the generated adapter, over {names}:\n\n```\n{own.verdict}\n```"
    )


def _said(verdict: Mapping[str, Any], importance: Mapping[str, Sequence[float]]) -> list[str]:
    defaults = f"{verdict['defaults_loss']:.3f} ± {verdict['defaults_spread']:.3f}"
    counted = ", ".join(f"{count} {state}" for state, count in verdict["trials"].items())
    fields = ", ".join(f"{name} {share:.2f} ± {spread:.2f}" for name, (share, spread) in importance.items())
    last = [counted, f"{verdict['seconds']:.0f}", f"{verdict['overhead']:.1f}", fields]
    if not verdict["candidates"]:
        return [defaults, "", "", "", "", "the defaults stay", *last]
    best, rate = verdict["candidates"][0], (verdict["recommended"] or {}).get("learning_rate")
    gain = best["gain"]
    return [
        defaults,
        f"{best['loss']:.3f}",
        f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
        f"{best['selection_loss']:.3f}",
        f"{best['optimism']:+.3f}",
        "the defaults stay" if rate is None else f"{rate:.2g}",
        *last,
    ]


def _pairs(own: Mapping[str, Cell], way: str) -> list[tuple[float, float]]:
    return list(zip(own[DEFAULTS].scores, own[way].scores, strict=True))


def _points(share: float) -> float:
    return 100 * share


def _file_name(way: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in way).strip("_")


if __name__ == "__main__":
    main()
