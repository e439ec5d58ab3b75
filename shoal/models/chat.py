"""How a tokenizer's chat template words conversations, found by rendering probes, and what closes an answer.

A template is a program of somebody else's: it may want content as a list of parts, leave out a role, or fail.
So probes are rendered first, and their texts have to come back. Knows a tokenizer, nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from shoal.errors import ShoalError, UsageError, reason

Message = Mapping[str, Any]

_TEXTS = {
    "system": "Probe of the system.",
    # What a template may escape, and more than one may cut.
    "user": "Probe of the user: 1 < 2 & 3." + 400 * " And more." + " The end.",
    "assistant": "Probe of the answer.",
    "last": "Probe of the last turn.",
}
_QUESTION = {"role": "user", "content": _TEXTS["user"]}
_ANSWER = {"role": "assistant", "content": _TEXTS["assistant"]}
_LAST = {"role": "user", "content": _TEXTS["last"]}
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_of_a_tool",
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"probe_of_a_key": {"type": "string"}}},
    },
}
_ARGUMENTS = {"probe_of_a_key": "Probe of a value."}
_CALL = {"name": "probe_of_a_tool", "arguments": _ARGUMENTS}
_RESULT = "Probe of a result."
_CALLED: list[Message] = [
    _QUESTION,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "probe0000", "type": "function", "function": _CALL}],
    },
    {"role": "tool", "content": _RESULT, "tool_call_id": "probe0000"},
]


@dataclass(frozen=True)
class ChatFormat:
    """The chat template of a tokenizer as probes have shown it.

    Attributes:
        name: of the model, for messages.
        parts: it wants content as a list of parts, `[{"type": "text", "text": ...}]`, rather than a string.
        lost: roles whose text it leaves out.
        closer: the first special token that it puts after an answer; None where there is none.
        tools: it shows the model the tools of a request.
        calls: it words calls of tools in earlier turns, and what the tools said.
    """

    name: str
    parts: bool
    lost: frozenset[str]
    closer: int | None
    tools: bool = False
    calls: bool = False

    def render(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chats: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[str]:
        """Every conversation as text, up to where the model answers, which may call these tools.

        Raises:
            UsageError: the template refuses a conversation, or would leave a message, a call or a tool out.
        """
        if tools and not self.tools:
            raise UsageError(no_tools(self.name))
        if not self.calls:
            refuse_calls(self.name, chats)
        for role in {message["role"] for chat in chats for message in chat} & self.lost:
            raise UsageError(
                f"the chat template of {self.name} leaves {role} messages out; put their text into a user's"
            )
        try:
            return [_rendered(tokenizer, chat, self.parts, tools=tools) for chat in chats]
        except Exception as error:  # a foreign program: any class of error
            raise UsageError(
                f"the chat template of {self.name} refuses the messages: {reason(error)}"
            ) from None


def probe_chat(tokenizer: PreTrainedTokenizerBase, name: str) -> ChatFormat | None:
    """The format of a tokenizer's chat template; None where it has no template.

    Raises:
        ShoalError: it fails, there are several and no default, or the text of a request is lost.
    """
    template = tokenizer.chat_template
    if not template:
        return None
    if isinstance(template, dict) and "default" not in template:
        raise ShoalError(
            f"{name} has the chat templates {' and '.join(sorted(template))} and no default; save the one to "
            "use as chat_template.jinja in its directory"
        )
    parts = _wants_parts(tokenizer, name)
    talks = {
        "system": [{"role": "system", "content": _TEXTS["system"]}, _QUESTION],
        "assistant": [_QUESTION, _ANSWER, _LAST],
    }
    lost = {role for role, talk in talks.items() if not _kept(tokenizer, talk, parts)}
    return ChatFormat(
        name,
        parts,
        frozenset(lost),
        _closer(tokenizer, parts),
        tools=_shows(tokenizer, [_QUESTION], parts, ["probe_of_a_tool", "probe_of_a_key"]),
        calls=_shows(tokenizer, _CALLED, parts, [*_ARGUMENTS.values(), _RESULT]),
    )


def no_tools(name: str) -> str:
    """What to say to tools for a model whose template does not show them."""
    return (
        f"the chat template of {name} shows no tools to the model; leave `tools` out, or serve a model whose "
        "template has them"
    )


def refuse_calls(name: str, chats: Sequence[Sequence[Message]]) -> None:
    """Raise `UsageError` for a call of a tool, or its result, in a conversation that would be without it."""
    if any(turn["role"] == "tool" or "tool_calls" in turn for chat in chats for turn in chat):
        raise UsageError(
            f"the chat template of {name} leaves calls of tools or their results out; put what was called "
            "and found into a user's message"
        )


def _wants_parts(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """False where a request comes back from a string, True where it does from a list of parts."""
    failure = None
    for parts in (False, True):
        try:
            rendered = _rendered(tokenizer, [_QUESTION], parts)
            if (
                _TEXTS["user"] in rendered and "'type': 'text'" not in rendered
            ):  # nor the list as Python has it
                return parts
        except Exception as error:  # a foreign program: any class of error
            failure = failure or error
    what = f"fails: {reason(failure)}" if failure else "loses the text of a request"
    raise ShoalError(
        f"the chat template of {name} {what}; correct chat_template.jinja or tokenizer_config.json in its "
        "directory"
    )


def _kept(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], parts: bool) -> bool:
    """False where a text is lost without a word; a refusal is told when such a conversation comes."""
    try:
        rendered = _rendered(tokenizer, chat, parts)
    except Exception:  # as above
        return True
    return all(message["content"] in rendered for message in chat)


def _shows(
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], parts: bool, texts: Sequence[str]
) -> bool:
    """True where a conversation with a tool has all these texts."""
    try:
        rendered = _rendered(tokenizer, chat, parts, tools=[_TOOL])
    except Exception:  # a foreign program: any class of error
        return False
    return all(text in rendered for text in texts)


def _closer(tokenizer: PreTrainedTokenizerBase, parts: bool) -> int | None:
    """The first special token after an answer, unless the template begins a turn with it."""
    try:
        rendered = _rendered(tokenizer, [_QUESTION, _ANSWER], parts, answers=False)
        begins = _rendered(tokenizer, [_QUESTION], parts)
    except Exception:  # a template that takes questions alone
        return None
    _, answer, after = rendered.rpartition(_TEXTS["assistant"])
    if not answer:
        return None
    opening = begins.partition(_TEXTS["user"])[0]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found = next((token for token in _tokens(tokenizer, after) if token in special), None)
    openers = [token for token in _tokens(tokenizer, opening) if token in special]
    return None if found is not None and openers[-1:] == [found] else found


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[Message],
    parts: bool,
    *,
    answers: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    messages: list[dict[str, Any]] = [dict(message) for message in chat]
    if parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    rendered: Any = tokenizer.apply_chat_template(
        messages,
        tools=[dict(tool) for tool in tools] or None,
        add_generation_prompt=answers,
        tokenize=False,
    )
    return str(rendered)
