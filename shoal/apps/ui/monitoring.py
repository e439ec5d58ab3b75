"""The dashboard: the guide's names, and what the engine does, refreshed while the page is open."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from shoal.apps.ui.counters import Activity, Snapshot, activity, parse_counters
from shoal.apps.ui.widgets import client, plain_line, show_errors

LOOK_SECONDS, KEPT = 2.0, 90
MINUTES = 3
SEA = "#2a9d8f"
MEASURING = "The first values appear in a few seconds."
NOTHING_YET = "Nothing yet: no answer was generated while this page was open."
CHARTS: dict[str, tuple[str, Callable[[Activity], float | None]]] = {
    "Tokens per second": ("tokens/s", lambda a: a.tokens_per_second),
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
    with show_errors():
        _guide(client().monitoring())
        seen = _seen(parse_counters(client().metrics(), time.monotonic()))
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
    if last is None:
        st.markdown(f"**{title}**")
        plain_line(NOTHING_YET if seen else MEASURING)
        return
    st.markdown(f"**{title}** · {last:,.{0 if last >= 100 else 1}f} {unit}")
    points = [
        {"seconds": one.seconds - seen[-1].seconds, "value": height}
        for one, height in zip(seen, values, strict=True)
    ]
    st.vega_lite_chart(
        points, _area(unit, max(filter(None, values), default=0.0)), width="stretch", key=f"chart_{title}"
    )


def _area(unit: str, highest: float) -> dict[str, Any]:
    """A filled line over the last minutes, whose axes say what they show."""
    height = {"domainMin": 0} if highest else {"domain": [0, 1]}
    minutes = {"values": [-60 * minute for minute in range(MINUTES, -1, -1)], "grid": False, "title": None}
    words = "datum.value == 0 ? 'now' : -datum.value / 60 + ' min ago'"
    axis = {"title": unit, "tickCount": 4, "format": ",.3~r"}
    return {
        "height": 150,
        "mark": {"type": "area", "color": SEA, "opacity": 0.35, "line": {"color": SEA}},
        "encoding": {
            "x": {
                "field": "seconds",
                "type": "quantitative",
                "scale": {"domain": [-60 * MINUTES, 0]},
                "axis": {**minutes, "labelExpr": words, "labelFlush": True},
            },
            "y": {"field": "value", "type": "quantitative", "scale": height, "axis": axis},
        },
    }


def _seen(snapshot: Snapshot) -> Sequence[Activity]:
    """What happened between the snapshots of this browser session."""
    state = st.session_state
    kept: deque[Activity] = state.setdefault("activity", deque(maxlen=KEPT))
    last: Snapshot | None = state.get("snapshot")
    if last is not None:
        news = activity(last, snapshot)
        if news is None:
            kept.clear()
        else:
            kept.append(news)
    state.snapshot = snapshot
    return kept


def _guide(names: dict[str, float | None]) -> None:
    total, successful = names["total_requests"] or 0, names["successful_requests"] or 0
    seconds, memory = names["avg_response_time"], names["avg_memory_usage"]
    accuracy = names["skill_detection_accuracy"]
    share = f"{successful / total:.1%} of all" if total else None
    cells = (
        ("Requests", f"{total:,.0f}", None, "total_requests"),
        ("Successful", f"{successful:,.0f}", share, "successful_requests"),
        ("Mean response", _known(seconds, lambda s: f"{s * 1000:,.0f} ms"), None, "avg_response_time"),
        ("Mean memory", _known(memory, lambda m: f"{m / 2**20:,.0f} MB"), None, "avg_memory_usage"),
        ("Skill detection", _known(accuracy, lambda a: f"{a:.1%}"), "right", "skill_detection_accuracy"),
    )
    for column, (label, value, note, name) in zip(st.columns(len(cells)), cells, strict=True):
        about = f"`{name}` in GET /v1/monitoring"
        column.metric(
            label,
            value,
            note,
            help=about,
            border=True,
            delta_color="off",
            delta_arrow="off",
            height="stretch",
        )


def _known(value: float | None, shown: Callable[[float], str]) -> str:
    return "none yet" if value is None else shown(value)


def _now(seen: Sequence[Activity]) -> None:
    if not seen:
        plain_line(MEASURING)
        return
    last = seen[-1]
    share = (
        "no adapter was asked for"
        if last.cache_hit_share is None
        else f"{last.cache_hit_share:.0%} of the adapters were in memory"
    )
    plain_line(
        f"Now: {last.running} answers running · {last.waiting} requests waiting · "
        f"{last.requests_per_second:.1f} requests per second · {share}"
    )
