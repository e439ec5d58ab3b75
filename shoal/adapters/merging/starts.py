"""The adapter that parents were trained on from: deltas count from it, so it has to be the right one."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError


def check_start(cards: Mapping[str, AdapterCard | None], start: LoRA | None) -> tuple[str, ...]:
    """See that parents were trained on from a start, as far as their cards say.

    Args:
        cards: of every parent, by name; None where it has none.
        start: that deltas will count from; None is the base model.

    Returns:
        Sentences for people.

    Raises:
        UsageError: a card names another start.
    """
    named = {name: card.start_sha256 for name, card in cards.items() if card and card.start_sha256}
    if start is None:
        if len(named) == len(cards) and len(set(named.values())) == 1:
            common = next(iter(named.values()))[:12]
            return (
                f"All parents were trained on from {common}; with it as start, deltas would count from it.",
            )
        return ()
    own = start.fingerprint()
    other = next((name for name, sha in named.items() if sha != own), None)
    if other is not None:
        raise UsageError(
            f"{other} was trained on from {named[other][:12]}, and the start is {own[:12]}; give its "
            "own start"
        )
    unknown = sorted(cards.keys() - named.keys())
    return (f"No card says that {', '.join(unknown)} was trained on from the start.",) if unknown else ()
