"""The description rows: which text each adapter comes from, and which task is nearest."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.evaluation.baselines import (
    GIBBERISH,
    NONE,
    OTHER,
    RIGHT,
    gibberish_description,
    nearest_tasks,
    no_description,
    other_description,
    right_description,
)
from shoal.models.modules import TargetModule
from shoal.tasks.loading import Example, Task
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.heads import Architecture
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.text_to_lora.nonsense import gibberish

DIM = 8


class FakeEncoder:
    """A vector a text, and the texts that were asked for."""

    dim = DIM

    def __init__(self, vectors: dict[str, list[float]] | None = None) -> None:
        self.asked: list[str] = []
        self._vectors = vectors or {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        rows = [
            torch.tensor(self._vectors[t])
            if t in self._vectors
            else torch.randn(DIM, generator=torch.Generator().manual_seed(sum(t.encode())))
            for t in texts
        ]
        return torch.stack(rows)


@pytest.fixture
def checkpoint() -> HypernetworkCheckpoint:
    targets = [TargetModule(f"layers.{i}.q", i, "q", 6, 4) for i in range(2)]
    network = Hypernetwork(targets, Architecture(DIM, 2, 4.0, latent_size=8, hidden_size=8)).eval()
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.normal_()
    return HypernetworkCheckpoint(network, "someone/model", "fake", True, {})


def task(name: str, *descriptions: str) -> Task:
    return Task(
        name, "test", f"Define {name}.", descriptions or (f"Do {name}.",), (), (Example("in", ("out",)),)
    )


TASKS = [task("a", "first a", "second a"), task("b"), task("c"), task("d"), task("e")]


def test_each_row_embeds_its_own_text(checkpoint: HypernetworkCheckpoint) -> None:
    encoder = FakeEncoder()
    emitter = Emitter(checkpoint, encoder)
    for index in range(3):
        right_description(emitter, index).adapter(TASKS[0])
    assert encoder.asked == ["first a", "second a", "first a"]

    encoder.asked.clear()
    other = other_description(emitter, TASKS)
    for each in TASKS:
        other.adapter(each)
    assert encoder.asked == ["Do c.", "Do d.", "Do e.", "first a", "Do b."]

    encoder.asked.clear()
    letters = gibberish_description(emitter, seed=3)
    letters.adapter(TASKS[0]), letters.adapter(TASKS[1])
    assert encoder.asked == [gibberish("3/a"), gibberish("3/b")]

    encoder.asked.clear()
    nothing = no_description(emitter).adapter(TASKS[0])
    assert encoder.asked == []
    with torch.no_grad():
        assert nothing == checkpoint.network.offset_lora()


def test_rows_have_their_names(checkpoint: HypernetworkCheckpoint) -> None:
    encoder = FakeEncoder()
    emitter = Emitter(checkpoint, encoder)
    rows = [
        right_description(emitter),
        other_description(emitter, TASKS),
        gibberish_description(emitter),
        no_description(emitter),
    ]
    assert [row.name for row in rows] == [RIGHT, OTHER, GIBBERISH, NONE]


def test_an_adapter_is_the_networks_without_gradients(checkpoint: HypernetworkCheckpoint) -> None:
    encoder = FakeEncoder()
    emitter = Emitter(checkpoint, encoder)
    lora = right_description(emitter).adapter(TASKS[1])
    with torch.no_grad():
        assert lora == checkpoint.network(encoder.encode(["Do b."])).row(0)
    assert not any(f.requires_grad for factors in lora.factors.values() for f in factors)


def test_another_tasks_description_needs_another_task(checkpoint: HypernetworkCheckpoint) -> None:
    with pytest.raises(UsageError, match="at least 2 tasks, got 1"):
        other_description(Emitter(checkpoint, FakeEncoder()), TASKS[:1])


def test_the_nearest_task_is_by_mean_direction() -> None:
    vectors = {
        "left 1": [1.0, 0.2],
        "left 2": [1.0, -0.2],
        "far up": [0.0, 9.0],
        "asks left": [3.0, 1.0],
        "asks up": [0.1, 0.2],
    }
    library = [task("up", "far up"), task("left", "left 1", "left 2", "far up")]
    asked = [task("x", "asks left", "far up"), task("y", "asks up")]
    found = nearest_tasks(FakeEncoder(vectors), asked, library, descriptions=2)
    assert [t.name for t in found] == ["left", "up"]
    with pytest.raises(UsageError, match="at least 1 task"):
        nearest_tasks(FakeEncoder(), asked, [])
