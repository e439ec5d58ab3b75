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

Message = Mapping[str, str]

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


@dataclass(frozen=True)
class ChatFormat:
    """The chat template of a tokenizer as probes have shown it.

    Attributes:
        name: of the model, for messages.
        parts: it wants content as a list of parts, `[{"type": "text", "text": ...}]`, rather than a string.
        lost: roles whose text it leaves out.
        closer: the first special token that it puts after an answer; None where there is none.
    """

    name: str
    parts: bool
    lost: frozenset[str]
    closer: int | None

    def render(self, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]]) -> list[str]:
        """Every conversation as text, up to where the model answers.

        Raises:
            UsageError: the template refuses a conversation, or would leave a message out.
        """
        for role in {message["role"] for chat in chats for message in chat} & self.lost:
            raise UsageError(
                f"the chat template of {self.name} leaves {role} messages out; put their text into a user's"
            )
        try:
            return [_rendered(tokenizer, chat, self.parts) for chat in chats]
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
    return ChatFormat(name, parts, frozenset(lost), _closer(tokenizer, parts))


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
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], parts: bool, *, answers: bool = True
) -> str:
    messages: list[dict[str, Any]] = [dict(message) for message in chat]
    if parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    rendered: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=answers, tokenize=False)
    return str(rendered)
