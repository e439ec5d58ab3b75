"""Adapters mixed by sliders, and what the mixture answers."""

from __future__ import annotations

import streamlit as st

from shoal.apps.ui.charts import PLAIN, layer_lines
from shoal.apps.ui.chat import Asked, stream_together, style_box
from shoal.apps.ui.widgets import base_model, choose_adapters, client, code_name, plain_line, show_errors

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
        start = round(1 / len(adapters), 2) if adapters else 1.0
        weights = {
            adapter.name: st.slider(
                code_name(adapter.name), -1.0, 2.0, start, 0.05, key=f"mix_{adapter.name}_{len(adapters)}"
            )
            for adapter in adapters
        }
        with show_errors():
            _norms(weights)
    with right.container(border=True):
        request = st.text_area("Request", EXAMPLE, height=80, max_chars=20_000, key="mix_request").strip()
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
        history: list[tuple[str, str, str]] = st.session_state.setdefault("mixed", [])
        if ask:
            mix = {"mix": [{"name": name, "weight": weight} for name, weight in weights.items()]}
            messages = [{"role": "user", "content": request}]
            asked = [Asked(base_model(), messages), Asked(base_model(), messages, mix)]
            answers: list[str] = []
            stream_together(client(), asked, places, style, answers)
            worded = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            history.insert(0, (worded, request, answers[1]))
            st.session_state.mixed_last = answers
            del history[KEPT:]
    if history:
        with st.container(border=True):
            st.subheader("Earlier mixtures")
            st.dataframe(
                [{"mixture": w, "request": r, "answer": a} for w, r, a in history],
                hide_index=True,
                key="mix_history",
            )


def _norms(weights: dict[str, float]) -> None:
    if not weights:
        return
    plain_line("Norm of each adapter's change per layer, times its weight")
    scaled = {
        name: {module: abs(weight) * norm for module, norm in client().norms(name).items()}
        for name, weight in weights.items()
    }
    st.plotly_chart(layer_lines(scaled, height=220), config=PLAIN, key="mix_lines")
