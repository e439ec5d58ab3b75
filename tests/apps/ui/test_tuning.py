"""The page of studies: trials, curves, importance, the verdict, and the buttons that tune and train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shoal.apps.ui.tuning_charts import importance_bars, trial_curves, trial_losses
from shoal.server.job_folders import owner_folder
from shoal.server.studies import FOLDER, REQUEST
from shoal.server.tune_requests import NewStudy, storage_of
from shoal.tuning.plan import StudyPlan
from shoal.tuning.recipe import tune
from shoal.tuning.spaces import MODELS
from tests.apps.ui.test_main import lines, page
from tests.fixtures.service import wait_until
from tests.tuning.test_limits import Heavy
from tests.tuning.toy import ToyWorkload, toy_space


def trial(number: int, loss: float | None, **more: Any) -> dict[str, Any]:
    state = "complete" if loss is not None else "pruned"
    curve = [[4, 2.0]] + ([] if loss is None else [[8, loss]])
    settings = {"learning_rate": 0.0012345}
    own = {"number": number, "state": state, "origin": "sampler", "settings": settings, "loss": loss}
    return {**own, "curve": curve, **more}


TRIALS = [trial(0, 1.5, origin="defaults"), trial(1, 1.8), trial(2, None), trial(3, 1.1)]


@contextmanager
def ended(running: Any, workload: ToyWorkload, **more: Any) -> Iterator[None]:
    """A study of ada's with a verdict."""
    folder = owner_folder(running.service.registry.root, "ada") / FOLDER / "rates"
    solved = [{"input": f"{i}", "output": "x"} for i in range(16)]
    request = NewStudy(name="rates", definition="Say x.", examples=solved, trials=10)  # type: ignore[arg-type]
    plan = StudyPlan("rates", trials=7, pruner="none", **more)
    url, models = storage_of(folder), MODELS["lora"]
    tune(workload, toy_space(), plan, url, folder / "run", folder / "found", models)
    (folder / REQUEST).write_text(request.model_dump_json())
    (folder / "examples.jsonl").write_text("")
    try:
        yield
    finally:
        running.service.studies.delete("rates", "ada")


def test_the_page_shows_a_study_and_trains_with_what_it_found(running: Any) -> None:
    with ended(running, ToyWorkload()), page("tuning", running.url, running.ada) as app:
        assert not lines(app) and len(app.get("plotly_chart")) == 3
        assert any("Recommended" in line for line in lines(app, "done"))
        assert "learning_rate" in app.code[0].value
        app.text_input(key="study_adapter").set_value("tuned").run()
        next(button for button in app.button if button.label == "Train with them").click()
        app.run()
        assert any("The training of tuned is queued" in line for line in lines(app, "done"))
        jobs = running.service.jobs
        for job in jobs.page("ada"):
            if job.state in ("queued", "running"):
                jobs.cancel(job.id, "ada")
        wait_until(lambda: not jobs._mine, 120)


def test_the_front_of_two_aims_is_shown(running: Any) -> None:
    with ended(running, Heavy(), second="bytes"), page("tuning", running.url, running.ada) as app:
        assert not lines(app)
        assert any("Front" in text.value for text in app.markdown)
        front = app.dataframe[0].value
        assert {"trial", "loss", "bytes", "learning_rate"} <= set(front) and len(front) > 1


def test_without_studies_the_page_says_so(running: Any) -> None:
    with page("tuning", running.url, running.ada) as app:
        assert any("None yet" in line for line in lines(app, "quiet")) and not lines(app)
        assert next(button for button in app.button if button.label == "Find settings").disabled


def test_the_best_and_the_defaults_stand_out_and_pruned_trials_are_marked() -> None:
    losses = trial_losses(TRIALS).data
    assert list(losses[0].y) == [1.5, 1.5, 1.1]
    assert {picture.name for picture in losses} == {"best so far", "defaults", "sampler"}
    curves = {curve.name for curve in trial_curves(TRIALS).data if curve.showlegend}
    assert curves == {"defaults", "trial 3, the best"}
    bars = importance_bars({"learning_rate": {"share": 0.9, "spread": 0.1}}).data[0]
    assert list(bars.x) == [0.9] and list(bars.error_x.array) == [0.1]
