"""Settings given in Python: values out of range are one-line errors, and nothing changes afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import get_args

import pytest
from pydantic import ValidationError

from shoal.config import (
    DtypeName,
    HeadName,
    HypernetworkTrainingConfig,
    LoraTrainingConfig,
    RewardName,
    TextToLoRAConfig,
    Transformer2Config,
)
from shoal.errors import UsageError
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.benchmark.methods import METHODS
from shoal.models.backbone import DTYPES
from shoal.tasks.rewards import REWARDS
from shoal.text_to_lora.heads import HEADS


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TextToLoRAConfig, {"adapter_rank": 0}, "adapter_rank 0: .* equal to 1; change it .LoRA rank."),
        (TextToLoRAConfig, {"dropout": 1.0}, "dropout 1.0: .* less than 1"),
        (TextToLoRAConfig, {"target_modules": []}, "target_modules .*at least 1 item"),
        (TextToLoRAConfig, {"head": "Z"}, "head Z: .*'L', .*'mixture'"),
        (
            TextToLoRAConfig,
            {"rank": 8},
            "rank 8: extra .*are hyper_network_size, .*adapter_rank",
        ),
        (Transformer2Config, {"expert_vector_dim": -1}, "expert_vector_dim -1"),
        (LoraTrainingConfig, {"steps": "many"}, "steps many: .*integer"),
        (TextToLoRAConfig, {"adapter_alpha": float("inf")}, "adapter_alpha inf: .*finite"),
        (TextToLoRAConfig, {"adapter_alpha": 1e300}, "adapter_alpha 1e.300: .*less than or equal to"),
        (TextToLoRAConfig, {"hyper_network_size": 10**11}, "hyper_network_size 1000.*65536"),
        (LoraTrainingConfig, {"seed": 10**26}, "seed 1000.*less than"),
        (LoraTrainingConfig, {"batch_size": 10**20}, "batch_size 1000.*65536"),
        (LoraTrainingConfig, {"weight_decay": float("inf")}, "weight_decay inf: .*finite"),
        (HypernetworkTrainingConfig, {"learning_rate": 0}, "learning_rate 0: .*greater than 0"),
    ],
)
def test_values_out_of_range(config: type, values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f"{config.__name__}: {message}") as caught:
        config(**values)
    assert "\n" not in str(caught.value)


def test_validating_a_mapping_gives_every_mistake() -> None:
    with pytest.raises(ValidationError) as caught:
        TextToLoRAConfig.model_validate({"adapter_rank": 0, "dropout": 2})
    assert {error["loc"][0] for error in caught.value.errors()} == {"adapter_rank", "dropout"}


def test_the_fields_that_were_set_are_known() -> None:
    assert TextToLoRAConfig(adapter_rank=4).model_fields_set == {"adapter_rank"}
    assert TextToLoRAConfig.model_validate({"dropout": 0}) == TextToLoRAConfig(dropout=0)


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (get_args(HeadName), HEADS),
        (get_args(RewardName), REWARDS),
        (get_args(DtypeName), DTYPES),
        (BenchmarkConfig().methods, METHODS),
    ],
    ids=["heads", "rewards", "dtypes", "benchmarked methods"],
)
def test_names_are_those_of_their_table(names: tuple[str, ...], table: Mapping[str, object]) -> None:
    assert names == tuple(table)


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("shoal") / "py.typed").is_file()
