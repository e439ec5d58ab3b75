"""The tables of the registry: adapters, API keys and jobs, as SQLAlchemy describes them.

Times are seconds since 1970. `shoal.registry.migrations` brings a database to this state. Knows no rules but
how long a value may be, and no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    column,
)

from shoal.errors import UsageError

METADATA = MetaData()
MOST = {"text": 2**15, "json": 2**16}  # characters of a value in a column without a length of its own
# Sorted by bytes in every database, as pages go from one name to the next.
NAME = String(64).with_variant(String(64, collation="C"), "postgresql")

ADAPTERS = Table(
    "adapters",
    METADATA,
    Column("name", NAME, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("newest", Boolean, nullable=False),
    Column("base", String(512), nullable=False),
    Column("revision", String(128)),
    Column("rank", Integer, nullable=False),
    Column("description", Text),
    Column("scores", JSON, nullable=False),
    Column("card", JSON, nullable=False),  # what the card says besides description and scores
    Column("owner", String(64), nullable=False),
    Column("public", Boolean, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    # One newest version of a name, whatever several processes do at once; and what a page reads.
    Index(
        "newest_adapters",
        "name",
        unique=True,
        sqlite_where=column("newest"),
        postgresql_where=column("newest"),
    ),
    Index("adapters_of_owner", "owner", "name"),
    Index("adapters_of_content", "sha256"),
)

NAMES = Table(  # whose a name is, also after its adapter was deleted
    "names",
    METADATA,
    Column("name", NAME, primary_key=True),
    Column("owner", String(64), nullable=False),
    Index("names_of_owner", "owner"),
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    Index("keys_of_owner", "owner"),
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("adapter", NAME, nullable=False),
    Column("state", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("loss", Double),
    Column("error", Text),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Index("jobs_of_owner", "owner", "created"),
)

RATES = Table(
    "rates",
    METADATA,
    Column("what", String(16), primary_key=True),
    Column("owner", String(64), primary_key=True),
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    Column("count", BigInteger, nullable=False),
)

SKILLS = Table(
    "skills",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("definition", JSON, nullable=False),
)


def check_row(table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, if each of its texts is as short as its column says, which SQLite does not look at.

    Raises:
        UsageError: one is longer.
    """
    for name, value in row.items():
        kind = table.c[name].type
        if isinstance(kind, JSON):
            length, most = len(json.dumps(value, ensure_ascii=False)), MOST["json"]
        elif isinstance(value, str):
            length, most = len(value), getattr(kind, "length", None) or MOST["text"]
        else:
            continue
        if length > most:
            raise UsageError(f"{name} has {length} characters, the limit is {most}; shorten it")
    return row
