"""The same request answered by several adapters side by side, with what each changes."""

from __future__ import annotations

import streamlit as st

from shoal.apps.ui.charts import PLAIN, heat_map, layer_lines
from shoal.apps.ui.chat import Asked, stream_together, style_box, with_description
from shoal.apps.ui.widgets import (
    base_model,
    choose_adapters,
    choose_task,
    client,
    code_name,
    plain_line,
    show_errors,
)

MOST = 4
EXAMPLE = "The plot made no sense and the acting was dreadful."


def compare_page() -> None:
    """The page."""
    st.title("Compare adapters")
    plain_line("One request, answered by up to four adapters at once in the same batch.")
    with st.container(border=True):
        adapters = choose_adapters("Adapters", "compare", MOST)
        request = st.text_area("Request", EXAMPLE, height=80, max_chars=20_000, key="compare_request").strip()
        with st.container(horizontal=True, vertical_alignment="center"):
            with_base = st.toggle("Also the base model", value=True)
            task = choose_task(adapters, "compare") if with_base else None
            style = style_box("compare")
            ask = st.button(
                "Ask all",
                type="primary",
                icon=":material/play_arrow:",
                disabled=not (request and (adapters or with_base)),
            )
    names = ([None] if with_base else []) + [adapter.name for adapter in adapters]
    if not names:
        return
    places = []
    for column, name in zip(st.columns(len(names), border=True), names, strict=True):
        column.markdown("**Base model**" if name is None else f"**Adapter** {code_name(name)}")
        places.append(column.empty())
        places[-1].text(st.session_state.get("compared", {}).get(name, "") or "…")
    if ask:
        to_base = with_description(request, task)
        asked = [
            Asked(name or base_model(), [{"role": "user", "content": request if name else to_base}])
            for name in names
        ]
        answers: list[str] = []
        stream_together(client(), asked, places, style, answers)
        st.session_state.compared = dict(zip(names, answers, strict=True))
    with show_errors():
        _norms([adapter.name for adapter in adapters])


def _norms(names: list[str]) -> None:
    if not names:
        return
    norms = {name: client().norms(name) for name in names}
    top = max((norm for one in norms.values() for norm in one.values()), default=0.0)
    with st.container(border=True):
        st.subheader("How much each changes, per layer")
        st.plotly_chart(layer_lines(norms), config=PLAIN, key="compare_lines")
    for column, name in zip(st.columns(len(names), border=True), names, strict=True):
        with column:
            st.markdown(code_name(name))
            st.plotly_chart(
                heat_map(norms[name], top=top, height=230), config=PLAIN, key=f"compare_picture_{name}"
            )
