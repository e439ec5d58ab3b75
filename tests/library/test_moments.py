"""Sums of states and the discriminant of them: scikit-learn's, whatever the order, also after forgetting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import oas as sklearn_oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from shoal.errors import ShoalError, UsageError
from shoal.library.discriminant import Discriminant, fit_discriminant, kinds_like, oas
from shoal.library.moments import Moments

WIDTH = 6


def drawn(seed: int, count: int = 12, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1) + shift


SKILLS = {"a": drawn(1, shift=3), "b": drawn(2, shift=-3), "c": drawn(3) * 2}
KINDS = {"one": drawn(5, 8, 9.0), "two": drawn(6, 8, -9.0)}


def of(states: torch.Tensor) -> Moments:
    """The sums of one skill."""
    return Moments.of({"skill": states})


def sums(names: str = "abc") -> dict[str, Moments]:
    return {name: of(SKILLS[name]) for name in names}


def same(one: Discriminant, other: Discriminant) -> bool:
    return (one.skills, one.kinds) == (other.skills, other.kinds) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("weight", "bias")
    )


def test_sums_give_mean_and_covariance() -> None:
    moments = of(SKILLS["a"])
    x = SKILLS["a"].double().numpy()
    np.testing.assert_allclose(moments.means[0], x.mean(0), atol=1e-10)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), atol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.1, 0.5])
def test_it_is_the_discriminant_of_scikit_learn(shrinkage: float) -> None:
    found = fit_discriminant(sums(), Moments.of(KINDS), 1, shrinkage=shrinkage)
    groups = [*SKILLS.values(), *KINDS.values()]
    x = torch.cat(groups).double().numpy()
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    priors = np.array([1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8])
    covariances = [np.cov(group.double().numpy().T, bias=True) for group in groups]
    scale = np.sqrt(sum(p * np.diag(c) for p, c in zip(priors, covariances, strict=True)))
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=priors)
    reference.fit(x / scale, labels)
    asked = drawn(9, 40)
    np.testing.assert_allclose(
        found.rows(asked), reference.predict_proba(asked.double().numpy() / scale), atol=1e-9
    )
    classes = found.probabilities(asked)
    np.testing.assert_allclose(classes[:, -1], found.rows(asked)[:, 3:].sum(-1), atol=1e-12)
    np.testing.assert_allclose(classes.sum(-1), 1, atol=1e-12)


def test_the_shrinkage_is_that_of_scikit_learn() -> None:
    x = drawn(4, 15).double().numpy()
    covariance = torch.tensor(np.cov(x.T, bias=True))
    assert oas(covariance, len(x)) == pytest.approx(sklearn_oas(x)[1])
    assert oas(torch.eye(3, dtype=torch.float64), 10) == 1.0


def test_any_order_of_learning_gives_the_same_router() -> None:
    none, whole = Moments.of(KINDS), sums()
    for order in ("abc", "cab", "bca"):
        assert same(fit_discriminant({n: whole[n] for n in order}, none, 1), fit_discriminant(whole, none, 1))


def test_a_skill_that_is_gone_was_never_there() -> None:
    none, whole = Moments.of(KINDS), sums()
    del whole["b"]
    assert same(fit_discriminant(whole, none, 1), fit_discriminant(sums("ac"), none, 1))


def test_without_skills_nothing_is_for_any() -> None:
    found = fit_discriminant({}, Moments.of(KINDS), 1)
    assert found.routes(drawn(7, 3)) == ("none",) * 3


def test_kinds_that_look_like_a_skill_stand_back() -> None:
    none = Moments.of(KINDS)
    moments, others = of(drawn(1, 30, 5.0)), drawn(8, 8, 9.0)  # the others lie where kind one does
    assert kinds_like(moments, none, others, 1) == ("one",)
    assert kinds_like(of(drawn(1, 30, 60.0)), none, drawn(2, 8, 60.0), 1) == ()
    assert kinds_like(moments, none, torch.empty(0, WIDTH), 1) == ()
    kept = fit_discriminant({"skill": moments}, none, 1, without={"one"})
    assert kept.kinds == ("two",) and kept.routes(others) == ("skill",) * 8


def test_sums_that_are_none() -> None:
    good = of(SKILLS["a"]).tensors()
    for change in (
        {"counts": torch.zeros(1, dtype=torch.float64)},
        {"totals": torch.ones(3)},
        {"second": good["second"].float()},
    ):
        with pytest.raises(ShoalError, match="holds no sums of states"):
            Moments.read(("a",), {**good, **change}, "here")
    with pytest.raises(ShoalError, match="holds no sums"):
        Moments.read(("a",), {}, "here")
    with pytest.raises(ShoalError, match="holds no sums"):
        Moments.read(("one",), Moments.of(KINDS).tensors(), "here")
    with pytest.raises(UsageError, match="at least 1 is needed"):
        of(torch.empty(0, WIDTH))


def test_states_of_another_model_and_a_shrinkage_out_of_range() -> None:
    with pytest.raises(UsageError, match="the states of a have 3 numbers, those of no skill 6"):
        fit_discriminant({"a": of(torch.randn(4, 3))}, Moments.of(KINDS), 1)
    with pytest.raises(UsageError, match="shrinkage 2 is outside"):
        fit_discriminant(sums(), Moments.of(KINDS), 1, shrinkage=2)
