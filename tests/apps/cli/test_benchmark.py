"""`shoal benchmark` and `shoal compare` on the command line: settings, least grades, one-line errors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.apps.cli import main as cli
from shoal.evaluation.benchmark.cells import Cell
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.benchmark.summary import BenchmarkReport, summarise_method

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BenchmarkConfig]:
    """The settings with which a benchmark is asked for; it finds one cell that took 2 seconds."""
    settings: list[BenchmarkConfig] = []

    def run(config: BenchmarkConfig, folder: Path, **options: object) -> BenchmarkReport:
        settings.append(config)
        row = summarise_method("lora", [Cell("lora", "t", failure="no")], {})
        return BenchmarkReport(config.base, ("t",), (row,), (), {}, {}, "", {}, 2.0)

    monkeypatch.setattr("shoal.evaluation.benchmark.run.run_benchmark", run)
    return settings


def test_quick_changes_what_the_caller_has_not_set(shoal: Run, asked: list[BenchmarkConfig]) -> None:
    code, out, _ = shoal("benchmark", "--quick", "--examples", 3, "--json")
    assert code == 0 and json.loads(out)["methods"][0]["name"] == "lora"
    assert (asked[0].examples, asked[0].num_tasks, asked[0].lora_steps) == (3, 4, 12)
    assert shoal("benchmark")[0] == 0 and asked[1] == BenchmarkConfig()


def test_a_grade_that_is_missed_or_that_there_is_not(shoal: Run, asked: list[BenchmarkConfig]) -> None:
    code, _, err = shoal("benchmark", "--least", "C")
    assert code == 1 and "classic LoRA: below the grade C" in err
    code, _, err = shoal("benchmark", "--least", "A-")
    assert code == 2 and "unknown grade 'A-'" in err and len(asked) == 1


def test_mistakes_are_one_line(shoal: Run, tmp_path: Path) -> None:
    for flags, said in (
        (("--methods", "lora,magic"), "unknown method 'magic'"),
        (("--examples", 0), "--examples 0"),
        (("--tasks", "/nowhere"), "/nowhere"),
    ):
        code, out, err = shoal("benchmark", "--out", tmp_path / "run", *flags)
        assert code == 2 and said in err and err.count("\n") == 1 and not out
    code, _, err = shoal("compare", "--models", "/nowhere")
    assert code == 1 and "no base model gave an adapter" in err


def test_interrupted(shoal: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shoal.evaluation.benchmark.run.run_benchmark", run)
    code, _, err = shoal("benchmark")
    assert code == 1 and "finished tasks are kept in runs/benchmark" in err


def test_compare(shoal: Run, tiny_llama: Path) -> None:
    sizes = ("--adapter-rank", 2, "--num-layers-to-adapt", "none")
    code, out, err = shoal(
        "compare", "--models", tiny_llama, "--prompt", "Debug Python code.", *sizes, "--json"
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["prompts"] == ["Debug Python code."] and record["models"][0]["skills"]
