"""Right answers, found a second way: every check recomputes the answer from the input alone."""

from __future__ import annotations

import ast
import csv
import datetime
import itertools
import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from xml.etree import ElementTree

import pytest

from shoal.tasks.procedural import vocabulary
from shoal.tasks.procedural.catalogue import FAMILIES, procedural_tasks
from shoal.tasks.procedural.family import Family
from shoal.tasks.procedural.words import plural

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


SEASONS = 2 * ["winter"] + 3 * ["spring"] + 3 * ["summer"] + 3 * ["autumn"] + ["winter"]
NOUN_LISTS = {"animal": "ANIMALS", "food": "FOODS", "object": "OBJECTS", "job": "JOBS", "place": "SPOTS"}
ORDINAL_ENDINGS = ["th", "st", "nd", "rd", *(6 * ["th"])]
NUMBER_WORDS = {
    word: value
    for value, word in (
        *enumerate(
            "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen".split(),
            1,
        ),
        *zip(
            range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split(), strict=True
        ),
    )
}
COLOUR_WORDS = "red|blue|green|yellow|orange|black|white|purple|brown|gr[ea]y|pink|orange|gold|silver|violet"
ANIMAL_WORDS = {*vocabulary.ANIMALS, "bird", "birds", "animal", "animals", "mouse", "mice", "chicken", "fish"}


def tagged(text: str) -> tuple[str, dict[str, str], str | None]:
    """Name, attributes and content of an element."""
    element = ElementTree.fromstring(text)
    return element.tag, dict(element.attrib), element.text


def price_digits(text: str) -> str:
    """The digits of a price; one more than 9 and below 20 counts as one digit."""
    digits = text.split()[0]
    return digits[1:] if 9 < int(digits) < 20 else digits


def parses(line: str) -> bool:
    try:
        ast.parse(f"{line} pass" if line.endswith(":") else line)
    except SyntaxError:
        return False
    return True


def missing(line: str) -> str:
    """What a line of Python lacks, by counting."""
    if line.count('"') % 2:
        return "quote"
    return "parenthesis" if line.count("(") != line.count(")") else "colon"


def error_of(line: str) -> str:
    try:
        eval(line, {})
    except Exception as error:
        return type(error).__name__
    return "none"


def roman_value(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in text]
    return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))


def code(text: str) -> list[str]:
    """The letters after the bar."""
    return text.partition(" | ")[2].split()


def chosen_entries(text: str) -> list[str]:
    """The entries of a code table for the letters after the bar, in the order of the letters."""
    table = text.partition(" | ")[0].split()
    return [entry for letter in code(text) for entry in table if entry[0] == letter]


def is_name(text: str) -> bool:
    first, surname = text.split(" ")
    return first in vocabulary.FIRST_NAMES and surname in vocabulary.SURNAMES


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
    "assigned-value": lambda x, y: x.partition(" = ")[2] == y and ast.parse(y, mode="eval") is not None,
    "constant-name": lambda x, y: x.partition(" = ")[0].upper() + " = " + x.partition(" = ")[2] == y,
    "expression-print": lambda x, y: y.removeprefix("print(").removesuffix(")") in (x, x[:-1]),
    "expression-assign": lambda x, y: y.split(" = ", 1) == ["result", x],
    "missing-sign": lambda x, y: missing(x) == y,
    "repair-line": lambda x, y: parses(y) and not parses(x) and len(y) == len(x) + 1,
    "title-case": lambda x, y: y.lower() == x.lower() and all(not w[0].islower() for w in y.split()),
    "hide-names": lambda x, y: re.fullmatch(re.escape(y).replace(r"\[NAME\]", "[A-Z][a-z]+"), x) is not None,
    "the-to-this": lambda x, y: "the" not in words(y.lower()) and len(words(x)) == len(words(y)),
    "list-arrows": lambda x, y: y.split(" -> ") == items(x),
    "list-quoted": lambda x, y: list(ast.literal_eval(f"[{y}]")) == items(x),
    "noun-question": lambda x, y: re.fullmatch(r"Where is the (\w+)\?", y)[1] == x,  # type: ignore[index]
    "noun-category": lambda x, y: x in getattr(vocabulary, NOUN_LISTS[y]),
    "date-dots": lambda x, y: datetime.date(*numbers(y)[::-1]) == day(x) and ".0" not in f".{y}",
    "date-year": lambda x, y: day(x).year == int(y),
    "date-season": lambda x, y: SEASONS[day(x).month - 1] == y,
    "time-twelve-hour": lambda x, y: datetime.datetime.strptime(y, "%I:%M %p").strftime("%H:%M") == x,
    "time-minutes": lambda x, y: len(y) == 2 and int(y) == numbers(x)[1],
    "time-part-of-day": lambda x, y: ["night", "morning", "afternoon", "evening"].index(y) == int(x[:2]) // 6,
    "metres-spelled-out": lambda x, y: numbers(x) == numbers(y) != [1] and y.split()[1] == "metres",
    "length-number-only": lambda x, y: f"{y} m" == x,
    "euros-symbol": lambda x, y: y[0] == "\u20ac" and Fraction(y[1:]) == Fraction(x.split()[0]),
    "euros-code": lambda x, y: y.split() == ["EUR", x.split()[0]],
    "price-class": lambda x, y: {1: "cheap", 2: "medium", 3: "expensive"}[len(price_digits(x))] == y,
    "duration-clock": lambda x, y: y == f"{numbers(x)[0]}:{str(numbers(x)[1]).rjust(2, '0')}",
    "duration-spelled-out": lambda x, y: numbers(x) == numbers(y) and (" hour " in y) == x.startswith("1 h"),
    "wrap-p-tag": lambda x, y: tagged(y) == ("p", {}, x),
    "wrap-answer-tag": lambda x, y: tagged(y) == ("answer", {}, x),
    "xml-sentence": lambda x, y: tagged(y) == ("sentence", {}, x),
    "html-paragraph-class": lambda x, y: tagged(y) == ("p", {"class": "note"}, x),
    "wrap-square-brackets": lambda x, y: (y[0], y[1:-1], y[-1]) == ("[", x, "]"),
    "wrap-quotes": lambda x, y: json.loads(y) == x,
    "markdown-bold": lambda x, y: y.split("**") == ["", x, ""],
    "markdown-quote": lambda x, y: y.partition("> ")[::2] == ("", x),
    "markdown-heading": lambda x, y: y.partition("## ")[::2] == ("", x[:-1]),
    "note-prefix": lambda x, y: y.partition("NOTE: ")[::2] == ("", x),
    "over-suffix": lambda x, y: y.rpartition(" ")[::2] == (x, "OVER"),
    "sentence-json-first-last": lambda x, y: json.loads(y) == {"first": words(x)[0], "last": words(x)[-1]},
    "sentence-log-line": lambda x, y: y == "[INFO] " + x.lower()[:-1],
    "record-lines": lambda x, y: re.findall(r"(?m)^(?:Name|Age|Job|City): (.+)$", y) == record(x),
    "record-table-row": lambda x, y: [cell.strip() for cell in y.split("|")] == ["", *record(x), ""],
    "record-sentence": lambda x, y: (
        list(re.split(r" is an? | from ", y[:-1])) == [*record(x)[:1], *record(x)[2:]]
    ),
    "record-initials": lambda x, y: re.sub(r"[^A-Z]", "", record(x)[0]) == y.replace(".", "") and len(y) == 4,
    "record-age-group": lambda x, y: (
        ["minor", "adult", "senior"][sum(int(record(x)[1]) >= n for n in (18, 65))] == y
    ),
    "pair-smaller": lambda x, y: sorted(numbers(x))[0] == int(y),
    "pair-inequality": lambda x, y: bool(eval(y)) and numbers(x) == numbers(y),
    "number-minus-one": lambda x, y: int(x) - int(y) == 1,
    "number-plus-ten": lambda x, y: int(y) - int(x) == 10,
    "number-last-digit": lambda x, y: int(x) % 10 == int(y),
    "number-spaced": lambda x, y: y.split(" ") == list(x),
    "number-ordinal": lambda x, y: (
        y == x + ("th" if int(x) // 10 % 10 == 1 else ORDINAL_ENDINGS[int(x) % 10])
    ),
    "number-in-words": lambda x, y: sum(NUMBER_WORDS[word] for word in y.split("-")) == int(x),
    "number-roman": lambda x, y: roman_value(y) == int(x),
    "coin-story": lambda x, y: numbers(x)[0] + (1 if "gets" in words(x) else -1) * numbers(x)[1] == int(y),
    "prices-things": lambda x, y: items(y) == list(pieces(x)),
    "prices-numbers": lambda x, y: y.split() == list(pieces(x).values()),
    "prices-first": lambda x, y: numbers(x)[0] == int(y),
    "decode": lambda x, y: [f"{a}={b}" for a, b in zip(code(x), y.split(), strict=True)] == chosen_entries(x),
    "decode-first": lambda x, y: f"{code(x)[0]}={y}" in x.split(),
    "expression-value": lambda x, y: str(eval(x)) == y,
    "expression-type": lambda x, y: type(eval(x)).__name__ == y,
    "error-name": lambda x, y: error_of(x) == y,
    "number-size": lambda x, y: {"small": 1, "medium": 2, "large": 3}[y] == len(x),
    "sentence-length": lambda x, y: (x.count(" ") >= 8) == (y == "long"),
    "sentence-weekday": lambda x, y: bool(re.search(r"\b[A-Z]\w+day\b", x)) == (y == "weekday"),
    "sentence-colour": lambda x, y: bool(re.search(rf"\b({COLOUR_WORDS})\b", x)) == (y == "colour"),
    "sentence-animal": lambda x, y: (y == "yes") == any(w in ANIMAL_WORDS for w in words(x)),
    "sentence-opening": lambda x, y: (words(x)[0].lower() in ("a", "an", "the")) == (y == "article"),
    "numbers-trend": lambda x, y: (numbers(x)[-1] - numbers(x)[0] > 0) == (y == "up"),
    "list-size": lambda x, y: (x.count(",") >= 4) == (y == "big"),
    "list-animal": lambda x, y: (y == "animal") == any(w in ANIMAL_WORDS for w in words(x)),
    "extract-date": lambda x, y: re.findall(rf"\b\d+ (?:{'|'.join(MONTHS)})\b", x) == [y],
    "extract-name": lambda x, y: y in x and is_name(y),
    "extract-city": lambda x, y: [w for w in words(x) if w in vocabulary.CITIES] == [y],
    "extract-order": lambda x, y: re.findall(r"\b[A-Z]\d{3}\b", x) == [y],
    "extract-first-sentence": lambda x, y: x.startswith(f"{y} ") and y[-1] in ".?!",
    "extract-second-sentence": lambda x, y: f" {y} " in x and not x.startswith(y) and y[-1] in ".?!",
    "extract-date-price": lambda x, y: all(part in x for part in y.split(" / ")) and "$" in y.split(" / ")[1],
}
FACTS = {"noun-plural", "country-capital", "country-continent"}  # facts: there is no second way
MEANING = {  # the template of the label is the answer
    "review-sentiment", "review-stars", "news-topic", "message-urgency", "sentence-type", "sentence-tense",
    "phrase-language", "mail-department",
}  # fmt: skip


def test_every_family_that_can_be_recomputed_is() -> None:
    assert set(CHECKS) | FACTS | MEANING == {family.name for family in FAMILIES}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in CHECKS], ids=lambda f: f.name)
def test_examples_in_descriptions_are_right(family: Family) -> None:
    for text in family.descriptions:
        for pair in re.finditer(r"""[Ff]or (["'])(.+?)\1 answer (["'])(.+?)\3(?=[;.]|$)""", text):
            assert CHECKS[family.name](pair[2], pair[4]), text


def test_no_two_families_mean_the_same() -> None:
    """Families that draw the same inputs from the same seed have different answers to some of them."""
    open_ones = [family for family in FAMILIES if "classification" not in family.category]
    pairs = [[family.make(random.Random(seed)) for seed in range(24)] for family in open_ones]
    for (one, first), (two, second) in itertools.combinations(zip(open_ones, pairs, strict=True), 2):
        shared = [(a[1], b[1]) for a, b in zip(first, second, strict=True) if a[0] == b[0]]
        assert not shared or any(a != b for a, b in shared), (one.name, two.name)


PLURALS = {"knife": "knives", "wolf": "wolves", "cherry": "cherries", "tomato": "tomatoes", "piano": "pianos",
           "fox": "foxes", "sandwich": "sandwiches", "radish": "radishes", "donkey": "donkeys", "bus": "buses"}  # fmt: skip


@pytest.mark.parametrize("noun", PLURALS)
def test_plurals(noun: str) -> None:
    assert plural(noun) == PLURALS[noun]


@pytest.mark.parametrize("name", CHECKS)
def test_answers_are_right(name: str) -> None:
    (task,) = procedural_tasks([name], size=240)
    wrong = [e for e in (*task.train, *task.test) if not CHECKS[name](e.input, e.outputs[0])]
    assert not wrong, wrong[:3]


def test_closed_label_sets_are_stated() -> None:
    """Where a family has few answers, its definition names them all."""
    names = [f.name for f in FAMILIES if f.category == "classification"]
    assert len(names) >= 15
    for task in procedural_tasks(names, size=120):
        answers = {e.outputs[0] for e in task.train}
        assert all(answer.casefold() in task.definition.casefold() for answer in answers), task.name
