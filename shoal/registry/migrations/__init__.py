"""Alembic revisions of the registry's database, applied by `shoal.registry.database`; no `alembic.ini` is needed."""
