"""The model card says what the adapter is, in a form that the hub reads and no description can break."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.adapters.card import AdapterCard, AdapterFacts, parse_card, render_card
from shoal.adapters.output_format import OutputFormat


def facts(**changes: Any) -> AdapterFacts:
    values: dict[str, Any] = {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "rank": 12,
        "alpha": 32.0,
        "target_modules": ("q_proj", "v_proj"),
        "layers": (0, 1, 2, 5),
        "zero_layers": (),
        "num_layers": 8,
    }
    return AdapterFacts(**(values | changes))


CARD = AdapterCard(
    generator="text-to-lora", trained=True, checkpoint_sha256="abc", seed=0, scores={"rougeL": 0.5}
)


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_the_front_matter() -> None:
    matter = front_matter(render_card(CARD, facts()))
    assert matter["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert matter["library_name"] == "peft"
    assert {"lora", "base_model:adapter:HuggingFaceTB/SmolLM2-135M-Instruct"} <= set(matter["tags"])


@pytest.mark.parametrize("path", ["/home/me/models/x", "./x", "a: b\n---", "C:\\x"])
def test_a_local_path_is_not_given_as_a_hub_id(path: str) -> None:
    assert "base_model" not in front_matter(render_card(CARD, facts(base_model=path)))


def test_every_fact_is_said() -> None:
    card = render_card(CARD.model_copy(update={"notes": ("Trained on 39 tasks.",)}), facts())
    for said in (
        "| Trained | yes |",
        "| Checkpoint (SHA-256) | abc |",
        "| Seed | 0 |",
        "| Rank, alpha | 12, 32 |",
        "| Target modules | q_proj, v_proj |",
        "| Layers | 0-2, 5 of 0-7 (`layers_to_transform`) |",
        "| Score: rougeL | 0.5 |",
        "Trained on 39 tasks.",
        "--max-lora-rank 16",
    ):
        assert said in card


def test_an_untrained_adapter_says_so_plainly() -> None:
    card = render_card(AdapterCard(generator="text-to-lora", trained=False), facts())
    assert "| Trained | **no**: every delta weight is zero" in card and "Score" not in card


def test_zero_layers_and_large_ranks_are_said() -> None:
    card = render_card(CARD, facts(layers=range(8), zero_layers=(0, 1, 4), rank=600))
    assert "all 8; B is zero in layers 0-1, 4, so that loaders which need every layer take it" in card
    assert "vLLM takes ranks up to 512 only" in card


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_the_card(description: str, note: str) -> None:
    card = render_card(CARD.model_copy(update={"description": description, "notes": (note,)}), facts())
    assert front_matter(card) == front_matter(render_card(CARD, facts()))
    assert f"text\n{description}\n```" in card
    assert card.count("\n| Generator |") == 1 + f"\n{description}\n".count("\n| Generator |")


def test_a_fence_in_a_description_stays_inside() -> None:
    card = render_card(CARD.model_copy(update={"description": "```\n# Injected\n````"}), facts())
    assert "`````text\n```\n# Injected\n````\n`````\n" in card


def test_a_suggested_format_is_shown_and_read_again() -> None:
    card = AdapterCard(generator="test", trained=True, suggested_format=OutputFormat.regex("[0-9]{4}"))
    assert "| Suggested format | [0-9]{4} |" in render_card(card, facts())
    assert parse_card(card.model_dump(mode="json"), "card.json") == card
