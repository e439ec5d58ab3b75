"""First tables: adapters, API keys and jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "adapters",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("newest", sa.Boolean, nullable=False),
        sa.Column("base", sa.String(512), nullable=False),
        sa.Column("revision", sa.String(128)),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
    )
    newest: sa.ColumnClause[bool] = sa.column("newest")
    op.create_index(
        "newest_adapters", "adapters", ["name"], unique=True, sqlite_where=newest, postgresql_where=newest
    )
    op.create_index("adapters_of_owner", "adapters", ["owner", "name"])
    op.create_index("adapters_of_content", "adapters", ["sha256"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("revoked", sa.Double),
    )
    op.create_index("keys_of_owner", "api_keys", ["owner"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("adapter", NAME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("loss", sa.Double),
        sa.Column("error", sa.Text),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
    )
    op.create_index("jobs_of_owner", "jobs", ["owner", "created"])


def downgrade() -> None:
    """Drop the tables; the adapters' files stay."""
    for table in ("jobs", "api_keys", "adapters"):
        op.drop_table(table)
