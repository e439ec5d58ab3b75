"""Adapters as the registry shows them, and the rows that hold them.

Knows rows and cards; nothing of files or of who may see what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from shoal.adapters.card import AdapterCard


@dataclass(frozen=True)
class AdapterRecord:
    """One version of an adapter.

    Attributes:
        name: 1 to 64 of `a-z0-9._-`.
        version: counts from 1.
        base: hub id or path of the model that it adapts.
        revision: version of the base model, None for its newest.
        rank: LoRA rank.
        card: provenance, with description and scores.
        owner: who may change it.
        public: whether others may use it.
        sha256: names its files by their content, in hex.
        bytes: size of its files.
        created: seconds since 1970.
    """

    name: str
    version: int
    base: str
    revision: str | None
    rank: int
    card: AdapterCard
    owner: str
    public: bool
    sha256: str
    bytes: int
    created: float


@dataclass(frozen=True)
class Page:
    """Some adapters by name; `after` asks for the next ones, None where there are none."""

    records: tuple[AdapterRecord, ...]
    after: str | None


def card_columns(card: AdapterCard) -> dict[str, Any]:
    """The columns that hold a card."""
    content = card.model_dump(mode="json")
    return {"description": content.pop("description"), "scores": content.pop("scores"), "card": content}


def record_of(row: RowMapping | Mapping[str, Any]) -> AdapterRecord:
    """The record of a row."""
    card = AdapterCard.model_validate(
        {**row["card"], "description": row["description"], "scores": row["scores"]}
    )
    names = ("name", "version", "base", "revision", "rank", "owner", "public", "sha256", "bytes", "created")
    return AdapterRecord(card=card, **{name: row[name] for name in names})
