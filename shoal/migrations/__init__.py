"""Alembic revisions of the registry's database, applied by `shoal.database`; no `alembic.ini` is needed."""
