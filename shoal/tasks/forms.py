"""Solved examples in the forms that people have them: which columns are the request, and which the answer.

One literal table names the forms. A column of text that no form takes is an error unless it is named, since
a dropped instruction makes every example wrong in silence. Knows rows, nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from shoal.errors import ShoalError, UsageError, shorten
from shoal.tasks.records import Example
from shoal.tasks.texts import has_text, joined
from shoal.tasks.turns import are_turns, of_turns, turns_of

OUTPUT_FIELDS = ("output", "outputs")


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        place: `line 3`, `entry 3` or `row 3`, counted from 1.
        values: by column; of strings alone in CSV and TSV.
    """

    place: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """The columns of a form of solved examples.

    Attributes:
        name: for people.
        inputs: columns of the request, in the order in which they are joined.
        outputs: columns of the answer, of which a row has one.
        optional: those of `inputs` that a row may lack or leave empty.
        turns: the one input is a conversation, whose last turn is the answer where `outputs` is empty.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    turns: bool = False


_ANSWERS = ("output", "outputs", "response", "completion", "answer")
# The first of those that take the most columns is used.
FORMS = (
    Form("input and output", ("input",), OUTPUT_FIELDS),
    Form("Alpaca", ("system", "instruction", "input"), _ANSWERS, ("system", "input")),
    Form("Dolly", ("instruction", "context"), ("response",), ("context",)),
    Form("messages", ("system", "messages"), (), ("system",), turns=True),
    Form("conversations", ("system", "conversations"), (), ("system",), turns=True),
    Form("conversation", ("system", "conversation"), (), ("system",), turns=True),
    Form(
        "prompt and completion",
        ("system", "prompt"),
        ("completion", "response", "output", "answer"),
        ("system",),
    ),
    Form("question and answer", ("context", "question"), ("answer", "answers", "response"), ("context",)),
    Form("query and response", ("query",), ("response", "answer")),
    Form("text and label", ("text",), ("label", "labels", "label_text", "target", "output")),
    Form("sentence and label", ("sentence",), ("label", "label_text")),
    Form("source and target", ("source",), ("target",)),
    Form("input and target", ("input",), ("target", "label", "response", "answer", "completion")),
    Form("inputs and targets", ("inputs",), ("targets",)),
    Form("text and summary", ("text",), ("summary",)),
    Form("article and summary", ("article",), ("summary", "highlights")),
    Form("document and summary", ("document",), ("summary",)),
    Form("dialogue and summary", ("dialogue",), ("summary",)),
)


@dataclass(frozen=True)
class Columns:
    """Columns that somebody has named.

    Attributes:
        input: of the request, joined in this order; none for those of a form.
        output: of the answer; None for that of a form.
        ignored: columns of text, and keys of turns, that are left out on purpose.
    """

    input: tuple[str, ...] = ()
    output: str | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Understood:
    """Solved examples, and how they were read.

    Attributes:
        form: name of the form.
        inputs: columns of the request.
        output: column of the answer; None where it is the last turn of a conversation.
        left_out: columns that are no part of an example.
        rows: read.
        skipped: of those, without a request or an answer.
        examples: rows of one request and one remainder, without the ignored columns, are one example, for
            which each answer is right.
    """

    form: str
    inputs: tuple[str, ...]
    output: str | None
    left_out: tuple[str, ...]
    rows: int
    skipped: int
    examples: tuple[Example, ...]


def understand(
    rows: Iterable[Row],
    *,
    columns: Columns | None = None,
    definition: str | None = None,
    source: object = "the examples",
    skip_empty: bool = False,
) -> Understood:
    """The examples in some rows.

    Args:
        rows: at least one.
        columns: that somebody has named.
        definition: the instruction that they follow: where a row's own instruction is this text, it is no
            part of the request, since an adapter replaces it.
        source: of the rows, for messages.
        skip_empty: leave out rows without a request or an answer, rather than refuse them.

    Raises:
        UsageError: a named column is not there.
        ShoalError: no form has these columns, a text would be dropped, or a row is wrong (its place is
            given).
    """
    rows, asked = list(rows), columns or Columns()
    present = dict.fromkeys(name for row in rows for name in row.values)
    form, names = _form_of(present, asked, source, rows[0].place, _keys_of_turns(rows, asked.ignored))
    inputs = tuple(names[column] for column in form.inputs if column in names)
    outputs = tuple(names[column] for column in form.outputs if column in names)
    left_out = tuple(name for name in present if name not in (*inputs, *outputs))
    apart = tuple(name for name in left_out if name not in asked.ignored)
    if not (asked.input and asked.output):
        _check_left_out(rows, apart, source)
    merged: dict[object, tuple[str, dict[str, None]]] = {}
    skipped = 0
    for row in rows:
        if skip_empty and not (_filled(row, inputs, form.optional) and _filled(row, outputs)):
            skipped += 1
            continue
        try:
            request, answers = _example(row.values, form, names, definition, asked.ignored)
        except UsageError as error:
            raise ShoalError(f"{source} {row.place}: {error}; repair the {row.place.split()[0]}") from None
        rest = repr([(name, row.values.get(name)) for name in apart if has_text(row.values.get(name))])
        merged.setdefault((request, rest), (request, {}))[1].update(dict.fromkeys(answers))
    examples = tuple(Example(request, tuple(answers)) for request, answers in merged.values())
    output = outputs[0] if outputs else None
    return Understood(form.name, inputs, output, left_out, len(rows), skipped, examples)


def _filled(row: Row, names: Sequence[str], optional: Sequence[str] = ()) -> bool:
    """True where every column that must have a value has one; an answer may be in any of its columns."""
    values = [row.values.get(name) for name in names if name not in optional]
    return not values or any(
        bool(value.strip()) if isinstance(value, str) else value not in (None, [], {}) for value in values
    )


def _form_of(
    present: Mapping[str, None], asked: Columns, source: object, place: str, in_turns: Set[str]
) -> tuple[Form, dict[str, str]]:
    """The form, and its columns as the rows name them, in any case."""
    for name in (*asked.input, *([asked.output] if asked.output else []), *asked.ignored):
        if name not in present and not (name in asked.ignored and name in in_turns):
            raise UsageError(f"column {shorten(name)}: {source} has {', '.join(present)}; name one of these")
    names = {name.strip().casefold(): name for name in present if name not in asked.ignored}
    if asked.input and asked.output:
        own = {name: name for name in (*asked.input, asked.output)}
        return Form("the named columns", asked.input, (asked.output,)), own
    found, most = None, 0
    for form in FORMS:
        if asked.input or asked.output:
            form = Form(
                form.name, asked.input or form.inputs, (asked.output,) if asked.output else form.outputs
            )
            names |= {name: name for name in (*form.inputs, *form.outputs) if name in present}
        required = [name for name in form.inputs if name not in form.optional]
        has_answer = form.turns or any(name in names for name in form.outputs)
        taken = sum(name in names for name in (*form.inputs, *form.outputs))
        if has_answer and all(name in names for name in required) and taken > most:
            found, most = form, taken
    if found is None:
        raise ShoalError(
            f"{source} {place}: the columns are {', '.join(present)}; input and one of "
            f"{', '.join(OUTPUT_FIELDS)} are needed, or another known pair; rename them, or name them with "
            "--input-column and --output-column"
        )
    return found, names


def _keys_of_turns(rows: Sequence[Row], wanted: Sequence[str]) -> Set[str]:
    """Keys of the turns in some rows, where any are wanted."""
    lists = [value for row in rows if wanted for value in row.values.values() if are_turns(value)]
    return {key for turns in lists for turn in turns for key in turn}


def _check_left_out(rows: Sequence[Row], left_out: Sequence[str], source: object) -> None:
    for name in left_out:
        wrong = next((row for row in rows if row.values.get(name) is False), None)
        if wrong is not None and name.strip().casefold() in ("label", "labels"):
            raise ShoalError(
                f"{source} {wrong.place}: {name} is false, which says that the answer is wrong; keep the "
                f"rows whose answers are right, or name it with --ignore-column {name}"
            )
        row = next((row for row in rows if has_text(row.values.get(name))), None)
        if row is not None:
            raise ShoalError(
                f"{source} {row.place}: the text of column {shorten(name)}, {shorten(row.values[name], 30)}, "
                f"would be dropped; name it with --ignore-column {name}, or name the columns to use with "
                "--input-column and --output-column"
            )


def _example(
    row: Mapping[str, Any],
    form: Form,
    names: Mapping[str, str],
    definition: str | None,
    ignored: Sequence[str],
) -> tuple[str, tuple[str, ...]]:
    """(request, right answers) of a row."""
    outputs = [names[name] for name in form.outputs if name in names and names[name] in row]
    given = [name for name in outputs if row[name] not in (None, "")]
    if len(given) > 1:  # a number beside its word says the same
        given = [name for name in given if has_text(row[name])] or given
    parts = {name: row.get(names[name]) if name in names else None for name in form.inputs}
    talk_part = next((name for name, value in parts.items() if are_turns(value)), None)
    talked = form.turns or talk_part is not None
    if outputs and not given and not talked:
        raise UsageError(f"{outputs[0]} is empty; write the right answer")
    if len(given) > 1 or not (given or talked):
        wanted = f"{', '.join(form.inputs)} and one of {', '.join(form.outputs)}"
        raise UsageError(f"the fields are {', '.join(row)}; {wanted} are needed, rename them")
    if talked:
        talk = turns_of(parts, talk_part or form.inputs[-1])
        answers = None
        if given and are_turns(row[given[0]]):
            talk += row[given[0]]
        elif given:
            answers = _answers(row[given[0]], given[0])
        request, answers = of_turns(talk, answers, definition, ignored)
    else:
        texts = [_text(parts[name], name, optional=name in form.optional) for name in form.inputs]
        request = joined(texts, definition)
        answers = _answers(row[given[0]], given[0])
    Example(request, answers)  # checks both
    return request, answers


def _text(value: object, name: str, *, optional: bool) -> str:
    if value is None and optional:
        return ""
    if value is None:
        raise UsageError(f"{name} is missing")
    if not isinstance(value, str):
        raise UsageError(
            f"{name}: {shorten(value)} is of type {type(value).__name__}; it must be a string, quote it"
        )
    return value


def _answers(value: object, name: str) -> tuple[str, ...]:
    """A string, a list of them, or SQuAD's object with a list under `text`."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    values = value if isinstance(value, list) else [value]
    for index, each in enumerate(values):
        if not isinstance(each, str):
            raise UsageError(
                f"{name}[{index}]: {shorten(each)} is of type {type(each).__name__}; it must be a string, "
                "quote it"
            )
    return tuple(dict.fromkeys(values))
