"""Adapters by name and version, their owners, keys and training jobs: a database beside a directory."""
