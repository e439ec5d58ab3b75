"""Tools that a chat calls: OpenAI's `tools` and `tool_choice` as a format, and calls read from answers.

An answer is `{"name": ..., "arguments": {...}}`, held to the tools' schemas like any other format. Knows
fields and texts; how the model is told of its tools is its chat template's, see `shoal.models.chat`.

Source: https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from shoal.adapters.output_format import OutputFormat
from shoal.errors import UsageError, shorten
from shoal.server.body import Body
from shoal.server.formats import Formatted

MAX_TOOLS, MAX_TOOL_TEXT = 128, 4_000
ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_CALL = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([a-zA-Z0-9_-]+)"\s*,\s*"arguments"\s*:\s*(\{.*\})\s*\}\s*', re.DOTALL
)


class Function(Body):
    """What a tool is called, what it does, and a JSON schema of its arguments; without one it takes none."""

    model_config = ConfigDict(extra="ignore")

    name: ToolName = Field(description="1 to 64 of a-z, A-Z, 0-9, '_', '-'")
    description: str = Field("", max_length=MAX_TOOL_TEXT)
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object")

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """A JSON schema of an object.

        Raises:
            UsageError: `parameters` describes something else.
        """
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        kind = self.parameters.get("type", "object")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind):
            raise UsageError(
                f"the parameters of the tool {self.name} have the type {shorten(kind)}; "
                "arguments are an object"
            )
        return {**self.parameters, "type": "object"}


class Tool(Body):
    """OpenAI's tool."""

    type: Literal["function"]
    function: Function

    @property
    def worded(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = self.function
        return {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description,
                "parameters": function.schema_of_arguments,
            },
        }


class Named(Body):
    """The name of a tool."""

    name: ToolName


class NamedTool(Body):
    """One tool by its name."""

    type: Literal["function"]
    function: Named


class Tooled(Formatted):
    """The fields of a chat that say which tools it calls."""

    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="`required`, or a tool by name, for a call; `none`; `auto` is not supported"
    )

    @property
    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools as chat templates take them, checked as by `call_format`; none without tools."""
        self.call_format()
        return tuple(tool.worded for tool in self.tools or ())

    def call_format(self) -> OutputFormat | None:
        """The format of a call; None without tools.

        Raises:
            UsageError: tools and choice do not fit each other, two tools have one name, the schema of one is
                outside the limits, or all are too long together.
        """
        self._check()
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        tools = [tool.function for tool in self.tools or () if chosen in (None, tool.function.name)]
        if not tools:
            return None
        schemas = {tool.name: _moved(tool) for tool in tools}
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name in schemas
        ]
        return OutputFormat.json_schema({"anyOf": calls, "$defs": schemas})

    def _formats(self, suggested: OutputFormat | None) -> dict[str, Any]:
        return {**super()._formats(suggested), "tools": self.call_format()}

    def _check(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        choice = self.tool_choice
        if not names and choice is not None:
            raise UsageError("`tool_choice` is given without `tools`; give them, or leave it out")
        if names and choice in (None, "auto", "none"):
            raise UsageError(
                "`tool_choice` auto, the default with tools, is not supported, since each model "
                "begins calls in its own way; say required, or name the tool, for a call, and none for text"
            )
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise UsageError(
                f"`tool_choice` names {choice.function.name}, which is none of the tools; name one of them"
            )
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise UsageError(f"two tools have the name {twice}; rename one")


def call_choice(choice: dict[str, Any]) -> dict[str, Any]:
    """A chat's whole choice with its text as a call, or without one where it was cut."""
    call = _call(choice["message"]["content"])
    message = {**choice["message"], "content": None}
    if call is None:
        return {**choice, "message": message}
    return {**choice, "message": {**message, "tool_calls": [call]}, "finish_reason": "tool_calls"}


def call_piece(choice: dict[str, Any]) -> dict[str, Any]:
    """The same as the one piece of a stream."""
    whole = call_choice(choice)
    calls = whole.pop("message").get("tool_calls", [])
    numbered = [{"index": number, **call} for number, call in enumerate(calls)]
    return {**whole, "delta": {"tool_calls": numbered} if numbered else {}}


def _call(text: str) -> dict[str, Any] | None:
    """The call that a text is, its arguments word for word; None of half a call."""
    found = _CALL.fullmatch(text)
    if found is None:
        return None
    name, arguments = found.groups()
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _moved(tool: Function) -> dict[str, Any]:
    """The schema of a tool's arguments as the definition of its name, where its own references lead."""
    root = f"#/$defs/{tool.name}"

    def moved(part: dict[str, Any]) -> dict[str, Any]:
        ref = part.get("$ref")
        if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
            return {**part, "$ref": root + ref[1:]}
        return part

    schema = OutputFormat.json_schema(tool.schema_of_arguments).text
    found: dict[str, Any] = json.loads(schema, object_hook=moved)
    return found
