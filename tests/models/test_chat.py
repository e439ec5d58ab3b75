"""Chat templates of every make: their text comes back and their closer is found, or one line refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from shoal.errors import ShoalError, UsageError
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import load_backbone, load_wording
from shoal.models.chat import probe_chat
from tests.conftest import CHATML, byte_tokenizer, save_tiny_model

OPEN, CLOSE, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
PARTS = TURN + "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STRINGS = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}"
# name -> (template, whether it wants parts, the token that closes)
WORKING = {
    "chatml": (CHATML, False, CLOSE),
    "parts": (PARTS + "<|im_end|>{% endfor %}" + ASK, True, CLOSE),
    "parts or fails": (
        TURN + "{{ m.content[0]['text'] }}<|im_end|>\n{% endfor %}" + ASK,
        True,
        CLOSE,
    ),
    "both": (
        TURN
        + "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}<|im_end|>"
        "{% endfor %}" + ASK,
        False,
        CLOSE,
    ),
    "a macro": (
        "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}" + ASK,
        False,
        CLOSE,
    ),
    "words for closers": (STRINGS + "\n{% endfor %}", False, None),
    "closed by eos alone": (STRINGS + "<|endoftext|>{% endfor %}", False, EOS),
    "always asks": (
        TURN + "{{ m.content }}\n{% endfor %}<|im_start|>assistant\n",
        False,
        None,
    ),
    "two closers": (TURN + "{{ m.content }}<|im_end|>{% endfor %}<|endoftext|>", False, CLOSE),
    "its own words before": ("answer: {{ bos_token }}" + CHATML, False, CLOSE),
}


def tokenizer_of(template: object) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", WORKING)
def test_a_template_keeps_its_text_and_closes_as_it_says(name: str) -> None:
    template, parts, closer = WORKING[name]
    tokenizer = tokenizer_of(template)
    found = probe_chat(tokenizer, "a model")
    assert found is not None and found.parts == parts
    assert found.closer == (None if closer is None else tokenizer.convert_tokens_to_ids(closer))
    assert "Hi there" in found.render(tokenizer, [[{"role": "user", "content": "Hi there"}]])[0]


REFUSED = {
    "escapes": (TURN + "{{ m.content | e }}<|im_end|>{% endfor %}", "loses the text"),
    "changes case": (TURN + "{{ m.content | upper }}<|im_end|>{% endfor %}", "loses the text"),
    "cuts long requests": (TURN + "{{ m.content | truncate }}<|im_end|>{% endfor %}", "loses the text"),
    "cuts what is very long": (TURN + "{{ m.content[:2000] }}<|im_end|>{% endfor %}", "loses the text"),
    "words tools alone": ("{% for t in tools or [] %}{{ t.name }}{% endfor %}", "loses the text"),
    "wants tools": ("{% for t in tools %}{{ t.name }}{% endfor %}{{ messages[0].content }}", "fails: "),
    "wants its own variable": ("{{ messages[0].content }}{{ date_of_training.year }}", "fails: "),
    "includes a file": ("{% include 'turn.jinja' %}{{ messages[0].content }}", "fails: "),
    "looks behind the text": ("{{ messages[0].content.__class__.__mro__ }}", "fails: |loses the text"),
    "cuts a request, but not a list": ("{{ messages[0].content[:5] }}", "loses the text"),
    "loses every text": (TURN + "<|im_end|>{% endfor %}", "loses the text"),
    "only defines a macro": (
        "{% macro f(messages) %}{{ messages[0].content }}{% endmacro %}",
        "loses the text",
    ),
    "fails": ("{{ messages[0].content + 1 }}{{ raise_exception('not today') }}", "fails: "),
    "is no template": ("{% for m in messages %}", "fails: "),
    "never ends": ("{% for i in range(10 ** 9) %}x{% endfor %}", "fails: "),
    "divides by zero": ("{{ 1 // 0 }}", "fails: "),
    "calls what is not there": ("{{ messages[0].content.nothing() }}", "fails: "),
    "has names alone": ({"rag": CHATML, "tool_use": CHATML}, "templates rag and tool_use and no default"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_without_the_text_of_a_request_is_refused_in_one_line(name: str) -> None:
    template, said = REFUSED[name]
    with pytest.raises(ShoalError, match=said) as caught:
        probe_chat(tokenizer_of(template), "a model")
    assert "\n" not in str(caught.value)


def test_the_default_of_several_templates_is_used() -> None:
    found = probe_chat(tokenizer_of({"default": CHATML, "rag": "x"}), "a model")
    assert found is not None and found.closer == byte_tokenizer().convert_tokens_to_ids(CLOSE)


def test_a_tokenizer_without_a_template_has_no_chat_format() -> None:
    assert probe_chat(tokenizer_of(None), "a model") is None


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
LOSING = {
    "system": (
        TURN + "{% if m.role != 'system' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
        [SYSTEM, USER],
    ),
    "assistant": ("<|im_start|>{{ messages[-1].content }}<|im_end|>", [USER, ANSWER, USER]),
}


@pytest.mark.parametrize("role", LOSING)
def test_a_message_that_the_template_would_leave_out_is_an_error(role: str) -> None:
    template, chat = LOSING[role]
    tokenizer = tokenizer_of(template)
    found = probe_chat(tokenizer, "a model")
    assert found is not None and role in found.lost
    with pytest.raises(UsageError, match=f"leaves {role} messages out"):
        found.render(tokenizer, [chat])


@pytest.mark.parametrize("error", ["raise_exception('no system')", "1 // 0", "m.content.x.y"])
def test_any_failure_of_a_template_on_a_message_is_one_line(error: str) -> None:
    template = TURN + "{% if m.role == 'system' %}{{ " + error + " }}{% endif %}{{ m.content }}{% endfor %}"
    tokenizer = tokenizer_of(template)
    found = probe_chat(tokenizer, "a model")
    assert found is not None
    with pytest.raises(UsageError, match="refuses the messages") as caught:
        found.render(tokenizer, [[SYSTEM, USER]])
    assert "\n" not in str(caught.value)


HALVES = {"tool_use": "{{ tools[0] }}", "default": CHATML, "rag": "{{ documents[0] }}"}
# name -> what is written into a model's directory beside its own template
FILES: dict[str, dict[str, object]] = {
    "a template in a file of its own": {"chat_template.jinja": CHATML},
    "others beside it": {
        "chat_template.jinja": CHATML,
        "additional_chat_templates/tool_use.jinja": HALVES["tool_use"],
    },
    "a list of named ones": {
        "tokenizer_config.json": [{"name": name, "template": text} for name, text in HALVES.items()]
    },
}


@pytest.mark.parametrize("kind", FILES)
def test_the_template_for_chats_is_found_wherever_it_is(kind: str, model: Path) -> None:
    expected = load_wording(str(model)).end_of_turn
    (model / "chat_template.jinja").unlink(missing_ok=True)
    change(model / "tokenizer_config.json", chat_template="{{ nothing }}")
    for name, content in FILES[kind].items():
        (model / name).parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            (model / name).write_text(content)
        else:
            change(model / name, chat_template=content)
    assert load_wording(str(model)).end_of_turn == expected


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model("llama", tmp_path / "model")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **values}))


ENDS: dict[str, tuple[str, object]] = {
    "a list for generation": ("generation_config.json", [257, 65]),
    "a number for generation": ("generation_config.json", 65),
    "a list in the configuration": ("config.json", [65, 66]),
    "a list of one": ("generation_config.json", [66]),
    "a token twice": ("config.json", [65, 65]),
}


@pytest.mark.parametrize("place", ENDS)
def test_the_ends_of_every_file_end_an_answer(place: str, model: Path) -> None:
    file, ends = ENDS[place]
    change(model / file, eos_token_id=ends)
    closer = byte_tokenizer().convert_tokens_to_ids(CLOSE)
    expected = {closer, *(ends if isinstance(ends, list) else [ends])}
    assert load_backbone(str(model), device="cpu").end_tokens >= expected
    assert load_wording(str(model)).end_tokens >= expected


def test_an_answer_stops_before_an_end_that_only_the_generation_settings_name(model: Path) -> None:
    backbone = load_backbone(str(model), device="cpu", dtype=torch.float32)
    prompt = torch.tensor([backbone.encode_prompt("go")])
    ids = backbone.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
    last = next(i for i in range(1, len(ids)) if ids[i] not in ids[:i])
    change(model / "generation_config.json", eos_token_id=[backbone.end_of_turn, ids[last]])
    again = load_backbone(str(model), device="cpu", dtype=torch.float32)
    assert generate_greedy(again, ["go"], max_new_tokens=6) == [backbone.decode(ids[:last])]
