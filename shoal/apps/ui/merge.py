"""Several adapters as one: start a merge, and see what each merge keeps, its verdict and its trade-offs."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import streamlit as st

from shoal.apps.ui.charts import PLAIN, kept_bars, trade_offs
from shoal.apps.ui.jobs import show_jobs
from shoal.apps.ui.typed_data import parse_examples, parse_inputs
from shoal.apps.ui.widgets import (
    MAX_NAME,
    choose_adapters,
    client,
    code_name,
    done_line,
    plain_line,
    show_errors,
)
from shoal.server.client_records import Adapter

MOST, MAX_MEGABYTES = 16, 8
SEARCH = "search for weights (needs solved examples)"
REGMEAN = "regmean (needs inputs)"
METHODS = (
    "linear",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "breadcrumbs",
    "model_stock",
    "knots_ties",
    "tsv",
    "iso_c",
)
PLAIN_SUM = "sum, or regmean with inputs"
SEARCHED = (PLAIN_SUM, "ties", "dare_ties", "breadcrumbs", "knots_ties")
KEPT = "kept_"  # how scores of a card begin that say what a merge keeps of a task


def merge_page() -> None:
    """The page."""
    st.title("Merge adapters")
    plain_line(
        "Several adapters become one file. With solved examples of each one's task, the merge says what it "
        "keeps of every skill, and whether to keep them apart: the service answers with many at once."
    )
    left, right = st.columns([5, 6], gap="medium")
    with left.container(border=True):
        _new()
    with right.container(border=True):
        st.subheader("Merges and trainings")
        show_jobs()
    with st.container(border=True), show_errors():
        _results()


def _new() -> None:
    parents = choose_adapters("Parents", "merge", MOST)
    start = choose_adapters("Adapter that all were trained on from, if one was", "merge_start", 1)
    method = st.selectbox("Method", [*METHODS, REGMEAN, SEARCH], key="merge_method")
    searched = PLAIN_SUM
    if method == SEARCH:
        searched = st.selectbox(
            "What the search weighs", SEARCHED, key="merge_searched", help="all but sums have densities too"
        )
    by_inputs = method == REGMEAN or (method == SEARCH and searched == PLAIN_SUM)
    inputs = _inputs([parent.name for parent in parents]) if by_inputs else {}
    files = st.file_uploader(
        "Solved examples, a file for each task (JSONL)",
        type=["jsonl", "txt"],
        accept_multiple_files=True,
        max_upload_size=MAX_MEGABYTES,
        help="input and output a line, 8 at least; half of them at most decide on the verdict.",
    )
    name = st.text_input("Name of the merge", max_chars=MAX_NAME, key="merge_name", placeholder="all-in-one")
    one, two, three = st.columns(3)
    rank = one.number_input(
        "Rank", 1, 128, 16, key="merge_rank", help="of the result; vLLM serves 16 without a flag"
    )
    generations = two.number_input(
        "Generations", 1, 1000, 12, key="merge_generations", disabled=method != SEARCH
    )
    minutes = three.number_input(
        "Minutes", 1, 1440, None, key="merge_minutes", disabled=method != SEARCH, help="the search ends then"
    )
    given = {SEARCH: bool(files), REGMEAN: len(inputs) == len(parents)}.get(method, True)
    ready = len(parents) > 1 and bool(name.strip()) and given
    if st.button("Merge", type="primary", width="stretch", disabled=not ready, icon=":material/merge:"):
        with show_errors():
            settings: dict[str, Any] = {
                "rank": int(rank),
                "tasks": [_task(f.name, f.getvalue()) for f in files],
                **({"start": start[0].name} if start else {}),
            }
            if method == SEARCH:
                settings |= {"evolve": True, "generations": int(generations), "minutes": minutes}
                settings |= {} if searched == PLAIN_SUM else {"method": searched}
            elif method != REGMEAN:
                settings |= {"method": method}
            if typed := {parent: parse_inputs(text) for parent, text in inputs.items()}:
                settings |= {"inputs": typed}
            job = client().merge(name.strip(), [parent.name for parent in parents], **settings)
            done_line(f"The merge {job.adapter} is {job.state}")
    if not ready:
        plain_line(
            "Two parents and a name are needed; regmean needs inputs of every parent, and a search files of "
            "solved examples."
        )


def _inputs(parents: list[str]) -> dict[str, str]:
    """What was typed as inputs, by parent."""
    if not parents:
        return {}
    with st.expander("Inputs without answers, 16 or more for each parent", expanded=True):
        plain_line("They say what each parent is asked. A search with inputs goes on from regmean.")
        typed = {
            parent: place.text_area(
                f"Inputs of {code_name(parent)}, one a line", key=f"merge_inputs_{parent}", height=120
            )
            for parent, place in zip(parents, st.tabs([code_name(p) for p in parents]), strict=True)
        }
    return {parent: text for parent, text in typed.items() if text.strip()}


def _task(file: str, content: bytes) -> dict[str, Any]:
    """A task of the request, named after its file."""
    name = PurePath(file).stem
    solved = parse_examples(content.decode("utf-8", errors="replace"))
    examples = [{"input": text, "output": list(outputs)} for text, outputs in solved]
    return {"name": name, "definition": name, "examples": examples}


def _results() -> None:
    st.subheader("What merges keep")
    merged = [a for a in client().page(limit=200).adapters if a.card.get("generator") == "merging"]
    if not merged:
        plain_line("None yet.")
        return
    names = [adapter.name for adapter in merged]
    shown = st.selectbox("Merge", names, key="merge_shown")
    adapter = merged[names.index(shown)]
    family = shown.split(".")[0]
    members = {a.name: kept for a in merged if a.name.split(".")[0] == family and (kept := _kept(a))}
    for note in adapter.card.get("notes") or ():
        plain_line(str(note))
    plain_line("Parents: " + ", ".join(adapter.card.get("parents") or ()))
    left, right = st.columns(2, gap="medium")
    if adapter.name in members:
        left.markdown(f"**Kept of every skill** by {code_name(adapter.name)}")
        left.plotly_chart(kept_bars(members[adapter.name]), config=PLAIN, key="merge_kept")
    else:
        plain_line("No examples of its parents' tasks were given, so nobody knows what it keeps.", left)
    if len(members) > 1 and len(next(iter(members.values()))) > 1:
        right.markdown("**Trade-offs** between the first two skills")
        right.plotly_chart(trade_offs(members), config=PLAIN, key="merge_front")


def _kept(adapter: Adapter) -> dict[str, float]:
    scores = adapter.card.get("scores") or {}
    return {name.removeprefix(KEPT): float(v) for name, v in scores.items() if name.startswith(KEPT)}
