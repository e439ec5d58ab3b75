"""Base models side by side: each has its row, also where it fails."""

from pathlib import Path

import pytest

from shoal.config import TextToLoRAConfig
from shoal.errors import UsageError
from shoal.evaluation.compare import GUIDE_PROMPTS, compare_models, comparison_table

SMALL = TextToLoRAConfig(adapter_rank=2, num_layers_to_adapt=None)


def test_every_model_has_a_row(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter(range(0, 10**9, 5 * 10**6))  # what the process holds rises by 5 MB whenever it is read
    monkeypatch.setattr("shoal.evaluation.compare.resident", lambda: next(held))
    paths = [str(tiny_models[family]) for family in ("llama", "gpt2")]
    rows = compare_models([*paths, "/nowhere"], config=SMALL)
    for row, path in zip(rows[:2], paths, strict=True):
        assert row.base_model == path and row.failure is None and not row.trained
        assert len(row.seconds) == len(GUIDE_PROMPTS) and all(s > 0 for s in row.seconds)
        assert row.skills[0] == ("code_generation", "debugging") and row.memory == 5 * 10**6
    # GPT-2 fuses query, key and value, 32 to 96, where the Llama has 32 to 32 and twice 32 to 16.
    assert rows[0].adapter_parameters == 3 * 2 * (2 * 64 + 2 * 48)
    assert rows[1].adapter_parameters == 3 * 2 * ((32 + 96) + 64)
    assert rows[2].failure is not None and "/nowhere" in rows[2].failure
    table = comparison_table(rows)
    assert table.count("\n") == 4 and "failed:" in table and "no: the identity" in table


@pytest.mark.parametrize(
    ("models", "prompts"), [([], ["a task"]), (["gpt2", "gpt2"], ["a"]), (["gpt2"], []), ("gpt2", ["a"])]
)
def test_bad_input(models: list[str], prompts: list[str]) -> None:
    with pytest.raises(UsageError, match="at least 1 is needed"):
        compare_models(models, prompts)
