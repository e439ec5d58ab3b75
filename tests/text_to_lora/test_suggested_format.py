"""Descriptions that name a format, and those that only seem to."""

import json

import pytest

from shoal.text_to_lora.suggested_format import suggest_format


@pytest.mark.parametrize(
    ("description", "keys"),
    [
        ("Extract the person as JSON with the keys name and age.", ["name", "age"]),
        ('Answer with a JSON object with fields "city", "land", and "size".', ["city", "land", "size"]),
        ("Reply in JSON with exactly the two keys label and score.", ["label", "score"]),
    ],
)
def test_json_with_keys(description: str, keys: list[str]) -> None:
    found = suggest_format(description)
    assert found is not None and json.loads(found.text)["required"] == keys


@pytest.mark.parametrize(
    ("description", "kind", "part"),
    [
        ("Give the date of the event in ISO format.", "regex", "[0-9]{4}-"),
        ("Find the deadline and write it as an ISO 8601 date.", "regex", "[0-9]{4}-"),
        ("Count the words. Answer with only a whole number.", "regex", "-?("),
        ("Solve it. Answer with just the number.", "regex", r"\."),
        ("Summarise the ticket. Answer as JSON.", "json_schema", "object"),
    ],
)
def test_dates_numbers_and_plain_json(description: str, kind: str, part: str) -> None:
    found = suggest_format(description)
    assert found is not None and found.kind == kind and part in found.text


@pytest.mark.parametrize(
    "description",
    [
        "Decide whether a movie review is positive or negative.",
        "Do not answer with JSON with keys a and b.",
        "Convert the JSON with keys name and age into a sentence.",
        "Explain what an ISO date is.",
        "Give the number of words and a reason.",
        "Answer with only a whole number, or as JSON.",
        "Find the ISO standard that is meant.",
        "JSON files are hard to read. Say why.",
        "Give the date in ISO format. Answer as JSON.",
    ],
)
def test_where_it_is_unsure_nothing_is_suggested(description: str) -> None:
    assert suggest_format(description) is None
