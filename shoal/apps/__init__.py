"""The programs: each parses, calls and formats, and holds no logic."""
