"""The page of a library: its matrix, and the buttons that learn, roll back and forget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.apps.ui.charts import score_matrix
from shoal.server.job_folders import owner_folder
from tests.apps.ui.test_main import lines, page
from tests.fixtures.library import learn, new_library, sharp_backbone
from tests.fixtures.service import wait_until


@pytest.fixture
def library(running: Any, tiny_llama: Path) -> Iterator[Any]:
    """A library of ada's with one skill, in version 2."""
    libraries = running.service.libraries
    folder = owner_folder(running.service.registry.root, "ada") / "skills"
    folder.parent.mkdir(parents=True, exist_ok=True)
    learn(new_library(folder, sharp_backbone(tiny_llama)), "digits")
    yield libraries
    libraries.delete("skills", "ada")


def test_the_page_shows_scores_and_undoes_steps(running: Any, library: Any) -> None:
    with page("library", running.url, running.ada) as app:
        assert not lines(app) and len(app.get("plotly_chart")) == 1
        assert any("digits: Answer with the word for digits" in line for line in lines(app, "quiet"))
        named = {button.label: button for button in app.button}
        assert named["Learn"].disabled
        named["Forget"].click()
        app.run()
        assert any("digits will be forgotten" in line for line in lines(app, "done"))
        jobs = running.service.jobs
        for job in jobs.page("ada"):
            if job.state in ("queued", "running"):
                jobs.cancel(job.id, "ada")
        wait_until(lambda: not running.service.jobs._mine, 120)
        next(button for button in app.button if button.label == "Roll back").click()
        app.run()
        assert library.get("skills", "ada").version.step.to == 1 and not library.get("skills", "ada").skills


def test_too_few_examples_are_one_line(running: Any) -> None:
    with page("library", running.url, running.ada) as app:
        assert any("None yet: learn a first skill" in line for line in lines(app, "quiet"))
        for key, value in (
            ("library_name", "skills"),
            ("skill_name", "films"),
            ("skill_description", "Say whether the film is liked."),
            ("skill_examples", "a joy => yes"),
        ):
            next(box for box in (*app.text_input, *app.text_area) if box.key == key).set_value(value)
        app.run()
        next(button for button in app.button if button.label == "Learn").click()
        app.run()
        (line,) = lines(app)
        assert "examples" in line and "8" in line


def test_labels_and_what_others_may_lose_go_with_the_job(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def learn(self: object, *given: object, **settings: object) -> Any:
        asked.update(settings)
        return type("Job", (), {"state": "queued"})

    monkeypatch.setattr("shoal.server.client.Client.learn", learn)
    with page("library", running.url, running.ada) as app:
        for key, value in (
            ("library_name", "skills"),
            ("skill_name", "films"),
            ("skill_description", "Say whether the film is liked."),
            ("skill_examples", "a joy => yes"),
            ("skill_labels", "yes, no"),
            ("skill_bound", 5.0),
            ("skill_allowed", "plots"),
        ):
            boxes = (*app.text_input, *app.text_area, *app.number_input)
            next(box for box in boxes if box.key == key).set_value(value)
        app.run()
        next(button for button in app.button if button.label == "Learn").click()
        app.run()
        assert any("The job is queued" in line for line in lines(app, "done"))
    assert asked == {"labels": ["yes", "no"], "bound": 5.0, "allow_loss": ["plots"]}


def test_a_cell_before_a_skill_was_learnt_is_empty() -> None:
    picture = score_matrix(["a (2)", "b (3)"], ["a", "b"], [[50.0, None], [40.0, 90.0]]).data[0]
    assert [list(row) for row in picture.text] == [["50", ""], ["40", "90"]]
