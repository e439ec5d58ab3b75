"""Spaces over the fields of settings models: what they draw, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from shoal.config import ExpertTrainingConfig, LoraTrainingConfig, TextToLoRAConfig
from shoal.errors import UsageError
from shoal.tuning.search_space import SearchSpace, read_space
from shoal.tuning.spaces import DEFAULT_SPACES, default_space

MODELS = (LoraTrainingConfig, TextToLoRAConfig)


def drawn(space: SearchSpace, count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    rows = []
    for _ in range(count):
        trial = study.ask()
        rows.append(space.draw(trial))
        study.tell(trial, 0.0)
    return rows


def test_ranges_and_choices_are_drawn_within_their_limits() -> None:
    content = {
        "learning-rate": {"low": "3e-4", "high": 1e-2, "log": True},
        "steps": {"low": 10, "high": 40},
        "adapter_rank": [4, 8],
        "target_modules": [["q_proj", "v_proj"], ["q_proj"]],
    }
    rows = drawn(read_space(content, MODELS))
    assert all(3e-4 <= row["learning_rate"] <= 1e-2 for row in rows)
    assert all(isinstance(row["steps"], int) and 10 <= row["steps"] <= 40 for row in rows)
    assert {row["adapter_rank"] for row in rows} == {4, 8}
    assert {row["target_modules"] for row in rows} == {("q_proj", "v_proj"), ("q_proj",)}
    assert sum(row["learning_rate"] < 1.7e-3 for row in rows) > 10  # evenly by its logarithm


def test_a_condition_decides_whether_a_field_is_searched() -> None:
    content = {
        "objective": ["rloo", "sft"],
        "kl_weight": {"low": 0.0, "high": 0.1, "when": {"objective": "rloo"}},
    }
    rows = drawn(read_space(content, [ExpertTrainingConfig]))
    assert {row["objective"] for row in rows} == {"rloo", "sft"}
    assert all(("kl_weight" in row) == (row["objective"] == "rloo") for row in rows)


def test_settings_are_found_in_a_space_or_not() -> None:
    space = read_space(
        {"learning_rate": {"low": 1e-4, "high": 1e-2}, "target_modules": [["q_proj", "v_proj"]]}, MODELS
    )
    inside = {"learning_rate": 1e-3, "target_modules": ("q_proj", "v_proj"), "steps": 3}
    assert space.fixed(inside) == {"learning_rate": 1e-3, "target_modules": "q_proj,v_proj"}
    assert space.fixed({**inside, "learning_rate": 0.5}) is None
    assert space.fixed({**inside, "target_modules": ("q_proj",)}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "0 fields"),
        ({"lr": [1]}, "names lr, which cannot be searched"),
        ({"seed": [1, 2]}, "names seed, which cannot be searched"),
        ({"batch_size": [4, 8]}, "batch_size is 8 by its flag and in the space"),
        ({"learning_rate": 1e-3}, "0.001 is no range"),
        ({"learning_rate": {"low": 1e-3}}, "give low and high"),
        ({"learning_rate": {"low": 1e-3, "high": 1, "step": 2}}, "give low and high"),
        ({"learning_rate": {"low": 1e-2, "high": 1e-3}}, "low 0.01 is above high 0.001"),
        ({"warmup": {"low": 0, "high": 1, "log": True}}, "low is 0, and a logarithm needs more than 0"),
        ({"learning_rate": {"low": "few", "high": 1}}, "low is few, which is no number"),
        ({"learning_rate": {"low": float("nan"), "high": 1}}, "which is no number"),
        ({"warmup": {"low": 0, "high": 2}}, "the space's warmup 2: input should be less than or equal to 1"),
        ({"adapter_rank": []}, "0 choices"),
        ({"adapter_rank": {"choices": 4}}, "0 choices"),
        ({"adapter_rank": [4, 4]}, "given twice"),
        ({"adapter_rank": [4, 0]}, "adapter_rank 0: input should be greater than or equal to 1"),
        ({"mix": {"low": 0, "high": 1}}, "mix is no number"),
        ({"mix": ["tasks", "sorts"]}, "mix sorts: input should be 'tasks' or 'kinds'"),
        ({"steps": {"low": 1.5, "high": 3}}, "steps 1.5: input should be a valid integer"),
        ({"warmup": {"low": 0, "high": 1, "when": {"mix": "kinds"}}}, "when names mix"),
        (
            {"mix": ["tasks"], "warmup": {"low": 0, "high": 1, "when": {"mix": "kinds"}}},
            "when mix is kinds, which is none of its choices",
        ),
        ({"warmup": {"low": 0, "high": 1, "log": "yes"}}, "log is yes"),
        ({"warmup": {"low": 0, "high": 1, "when": 3}}, "when is 3"),
    ],
    ids=str,
)
def test_bad_spaces_are_one_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        read_space(content, MODELS, {"batch_size": 8})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", DEFAULT_SPACES)
def test_every_command_has_a_space(kind: Any) -> None:
    models = [ExpertTrainingConfig] if kind == "expert" else MODELS
    space = read_space(default_space(kind, 30, {}), models)
    assert space["learning_rate"] is not None
    if kind != "expert":
        assert space["steps"] is not None and space["steps"].choices == (8, 15, 30)


def test_flags_take_fields_out_of_the_default_space() -> None:
    fixed = {"learning_rate": 1e-3}
    assert list(default_space("expert", 30, fixed)) == ["kl_weight"]
    with pytest.raises(UsageError, match="flags fix every field"):
        default_space("expert", 30, {**fixed, "kl_weight": 0.0})
