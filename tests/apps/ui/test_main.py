"""What the web page says when something is wrong, and that nothing from outside becomes HTML or Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from shoal.adapters.card import AdapterCard
from shoal.apps.cli.ui import PAGE, Page, flags, ui
from shoal.apps.ui.charts import heat_map, layer_lines, trade_offs
from shoal.apps.ui.merge import REGMEAN, SEARCH
from shoal.apps.ui.widgets import code_name, suggested_name
from shoal.errors import UsageError
from shoal.models.shapes import load_shape
from shoal.server.client import Client
from shoal.server.client_records import GeneratedAdapter, TrainingJob
from tests.fixtures.merging import random_lora

NOBODY = "http://127.0.0.1:1"


def lines(app: AppTest, kind: str = "failure") -> list[str]:
    """The lines of a kind that the page shows; it must not have failed in any other way."""
    assert not app.exception, app.exception
    return [
        h.proto.body
        for h in app.get("html")
        if h.proto.body.startswith(f'<div class="shoal-line shoal-{kind}"')
    ]


@contextmanager
def whole(
    monkeypatch: pytest.MonkeyPatch, url: str, typed: str = "", environment: str = ""
) -> Iterator[AppTest]:
    """The page as `shoal ui` starts it, with a key that is typed or in the environment."""
    monkeypatch.setattr(sys, "argv", ["ui.py", "--service", url])
    monkeypatch.setenv("OPENAI_API_KEY", environment)
    app = AppTest.from_file(str(PAGE), default_timeout=60).run()
    yield app.text_input(key="typed_key").set_value(typed).run() if typed else app
    app.session_state["client"].close()


@contextmanager
def page(name: str, url: str, key: str, **state: Any) -> Iterator[AppTest]:
    """One page alone, as after connecting."""
    script = f"from shoal.apps.ui.{name} import {name}_page\n{name}_page()"
    app = AppTest.from_string(script, default_timeout=60)
    with Client(url, key) as client:
        for field, value in {"client": client, "base": "base", **state}.items():
            app.session_state[field] = value
        yield app.run()


def test_an_unreachable_service_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with whole(monkeypatch, NOBODY) as app:
        (line,) = lines(app)
        assert "cannot be reached" in line and "shoal serve" in line and 'role="alert"' in line


@pytest.mark.parametrize("key", ["", "sk-shoal-mistyped"])
def test_a_wrong_key_is_one_line(monkeypatch: pytest.MonkeyPatch, running: Any, key: str) -> None:
    with whole(monkeypatch, running.url, key) as app:
        (line,) = lines(app)
        assert "401" in line and "mistyped" not in line


@pytest.mark.parametrize("how", ["typed", "environment"])
def test_a_right_key_connects_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, running: Any, how: str
) -> None:
    with whole(monkeypatch, running.url, **{how: running.ada}) as app:
        assert not lines(app) and any("Connected to" in line for line in lines(app, "quiet"))
        box = app.text_input(key="typed_key")
        assert box.proto.type == box.proto.PASSWORD
        shown = [*app.markdown, *app.text, *app.caption]
        assert running.ada not in str([element.value for element in shown] + lines(app, "quiet"))


@pytest.mark.parametrize(
    "name", ["adapt", "compare", "mix", "merge", "registry", "jobs", "tuning", "monitoring"]
)
def test_every_page_says_that_the_service_is_gone(name: str) -> None:
    with page(name, NOBODY, "sk") as app:
        assert all("cannot be reached" in line for line in lines(app)) and lines(app)


def test_a_merge_shows_its_verdict_its_parents_and_its_trade_offs(running: Any) -> None:
    shape, registry = load_shape(running.model), running.service.registry
    sizes = {t.name: (t.in_features, t.out_features) for t in shape.select(("q_proj",), None)}
    kept = {"ui-both": (0.6, 0.7), "ui-both.upper": (0.9, 0.2), "ui-both.lower": (0.1, 0.8)}
    for seed, (name, shares) in enumerate(kept.items()):
        card = AdapterCard(
            generator="merging",
            trained=True,
            parents={"one": "a" * 64, "two": "b" * 64},
            scores={"kept_upper": shares[0], "kept_lower": shares[1]},
            notes=("Keep them apart and route: one file keeps 65%.", "route: keeps 100%; 9 bytes; 2.0 ms"),
        )
        registry.add(name, random_lora(seed, sizes), shape=shape, card=card, owner="ada")
    with page("merge", running.url, running.ada, base=running.model) as app:
        said = lines(app, "quiet")
        assert any("Keep them apart" in line for line in said) and any("one, two" in line for line in said)
        assert any("9 bytes; 2.0 ms" in line for line in said)
        assert len(app.get("plotly_chart")) == 2
    for name in kept:
        registry.delete(name, "ada")


@pytest.mark.parametrize("method", [REGMEAN, SEARCH])
def test_inputs_of_every_parent_go_along_with_a_merge(
    running: Any, monkeypatch: pytest.MonkeyPatch, make_loud: Callable[[int], bytes], method: str
) -> None:
    sent: dict[str, Any] = {}

    def merge(self: Client, name: str, parents: Sequence[str], **settings: Any) -> TrainingJob:
        sent.update(settings, parents=parents)
        raise UsageError("stop here")

    monkeypatch.setattr(Client, "merge", merge)
    names = ["ui-one", "ui-two"]
    with Client(running.url, running.ada) as client:
        for seed, name in enumerate(names):
            client.upload(name, make_loud(seed))
        with page("merge", running.url, running.ada, base=running.model) as app:
            app.multiselect(key="merge_names").set_value(names).run()
            app.multiselect(key="merge_start_names").set_value(names[:1]).run()
            app.selectbox(key="merge_method").set_value(method).run()
            app.text_input(key="merge_name").set_value("ui-both").run()
            (merges,) = (b for b in app.button if b.label == "Merge")
            assert merges.disabled
            if method == SEARCH:
                solved = ("skill.jsonl", b'{"input": "1", "output": "2"}', "application/jsonl")
                app.file_uploader[0].set_value(solved).run()
                app.number_input(key="merge_minutes").set_value(3).run()
            for name in names:
                app.text_area(key=f"merge_inputs_{name}").set_value(f"{name} asks\n{name} asks again").run()
            next(b for b in app.button if b.label == "Merge").click().run()
            assert any("stop here" in line for line in lines(app))
        for name in names:
            client.delete(name)
    assert sent["inputs"] == {name: [f"{name} asks", f"{name} asks again"] for name in names}
    assert sent["parents"] == names and sent["start"] == names[0] and "method" not in sent
    assert sent.get("minutes") == (3 if method == SEARCH else None)


def test_the_pareto_front_joins_what_no_other_merge_beats() -> None:
    found = {"m": (0.6, 0.7), "m.upper": (0.9, 0.2), "m.worse": (0.5, 0.1), "m.lower": (0.1, 0.8)}
    figure = trade_offs({name: {"upper": x, "lower": y} for name, (x, y) in found.items()})
    front, points = figure.data
    assert [*zip(front.x, front.y, strict=True)] == [(0.1, 0.8), (0.6, 0.7), (0.9, 0.2)]
    assert list(points.text) == ["m", "upper", "worse", "lower"]


def test_a_vanished_adapter_is_404(running: Any) -> None:
    with Client(running.url, running.ada) as client:
        adapter = client.create("ui-gone", "Answer in one word.").adapter
        client.delete("ui-gone")
    with page("adapt", running.url, running.ada, base=running.model, current=adapter) as app:
        assert any("404" in line and "ui-gone" in line for line in lines(app))


def test_a_taken_name_is_409_and_a_bad_one_400(running: Any) -> None:
    with Client(running.url, running.eve) as client:
        client.create("ui-eves", "Answer in one word.")
    with page("adapt", running.url, running.ada, base=running.model) as app:
        for name, status in (("ui-eves", "409"), ("No Name", "400")):
            next(t for t in app.text_input if t.label == "Name").set_value(name).run()
            next(b for b in app.button if b.label == "Generate adapter").click().run()
            assert any(f"({status})" in line for line in lines(app)), lines(app)


def test_a_refused_description_takes_the_old_adapter_away(running: Any) -> None:
    with Client(running.url, running.ada) as client:
        old = client.create("ui-old", "Answer in one word.").adapter
        state = {"base": running.model, "current": old, "turns": []}
        with page("adapt", running.url, running.ada, **state) as app:
            assert any("ui-old" in line for line in lines(app, "done"))
            app.text_area(key="description").set_value("x").run()
            next(b for b in app.button if b.label == "Generate adapter").click().run()
            assert any("(400)" in line for line in lines(app)) and not lines(app, "done")
        client.delete("ui-old")


def test_notes_on_a_new_adapter_are_shown(running: Any) -> None:
    with page("adapt", running.url, running.ada, base=running.model) as app:
        next(b for b in app.button if b.label == "Generate adapter").click().run()
        assert any("This adapter changes nothing" in line for line in lines(app, "warning"))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page sends with a description; the service refuses it."""
    options: dict[str, Any] = {}

    def create(self: Client, name: str, description: str, **given: Any) -> GeneratedAdapter:
        options.update(given)
        raise UsageError("stop here")

    monkeypatch.setattr(Client, "create", create)
    return options


def test_examples_go_along_with_the_description(running: Any, sent: dict[str, Any]) -> None:
    with page("adapt", running.url, running.ada, base=running.model) as app:
        app.text_area(key="examples").set_value("a joy => positive\na bore => negative").run()
        app.text_area(key="inputs").set_value("it was long\n").run()
        next(b for b in app.button if b.label == "Generate adapter").click().run()
        assert any("stop here" in line for line in lines(app))
    assert sent["examples"] == [("a joy", ("positive",)), ("a bore", ("negative",))]
    assert sent["inputs"] == ["it was long"] and sent["sample_inputs"] is False and sent["suggest"] == 4


def test_the_loss_is_seen_to_fall_and_more_examples_are_asked_for(running: Any) -> None:
    with Client(running.url, running.ada) as client:
        new = replace(
            client.create("ui-refined", "Answer in one word."),
            curve=((0, 2.0), (4, 1.5)),
            more=4,
            promised=0.31,
            to_label=("<b>it was long</b>",),
        )
        state = {"base": running.model, "current": new.adapter, "generated": new}
        with page("adapt", running.url, running.ada, **state) as app:
            assert any("4 more solved examples promise 0.31" in line for line in lines(app, "warning"))
            assert any("&lt;b&gt;it was long" in h.proto.body for h in app.get("html"))
            assert len(app.get("plotly_chart")) == 2
        client.delete("ui-refined")


def test_sample_inputs_stand_in_for_inputs(running: Any, sent: dict[str, Any]) -> None:
    with page("adapt", running.url, running.ada, base=running.model) as app:
        app.checkbox(key="sample_inputs").check().run()
        next(b for b in app.button if b.label == "Generate adapter").click().run()
    assert sent["sample_inputs"] is True and not sent["inputs"]


def test_a_line_that_is_no_example_is_one_line(running: Any) -> None:
    with page("adapt", running.url, running.ada, base=running.model) as app:
        app.text_area(key="examples").set_value("a joy => positive\na bore").run()
        next(b for b in app.button if b.label == "Generate adapter").click().run()
        (line,) = lines(app)
        assert "line 2 of the examples" in line and "input =&gt; output" in line


def test_too_many_requests_and_a_lost_database(tiny_llama: Path, tmp_path: Path, start_service: Any) -> None:
    with start_service(tiny_llama, tmp_path / "r", requests_per_minute=1) as small:
        said: list[str] = []
        for _ in range(6):  # a new minute may begin between two
            with page("registry", small.url, small.ada) as app:
                said += lines(app)
        assert any("429" in line and "try again in" in line for line in said)
        for path in (tmp_path / "r").glob("registry.db*"):
            path.unlink()
        with page("registry", small.url, small.eve) as app:
            assert any("503" in line and "try again in 5 s" in line for line in lines(app))


def test_text_from_outside_is_text(running: Any) -> None:
    evil = "<b>bold</b> [link](http://evil.example) ![picture](http://evil.example/a.png) www.evil.example"
    with Client(running.url, running.ada) as client:
        adapter = client.create("ui-www.evil.example", evil).adapter
    state = {"base": running.model, "current": adapter, "search": "ui-www"}
    for name in ("adapt", "registry"):
        with page(name, running.url, running.ada, **state) as app:
            assert not app.exception
            for markdown in app.markdown:
                assert "evil" not in markdown.value.replace("`ui-www.evil.example`", "")
            for html in app.get("html"):
                assert "<b>bold" not in html.proto.body
    with Client(running.url, running.ada) as client:
        client.delete(adapter.name)


def test_an_error_is_escaped(running: Any) -> None:
    with page("adapt", running.url, running.ada, base=running.model) as app:
        next(t for t in app.text_input if t.label == "Name").set_value("<img src=x>").run()
        next(b for b in app.button if b.label == "Generate adapter").click().run()
        (line,) = lines(app)
        assert "&lt;img src=x&gt;" in line and "<img" not in line


def test_names_in_labels_are_code_and_suggestions_are_names() -> None:
    assert code_name("www.evil.example") == "`www.evil.example`"
    assert code_name("a`[x](y)`\nb").strip("`").count("`") == 0 and "\n" not in code_name("a\nb")
    assert suggested_name("Decide whether a movie review is positive.") == "decide-movie-review-positive"
    for text in ("", "…", "Übung macht den Meister", "x" * 500, "../../etc/passwd"):
        name = suggested_name(text)
        assert name and len(name) <= 64 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_pictures_of_any_adapter() -> None:
    norms = {"model.layers.2.self_attn.q_proj": 1.0, "model.layers.4.self_attn.q_proj": 3.0}
    picture = heat_map(norms).data[0]
    assert list(picture.x) == [2, 3, 4] and list(picture.z[0]) == [1.0, None, 3.0] and picture.zmax == 3.0
    both = {"transformer.h.0.attn.c_proj": 3.0, "transformer.h.0.mlp.c_proj": 4.0}
    assert list(heat_map(both).data[0].y) == ["attn.c_proj", "mlp.c_proj"]  # else two rows were one
    assert layer_lines({"one": both}).data[0].y == (5.0,)
    assert len(heat_map({}).data[0].x) == 0


def test_the_page_is_for_this_machine_and_silent() -> None:
    words = " ".join(flags(Page()))
    for setting in (
        "server.address 127.0.0.1",
        "server.enableXsrfProtection true",
        "browser.gatherUsageStats false",
        "client.showErrorDetails none",
        "server.headless true",
        "server.maxUploadSize 128",
        "server.allowedHosts localhost",
    ):
        assert f"--{setting}" in words


def test_a_key_of_the_environment_is_not_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-shoal-secret")
    with pytest.raises(UsageError, match="lend the key") as caught:
        ui(Page(host="0.0.0.0"))
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="address of a service"):
        ui(Page(service="file:///etc/passwd"))
