"""Hypernetworks: identity at the start, heads right for every shape, one task at a time or many at once."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.models.backbone import load_shape
from shoal.models.modules import TargetModule
from shoal.text_to_lora.heads import HEADS, Architecture
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings

SMALL = Architecture(task_dim=12, rank=3, alpha=6.0, latent_size=8, hidden_size=12, dropout=0.2, num_bases=4)
# Wide and narrow maps of two layers: an up-projection, a down-projection, grouped keys, and a fused one.
SIZES = {"up": (8, 20), "down": (20, 8), "k": (8, 4), "fused": (8, 24), "square": (8, 8)}
TARGETS = tuple(
    TargetModule(f"layers.{layer}.{kind}", layer, kind, *sizes)
    for layer in (1, 3)
    for kind, sizes in SIZES.items()
)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}

every_head = pytest.mark.parametrize("head", HEADS)
with_and_without_offset = pytest.mark.parametrize("offset", [True, False], ids=["offset", "no offset"])


def make(head: str, offset: bool = True, **changes: object) -> Hypernetwork:
    if head == "reader":  # as wide as most modules' inputs, so that it copies those
        changes = {"task_dim": 8, **changes}
    return Hypernetwork(TARGETS, dataclasses.replace(SMALL, head=head, offset=offset, **changes)).eval()


def moved(network: Hypernetwork, seed: int = 0) -> Hypernetwork:
    """The network after a step that reached everything: no parameter is at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return network


def embeddings(count: int, seed: int = 1, network: Hypernetwork | None = None) -> torch.Tensor:
    """What a network is given for descriptions: sentence vectors, or states of five tokens in every layer."""
    shape: tuple[int, ...] = (SMALL.task_dim,)
    if network is not None and network.architecture.reads == "states":
        shape = (1 + max(t.layer for t in network.targets), 5, network.input_width)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@every_head
@with_and_without_offset
def test_fresh_adapters_change_nothing(head: str, offset: bool) -> None:
    network = make(head, offset)
    emitted = network(embeddings(2, network=network))
    assert len(emitted) == 2 and emitted.alpha == SMALL.alpha
    assert list(emitted.factors) == [t.name for t in TARGETS]
    for t in TARGETS:
        assert emitted.row(0).delta_weight(t.name).count_nonzero() == 0
        a = emitted.factors[t.name].a
        bound = 1 / math.sqrt(t.in_features)  # A is Kaiming noise, so that B gets a gradient
        assert 0.5 * bound < a.abs().max() <= bound
        assert torch.equal(a[0], emitted.factors[f"layers.1.{t.type}"].a[1])  # for every layer and task


@every_head
@with_and_without_offset
def test_factors_have_the_shapes_of_their_modules(head: str, offset: bool) -> None:
    network = moved(make(head, offset))
    emitted = network(embeddings(3, network=network))
    for t in TARGETS:
        factors = emitted.factors[t.name]
        assert factors.a.shape == (3, SMALL.rank, t.in_features)
        assert factors.b.shape == (3, t.out_features, SMALL.rank)
        delta = emitted.row(1).delta_weight(t.name)
        assert delta.shape == (t.out_features, t.in_features)
        assert torch.linalg.matrix_rank(delta) == SMALL.rank


@every_head
def test_no_number_of_a_factor_is_left_out(head: str) -> None:
    """Where d_out > d_in a head that emits max(d_in, d_out) numbers must not cut either factor short."""
    network = moved(make(head))
    emitted = network(embeddings(1, network=network))
    for t in TARGETS:
        for factor in emitted.factors[t.name]:
            assert factor.count_nonzero() == factor.numel()
            rows = factor[0].flatten(1)
            assert torch.linalg.matrix_rank(rows) == SMALL.rank  # and its ranks differ


@every_head
def test_many_at_once_are_each_alone(head: str) -> None:
    network = moved(make(head))
    tasks = embeddings(5, network=network)
    together = network(tasks)
    for row in range(len(tasks)):
        alone = network(tasks[row : row + 1]).row(0)
        for t in TARGETS:
            torch.testing.assert_close(
                tuple(together.row(row).factors[t.name]), tuple(alone.factors[t.name]), **CLOSE
            )


@every_head
def test_tasks_layers_and_modules_get_adapters_of_their_own(head: str) -> None:
    network = moved(make(head))
    emitted = network(embeddings(2, network=network))
    one, other = emitted.row(0), emitted.row(1)
    for kind in SIZES:
        first, last = f"layers.1.{kind}", f"layers.3.{kind}"
        assert not torch.allclose(one.delta_weight(first), other.delta_weight(first), atol=1e-3)
        assert not torch.allclose(one.delta_weight(first), one.delta_weight(last), atol=1e-3)


@every_head
@with_and_without_offset
def test_gradients_reach_every_parameter(head: str, offset: bool) -> None:
    """After one step; bases of A after two: B must leave zero first, and then A's coefficients."""
    network = make(head, offset)
    lengths = [3, 1, 4, 1, 5, 2]
    tasks = stack_embeddings(states(lengths) if head == "reader" else described(lengths))
    aims = {t.name: torch.randn(6, t.out_features, t.in_features) for t in TARGETS}

    def loss() -> torch.Tensor:
        emitted = network(tasks)
        deltas = ((n, f.b @ f.a) for n, f in emitted.factors.items())
        return sum(((delta - aims[name]) ** 2).sum() for name, delta in deltas)

    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2 if head in ("mixture", "modulation") else 1):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    loss().backward()
    trained = dict(network.named_parameters())
    reached = {name for name, p in trained.items() if p.grad is not None and p.grad.count_nonzero()}
    assert reached == {name for name in trained if offset or not name.startswith("offsets.")}


@every_head
def test_starting_from_a_lora_gives_exactly_that_lora(head: str) -> None:
    network = make(head)
    generator = torch.Generator().manual_seed(2)
    factors = {
        t.name: LoraFactors(
            torch.randn(SMALL.rank, t.in_features, generator=generator),
            torch.randn(t.out_features, SMALL.rank, generator=generator),
        )
        for t in TARGETS
    }
    lora = LoRA(factors, SMALL.alpha)
    network.start_from(lora)
    assert network.offset_lora() == lora
    emitted = network(embeddings(2, network=network))
    assert emitted.row(0) == emitted.row(1) == lora


def test_a_lora_that_does_not_fit_is_no_start() -> None:
    fitting = LoRA.identity(TARGETS, SMALL.rank, SMALL.alpha)
    wider = tuple(dataclasses.replace(t, in_features=t.in_features + 1) for t in TARGETS)
    others = (
        LoRA.identity(TARGETS, SMALL.rank + 1, SMALL.alpha),
        LoRA.identity(TARGETS, SMALL.rank, 1.0),
        LoRA.identity(TARGETS[1:], SMALL.rank, SMALL.alpha),
        LoRA.identity(wider, SMALL.rank, SMALL.alpha),
    )
    for other in others:
        network = make("L")
        before = network.offset_lora()
        with pytest.raises(UsageError, match=r"\(rank . *.*10 modules\); train it with the same"):
            network.start_from(other)
        assert network.offset_lora() == before
    with pytest.raises(UsageError, match="no offset to start from a LoRA; build it with offset=True"):
        make("L", offset=False).start_from(fitting)


def test_without_offset_the_start_is_not_trained() -> None:
    assert not any(p.requires_grad for p in make("L", offset=False).offsets.parameters())
    assert all(p.requires_grad for p in make("L").offsets.parameters())


def test_published_heads_differ_in_size() -> None:
    targets = load_shape().select(("q_proj", "v_proj"), None)
    sizes = {}
    for head in HEADS:
        with torch.device("meta"):
            network = Hypernetwork(targets, Architecture(384, 8, 16.0, head=head, hidden_size=512))
        sizes[head] = sum(p.numel() for p in network.heads.parameters())
    assert sizes["L"] > sizes["M"] > sizes["S"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "opt"])
@every_head
def test_every_family_can_be_adapted(head: str, family: str, tiny_models: dict[str, Path]) -> None:
    targets = load_shape(str(tiny_models[family])).targets
    network = moved(Hypernetwork(targets, dataclasses.replace(SMALL, head=head)))
    emitted = network(embeddings(1, network=network)).row(0)
    assert all(emitted.delta_weight(t.name).shape == (t.out_features, t.in_features) for t in targets)


def test_layers_of_one_type_may_differ_in_size() -> None:
    """As Gemma's global layers do."""
    targets = (TargetModule("0.q", 0, "q", 8, 8), TargetModule("1.q", 1, "q", 8, 16))
    emitted = moved(Hypernetwork(targets, SMALL))(embeddings(1)).row(0)
    assert [emitted.delta_weight(t.name).shape for t in targets] == [(8, 8), (16, 8)]


def test_dropout_acts_in_training_only() -> None:
    network, tasks = moved(make("L")), embeddings(1)
    assert network(tasks).row(0) == network(tasks).row(0)
    network.train()
    assert network(tasks).row(0) != network(tasks).row(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "XL"}, "unknown head 'XL'; choose from L, M, S, mixture"),
        ({"rank": 0}, "rank 0 .* at least 1"),
        ({"task_dim": 0}, "task_dim 0"),
        ({"latent_size": 10}, "latent_size 10 must be a multiple of 4"),
        ({"num_bases": 0}, "num_bases 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"alpha": math.nan}, "alpha nan"),
        ({"alpha": math.inf}, "alpha inf"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_targets_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="at least one target"):
        Hypernetwork((), SMALL)
    with pytest.raises(UsageError, match="share names; name each once"):
        Hypernetwork((*TARGETS, TARGETS[0]), SMALL)
    with pytest.raises(UsageError, match=r"rank 5 is outside 1\.\.4 .*k is 4 x 8"):
        Hypernetwork(TARGETS, dataclasses.replace(SMALL, rank=5))


def described(lengths: list[int], seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1 + n, SMALL.task_dim, generator=generator) for n in lengths]


def test_padding_of_tokens_changes_nothing() -> None:
    network, texts = moved(make("perceiver")), described([5, 2])
    together = network(stack_embeddings(texts))
    for row, text in enumerate(texts):
        alone = network(text[None]).row(0)
        for name, factors in together.row(row).factors.items():
            torch.testing.assert_close(factors.b, alone.factors[name].b, **CLOSE)


def test_the_perceiver_reads_tokens_and_other_heads_do_not() -> None:
    first, second = described([4])[0], described([4], seed=4)[0]
    second[0] = first[0]  # the same sentence vector
    both = stack_embeddings([first, second])
    for head in (name for name in HEADS if name != "reader"):
        emitted = moved(make(head))(both)
        differ = any(not torch.allclose(f.a[0], f.a[1], **CLOSE) for f in emitted.factors.values())
        assert differ == (head == "perceiver"), head


def states(lengths: list[int], seed: int = 5) -> list[torch.Tensor]:
    """States of the backbone in four layers, for descriptions of so many tokens."""
    generator, width = torch.Generator().manual_seed(seed), make("reader").input_width
    return [torch.randn(4, n, width, generator=generator) for n in lengths]


def test_padding_of_states_changes_nothing() -> None:
    network, texts = moved(make("reader")), states([5, 2])
    together = network(stack_embeddings(texts))
    for row, text in enumerate(texts):
        alone = network(text[None]).row(0)
        for name, factors in together.row(row).factors.items():
            torch.testing.assert_close(tuple(factors), tuple(alone.factors[name]), **CLOSE)


def test_the_reader_reads_each_layers_own_states() -> None:
    network, (before,) = moved(make("reader")), states([4])
    after = before.clone()
    after[3, 2] += 1.0  # one token's state in the last layer
    one, other = (network(text[None]).row(0).factors for text in (before, after))
    for t in TARGETS:
        assert torch.equal(one[t.name].a, other[t.name].a) == (t.layer != 3)


def test_a_row_copies_what_its_pointer_chooses() -> None:
    """The copied part of a factor is the chosen token's input, or the module's output for it."""
    network = make("reader")
    (text,) = states([4])
    index = next(i for i, head in enumerate(network.heads) if head.copies_inputs)
    target, head = network._groups[index][0], network.heads[index]
    chosen = torch.zeros(1, 2, 2, SMALL.rank, 4)
    chosen[..., 0, 2] = 1.0  # the first row points at the third token, the others at none
    head._pointed = lambda rows, tokens: chosen
    with torch.no_grad():
        head.gates.bias.copy_(torch.tensor([0.5, 0.25]))
    after = network(text[None]).row(0)
    given, *made = network._parts(text[target.layer, 2])
    offset, (a, b) = network.offset_lora().factors[target.name], after.factors[target.name]
    torch.testing.assert_close(a[0] - offset.a[0], 0.5 * given / given.norm(), **CLOSE)
    torch.testing.assert_close(b[:, 0] - offset.b[:, 0], 0.25 * made[index] / made[index].norm(), **CLOSE)
    assert torch.equal(a[1:], offset.a[1:]) and torch.equal(b[:, 1:], offset.b[:, 1:])


def test_no_states_are_the_null_description() -> None:
    network = moved(make("reader"))
    width = 8 + sum({t.type: t.out_features for t in TARGETS}.values())
    null, padded = network(network.null_input()), network(torch.zeros(1, 4, 3, width))
    assert network.null_input().shape == (1, 4, 1, width)
    for name, factors in null.factors.items():
        torch.testing.assert_close(tuple(factors), tuple(padded.factors[name]), **CLOSE)
    assert moved(make("L")).null_input().shape == (1, SMALL.task_dim)


def test_no_tokens_are_the_null_description() -> None:
    network = moved(make("perceiver"))
    null = network(torch.zeros(1, SMALL.task_dim)).row(0)
    padded = network(torch.zeros(1, 4, SMALL.task_dim)).row(0)
    for name, factors in null.factors.items():
        torch.testing.assert_close(factors.a, padded.factors[name].a, **CLOSE)
