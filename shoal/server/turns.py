"""Turns of a chat: text, calls of tools, and what the tools said."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from shoal.errors import UsageError, check_unicode, shorten
from shoal.server.body import Body
from shoal.server.neutral import MEANT_IN_TURNS, is_neutral
from shoal.server.tools import MAX_TOOLS, ToolName

Arguments = Annotated[str, StringConstraints(max_length=200_000)]


class TextPart(Body):
    """A part of a message; keys besides its text are not used."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "input_text", "output_text", "refusal"] = "text"
    text: Annotated[str, StringConstraints(max_length=200_000)] = Field(
        validation_alias=AliasChoices("text", "refusal")
    )

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, given: Any) -> Any:
        kind = given.get("type", "text") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text", "refusal"):
            raise PydanticCustomError(
                "unsupported", "is a part of type {kind}; this model reads text alone", {"kind": kind[:40]}
            )
        return given


class CalledFunction(Body):
    """A function that was called, with its arguments as the text of a JSON object."""

    name: ToolName
    arguments: Arguments

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments.

        Raises:
            UsageError: they are no JSON object, or not Unicode.
        """
        try:
            found = json.loads(self.arguments)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError(
                f"the arguments {shorten(self.arguments)} of a call of {self.name} are no JSON object; "
                "send the call back as it came"
            )
        check_unicode(json.dumps(found, ensure_ascii=False), "arguments")
        return found


class CalledTool(Body):
    """A call in an earlier answer."""

    model_config = ConfigDict(extra="ignore")

    id: str = Field("", max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Turn(Body):
    """One turn of a chat; keys on which its meaning does not depend are not used."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[str, StringConstraints(max_length=200_000)]
        | Annotated[list[TextPart], Field(max_length=64)]
    ) = Field(validation_alias=AliasChoices("content", "refusal"))
    tool_calls: list[CalledTool] = Field([], max_length=MAX_TOOLS, description="of the assistant")
    tool_call_id: str = Field("", max_length=256, description="of the call that a tool answers")

    @model_validator(mode="before")
    @classmethod
    def _nothing_besides(cls, given: Any) -> Any:
        for name, values in MEANT_IN_TURNS.items() if isinstance(given, dict) else ():
            value = given.get(name)
            if value is not None and not is_neutral(values, value):
                raise PydanticCustomError(
                    "unsupported", "has `{name}`, which is not supported; turns of text are", {"name": name}
                )
        if isinstance(given, dict) and given.get("tool_calls") and given.get("content") is None:
            return {**given, "content": given.get("refusal") or ""}
        return given

    @model_validator(mode="after")
    def _calls_of_its_role(self) -> Turn:
        for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) and self.role != role:
                raise PydanticCustomError(
                    "unsupported",
                    "has `{name}`, which a turn of {role} has alone",
                    {"name": name, "role": role},
                )
        return self

    @property
    def worded(self) -> dict[str, Any]:
        """As chat templates take it, arguments of calls as objects; `UsageError` where these are none."""
        role = "system" if self.role == "developer" else self.role
        turn: dict[str, Any] = {"role": role, "content": self.text}
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.parsed},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            turn["tool_call_id"] = self.tool_call_id
        return turn

    @property
    def text(self) -> str:
        """Its parts as one."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
