"""The dashboard: the guide's names, and what the engine does, refreshed while the page is open."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import streamlit as st

from shoal.apps.ui.counters import Activity, Reading, activity, read_counters
from shoal.apps.ui.widgets import client, plain_line, told_failure

LOOK_SECONDS, KEPT = 2.0, 90
SEA = "#2a9d8f"
CHARTS: dict[str, tuple[str, Callable[[Activity], float | None]]] = {
    "Tokens a second": ("tokens/s", lambda a: a.tokens_per_second),
    "Queue time": ("ms", lambda a: None if a.queue_seconds is None else a.queue_seconds * 1000),
    "Batch size": ("answers", lambda a: a.batch_rows),
    "Time to first token": (
        "ms",
        lambda a: None if a.first_token_seconds is None else a.first_token_seconds * 1000,
    ),
    "Adapter cache": ("adapters", lambda a: float(a.cached_adapters)),
    "Memory": ("MB", lambda a: a.memory_bytes / 2**20),
}


def monitoring_page() -> None:
    """The page."""
    st.title("Monitoring")
    plain_line(
        "One service process, since it was started. The lines are the last three minutes of this page."
    )
    _dashboard()


@st.fragment(run_every=LOOK_SECONDS)
def _dashboard() -> None:
    with told_failure():
        _guide(client().monitoring())
        seen = _seen(read_counters(client().metrics(), time.monotonic()))
        _now(seen)
        for row in (list(CHARTS)[:3], list(CHARTS)[3:]):
            for column, title in zip(st.columns(3, border=True), row, strict=True):
                with column:
                    _chart(title, seen)


def _chart(title: str, seen: Sequence[Activity]) -> None:
    """The newest value and its line over the last minutes; a mean holds until there is another."""
    unit, value = CHARTS[title]
    values: list[float | None] = []
    for one in seen:
        new = value(one)
        values.append(new if new is not None or not values else values[-1])
    last = values[-1] if values else None
    newest = "–" if last is None else f"{last:,.{0 if last >= 100 else 1}f} {unit}"
    st.markdown(f"**{title}** · {newest}")
    data = {"seconds ago": [one.seconds - seen[-1].seconds for one in seen], unit: values}
    st.area_chart(data, x="seconds ago", y=unit, y_label="", height=150, color=SEA)


def _seen(reading: Reading) -> Sequence[Activity]:
    """What happened between the readings of this browser session."""
    state = st.session_state
    kept: deque[Activity] = state.setdefault("activity", deque(maxlen=KEPT))
    last: Reading | None = state.get("reading")
    if last is not None:
        news = activity(last, reading)
        if news is None:
            kept.clear()
        else:
            kept.append(news)
    state.reading = reading
    return kept


def _guide(names: dict[str, float | None]) -> None:
    total, successful = names["total_requests"] or 0, names["successful_requests"] or 0
    seconds, memory = names["avg_response_time"], names["avg_memory_usage"]
    accuracy = names["skill_detection_accuracy"]
    share = f"{successful / total:.1%} of all" if total else None
    cells = (
        ("total_requests", f"{total:,.0f}", None),
        ("successful_requests", f"{successful:,.0f}", share),
        ("avg_response_time", "–" if seconds is None else f"{seconds * 1000:,.0f} ms", None),
        ("avg_memory_usage", "–" if memory is None else f"{memory / 2**20:,.0f} MB", None),
        ("skill_detection_accuracy", "–" if accuracy is None else f"{accuracy:.1%}", None),
    )
    for column, (name, value, note) in zip(st.columns(len(cells)), cells, strict=True):
        column.metric(name, value, note, border=True, delta_color="off", delta_arrow="off", height="stretch")


def _now(seen: Sequence[Activity]) -> None:
    if not seen:
        plain_line("The first interval is being measured…")
        return
    last = seen[-1]
    share = (
        "no adapter was looked up" if last.cache_hit_share is None else f"{last.cache_hit_share:.0%} found"
    )
    plain_line(
        f"Now: {last.running} answers running · {last.waiting} requests waiting · "
        f"{last.requests_per_second:.1f} requests per second · adapter cache: {share}"
    )
