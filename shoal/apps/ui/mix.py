"""Adapters mixed by sliders, and what the mixture answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from shoal.apps.ui.charts import PLAIN, layer_lines
from shoal.apps.ui.chat import Asked, Style, stream_together, style_box, with_description
from shoal.apps.ui.widgets import (
    base_model,
    choose_adapters,
    choose_task,
    client,
    code_name,
    plain_line,
    show_errors,
)
from shoal.server.client_records import Adapter

MOST = 8  # what a service takes by default
EXAMPLE = "The plot made no sense and the acting was dreadful."
KEPT = 6


def mix_page() -> None:
    """The page."""
    st.title("Mix adapters")
    plain_line(
        "The model answers with the weighted sum of the adapters' changes. 1 is the adapter as it is, 0 is "
        "without it, below 0 takes away what it adds."
    )
    left, right = st.columns([4, 6], gap="medium")
    with left.container(border=True):
        adapters = choose_adapters("Adapters", "mix", MOST)
        weights = _weights(adapters)
        with show_errors():
            _norms(weights)
    with right.container(border=True):
        _request(adapters, weights)
    if history := st.session_state.get("mixed"):
        with st.container(border=True):
            st.subheader("Earlier mixtures")
            rows = [{"mixture": m, "request": r, "answer": a} for m, r, a in history]
            st.dataframe(rows, hide_index=True, key="mix_history")


def _weights(adapters: list[Adapter]) -> dict[str, float]:
    """A slider for each adapter; name -> weight."""
    start = round(1 / len(adapters), 2) if adapters else 1.0
    return {
        adapter.name: st.slider(
            code_name(adapter.name), -1.0, 2.0, start, 0.05, key=f"mix_{adapter.name}_{len(adapters)}"
        )
        for adapter in adapters
    }


def _request(adapters: list[Adapter], weights: dict[str, float]) -> None:
    request = st.text_area("Request", EXAMPLE, height=80, max_chars=20_000, key="mix_request").strip()
    task = choose_task(adapters, "mix")
    with st.container(horizontal=True, vertical_alignment="center"):
        style = style_box("mix")
        ask = st.button(
            "Ask the mixture", type="primary", icon=":material/tune:", disabled=not (request and weights)
        )
    before, after = st.columns(2, border=True)
    before.markdown("**Base model**")
    after.markdown("**Mixture**")
    places = [before.empty(), after.empty()]
    for place, text in zip(places, st.session_state.get("mixed_last", ("…", "…")), strict=True):
        place.text(text or "(an empty answer)")
    if ask:
        _ask(request, task, weights, places, style)


def _ask(
    request: str, task: str | None, weights: dict[str, float], places: Sequence[Any], style: Style
) -> None:
    """Ask the base model with the task in its prompt, and the mixture with the request alone."""
    mix = {"mix": [{"name": name, "weight": weight} for name, weight in weights.items()]}
    to_base = [{"role": "user", "content": with_description(request, task)}]
    to_mixture = [{"role": "user", "content": request}]
    answers: list[str] = []
    asked = [Asked(base_model(), to_base), Asked(base_model(), to_mixture, mix)]
    stream_together(client(), asked, places, style, answers)
    mixture = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    history: list[tuple[str, str, str]] = st.session_state.setdefault("mixed", [])
    history.insert(0, (mixture, request, answers[1]))
    del history[KEPT:]
    st.session_state.mixed_last = answers


def _norms(weights: dict[str, float]) -> None:
    if not weights:
        return
    plain_line("Norm of each adapter's change per layer, times its weight")
    scaled = {
        name: {module: abs(weight) * norm for module, norm in client().norms(name).items()}
        for name, weight in weights.items()
    }
    st.plotly_chart(layer_lines(scaled, height=220), config=PLAIN, key="mix_lines")
