"""Examples behind a description: which are read in training and after it, and what is so without them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shoal.config import MOST_SHOTS, HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.evaluation.shots import Shots
from shoal.evaluation.shots_methods import READ, READ_SHUFFLED, REFINED, SENTENCE, curve_methods
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, load_hypernetwork, save_hypernetwork
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.encoders.states import MAX_TOKENS, SHOT_TOKENS, StateReader
from shoal.text_to_lora.shots import ShotsRead, draw_shots, short_shots, with_shots
from shoal.text_to_lora.train import SftObjective
from shoal.training.batches import tokenise

EXAMPLES = [Example(f"word {i}", (f"WORD {i}",)) for i in range(12)]
LONG = Example("w" * SHOT_TOKENS, ("W",))


def reader_network(toy: ModuleType, backbone: Backbone) -> Any:
    targets, width = backbone.shape.select(("q_proj", "v_proj"), None), backbone.shape.targets[0].in_features
    return toy.moved(toy.toy_network(targets, dropout=0.0, head="reader", task_dim=width)).eval()


def emitter(toy: ModuleType, backbone: Backbone, shots: int) -> Emitter:
    network, encoder = reader_network(toy, backbone), toy.HashEncoder()
    checkpoint = HypernetworkCheckpoint(
        network, backbone.shape.base_model, encoder.name, True, {}, shots=shots
    )
    return Emitter(checkpoint, encoder, backbone)


def test_examples_stand_behind_the_description() -> None:
    assert with_shots("Shout.", ()) == "Shout."
    text = with_shots("Shout.", [Example("a", ("A", "AH")), Example("b", ("B",))])
    assert text == "Shout.\n\nInput: a\nOutput: A\n\nInput: b\nOutput: B"


def test_long_examples_are_left_out(backbone: Backbone) -> None:
    assert short_shots(backbone, [EXAMPLES[0], LONG, EXAMPLES[1]]) == EXAMPLES[:2]


def test_training_draws_none_to_all_of_other_inputs(backbone: Backbone) -> None:
    again = replace(EXAMPLES[0], input=EXAMPLES[0].input.upper())
    own, counts = [*EXAMPLES, again, LONG], set()
    for seed in range(60):
        drawn = draw_shots(backbone, own, [0], MOST_SHOTS, random.Random(seed))
        assert set(drawn) <= set(EXAMPLES[1:]) and len(set(drawn)) == len(drawn)
        counts.add(len(drawn))
    assert counts == set(range(MOST_SHOTS + 1))


def test_a_network_in_training_reads_its_own_tasks_examples(
    toy: ModuleType, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, network = toy.toy_tasks(), reader_network(toy, backbone)
    config = HypernetworkTrainingConfig(
        steps=4, batch_size=8, examples_a_task=2, shots=3, contrastive_weight=0.5, contrastive_share=0.5
    )
    descriptions = Descriptions(description_reader(network, toy.HashEncoder(), backbone, 3), tasks)
    ours = SftObjective(network, backbone, tokenise(tasks, backbone, 512), descriptions, config)
    read: list[str] = []
    original = descriptions.read
    monkeypatch.setattr(descriptions, "read", lambda texts: read.extend(texts) or original(texts))
    counts = set()
    for number in range(4):
        read.clear()
        assert torch.isfinite(ours.loss(number).loss)
        groups = ours._order.batch(number)[::2], ours._order.batch(number)[1::2]
        for row, text in enumerate(read):
            description, *shots = text.split("\n\n")
            task = next(task for task in tasks if description in task.descriptions)
            own = {with_shots("", [e]).strip() for e in task.train}
            assert set(shots) <= own
            counts.add(len(shots))
            if row < 4:  # the others are compared with these, under another task's description
                asked = [task.train[group[row].place] for group in groups]
                assert not {with_shots("", [e]).strip() for e in asked} & set(shots)
    assert counts == {0, 1, 2, 3}


def test_a_run_without_shots_draws_as_it_always_did(toy: ModuleType, backbone: Backbone) -> None:
    """The texts of a batch are those that the seed has always given, so runs go on to the bit."""
    tasks, network = toy.toy_tasks(), reader_network(toy, backbone)

    def loss(shots: int, reader_shots: int) -> float:
        descriptions = Descriptions(
            description_reader(network, toy.HashEncoder(), backbone, reader_shots), tasks
        )
        config = HypernetworkTrainingConfig(steps=4, batch_size=8, shots=shots, contrastive_weight=0.5)
        ours = SftObjective(network, backbone, tokenise(tasks, backbone, 512), descriptions, config)
        return float(ours.loss(1).loss.detach())

    assert loss(0, 0) == loss(0, 8) != loss(8, 8)


def test_room_for_shots_is_added_to_that_of_the_description(backbone: Backbone) -> None:
    (states,) = StateReader(backbone, backbone.shape.targets[:1], 2).read(["word " * 1000])
    assert states.shape[1] == MAX_TOKENS + 2 * SHOT_TOKENS


def test_an_emitter_reads_as_many_as_its_network_was_trained_to(toy: ModuleType, backbone: Backbone) -> None:
    own = emitter(toy, backbone, shots=2)
    plain = own.emit(["Shout."])
    assert plain.shots == [] and plain.facts() == [{}]
    read = own.emit(["Shout."], [[LONG, *EXAMPLES]])
    assert read.shots == [ShotsRead(2, 1)] and read.facts() == [{"shots": {"read": 2, "long": 1}}]
    assert read.adapters.row(0) == own.emit(["Shout."], [EXAMPLES[:2]]).adapters.row(0)
    assert read.adapters.row(0) != plain.adapters.row(0)
    assert own.emit(["Shout."], [()]).adapters.row(0) == plain.adapters.row(0)


def test_a_network_that_reads_no_examples_ignores_them(toy: ModuleType, backbone: Backbone) -> None:
    own = emitter(toy, backbone, shots=0)
    read = own.emit(["Shout."], [EXAMPLES])
    assert read.shots == [] and read.adapters.row(0) == own.emit(["Shout."]).adapters.row(0)


def test_the_checkpoint_says_how_many_are_read(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    for shots in (0, 8):
        save_hypernetwork(emitter(toy, backbone, shots).checkpoint, tmp_path / "network")
        assert load_hypernetwork(tmp_path / "network").shots == shots


@pytest.mark.parametrize("shots", [-1, MOST_SHOTS + 1])
def test_no_network_reads_fewer_than_none_or_more_than_the_limit(
    shots: int, toy: ModuleType, backbone: Backbone
) -> None:
    with pytest.raises(UsageError, match=rf"shots {shots} is outside 0\.\.8"):
        emitter(toy, backbone, shots)


def test_only_states_of_the_base_model_take_examples(toy: ModuleType, backbone: Backbone) -> None:
    network = toy.toy_network(backbone.shape.targets)
    with pytest.raises(UsageError, match="head L reads no solved examples, shots 8 needs head reader"):
        description_reader(network, toy.HashEncoder(), backbone, 8)


def test_the_curve_has_rows_for_what_is_read(toy: ModuleType, backbone: Backbone) -> None:
    task = toy.toy_task("upper")
    shots = Shots(task, task.train[:4], 0)

    def prepared(own: Emitter, names: Sequence[str]) -> list[Any]:
        rows = curve_methods(backbone, own, [task])
        return [rows[name].prepare(replace(shots, examples=shots.examples[:3])).adapter for name in names]

    assert READ not in curve_methods(backbone, emitter(toy, backbone, 0), [task])
    own = emitter(toy, backbone, 8)
    sentence, read, mixed, refined = prepared(own, [SENTENCE, READ, READ_SHUFFLED, REFINED])
    assert sentence == own.emit([task.descriptions[0]]).adapters.row(0)
    assert read == own.emit([task.descriptions[0]], [shots.examples[:3]]).adapters.row(0)
    assert read != mixed and refined == read  # three are too few to refine on
