"""The registry: search, pages, details, publishing, deleting, importing and downloading."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import PurePath
from typing import Any

import streamlit as st

from shoal.apps.ui.charts import PLAIN, heat_map
from shoal.apps.ui.widgets import (
    MAX_NAME,
    base_model,
    client,
    code_name,
    done_line,
    facts,
    plain_line,
    show_errors,
    suggested_name,
)
from shoal.server.client_records import Adapter, AdapterPage

PAGE = 10
MAX_ZIP_MEGABYTES = 128


def registry_page() -> None:
    """The page."""
    st.title("Adapters")
    plain_line("Yours, and those that others made public. Any PEFT LoRA of this base model can be imported.")
    left, right = st.columns([13, 10], gap="medium")
    with left.container(border=True):
        chosen = _list()
    with right.container(border=True):
        if chosen is None:
            st.subheader("Details")
            plain_line(
                "Of the adapter that is chosen on the left: its picture, and how to share or delete it."
            )
        else:
            with show_errors():
                _details(chosen)
    with left:
        _import()


def _list() -> str | None:
    """The table; the name of the chosen row."""
    state = st.session_state
    search = st.text_input(
        "Search", key="search", placeholder="in names and descriptions", on_change=_first_page, max_chars=200
    )
    pages: list[str] = state.setdefault("pages", [""])
    page = AdapterPage((), None)
    with show_errors():
        page = client().page(search=search.strip(), after=pages[-1], limit=PAGE)
    if message := state.pop("registry_done", None):
        done_line(message)
    if not page.adapters:
        plain_line("No adapter here. Describe one, train one, or import one below.")
    rows = [
        {
            "name": a.name,
            "description": " ".join((a.description or "").split()),
            "public": a.public,
        }
        for a in page.adapters
    ]
    index = _choose_row(rows, f"{pages[-1]}_{search}") if rows else None
    _turn_pages(len(pages), page.after)
    if not page.adapters:
        return None
    return page.adapters[index if index is not None and index < len(rows) else 0].name


def _choose_row(rows: list[dict[str, Any]], page: str) -> int | None:
    """Show one page's table; the index of the chosen row."""
    state = st.session_state
    picked = st.dataframe(
        rows,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [min(state.get("registry_row", 0), len(rows) - 1)]}},
        key=f"adapters_{page}_{state.get('registry_round', 0)}",
        column_config={
            "name": st.column_config.TextColumn("Name", width=195),
            "description": st.column_config.TextColumn("Description", width=190),
            "public": st.column_config.CheckboxColumn("Public", width=60),
        },
    )
    index: int | None = next(iter(picked["selection"]["rows"]), None)
    state.registry_shown = index or 0
    return index


def _turn_pages(number: int, after: str | None) -> None:
    """Show the number of the page, and buttons to the one before and the one after."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Previous", icon=":material/chevron_left:", disabled=number == 1, on_click=_back, key="previous"
        )
        st.button(
            "Next",
            icon=":material/chevron_right:",
            disabled=after is None,
            on_click=_forward,
            args=(after,),
            key="next",
        )
        plain_line(f"Page {number}")


def _first_page() -> None:
    st.session_state.pages, st.session_state.registry_row = [""], 0


def _back() -> None:
    st.session_state.pages.pop()
    st.session_state.registry_row = 0


def _forward(after: str) -> None:
    st.session_state.pages.append(after)
    st.session_state.registry_row = 0


def _details(name: str) -> None:
    adapter = client().adapter(name)
    st.subheader(code_name(adapter.name))
    st.text(adapter.description or "(no description)")
    created = datetime.fromtimestamp(adapter.created, timezone.utc)
    about = {
        "owner": adapter.owner,
        "version": str(adapter.version),
        "rank": str(adapter.rank),
        "size": f"{adapter.bytes / 2**20:.2f} MB",
        "created": f"{created:%Y-%m-%d %H:%M} UTC",
        "generator": str(adapter.card.get("generator", "")),
        "base": adapter.base,
        "sha256": adapter.sha256[:16] + "…",
        **{f"score: {k}": f"{float(v):.3f}" for k, v in dict(adapter.card.get("scores") or {}).items()},
    }
    facts(about)
    st.plotly_chart(heat_map(client().norms(name), height=210), config=PLAIN, key=f"registry_picture_{name}")
    public = st.toggle("Others may use it", value=adapter.public, key=f"public_{name}_{adapter.public}")
    if public != adapter.public:
        client().publish(name, public)
        st.session_state.registry_row = st.session_state.registry_shown
        _changed(f"{name} is {'public' if public else 'private'} now")
    _actions(adapter)


def _actions(adapter: Adapter) -> None:
    name, service = adapter.name, client()
    with st.container(horizontal=True):
        if st.button(
            "Chat with it", icon=":material/forum:", type="primary", disabled=adapter.base != base_model()
        ):
            st.session_state.current, st.session_state.turns = adapter, []
            st.switch_page(st.session_state.chat_page)
        st.download_button(
            "Download ZIP",
            data=lambda: service.download(name),
            file_name=f"{name}.zip",
            mime="application/zip",
            on_click="ignore",
            icon=":material/download:",
            key=f"download_{name}",
        )
        if st.button("Delete…", icon=":material/delete:", key=f"delete_{name}"):
            _confirm(adapter)


@st.dialog("Delete this adapter?")
def _confirm(adapter: Adapter) -> None:
    st.text(f"{adapter.name} and all its versions will be gone for everybody.")
    with st.container(horizontal=True):
        if st.button("Delete it", type="primary", key="delete_sure"):
            with show_errors():
                client().delete(adapter.name)
                if st.session_state.get("current") and st.session_state.current.name == adapter.name:
                    st.session_state.current = None
                _changed(f"{adapter.name} is deleted")
        if st.button("Keep it", key="delete_not"):
            st.rerun()


def _import() -> None:
    with st.expander("Import an adapter", icon=":material/upload:"), st.form("import", border=False):
        file = st.file_uploader(
            "ZIP of a PEFT LoRA", type="zip", max_upload_size=MAX_ZIP_MEGABYTES, key="archive"
        )
        name = st.text_input(
            "Name", placeholder="from the file's name", max_chars=MAX_NAME, key="import_name"
        )
        public = st.checkbox("Others may use it", key="import_public")
        if st.form_submit_button("Import", icon=":material/upload:"):
            if file is None:
                plain_line("Choose a ZIP file first.")
                return
            with show_errors():
                kept = client().upload(
                    name.strip() or suggested_name(PurePath(file.name).stem), file.getvalue(), public=public
                )
                _changed(f"{kept.name} is kept as version {kept.version}")


def _changed(message: str) -> None:
    state = st.session_state
    state.registry_done, state.registry_round = message, state.get("registry_round", 0) + 1
    st.rerun()
