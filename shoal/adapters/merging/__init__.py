"""Several adapters as one: exact arithmetic of LoRAs, and the methods of merging over their deltas."""

from shoal.adapters.merging.arithmetic import compose, stack, truncate
from shoal.adapters.merging.closed_form import Merged, merge, run_recipe
from shoal.adapters.merging.methods import METHODS

__all__ = [
    "METHODS",
    "Merged",
    "compose",
    "merge",
    "run_recipe",
    "stack",
    "truncate",
]
