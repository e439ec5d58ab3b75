"""Grades: curves are monotone and bounded, letters have one bound each, and nothing missing is scored."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.evaluation.grading import COMPONENTS, CURVES, LETTERS, grade, letter, lowest_score, score, shown

# Metrics of which less is better; every other curve rises.
FALLING = {
    "final_loss",
    "best_loss",
    "adaptation_seconds",
    "perplexity",
    "peak_memory",
    "device_memory",
    "latency_p50",
    "latency_p95",
    "retained_perplexity",
}


@pytest.mark.parametrize("name", CURVES)
@given(share=st.floats(0, 1), more=st.floats(0, 1))
def test_curves_are_monotone_and_bounded(name: str, share: float, more: float) -> None:
    curve = CURVES[name]
    low, high = max(curve.low, -2), min(curve.high, 2 * curve.points[-1][0])
    one, other = sorted(low + s * (high - low) for s in (share, more))
    first, second = score(name, one), score(name, other)
    assert 0 <= min(first, second) <= max(first, second) <= 100
    assert first >= second - 1e-9 if name in FALLING else first <= second + 1e-9


@pytest.mark.parametrize("name", CURVES)
def test_curves_pass_through_their_reference_points(name: str) -> None:
    curve = CURVES[name]
    for value, points in curve.points:
        assert score(name, value) == pytest.approx(points)
    values = [value for value, _ in curve.points]
    assert values == sorted(set(values)) and curve.low <= values[0] and values[-1] <= curve.high
    assert {min(p for _, p in curve.points), max(p for _, p in curve.points)} == {0, 100}
    assert curve.why and curve.unit


def test_logarithmic_curves_are_straight_over_the_logarithm() -> None:
    (x0, y0), (x1, y1) = CURVES["latency_p50"].points[2:4]
    assert score("latency_p50", math.sqrt(x0 * x1)) == pytest.approx((y0 + y1) / 2)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (100, "A+"),
        (95, "A+"),
        (94.999999, "A"),
        (94.6, "A"),
        (90, "A"),
        (89.9, "B+"),
        (85, "B+"),
        (84.5, "B"),
        (80, "B"),
        (79.9, "C"),
        (70, "C"),
        (69.99, "D"),
        (60, "D"),
        (59.999, "F"),
        (0, "F"),
    ],
)
def test_letters(value: float, name: str) -> None:
    assert letter(value) == name and value >= lowest_score(name)


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan, math.inf])
def test_letters_of_what_is_no_score(value: float) -> None:
    with pytest.raises(UsageError, match="from 0 to 100"):
        letter(value)


@pytest.mark.parametrize("name", ["A-", "C+", "E", "a", ""])
def test_letters_that_there_are_not(name: str) -> None:
    with pytest.raises(UsageError, match="choose from A\\+, A, B\\+, B, C, D, F"):
        lowest_score(name)


def test_what_is_shown_never_contradicts_the_letter() -> None:
    assert shown(94.99) == "94.9" and shown(95.0) == "95.0" and shown(None) == "missing"
    assert shown(math.nextafter(70, 0)) in ("69.9", "70.0") and shown(0.3) == "0.3"


def test_a_grade_is_the_mean_of_components() -> None:
    given = {"final_loss": 1.0, "adaptation_seconds": 1.0, "rouge_l": 0.6, "peak_memory": 1e9}
    result = grade(given)
    by_name = {c.name: c for c in result.components}
    assert by_name["training performance"].score == pytest.approx((85 + 95) / 2)
    assert by_name["model quality"].scores == {"rouge_l": pytest.approx(82)}
    assert by_name["system performance"].letter == "A"
    assert result.score == pytest.approx((90 + 82 + 90) / 3) and result.letter == "B+"


TIMED = {
    "adaptation_seconds": -1,
    "training_tokens_per_second": 1,
    "throughput": 1,
    "latency_p50": -1,
    "latency_p95": -1,
    "peak_memory": -1,
}


@given(
    st.fixed_dictionaries({n: st.floats(-3, 9 if n.endswith("memory") else 4) for n in TIMED}),
    st.sampled_from([-1, 1]),
)
def test_a_tenth_in_every_time_moves_less_than_half_a_point(exponents: dict, way: int) -> None:
    """With the metrics of the other components at full marks, as each of those only takes weight away."""
    rest = {n: max(c.points, key=lambda p: p[1])[0] for n, c in CURVES.items() if n not in TIMED}
    times = {name: 10**exponent for name, exponent in exponents.items()}
    moved = {name: value * 1.1 ** (way * TIMED[name]) for name, value in times.items()}
    assert abs(grade({**rest, **times}).score - grade({**rest, **moved}).score) < 0.5


def test_what_is_missing_is_named_and_not_scored() -> None:
    result = grade({"rouge_l": 0.6, "bleu": None})
    nothing = next(c for c in result.components if c.name == "knowledge integration")
    assert nothing.score is None and nothing.letter is None
    assert result.score == pytest.approx(82)
    assert set(result.missing) == CURVES.keys() - {"rouge_l"}
    empty = grade({})
    assert empty.score is None and empty.letter is None and set(empty.missing) == CURVES.keys()


def test_every_metric_belongs_to_one_component_and_everything_can_be_full() -> None:
    best = {n: max(c.points, key=lambda p: p[1])[0] for n, c in CURVES.items()}
    result = grade(best)
    assert result.score == 100 and result.letter == "A+" and result.missing == ()
    assert [c.name for c in result.components] == list(COMPONENTS)
    assert list(LETTERS.values()) == sorted(LETTERS.values(), reverse=True)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"final_loss": math.nan}, "final_loss nan"),
        ({"best_loss": math.inf}, "best_loss inf"),
        ({"rouge_l": 1.2}, "from 0 to 1"),
        ({"bleu": -1.0}, "from 0 to 100"),
        ({"perplexity": 0.5}, "from 1 to inf"),
        ({"rouge_k": 0.5}, "did you mean rouge_"),
        ({"speed": 0.5}, "choose from final_loss"),
        ({"speed": None}, "unknown metric"),
    ],
)
def test_bad_metrics(metrics: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grade(metrics)
