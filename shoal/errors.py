"""The errors that Shoal raises on purpose: one base class, and the subclass that a caller tells apart.

A message is one line that gives the value, the limit and the fix. The command line turns `UsageError` into
exit code 2 and any other `ShoalError` into exit code 1.
"""


class ShoalError(Exception):
    """Something outside the caller's arguments is wrong: a file, a checkpoint, a model, the disk."""


class UsageError(ShoalError, ValueError):
    """An argument is outside what the called function accepts."""
