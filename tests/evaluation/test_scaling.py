"""Costs of shapes, measured here and in a process of its own."""

from dataclasses import asdict
from pathlib import Path

import pytest

from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.evaluation import scaling
from shoal.evaluation.scaling import measure_shape, measure_shapes, scaling_table

SMALL = TextToLoRAConfig(
    adapter_rank=2, num_layers_to_adapt=None, skill_embeddings_dim=8, hyper_network_size=8
)


def test_sizes_follow_from_the_shape(tiny_llama: Path) -> None:
    cost = measure_shape(str(tiny_llama), SMALL)
    # 3 layers of width 32, 4 heads of which 2 are for keys and values: q and o are 32 x 32, k and v 32 x 16.
    assert cost.modules == 12 and cost.adapter_parameters == 3 * 2 * (2 * (32 + 32) + 2 * (32 + 16))
    assert cost.adapter_bytes == 4 * cost.adapter_parameters
    assert cost.generation_seconds > 0 and cost.peak_bytes > 1e6 and cost.base_parameters > 10_000


@pytest.mark.slow
def test_a_process_of_its_own_finds_the_same_sizes(tiny_llama: Path) -> None:
    apart, here = measure_shapes([str(tiny_llama)], SMALL)[0], measure_shape(str(tiny_llama), SMALL)
    for name, value in asdict(here).items():
        assert name.endswith("_seconds") or name == "peak_bytes" or getattr(apart, name) == value
    assert str(tiny_llama) in scaling_table([apart])


def test_failures_are_one_line(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="model path"):
        measure_shapes(["/nowhere"])
    with pytest.raises(UsageError, match="cannot adapt 8 layers"):
        measure_shapes([str(tiny_llama)])
    with pytest.raises(ShoalError, match="took more than"):
        measure_shapes([str(tiny_llama)], SMALL, timeout=0.01)
    monkeypatch.setattr(scaling.sys, "executable", "/bin/false")
    with pytest.raises(ShoalError, match="exit code 1"):
        measure_shapes([str(tiny_llama)], SMALL)
