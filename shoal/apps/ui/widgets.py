"""What all pages are made of: failures as one line, text from outside as text, and choosing adapters."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import streamlit as st

from shoal.errors import ShoalError
from shoal.server.client import Client
from shoal.server.client_records import Adapter

MAX_NAME = 64
LISTED = 200
NO_TASK = "(none)"


def client() -> Client:
    """The client of this browser session."""
    return cast(Client, st.session_state.client)


def base_model() -> str:
    """Name of the base model."""
    return str(st.session_state.base)


@contextmanager
def show_errors() -> Iterator[None]:
    """Show a failure of the service as one line, and go on after the block."""
    try:
        yield
    except ShoalError as error:
        failure_line(str(error))


def failure_line(text: str, place: Any = st) -> None:
    """One line in red."""
    _line(text, "failure", place)


def warning_line(text: str, place: Any = st) -> None:
    """One line in amber."""
    _line(text, "warning", place)


def done_line(text: str, place: Any = st) -> None:
    """One line in green."""
    _line(text, "done", place)


def plain_line(text: str, place: Any = st) -> None:
    """One small line."""
    _line(text, "quiet", place)


def _line(text: str, kind: str, place: Any) -> None:
    role = ' role="alert"' if kind == "failure" else ""
    shown = html.escape(" ".join(text.split()))
    place.html(f'<div class="shoal-line shoal-{kind}"{role}>{shown}</div>')


def chips(label: str, words: Mapping[str, str]) -> None:
    """A label, and words in rounded boxes, each with a note."""
    boxes = (
        f'<span class="shoal-chip">{html.escape(word)}<b>{html.escape(note)}</b></span>'
        for word, note in words.items()
    )
    st.html(f'<div class="shoal-line shoal-quiet">{html.escape(label)}&emsp;{"".join(boxes)}</div>')


def facts(about: Mapping[str, str]) -> None:
    """A small table of names and values."""
    rows = (f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in about.items())
    st.html(f'<table class="shoal-facts">{"".join(rows)}</table>')


def code_name(name: str) -> str:
    """A name for labels, which Streamlit reads as Markdown: code, in which nothing is a link."""
    return "`" + re.sub(r"[`\n]", "'", name) + "`"


def suggested_name(text: str, taken: int = 28) -> str:
    """A name that the registry takes, from a description or a file's name."""
    words = [w for w in re.sub(r"[^a-z0-9]+", " ", text.lower()).split() if w not in _SMALL_WORDS]
    name = ""
    for word in words:
        if len(name) + len(word) >= taken:
            break
        name = f"{name}-{word}" if name else word
    return name or "my-adapter"


_SMALL_WORDS = frozenset(
    ("a", "an", "and", "as", "be", "for", "if", "in", "is", "of", "or", "that", "the", "to", "whether")
)


def choose_adapters(label: str, key: str, most: int) -> list[Adapter]:
    """A box to choose adapters of this base model in, with a search where there are many."""
    state = st.session_state
    known: dict[str, Adapter] = {}
    with show_errors():
        page = client().page(search=str(state.get(f"{key}_search", "")), limit=LISTED)
        known = {a.name: a for a in page.adapters if a.base == base_model()}
        if page.after is not None or state.get(f"{key}_search"):
            st.text_input("Search in all adapters", key=f"{key}_search")
    chosen: dict[str, Adapter] = state.get(f"{key}_chosen", {})
    known = {**chosen, **known}
    names = st.multiselect(
        label,
        sorted(known),
        default=[name for name in chosen if name in known],
        max_selections=most,
        key=f"{key}_names",
        placeholder="Choose adapters" if known else "There are none yet: describe one first",
    )
    state[f"{key}_chosen"] = {name: known[name] for name in names}
    return list(state[f"{key}_chosen"].values())


def choose_task(adapters: Sequence[Adapter], key: str) -> str | None:
    """The task in the base model's prompt, for a fair comparison: an adapter knows its own."""
    tasks = list(dict.fromkeys(adapter.description for adapter in adapters if adapter.description))
    chosen = st.selectbox(
        "Task in the base model's prompt",
        [*tasks, NO_TASK],
        key=f"{key}_task_{len(tasks)}",
        help="An adapter replaces the instruction, so it gets the request alone. The base model needs both.",
    )
    return None if chosen == NO_TASK else chosen
