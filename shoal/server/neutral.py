"""Options of other servers and clients whose value asks for what is done anyway, as a literal table.

A request is accepted with them, as if they were not there. With another value they are refused by name: what
would be ignored is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Taken with any value: they are about accounts, caches and logs, not about the answer. `prediction` and
# `prompt_cache_key` make an answer faster elsewhere, and one tool is called at a time, whether more
# may be or not (`parallel_tool_calls`).
IGNORED = frozenset(
    {"metadata", "store", "user", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {
        "prompt_cache_retention",
        "prediction",
        "parallel_tool_calls",
        "request_id",
        "priority",
        "cache_prompt",
    }
)
# Option -> values that change nothing; null always is one. From OpenAI's reference, and vLLM's, SGLang's,
# llama.cpp's and Hugging Face's extensions of it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True, False),
    "allowed_token_ids": ([],),
    "audio": ({},),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "do_sample": (True,),
    "documents": ([],),
    "dynatemp_range": (0,),
    "early_stopping": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({}, []),
    "logits_processors": ([],),
    "min_p": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"], []),
    "n_probs": (0,),
    "no_repeat_ngram_size": (0,),
    "presence_penalty": (0,),
    "prompt_logprobs": (0, False),
    "reasoning_effort": ("none",),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "stop": ("", [], [""]),
    "suffix": ("",),
    "tfs_z": (1,),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_a": (0,),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "xtc_probability": (0,),
}
# Keys of a turn without which its text means something else; of others its meaning does not depend.
MEANT_IN_TURNS: dict[str, tuple[Any, ...]] = {
    "audio": ({},),
    "function_call": ({},),
    "partial": (False,),
    "prefix": (False,),
}


def without_neutral(body: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request that ask for something.

    Tools that must not be called are not asked for, a bias of 0 is none, and -1 tokens are no limit.
    """
    asked = {
        name: value
        for name, value in body.items()
        if value is not None and name not in IGNORED and not is_neutral(NEUTRAL.get(name, ()), value)
    }
    for choice, names in (("tool_choice", "tools"), ("function_call", "functions")):
        if body.get(choice) == "none":
            asked.pop(names, None)
    for limit in ("max_tokens", "max_completion_tokens"):
        if is_neutral((-1,), asked.get(limit)):
            del asked[limit]
    bias = asked.get("logit_bias")
    if isinstance(bias, dict) and all(is_neutral((0,), value) for value in bias.values()):
        del asked["logit_bias"]
    return asked


def is_neutral(values: tuple[Any, ...], value: Any) -> bool:
    """True for one of these values; numbers may be of any type, but truth is no number.

    Null in an object is not given.
    """
    if isinstance(value, dict):
        value = {name: part for name, part in value.items() if part is not None}
    return any(value == own and isinstance(value, bool) == isinstance(own, bool) for own in values)


def unsupported(name: str, value: object) -> str | None:
    """What to say of an option with a value that asks for something; None where the option is not known."""
    if name not in NEUTRAL:
        return None
    accepted = " or ".join(repr(own) for own in NEUTRAL[name])
    return f"is not supported with another value than {accepted}; leave it out"
