"""Task loaders on files of a few lines, the rule against leaks, and the real data where it is at hand."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError, UsageError
from shoal.tasks.loading import (
    Example,
    LeakageError,
    Split,
    Task,
    check_no_leakage,
    load_hub_dataset,
    load_jsonl,
    load_reasoning_gym,
    load_split,
    load_super_natural_instructions,
    load_task_directory,
    load_task_json,
    remove_leaks,
)
from shoal.tasks.records import divide
from shoal.tasks.texts import check_task_name, normalise


def examples(*inputs: str, output: str = "yes") -> tuple[Example, ...]:
    return tuple(Example(text, (output,)) for text in inputs)


def a_task(name: str = "a", train: tuple[Example, ...] = (), test: tuple[Example, ...] = ()) -> Task:
    return Task(
        name=name,
        category="answering",
        definition="Answer the question.",
        descriptions=("answer questions",),
        train=train or examples(f"train of {name}"),
        test=test or examples(f"test of {name}"),
    )


def a_record(**changes: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "category": "answering",
        "source": ["a book"],
        "license": "CC0-1.0",
        "definition": "Answer the question.",
        "descriptions": ["answer questions", "reply to me"],
        "train": [{"input": "2 + 2", "outputs": ["4", "four"]}, {"input": "3 + 3", "outputs": ["6"]}],
        "test": [{"input": "1 + 1", "outputs": ["2"]}],
    } | changes


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_split(directory: Path, train: object, validation: object, **tasks: dict[str, Any]) -> Path:
    write_json(directory / "splits.json", {"train": train, "validation": validation})
    for name, record in tasks.items():
        write_json(directory / "tasks" / f"{name}.json", record)
    return directory


# Records


def test_records_are_frozen_and_compare_by_value() -> None:
    assert a_task() == a_task()
    with pytest.raises(AttributeError):
        a_task().name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("question", "outputs", "message"),
    [
        (" \n", ("a",), "input: .* is blank; at least 1 visible character"),
        (7, ("a",), "input: 7 is of type int; it must be a string"),
        ("a", (), "outputs: 0 entries; at least 1 is needed"),
        ("a", ["b"], "outputs: .* is of type list; it must be a tuple"),
        ("a", ("b", None), r"outputs\[1\]: None is of type NoneType"),
    ],
)
def test_an_example_is_checked(question: Any, outputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Example(question, outputs)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "/etc/passwd", "-rf", "a" * 129, "a\n", "a b", "é", None, 7],
)
def test_names_that_are_not_task_names(name: object) -> None:
    with pytest.raises(UsageError, match="must be 1 to 128 letters"):
        check_task_name(name)


@given(st.text(max_size=200))
def test_a_task_name_is_never_a_path(name: str) -> None:
    try:
        check_task_name(name)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert Path("root", name).parent == Path("root") and name not in (".", "..")


def test_a_task_needs_an_example() -> None:
    with pytest.raises(UsageError, match="task a: 0 examples"):
        replace(a_task(), train=(), test=())
    assert replace(a_task(), train=()).test and replace(a_task(), test=()).train


# Leaks


def test_a_test_input_in_the_own_train_is_an_error() -> None:
    with pytest.raises(LeakageError, match="task a: 1 train inputs are also in test, first ' the  QUESTION'"):
        a_task(train=examples("other", " the  QUESTION"), test=examples("The question", output="no"))


def test_a_held_out_task_in_training_is_an_error() -> None:
    with pytest.raises(LeakageError, match="1 held-out tasks are also in training, the first is a;"):
        check_no_leakage([a_task("a"), a_task("b")], [a_task("a")])
    with pytest.raises(LeakageError, match="1 held-out tasks"):
        Split(train=(a_task(),), validation=(a_task(),))


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_data_of_another_task_in_train_is_an_error(held_out: bool) -> None:
    leaking = a_task("a", train=examples("x", "Is it?"))
    other = a_task("b", test=examples("is  it?"))
    tasks, rest = ([leaking], [other]) if held_out else ([leaking, other], [])
    with pytest.raises(LeakageError, match=r"task a: its training example 'Is it\?' .* of task b;"):
        check_no_leakage(tasks, rest)
    cleaned = remove_leaks(tasks, rest)
    check_no_leakage(cleaned, rest)
    assert cleaned[0].train == examples("x")


def test_training_examples_of_a_held_out_task_leak_too() -> None:
    with pytest.raises(LeakageError, match="evaluation data of task b"):
        check_no_leakage([a_task("a", train=examples("x"))], [a_task("b", train=examples("x"))])


def test_shared_inputs_with_other_answers_and_shared_training_examples_do_not_leak() -> None:
    check_no_leakage([a_task("a", train=examples("x"))], [a_task("b", test=examples("x", output="no"))])
    check_no_leakage([a_task("a", train=examples("x")), a_task("b", train=examples("x"))], [])
    check_no_leakage([], [a_task("a")])


def test_any_shared_output_is_a_leak() -> None:
    several = (Example("x", ("one", "two")),)
    with pytest.raises(LeakageError):
        check_no_leakage([a_task("a", train=several)], [a_task("b", test=examples("x", output="TWO"))])


@pytest.mark.parametrize(("train", "held_out"), [("aa", "b"), ("b", "aa")])
def test_tasks_of_one_side_have_different_names(train: str, held_out: str) -> None:
    with pytest.raises(UsageError, match="2 are named a; names must differ"):
        check_no_leakage([a_task(name) for name in train], [a_task(name) for name in held_out])


short = st.text("aA bé", min_size=1, max_size=3).filter(str.strip)
some_examples = st.lists(
    st.builds(Example, short, st.lists(short, min_size=1, max_size=2).map(tuple)), max_size=8
)


@given(some_examples, some_examples)
def test_what_remove_leaks_returns_passes_the_check(train: list[Example], other: list[Example]) -> None:
    first = Task("a", "", "d", ("d",), tuple(train), examples("only a test"))
    second = replace(first, name="b", train=examples("only b"), test=(*other, *examples("b test")))
    held_out = replace(first, name="c", train=(*other, *examples("only c")), test=examples("c test"))
    for tasks, rest in (((first, second), ()), ((first,), (held_out,))):
        cleaned = remove_leaks(tasks, rest)
        check_no_leakage(cleaned, rest)
        assert set(cleaned[0].train) <= set(train)


# Division


@given(st.lists(short), st.integers(0, 5), st.one_of(st.none(), st.integers(0, 5)), st.randoms())
def test_a_division_depends_on_the_inputs_alone(
    texts: list[str], test_size: int, train_size: int | None, random: Any
) -> None:
    given_examples = examples(*texts)
    train, test = divide(given_examples, train_size=train_size, test_size=test_size)
    shuffled = random.sample(given_examples, len(given_examples))
    assert divide(shuffled, train_size=train_size, test_size=test_size) == (train, test)
    assert not {normalise(e.input) for e in train} & {normalise(e.input) for e in test}
    assert len(test) == min(test_size, len(set(texts)) // 2)
    assert train_size is None or len(train) <= train_size


def test_a_division_depends_on_the_seed_and_joins_references() -> None:
    many = examples(*(str(number) for number in range(100)))
    assert divide(many, test_size=10) != divide(many, test_size=10, seed=1)
    train, _ = divide([Example("a", ("x",)), Example("a", ("y", "x"))], test_size=0)
    assert train == (Example("a", ("x", "y")),)
    with pytest.raises(UsageError, match="test_size -1: must be at least 0"):
        divide(many, test_size=-1)


# JSON tasks, directories and splits


def test_a_json_task_is_read(tmp_path: Path) -> None:
    task = load_task_json(write_json(tmp_path / "a.json", a_record()))
    assert task == Task(
        name="a",
        category="answering",
        definition="Answer the question.",
        descriptions=("answer questions", "reply to me"),
        train=(Example("2 + 2", ("4", "four")), Example("3 + 3", ("6",))),
        test=(Example("1 + 1", ("2",)),),
        source=("a book",),
        license=("CC0-1.0",),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../a"}, "task name '../a': must be"),
        ({"name": None}, "task name None: must be"),
        ({"category": 3}, "category: 3 is of type int"),
        ({"definition": ""}, "definition: '' is blank"),
        ({"definition": ["a"]}, "definition: .* is of type list"),
        ({"descriptions": []}, "descriptions: 0 entries"),
        ({"descriptions": ["a", 1]}, r"descriptions\[1\]: 1 is of type int"),
        ({"train": {}}, "train: {} is of type dict; it must be a list"),
        ({"train": [], "test": []}, "0 examples in train and test"),
        ({"train": ["a"]}, r"train\[0\]: 'a' is not an object"),
        (
            {"train": [{"input": "a"}]},
            r"train\[0\]: the fields are input; input and outputs are needed",
        ),
        ({"test": [{"input": "a", "outputs": []}]}, r"test\[0\]: outputs: 0 entries"),
        ({"test": [{"input": "a", "outputs": [["b"]]}]}, r"test\[0\]: outputs\[0\]: \['b'\] is of type list"),
        ({"test": [{"input": 5, "outputs": ["a"]}]}, r"test\[0\]: input: 5 is of type int"),
    ],
)
def test_a_malformed_json_task_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_json(tmp_path / "a.json", a_record(**change))
    with pytest.raises(ShoalError, match=message) as caught:
        load_task_json(path)
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


@pytest.mark.parametrize("field", sorted(a_record()))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    record = a_record()
    del record[field]
    with pytest.raises(ShoalError, match=f"the field {field} is missing"):
        load_task_json(write_json(tmp_path / "a.json", record))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"name": "a"', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds a JSON list; an object"),
        (b'{"name": "\xff"}', "byte 10 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ShoalError, match=message) as caught:
        load_task_json(path)
    assert not isinstance(caught.value, UsageError)


@given(st.binary(max_size=64))
def test_no_content_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(ShoalError):
        load_task_json(path)
    with pytest.raises(ShoalError):
        load_jsonl(path, definition="d")


@pytest.mark.parametrize("missing", ["nothing.json", "."])
def test_a_missing_file_is_the_callers(tmp_path: Path, missing: str) -> None:
    with pytest.raises(UsageError, match="not a file; check the path"):
        load_task_json(tmp_path / missing)


def test_a_json_task_loses_train_examples_that_it_tests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = a_record(test=[{"input": "2  +  2", "outputs": ["4"]}])
    with caplog.at_level(logging.INFO, "shoal"):
        task = load_task_json(write_json(tmp_path / "a.json", record))
    assert task.train == (Example("3 + 3", ("6",)),)
    assert "task a: took 1 train examples out" in caplog.text


def test_a_directory_is_read_in_order(tmp_path: Path) -> None:
    for name in "cab":
        write_json(tmp_path / f"{name}.json", a_record(name=name))
    assert [task.name for task in load_task_directory(tmp_path)] == ["a", "b", "c"]
    assert [task.name for task in load_task_directory(tmp_path, ["c", "a"])] == ["c", "a"]


def test_directories_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a directory"):
        load_task_directory(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"0 \*.json files"):
        load_task_directory(tmp_path)
    write_json(tmp_path / "b.json", a_record(name="a"))
    with pytest.raises(ShoalError, match="holds the task a, not b"):
        load_task_directory(tmp_path)
    with pytest.raises(UsageError, match="named 2 times"):
        load_task_directory(tmp_path, ["a", "a"])
    with pytest.raises(UsageError, match="must be 1 to 128"):
        load_task_directory(tmp_path, ["../a"])


def test_a_split_is_read_and_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = write_split(
        tmp_path,
        ["a"],
        ["b"],
        a=a_record(),
        b=a_record(name="b", train=[{"input": "3 + 3", "outputs": ["six", "6"]}]),
    )
    with caplog.at_level(logging.INFO, "shoal"):
        split = load_split(directory)
    assert [task.name for task in split.train] == ["a"] and [task.name for task in split.validation] == ["b"]
    assert split.train[0].train == (Example("2 + 2", ("4", "four")),)
    assert "took 1 training examples of 1 tasks out" in caplog.text


def test_a_second_validation_list_is_held_out_too(tmp_path: Path) -> None:
    leaking = a_record(name="c", train=[{"input": "3 + 3", "outputs": ["six", "6"]}])
    other = a_record(name="b", train=[{"input": "9 + 9", "outputs": ["18"]}])
    directory = write_split(tmp_path, ["a"], ["b"], a=a_record(), b=other, c=leaking)
    write_json(directory / "splits.json", {"train": ["a"], "validation": ["b"], "validation_2": ["c"]})
    split = load_split(directory)
    assert [task.name for task in split.validation_2] == ["c"]
    assert [task.name for task in split.held_out] == ["b", "c"]
    assert split.train[0].train == (Example("2 + 2", ("4", "four")),)
    write_json(directory / "splits.json", {"train": ["a"], "validation": ["b"], "validation_2": ["a"]})
    with pytest.raises(LeakageError, match="1 tasks are in train and in validation_2, the first is 'a'"):
        load_split(directory)


@pytest.mark.parametrize(
    ("train", "validation", "error", "message"),
    [
        (["a"], ["a"], LeakageError, "1 tasks are in train and in validation, the first is 'a'"),
        (["../splits"], ["a"], ShoalError, "task name '../splits': must be"),
        (["/a"], ["a"], ShoalError, "task name '/a': must be"),
        (["b"], ["a"], ShoalError, "b.json: not a file"),
        (["b", "b"], ["a"], ShoalError, "named 2 times"),
        (["outside"], ["a"], ShoalError, "outside the task directory"),
        ([], ["a"], ShoalError, "train: 0 entries"),
        ([1], ["a"], ShoalError, r"train\[0\]: 1 is of type int"),
        ({}, ["a"], ShoalError, "train.*type dict"),
    ],
)
def test_malformed_splits(
    tmp_path: Path, train: object, validation: object, error: type[ShoalError], message: str
) -> None:
    directory = write_split(tmp_path / "data", train, validation, a=a_record())
    write_json(tmp_path / "outside.json", a_record(name="outside"))
    (directory / "tasks" / "outside.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(error, match=message) as caught:
        load_split(directory)
    assert not isinstance(caught.value, UsageError)


def test_a_split_needs_its_file_and_fields(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="splits.json: not a file"):
        load_split(tmp_path)
    write_json(tmp_path / "splits.json", {"train": ["a"]})
    with pytest.raises(ShoalError, match="the field validation is missing"):
        load_split(tmp_path)


def test_the_real_data_cannot_leak(shared_data: Path) -> None:
    split = load_split(shared_data)
    assert (len(split.train), len(split.validation), len(split.validation_2)) == (322, 32, 14)
    raw = load_task_directory(shared_data / "tasks", [task.name for task in split.train])
    with pytest.raises(LeakageError):
        check_no_leakage(raw, split.held_out)
    removed = sum(len(task.train) for task in raw) - sum(len(task.train) for task in split.train)
    assert 0 < removed < 300
    assert all(task.train and len(task.test) == 60 for task in (*split.train, *split.held_out))


# Super-NaturalInstructions


def super_natural_record(**changes: Any) -> dict[str, Any]:
    return {
        "Contributors": ["someone"],
        "Source": ["a_corpus"],
        "URL": ["https://example.org"],
        "Categories": ["Question Answering", "Misc."],
        "Definition": ["Answer the question."],
        "Input_language": ["English"],
        "Positive Examples": [{"input": "p", "output": "q", "explanation": "r"}],
        "Negative Examples": [],
        "Instances": [{"id": f"t-{n}", "input": f"What is {n}?", "output": [str(n)]} for n in range(20)]
        + [{"id": "t-blank", "input": "What is this?", "output": [""]}],
        "Instance License": ["Apache 2.0"],
    } | changes


def test_a_super_natural_instructions_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_json(tmp_path / "task001_questions.json", super_natural_record())
    with caplog.at_level(logging.INFO, "shoal"):
        task = load_super_natural_instructions(path, train_size=10, test_size=5)
    assert (task.name, task.category) == ("task001_questions", "Question Answering")
    assert task.descriptions == (task.definition,) == ("Answer the question.",)
    assert (task.source, task.license) == (("a_corpus", "https://example.org"), ("Apache 2.0",))
    assert (len(task.train), len(task.test)) == (10, 5)
    assert not set(task.train) & set(task.test)
    assert all(example.input == f"What is {example.outputs[0]}?" for example in task.train + task.test)
    assert "left 1 instances out" in caplog.text
    assert load_super_natural_instructions(path, train_size=10, test_size=5) == task
    assert load_super_natural_instructions(path, train_size=10, test_size=5, seed=1).test != task.test
    assert load_super_natural_instructions(path, descriptions=["reply"]).descriptions == ("reply",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Definition": []}, "Definition: '' is blank"),
        ({"Definition": [3]}, r"Definition\[0\]: 3 is of type int"),
        ({"Instances": {}}, "Instances: {} is of type dict"),
        ({"Instances": []}, "Instances: 0 of 0"),
        (
            {"Instances": [{"id": "1", "input": "a"}]},
            r"Instances\[0\]: .* is not an object with input and output",
        ),
        (
            {"Instances": [{"input": "a", "output": [None]}]},
            r"Instances\[0\].output\[0\]: None is of type NoneType",
        ),
    ],
)
def test_malformed_super_natural_instructions(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError, match=message) as caught:
        load_super_natural_instructions(write_json(tmp_path / "t.json", super_natural_record(**change)))
    assert not isinstance(caught.value, UsageError)


def test_descriptions_are_a_list(tmp_path: Path) -> None:
    path = write_json(tmp_path / "t.json", super_natural_record())
    with pytest.raises(UsageError, match="descriptions: 'reply' is one string"):
        load_super_natural_instructions(path, descriptions="reply")


# JSONL


def test_jsonl_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    lines = ['{"input": "1\u2028+ 1", "output": "2"}', "", '{"input": "b", "outputs": ["x", "y"], "id": 7}\r']
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8", newline="")
    task = load_jsonl(path, definition="Add.", test_size=0)
    assert (task.name, task.definition, task.descriptions) == ("sums", "Add.", ("Add.",))
    assert set(task.train) == {Example("1\u2028+ 1", ("2",)), Example("b", ("x", "y"))}
    assert task.test == () and task.source == ("sums.jsonl",)


def test_jsonl_fields_and_names_are_arguments(tmp_path: Path) -> None:
    path = tmp_path / "my data.jsonl"
    path.write_text('{"q": "a", "a": "x"}\n{"q": "b", "a": ["y"]}\n')
    task = load_jsonl(path, definition="d", name="mine", input_field="q", output_field="a", test_size=1)
    assert task.name == "mine" and len(task.train) == len(task.test) == 1
    with pytest.raises(UsageError, match="task name 'my data'"):
        load_jsonl(path, definition="d", input_field="q", output_field="a")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "a"', r"line 2: .* is not JSON \(Expecting"),
        ("[]", r"line 2: \[\] is not an object"),
        ('{"input": "a"}', "line 2: the fields are input; input and one of output, outputs are needed"),
        ('{"input": "a", "output": "b", "outputs": ["b"]}', "line 2: the fields are"),
        ('{"input": "a", "output": 4}', r"line 2: output\[0\]: 4 is of type int"),
        ('{"input": "", "output": "b"}', "line 2: input: '' is blank"),
    ],
)
def test_a_malformed_line_is_numbered(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "good", "output": "line"}\n' + line + "\n")
    with pytest.raises(ShoalError, match=message) as caught:
        load_jsonl(path, definition="d")
    assert not isinstance(caught.value, UsageError)


def test_jsonl_without_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ShoalError, match="0 examples"):
        load_jsonl(path, definition="d")


# Hub data sets


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load_folder(folder: Path, **changes: Any) -> Task:
    arguments = {"name": "reviews", "definition": "Judge.", "input_column": "text", "output_column": "label"}
    return load_hub_dataset(str(folder), **(arguments | changes))


def test_a_local_folder_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"review {n}", "label": "good" if n % 2 else "bad"} for n in range(30)
    ]
    write_jsonl(tmp_path / "train.jsonl", [*rows, {"text": None, "label": "good"}])
    write_jsonl(
        tmp_path / "test.jsonl", [{"text": "Review 3", "label": "good"}, {"text": "new", "label": "bad"}]
    )
    with caplog.at_level(logging.INFO, "shoal"):
        task = load_folder(tmp_path, test_size=10, train_size=15)
    assert (len(task.train), len(task.test)) == (15, 10) and set(task.descriptions) == {"Judge."}
    assert "left 1 of 31 rows out" in caplog.text
    assert load_folder(tmp_path, test_size=10, train_size=15) == task

    parts = load_folder(tmp_path, test_split="test")
    assert set(parts.test) == {Example("Review 3", ("good",)), Example("new", ("bad",))}
    assert len(parts.train) == 29 and Example("review 3", ("good",)) not in parts.train

    few = load_folder(tmp_path, max_rows=4, test_size=0)
    assert {example.input for example in few.train} == {f"review {n}" for n in range(4)}


def test_class_numbers_become_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    columns = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    assert set(load_folder(tmp_path, test_size=0).train) == {Example("a", ("no",)), Example("b", ("yes",))}
    renamed = load_folder(tmp_path, test_size=0, label_names=["negative", "positive"])
    assert {example.outputs for example in renamed.train} == {("negative",), ("positive",)}
    with pytest.raises(UsageError, match="class 1 has no name"):
        load_folder(tmp_path, label_names=["negative"])


def test_lists_of_answers_are_outputs(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}])
    assert load_folder(tmp_path, test_size=0).train == (Example("a", ("x", "y")),)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"input_column": "texts"},
            UsageError,
            "column 'texts': split train has text, label, number; name one",
        ),
        ({"output_column": "number"}, ShoalError, r"split train row 1: number\[0\]: 1 is of type int"),
        ({"train_split": "dev"}, ShoalError, "split dev: cannot be opened"),
        ({"config": "other"}, ShoalError, "cannot be opened"),
        ({"max_rows": 0}, UsageError, "max_rows 0: must be at least 1"),
        ({"name": "../a"}, UsageError, "task name"),
    ],
)
def test_folders_read_wrongly(
    tmp_path: Path, changes: dict[str, Any], error: type[ShoalError], message: str
) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": "b", "number": 1}])
    with pytest.raises(error, match=message) as caught:
        load_folder(tmp_path, **changes)
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="cannot be opened"):
        load_folder(tmp_path / "nothing")
    with pytest.raises(ShoalError, match="cannot be opened"):
        load_folder(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "la')
    with pytest.raises(ShoalError, match="split train: cannot be"):
        load_folder(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [{"text": "", "label": "b"}])
    with pytest.raises(ShoalError, match="0 of 1 rows have an input and an output"):
        load_folder(tmp_path)


def test_a_data_set_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ShoalError, match="cannot be opened"):
        load_folder(tmp_path)
    assert not (tmp_path / "ran").exists()


# reasoning-gym


@pytest.mark.parametrize("generator", ["chain_sum", "word_sorting"])
def test_puzzles_are_generated(generator: str) -> None:
    task = load_reasoning_gym(generator, size=30, test_size=10)
    assert task.name == generator and task.definition.startswith("Generates")
    assert len(task.test) == 10 and 15 <= len(task.train) <= 20
    assert load_reasoning_gym(generator, size=30, test_size=10) == task
    assert load_reasoning_gym(generator, size=30, test_size=10, seed=1).test != task.test


def test_generators_take_their_own_config() -> None:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = load_reasoning_gym(
        "chain_sum", name="sums", definition="Add.", descriptions=["add"], size=20, **config
    )
    assert (task.name, task.definition, task.descriptions) == ("sums", "Add.", ("add",))
    assert all(len(example.outputs[0].lstrip("-")) <= 2 for example in task.train)  # of two digits at most


@pytest.mark.parametrize(
    ("generator", "config", "message"),
    [
        ("chain_sums", {}, "'chain_sums': not one of .* did you mean chain_sum?"),
        ("!", {}, "not one of .*DATASETS lists them"),
        ("chain_sum", {"terms": 2}, "refuses {'terms': 2}"),
        ("chain_sum", {"min_terms": 0}, "refuses {'min_terms': 0}"),
        ("chain_sum", {"size": 0}, "size 0: must be at least 1"),
        ("puzzle24", {"size": 1}, "documents 0 words; give the task's definition"),
        ("graph_color", {"size": 2}, "0 of 2 puzzles come with an answer"),
    ],
)
def test_generators_that_cannot_be_used(generator: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_reasoning_gym(generator, **config)
