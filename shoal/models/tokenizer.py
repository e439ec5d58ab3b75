"""The tokenizer of a base model: one that knows words, with a chat template that keeps texts.

Knows where files are and nothing of weights.
"""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shoal.errors import ShoalError, reason
from shoal.models.chat import probe_chat
from shoal.models.sources import ModelSource, quietly


def read_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, checked before its weights are read.

    Raises:
        ShoalError: its files are missing or broken, or its chat template loses text.
    """
    where, local = source.location, source.local_only
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # foreign files: each reader underneath has its own class of error
        raise ShoalError(f"cannot load {source.name!r}: {reason(error)}; {source.repair}") from error
    if not set(tokenizer.get_vocab()) - set(
        tokenizer.all_special_tokens
    ):  # some versions make up an empty one
        raise ShoalError(f"cannot load {source.name!r}: its tokenizer has no words; {source.repair}")
    probe_chat(tokenizer, source.name)
    return tokenizer
