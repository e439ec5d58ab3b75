import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import ShoalError, UsageError
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.skill_features import Spelling, features, prepare
from shoal.text_to_lora.skill_keywords import KEYWORDS
from shoal.text_to_lora.skills import HEAD_PATH, SKILLS, SkillDetection, SkillDetector, load_head

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder() -> TaskEncoder:
    return TaskEncoder()


@pytest.fixture(scope="module")
def detector(encoder: TaskEncoder) -> SkillDetector:
    return SkillDetector(encoder)


@pytest.fixture
def taught(encoder: TaskEncoder) -> SkillDetector:
    """A detector of its own, to which a test may add skills."""
    return SkillDetector(encoder)


def f1(pairs: list[tuple[set[str], set[str]]]) -> float:
    return 2 * sum(len(a & b) for a, b in pairs) / sum(len(a) + len(b) for a, b in pairs)


@pytest.mark.parametrize(
    ("text", "skills"),
    [
        ("Make this model excel at code generation and debugging", ("code_generation", "debugging")),
        (
            "Optimize this model for mathematical reasoning and problem solving",
            ("reasoning", "mathematics", "debugging", "optimization"),
        ),
        ("Enhance creative writing and storytelling capabilities", ("creative_writing", "optimization")),
    ],
)
def test_the_guide_s_examples(detector: SkillDetector, text: str, skills: tuple[str, ...]) -> None:
    for variant in (text, f"  {text.lower()}.\n"):
        found = detector.detect(variant)
        assert found.skills == skills
        assert tuple(found.weights) == skills and sum(found.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "skills"),
    [
        ("write Python functions from docstrings", {"code_generation"}),
        ("solve algebra word problems", {"mathematics"}),
        ("logical deduction puzzles", {"reasoning"}),
        ("a short story about a lighthouse", {"creative_writing"}),
        ("sentiment analysis of customer reviews", {"analysis"}),
        ("summarize news articles in two sentences", {"summarization"}),
        ("translate English to German", {"translation"}),
        ("answer questions about history", {"question_answering"}),
        ("find and fix bugs in JavaScript", {"debugging"}),
        ("make our SQL queries faster", {"optimization"}),
        ("translate and summarize French news", {"translation", "summarization"}),
        ("wirte pyton scrpits", {"code_generation"}),
        ("trasnlate germna emials", {"translation"}),
        ("don't summarise, translate the letter into Danish", {"translation"}),
        ("no code please, explain how compilers work", {"question_answering"}),
        ("a poem about a tired programmer", {"creative_writing"}),
        ("please never write any code", set()),
        ("be more polite", set()),
        ("hello there", set()),
        ("", set()),
        ("12 + 7", set()),
        ("你好", set()),
    ],
)
def test_skills_of_a_request(detector: SkillDetector, text: str, skills: set[str]) -> None:
    assert set(detector.detect(text).skills) == skills


def test_skills_are_ordered_by_weights_that_add_up_to_one(detector: SkillDetector) -> None:
    found = detector.detect("Write Python code, debug it and make it run faster.")
    assert set(found.skills) == {"code_generation", "debugging", "optimization"}
    assert tuple(found.weights) == found.skills
    assert sorted(found.weights.values(), reverse=True) == list(found.weights.values())
    assert sum(found.weights.values()) == pytest.approx(1)
    assert detector.detect("hello there") == SkillDetection((), {})


def test_batched_is_looped_and_again_the_same(detector: SkillDetector, encoder: TaskEncoder) -> None:
    texts = ["write haikus", "debug my loop", "hello", "translate and summarize letters", "write haikus"]
    batched = detector.detect_many(texts)
    assert batched == detector.detect_many(texts) == SkillDetector(encoder).detect_many(texts)
    assert [found.skills for found in batched] == [detector.detect(text).skills for text in texts]
    assert detector.detect_many([]) == []


def test_figures_on_the_annotated_prompts(detector: SkillDetector, shared_data: Path) -> None:
    path = shared_data / "skills_dev.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    detections = detector.detect_many([record["prompt"] for record in records])
    pairs = [(set(d.skills), set(r["skills"])) for d, r in zip(detections, records, strict=True)]
    none = [found for (found, _), record in zip(pairs, records, strict=True) if record["kind"] == "none"]
    assert f1(pairs) >= 0.9
    assert sum(map(bool, none)) <= 0.1 * len(none)

    lines = (ROOT / "benchmarks" / "skill_prompts.jsonl").read_text("utf-8").splitlines()
    fitted_on = {json.loads(line)["prompt"].lower() for line in lines}
    assert not fitted_on & {record["prompt"].lower() for record in records}


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("Translate the letter.", "Translate the letter."),
        ("optmise my slow qurey", "optimise my slow query"),
        ("debug Kubernetes deployments", "debug Kubernetes deployments"),
        ("no idea why it crashes", "no idea why it crashes"),
        ("don't know why this loop fails", "don't know why this loop fails"),
        ("never write code", ""),
        ("sum it up, don't translate it, and be quick", "sum it up, , and be quick"),
        ("pictures rather than stories", "pictures"),
    ],
)
def test_preparation(encoder: TaskEncoder, text: str, prepared: str) -> None:
    assert prepare(text, encoder, Spelling(load_head(HEAD_PATH).vocabulary)) == prepared


def test_features(encoder: TaskEncoder) -> None:
    embedding, keywords, words = features(
        ["Debug the code", "zzz"], encoder, ("code", "debug", "poem")
    ).split([encoder.dim, len(SKILLS), 3], dim=1)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(2))
    assert [SKILLS[i] for i in keywords[0].nonzero().flatten()] == ["code_generation", "debugging"]
    assert torch.allclose(words[0], torch.tensor([0.8, 0.8, 0]) / 2**0.5)
    assert not keywords[1].any() and not words[1].any()


def test_the_ten_skills() -> None:
    assert tuple(KEYWORDS) == SKILLS == SkillDetector().names
    assert len(SKILLS) == 10


def test_custom_skills(taught: SkillDetector) -> None:
    before = taught.detect("translate the recipe into French")
    taught.add_custom_skills(
        {
            "cooking": {
                "keywords": ["recipe", "slow  cooker"],
                "description": "Plan dinners and cook meals.",
            },
            "legal_advice": {"description": "Answer legal questions about contracts and tenancy."},
            "chess": ["checkmate", "teach people how to play better chess"],
        }
    )
    assert taught.names == (*SKILLS, "cooking", "legal_advice", "chess")
    assert before.skills == ("translation",)
    both = taught.detect("translate the Recipe into French")
    assert set(both.skills) == {"translation", "cooking"} and sum(both.weights.values()) == pytest.approx(1)
    assert "cooking" in taught.detect("what a Slow Cooker can do").skills
    assert "cooking" in taught.detect("plan a dinner for six").skills
    assert "legal_advice" in taught.detect("review this lease agreement").skills
    assert "chess" in taught.detect("who gets checkmated? checkmate puzzles").skills
    assert "chess" in taught.detect("how do I get better at chess").skills
    assert "cooking" in taught.detect("recipes with rice").skills
    taught.add_custom_skills({"painting": ["art"]})
    assert "painting" not in taught.detect("invite people to the party").skills
    assert taught.detect("be more polite") == SkillDetection((), {})


def test_custom_skills_by_name_only_and_replaced(taught: SkillDetector) -> None:
    taught.add_custom_skills(["bird_watching"])
    assert "bird_watching" in taught.detect("Bird watching for beginners").skills
    taught.add_custom_skills({"bird_watching": ["ornithology"]})
    assert taught.names == (*SKILLS, "bird_watching")
    assert "bird_watching" in taught.detect("ornithology").skills
    assert "bird_watching" in taught.detect("ornitholgy").skills
    assert "bird_watching" not in taught.detect("Bird watching for beginners").skills


@pytest.mark.parametrize(
    ("skills", "message"),
    [
        ({}, "must be a mapping of names"),
        ("cooking", "must be a mapping of names"),
        (7, "must be a mapping of names"),
        ({"Cooking": ["recipe"]}, r"must match \[a-z\]\[a-z0-9_\]\{0,63\}: rename it"),
        ({"9lives": ["cat"]}, "must match"),
        ({"a" * 65: ["cat"]}, "must match"),
        ({"ends\n": ["cat"]}, "must match"),
        ({3: ["cat"]}, "must match"),
        ({"debugging": ["bug"]}, "'debugging' is a built-in skill"),
        ({"cooking": {}}, "'cooking' is empty"),
        ({"cooking": []}, "'cooking' is empty"),
        ({"cooking": {"words": ["recipe"]}}, "unknown field 'words'"),
        ({"cooking": {"keywords": "recipe"}}, "keywords must be a list of texts, got 'recipe'"),
        ({"cooking": {"description": ""}}, "description must be a list of texts"),
        ({"cooking": "recipe"}, "list must be a list of texts"),
        ({"cooking": ["recipe", 3]}, "must be a list of texts"),
        ({"cooking": ["  "]}, "must be a list of texts"),
    ],
)
def test_bad_custom_skills_change_nothing(taught: SkillDetector, skills: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        taught.add_custom_skills(skills)
    assert "\n" not in str(error.value)
    assert taught.names == SKILLS


@pytest.mark.parametrize("text", [None, 3, ["a list"]])
def test_detection_takes_text(detector: SkillDetector, text: object) -> None:
    with pytest.raises(UsageError, match="detection takes strings"):
        detector.detect(text)
    with pytest.raises(UsageError, match="detection takes strings"):
        detector.detect_many("one text")


def test_another_encoder_is_refused(encoder: TaskEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "name", "someone/other-encoder")
    with pytest.raises(UsageError, match="got the encoder 'someone/other-encoder'"):
        SkillDetector(encoder)


def test_a_missing_broken_or_foreign_head(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="cannot be read"):
        load_head(tmp_path / "nowhere.safetensors")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(HEAD_PATH.read_bytes()[:100])
    with pytest.raises(ShoalError, match="cannot be read .*fit_skills.py"):
        load_head(truncated)
    facts = {"skills": ["juggling"], "vocabulary": [], "threshold": 0.5, "best_threshold": 0.5}
    tensors = {"weight": torch.zeros(1, 384), "bias": torch.zeros(1)}
    foreign = tmp_path / "foreign.safetensors"
    save_file(tensors, foreign, metadata={"shoal": json.dumps(facts)})
    with pytest.raises(ShoalError, match="fitted for other skills"):
        load_head(foreign)


@pytest.mark.slow
def test_the_benchmark_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/skills.py"), str(tmp_path / "nowhere.jsonl")]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "pass the path of a JSONL file" in done.stderr
        and "Traceback" not in done.stderr
    )
