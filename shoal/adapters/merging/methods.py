"""The methods of merging, as one literal table: function, paper, and parameters with their ranges.

All of them act on deltas from a common start (an adapter that every parent was trained on from, else the base
model), never on A and B apart, since the product of means is not the mean of products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from shoal.adapters.merging import combinations, sparsification, subspaces
from shoal.errors import UsageError

Form = Literal["combination", "elements", "subspace", "covariances"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        name: as in recipes.
        default: without a word of it.
        range: lowest and highest value; None where every finite number goes.
        each: True where every parent has its own.
        above: True where the lowest value itself is outside.
    """

    name: str
    default: float | bool
    range: tuple[float, float] | None = None
    each: bool = False
    above: bool = False

    def check(self, value: float | bool) -> None:
        """See that a value is in range.

        Raises:
            UsageError: it is not, or is a number where yes or no is meant, or the reverse.
        """
        if isinstance(self.default, bool) != isinstance(value, bool):
            kind = "true or false" if isinstance(self.default, bool) else "a number"
            raise UsageError(f"{self.name} {value!r} must be {kind}; change it")
        low, high = self.range or (-1e6, 1e6)
        if not low <= value <= high or (self.above and value == low):  # also NaN
            opened = "(" if self.above else "["
            raise UsageError(
                f"{self.name} {value:g} is outside {opened}{low:g}, {high:g}]; choose a value in that range"
            )


@dataclass(frozen=True)
class Method:
    """One way to merge.

    Attributes:
        form: `combination` is coefficients from inner products, `elements` dense deltas, `subspace` factors,
            `covariances` factors with covariances of inputs.
        function: as the module of its form says; None where that module has a class.
        paper: its source.
        parameters: what it takes.
        most: parents at most.
        mergekit: False where mergekit has no such method.
    """

    form: Form
    function: Callable[..., Any] | None
    paper: str
    parameters: tuple[Parameter, ...] = ()
    most: int | None = None
    mergekit: bool = True

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of a name."""
        return next((p for p in self.parameters if p.name == name), None)


WEIGHT = Parameter("weight", 1.0, each=True)
DENSITY = Parameter("density", 1.0, (0, 1), each=True, above=True)
GAMMA = Parameter("gamma", 0.01, (0, 1), each=True)
EPSILON = Parameter("epsilon", 0.15, (0, 1), each=True)
LAMBDA = Parameter("lambda", 1.0)
MEAN, SUM = Parameter("normalize", True), Parameter("normalize", False)
RESCALED, AS_IS = Parameter("rescale", True), Parameter("rescale", False)
BY_DENSITY = Parameter("rescale_by_density", False)  # as DARE's paper; else to the L1 norm, as mergekit
DRAWN = (RESCALED, BY_DENSITY, LAMBDA)

_combine, _span, _sparse = combinations, subspaces, sparsification.sparse_sum

METHODS: dict[str, Method] = {
    "linear": Method("combination", _combine.linear, "Model Soups, arXiv 2203.05482", (WEIGHT, MEAN)),
    "task_arithmetic": Method(
        "combination", _combine.linear, "Task Arithmetic, arXiv 2212.04089", (WEIGHT, SUM, LAMBDA)
    ),
    "ties": Method(
        "elements",
        partial(_sparse, thinning="largest", agree=True),
        "TIES, arXiv 2306.01708",
        (WEIGHT, DENSITY, MEAN, AS_IS, LAMBDA),
    ),
    "dare_linear": Method(
        "elements",
        partial(_sparse, thinning="random", agree=False),
        "DARE, arXiv 2311.03099",
        (WEIGHT, DENSITY, SUM, *DRAWN),
    ),
    "dare_ties": Method(
        "elements",
        partial(_sparse, thinning="random", agree=True),
        "DARE, arXiv 2311.03099",
        (WEIGHT, DENSITY, SUM, *DRAWN),
    ),
    "della": Method(
        "elements",
        partial(_sparse, thinning="random_by_row", agree=True),
        "DELLA, arXiv 2406.11617",
        (WEIGHT, DENSITY, EPSILON, MEAN, *DRAWN),
    ),
    "della_linear": Method(
        "elements",
        partial(_sparse, thinning="random_by_row", agree=False),
        "DELLA, arXiv 2406.11617",
        (WEIGHT, DENSITY, EPSILON, SUM, *DRAWN),
    ),
    "breadcrumbs": Method(
        "elements",
        partial(_sparse, thinning="middle", agree=False),
        "Model Breadcrumbs, arXiv 2312.06795",
        (WEIGHT, DENSITY, GAMMA, SUM, AS_IS, LAMBDA),
    ),
    "breadcrumbs_ties": Method(
        "elements",
        partial(_sparse, thinning="middle", agree=True),
        "Model Breadcrumbs, arXiv 2312.06795",
        (WEIGHT, DENSITY, GAMMA, SUM, AS_IS, LAMBDA),
    ),
    "sce": Method(
        "elements",
        sparsification.sce,
        "FuseChat, arXiv 2408.07990",
        (Parameter("select_topk", 1.0, (0, 1), above=True),),
    ),
    "slerp": Method(
        "combination", _combine.slerp, "Shoemake, SIGGRAPH 1985", (Parameter("t", 0.5, (0, 1)),), most=2
    ),
    "nuslerp": Method("combination", _combine.nuslerp, "Shoemake, SIGGRAPH 1985", (WEIGHT,), most=2),
    "multislerp": Method(
        "combination",
        _combine.multislerp,
        "Multi-SLERP, mergekit's guide to merge methods",
        (WEIGHT, Parameter("normalize_weights", True)),
    ),
    "karcher": Method(
        "combination",
        _combine.karcher,
        "Karcher, Comm. Pure Appl. Math. 30, 1977",
        (Parameter("max_iter", 10, (1, 1000)), Parameter("tol", 1e-5, (0, 1), above=True)),
    ),
    "model_stock": Method("combination", _combine.model_stock, "Model Stock, arXiv 2403.19522"),
    "knots_ties": Method(
        "subspace",
        _span.knots_ties,
        "KnOTS, arXiv 2410.19735",
        (WEIGHT, DENSITY, MEAN, AS_IS, LAMBDA),
        mergekit=False,
    ),
    "tsv": Method(
        "subspace",
        _span.tsv,
        "TSV-Merge, arXiv 2412.00081",
        (WEIGHT, Parameter("keep", 1.0, (0, 1), above=True), LAMBDA),
        mergekit=False,
    ),
    "iso_c": Method("subspace", _span.iso_c, "Iso-C, arXiv 2502.04959", (WEIGHT, LAMBDA), mergekit=False),
    "regmean": Method(
        "covariances",
        None,
        "RegMean, arXiv 2212.09849",
        (
            Parameter("weight", 1.0, (0, 1e6), each=True, above=True),
            Parameter("scale", 1.0, each=True),
            Parameter("shrink", 0.8, (0, 1)),
            Parameter("ridge", 1e-3, (0, 1), above=True),
            LAMBDA,
        ),
        mergekit=False,
    ),
}

# Of whole models, as mergekit has it: these need no base model that deltas count from,
WITHOUT_BASE = ("linear", "regmean", "slerp", "nuslerp", "multislerp", "karcher")
FROM_ZERO = ("linear", "slerp", "karcher")  # and these ignore one.


def method_of(name: str) -> Method:
    """The method of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"{name!r} is no merge method; choose from {', '.join(METHODS)}")
    return METHODS[name]
