"""Settings for a task: start a study, and see its trials, their curves, what matters, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from shoal.apps.ui.charts import PLAIN
from shoal.apps.ui.jobs import show_jobs
from shoal.apps.ui.tuning_charts import importance_bars, trial_curves, trial_losses
from shoal.apps.ui.typed_data import parse_examples
from shoal.apps.ui.widgets import (
    MAX_NAME,
    client,
    done_line,
    facts,
    plain_line,
    show_errors,
)
from shoal.server.client_records import SettingsStudy

MAX_MEGABYTES = 1
LEAST = 16
SHOWN = ("learning_rate", "steps", "adapter_rank", "target_modules")  # of the front's settings


def tuning_page() -> None:
    """The page."""
    st.title("Find settings")
    plain_line(
        "A study trains with many settings within a budget, then the best ones and the defaults anew on "
        "fresh seeds: its verdict is settings that are better, or that the defaults stay."
    )
    left, right = st.columns([5, 6], gap="medium")
    with left.container(border=True):
        _new()
    with right.container(border=True):
        st.subheader("Jobs")
        show_jobs()
    with st.container(border=True), show_errors():
        names = client().studies()
        st.subheader("Studies")
        if names:
            _show(client().study(st.selectbox("Study", names, key="study_shown")))
        else:
            plain_line("None yet.")


def _new() -> None:
    st.subheader("New study")
    file = st.file_uploader(
        "Solved examples (JSONL)", type=["jsonl", "txt"], max_upload_size=MAX_MEGABYTES, key="study_file"
    )
    definition = st.text_area(
        "Instruction that the examples follow", height=68, max_chars=4000, key="study_definition"
    )
    name = st.text_input("Name of the study", max_chars=56, key="study_name", placeholder="reviews-settings")
    one, two, three = st.columns(3)
    minutes = one.number_input("Minutes", 1, 1440, 20, key="study_minutes", help="of search and confirmation")
    trials = two.number_input("Trials", 1, 1000, None, key="study_trials", help="at most; empty for no limit")
    steps = three.number_input(
        "Steps", 1, 10_000, None, key="study_steps", help="of every trial; empty to search them too"
    )
    one, two = st.columns([2, 1])
    limits = one.text_input(
        "Limits, with commas",
        max_chars=400,
        key="study_limits",
        placeholder="adapter_rank<=16, bytes<=2e6, general_kept>=0.95",
        help="a setting; bytes of the adapter; seconds of one request; share of general questions kept",
    )
    second = two.selectbox(
        "Also kept small",
        [None, "bytes", "seconds"],
        key="study_second",
        format_func=lambda aim: aim or "nothing",
    )
    ready = bool(file and definition.strip() and name.strip())
    if st.button(
        "Find settings", type="primary", width="stretch", disabled=not ready, icon=":material/tune:"
    ):
        with show_errors():
            assert file is not None
            solved = parse_examples(file.getvalue().decode("utf-8", errors="replace"))
            asked = {
                "minutes": float(minutes),
                "trials": trials,
                "steps": steps,
                "limits": [limit for limit in map(str.strip, limits.split(",")) if limit],
                "second": second,
            }
            job = client().tune(name.strip(), definition.strip(), solved, **asked)
            done_line(f"The study is {job.state}")
    if not ready:
        plain_line(f"A file of {LEAST} examples or more, an instruction and a name are needed.")


def _show(study: SettingsStudy) -> None:
    _verdict(study)
    if not study.trials:
        plain_line("No trial yet.")
        return
    losses, curves = st.columns(2, gap="medium")
    losses.markdown("**Trials** on examples that select, and the best so far")
    losses.plotly_chart(trial_losses(study.trials), config=PLAIN, key="study_losses")
    curves.markdown("**Curves** by steps")
    curves.plotly_chart(trial_curves(study.trials), config=PLAIN, key="study_curves")
    if study.importance:
        st.markdown("**Importance** of each field, with its spread over resamples")
        st.plotly_chart(importance_bars(study.importance), config=PLAIN, key="study_importance")
    with st.expander(f"All {len(study.trials)} trials"):
        st.dataframe([_row(trial) for trial in study.trials], hide_index=True)


def _verdict(study: SettingsStudy) -> None:
    verdict = study.verdict
    if verdict is None:
        plain_line("No verdict yet: it comes after the search, on fresh seeds.")
        return
    if verdict["recommended"] is None:
        plain_line("The defaults stay: nothing was better on fresh seeds beyond chance.")
    else:
        done_line("Recommended: better than the defaults on fresh seeds")
    about = {
        "Defaults": f"{verdict['defaults_loss']:.4f} ± {verdict['defaults_spread']:.4f} on fresh seeds",
        **{f"Trial {own['trial']}": _candidate(own) for own in verdict["candidates"]},
        "Trials": ", ".join(f"{count} {state}" for state, count in verdict["trials"].items()),
        "Training": f"{verdict['tokens']} tokens in {verdict['seconds']:.0f} s",
        "The tuner itself": f"{verdict['overhead']:.1f} s",
    }
    facts(about)
    if verdict["front"]:
        st.markdown("**Front**: trials that no other one beats in both aims, by the search")
        st.dataframe([_on_front(row) for row in verdict["front"]], hide_index=True)
    if study.settings is not None:
        st.code(json.dumps(study.settings, indent=1) if study.settings else "{}", language="json")
        _train(study.name)


def _on_front(row: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: str(value) for name, value in row["settings"].items() if name in SHOWN}
    return {**{name: value for name, value in row.items() if name != "settings"}, **settings}


def _candidate(own: Mapping[str, Any]) -> str:
    gain = own["gain"]
    return (
        f"{own['loss']:.4f}, {gain['mean']:+.4f} better ({gain['low']:+.4f} to {gain['high']:+.4f}); "
        f"the search said {own['selection_loss']:.4f}"
    )


def _train(study: str) -> None:
    one, two = st.columns([3, 1], vertical_alignment="bottom")
    name = one.text_input("Name of the adapter", max_chars=MAX_NAME, key="study_adapter")
    if two.button("Train with them", disabled=not name.strip(), width="stretch"):
        with show_errors():
            job = client().train_found(study, name.strip())
            done_line(f"The training of {job.adapter} is {job.state}")


def _row(trial: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: str(value) for name, value in trial["settings"].items()}
    about = {
        "trial": trial["number"],
        "from": trial["origin"],
        "state": trial["state"],
        "loss": trial["loss"],
    }
    return {**about, **settings, "tokens": trial["tokens"], "why": trial["why"] or ""}
