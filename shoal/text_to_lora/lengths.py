"""Long material is left out of short trainings, by one rule."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from shoal.errors import UsageError

log = logging.getLogger(__name__)


def short_ones(name: str, lengths: Sequence[int], limit: int, least: int) -> list[int]:
    """Indices of the items of at most `limit` tokens; how many are left out is logged.

    Args:
        name: of the items, in the plural.
        lengths: of the items, in tokens.
        limit: in tokens.
        least: number of short items that is needed.

    Raises:
        UsageError: there are fewer.
    """
    kept = [index for index, length in enumerate(lengths) if length <= limit]
    if len(kept) < least:
        raise UsageError(
            f"{len(kept)} of {len(lengths)} {name} have at most {limit} tokens, at least {least} are needed; "
            "give more that are short, or none"
        )
    if left := len(lengths) - len(kept):
        log.warning("left out %d of %d %s of more than %d tokens", left, len(lengths), name, limit)
    return kept
