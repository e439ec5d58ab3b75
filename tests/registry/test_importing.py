"""Foreign adapters are checked before they are read, as directories and as ZIP files."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from shoal.adapters.archive import MAX_ENTRIES, pack, unpack
from shoal.adapters.files import ADAPTER_FILES, CONFIG_FILE, FACTS_FILE, WEIGHTS_FILE
from shoal.adapters.hooks import attach
from shoal.errors import UsageError
from shoal.models.shapes import BackboneShape, load_shape
from shoal.registry.importing import read_foreign

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def shape(tiny_llama: Path) -> BackboneShape:
    return load_shape(str(tiny_llama))


@pytest.fixture
def peft_directory(llama: PreTrainedModel, tmp_path: Path) -> Path:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(llama, config).save_pretrained(tmp_path / "peft")
    return tmp_path / "peft"


def test_peft_adapters_are_taken(peft_directory: Path, shape: BackboneShape) -> None:
    stored = read_foreign(peft_directory, shape)
    assert stored.lora.rank == 4 and stored.card is None


@pytest.mark.parametrize("rslora", [False, True])
def test_modules_keep_their_own_rank_and_alpha(
    llama: PreTrainedModel, shape: BackboneShape, tmp_path: Path, rslora: bool
) -> None:
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"v_proj": 4, "^model.layers.0.self_attn.q_proj": 3, "layers.1.mlp.down_proj": 1},
        alpha_pattern={"self_attn.q_proj": 16, "down_proj": 3},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    theirs = get_peft_model(llama, config)
    theirs.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        wanted, base = theirs(ids).logits, theirs.unload()
        lora = read_foreign(tmp_path / "peft", shape).lora
        assert lora.rank == 4 and len(lora.factors) == 9
        plain = base(ids).logits
        with attach(base, lora):
            torch.testing.assert_close(base(ids).logits, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-3)


def test_a_card_from_elsewhere_is_kept(peft_directory: Path, shape: BackboneShape) -> None:
    add_card(description="x" * 8192, scores={"accuracy": 0.5})(peft_directory)
    card = read_foreign(peft_directory, shape).card
    assert card is not None and len(card.description or "") == 8192 and card.scores == {"accuracy": 0.5}


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / CONFIG_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def edit_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = {name: change(t).contiguous() for name, t in load_file(folder / WEIGHTS_FILE).items()}
        save_file(tensors, folder / WEIGHTS_FILE)

    return edit


def add_card(**facts: object) -> Callable[[Path], object]:
    card = {"generator": "elsewhere", "trained": True, **facts}
    return lambda folder: (folder / FACTS_FILE).write_text(json.dumps({"card": card}))


def huge_header(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", 2**60) + content[8:])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another base": (edit_config(base_model_name_or_path="gpt2"), "is for 'gpt2', not"),
    "a high rank": (edit_config(r=10**9), "rank 1000000000, the limit is 128"),
    "a high rank of one module": (
        edit_config(rank_pattern={"k_proj": 10**9}),
        "rank 1000000000, the limit is 128",
    ),
    "DoRA": (edit_config(use_dora=True), "only plain LoRA"),
    "NaN": (edit_weights(lambda t: t * float("nan")), "NaN or infinity"),
    "other shapes": (edit_weights(lambda t: t.repeat(1, 2) if t.shape[0] == 4 else t), "use the model"),
    "a huge header": (huge_header, "states a header of 1152921504606846976 bytes"),
    "a cut file": (lambda d: (d / WEIGHTS_FILE).write_bytes((d / WEIGHTS_FILE).read_bytes()[:-9]), "whole"),
    "no weights": (lambda d: (d / WEIGHTS_FILE).unlink(), "has no adapter_model.safetensors"),
    "no directory": (lambda d: d.rename(d.with_name("gone")), "there is no directory"),
    "a large file": (
        lambda d: (d / CONFIG_FILE).write_text(" " * 2**21),
        "2097152 bytes, the limit is 1048576",
    ),
    "a large card": (
        lambda d: (d / FACTS_FILE).write_text(" " * 2**21),
        "shoal.json has 2097152 bytes, the limit is 1048576",
    ),
    "a long description": (add_card(description="x" * 2**15), "characters, the limit is 16384"),
    "long scores": (add_card(scores={"s" * 20 + str(i): i for i in range(2000)}), "characters, the limit is"),
    "many scores": (add_card(scores={f"s{i}": i for i in range(5000)}), "holds 5000 values together"),
    "many notes": (add_card(notes=["x"] * 2**15), "holds 32768 values together, the limit is 2048"),
    "a score of NaN": (add_card(scores={"accuracy": float("nan")}), "scores.accuracy: .*finite"),
    "a boundless score": (add_card(scores={"accuracy": float("inf")}), "scores.accuracy: .*finite"),
    "no card": (lambda d: (d / FACTS_FILE).write_text("[]"), "not an object"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_adapters_are_the_callers_mistake(
    peft_directory: Path, shape: BackboneShape, kind: str
) -> None:
    spoil, message = BROKEN[kind]
    spoil(peft_directory)
    with pytest.raises(UsageError, match=message) as caught:
        read_foreign(peft_directory, shape)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 5000), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_any_damage_is_refused_or_harmless(
    peft_directory: Path, shape: BackboneShape, tmp_path: Path, place: int, byte: int, cut: int
) -> None:
    content = bytearray((peft_directory / WEIGHTS_FILE).read_bytes())
    content[place % len(content)] = byte
    damaged = tmp_path / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / WEIGHTS_FILE).write_bytes(content[: len(content) - cut])
    (damaged / CONFIG_FILE).write_bytes((peft_directory / CONFIG_FILE).read_bytes())
    try:
        stored = read_foreign(damaged, shape)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert all(f.isfinite().all() for pair in stored.lora.factors.values() for f in pair)


CONFIG_KEYS = (
    *("peft_type", "r", "lora_alpha", "bias", "use_rslora", "init_lora_weights", "base_model_name_or_path"),
    *("revision", "task_type", "target_modules", "layers_to_transform", "exclude_modules", "fan_in_fan_out"),
    *("lora_dropout", "loftq_config", "rank_pattern", "alpha_pattern", "modules_to_save", "use_dora"),
    *("layer_replication", "trainable_token_indices", "lora_bias", "megatron_config", "target_parameters"),
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), ANY_JSON, min_size=1, max_size=4))
def test_any_value_of_a_known_key_is_refused_or_harmless(
    peft_directory: Path, shape: BackboneShape, tmp_path: Path, changes: dict[str, object]
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir(exist_ok=True)
    (odd / WEIGHTS_FILE).write_bytes((peft_directory / WEIGHTS_FILE).read_bytes())
    config = json.loads((peft_directory / CONFIG_FILE).read_text())
    (odd / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    try:
        lora = read_foreign(odd, shape).lora
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert math.isfinite(lora.scaling) and lora.rank == 4
        assert all(lora.delta_weight(name).isfinite().all() for name in lora.factors)


def zip_of(entries: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


def test_packing_and_unpacking_gives_the_same_files(peft_directory: Path, tmp_path: Path) -> None:
    file, again = io.BytesIO(), io.BytesIO()
    pack(peft_directory, file)
    pack(peft_directory, again)
    assert file.getvalue() == again.getvalue()
    (tmp_path / "out").mkdir()
    unpack(file, tmp_path / "out", max_bytes=2**20)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (peft_directory / path.name).read_bytes()
    assert {CONFIG_FILE, WEIGHTS_FILE} <= {p.name for p in (tmp_path / "out").iterdir()}


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.text(min_size=1, max_size=40),
        st.sampled_from(["../", "/", "a/../../", "..\\\\"]).map(lambda p: p + CONFIG_FILE),
    )
)
def test_no_name_in_a_zip_is_a_path(tmp_path: Path, name: str) -> None:
    out = tmp_path / "inside" / "out"
    out.mkdir(parents=True, exist_ok=True)
    try:
        archive = zip_of({name: b"{}"})
    except (UnicodeEncodeError, IndexError):
        return  # zipfile itself cannot write this name
    with suppress(UsageError):
        unpack(archive, out, max_bytes=100)
    assert {p.name for p in out.iterdir()} <= set(ADAPTER_FILES)
    assert [p.name for p in (tmp_path / "inside").iterdir()] == ["out"]
    for path in out.iterdir():
        path.unlink()


def test_bombs_and_other_files_are_refused(tmp_path: Path) -> None:
    def lying(file: io.BytesIO) -> io.BytesIO:
        """The same with a directory that states 1 byte for the first entry."""
        content = bytearray(file.getvalue())
        at = content.index(b"PK\x01\x02") + 24
        content[at : at + 4] = struct.pack("<I", 1)
        return io.BytesIO(bytes(content))

    bomb = zip_of({WEIGHTS_FILE: b"\0" * 10**6})
    cases = {
        "unpacks to 1000000 bytes, the limit is 1000": bomb,
        "no whole ZIP|is larger than": lying(bomb),
        "has 65 entries": zip_of({f"{i}": b"" for i in range(MAX_ENTRIES + 1)}),
        "several adapters": zip_of({f"b/{CONFIG_FILE}": b"{}", f"a/{CONFIG_FILE}": b"{}"}),
        "no whole ZIP file": io.BytesIO(b"PK" + b"x" * 100),
    }
    for number, (message, file) in enumerate(cases.items()):
        out = tmp_path / str(number)
        out.mkdir()
        with pytest.raises(UsageError, match=message):
            unpack(file, out, max_bytes=1000)
