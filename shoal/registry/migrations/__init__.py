"""Alembic revisions of the registry's database, which `shoal.registry.database` applies; no `alembic.ini`."""
