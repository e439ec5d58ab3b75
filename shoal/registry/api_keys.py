"""API keys: made once, kept hashed, compared in constant time. A key stands for an owner.

A key is `sk-shoal-ID-SECRET`; its secret has 256 random bits, so that one SHA-256 of it is enough. Knows
nothing of HTTP or of what a key allows.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from shoal.errors import NotFoundError, UsageError, shorten
from shoal.registry.database import Database
from shoal.registry.schema import API_KEYS

ANYONE = "anyone"  # whom requests without a key stand for, where none is needed

_K = API_KEYS.c
_KEY = re.compile(r"sk-shoal-(?P<id>[0-9a-f]{12})-(?P<secret>[A-Za-z0-9_-]{43})")
_OWNER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NOBODY = "0" * 64  # compared with where no key has the id, so that it takes as long


@dataclass(frozen=True)
class ApiKey:
    """The record of a key; the key itself is shown once, when it is made.

    Attributes:
        id: its public part.
        owner: whom it stands for.
        created: seconds since 1970.
        revoked: seconds since 1970, None where it is valid.
    """

    id: str
    owner: str
    created: float
    revoked: float | None


class ApiKeys:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, owner: str) -> str:
        """A new key for an owner; it cannot be shown again.

        Raises:
            UsageError: the owner's name is not 1 to 64 of `a-z0-9._-`, the first a letter or digit.
            UnavailableError: the database cannot be reached.
        """
        if not _OWNER.fullmatch(owner):
            raise UsageError(
                f"{shorten(owner)} is no owner's name; use 1 to 64 of a-z, 0-9, '.', '_', '-', the first a "
                "letter or digit"
            )
        key = f"sk-shoal-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
        row = {"id": _id_of(key), "hash": _hash(key), "owner": owner, "created": time.time()}
        with self._database.writing() as connection:
            connection.execute(insert(API_KEYS).values(row))
        return key

    def owner_of(self, key: str) -> str | None:
        """Whom a key stands for; None for a wrong or revoked one.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        identity = _id_of(key)
        with self._database.reading() as connection:
            found = select(_K.hash, _K.owner).where(_K.id == identity, _K.revoked.is_(None))
            row = connection.execute(found).first()
        same = hmac.compare_digest(row.hash if row else _NOBODY, _hash(key))
        return str(row.owner) if row and same else None

    def list(self) -> list[ApiKey]:
        """Every key, the oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(API_KEYS).order_by(_K.created)).mappings().all()
        return [ApiKey(row["id"], row["owner"], row["created"], row["revoked"]) for row in rows]

    def revoke(self, identity: str) -> None:
        """End a key.

        Raises:
            NotFoundError: there is no valid key with this id.
            UnavailableError: the database cannot be reached.
        """
        with self._database.writing() as connection:
            ended = (
                update(API_KEYS).where(_K.id == identity, _K.revoked.is_(None)).values(revoked=time.time())
            )
            if connection.execute(ended.returning(_K.id)).first() is None:
                raise NotFoundError(f"there is no valid key {shorten(identity)}; see `shoal keys list`")


def _id_of(key: str) -> str:
    match = _KEY.fullmatch(key)
    return match["id"] if match else ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
