"""The format that a task description names, by a small table that would rather say nothing than be wrong.

It is a suggestion, for the adapter's card and for those who ask for it: no answer is held to it unasked.
Knows text only.
"""

from __future__ import annotations

import re

from shoal.adapters.output_format import OutputFormat

_KEY = r"[\"'`]?[A-Za-z_][A-Za-z0-9_]*[\"'`]?"
_KEYS = re.compile(
    r"\bJSON(?: object)? (?:with|containing|having) (?:only |exactly |just )?(?:the )?(?:two |three |four )?"
    rf"(?:keys|fields) (?P<keys>{_KEY}(?:(?:, and |, | and ){_KEY})*)(?=[.;:]|$)"
)
_ONLY = r"(?:only|just|nothing but)"
# A description that one of these matches, and the regular expression of its answers.
_TABLE: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"\b(?:in|as an?|in the) (?:ISO(?: ?8601)?|YYYY-MM-DD)(?: date)?(?: format)?(?=[.;]|$)"),
        "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    ),
    (
        re.compile(
            rf"\b[Aa]nswer with {_ONLY} (?:a|an|the) (?:whole number|integer)(?=[.;]|$)"
            r"|\b[Aa]nswer (?:with|as) (?:a whole number|an integer) (?:only|alone)(?=[.;]|$)"
        ),
        "-?(0|[1-9][0-9]{0,17})",
    ),
    (
        re.compile(
            rf"\b[Aa]nswer with {_ONLY} (?:a|the) number(?=[.;]|$)"
            r"|\b[Aa]nswer (?:with|as) a number (?:only|alone)(?=[.;]|$)"
        ),
        r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})?",
    ),
)
_NOT = re.compile(r"\b(?:not|never|don't|without|convert|into|from|explain|example|e\.g\.)\b", re.IGNORECASE)


def suggest_format(description: str) -> OutputFormat | None:
    """The format that a description closes its answers to; None where it names none or several."""
    text = " ".join(description.split())
    if _NOT.search(text):
        return None
    found = [OutputFormat.regex(regex) for pattern, regex in _TABLE if pattern.search(text)]
    if (named := _KEYS.search(text)) is not None:
        keys = [key.strip("\"'`") for key in re.split(r", and |, | and ", named["keys"])]
        schema = {
            "type": "object",
            "properties": {key: {} for key in keys},
            "required": keys,
            "additionalProperties": False,
        }
        found.append(OutputFormat.json_schema(schema))
    elif re.search(r"\b[Aa]nswer (?:with|as|in) (?:a |one )?JSON(?: object)?(?=[.;]|$)", text):
        found.append(OutputFormat.json_object())
    return found[0] if len(found) == 1 else None
