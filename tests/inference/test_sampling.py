"""Drawing tokens: the distributions are what the rules say, and a row's token is its own affair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.inference.sampling import CANDIDATES, Sampling, choose_tokens, not_finite, token_scores

NUMBERS = [(i + 0.5) / 4000 for i in range(4000)]  # evenly spread: frequencies are probabilities, to 1 / 4000


def frequencies(logits: torch.Tensor, rule: Sampling) -> torch.Tensor:
    tokens = choose_tokens(logits.expand(len(NUMBERS), -1), [rule] * len(NUMBERS), NUMBERS)
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]) / len(NUMBERS)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0, -3.0]])
    found = frequencies(logits, Sampling(temperature))
    assert torch.allclose(found, torch.softmax(logits[0] / temperature, -1), atol=1e-3)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    likely = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert torch.allclose(
        frequencies(likely.log(), Sampling(top_p=0.65)), torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=1e-3
    )
    assert torch.allclose(
        frequencies(likely.log(), Sampling(top_p=0.75)), torch.tensor([0, 4 / 9, 2 / 9, 3 / 9]), atol=1e-3
    )
    assert frequencies(likely.log(), Sampling(top_p=0.01))[1] == 1


def test_top_k_keeps_so_many_and_top_p_acts_on_what_is_left() -> None:
    likely = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert torch.allclose(
        frequencies(likely.log(), Sampling(top_k=2)), torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=1e-3
    )
    assert frequencies(likely.log(), Sampling(top_k=2, top_p=0.5))[1] == 1
    assert torch.allclose(
        frequencies(likely.log(), Sampling(top_k=100)), torch.tensor([0.1, 0.4, 0.2, 0.3]), atol=1e-3
    )


def test_top_p_of_a_flat_distribution_sorts_the_whole_vocabulary() -> None:
    flat = torch.zeros(1, 4 * CANDIDATES)
    assert (frequencies(flat, Sampling(top_p=0.9)) > 0).sum() > CANDIDATES


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_rows_token_is_the_same_alone_and_in_any_batch(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 6))
    logits = torch.randn(rows, 700, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999))))
    rule = st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_p=st.sampled_from([0.3, 0.9, 1.0]),
        top_k=st.sampled_from([0, 1, 40]),
    )
    rules = data.draw(st.lists(rule, min_size=rows, max_size=rows))
    numbers = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=rows, max_size=rows))
    together = choose_tokens(logits, rules, numbers)
    for row in range(rows):
        own = slice(row, row + 1)
        assert choose_tokens(logits[own], rules[own], numbers[own]) == together[own]
        if rules[row].temperature == 0 or rules[row].top_k == 1:
            assert together[row] == int(logits[row].argmax())


def test_a_row_that_is_not_finite_is_told_apart_from_the_others() -> None:
    logits = torch.randn(3, 10)
    logits[1, 4] = math.nan
    for rule in (Sampling(0.0), Sampling()):
        tokens = choose_tokens(logits, [rule] * 3, [0.5] * 3)
        assert [token is None for token in tokens] == [False, True, False]


def test_scores_are_the_models_own_whatever_the_rule() -> None:
    logits = torch.randn(2, 50)
    scores = token_scores(logits, [7, 3], [0, 4])
    expected = torch.log_softmax(logits, -1)
    assert [s.chosen.token for s in scores] == [7, 3]
    assert [s.chosen.logprob for s in scores] == pytest.approx([float(expected[0, 7]), float(expected[1, 3])])
    assert scores[0].top == ()
    assert [s.token for s in scores[1].top] == expected[1].topk(4).indices.tolist()
    assert [s.logprob for s in scores[1].top] == pytest.approx(expected[1].topk(4).values.tolist())


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": 2.1}, {"temperature": math.nan}, {"top_p": 0}, {"top_k": -1}],
)
def test_wrong_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="temperature .* top_p .* top_k"):
        Sampling(**wrong)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, -torch.inf, 4.0, 4.0]], dtype=dtype)
    rule = Sampling(temperature)
    assert rule.greedy and choose_tokens(logits, [rule], [0.99]) == [2]


@pytest.mark.parametrize("rule", [Sampling(1e-5), Sampling(top_p=5e-324), Sampling(top_p=1e-30, top_k=3)])
@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_the_narrowest_rules_draw_the_likeliest_token(rule: Sampling, number: float) -> None:
    assert choose_tokens(torch.tensor([[3.0, -torch.inf, 4.0, 3.5]]), [rule], [number]) == [2]


@pytest.mark.parametrize("rule", [Sampling(1e-5), Sampling(1e-5, top_p=0.5), Sampling(1e-5, top_k=2)])
def test_logits_that_a_small_temperature_would_overflow_are_drawn_by_their_order(rule: Sampling) -> None:
    assert choose_tokens(torch.tensor([[3e38, -3e38, 1.5e38]]), [rule], [0.5]) == [0]


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_no_token_is_drawn_from_logits_that_are_not_finite(odd: float) -> None:
    logits = torch.tensor([[0.0, odd, 1.0], [0.0, 1.0, -torch.inf]])
    for rule in (Sampling(0), Sampling(1), Sampling(top_p=0.5)):
        assert choose_tokens(logits, [rule, Sampling(0)], [0.5, 0.5]) == [None, 1]
    assert "bfloat16 or float32" in str(not_finite(torch.float16))
    assert "float32 or" not in str(not_finite(torch.bfloat16))
