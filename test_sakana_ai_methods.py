"""Every documented call, through the documented import path, on the embedded default model.

    python3 test_sakana_ai_methods.py

The same functions run under pytest.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal import ShoalError, TextToLoRA, attach, load_backbone
from shoal.apps.cli.main import main as shoal_command
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.text_to_lora.skill_keywords import SKILLS
from src.core.training.sakana_ai_methods import SakanaAIIntegration, TextToLoRAConfig, Transformer2Config

PROMPTS = {
    "Make this model excel at code generation and debugging": {"code_generation", "debugging"},
    "Optimize this model for mathematical reasoning and problem solving": {
        "reasoning",
        "mathematics",
        "debugging",
        "optimization",
    },
    "Enhance creative writing and storytelling capabilities": {"creative_writing", "optimization"},
}
MODELS = ("smollm2-135m-instruct", "microsoft/DialoGPT-small", "gpt2-medium")
ROOT = Path(__file__).resolve().parent


def test_generate_adapter_from_text() -> None:
    """The guide's first call, with its model, and with the default."""
    integration = SakanaAIIntegration()
    for prompt, skills in PROMPTS.items():
        for model in (MODELS[1], MODELS[0]):
            result = integration.generate_adapter_from_text(prompt, model)
            info = result["adapter_info"]
            assert result["success"] is True and result["duration"] >= 0 and info["prompt"] == prompt
            assert set(info["detected_skills"]) == skills
            assert len(info["skill_weights"]) == len(skills)
            assert all(isinstance(t, torch.Tensor) for t in info["adapters"].values())
        assert info["hypernetwork"]["trained"]


def test_configurations() -> None:
    """Both configurations with the guide's values."""
    config = TextToLoRAConfig(
        hyper_network_size=256,
        skill_embeddings_dim=128,
        adapter_rank=16,
        adapter_alpha=32,
        dropout=0.1,
        num_layers_to_adapt=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    for model, width in ((MODELS[1], 768), (MODELS[0], 576)):
        result = SakanaAIIntegration(config).generate_adapter_from_text(next(iter(PROMPTS)), model)
        shapes = {tuple(t.shape) for n, t in result["adapter_info"]["adapters"].items() if "lora_A" in n}
        assert shapes == {(16, width)}
    assert result["adapter_info"]["hypernetwork"]["trained"]  # for the default model one of this shape ships
    whole = Transformer2Config(
        expert_vector_dim=128, num_expert_vectors=8, adaptation_strength=0.1, adaptation_layers=None
    )
    first = whole.model_copy(update={"adaptation_layers": (0, 1, 2, 3)})
    integration = SakanaAIIntegration()
    adapted = [
        {int(n.split(".")[2]) for e in m.experts.values() for n, z in e.z.items() if bool((z != 1).any())}
        for m in (integration.create_transformer2_model(MODELS[0], c) for c in (whole, first))
    ]
    assert adapted == [set(range(30)), {0, 1, 2, 3}]


def test_model_comparison_loop() -> None:
    """The guide's loop over base models."""
    results = {}
    for model_path in MODELS:
        for prompt in PROMPTS:
            result = SakanaAIIntegration().generate_adapter_from_text(prompt, model_path)
            results[model_path, prompt] = (result["duration"], result["adapter_info"]["detected_skills"])
    assert len(results) == len(MODELS) * len(PROMPTS)
    assert all(seconds > 0 and skills for seconds, skills in results.values())


def test_transformer2() -> None:
    """A model that adapts itself: forward, generate, and what it says of both."""
    model = SakanaAIIntegration().create_transformer2_model(MODELS[0], Transformer2Config())
    output = model(torch.tensor([[1, 2, 3, 4, 5]]))
    assert output.logits.shape[:2] == (1, 5) and output.detected_skill in {
        "none",
        *SKILLS,
        *model.experts,
    }
    # 30 layers of 3 weights, where the skill has an expert
    assert len(output.adaptations) == (90 if output.detected_skill in model.experts else 0)

    task = next(t for t in procedural_tasks(size=32, test_size=16) if t.name == "news-topic")
    for request, skill in (
        (task.described(task.test[0].input), "news_topics"),
        ("Translate to French: Good morning, my friends.", "translation"),
        (
            "Summarize: The council met on Monday and voted to close the old bridge for repairs.",
            "summarization",
        ),
    ):
        ids = torch.tensor([load_backbone().encode_prompt(request)])
        output = model(ids)
        assert output.detected_skill == skill
        assert len(output.adaptations) == (90 if skill in model.experts else 0)
        assert all(a.skill == skill and a.change > 0 for a in output.adaptations)
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


def test_custom_skills() -> None:
    """A skill of one's own is found once it is taught."""
    integration = SakanaAIIntegration()
    integration.add_custom_skills({"gardening": ["garden", "pruning", "compost"]})
    result = integration.generate_adapter_from_text(
        "Help me with pruning and compost in my garden", MODELS[1]
    )
    assert "gardening" in result["adapter_info"]["detected_skills"]
    integration.add_custom_skills(["knitting"])
    result = integration.generate_adapter_from_text("Explain knitting patterns to a beginner", MODELS[0])
    assert "knitting" in result["adapter_info"]["detected_skills"]


def test_monitoring_metrics() -> None:
    """The five names that the guide monitors, as values and for Prometheus."""
    integration = SakanaAIIntegration()
    integration.generate_adapter_from_text(next(iter(PROMPTS)), MODELS[1])
    with pytest.raises(ShoalError):
        integration.generate_adapter_from_text("", MODELS[1])
    metrics = integration.metrics()
    assert (metrics.total_requests, metrics.successful_requests) == (2, 1)
    assert metrics.avg_response_time > 0 and metrics.avg_memory_usage > 1e6
    assert 0.7 < metrics.skill_detection_accuracy <= 1
    assert "shoal_skill_detection_accuracy" in integration.prometheus_metrics()
    before = metrics.skill_detection_accuracy
    integration.add_custom_skills({"anything": ["the", "a", "of", "to", "and", "in"]})
    assert integration.metrics().skill_detection_accuracy < before


def test_an_adapter_at_work() -> None:
    """From a sentence to a directory and to answers."""
    adapter = TextToLoRA().generate("Decide whether a movie review is positive or negative.")
    backbone = load_backbone()
    ids = torch.tensor([backbone.encode_prompt("A film that nobody needed.")])
    before = backbone.model(ids).logits
    with attach(backbone.model, adapter.lora):
        assert not torch.equal(backbone.model(ids).logits, before)
    assert torch.equal(backbone.model(ids).logits, before)
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(Path(folder) / "mine")
        assert (Path(folder) / "mine" / "adapter_model.safetensors").is_file()


def test_command_line() -> None:
    """The command for a sentence, a comparison, and one line for a mistake."""
    made = shoal_says("generate", next(iter(PROMPTS)), "--json")
    assert made["skills"].keys() == {"code_generation", "debugging"}
    compared = shoal_says("compare", "--models", "gpt2,gpt2-medium", "--json")
    assert [row["base_model"] for row in compared["models"]] == ["gpt2", "gpt2-medium"]
    command = [sys.executable, "-m", "shoal.apps.cli.main", "generate", "x"]
    whole = {**os.environ, "PYTHONPATH": str(ROOT)}
    mistake = subprocess.run(command, capture_output=True, text=True, env=whole, timeout=600)
    *stages, error = mistake.stderr.splitlines()  # a stage that lasts is said, such as loading libraries
    assert mistake.returncode == 2 and error.startswith("error: ")
    assert all(stage.endswith(" ...") for stage in stages)


def shoal_says(*arguments: str) -> dict[str, Any]:
    """The JSON that a command prints, run in this process."""
    argv, sys.argv, printed = sys.argv, ["shoal", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            shoal_command()
    finally:
        sys.argv = argv
    return json.loads(printed.getvalue())


def main() -> None:
    """Run every function above and say how it went; the exit code is that of the worst."""
    calls = {name: call for name, call in globals().items() if name.startswith("test_")}
    failed = 0
    for name, call in calls.items():
        try:
            call()
            print(f"passed  {name}")
        except Exception as error:  # each is reported, whatever it is
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
    print(f"{len(calls) - failed} of {len(calls)} passed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
