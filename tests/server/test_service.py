"""The service on a real port: the official client works unchanged."""

from __future__ import annotations

from typing import Any

import openai

from tests.fixtures.service import GREEDY


def test_models_have_parents(running: Any, openai_client: openai.OpenAI, loud: str) -> None:
    models = {model.id: model for model in openai_client.models.list()}
    assert set(models) == {running.model, loud}
    assert models[loud].parent == running.model and models[running.model].parent is None  # type: ignore[attr-defined]
    assert openai_client.models.retrieve(loud).owned_by == "ada"
    assert openai_client.models.retrieve(running.model).owned_by == "shoal"


def test_chats_stream_what_they_answer_whole(running: Any, openai_client: openai.OpenAI, loud: str) -> None:
    answers = {}
    for model in (running.model, loud):
        whole = openai_client.chat.completions.create(model=model, **GREEDY)
        chunks = list(
            openai_client.chat.completions.create(
                model=model, stream=True, stream_options={"include_usage": True}, **GREEDY
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        answers[model] = whole.choices[0].message.content
        assert text == answers[model] and whole.choices[0].finish_reason == "length"
        assert chunks[0].choices[0].delta.role == "assistant" and not chunks[-1].choices
        assert chunks[-1].usage == whole.usage and whole.usage is not None
        assert whole.usage.completion_tokens == 8 and whole.model == model
        assert {c.id for c in chunks} == {chunks[0].id}
    assert answers[running.model] != answers[loud]


def test_completions_seeds_choices_and_scores(running: Any, openai_client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": running.model,
        "prompt": ["one", "two"],
        "max_tokens": 5,
        "n": 2,
        "seed": 7,
    }
    first, second = (openai_client.completions.create(logprobs=2, **options) for _ in range(2))
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert [c.index for c in first.choices] == [0, 1, 2, 3]
    scores = first.choices[0].logprobs
    assert scores is not None and scores.token_logprobs is not None and len(scores.token_logprobs) == 5
    assert all(len(top) <= 2 for top in scores.top_logprobs or ())
    streamed = list(openai_client.completions.create(stream=True, **options))
    for index, choice in enumerate(first.choices):
        pieces = [c.choices[0].text for c in streamed if c.choices and c.choices[0].index == index]
        assert "".join(pieces) == choice.text
    ids = openai_client.completions.create(model=running.model, prompt=[1, 2, 3], max_tokens=2)
    assert ids.usage is not None and ids.usage.prompt_tokens == 3
    chat = openai_client.chat.completions.create(model=running.model, logprobs=True, top_logprobs=3, **GREEDY)
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    assert [len(t.top_logprobs) for t in chat.choices[0].logprobs.content] == [3] * 8


def test_stop_strings_end_an_answer(running: Any, openai_client: openai.OpenAI) -> None:
    whole = openai_client.chat.completions.create(model=running.model, **GREEDY)
    text = whole.choices[0].message.content or ""
    stop = text[3:5]
    cut = openai_client.chat.completions.create(model=running.model, stop=stop, **GREEDY).choices[0]
    assert cut.message.content == text[: text.index(stop)] and cut.finish_reason == "stop"
