"""A library of skills: scores over time, learn a skill, roll back, forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from shoal.apps.ui.charts import PLAIN, score_matrix
from shoal.apps.ui.jobs import show_jobs
from shoal.apps.ui.typed_data import parse_examples, split_words
from shoal.apps.ui.widgets import (
    MAX_NAME,
    client,
    done_line,
    facts,
    plain_line,
    show_errors,
    warning_line,
)
from shoal.library.gate import BOUND
from shoal.server.client_records import SkillLibrary

MEASURES = {
    "acc": "Mean now",
    "learned": "When learnt",
    "bwt": "Change since",
    "fwt": "Sentence over base",
    "forgetting": "Forgotten",
}


def library_page() -> None:
    """The page."""
    st.title("Library of skills")
    plain_line(
        "Skills are learnt one after another, each as a step that is committed only if no older skill loses "
        "by it. Every step can be undone; a request by the library's name finds its skill."
    )
    names: tuple[str, ...] = ()
    with show_errors():
        names = client().libraries()
    left, right = st.columns([6, 5], gap="medium")
    with left.container(border=True), show_errors():
        if names:
            _show(client().library(st.selectbox("Library", names, key="library_shown")))
        else:
            plain_line("None yet: learn a first skill.")
    with right.container(border=True):
        _learn(names)
    with st.container(border=True):
        st.subheader("Jobs")
        show_jobs()


def _show(library: SkillLibrary) -> None:
    st.subheader("Scores over time")
    history = library.history
    if history["skills"]:
        pairs = zip(history["skills"], history["versions"], strict=True)
        steps = [f"{skill} ({version})" for skill, version in pairs]
        figure = score_matrix(steps, history["skills"], history["matrix"])
        st.plotly_chart(figure, config=PLAIN, key="library_matrix")
        measured = {text: history["measures"][name] for name, text in MEASURES.items()}
        facts({text: _interval(value) for text, value in measured.items() if value})
    else:
        plain_line("No skills.")
    for skill in library.skills:
        labels = f" Labels: {', '.join(skill['labels'])}." if skill["labels"] else ""
        plain_line(f"{skill['skill']}: {skill['description']}{labels}")
    for pair in library.confused:
        warning_line(f"Inputs of {pair['skill']} and {pair['other']} look alike: name one with requests.")
    _undo(library)


def _interval(value: Mapping[str, Any]) -> str:
    spread = "" if value["low"] is None else f" ({value['low']:.1f} to {value['high']:.1f})"
    return f"{value['mean']:.1f}{spread}"


def _undo(library: SkillLibrary) -> None:
    one, two = st.columns(2)
    older = {_step(step): step["version"] for step in library.versions if step["version"] < library.version}
    step = one.selectbox("Version", list(reversed(older)), key="library_version", disabled=not older)
    if one.button("Roll back", disabled=not older, width="stretch", icon=":material/undo:"):
        with show_errors():
            client().rollback(library.name, older[step])
            st.rerun()
    names = [skill["skill"] for skill in library.skills]
    name = two.selectbox("Skill", names, key="library_skill", disabled=not names)
    if two.button("Forget", disabled=not names, width="stretch", icon=":material/delete:"):
        with show_errors():
            client().forget(library.name, name)
            done_line(f"{name} will be forgotten, for good", two)


def _step(step: Mapping[str, Any]) -> str:
    what = f"version {step['to']} again" if step["kind"] == "rollback" else step["skill"] or "no skills"
    return f"{step['version']}: {step['kind']} {what}"


def _learn(names: tuple[str, ...]) -> None:
    st.subheader("Learn a skill")
    library = st.text_input(
        "Name of the library", names[0] if names else "", max_chars=MAX_NAME, key="library_name"
    )
    name = st.text_input("Name of the skill", max_chars=MAX_NAME, key="skill_name", placeholder="reviews")
    description = st.text_area("What it shall do", height=68, max_chars=4000, key="skill_description")
    text = st.text_area(
        "Solved examples, 8 or more",
        height=150,
        key="skill_examples",
        placeholder="A joy from the first scene to the last. => positive",
    )
    left, right = st.columns([3, 2])
    labels = left.text_input(
        "Labels, with commas", key="skill_labels", placeholder="from sentence or examples"
    )
    bound = right.number_input(
        "Points others may lose", 0.0, 100.0, BOUND, step=0.5, format="%.1f", key="skill_bound"
    )
    allowed = st.text_input("Skills that may lose more, with commas", key="skill_allowed")
    ready = all(value.strip() for value in (library, name, description, text))
    if st.button(
        "Learn", type="primary", width="stretch", disabled=not ready, icon=":material/model_training:"
    ):
        with show_errors():
            settings = {"bound": bound, "allow_loss": split_words(allowed)}
            if given := split_words(labels):
                settings["labels"] = given
            solved = parse_examples(text)
            job = client().learn(library.strip(), name.strip(), description.strip(), solved, **settings)
            done_line(f"The job is {job.state}; {name.strip()} is committed if no older skill loses by it")
    if not ready:
        plain_line("Names, a sentence and examples are needed.")
