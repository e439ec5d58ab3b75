"""A benchmark of a tiny model: cells are kept and not measured again, rows are honest, reports are whole."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from shoal.errors import ShoalError, UsageError
from shoal.evaluation.benchmark import run as running
from shoal.evaluation.benchmark.cells import Cell, CellFolder
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.benchmark.device_use import DeviceUse
from shoal.evaluation.benchmark.measuring import measure_method
from shoal.evaluation.benchmark.methods import METHODS, method
from shoal.evaluation.benchmark.page import kept_of, render_html, render_markdown
from shoal.evaluation.benchmark.plots import COLOURS, draw
from shoal.evaluation.benchmark.run import run_benchmark
from shoal.evaluation.benchmark.summary import BenchmarkReport, summarise_method
from shoal.evaluation.benchmark.tasks import benchmark_tasks
from shoal.evaluation.grading import CURVES
from shoal.evaluation.reports import Answer
from shoal.evaluation.scaling import ShapeCost

SIZES = {
    "num_tasks": 2,
    "examples": 3,
    "lora_steps": 3,
    "lora_batch": 2,
    "max_new_tokens": 4,
    "single_requests": 1,
    "base_questions": 2,
    "shapes": False,
}
ROOT = Path(__file__).resolve().parents[2]
TINY_METHODS = ("base", "lora", "transformer2")


@pytest.fixture
def config(tiny_llama: Path) -> BenchmarkConfig:
    return BenchmarkConfig(base=str(tiny_llama), methods=TINY_METHODS, **SIZES)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods are measured in this process, as their own process would."""

    def measured(folder: Path, name: str, config: BenchmarkConfig) -> str | None:
        try:
            measure_method(folder, name, config)
        except ShoalError as error:
            return str(error)
        return None

    monkeypatch.setattr(running, "_measured_apart", measured)


def cell(task: str = "t", method: str = "lora", **changes: object) -> Cell:
    answers = tuple(
        Answer("in", said, ("right",), r, r, n) for said, r, n in (("right", 1.0, 0.1), ("", 0.0, 2.0))
    )
    whole = Cell(
        method,
        task,
        metrics={"adaptation_seconds": 2.0, "peak_memory": 1e9, "throughput": 10.0, "final_loss": 1.0},
        answers=answers,
        latencies=(0.5, 1.0),
        losses=(2.0, 1.0),
        base_accuracy=0.5,
        base_perplexity=4.0,
        target_accuracy=0.5,
        seconds=3.0,
    )
    return replace(whole, **changes)


def test_every_method_is_measured_and_reported(config: BenchmarkConfig, tmp_path: Path, here: None) -> None:
    report = run_benchmark(config, tmp_path / "run", command="shoal benchmark")
    by_name = {m.name: m for m in report.methods}
    assert tuple(by_name) == TINY_METHODS and len(report.tasks) == 2
    lora = by_name["lora"]
    assert len(lora.losses) == 3 and lora.success_rate == 1 and not lora.failures
    assert {"final_loss", "adaptation_seconds", "training_tokens_per_second", "bleu"} <= lora.metrics.keys()
    identity = by_name["transformer2"]
    assert "the mixture is the identity" in identity.note and "adaptation_seconds" not in identity.metrics
    for quality in ("rouge_l", "bleu", "perplexity", "exact_match"):
        assert identity.metrics[quality] == by_name["base"].metrics[quality]
    assert identity.metrics["retained_accuracy"] == identity.metrics["retained_perplexity"] == 1
    assert "device_memory" in identity.grade.missing
    place = tmp_path / "run" / "report"
    plots = draw(report)
    pictures = {f"{plot.name}.png" for plot in plots}
    assert {p.name for p in place.iterdir()} == {"report.json", "report.md", "report.html", *pictures}
    assert all((place / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    record = json.loads((place / "report.json").read_text())
    assert record["settings"]["seed"] == 0 and record["environment"]["versions"]["torch"]
    assert record["signatures"]["BLEU"].startswith("nrefs:")
    page, text = (place / "report.html").read_text(), (place / "report.md").read_text()
    assert page.count("data:image/svg+xml;base64,") == len(plots) == 4
    for name in CURVES:
        assert f"<td>{name}</td>" in page and f"| {name} |" in text
    before, after = identity.kept["accuracy"]
    assert before == after and kept_of(identity)[0] == f"{100 * before:.1f}% → {100 * after:.1f}%"
    assert all(said in page and said in text for said in kept_of(identity))
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "<script" not in page


def test_the_device_is_watched_while_it_works() -> None:
    readings = iter([0.0, 1.0])
    read = threading.Event()

    def counter() -> float:
        value = next(readings, 0.5)
        if value == 1.0:
            read.set()
        return value

    with DeviceUse(counter, seconds=0.001) as use:
        assert read.wait(10)
    assert use.mean is not None and 0 < use.mean <= 0.5
    with DeviceUse(None) as unwatched:
        pass
    assert unwatched.mean is None


def test_two_runs_agree_to_the_digit(config: BenchmarkConfig, tmp_path: Path, here: None) -> None:
    one, other = (run_benchmark(config, tmp_path / name) for name in ("one", "other"))
    timed = {"adaptation_seconds", "training_tokens_per_second", "throughput", "latency_p50", "latency_p95"}
    for a, b in zip(one.methods, other.methods, strict=True):
        quality = [{n: v for n, v in m.metrics.items() if n not in timed | {"peak_memory"}} for m in (a, b)]
        assert quality[0] == quality[1] and a.task_scores == b.task_scores and a.losses == b.losses


def test_an_interrupted_run_keeps_what_was_measured(
    config: BenchmarkConfig, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt, tasks = METHODS["lora"], benchmark_tasks(config)
    calls: list[str] = []

    def prepare(backbone, settings):  # type: ignore[no-untyped-def]
        inner = adapt.prepare(backbone, settings)

        def interrupted(task):  # type: ignore[no-untyped-def]
            calls.append(task.name)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return inner(task)

        return interrupted

    monkeypatch.setitem(METHODS, "lora", replace(adapt, prepare=prepare))
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(config, tmp_path / "run")
    kept = CellFolder(tmp_path / "run").read("lora", tasks[0].name)
    assert kept is not None and kept.failure is None
    report = run_benchmark(config, tmp_path / "run")
    assert calls == [tasks[0].name, tasks[1].name, tasks[1].name]
    assert next(m for m in report.methods if m.name == "lora").success_rate == 1
    assert CellFolder(tmp_path / "run").read("lora", tasks[0].name) == kept


def test_a_folder_is_that_of_one_run(config: BenchmarkConfig, tmp_path: Path, here: None) -> None:
    CellFolder(tmp_path / "run").claim(config)
    with pytest.raises(UsageError, match="other examples, seed"):
        run_benchmark(config.model_copy(update={"seed": 1, "examples": 2}), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds letter.txt"):
        run_benchmark(config, tmp_path / "other")


def test_a_place_that_is_not_writable(config: BenchmarkConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        run_benchmark(config, tmp_path / "file")
    with pytest.raises(ShoalError, match="a file, not a directory"):
        run_benchmark(config, tmp_path / "file" / "run")
    with pytest.raises(ShoalError, match="cannot write /proc/shoal/run"):  # where even root may not
        run_benchmark(config, Path("/proc/shoal/run"))


def test_a_method_that_cannot_work_is_told_and_the_others_go_on(
    config: BenchmarkConfig, tmp_path: Path, here: None
) -> None:
    both = config.model_copy(update={"methods": ("base", "text-to-lora")})
    report = run_benchmark(both, tmp_path / "run")
    row = report.methods[1]
    assert row.success_rate == 0 and row.grade.score is None and not row.metrics
    assert all("no hypernetwork is trained" in why for why in row.failures.values())
    assert "missing" in render_markdown(report) and "failed on" in render_html(report, [])
    alone = config.model_copy(update={"methods": ("text-to-lora",)})
    with pytest.raises(ShoalError, match="nothing could be measured; text-to-lora"):
        run_benchmark(alone, tmp_path / "alone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("lora", "magic")}, "unknown method 'magic'; choose from base, lora"),
        ({"methods": ("lora", "lora")}, "each is compared once"),
        ({"num_tasks": 10_000}, "num_tasks 10000: there are"),
        ({"tasks": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_settings(config: BenchmarkConfig, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_benchmark(config.model_copy(update=changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_of_its_own(config: BenchmarkConfig, tmp_path: Path) -> None:
    base = config.model_copy(update={"methods": ("base",), "num_tasks": 1})
    report = run_benchmark(base, tmp_path / "run")
    assert report.methods[0].success_rate == 1
    broken = base.model_copy(update={"base": "/nowhere"})
    with pytest.raises(ShoalError, match="nothing could be measured; base on .*: model path '/nowhere'"):
        run_benchmark(broken, tmp_path / "broken")


@pytest.mark.slow
def test_a_killed_run_ends_its_process_and_goes_on(config: BenchmarkConfig, tmp_path: Path) -> None:
    wanted = config.model_copy(update={"methods": ("base", "lora"), "num_tasks": 2, "lora_steps": 60})
    code = (
        "import sys; from pathlib import Path; from shoal.evaluation.benchmark.run import run_benchmark\n"
        "from shoal.evaluation.benchmark.config import BenchmarkConfig\n"
        "run_benchmark(BenchmarkConfig.model_validate_json(sys.argv[2]), Path(sys.argv[1]))"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", code, str(folder), wanted.model_dump_json()]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as whole:
        while not list((folder / "cells").glob("lora-*.json")):
            assert whole.poll() is None
            time.sleep(0.02)
        (measuring,) = psutil.Process(whole.pid).children()
        whole.kill()
    measuring.wait(30)
    kept = {path: path.read_bytes() for path in (folder / "cells").iterdir() if not path.name.startswith(".")}
    assert len(kept) < 4
    one, other = run_benchmark(wanted, folder), run_benchmark(wanted, tmp_path / "other")
    assert all(path.read_bytes() == content for path, content in kept.items())
    for a, b in zip(one.methods, other.methods, strict=True):
        assert a.task_scores == b.task_scores and a.losses == b.losses and a.success_rate == 1


def test_a_row_is_the_mean_of_its_cells() -> None:
    base = {"t": cell(method="base", base_accuracy=1.0, base_perplexity=2.0)}
    row = summarise_method("lora", [cell()], base)
    assert row.metrics["exact_match"] == row.metrics["rouge_l"] == row.metrics["rouge_1"] == 0.5
    assert row.metrics["perplexity"] == pytest.approx(math.exp(1.05))
    assert row.metrics["retained_accuracy"] == 0.5 and row.metrics["retained_perplexity"] == 2
    assert row.kept == {"accuracy": (1.0, 0.5), "perplexity": (2.0, 4.0)}
    assert (row.metrics["latency_p50"], row.metrics["latency_p95"]) == (0.75, 1.0)
    assert row.losses == (2.0, 1.0) and row.seconds == 3
    assert row.intervals["rouge_l"].low is None  # one task alone
    assert "retained_accuracy" not in summarise_method("lora", [cell()], {}).metrics


def test_larger_shapes_are_measured_once_and_drawn(
    config: BenchmarkConfig, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = [
        ShapeCost(name, n, 20, 10, 40, 12, 0.1, 0.2, 10**9)
        for name, n in (("small", 10**8), ("large", 10**9))
    ]
    asked: list[list[str]] = []
    monkeypatch.setattr(running, "measure_shapes", lambda names: asked.append(names) or costs)
    wanted = config.model_copy(update={"shapes": True, "methods": ("base",)})
    for _ in range(2):
        report = run_benchmark(wanted, tmp_path / "run")
        assert list(report.shapes) == costs
    assert len(asked) == 1 and (tmp_path / "run" / "report" / "scaling.png").is_file()
    assert "Larger shapes: missing" not in render_html(report, draw(report))

    def failing(names: list[str]) -> list[ShapeCost]:
        raise ShoalError("too large")

    monkeypatch.setattr(running, "measure_shapes", failing)
    without = run_benchmark(wanted, tmp_path / "without")
    assert without.shapes == () and "Larger shapes: missing" in render_html(without, draw(without))


def test_what_failed_is_tried_again_and_any_failure_is_one_cell(
    config: BenchmarkConfig, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = METHODS["base"]

    def exhausted(backbone, settings):  # type: ignore[no-untyped-def]
        def adapt(task):  # type: ignore[no-untyped-def]
            if task.name == tasks[0].name:
                raise RuntimeError("out of memory")
            return base.prepare(backbone, settings)(task)

        return adapt

    tasks, alone = benchmark_tasks(config), config.model_copy(update={"methods": ("base",)})
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "base", replace(base, prepare=exhausted))
        report = run_benchmark(alone, tmp_path / "run")
    assert report.methods[0].failures == {tasks[0].name: "out of memory"}
    assert report.methods[0].success_rate == 0.5
    assert run_benchmark(alone, tmp_path / "run").methods[0].success_rate == 1


def test_the_report_has_null_for_what_is_no_number() -> None:
    unlikely = replace(cell().answers[0], nll=math.nan)
    row = summarise_method("lora", [cell(answers=(unlikely,))], {})
    report = BenchmarkReport("m", ("t",), (row,), (), {}, {}, "", {}, 1.0)
    assert (
        json.loads(json.dumps(report.to_json(), allow_nan=False))["methods"][0]["answers"]["t"][0]["nll"]
        is None
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_training_is_a_fault_and_no_score(loss: float) -> None:
    diverged = cell(metrics={"final_loss": loss, "peak_memory": 1e9}, losses=(2.0, loss))
    row = summarise_method("lora", [diverged], {})
    assert "final_loss" not in row.metrics and any("final_loss" in fault for fault in row.faults)
    assert row.metrics["peak_memory"] == 1e9 and row.grade.score is not None
    unlikely = replace(cell().answers[0], nll=loss)
    row = summarise_method("lora", [cell(answers=(unlikely,))], {})
    assert "perplexity" not in row.metrics and any("perplexity" in fault for fault in row.faults)
    assert "nll" not in row.intervals and row.metrics["rouge_l"] == 1


def test_a_failed_task_counts_against_the_method() -> None:
    row = summarise_method("lora", [cell(), Cell("lora", "other", failure="out of memory")], {})
    assert row.success_rate == 0.5 and row.failures == {"other": "out of memory"}
    assert row.metrics["rouge_l"] == 0.5


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    for one in (cell(), cell("../../etc"), Cell("base", "t", failure="no")):
        folder.write(one)
        assert folder.read(one.method, one.task) == one
    assert folder.read("base", "unknown") is None
    for damage in ({}, {**asdict(cell()), "answers": 3}, {**asdict(cell()), "more": 1}):
        with pytest.raises(ShoalError, match="no cell of a benchmark"):
            Cell.from_json(damage)


def test_tasks_are_spread_over_all_kinds(config: BenchmarkConfig) -> None:
    tasks = benchmark_tasks(config.model_copy(update={"num_tasks": 16}))
    assert len({t.name for t in tasks}) == 16 and len({t.category for t in tasks}) > 5
    assert all(len(t.test) <= 3 and t.train for t in tasks)
    assert tasks == benchmark_tasks(config.model_copy(update={"num_tasks": 16}))


def test_validation_tasks_of_a_directory(config: BenchmarkConfig, shared_data: Path) -> None:
    tasks = benchmark_tasks(config.model_copy(update={"tasks": str(shared_data), "num_tasks": 3}))
    held_out = json.loads((shared_data / "splits.json").read_text())["validation"]
    assert len(tasks) == 3 and {t.name for t in tasks} <= set(held_out)


def test_tasks_without_test_examples_are_no_benchmark(config: BenchmarkConfig, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for name in ("s", "t"):
        examples = [{"input": f"a {name}", "outputs": ["b"]}]
        about = {"category": "c", "source": ["s"], "license": "CC0", "definition": f"Say {name}."}
        record = {
            "name": name,
            **about,
            "descriptions": [f"Say {name} aloud."],
            "train": examples,
            "test": [],
        }
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["s"], "validation": ["t"]}))
    with pytest.raises(UsageError, match="none of 1 tasks has test examples"):
        benchmark_tasks(config.model_copy(update={"tasks": str(tmp_path), "num_tasks": 1}))


def test_every_method_has_a_colour_and_a_name() -> None:
    assert METHODS.keys() == COLOURS.keys() == set(BenchmarkConfig().methods)
    assert len(set(COLOURS.values())) == len(COLOURS)
    with pytest.raises(UsageError, match="unknown method"):
        method("")


def test_pictures_are_the_same_every_time(config: BenchmarkConfig, tmp_path: Path, here: None) -> None:
    report = run_benchmark(config, tmp_path / "run")
    first, second = draw(report), draw(report)
    assert [p.name for p in first] == ["quality_and_time", "quality_and_memory", "tasks", "learning"]
    assert [p.svg for p in first] == [p.svg for p in second]
    hostile = replace(report.methods[0], note="<b>&", failures={"t": "<script>alert(1)</script>"})
    page = render_html(replace(report, methods=(hostile, *report.methods[1:])), first)
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_the_overview_has_the_table_of_the_published_report() -> None:
    overview = (ROOT / "docs" / "results" / "index.md").read_text("utf-8")
    published = (ROOT / "docs" / "results" / "benchmark.md").read_text("utf-8")
    table = re.search(r"<!-- the table of shoal benchmark -->\n\n(.*?)\n\n<!--", overview, re.DOTALL)
    assert table is not None and table[1].startswith("| method |") and table[1] in published
