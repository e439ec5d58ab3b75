"""Inputs without answers, from lists and files."""

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.tasks.inputs import MAX_INPUTS, check_inputs, read_inputs


def test_repeated_inputs_count_once() -> None:
    assert check_inputs(["a", "b", "A ", "c", "d"]) == ("A ", "b", "c", "d")


def test_any_language_will_do() -> None:
    texts = ("ein Satz", "une phrase", "一句话", "предложение")
    assert check_inputs(texts) == texts


def test_of_many_some_are_drawn_the_same_each_time() -> None:
    many = [f"input {n}" for n in range(1000)]
    drawn = check_inputs(many)
    assert len(drawn) == MAX_INPUTS and drawn == check_inputs(many) and drawn != tuple(many[:MAX_INPUTS])


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        ("one string", "one string"),
        ([], "0 different"),
        (["same"] * 50, "1 different"),
        (["a", "b", "c"], "3 different"),
        (["a", "b", "c", " "], "visible"),
        (["a", "b", "c", 4], "string"),
        (["a", "b", "c", "half \ud83d"], "not valid Unicode at character 5"),
        (["a", "b", "c", "x" * 20_001], "20000 characters"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_refused(inputs, part) -> None:
    with pytest.raises(UsageError, match=part):
        check_inputs(inputs)


def test_lines_of_a_text_file(tmp_path) -> None:
    path = tmp_path / "inputs.txt"
    path.write_text("\ufefffirst\n\n  second \r\nthird\u2028goes on\x0bhere\n", encoding="utf-8")
    assert read_inputs(path) == ["first", "second", "third\u2028goes on\x0bhere"]


def test_lines_of_a_jsonl_file(tmp_path) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text('"bare"\n{"input": "a\\nb", "output": "x"}\n{"text": "c"}\n', encoding="utf-8")
    assert read_inputs(path) == ["bare", "a\nb", "c"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "0 inputs"),
        ("\n \n", "0 inputs"),
        ('{"input": 3}', "line 1"),
        ('"a"\n{', "line 2"),
        ('"a"\n"\\ud83d"', "line 2"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, part) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ShoalError, match=part):
        read_inputs(path)


def test_a_missing_and_a_huge_file_are_refused_unread(tmp_path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="not a file"):
        read_inputs(tmp_path / "none.txt")
    monkeypatch.setattr("shoal.tasks.inputs.MAX_FILE_BYTES", 10)
    (tmp_path / "huge.txt").write_text("x" * 11)
    with pytest.raises(ShoalError, match="limit is 10"):
        read_inputs(tmp_path / "huge.txt")
