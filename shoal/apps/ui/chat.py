"""Answers of several models at once, each growing in its own place while the service sends it.

Threads read, the page's own thread draws: Streamlit is called from nowhere else.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from shoal.apps.ui.widgets import failure_line
from shoal.errors import ShoalError
from shoal.server.client import Chat, Client
from shoal.tasks.texts import prompted_input

LOOK_SECONDS = 0.05
CURSOR = " ▌"


@dataclass(frozen=True)
class Asked:
    """Who answers what; `adapter` as the API takes it."""

    model: str
    messages: Chat
    adapter: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Style:
    """How answers are drawn: likeliest tokens at temperature 0, and at most so many."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class _Piece:
    index: int
    text: str = ""
    failure: str | None = None
    last: bool = False


def with_description(request: str, description: str | None) -> str:
    """A request to the base model that says the task, since it has no adapter that knows it."""
    return prompted_input(description, request) if description else request


def style_box(key: str) -> Style:
    """Settings of answers, folded away."""
    with st.popover("Answer settings", icon=":material/settings:"):
        tokens = st.slider("Longest answer, in tokens", 8, 512, 96, 8, key=f"{key}_tokens")
        temperature = st.slider(
            "Temperature", 0.0, 1.5, 0.0, 0.1, key=f"{key}_temperature", help="0: always the likeliest word"
        )
    return Style(temperature, tokens)


def stream_together(
    client: Client, asked: Sequence[Asked], places: Sequence[Any], style: Style, answers: list[str]
) -> None:
    """Ask all at once and draw the answers as they come.

    Args:
        client: of the service.
        asked: one for each place.
        places: `st.empty()` of each answer.
        style: how answers are drawn.
        answers: where the texts grow; one that failed is empty.
    """
    pieces: queue.Queue[_Piece] = queue.Queue()
    left = threading.Event()
    for index, one in enumerate(asked):
        threading.Thread(target=_read, args=(client, one, style, index, pieces, left), daemon=True).start()
    failures, running = [""] * len(asked), set(range(len(asked)))
    answers[:] = [""] * len(asked)
    try:
        while running:
            news = _gathered(pieces)
            for piece in news:
                answers[piece.index] += piece.text
                failures[piece.index] = piece.failure or failures[piece.index]
                running -= {piece.index} if piece.last else set()
            for index in {piece.index for piece in news}:
                cursor = CURSOR if index in running else ""
                _draw(places[index], answers[index], failures[index], cursor)
    finally:
        left.set()  # the page was left or asked anew: the service stops
    for index, failure in enumerate(failures):
        if failure:
            answers[index] = ""


def _draw(place: Any, text: str, failure: str, cursor: str) -> None:
    if failure:
        failure_line(failure, place)
    else:
        place.text(text + cursor or "(an empty answer)")


def _read(
    client: Client, asked: Asked, style: Style, index: int, pieces: queue.Queue[_Piece], left: threading.Event
) -> None:
    failure = None
    answer = client.chat(
        asked.model,
        asked.messages,
        adapter=asked.adapter,
        max_tokens=style.max_tokens,
        temperature=style.temperature,
    )
    try:
        for text in answer:
            if left.is_set():
                break
            pieces.put(_Piece(index, text))
    except ShoalError as error:
        failure = str(error)
    except Exception as error:  # a defect: the page must not wait for ever
        failure = f"unexpected {type(error).__name__}"
    finally:
        answer.close()
        pieces.put(_Piece(index, failure=failure, last=True))


def _gathered(pieces: queue.Queue[_Piece]) -> list[_Piece]:
    """What has come since the last look; waits for the first."""
    try:
        news = [pieces.get(timeout=LOOK_SECONDS)]
    except queue.Empty:
        "who" in st.session_state  # noqa: B015 - where Streamlit ends a run whose page was left
        return []
    while True:
        try:
            news.append(pieces.get_nowait())
        except queue.Empty:
            return news
