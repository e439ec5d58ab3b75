"""What a generated adapter's card says of its description."""

from __future__ import annotations

import pytest

from shoal.text_to_lora.generated_adapter import familiarity_note


@pytest.mark.parametrize(
    ("confidence", "nonsense", "said"),
    [
        (0.25, False, "The nearest training task is plurals, at distance 0.41: confidence 0.25."),
        (0.0, True, "The description reads as nonsense: this is the adapter that such descriptions share."),
    ],
)
def test_the_note_says_how_near_or_that_it_is_nonsense(confidence: float, nonsense: bool, said: str) -> None:
    facts = {"nearest_tasks": {"plurals": 0.412, "dates": 0.6}, "distance": 0.412}
    assert familiarity_note({**facts, "confidence": confidence, "nonsense": nonsense}) == said
