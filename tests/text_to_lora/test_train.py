"""Training hypernetworks: descriptions matter, adapters are reproduced, and nothing held out gets in."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.adapters.hooks import attach
from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.models.modules import TargetModule
from shoal.tasks.loading import LeakageError
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.encoders.states import StateReader
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings
from shoal.text_to_lora.reconstruction import train_reconstruction
from shoal.text_to_lora.train import (
    SftObjective,
    parameter_groups,
    train_hypernetwork,
)
from shoal.training.batches import tokenise
from shoal.training.lora import set_for_training

MODULES = ("q_proj", "v_proj")
FAMILIES = ("llama", "gpt2", "gpt_neox", "opt")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def config(**changes: Any) -> HypernetworkTrainingConfig:
    return HypernetworkTrainingConfig(**{"steps": 4, "batch_size": 8, "learning_rate": 1e-3, **changes})


class Recorded(torch.nn.Module):
    """A network that remembers the embeddings it was given."""

    def __init__(self, network: Hypernetwork) -> None:
        super().__init__()
        self.network, self.given = network, []
        self.architecture, self.targets, self.offsets = network.architecture, network.targets, network.offsets

    def forward(self, embeddings: Tensor) -> Any:
        self.given.append(embeddings.detach().clone())
        return self.network(embeddings)


def sft(
    toy: ModuleType,
    backbone: Backbone,
    network: Any = None,
    tasks: Sequence[Any] | None = None,
    **changes: Any,
) -> SftObjective:
    tasks = tasks or toy.toy_tasks()
    targets = backbone.shape.select(MODULES, changes.pop("layers", None))
    corpus = tokenise(tasks, backbone, 512)
    network = network or toy.moved(toy.toy_network(targets, dropout=0.0))
    descriptions = Descriptions(description_reader(network, toy.HashEncoder(), backbone), tasks)
    return SftObjective(network, backbone, corpus, descriptions, config(**changes))


def recorded(toy: ModuleType, backbone: Backbone, **changes: Any) -> tuple[SftObjective, Recorded]:
    network = Recorded(toy.toy_network(backbone.shape.select(MODULES, None), dropout=0.0))
    return sft(toy, backbone, network, **changes), network


def test_every_row_is_scored_under_its_own_adapter(toy: ModuleType, backbone: Backbone) -> None:
    network = Recorded(toy.moved(toy.toy_network(backbone.shape.select(MODULES, None), dropout=0.0)))
    ours = sft(toy, backbone, network)
    loss = ours.loss(0).loss
    losses = []
    for row, example in enumerate(ours._order.batch(0)):
        lora = network.network(network.given[0][row : row + 1]).row(0)
        batch = pad_sequences([(example.prompt, example.completion)], backbone.end_of_turn, backbone.device)
        with attach(backbone.model, lora):
            losses.append(answer_losses(backbone, batch))
    torch.testing.assert_close(loss, torch.cat(losses).mean(), **CLOSE)


def test_every_row_reads_a_description_of_its_task(toy: ModuleType, backbone: Backbone) -> None:
    ours, network = recorded(toy, backbone)
    own = toy.read_all(toy.HashEncoder(), network, toy.toy_tasks())
    seen = set()
    for number in range(12):
        ours.loss(number)
        for example, row in zip(ours._order.batch(number), network.given[-1], strict=True):
            matches = [torch.equal(description, row) for description in own[example.task]]
            assert any(matches)
            seen.add((example.task, matches.index(True)))
    assert len(seen) == 8  # four tasks, two paraphrases each


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cached_prefix_changes_nothing(
    family: str, checkpointing: bool, toy: ModuleType, tiny_models: dict[str, Path]
) -> None:
    """Also with the contrastive term, where a row is in the batch twice, and with activations recomputed."""
    backbone = toy.toy_backbone(tiny_models[family])
    ours = sft(toy, backbone, layers=1, contrastive_weight=0.5, gradient_checkpointing=checkpointing)
    whole = sft(toy, backbone, ours.module, contrastive_weight=0.5)
    whole._prefix.start = 0
    with set_for_training(backbone):
        for number in (0, 1, 0):
            cached, full = ours.loss(number).loss, whole.loss(number).loss
            torch.testing.assert_close(cached, full, **CLOSE)
            parameters = list(ours.module.parameters())
            grads = torch.autograd.grad(cached, parameters, allow_unused=True)
            expected = torch.autograd.grad(full, parameters, allow_unused=True)
            torch.testing.assert_close(grads, expected, atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_is_exact(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    results = [
        toy.run_hypernetwork(backbone, tmp_path / str(on), steps=3, batch_size=4, gradient_checkpointing=on)[
            0
        ]
        for on in (False, True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_contrastive_term_asks_for_a_margin(toy: ModuleType, backbone: Backbone) -> None:
    plain = sft(toy, backbone).loss(0)
    assert plain.metrics == {}
    options = {"contrastive_weight": 0.5, "contrastive_share": 1.0, "contrastive_margin": 2.0}
    ours, network = recorded(toy, backbone, **options)
    toy.moved(network.network)
    result = ours.loss(0)
    right, wrong = network.given[0].chunk(2)
    assert not (right == wrong).all(dim=1).any()
    own = toy.read_all(toy.HashEncoder(), network, toy.toy_tasks())
    margin = result.metrics["train_margin"]
    assert result.metrics["answer_loss"] < float(result.loss.detach())
    if margin < 2.0:
        least = result.metrics["answer_loss"] + 0.5 * (2.0 - margin)
        assert float(result.loss.detach()) >= least - 1e-5  # equal where no row is beyond the margin
    tasks = [e.task for e in ours._order.batch(0)]
    for row, task in zip(wrong, ours_rows(ours, network), strict=True):
        assert not any(torch.equal(d, row) for d in own[task])  # another task's
        assert any(torch.equal(d, row) for other in own for d in other)
    assert sorted(tasks) == sorted(ours_rows(ours, network))


def test_long_answers_weigh_more(toy: ModuleType, backbone: Backbone) -> None:
    ours, network = recorded(toy, backbone, length_exponent=0.5)
    result = ours.loss(0)
    examples = ours._order.batch(0)
    plain = sft(toy, backbone, network)
    losses, _ = plain._prefix.answer_losses(examples, network.network(network.given[0]), plain._config)
    torch.testing.assert_close(result.loss, (losses * ours._weigh(examples)).mean(), **CLOSE)
    assert result.metrics["answer_loss"] == pytest.approx(float(losses.detach().mean()), abs=1e-4)


def test_the_wrong_description_may_be_that_of_a_copy(toy: ModuleType, backbone: Backbone) -> None:
    halves = toy.label_task()
    copy = dataclasses.replace(halves, name="half-relabelled-0", descriptions=("Say x or y.",))
    tasks = [halves, toy.toy_task("upper"), copy]
    options = {"contrastive_weight": 0.5, "contrastive_share": 1.0}
    ours = sft(toy, backbone, tasks=tasks, contrastive_siblings=1.0, **options)
    for seed in range(20):
        wrong = ours._wrong_tasks([0, 1, 2], random.Random(seed))
        assert wrong[0] == 2 and wrong[2] == 0 and wrong[1] in (0, 2)
    mixed = sft(toy, backbone, tasks=tasks, contrastive_siblings=0.5, **options)
    assert {mixed._wrong_tasks([0], random.Random(seed))[0] for seed in range(20)} == {1, 2}


def test_the_mass_on_labels_is_one_more_term(toy: ModuleType, backbone: Backbone) -> None:
    tasks = [toy.label_task(), toy.toy_task("upper")]
    plain = sft(toy, backbone, tasks=tasks)
    ours = sft(toy, backbone, plain.module, tasks=tasks, label_mass_weight=0.5)
    number = next(n for n in range(64) if any(e.task == 0 for e in ours._order.batch(n)))
    loss, result = plain.loss(number).loss, ours.loss(number)
    missing = result.metrics["label_mass_missing"]
    assert missing > 0
    assert float(result.loss.detach()) == pytest.approx(float(loss.detach()) + 0.5 * missing, abs=1e-4)


def test_kinds_of_answers_can_be_balanced(toy: ModuleType, backbone: Backbone) -> None:
    tasks = [toy.label_task(), *toy.toy_tasks()]
    even, balanced = (sft(toy, backbone, tasks=tasks, mix=mix) for mix in ("tasks", "kinds"))
    shares = [
        sum(e.task == 0 for number in range(64) for e in ours._order.batch(number)) / (64 * 8)
        for ours in (even, balanced)
    ]
    assert shares[0] == pytest.approx(0.2, abs=0.02) and shares[1] > 0.25


def test_fresh_tasks_are_read_with_their_own_descriptions(
    toy: ModuleType, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [*toy.toy_tasks(), toy.lines_task()]
    changes = {"fresh_share": 0.5, "contrastive_weight": 1.0, "contrastive_share": 1.0}
    ours, network = recorded(toy, backbone, tasks=tasks, **changes)
    read: list[Sequence[str]] = []
    original = ours._descriptions.read
    monkeypatch.setattr(ours._descriptions, "read", lambda texts: read.append(texts) or original(texts))
    ours.loss(0)
    fresh = [e.description for e in ours._order.batch(0) if e.description]
    assert fresh
    assert set(fresh) <= set(read[0])
    assert len(network.given[0]) == 2 * len(ours._order.batch(0))


def ours_rows(ours: SftObjective, network: Recorded) -> list[int]:
    """The task of every compared row, told by the right description that was compared with it."""
    chance = random.Random(f"{ours._config.seed}/0/descriptions")
    tasks = [e.task for e in ours._order.batch(0)]
    return [tasks[row] for row in ours._wrong_tasks(tasks, chance)]


def test_the_contrastive_share_is_of_the_batch(toy: ModuleType, backbone: Backbone) -> None:
    for share, rows in ((0.25, 2), (0.01, 1), (1.0, 8)):
        ours, network = recorded(toy, backbone, contrastive_weight=0.5, contrastive_share=share)
        ours.loss(0)
        assert len(network.given[0]) == 8 + rows
    ours, network = recorded(toy, backbone, contrastive_weight=0.5, tasks=toy.toy_tasks(1))
    ours.loss(0)
    assert len(network.given[0]) == 8  # one task has no other's description


def test_the_contrastive_term_teaches_to_read(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    """The margin between right and wrong descriptions grows, more than without the term."""
    margins = {}
    for weight in (1e-9, 2.0):
        network = toy.toy_network(backbone.shape.select(MODULES, None), dropout=0.0, rank=4)
        train_hypernetwork(
            network,
            backbone,
            toy.HashEncoder(),
            toy.toy_tasks(),
            tmp_path / str(weight),
            config(steps=80, learning_rate=1e-2, contrastive_weight=weight, contrastive_share=0.5),
            show_progress=False,
        )
        tail = toy.rows_of(tmp_path / str(weight))[-8:]
        margins[weight] = sum(row["train_margin"] for row in tail) / len(tail)
    assert margins[2.0] > margins[1e-9] + 0.05, margins


def test_dropped_descriptions_are_the_null_embedding(toy: ModuleType, backbone: Backbone) -> None:
    ours, network = recorded(toy, backbone, description_dropout=0.5, embedding_noise=0.3)
    for number in range(12):
        ours.loss(number)
    rows = torch.cat(network.given)
    dropped = (rows == 0).all(dim=1)
    assert 0.3 < dropped.float().mean() < 0.7
    assert (rows[~dropped] != 0).all()


def test_compared_rows_keep_their_descriptions(toy: ModuleType, backbone: Backbone) -> None:
    """A margin over a null description would teach nothing about the description."""
    options = {"contrastive_weight": 0.5, "contrastive_share": 0.5, "description_dropout": 0.9}
    ours, network = recorded(toy, backbone, **options)
    ours.loss(0)
    (given,) = network.given
    assert len(given) == 12 and (given[8:] != 0).all()
    assert int((given[:8] != 0).all(dim=1).sum()) >= 4


def test_nonsense_stands_for_descriptions_but_not_for_compared_rows(
    toy: ModuleType, backbone: Backbone
) -> None:
    options = {"contrastive_weight": 0.5, "contrastive_share": 0.5, "nonsense": 0.9}
    ours, network = recorded(toy, backbone, **options)
    for number in range(6):
        ours.loss(number)
    own = {
        row.numpy().tobytes()
        for kind in toy.read_all(toy.HashEncoder(), network, toy.toy_tasks())
        for row in kind
    }
    strange = torch.tensor([[row.numpy().tobytes() not in own for row in rows] for rows in network.given])
    assert strange.shape == (6, 12) and not strange[:, 8:].any()
    assert 0.3 < strange[:, :8].float().mean() <= 0.5  # nine in ten of those that are not compared
    again, second = recorded(toy, backbone, **options)
    again.loss(0)
    assert torch.equal(second.given[0], network.given[0])


def test_noise_is_added_to_the_embedding(toy: ModuleType, backbone: Backbone) -> None:
    ours, network = recorded(toy, backbone, embedding_noise=0.01)
    plain, exact = recorded(toy, backbone)
    torch.manual_seed(0)
    ours.loss(0)
    plain.loss(0)
    difference = network.given[0] - exact.given[0]
    assert 0.005 < float(difference.std()) < 0.02


def test_label_smoothing_acts(toy: ModuleType, backbone: Backbone) -> None:
    plain = float(sft(toy, backbone).loss(0).loss.detach())
    smooth = float(sft(toy, backbone, label_smoothing=0.3).loss(0).loss.detach())
    assert smooth != pytest.approx(plain, abs=1e-3)


def test_a_hypernetwork_learns_its_tasks(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    network = toy.toy_network(sharp.shape.targets, dropout=0.0, rank=4)
    unseen = [toy.toy_task(rule, ("lemon", "mango", "nut")) for rule in ("upper", "first")]
    unseen = [dataclasses.replace(task, name=f"unseen_{task.name}") for task in unseen]
    summary = train_hypernetwork(
        network,
        sharp,
        toy.HashEncoder(),
        toy.toy_tasks(),
        tmp_path,
        config(steps=40, learning_rate=3e-3, offset_learning_rate=3e-2, checkpoint_every=20, clip_norm=10.0),
        held_out=unseen,
        monitor_size=2,
        show_progress=False,
    )
    rows = toy.rows_of(tmp_path)
    assert summary.final_loss < 0.6 * rows[0]["loss"]
    monitored = [row for row in rows if "unseen_margin" in row]
    assert [row["step"] for row in monitored] == [20, 40]
    assert all(row["unseen_loss"] > 0 for row in monitored)
    emitted = network(toy.read_all(toy.HashEncoder(), network, toy.toy_tasks())[0][0][None])
    assert any(f.b.abs().max() > 0 for f in emitted.factors.values())
    assert not network.training


def test_shared_and_own_parameters_have_their_own_rates(toy: ModuleType, backbone: Backbone) -> None:
    targets = backbone.shape.select(MODULES, None)
    network = toy.toy_network(targets)
    own, shared = parameter_groups(network, config(offset_learning_rate=0.5))
    assert (own["lr"], shared["lr"]) == (1e-3, 0.5)
    assert {id(p) for p in shared["params"]} == {id(p) for p in network.offsets.parameters()}
    assert len(own["params"]) + len(shared["params"]) == len(list(network.parameters()))
    assert len(parameter_groups(toy.toy_network(targets, offset=False), config())) == 1


def test_descriptions_are_embedded_task_by_task(toy: ModuleType) -> None:
    first, second = toy.toy_tasks(2)
    tasks = [dataclasses.replace(first, descriptions=first.descriptions[:1]), second]
    encoder = toy.HashEncoder()
    targets = [TargetModule("layers.0.q", 0, "q", 8, 8)]
    rows = toy.read_all(encoder, toy.toy_network(targets), tasks)
    assert [len(own) for own in rows] == [1, 2]
    for task, own in zip(tasks, rows, strict=True):
        assert torch.equal(torch.stack(own), encoder.encode(task.descriptions))
    reading = toy.toy_network(targets, head="perceiver", hidden_size=8)
    for task, own in zip(tasks, toy.read_all(encoder, reading, tasks), strict=True):
        for text, row in zip(task.descriptions, own, strict=True):
            assert torch.equal(row, encoder.read([text])[0].bfloat16())


def test_tokens_are_hidden_noised_and_dropped_as_configured(toy: ModuleType, backbone: Backbone) -> None:
    targets = backbone.shape.select(MODULES, None)
    network = Recorded(toy.toy_network(targets, dropout=0.0, head="perceiver", hidden_size=8))
    ours = sft(toy, backbone, network, token_dropout=0.5, embedding_noise=0.1, description_dropout=0.25)
    for number in range(8):
        ours.loss(number)
    given = [row for batch in network.given for row in batch]
    dropped = [row for row in given if (row == 0).all()]
    assert 0.1 < len(dropped) / len(given) < 0.4
    kept = [row for row in given if not (row == 0).all()]
    hidden = torch.cat([(row[1:] == 0).all(dim=-1) for row in kept])
    assert 0.3 < float(hidden.float().mean()) < 0.8 and all((row[0] != 0).all() for row in kept)


def test_a_reader_is_given_the_states_of_descriptions_of_its_tasks(
    toy: ModuleType, backbone: Backbone
) -> None:
    targets, width = backbone.shape.select(MODULES, None), backbone.shape.targets[0].in_features
    network = Recorded(toy.toy_network(targets, dropout=0.0, head="reader", task_dim=width))
    ours = sft(toy, backbone, network, token_dropout=0.3, description_dropout=0.25, examples_a_task=2)
    read = StateReader(backbone, targets).read

    def close(row: Tensor, read: Tensor, kept: Tensor) -> bool:
        kept = kept[: read.shape[1]]  # a batch with other paddings rounds otherwise
        return torch.allclose(row[:, : read.shape[1]][:, kept], read[:, kept], atol=1e-4)

    states = [read(task.descriptions) for task in toy.toy_tasks()]
    hidden = whole = null = 0
    for number in range(8):
        assert torch.isfinite(ours.loss(number).loss)
        for example, row in zip(ours._order.batch(number)[::2], network.given[-1], strict=True):
            tokens = (row != 0).any(-1).any(0)
            null += not bool(tokens.any())
            own = [s.shape[1] <= len(tokens) and close(row, s, tokens) for s in states[example.task]]
            assert any(own)
            hidden, whole = hidden + int((~tokens).sum()), whole + len(tokens)
    assert 0 < null < 20 and 0.2 < hidden / whole < 0.8
    first, again = ours.loss(3).loss, ours.loss(3).loss
    assert torch.equal(first, again)  # what a resumed run would read


def test_a_reader_learns_what_its_descriptions_say(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    targets, width = sharp.shape.select(MODULES, None), sharp.shape.targets[0].in_features
    network = toy.toy_network(targets, dropout=0.0, head="reader", task_dim=width)
    tasks = toy.toy_tasks(2)
    arguments = (network, sharp, toy.HashEncoder(), tasks, tmp_path)
    settings = config(steps=60, batch_size=8, learning_rate=5e-3, offset_learning_rate=5e-3)
    summary = train_hypernetwork(*arguments, settings, held_out=(), show_progress=False)
    rows = toy.rows_of(tmp_path)
    assert summary.final_loss < 0.6 * rows[0]["loss"]
    states = stack_embeddings(StateReader(sharp, targets).read([task.descriptions[0] for task in tasks]))
    with torch.no_grad():
        one, other = (network(states).row(i).factors[targets[0].name].b for i in range(2))
    assert not torch.allclose(one, other, atol=1e-4)


def test_examples_of_one_task_share_an_adapter(toy: ModuleType, backbone: Backbone) -> None:
    ours, network = recorded(toy, backbone, examples_a_task=2, contrastive_weight=0.5, contrastive_share=0.5)
    toy.moved(network.network)
    loss = ours.loss(0)
    (given,) = network.given
    assert len(given) == 4 + 2  # four pairs, two of them also under another task's description
    examples, losses = ours._order.batch(0), []
    for number, example in enumerate(examples):
        row = number // 2
        assert example.task == examples[2 * row].task
        batch = pad_sequences([(example.prompt, example.completion)], backbone.end_of_turn, backbone.device)
        with torch.no_grad(), attach(backbone.model, network.network(given[row : row + 1]).row(0)):
            losses.append(answer_losses(backbone, batch))
    assert loss.metrics["answer_loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)
    with pytest.raises(UsageError, match="batch_size 8 is not a multiple of examples_a_task 3"):
        sft(toy, backbone, examples_a_task=3)


def test_evaluation_data_is_never_trained_on(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    tasks, encoder = toy.toy_tasks(), toy.HashEncoder()
    targets = backbone.shape.select(MODULES, 1)
    renamed = dataclasses.replace(tasks[0], name="renamed")
    for held_out, message in (
        (tasks[:1], "also in training, the first is upper"),
        ([renamed], "task renamed"),
    ):
        with pytest.raises(LeakageError, match=message):
            train_hypernetwork(
                toy.toy_network(targets), backbone, encoder, tasks, tmp_path, config(), held_out=held_out
            )
        adapters = toy.toy_adapters(targets, len(tasks))
        with pytest.raises(LeakageError, match=message):
            train_reconstruction(
                toy.toy_network(targets), encoder, tasks, adapters, tmp_path, config(), held_out=held_out
            )
    with pytest.raises(UsageError, match="at least one task, got none"):
        train_hypernetwork(toy.toy_network(targets), backbone, encoder, [], tmp_path, config())
    assert list(tmp_path.iterdir()) == []


def test_other_descriptions_are_another_run(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    tasks, targets = toy.toy_tasks(), backbone.shape.select(MODULES, 1)

    def train(tasks: Any) -> None:
        arguments = (backbone, toy.HashEncoder(), tasks, tmp_path, config(steps=1, batch_size=2))
        train_hypernetwork(toy.toy_network(targets), *arguments, show_progress=False)

    train(tasks)
    reworded = dataclasses.replace(tasks[0], descriptions=("In capitals.", *tasks[0].descriptions[1:]))
    with pytest.raises(UsageError, match="another run, with other data"):
        train([reworded, *tasks[1:]])


def test_another_start_is_another_run(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    tasks, targets = toy.toy_tasks(2), backbone.shape.select(MODULES, 1)
    adapters = toy.toy_adapters(targets, 2)
    told = (toy.HashEncoder(), tasks)
    for offset in (0.0, 0.0, 0.5):
        network = toy.toy_network(targets)
        with torch.no_grad():
            for parameter in network.offsets.parameters():
                parameter += offset
        runs = (
            partial(train_hypernetwork, network, backbone, *told, tmp_path / "sft"),
            partial(train_reconstruction, network, *told, adapters, tmp_path / "reconstruction"),
        )
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for train in runs:
            network.load_state_dict(before)
            if not offset:
                train(config(steps=1, batch_size=2), show_progress=False)
                continue
            with pytest.raises(UsageError, match="another run, with other data"):
                train(config(steps=1, batch_size=2), show_progress=False)


def test_held_out_tasks_without_training_examples_are_not_watched(
    toy: ModuleType, backbone: Backbone, tmp_path: Path
) -> None:
    tasks, targets = toy.toy_tasks(), backbone.shape.select(MODULES, 1)
    bare = dataclasses.replace(tasks[3], train=())
    told = (toy.toy_network(targets), backbone, toy.HashEncoder(), tasks[:2], tmp_path)
    held_out = [tasks[2], bare]
    quick = config(steps=1, batch_size=2, checkpoint_every=1)
    train_hypernetwork(*told, quick, held_out=held_out, monitor_size=2, show_progress=False)
    (row,) = toy.rows_of(tmp_path)
    assert row["unseen_loss"] > 0 and "unseen_margin" not in row  # of one task alone
