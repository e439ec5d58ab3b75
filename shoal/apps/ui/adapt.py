"""Describe a task, see its skills, generate the adapter, see it, and chat with the model before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from shoal.apps.ui.charts import PLAIN, falling_line, heat_map
from shoal.apps.ui.chat import Asked, Style, stream_together, style_box, with_description
from shoal.apps.ui.typed_data import parse_examples, parse_inputs
from shoal.apps.ui.widgets import (
    MAX_NAME,
    base_model,
    chips,
    client,
    code_name,
    done_line,
    plain_line,
    show_errors,
    suggested_name,
    warning_line,
)
from shoal.server.client_records import Adapter, GeneratedAdapter

EXAMPLES = {
    "Film reviews": (
        "Decide whether a movie review is positive or negative.",
        (
            "I laughed, I cried, and I would watch it again tomorrow.",
            "The plot made no sense and the acting was dreadful.",
        ),
    ),
    "Table booking": (
        "Say how many people a table is booked for.",
        ("A table for four at eight, please.", "Dinner for two on Friday."),
    ),
    "Places": (
        "Extract the name of the place from the sentence.",
        ("We spent the summer in Lisbon.", "Our office moved to Nairobi last year."),
    ),
}


EXAMPLES_HELP = (
    "One a line: input => output. Or JSON lines with input and output, which may be a list where several "
    "answers are right. 4 at least, 4 to 16 do well."
)
SUGGESTED = 4  # inputs that are worth labelling next
TRAINED = ("Refined on", "Calibrated on")  # how notes on training begin
INPUTS_HELP = (
    "One a line, 4 at least. Where the answers are a closed set, such as positive or negative, they are "
    "calibrated on these."
)

SAMPLES_HELP = "Texts that the package ships, of the kind that fits the task best; your own are better."


@dataclass(frozen=True)
class Turn:
    """One question and both answers.

    Attributes:
        question: as typed.
        prompt: what the base model was sent: the task before the question, or the question alone.
        answers: before and after; one that failed is empty.
    """

    question: str
    prompt: str
    answers: list[str] = field(default_factory=lambda: ["", ""])


def adapt_page() -> None:
    """The page."""
    st.title("A sentence in, an adapter out")
    plain_line(
        "Describe a task, and the hypernetwork turns your sentence into a LoRA adapter in a moment. A few "
        "solved examples make it several times better."
    )
    left, right = st.columns([5, 6], gap="medium")
    with left.container(border=True, height="stretch"):
        _describe()
    with right.container(border=True, height="stretch"):
        current: Adapter | None = st.session_state.get("current")
        _picture(current)
    _chat(current)


def _describe() -> None:
    state = st.session_state
    st.subheader("1 · Describe the task")
    st.pills(
        "Examples",
        list(EXAMPLES),
        key="example",
        on_change=_take_example,
        label_visibility="collapsed",
    )
    state.setdefault("description", EXAMPLES["Film reviews"][0])
    description = st.text_area(
        "Task",
        key="description",
        max_chars=4000,
        height=80,
        placeholder="Decide whether a movie review is positive or negative.",
        label_visibility="collapsed",
    ).strip()
    if description:
        with show_errors():
            _skills(description)
    data = _data_boxes()
    name_box, public_box = st.columns([3, 2], vertical_alignment="bottom")
    name = name_box.text_input(
        "Name",
        key="adapter_name",
        max_chars=MAX_NAME,
        placeholder=suggested_name(description),
        help="a-z, 0-9, '.', '_' and '-'. A name of your own that is taken gets a new version.",
    )
    public = public_box.checkbox("Public", help="Everybody with a key sees a public adapter.")
    if st.button(
        "Generate adapter", type="primary", width="stretch", icon=":material/bolt:", disabled=not description
    ):
        state.current, state.generated, state.turns = None, None, []  # also where this one is refused
        with show_errors():
            _generate(name.strip() or suggested_name(description), description, public, data)


@dataclass(frozen=True)
class _Data:
    """What a user has besides a description, as it was typed."""

    examples: str
    inputs: str
    sample_inputs: bool


def _data_boxes() -> _Data:
    with st.expander("Examples and inputs (optional, but better)", icon=":material/checklist:"):
        examples = st.text_area(
            "Solved examples",
            key="examples",
            height=110,
            placeholder="I loved every minute. => positive\nA bore. => negative",
            help=EXAMPLES_HELP,
        )
        inputs = st.text_area(
            "Inputs without answers",
            key="inputs",
            height=80,
            placeholder="The soundtrack alone is worth it.",
            help=INPUTS_HELP,
        )
        samples = st.checkbox(
            "No inputs at hand: use sample inputs",
            key="sample_inputs",
            disabled=bool(inputs),
            help=SAMPLES_HELP,
        )
    return _Data(examples, inputs, samples and not inputs)


def _generate(name: str, description: str, public: bool, data: _Data) -> None:
    solved, unsolved = parse_examples(data.examples), parse_inputs(data.inputs)
    counts = ((solved, "examples"), (unsolved, "inputs"))
    materials = [f"{len(given)} {what}" for given, what in counts if given]
    trained = " and ".join(materials + (["sample inputs"] if data.sample_inputs else []))
    with st.spinner(
        f"Generating, then training on {trained}: seconds to minutes…" if trained else "Generating…"
    ):
        generated = client().create(
            name,
            description,
            public=public,
            examples=solved,
            inputs=unsolved,
            sample_inputs=data.sample_inputs,
            suggest=SUGGESTED if solved and unsolved else 0,
        )
    st.session_state.current = generated.adapter
    st.session_state.generated = generated


def _take_example() -> None:
    if st.session_state.example:
        st.session_state.description = EXAMPLES[st.session_state.example][0]
        st.session_state.adapter_name = ""


def _skills(description: str) -> None:
    found = client().detect_skills(description)
    if found:
        chips(
            "Detected skills", {skill.replace("_", " "): f"{weight:.0%}" for skill, weight in found.items()}
        )
    else:
        plain_line("Detected skills: none of those known. The adapter is generated all the same.")


def _picture(current: Adapter | None) -> None:
    st.subheader("2 · The adapter")
    if current is None:
        plain_line("Its picture appears here: how much it changes every module in every layer of the model.")
        return
    generated: GeneratedAdapter | None = st.session_state.get("generated")
    new = generated if generated is not None and generated.adapter == current else None
    about = [
        current.name,
        f"version {current.version}",
        f"rank {current.rank}",
        f"{current.bytes / 2**20:.1f} MB",
        "public" if current.public else "",
        f"confidence {new.confidence:.0%}" if new and new.confidence is not None else "",
    ]
    done_line(" · ".join(filter(None, about)))
    for note in new.notes if new else _kept_notes(current):
        warning_line(note)
    for note in current.card.get("notes") or ():
        if str(note).startswith(TRAINED):
            plain_line(str(note))
    if new is not None:
        _refined(new)
    plain_line("Norm of the delta weight per layer and module: how much it changes each")
    with show_errors():
        st.plotly_chart(heat_map(client().norms(current.name), height=215), config=PLAIN, key="picture")


def _refined(new: GeneratedAdapter) -> None:
    """The loss as it fell, and the examples that would make the adapter better still."""
    if new.curve:
        plain_line("Loss while it was refined on the examples, in nats per token")
        st.plotly_chart(falling_line(new.curve), config=PLAIN, key="falling")
    if new.more:
        warning_line(
            f"{new.more} more solved examples promise {new.promised:.2f} nats per token less; add them and "
            "generate again."
        )
    if new.to_label:
        plain_line("Label these first, where the adapter is least sure: " + " | ".join(new.to_label))


def _kept_notes(adapter: Adapter) -> list[str]:
    """What is known of an adapter that was generated earlier, or elsewhere."""
    if adapter.card.get("trained", True):
        return []
    return ["No hypernetwork was trained for this base model, so this adapter changes nothing."]


def _chat(current: Adapter | None) -> None:
    with st.container(border=True):
        st.subheader("3 · Before and after")
        if current is None:
            plain_line("Generate an adapter, or choose one under Adapters, and ask both models the same.")
            return
        with_task, remember, style = _settings(current)
        turns: list[Turn] = st.session_state.setdefault("turns", [])
        before, after = st.columns(2, gap="medium")
        before.markdown("**Before** · the base model")
        after.markdown(f"**After** · with {code_name(current.name)}")
        for turn in turns:
            _show(before, turn.question).text(turn.answers[0] or "(no answer)")
            _show(after, turn.question).text(turn.answers[1] or "(no answer)")
        places = [column.container() for column in (before, after)]
        question = _question(current, bool(turns))
        if question:
            prompt = with_description(question, current.description) if with_task else question
            turn = Turn(question, prompt)
            earlier = list(turns) if remember else []
            turns.append(turn)  # at once: what was said stays where the page is left on the way
            _answer(turn, earlier, current, places, style)


def _settings(current: Adapter) -> tuple[bool, bool, Style]:
    row = st.container(horizontal=True, vertical_alignment="center")
    with row:
        with_task = st.toggle(
            "Tell the base model the task",
            value=True,
            disabled=not current.description,
            help="Puts the description before every message to the base model; the adapter needs no words.",
        )
        remember = st.toggle("Remember earlier turns", value=True)
        style = style_box("chat")
        if st.button("Clear", icon=":material/delete_sweep:", key="clear"):
            st.session_state.turns = []
    return with_task, remember, style


def _question(current: Adapter, started: bool) -> str:
    samples = next((s for d, s in EXAMPLES.values() if d == current.description), ())
    picked, offered = "", st.empty()
    if samples and not started:
        with offered.container(horizontal=True):
            for number, sample in enumerate(samples):
                if st.button(sample, key=f"sample_{number}", icon=":material/chat_bubble:"):
                    picked = sample
    typed = st.chat_input("Ask both models", key="question", max_chars=20_000, submit_mode="stop")
    asked = str(typed or picked).strip()
    if asked:
        offered.empty()
    return asked


def _answer(turn: Turn, earlier: list[Turn], current: Adapter, places: list[Any], style: Style) -> None:
    """Draw both answers while they come, and keep them in the turn."""
    before, after = [], []
    for old in earlier:
        if all(old.answers):
            before += [_message("user", old.prompt), _message("assistant", old.answers[0])]
            after += [_message("user", old.question), _message("assistant", old.answers[1])]
    asked = [
        Asked(base_model(), [*before, _message("user", turn.prompt)]),
        Asked(current.name, [*after, _message("user", turn.question)]),
    ]
    drawn = [_show(place, turn.question).empty() for place in places]
    stream_together(client(), asked, drawn, style, turn.answers)


def _show(column: Any, question: str) -> Any:
    """A question in a column, and the bubble for its answer."""
    with column.chat_message("user", avatar=":material/person:"):
        st.text(question)
    return column.chat_message("assistant", avatar=":material/waves:")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
