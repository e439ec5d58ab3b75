"""Third tables: whose a name is, also after its adapter is gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v3"
down_revision = "v2"

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table; every name is its adapter's owner's."""
    names = op.create_table(
        "names",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
    )
    op.create_index("names_of_owner", "names", ["owner"])
    adapters = sa.table("adapters", sa.column("name"), sa.column("owner"), sa.column("newest", sa.Boolean))
    there = sa.select(adapters.c.name, adapters.c.owner).where(adapters.c.newest)
    op.execute(names.insert().from_select(["name", "owner"], there))


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("names")
