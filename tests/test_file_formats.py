"""JSON and safetensors come back as they were written, and a file that is not whole says so in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from shoal import file_formats
from shoal.errors import ShoalError
from shoal.file_formats import read_json, read_tensors
from shoal.files import write_file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"rank": 8', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[1]", "JSON list, not an object"),
    ],
)
def test_foreign_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(ShoalError, match=message) as caught:
        read_json(tmp_path / "f.json")
    assert "f.json" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_oversized_files_are_named(tmp_path: Path) -> None:
    for read in (read_json, read_tensors):
        with pytest.raises(ShoalError, match="no such file"):
            read(tmp_path / "none")
        with pytest.raises(ShoalError, match="it is a directory"):
            read(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(file_formats.MAX_JSON_BYTES + 1)
    with pytest.raises(ShoalError, match="the limit is"):
        read_json(tmp_path / "huge.json")


def test_tensors_come_back_equal(tmp_path: Path) -> None:
    stacked = torch.randn(3, 4, 5)
    tensors = {
        "view": stacked[1],
        "other": stacked[2],
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    write_file(tmp_path / "t", save(tensors))
    loaded = read_tensors(tmp_path / "t")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


WHOLE = save({"a": torch.arange(6.0), "b": torch.ones(2, 3)})


@settings(deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_every_truncation_is_named(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(ShoalError, match="safetensors file"):
        read_tensors(path)


@settings(deadline=None)
@given(st.data())
def test_a_foreign_header_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F4", "F8_E8M0", "C64", "I8", "nope", 3]),
            "shape": st.lists(st.integers(-1, 4), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3),
        }
    )
    header = json.dumps(
        data.draw(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entry))
    ).encode()
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    try:
        read_tensors(path)
    except ShoalError as error:
        assert "safetensors file" in str(error)


def test_a_huge_header_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "t").open("wb") as file:
        file.write((file_formats.MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(4 * file_formats.MAX_HEADER_BYTES)
    with pytest.raises(ShoalError, match="states a header of"):
        read_tensors(tmp_path / "t")
