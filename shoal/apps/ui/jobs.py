"""Trainings: start one on uploaded examples, watch it, end it."""

from __future__ import annotations

import time

import streamlit as st

from shoal.apps.ui.widgets import (
    MAX_NAME,
    client,
    code_name,
    done_line,
    failure_line,
    plain_line,
    show_errors,
)
from shoal.server.client_records import TrainingJob

LOOK_SECONDS = 2.0
MAX_JSONL_MEGABYTES = 16
LINES = (
    '{"input": "A film that nobody needed.", "output": "negative"}\n{"input": "A joy.", "output": "positive"}'
)
ICONS = {
    "queued": ":material/hourglass_empty:",
    "running": ":material/sync:",
    "succeeded": ":material/check_circle:",
    "failed": ":material/error:",
    "cancelled": ":material/cancel:",
}


def jobs_page() -> None:
    """The page."""
    st.title("Train on examples")
    plain_line(
        "Where you have solved examples, a LoRA is trained on them in the background and kept as an adapter."
    )
    left, right = st.columns([5, 6], gap="medium")
    with left.container(border=True):
        _new()
    with right.container(border=True):
        st.subheader("Trainings")
        show_jobs()


def _new() -> None:
    st.subheader("New training")
    file = st.file_uploader("Examples (JSONL)", type=["jsonl", "json"], max_upload_size=MAX_JSONL_MEGABYTES)
    with st.expander("What the file looks like", icon=":material/description:", expanded=True):
        st.code(LINES, language="json", wrap_lines=True)
        plain_line("One JSON object a line, with input and output, a list where several outputs are right.")
    definition = st.text_area(
        "Instruction that the examples follow", height=68, max_chars=4000, key="definition"
    )
    name = st.text_input("Name of the adapter", max_chars=MAX_NAME, key="job_name", placeholder="my-reviews")
    one, two = st.columns(2)
    steps = one.number_input("Steps", 1, 10_000, 100, help="optimiser steps")
    rank = two.number_input("Rank", 1, 128, 16, help="of the LoRA")
    ready = bool(file and definition.strip() and name.strip())
    if st.button(
        "Start training", type="primary", width="stretch", disabled=not ready, icon=":material/play_arrow:"
    ):
        with show_errors():
            assert file is not None
            job = client().train(
                name.strip(), definition.strip(), file.getvalue(), steps=int(steps), rank=int(rank)
            )
            done_line(f"The training of {job.adapter} is {job.state}")
    if not ready:
        plain_line("A file, an instruction and a name are needed.")


@st.fragment(run_every=LOOK_SECONDS)
def show_jobs() -> None:
    """The newest jobs, drawn anew while they run; where one has ended, the whole page is, with its result."""
    with show_errors():
        jobs = client().jobs()
        ended = {job.id for job in jobs if not job.active}
        known = st.session_state.get("jobs_ended", ended)
        st.session_state.jobs_ended = ended
        if ended - known:
            st.rerun()
        if not jobs:
            plain_line("None yet.")
        for job in jobs[:8]:
            _show(job)


def _show(job: TrainingJob) -> None:
    with st.container(border=True):
        about, action = st.columns([4, 1], vertical_alignment="center")
        about.markdown(
            f"{ICONS.get(job.state, '')} {code_name(job.adapter)} · **{code_name(job.state)[1:-1]}**"
        )
        loss = "" if job.loss is None else f" · loss {job.loss:.3f}"
        minutes = max(0, int(time.time() - job.created)) // 60
        plain_line(f"step {job.step} of {job.steps}{loss} · started {minutes} min ago", about)
        about.progress(min(1.0, job.step / max(1, job.steps)))
        if job.active and action.button("Cancel", key=f"cancel_{job.id}"):
            client().cancel(job.id)
            st.rerun(scope="fragment")
        if job.error:
            failure_line(job.error)
