"""From descriptions to adapters for tiny models of which only the configuration is there."""

import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.adapters.files import load_adapter
from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA
from shoal.config import HypernetworkTrainingConfig, TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Request
from shoal.inference.engine.runner import EngineRunner
from shoal.inference.sampling import Sampling
from shoal.models.backbone import load_backbone, load_shape
from shoal.tasks.loading import Example, Task
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, load_hypernetwork, save_hypernetwork
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER
from shoal.text_to_lora.generator import CACHED_ADAPTERS, TextToLoRA
from shoal.text_to_lora.refining import Refining, group_modules
from shoal.text_to_lora.shipped import new_hypernetwork

DIM = 12
SIZES = TextToLoRAConfig(
    adapter_rank=2,
    adapter_alpha=4,
    num_layers_to_adapt=2,
    target_modules=("q_proj", "v_proj"),
    hyper_network_size=16,
    skill_embeddings_dim=16,
)
WARNING = "the adapter changes nothing"


class FakeEncoder:
    """A fixed vector a text, without a model."""

    dim, name = DIM, DEFAULT_ENCODER

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def encode(self, texts: Sequence[str]) -> Tensor:
        seeds = [torch.Generator().manual_seed(sum(text.encode())) for text in texts]
        return torch.stack([torch.randn(DIM, generator=seed) for seed in seeds])

    def unit_vectors(self, texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(self.encode(texts), dim=-1)


class FakeSkills:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.encoder = FakeEncoder()

    def detect_many(self, texts: Sequence[str]) -> list[SimpleNamespace]:
        self.asked += texts
        return [SimpleNamespace(skills=("analysis",), weights={"analysis": 1.0}) for _ in texts]


@pytest.fixture(autouse=True)
def fake_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shoal.text_to_lora.generator.TaskEncoder", FakeEncoder)
    monkeypatch.setattr("shoal.text_to_lora.generator.SkillDetector", FakeSkills)
    monkeypatch.setattr("shoal.text_to_lora.shipped.SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr("shoal.text_to_lora.identity._said", set())


@pytest.fixture(scope="module")
def base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory that holds a configuration alone, without any weights."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copy(tiny_llama / "config.json", folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(base: str, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after three steps of real training on the weights of the same model."""
    from shoal.text_to_lora.train import train_hypernetwork

    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    network = new_hypernetwork(backbone.shape, SIZES, DIM)
    tasks = [
        Task(
            name=name,
            category="test",
            definition=f"Answer with {letter}.",
            descriptions=(f"Always answer {letter} to it.",),
            train=tuple(Example(f"{name} {i}", (letter * 3,)) for i in range(4)),
            test=(),
        )
        for name, letter in (("first", "a"), ("second", "b"))
    ]
    folder = tmp_path_factory.mktemp("trained")
    config = HypernetworkTrainingConfig(steps=3, batch_size=2, learning_rate=1e-2)
    train_hypernetwork(network, backbone, FakeEncoder(), tasks, folder / "run", config, show_progress=False)
    checkpoint = HypernetworkCheckpoint(network.eval(), base, DEFAULT_ENCODER, True, {"steps": 3})
    save_hypernetwork(checkpoint, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture
def generator(base: str, trained: Path) -> TextToLoRA:
    return TextToLoRA(base, hypernetwork=trained)


def close(left: LoRA, right: LoRA) -> bool:
    return left.factors.keys() == right.factors.keys() and all(
        torch.allclose(f, g, atol=1e-6)
        for name in left.factors
        for f, g in zip(left.factors[name], right.factors[name], strict=True)
    )


def test_without_a_trained_hypernetwork_the_adapter_is_the_identity_and_says_so(
    base: str, caplog: pytest.LogCaptureFixture
) -> None:
    generator = TextToLoRA(base, SIZES)
    with caplog.at_level(logging.WARNING):
        adapter = generator.generate("Answer with a rhyme")
    assert not generator.trained and not adapter.trained
    assert all(not adapter.lora.delta_weight(name).any() for name in adapter.lora.factors)
    assert (adapter.lora.rank, adapter.lora.alpha, len(adapter.lora.factors)) == (2, 4.0, 4)
    facts = adapter.hypernetwork
    assert facts["trained"] is False and facts["adapter"] == "identity"
    assert facts["how_to_train"] == (
        f"shoal train text-to-lora --base {base} --hyper-network-size 16 --skill-embeddings-dim 16 "
        "--adapter-rank 2 --adapter-alpha 4.0 --num-layers-to-adapt 2 --target-modules q_proj,v_proj "
        "--tasks DATA --out OUT"
    )
    (warning,) = [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]
    assert facts["how_to_train"] in warning


def test_the_identity_is_warned_of_once_for_each_base_model(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = str(shutil.copytree(base, tmp_path / "other"))
    with caplog.at_level(logging.WARNING):
        for name in (base, other, base):
            generator = TextToLoRA(name, SIZES)
            generator.generate("Answer with a rhyme")
            generator.generate("Sort the words")
    warned = [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]
    assert len(warned) == 2 and f"for {base} " in warned[0] and f"for {other} " in warned[1]


def test_the_identity_leaves_the_models_logits_alone(base: str, tiny_llama: Path) -> None:
    adapter = TextToLoRA(base, SIZES).generate("Answer with a rhyme")
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    ids = torch.tensor([backbone.encode_prompt("hello")])
    with torch.no_grad():
        bare = backbone.model(ids).logits
        with attach(backbone.model, adapter.lora):
            assert torch.equal(backbone.model(ids).logits, bare)


def test_a_trained_hypernetwork_gives_each_description_its_own_adapter(
    generator: TextToLoRA, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = generator.generate("Answer with a rhyme"), generator.generate("Sort the words")
    assert generator.trained and one.trained and one.hypernetwork["trained"] is True
    assert len(str(one.hypernetwork["sha256"])) == 64 and one.hypernetwork["modules"] == 4
    assert any(one.lora.delta_weight(name).any() for name in one.lora.factors)
    assert not close(one.lora, other.lora)
    assert one.duration > 0 and not caplog.records


def test_many_at_once_are_the_same_as_one_by_one(base: str, trained: Path, generator: TextToLoRA) -> None:
    texts = ["Answer with a rhyme", "Sort the words", "Answer with a rhyme", "  Sort the words "]
    many = generator.generate_many(texts)
    alone = TextToLoRA(base, hypernetwork=trained)
    assert [a.description for a in many] == [t.strip() for t in texts]
    assert all(close(a.lora, alone.generate(t).lora) for a, t in zip(many, texts, strict=True))
    assert many[0].lora == many[2].lora and many[1].lora == many[3].lora
    assert generator.generate_many([]) == []


def test_rows_of_a_batch_do_not_keep_the_batch_in_memory(generator: TextToLoRA) -> None:
    for adapter in generator.generate_many(["Answer with a rhyme", "Sort the words"]):
        for factor in (f for factors in adapter.lora.factors.values() for f in factors):
            assert factor.untyped_storage().nbytes() == factor.numel() * factor.element_size()


def test_repeated_descriptions_come_from_the_cache(generator: TextToLoRA) -> None:
    first = generator.generate("Answer with a rhyme")
    again = generator.generate(" Answer with a rhyme ")
    assert again.lora == first.lora and again.duration == 0.0 < first.duration
    assert generator.skills.asked == ["Answer with a rhyme"]
    generator.clear_cache()
    assert generator.generate("Answer with a rhyme").duration > 0.0


def test_the_cache_forgets_what_was_asked_longest_ago(generator: TextToLoRA) -> None:
    first, second = generator.generate_many(["Description one", "Description two"])
    generator.generate_many([f"Description number {n}" for n in range(CACHED_ADAPTERS - 2)])
    assert generator.generate("Description one").duration == 0
    generator.generate("One more description")
    assert generator.generate("Description one").duration == 0
    assert generator.generate("Description two").duration > 0
    assert close(generator.generate("Description one").lora, first.lora)
    assert close(generator.generate("Description two").lora, second.lora)


def test_what_a_caller_does_to_a_result_stays_there(generator: TextToLoRA) -> None:
    first = generator.generate("Answer with a rhyme")
    kept = first.lora.copy()
    for factors in first.lora.factors.values():
        factors.b.mul_(100)
    first.hypernetwork["trained"] = False
    again = generator.generate("Answer with a rhyme")
    assert again.lora == kept and again.trained and again.duration == 0


def test_a_small_model_is_adapted_whole_unless_told_otherwise(base: str) -> None:
    assert TextToLoRA(base).config.num_layers_to_adapt == 3
    with pytest.raises(UsageError, match="which has 3"):
        TextToLoRA(base, TextToLoRAConfig(num_layers_to_adapt=8))


@pytest.mark.parametrize("examples", [["ab", "cd", "ef", "gh"], [("a",)] * 4, [("a", "b", "c")] * 4])
def test_examples_are_pairs(generator: TextToLoRA, examples: list) -> None:
    with pytest.raises(UsageError, match="is no pair; give Example records or"):
        generator.generate("Sort the words", examples)


def test_saved_and_loaded(generator: TextToLoRA, tmp_path: Path) -> None:
    generator.save(tmp_path / "saved")
    again = TextToLoRA.load(tmp_path / "saved")
    assert again.shape == generator.shape and again.config == generator.config
    assert again.generate("Sort the words").lora == generator.generate("Sort the words").lora
    assert again.checkpoint.provenance == {"steps": 3}


def test_without_a_hypernetwork_there_is_nothing_to_save(base: str, tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="no hypernetwork is trained for .* train one with: shoal train"):
        TextToLoRA(base, SIZES).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_adapter_saves_as_a_peft_directory(base: str, generator: TextToLoRA, tmp_path: Path) -> None:
    adapter = generator.generate("Sort the words")
    adapter.save(tmp_path / "adapter")
    stored = load_adapter(tmp_path / "adapter")
    assert close(stored.lora, adapter.lora) and stored.base_model == base
    assert stored.card.description == "Sort the words" and stored.card.trained
    assert stored.card.checkpoint_sha256 == adapter.hypernetwork["sha256"]
    identity = TextToLoRA(base, SIZES).generate("Sort the words")
    identity.save(tmp_path / "identity")
    assert load_adapter(tmp_path / "identity").card.trained is False


def test_unset_fields_come_from_the_hypernetwork(base: str, trained: Path) -> None:
    generator = TextToLoRA(base, TextToLoRAConfig(adapter_rank=2, dropout=0.3), hypernetwork=trained)
    assert (
        generator.trained
        and generator.config.adapter_alpha == 4
        and generator.config.num_layers_to_adapt == 2
    )
    same = TextToLoRAConfig(target_modules=("self_attn.v_proj", "self_attn.q_proj"), num_layers_to_adapt=2)
    assert TextToLoRA(base, same, hypernetwork=trained).trained


@pytest.mark.parametrize(
    ("field", "value"),
    [("adapter_rank", 4), ("num_layers_to_adapt", 3), ("target_modules", ("o_proj",)), ("head", "mixture")],
)
def test_another_configuration_is_not_what_was_trained(
    base: str, trained: Path, field: str, value: object
) -> None:
    with pytest.raises(UsageError, match=f"has another {field} than was asked for; leave that unset"):
        TextToLoRA(base, TextToLoRAConfig(**{field: value}), hypernetwork=trained)


def test_a_checkpoint_of_another_model_or_without_training_is_refused(
    base: str, trained: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="choose its own base model"):
        TextToLoRA(str(tiny_models["gpt2"]), hypernetwork=trained)
    untrained = replace(load_hypernetwork(trained), trained=False)
    save_hypernetwork(untrained, tmp_path / "untrained")
    with pytest.raises(UsageError, match="was never trained; train it with"):
        TextToLoRA(base, hypernetwork=tmp_path / "untrained")
    with pytest.raises(ShoalError, match="nowhere"):
        TextToLoRA(base, hypernetwork=tmp_path / "nowhere")


def test_the_shipped_checkpoint_is_for_its_own_model_and_configuration(
    base: str, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained, tmp_path / "shipped" / Path(base).name)
    assert TextToLoRA(base).trained
    other = SIZES.model_copy(update={"adapter_rank": 3})
    with caplog.at_level(logging.WARNING):
        assert not TextToLoRA(base, other).generate("Sort the words").trained
    assert f"{Path(base).name} has another adapter_rank than was asked for; leave that unset" in caplog.text
    elsewhere = shutil.copytree(base, tmp_path / "elsewhere" / Path(base).name)
    assert not TextToLoRA(str(elsewhere), SIZES).trained


def test_another_configuration_has_a_shipped_checkpoint_of_its_own(
    base: str, trained: Path, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped" / Path(base).name
    shutil.copytree(trained, shipped)
    rank = SIZES.model_copy(update={"adapter_rank": 3})
    network = new_hypernetwork(load_shape(base), rank, DIM)
    checkpoint = HypernetworkCheckpoint(network.eval(), base, DEFAULT_ENCODER, True, {})
    save_hypernetwork(checkpoint, shipped.with_name(shipped.name + "-rank-3"))
    adapter = TextToLoRA(base, rank).generate("Sort the words")
    assert adapter.trained and adapter.lora.rank == 3
    assert TextToLoRA(base).generate("Sort the words").lora.rank == 2


def test_the_checkpoint_names_its_encoder(
    base: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TextToLoRA(base, hypernetwork=trained).encoder.path is None
    path = trained / "hypernetwork.json"
    other = {**json.loads(path.read_text("utf-8")), "task_encoder": "some/encoder"}
    shutil.copytree(trained, tmp_path / "other")
    (tmp_path / "other" / path.name).write_text(json.dumps(other), "utf-8")
    assert TextToLoRA(base, hypernetwork=tmp_path / "other").encoder.path == "some/encoder"
    monkeypatch.setattr(FakeEncoder, "dim", DIM + 1)
    with pytest.raises(ShoalError, match="gives 13 numbers, the hypernetwork reads 12"):
        _ = TextToLoRA(base, hypernetwork=trained).emitter


def test_no_weights_of_the_base_model_are_opened(tiny_llama: Path, trained: Path, tmp_path: Path) -> None:
    """Their names and sizes are there, but every number is NaN."""
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    recorded = replace(load_hypernetwork(trained), base_model=str(base))
    save_hypernetwork(recorded, tmp_path / "checkpoint")
    weights = load_file(base / "model.safetensors")
    save_file({n: torch.full_like(w, torch.nan) for n, w in weights.items()}, base / "model.safetensors")
    adapter = TextToLoRA(str(base), hypernetwork=tmp_path / "checkpoint").generate("Sort")
    assert adapter.trained and all(f.isfinite().all() for pair in adapter.lora.factors.values() for f in pair)
    adapter.save(tmp_path / "adapter")


EXAMPLES = [(f"word number {i}", "yes") for i in range(8)]


def test_examples_refine_an_adapter(tiny_llama: Path, trained: Path, tmp_path: Path) -> None:
    recorded = replace(load_hypernetwork(trained), base_model=str(tiny_llama))
    save_hypernetwork(recorded, tmp_path / "checkpoint")
    generator = TextToLoRA(str(tiny_llama), hypernetwork=tmp_path / "checkpoint")
    plain, refined = generator.generate("Sort"), generator.generate("Sort", EXAMPLES)
    facts = refined.hypernetwork["few_shot"]
    assert (facts["examples"], facts["held_out"]) == (6, 2) and facts["steps"] > 0
    assert facts["loss_after"] < facts["loss_before"] and refined.duration >= facts["seconds"] > 0
    assert any(not torch.equal(f.b, plain.lora.factors[n].b) for n, f in refined.lora.factors.items())
    assert "few_shot" not in generator.generate("Sort").hypernetwork  # what the cache holds is as it was
    refined.save(tmp_path / "adapter")
    assert "Refined on 6 examples" in (tmp_path / "adapter" / "README.md").read_text("utf-8")
    records = [Example(text, (answer,)) for text, answer in EXAMPLES]
    assert generator.generate("Sort", records).hypernetwork["few_shot"]["steps"] == facts["steps"]


def test_examples_refine_as_was_learned_unless_care_is_asked_for(
    tiny_llama: Path, trained: Path, tmp_path: Path
) -> None:
    checkpoint = replace(load_hypernetwork(trained), base_model=str(tiny_llama))
    rates = dict.fromkeys(group_modules(checkpoint.network.targets).values(), 1e-2)
    learned = Refining(checkpoint.base_model, "", rates, 0.0, {8: 3})
    save_hypernetwork(replace(checkpoint, refining=learned), tmp_path / "learned")
    generator = TextToLoRA(str(tiny_llama), hypernetwork=tmp_path / "learned")
    adapter = generator.generate("Sort", EXAMPLES)
    facts = adapter.hypernetwork["few_shot"]
    assert (facts["examples"], facts["held_out"], facts["steps"]) == (8, 0, 3)
    assert any("8 examples for 3 steps at the learned rates" in note for note in adapter.card().notes)
    careful = generator.generate("Sort", EXAMPLES, careful=True).hypernetwork["few_shot"]
    assert (careful["held_out"], careful["rates"]) == (2, None)
    plain = generator.generate("Sort", EXAMPLES, refine=False)
    assert "few_shot" not in plain.hypernetwork and plain.lora == generator.generate("Sort").lora


def test_the_value_of_more_examples_is_said(tiny_llama: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = replace(load_hypernetwork(trained), base_model=str(tiny_llama))
    rates = dict.fromkeys(group_modules(checkpoint.network.targets).values(), 1e-2)
    learned = Refining(checkpoint.base_model, "", rates, 0.0, {8: 3})
    save_hypernetwork(replace(checkpoint, refining=learned), tmp_path / "learned")
    generator = TextToLoRA(str(tiny_llama), hypernetwork=tmp_path / "learned")
    inputs = [EXAMPLES[0][0], "kiwi", "lemon", "mango", "nut"]
    for careful in (False, True):  # which has no adapters that leave examples out, and makes some
        adapter = generator.generate("Sort", EXAMPLES, inputs=inputs, suggest=2, careful=careful)
        facts = adapter.hypernetwork["next_examples"]
        assert facts["examples"] == 4 and facts["pays"] == (facts["gain"] >= 0.05)
        assert len(facts["inputs"]) == 2 and set(facts["inputs"]) < set(inputs[1:])
        assert facts["spreads"][0] >= facts["spreads"][1] >= 0
        assert any("4 more solved examples" in note for note in adapter.card().notes)
        assert not any(text in note for text in inputs for note in adapter.card().notes)
        few_shot = adapter.hypernetwork["few_shot"]
        assert few_shot["gain"]["examples"] == (2 if careful else 8)
        assert json.loads(json.dumps(adapter.hypernetwork))["few_shot"]["curve"][0][0] == 0
    with pytest.raises(UsageError, match="got 5 inputs and 0 examples; give both"):
        generator.generate("Sort", inputs=inputs, suggest=4)
    with pytest.raises(UsageError, match="8 examples with refine=False; refine on them"):
        generator.generate("Sort", EXAMPLES, inputs=inputs, suggest=4, refine=False)
    with pytest.raises(UsageError, match="suggest -1: 0 inputs is the least"):
        generator.generate("Sort", EXAMPLES, inputs=inputs, suggest=-1)


def test_examples_need_a_trained_hypernetwork(base: str) -> None:
    with pytest.raises(UsageError, match="8 examples have no adapter to refine: .* use `shoal train lora`"):
        TextToLoRA(base, SIZES.model_copy(update={"adapter_rank": 3})).generate("Sort", EXAMPLES)


def test_a_half_downloaded_base_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    (base / "model.safetensors").unlink()
    with pytest.raises(ShoalError, match="half downloaded: it has none of model.safetensors"):
        TextToLoRA(str(base))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"adapter_rank": 17, "target_modules": ("v_proj",), "num_layers_to_adapt": 1},
            r"rank 17 is outside 1\.\.16",
        ),
        ({"num_layers_to_adapt": 8}, "cannot adapt 8 layers"),
        ({"num_layers_to_adapt": 1, "target_modules": ("w_proj",)}, "no target module 'w_proj'"),
    ],
)
def test_sizes_that_the_model_cannot_take_are_refused(base: str, config: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TextToLoRA(base, TextToLoRAConfig(**config))


@pytest.mark.parametrize(
    "text", ["", "x", "word " * 10_000, "Übersetze den folgenden Satz bitte sofort ins Englische"]
)
def test_descriptions_that_cannot_be_used_are_refused(generator: TextToLoRA, text: str) -> None:
    with pytest.raises(UsageError):
        generator.generate(text)
    with pytest.raises(UsageError):
        generator.generate_many(["Sort the words", text])
    with pytest.raises(UsageError, match="got one string"):
        generator.generate_many("Sort the words")


def test_a_fresh_hypernetwork_has_the_sizes_of_its_configuration(base: str) -> None:
    network = new_hypernetwork(load_shape(base), SIZES, DIM)
    a = network.architecture
    assert (a.rank, a.alpha, a.head, a.latent_size, a.hidden_size) == (2, 4, "L", 16, 16)
    assert [t.layer for t in network.targets] == [1, 1, 2, 2]
    with torch.no_grad():
        lora = network(torch.zeros(1, DIM)).row(0)
    assert not any(lora.delta_weight(name).any() for name in lora.factors)


def reading(folder: Path, base: Path, shots: int = 0) -> Path:
    """A checkpoint whose network reads the base model's states, with noise in every weight."""
    sizes = SIZES.model_copy(update={"head": "reader", "num_layers_to_adapt": 1})
    network = new_hypernetwork(load_shape(str(base)), sizes, DIM).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    checkpoint = HypernetworkCheckpoint(network, str(base), DEFAULT_ENCODER, True, {}, shots=shots)
    save_hypernetwork(checkpoint, folder)
    return folder


def test_examples_are_read_in_one_pass_where_the_network_was_trained_to(
    tiny_llama: Path, tmp_path: Path
) -> None:
    generator = TextToLoRA.load(reading(tmp_path / "network", tiny_llama, shots=8))
    plain = generator.generate("Sort")
    read = generator.generate("Sort", EXAMPLES[:1], refine=False)
    assert read.hypernetwork["shots"] == {"read": 1, "long": 0} and "few_shot" not in read.hypernetwork
    assert any("the description and 1 examples" in note for note in read.card().notes)
    assert read.lora != plain.lora and generator.generate("Sort").lora == plain.lora
    refined = generator.generate("Sort", EXAMPLES)
    assert refined.hypernetwork["shots"]["read"] == 8 and refined.hypernetwork["few_shot"]["examples"] == 6
    with pytest.raises(UsageError, match="1 different inputs in 1 examples are too few to refine"):
        generator.generate("Sort", EXAMPLES[:1])


def test_examples_that_nothing_uses_are_warned_of(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator = TextToLoRA.load(reading(tmp_path / "network", tiny_llama))
    assert generator.generate("Sort", EXAMPLES, refine=False).lora == generator.generate("Sort").lora
    assert "reads no examples: without refining they teach the adapter nothing" in caplog.text


def test_generators_that_share_an_encoder_read_their_own_base_models(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    bases = [tiny_models["llama"], tiny_models["qwen2"]]
    folders = [reading(tmp_path / base.name, base) for base in bases]
    alone = [TextToLoRA.load(folder).generate("Sort the words.").lora for folder in folders]
    skills = FakeSkills()
    both = [TextToLoRA(str(b), hypernetwork=f, skills=skills) for b, f in zip(bases, folders, strict=True)]  # type: ignore[arg-type]
    assert both[0].encoder is both[1].encoder
    assert [generator.generate("Sort the words.").lora for generator in both] == alone
    assert alone[0] != alone[1]


def test_a_description_is_read_while_an_adapter_is_refined(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.text_to_lora import few_shot

    generator = TextToLoRA.load(reading(tmp_path / "network", tiny_llama))
    expected = TextToLoRA.load(tmp_path / "network").generate("Sort the words.").lora
    made = []

    def meanwhile(backbone, lora, examples, **others):  # type: ignore[no-untyped-def]
        strong = LoRA({n: f._replace(b=f.b + 1) for n, f in lora.factors.items()}, lora.alpha)
        with attach(backbone.model, strong):
            made.append(generator.generate("Sort the words.").lora)
        raise ShoalError("that is enough")

    monkeypatch.setattr(few_shot, "refine", meanwhile)
    with pytest.raises(ShoalError, match="that is enough"):
        generator.generate("Count the words.", [(word, "b") for word in "acde"])
    assert made == [expected]


def test_a_loaded_base_model_is_shared(tiny_llama: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    generator = TextToLoRA(backbone=backbone, hypernetwork=reading(tmp_path / "network", tiny_llama))
    generator.generate("Sort the words.", EXAMPLES)
    assert generator.backbone is backbone
    weights = {w.data_ptr() for w in backbone.model.parameters()}
    with generator._weights.training() as trained:
        for own in (generator._weights.read, trained):
            assert {w.data_ptr() for w in own.model.parameters()} == weights
            assert own.model is not backbone.model


def test_a_loaded_base_model_is_of_its_own_name_device_and_dtype(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    for more in ({"base_model": "x"}, {"device": "cpu"}, {"dtype": torch.bfloat16}):
        with pytest.raises(UsageError, match="leave base_model, device and dtype out"):
            TextToLoRA(backbone=backbone, **more)  # type: ignore[arg-type]


def test_states_are_read_in_the_dtype_that_was_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    folder = reading(tmp_path / "network", tiny_llama)
    dtypes = (torch.float32, torch.bfloat16)
    generators = [TextToLoRA(str(tiny_llama), dtype=dtype, hypernetwork=folder) for dtype in dtypes]
    one, other = (generator.generate("Sort the words.").lora for generator in generators)
    assert [generator.backbone.dtype for generator in generators] == list(dtypes)
    assert one != other


def test_descriptions_are_read_while_answers_run_under_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    """Both are what they are alone: the engine's hooks are on other modules over the same weights."""
    folder = reading(tmp_path / "network", tiny_llama)
    texts = [f"Sort the words by length, number {n}." for n in range(12)]
    alone = TextToLoRA(str(tiny_llama), dtype=torch.float32, hypernetwork=folder)
    expected = [alone.generate(text).lora for text in texts]
    refined = alone.generate(texts[0], EXAMPLES).lora

    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    strong = {n: f._replace(b=f.b + 1) for n, f in expected[0].factors.items()}
    lora = LoRA(strong, expected[0].alpha)
    sampling = Sampling(temperature=0.0)

    def asked() -> list[Request]:
        return [
            Request(
                tuple(backbone.encode_prompt(f"word {n}")), lora, 60, sampling=sampling, stop_at_end=False
            )
            for n in range(4)
        ]

    def answers(runner: EngineRunner) -> list[str]:
        streams = [runner.submit(request) for request in asked()]
        return ["".join(delta.text for delta in stream) for stream in streams]

    generator = TextToLoRA(backbone=backbone, hypernetwork=folder)
    with EngineRunner(Engine(backbone)) as runner:
        quiet = answers(runner)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(lambda: [answers(runner) for _ in range(3)])
            read = [generator.generate(text).lora for text in texts]
            trained = generator.generate(texts[0], EXAMPLES).lora
            overlapped = not running.done()
            busy = running.result()
    assert overlapped and busy == [quiet] * 3
    assert read == expected and trained == refined
