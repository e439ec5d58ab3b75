"""Adapters by name and version, with their owners, keys and training jobs, in a database beside a directory."""
