"""Several adapters as one: exact arithmetic of LoRAs, and the methods of merging over their deltas."""

from shoal.adapters.merging.arithmetic import WeightedSum, compose, stack, truncate, weighted_sum
from shoal.adapters.merging.closed_form import Merged, merge, run_recipe
from shoal.adapters.merging.methods import METHODS

__all__ = [
    "METHODS",
    "Merged",
    "WeightedSum",
    "compose",
    "merge",
    "run_recipe",
    "stack",
    "truncate",
    "weighted_sum",
]
