"""Fixtures for every test: tiny random models of each family, fixed seeds, and the data if it is there."""

import os

# Read when transformers is imported: no test reaches a hub, and tokenizers do not warn about forks.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

pytest_plugins = ["tests.fixtures.service", "tests.fixtures.training"]

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_POSITIONS = 512

# Sizes that Llama-like families share. The initial weights are large enough that an adapter moves the logits.
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.1,
}
WITHOUT_GROUPS = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
# Of families with several experts in a layer, 2 of which see a token.
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Of those whose keys and values are read from a narrow state, whose first layer has no experts.
LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}

FAMILIES = {
    "llama": COMMON,
    "mistral": COMMON,
    "qwen2": COMMON,
    "qwen3": {**COMMON, "head_dim": 16},
    "gemma": {**COMMON, "head_dim": 16},
    "gemma2": {**COMMON, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": MAX_POSITIONS, "initializer_range": 0.1},
    "gpt_neox": WITHOUT_GROUPS,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "init_std": 0.1,
    },
    "phi": COMMON,
    "mixtral": {**COMMON, **EXPERTS},
    "qwen3_moe": {**COMMON, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16},
    "gpt_oss": {
        **COMMON,
        **EXPERTS,
        "head_dim": 16,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v2": {**COMMON, **EXPERTS, **LATENT, "q_lora_rank": None},
    "deepseek_v3": {**COMMON, **EXPERTS, **LATENT, "q_lora_rank": 16, "n_group": 2, "topk_group": 1},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, two more for ChatML, and the one that Qwen2's tokenizer class adds by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>") for name in ("im_start", "im_end", "endoftext")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
        model_max_length=MAX_POSITIONS,
    )


def save_tiny_model(family: str, directory: Path) -> Path:
    tokenizer = byte_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **FAMILIES[family])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A local model directory for every family in `FAMILIES`, by `model_type`."""
    root = tmp_path_factory.mktemp("tiny_models")
    return {family: save_tiny_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three layers with random weights, and its byte tokenizer."""
    return save_tiny_model("llama", tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture
def llama(tiny_llama: Path) -> PreTrainedModel:
    """That Llama, loaded anew for every test, in evaluation mode and without gradients."""
    return AutoModelForCausalLM.from_pretrained(tiny_llama).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory with splits.json and tasks/; `SHOAL_DATA` names another one than ../shared/data."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("SHOAL_DATA", default))
    if not (path / "splits.json").is_file():
        pytest.skip(f"no splits.json in {path}: set SHOAL_DATA to the directory that holds it")
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server of this session's own, on a socket in a temporary directory."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    # The server refuses to run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    programs, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix="shoal-postgresql-"))
    if user:
        shutil.chown(folder, "postgres", "postgres")
    common = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    data = str(folder / "data")
    initialise = [programs / "initdb", "-D", data, "-A", "trust", "-U", "shoal", "-E", "UTF8", "--no-sync"]
    subprocess.run(initialise, check=True, **common)
    server = [programs / "postgres", "-D", data, "-k", str(folder), "-c", "listen_addresses="]
    process = subprocess.Popen(server, **common)
    try:
        ready = [programs / "pg_isready", "-q", "-h", str(folder)]
        for _ in range(200):
            if subprocess.run(ready).returncode == 0:
                break
            time.sleep(0.05)
        yield f"postgresql://shoal@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # the fast shutdown, which waits for no client
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    gc.collect()  # files that a closed service mapped are let go
    subprocess.run(["umount", str(disk)], check=True)
