"""The documented call as the guide writes it: its keys, its model, its prompts."""

import logging
from pathlib import Path

import pytest
import torch

from shoal.config import TextToLoRAConfig, Transformer2Config
from shoal.errors import UsageError
from shoal.integration import SakanaAIIntegration

GUIDE_CONFIG = TextToLoRAConfig(
    hyper_network_size=256,
    skill_embeddings_dim=128,
    adapter_rank=16,
    adapter_alpha=32,
    dropout=0.1,
    num_layers_to_adapt=8,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
)
GUIDE_MODEL = "microsoft/DialoGPT-small"
GUIDE_PROMPTS = {
    "Make this model excel at code generation and debugging": {"code_generation", "debugging"},
    "Optimize this model for mathematical reasoning and problem solving": {
        "reasoning",
        "mathematics",
        "debugging",
        "optimization",
    },
    "Enhance creative writing and storytelling capabilities": {"creative_writing", "optimization"},
}
KEYS = {"prompt", "detected_skills", "skill_weights", "adapters", "notes", "label_set", "hypernetwork"}


@pytest.fixture(scope="module")
def integration() -> SakanaAIIntegration:
    return SakanaAIIntegration()


@pytest.mark.parametrize("prompt", GUIDE_PROMPTS)
def test_the_guides_call_as_written(
    integration: SakanaAIIntegration,
    prompt: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub is off in tests: the guide's model is known without it."""
    monkeypatch.setattr("shoal.text_to_lora.identity._said", set())  # as in a process of its own
    with caplog.at_level(logging.WARNING):
        result = integration.generate_adapter_from_text(prompt, GUIDE_MODEL)
    assert result.keys() == {"success", "duration", "adapter_info"} and result["success"] is True
    assert isinstance(result["duration"], float) and result["duration"] > 0
    info = result["adapter_info"]
    assert info.keys() == KEYS and info["prompt"] == prompt
    assert set(info["detected_skills"]) == GUIDE_PROMPTS[prompt]
    weights = info["skill_weights"]
    assert type(weights) is list and len(weights) == len(info["detected_skills"])
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1.0)
    assert info["hypernetwork"]["trained"] is False
    assert info["hypernetwork"]["how_to_train"].startswith(f"shoal train text-to-lora --base {GUIDE_MODEL}")
    assert "the adapter changes nothing" in caplog.text
    assert [note[:30] for note in info["notes"]] == ["This adapter changes nothing: "]


def test_without_a_trained_hypernetwork_every_delta_weight_is_zero(integration: SakanaAIIntegration) -> None:
    prompt = next(iter(GUIDE_PROMPTS))
    adapters = integration.generate_adapter_from_text(prompt, GUIDE_MODEL)["adapter_info"]["adapters"]
    names = {name.rsplit(".lora_", 1)[0] for name in adapters}
    assert adapters.keys() == {f"{n}.lora_{part}.weight" for n in names for part in "AB"}
    # GPT-2 fuses query, key and value: two modules in each of the last eight of twelve layers.
    assert names == {f"transformer.h.{i}.attn.{m}" for i in range(4, 12) for m in ("c_attn", "c_proj")}
    for name in names:
        a, b = adapters[f"{name}.lora_A.weight"], adapters[f"{name}.lora_B.weight"]
        assert a.shape == (16, 768) and b.shape == (2304 if name.endswith("c_attn") else 768, 16)
        assert not b.any() and a.dtype == b.dtype == torch.float32


def test_the_guides_configuration_is_taken() -> None:
    configured = SakanaAIIntegration(GUIDE_CONFIG.model_copy(update={"adapter_rank": 4}))
    info = configured.generate_adapter_from_text("Sort the words of a sentence", GUIDE_MODEL)["adapter_info"]
    assert info["hypernetwork"]["rank"] == 4
    assert {t.shape[0] for name, t in info["adapters"].items() if "lora_A" in name} == {4}


def test_both_configurations_are_taken(tiny_models: dict[str, Path]) -> None:
    settings = Transformer2Config(num_expert_vectors=3)
    both = SakanaAIIntegration(text_to_lora_config=GUIDE_CONFIG, transformer2_config=settings)
    assert both.create_transformer2_model(str(tiny_models["llama"])).config == settings
    other = Transformer2Config(num_expert_vectors=4)
    assert both.create_transformer2_model(str(tiny_models["llama"]), other).config == other


def test_repeated_prompts_come_from_the_cache(integration: SakanaAIIntegration) -> None:
    prompt = "Summarise customer reviews in one sentence"
    first = integration.generate_adapter_from_text(prompt, GUIDE_MODEL)
    again = integration.generate_adapter_from_text(prompt, GUIDE_MODEL)
    assert again["duration"] == 0.0 and again["adapter_info"].keys() == KEYS
    for name, tensor in first["adapter_info"]["adapters"].items():
        assert torch.equal(again["adapter_info"]["adapters"][name], tensor)


def test_what_a_caller_does_to_a_result_stays_there(integration: SakanaAIIntegration) -> None:
    prompt = "Summarise customer reviews in one sentence"
    info = integration.generate_adapter_from_text(prompt, GUIDE_MODEL)["adapter_info"]
    for tensor in info["adapters"].values():
        tensor.add_(1)
    info["hypernetwork"]["trained"] = True
    for asked in (prompt, "Write a poem about the sea"):
        later = integration.generate_adapter_from_text(asked, GUIDE_MODEL)["adapter_info"]
        assert later["hypernetwork"]["trained"] is False
        assert not any(t.any() for name, t in later["adapters"].items() if "lora_B" in name)


def test_custom_skills_count_for_prompts_asked_before() -> None:
    own = SakanaAIIntegration()
    prompt = "Identify birds by their songs"
    before = own.generate_adapter_from_text(prompt, GUIDE_MODEL)["adapter_info"]["detected_skills"]
    own.add_custom_skills({"ornithology": ["birds", "songs", "feathers"]})
    after = own.generate_adapter_from_text(prompt, GUIDE_MODEL)["adapter_info"]["detected_skills"]
    assert "ornithology" not in before and "ornithology" in after


def test_bad_input_is_an_error(integration: SakanaAIIntegration, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shorter than 2 characters"):
        integration.generate_adapter_from_text("", GUIDE_MODEL)
    with pytest.raises(UsageError, match="nowhere"):
        integration.generate_adapter_from_text("Sort the words", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_guides_transformer2_snippet(
    family: str, integration: SakanaAIIntegration, tiny_models: dict[str, Path]
) -> None:
    base_model = str(tiny_models[family])
    transformer2_model = integration.create_transformer2_model(base_model)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    outputs = transformer2_model(tokens)
    assert isinstance(outputs.detected_skill, str) and len(outputs.adaptations) == 0
    loaded = transformer2_model.model
    again = integration.create_transformer2_model(loaded)(tokens)
    assert torch.equal(again.logits, outputs.logits)
    assert integration.create_transformer2_model(loaded, Transformer2Config()).config.num_expert_vectors == 8
