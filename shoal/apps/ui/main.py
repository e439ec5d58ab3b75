"""The web page: who is asked with which key, and which pages there are. Started by `shoal ui`.

A client of the service's API and of nothing else; Streamlit runs this file anew for every click. What comes
from outside, such as names, descriptions, answers and errors, is shown as text, never as Markdown or HTML.
"""

from __future__ import annotations

import argparse
import os

import streamlit as st

from shoal.apps.ui.adapt import adapt_page
from shoal.apps.ui.compare import compare_page
from shoal.apps.ui.jobs import jobs_page
from shoal.apps.ui.library import library_page
from shoal.apps.ui.merge import merge_page
from shoal.apps.ui.mix import mix_page
from shoal.apps.ui.monitoring import monitoring_page
from shoal.apps.ui.registry import registry_page
from shoal.apps.ui.tuning import tuning_page
from shoal.apps.ui.widgets import plain_line, show_errors
from shoal.server.client import DEFAULT_URL, KEY_VARIABLE, Client

# A picture of ours: for an icon by name, the browser would ask another machine.
_WAVE = "q3-3 6 0t6 0 6 0"
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" stroke="#0f766e" stroke-width="2.6">'
    f'<path fill="none" d="M2 7{_WAVE}M2 13{_WAVE}M2 19{_WAVE}"/></svg>'
)
STYLE = """<style>
.block-container {padding: 2.4rem 2.6rem 2rem 2.6rem; max-width: 1280px;}
[data-testid="stSidebarHeader"]::before {content: "Shoal"; font-size: 1.5rem; font-weight: 700;
  color: #0b4f49;}
[data-testid="stMetricLabel"] p {font-size: .76rem;}
[data-testid="stSidebar"] {min-width: 230px; max-width: 250px;}
[data-testid="stChatMessage"] {padding: .55rem .75rem;}
h1 {font-size: 1.75rem !important; padding: 0 0 .1rem 0 !important;}
h3 {font-size: 1.05rem !important; padding: .1rem 0 !important;}
.shoal-chip {display: inline-block; padding: .12rem .6rem; margin: 0 .35rem .3rem 0; border-radius: 1rem;
  background: #d5ece8; color: #0b4f49; font-size: .86rem;}
.shoal-facts {font-size: .86rem; border-spacing: 0; width: 100%;}
.shoal-facts td {padding: .16rem .5rem .16rem 0; overflow-wrap: anywhere; vertical-align: top;}
.shoal-facts td:first-child {color: #5d6d6a; width: 6.2rem;}
.shoal-chip b {font-weight: 600; opacity: .65; margin-left: .35rem;}
.shoal-line {padding: .55rem .8rem; border-radius: .5rem; font-size: .92rem; overflow-wrap: anywhere;}
.shoal-failure {background: #fdecea; color: #7a1c12;}
.shoal-warning {background: #fff4d6; color: #6b4a00;}
.shoal-done {background: #e3f4ec; color: #0d5233;}
.shoal-quiet {color: #5d6d6a; padding: .1rem 0; font-size: .88rem;}
</style>"""


def main() -> None:
    """One run of the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--service", default=DEFAULT_URL)
    service = parser.parse_args().service
    st.set_page_config(page_title="Shoal", page_icon=ICON, layout="wide")
    st.html(STYLE)
    chat = st.Page(adapt_page, title="Describe & chat", icon=":material/auto_awesome:", default=True)
    st.session_state.chat_page = chat
    page = st.navigation(
        [
            chat,
            st.Page(compare_page, title="Compare", icon=":material/view_column:", url_path="compare"),
            st.Page(mix_page, title="Mix", icon=":material/tune:", url_path="mix"),
            st.Page(merge_page, title="Merge", icon=":material/merge:", url_path="merge"),
            st.Page(library_page, title="Library", icon=":material/school:", url_path="library"),
            st.Page(tuning_page, title="Settings", icon=":material/experiment:", url_path="settings"),
            st.Page(registry_page, title="Adapters", icon=":material/inventory_2:", url_path="adapters"),
            st.Page(jobs_page, title="Training", icon=":material/model_training:", url_path="training"),
            st.Page(monitoring_page, title="Monitoring", icon=":material/monitoring:", url_path="monitoring"),
        ]
    )
    with st.sidebar:
        connected = _connect(service)
    if connected:
        page.run()
    else:
        st.title("Shoal")
        plain_line("Not connected: see the line in the sidebar.")


def _connect(service: str) -> bool:
    """Find the service with the key at hand; whether it answers."""
    given = os.environ.get(KEY_VARIABLE, "")
    if "typed_key" not in st.session_state:  # Streamlit forgets it when a button leads to another page
        st.session_state.typed_key = st.session_state.get("kept_key", "")
    typed = st.text_input(
        "API key",
        type="password",
        key="typed_key",
        placeholder="from the environment" if given else "sk-shoal-…",
        help="Made by `shoal keys create NAME`. It stays in this session and goes to the service alone. "
        "A service that runs with `--open` needs none.",
    )
    st.session_state.kept_key = typed
    who = (service, typed.strip() or given)
    if st.session_state.get("who") != who:
        st.session_state.pop("base", None)
        if "client" in st.session_state:
            st.session_state.client.close()
            del st.session_state.client
        st.session_state.who = who
    connected = False
    with show_errors():
        if "client" not in st.session_state:
            st.session_state.client = Client(*who)
        if "base" not in st.session_state:
            st.session_state.base = st.session_state.client.base_model()
        connected = True
    if connected:
        plain_line(f"Connected to {service}")
        plain_line(f"Base model: {st.session_state.base}")
    else:
        st.button("Try again", width="stretch")
    return connected


if __name__ == "__main__":
    main()
