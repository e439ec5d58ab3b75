"""Right answers, found a second way: every check recomputes the answer from the input alone."""

from __future__ import annotations

import csv
import datetime
import json
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from shoal.procedural.catalogue import FAMILIES, procedural_tasks

MONTHS = "January February March April May June July August September October November December".split()


def items(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def pieces(text: str) -> dict[str, str]:
    """thing: price pairs."""
    return dict(re.findall(r"(\w+): (\d+)", text))


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def record(text: str) -> list[str]:
    """Name, age, job and city."""
    return text.split(", ")


def xml(answer: str) -> list[str | None]:
    return [child.text for child in ElementTree.fromstring(f"<all>{answer}</all>")]


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9'-]+", text)


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "first-word": lambda x, y: x.startswith(y) and y == words(x)[0],
    "second-word": lambda x, y: words(x)[1] == y,
    "last-word": lambda x, y: words(x)[-1] == y,
    "upper-case": lambda x, y: y == x.upper(),
    "lower-case": lambda x, y: y.casefold() == x.casefold() and y.islower(),
    "snake-case": lambda x, y: y.split("_") == [w.lower() for w in words(x)],
    "hyphen-slug": lambda x, y: y.split("-") == [w.lower() for w in words(x)],
    "exclaim": lambda x, y: y[:-3] == x[:-1] and y.endswith("!!!"),
    "drop-first-word": lambda x, y: f"{x.split()[0]} {y}" == x,
    "sentence-initials": lambda x, y: y == "".join(w[0] for w in words(x)).upper(),
    "list-first-item": lambda x, y: items(x)[0] == y,
    "list-last-item": lambda x, y: items(x)[-1] == y,
    "list-length": lambda x, y: x.count(",") + 1 == int(y),
    "list-reverse": lambda x, y: items(y)[::-1] == items(x),
    "list-sort": lambda x, y: sorted(items(x)) == items(y),
    "list-with-and": lambda x, y: items(y.replace(" and ", ", ")) == items(x),
    "list-pipes": lambda x, y: y.split(" | ") == items(x),
    "list-swap-ends": lambda x, y: items(y)[::-1][:1] + items(y)[1:-1] + items(y)[:1] == items(x),
    "list-drop-last": lambda x, y: f"{y}, {items(x)[-1]}" == x,
    "list-numbered": lambda x, y: [line.split(". ")[1] for line in y.splitlines()] == items(x),
    "list-bullets": lambda x, y: [line.removeprefix("- ") for line in y.splitlines()] == items(x),
    "numbers-largest": lambda x, y: max(numbers(x)) == int(y),
    "numbers-smallest": lambda x, y: min(numbers(x)) == int(y),
    "numbers-ascending": lambda x, y: sorted(numbers(x)) == numbers(y),
    "numbers-descending": lambda x, y: sorted(numbers(x)) == numbers(y)[::-1],
    "numbers-even-only": lambda x, y: [n for n in numbers(x) if n % 2 == 0] == numbers(y),
    "noun-first-letter": lambda x, y: x[0].upper() == y,
    "noun-twice": lambda x, y: y.split("-") == [x, x],
    "noun-article": lambda x, y: y == f"{'an' if x[0] in 'aeiou' else 'a'} {x}",
    "noun-vowel-start": lambda x, y: (x[0] in "aeiou") == (y == "vowel"),
    "date-long": lambda x, y: y == f"{day(x).day} {MONTHS[day(x).month - 1]} {day(x).year}",
    "date-american": lambda x, y: y == f"{MONTHS[day(x).month - 1]} {day(x).day}, {day(x).year}",
    "date-slashes": lambda x, y: y == day(x).strftime("%d/%m/%Y"),
    "date-month-name": lambda x, y: MONTHS.index(y) + 1 == day(x).month,
    "date-next-day": lambda x, y: (day(y) - day(x)).days == 1,
    "date-decade": lambda x, y: y == f"{x[:3]}0s",
    "time-hour-later": lambda x, y: (int(y[:2]) - int(x[:2])) % 24 == 1 and x[2:] == y[2:],
    "metres-to-centimetres": lambda x, y: numbers(x)[0] * 100 == numbers(y)[0] and y.endswith(" cm"),
    "metres-to-millimetres": lambda x, y: numbers(x)[0] * 1000 == numbers(y)[0] and y.endswith(" mm"),
    "euros-to-cents": lambda x, y: numbers(x)[0] * 100 == numbers(y)[0],
    "duration-minutes": lambda x, y: numbers(x)[0] * 60 + numbers(x)[1] == numbers(y)[0],
    "wrap-b-tag": lambda x, y: xml(y) == [x],
    "sentence-json": lambda x, y: json.loads(y) == {"text": x},
    "list-json": lambda x, y: json.loads(y) == items(x),
    "list-json-summary": lambda x, y: json.loads(y) == {"first": items(x)[0], "count": len(items(x))},
    "list-html": lambda x, y: xml(y) == items(x),
    "list-hashtags": lambda x, y: [tag[1:] for tag in y.split()] == items(x),
    "record-json": lambda x, y: [str(v) for v in json.loads(y).values()] == record(x),
    "record-xml": lambda x, y: xml(y) == record(x),
    "record-key-value": lambda x, y: [part.split("=")[1] for part in y.split("; ")] == record(x),
    "record-semicolons": lambda x, y: y.split(";") == record(x),
    "record-age": lambda x, y: record(x)[1] == y,
    "record-job": lambda x, y: record(x)[2] == y,
    "record-city": lambda x, y: record(x)[3] == y,
    "record-surname-first": lambda x, y: y.split(", ")[::-1] == record(x)[0].split(" "),
    "pair-sum": lambda x, y: sum(numbers(x)) == int(y),
    "pair-difference": lambda x, y: abs(numbers(x)[0] - numbers(x)[1]) == int(y),
    "pair-larger": lambda x, y: max(numbers(x)) == int(y),
    "pair-equation": lambda x, y: numbers(y) == [*numbers(x), sum(numbers(x))],
    "number-plus-one": lambda x, y: int(y) - int(x) == 1,
    "number-double": lambda x, y: int(y) / int(x) == 2,
    "number-reverse": lambda x, y: y[::-1] == x,
    "number-padded": lambda x, y: int(y) == int(x) and len(y) == 5,
    "number-parity": lambda x, y: (int(x) % 2 == 1) == (y == "odd"),
    "prices-cheapest": lambda x, y: min(pieces(x).values(), key=int) == pieces(x)[y],
    "prices-dearest": lambda x, y: max(pieces(x).values(), key=int) == pieces(x)[y],
    "prices-csv": lambda x, y: dict(csv.reader(y.splitlines())) == pieces(x),
    "price-of": lambda x, y: pieces(x).get(x.split(" | ")[1], "not found") == y,
    "is-listed": lambda x, y: (x.split(" | ")[1] in pieces(x)) == (y == "yes"),
    "extract-email": lambda x, y: y in x and re.fullmatch(r"\S+@\S+\.\w+", y) is not None,
    "extract-phone": lambda x, y: y in x and re.fullmatch(r"555-\d{4}", y) is not None,
    "extract-price": lambda x, y: re.findall(r"\$\d+\.\d\d", x) == [y],
    "extract-quoted": lambda x, y: re.findall(r'"([^"]*)"', x) == [y],
    "extract-hashtag": lambda x, y: re.findall(r"#\w+", x) == [y],
    "extract-contact-json": lambda x, y: all(v in x for v in json.loads(y).values()),
    "sentence-digit": lambda x, y: any(c.isdigit() for c in x) == (y == "yes"),
    "numbers-sorted": lambda x, y: (sorted(numbers(x)) == numbers(x)) == (y == "sorted"),
    "comment-out": lambda x, y: y == f"# {x}",
    "assigned-name": lambda x, y: y.isidentifier() and x.startswith(f"{y} = "),
}


@pytest.mark.parametrize("name", CHECKS)
def test_answers_are_right(name: str) -> None:
    (task,) = procedural_tasks([name], size=80)
    wrong = [e for e in (*task.train, *task.test) if not CHECKS[name](e.input, e.outputs[0])]
    assert not wrong, wrong[:3]


def test_expressions_have_their_values() -> None:
    (task,) = procedural_tasks(["expression-value"], size=120)
    for e in task.train:
        value = eval(e.input, {"__builtins__": {"len": len, "max": max, "min": min, "sum": sum}})
        assert e.outputs[0] in (str(value), repr(value)), e


def test_lines_fail_as_named() -> None:
    (task,) = procedural_tasks(["error-name"], size=120)
    for e in task.train:
        try:
            eval(e.input, {"__builtins__": {"len": len, "int": int, "float": float}})
        except Exception as error:
            assert type(error).__name__ == e.outputs[0], e
        else:
            raise AssertionError(f"{e.input} does not fail")


def test_closed_label_sets_are_stated() -> None:
    """Where a family has few answers, its definition names them all."""
    names = [f.name for f in FAMILIES if f.category == "classification"]
    assert len(names) >= 15
    for task in procedural_tasks(names, size=120):
        answers = {e.outputs[0] for e in task.train}
        assert all(answer.casefold() in task.definition.casefold() for answer in answers), task.name
