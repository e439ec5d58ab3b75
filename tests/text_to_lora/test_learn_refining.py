"""Learning to refine on a tiny network: what curves tell, and a run that goes on where it was stopped."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.loading import LeakageError, Task
from shoal.text_to_lora import learn_refining
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, load_hypernetwork, save_hypernetwork
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.heads import Architecture
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.text_to_lora.learn_refining import Learned, RefiningLearner, best_steps, stopping_rule
from shoal.text_to_lora.learned_rates import LearnedRates
from shoal.text_to_lora.refining import LOOK, Seen
from shoal.text_to_lora.refining_config import RefiningTrainingConfig
from shoal.text_to_lora.refining_episodes import Curve

WORDS = [f"{first}{second}" for first in "abcdef" for second in ("an", "et", "ill")]
QUICK = RefiningTrainingConfig(
    shots=(2, 4), queries=2, curve_tasks=2, max_steps=4, episodes=4, episodes_a_step=2, held_out=0.3
)


@pytest.fixture
def tasks(toy: ModuleType) -> list[Task]:
    return [toy.toy_task(rule, WORDS) for rule in ("upper", "reverse", "double")]


@pytest.fixture
def emitter(sharp: Backbone, toy: ModuleType, tmp_path: Path) -> Emitter:
    """Of a network of random weights that was written and read."""
    targets = sharp.shape.select(["q_proj", "v_proj"], None)
    network = Hypernetwork(targets, Architecture(toy.HashEncoder.dim, 2, 4.0, latent_size=8, hidden_size=8))
    checkpoint = HypernetworkCheckpoint(network, sharp.shape.base_model, "hash", True, {})
    save_hypernetwork(checkpoint, tmp_path / "network")
    return Emitter(load_hypernetwork(tmp_path / "network"), toy.HashEncoder())


def learned(backbone: Backbone, emitter: Emitter, tasks: list[Task], folder: Path) -> Learned:
    return RefiningLearner(backbone, emitter, tasks, folder, QUICK).learn()


def curve(k: int, best: int, agreement: float = 0.0) -> Curve:
    """A curve whose least loss is after `best` steps."""
    losses = {step: abs(math.log2(step) - math.log2(best)) if step else 9.0 for step in (0, 1, 2, 4, 8, 16)}
    return Curve("task", losses, Seen(k, [2.0] * LOOK, agreement))


def test_best_steps_are_at_the_least_mean_loss() -> None:
    assert best_steps([curve(4, 8)]) == 8
    assert best_steps([curve(4, 2), curve(4, 4), curve(4, 16)]) == 4


def test_a_stopping_rule_follows_what_tells_the_steps() -> None:
    rule = stopping_rule([curve(8, 4, 0.1), curve(8, 16, 0.9)] * 8)
    few, many = (rule.steps(Seen(8, [2.0] * LOOK, agreement)) for agreement in (0.1, 0.9))
    assert few < many and rule.least == LOOK and rule.most == 16


def test_refining_is_learned_and_judged_on_other_tasks(
    sharp: Backbone, emitter: Emitter, tasks: list[Task], tmp_path: Path
) -> None:
    learner = RefiningLearner(sharp, emitter, tasks, tmp_path / "run", QUICK)
    assert len(learner.choosing) == 1 and not set(learner.choosing) & set(learner.learning)
    found = learner.learn()
    assert found.asked == tuple(learner.choosing)
    assert found.refining.network == emitter.checkpoint.sha256
    assert set(found.refining.steps) == {2, 4} and found.refining.tasks == tuple(
        sorted(t.name for t in tasks)
    )
    assert found.losses.keys() == {"constants", "steps", "steps by rule", "rates", "rates, steps by rule"}
    assert all(own.keys() == {4} for own in found.losses.values())  # constants need four examples
    assert found.gain.mean == pytest.approx(found.losses["constants"][4] - found.losses[found.chosen][4])


def test_a_run_that_was_stopped_goes_on(
    sharp: Backbone, emitter: Emitter, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learned(sharp, emitter, tasks, tmp_path / "whole")
    taken = []
    step = learn_refining.RefiningRun.sensitivity

    def stopped(self: object, queries: object) -> object:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return step(self, queries)

    with monkeypatch.context() as patch:
        patch.setattr(learn_refining.RefiningRun, "sensitivity", stopped)
        with pytest.raises(KeyboardInterrupt):
            learned(sharp, emitter, tasks, tmp_path / "run")
    resumed = learned(sharp, emitter, tasks, tmp_path / "run")
    assert resumed.refining == whole.refining and resumed.losses == whole.losses

    def never(*settings: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("shoal.text_to_lora.refining_episodes.reference_losses", never)
    assert learned(sharp, emitter, tasks, tmp_path / "run").refining == whole.refining


def test_rates_move_from_where_they_were(
    sharp: Backbone, emitter: Emitter, tasks: list[Task], tmp_path: Path
) -> None:
    learned(sharp, emitter, tasks, tmp_path)
    state = LearnedRates.read(next((tmp_path / "rates").iterdir()), ["group"] * 6, QUICK)
    assert state.episodes == 4 and all(
        rate != pytest.approx(1e-3, rel=0.01) for rate in state.rates().values()
    )


def test_held_out_tasks_are_refused(
    sharp: Backbone, emitter: Emitter, tasks: list[Task], tmp_path: Path
) -> None:
    with pytest.raises(LeakageError, match="also in training"):
        RefiningLearner(sharp, emitter, tasks, tmp_path, QUICK, held_out=tasks[:1])


def test_too_few_tasks_or_shots_are_refused(
    sharp: Backbone, emitter: Emitter, tasks: list[Task], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="1 tasks are too few"):
        RefiningLearner(sharp, emitter, tasks[:1], tmp_path, QUICK)
    none = QUICK.model_copy(update={"shots": (0, 4)})
    with pytest.raises(UsageError, match="0 examples cannot be refined on"):
        RefiningLearner(sharp, emitter, tasks, tmp_path, none)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shots": (2,)}, "shots are 2 at most, 4 are the least"),
        ({"queries": 99}, "none of 1 tasks to choose by has 103 different examples"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused_before_learning(
    settings: dict, said: str, sharp: Backbone, emitter: Emitter, tasks: list[Task], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        RefiningLearner(sharp, emitter, tasks, tmp_path, QUICK.model_copy(update=settings))
