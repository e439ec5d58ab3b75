"""Learned refining as a value: groups, steps for any number of examples, and a file that is read strictly."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.models.modules import TargetModule
from shoal.text_to_lora.refining import (
    LOOK,
    Refining,
    Seen,
    StoppingRule,
    group_modules,
    read_refining,
)

TARGETS = [
    TargetModule(f"layers.{n}.{kind}", n, kind, 8, 8)
    for n in range(30)
    for kind in ("self_attn.q", "self_attn.v")
]
RULE = StoppingRule((0.5, 0.0, 0.0, 0.0), 1.0, LOOK, 40)
REFINING = Refining(
    "someone/model",
    "ab" * 32,
    dict.fromkeys(group_modules(TARGETS).values(), 2e-3),
    0.01,
    {4: 8, 16: 24},
    RULE,
    seed=3,
    tasks=("one", "two"),
)


def test_rates_are_shared_by_type_and_part_of_the_layers() -> None:
    groups = group_modules(TARGETS)
    assert len(set(groups.values())) == 12
    assert groups["layers.0.self_attn.q"] == groups["layers.4.self_attn.q"] == "self_attn.q 1/6"
    assert (
        groups["layers.5.self_attn.q"] == "self_attn.q 2/6"
        and groups["layers.29.self_attn.v"] == "self_attn.v 6/6"
    )
    assert len(set(group_modules(TARGETS[:4]).values())) == 4  # two layers have two parts
    assert REFINING.module_rates(TARGETS)["layers.7.self_attn.v"] == 2e-3


def test_a_module_without_a_rate_is_refused() -> None:
    other = TargetModule("layers.0.mlp", 0, "mlp", 8, 8)
    with pytest.raises(UsageError, match="no refining rate for mlp"):
        REFINING.module_rates([other])


def test_steps_between_known_numbers_follow_the_logarithm() -> None:
    assert [REFINING.steps_for(k) for k in (4, 8, 16)] == [8, 16, 24]


@pytest.mark.parametrize(("examples", "steps"), [(2, 8), (400, 24)])
def test_beyond_what_was_learned_the_nearest_number_counts_and_is_said(
    examples: int, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert REFINING.steps_for(examples) == steps
    assert f"learned for 4 to 16 examples, there are {examples}" in caplog.text


def test_a_rule_takes_steps_from_what_is_seen_within_its_limits() -> None:
    seen = Seen(16, [2.0, 1.5, 1.2, 1.0], 0.1)
    assert RULE.steps(seen) == round(math.exp(1.0 + 0.5 * math.log(16)))
    assert replace(RULE, intercept=99.0).steps(seen) == 40
    assert replace(RULE, intercept=-99.0).steps(seen) == LOOK
    assert seen.features() == [math.log(16), math.log(2), math.log(2), 0.1]


def read(path: Path, **other: Any) -> Refining:
    known = {"base_model": "someone/model", "network": "ab" * 32, "targets": TARGETS, **other}
    return read_refining(path, **known)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "refining.json"
    path.write_text(json.dumps(REFINING.to_json()))
    return path


def test_a_file_gives_the_value_back(file: Path) -> None:
    assert read(file) == REFINING and read(file).sha256 == REFINING.sha256
    assert replace(REFINING, decay=0.02).sha256 != REFINING.sha256


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"base_model": "another/model"}, "learned for the base model someone/model, not another/model"),
        ({"network": "cd" * 32}, "learned for the network abab"),
        ({"targets": [TargetModule("layers.0.mlp", 0, "mlp", 8, 8)]}, "no refining rate for mlp"),
    ],
)
def test_a_file_for_something_else_is_refused(other: dict[str, Any], said: str, file: Path) -> None:
    with pytest.raises(ShoalError, match=said):
        read(file, **other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "of format 2, this version reads 1"),
        ({"rates": {"self_attn.q 1/6": float("nan")}}, "rate nan of self_attn.q 1/6 is outside 1e-06..0.1"),
        ({"rates": {"self_attn.q 1/6": 0.5}}, "rate 0.5 of"),
        ({"rates": {"self_attn.q 1/6": 1e-9}}, "rate 1e-09 of"),
        ({"rates": {}}, "0 rates"),
        ({"decay": 1.5}, "decay 1.5"),
        ({"decay": float("nan")}, "decay nan"),
        ({"steps": {"4": 0}}, "0 steps for 4 examples"),
        ({"steps": {"0": 8}}, "8 steps for 0 examples"),
        ({"steps": {}}, "0 numbers of examples"),
        ({"rule": {"weights": [1.0], "intercept": 0.0, "least": 4, "most": 40}}, "4 finite weights"),
        ({"rule": {"weights": [0.0] * 4, "intercept": 0.0, "least": 9, "most": 4}}, "allows 9..4 steps"),
        ({"tasks": None}, "does not say how to refine"),
    ],
)
def test_a_file_with_a_bad_value_is_refused(change: dict[str, Any], said: str, file: Path) -> None:
    file.write_text(json.dumps({**REFINING.to_json(), **change}))
    with pytest.raises(ShoalError, match=said) as refused:
        read(file)
    assert "\n" not in str(refused.value)
