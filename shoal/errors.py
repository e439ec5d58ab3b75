"""The errors that Shoal raises on purpose, and how foreign text gets into their one line.

A message is one line that gives the value, the limit and the fix. The command line turns `UsageError` into
exit code 2 and any other `ShoalError` into exit code 1.
"""


class ShoalError(Exception):
    """Something outside the caller's arguments is wrong: a file, a checkpoint, a model, the disk."""


class UsageError(ShoalError, ValueError):
    """An argument is outside what the called function accepts."""


class NotFoundError(UsageError):
    """The named thing is not there, or not for this owner to see."""


class ConflictError(UsageError):
    """The name is taken, or the thing is in a state that forbids the request."""


class UnavailableError(ShoalError):
    """Something that a later try may find again: a database, space on the disk, a free slot."""


def reason(error: BaseException, limit: int = 200) -> str:
    """The message of another library's error, as at most `limit` characters of one line."""
    text = " ".join(str(error).split()).rstrip(".;") or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shorten(value: object, limit: int = 60) -> str:
    """The `repr` of a value, cut to about `limit` characters, for one line of an error."""
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[: limit - 3] + "...")
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_unicode(text: str, field: str) -> None:
    """Raise `UsageError` for half a surrogate pair, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = f"{field}: {shorten(text)} is not valid Unicode at character {error.start}"
        raise UsageError(f"{at}; remove that") from None
