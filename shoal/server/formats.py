"""The format that a request wants its answer in: OpenAI's `response_format`, and vLLM's names for more.

One request has one format. Knows fields alone; how answers are held to a format is `shoal.inference.grammar`.

Sources: https://platform.openai.com/docs/guides/structured-outputs;
https://docs.vllm.ai/en/latest/features/structured_outputs (`guided_*` are its names before 0.12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from shoal.adapters.output_format import OutputFormat
from shoal.errors import UsageError
from shoal.server.body import Body

Schema = dict[str, Any] | bool | str


class JsonSchema(Body):
    """OpenAI's `json_schema`; name, description and strict are not used: every schema is kept to strictly."""

    model_config = ConfigDict(extra="ignore")

    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")]


class ResponseFormat(Body):
    """OpenAI's `response_format`, and `suggested`, an extension: the format that the adapter's card names."""

    type: Literal["text", "json_object", "json_schema", "suggested"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: exactly one of these."""

    json_: Schema | None = Field(None, alias="json", description="a JSON schema")
    json_object: bool = False
    choice: list[str] | None = Field(None, description="the answer is one of these")
    regex: str | None = Field(None, description="it matches this as a whole; the syntax of Rust's regex")
    grammar: str | None = Field(None, description="of the answer, in Lark or in GBNF")


class Formatted(Body):
    """The fields of a request that say its format."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="an extension, as vLLM has it")
    guided_json: Schema | None = None
    guided_choice: list[str] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None

    @property
    def asks_for_suggested(self) -> bool:
        """True where the format is the adapter's to say."""
        return self.response_format is not None and self.response_format.type == "suggested"

    def output_format(self, suggested: OutputFormat | None = None) -> OutputFormat | None:
        """The format of the answer; None where it is free.

        Args:
            suggested: by the adapter that answers.

        Raises:
            UsageError: there are two, `json_schema` is missing, a format is outside its limits, or none is
                suggested.
        """
        if self.asks_for_suggested and suggested is None:
            raise UsageError("the adapter suggests no format; name one, or leave `response_format` out")
        given = {name: value for name, value in self._formats(suggested).items() if value is not None}
        if len(given) > 1:
            raise UsageError(
                f"{' and '.join(map('`{}`'.format, given))} are given, each a format; leave all but one out"
            )
        makers: dict[str, Callable[[Any], OutputFormat]] = {
            "json": OutputFormat.json_schema,
            "choice": OutputFormat.choice,
            "regex": OutputFormat.regex,
            "grammar": OutputFormat.grammar,
        }
        for name, value in given.items():
            if isinstance(value, OutputFormat):
                return value
            return makers[name.replace("guided_", "").replace("structured_outputs.", "")](value)
        return None

    def _formats(self, suggested: OutputFormat | None) -> dict[str, Any]:
        """What each field asks for, by its name."""
        asked = self.structured_outputs or StructuredOutputs()
        if self.structured_outputs is not None and not self.structured_outputs.model_fields_set:
            raise UsageError(
                "`structured_outputs` is empty; give json, choice, regex or grammar, or leave it out"
            )
        return {
            "response_format": suggested if self.asks_for_suggested else self._response_format(),
            "structured_outputs.json": asked.json_,
            "structured_outputs.json_object": OutputFormat.json_object() if asked.json_object else None,
            "structured_outputs.choice": asked.choice,
            "structured_outputs.regex": asked.regex,
            "structured_outputs.grammar": asked.grammar,
            "guided_json": self.guided_json,
            "guided_choice": self.guided_choice,
            "guided_regex": self.guided_regex,
            "guided_grammar": self.guided_grammar,
        }

    def _response_format(self) -> OutputFormat | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return OutputFormat.json_object()
        if wanted.json_schema is None:
            raise UsageError("`response_format` of type json_schema needs `json_schema.schema`; give it")
        return OutputFormat.json_schema(wanted.json_schema.schema_)
