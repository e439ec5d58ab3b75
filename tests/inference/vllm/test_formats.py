"""Formats as vLLM is asked for them."""

from typing import Any

import pytest

from shoal.adapters.output_format import OutputFormat
from shoal.inference.engine.records import Request
from shoal.inference.vllm.request_body import request_body


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (OutputFormat.json_schema({"type": "integer"}), {"json": {"type": "integer"}}),
        (OutputFormat.json_object(), {"json": {"type": "object"}}),
        (OutputFormat.choice(["a", "b"]), {"choice": ["a", "b"]}),
        (OutputFormat.regex("[0-9]+"), {"regex": "[0-9]+"}),
        (OutputFormat.grammar('root ::= "a"'), {"grammar": 'root ::= "a"'}),
    ],
)
def test_a_format_is_passed_on_in_vllms_words(wanted: OutputFormat, asked: dict[str, Any]) -> None:
    assert request_body(Request([1], format=wanted), "m", [2])["structured_outputs"] == asked


def test_nothing_is_asked_without_a_format() -> None:
    assert "structured_outputs" not in request_body(Request([1]), "m", [2])
