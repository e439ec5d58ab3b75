"""Running states of rows that come and go: the memory of recurrent and convolutional layers.

A state has a row's whole past in it and no columns, so a row that joins or leaves is one row of a tensor.
Padding on the left leaves states as they were: the dry run of the model has seen that.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import cache_utils

# Older versions of transformers have neither, and no model that needs them.
_Linear: Any = getattr(cache_utils, "LinearAttentionLayer", object)
_Dummy: Any = getattr(cache_utils, "DummyLayer", object)


class Nothing(_Dummy):
    """A layer without any memory."""

    def _ignore(self, *args: Any) -> None:
        pass

    adopt = refit = write = drop = _ignore


class States(_Linear):
    """The states of one layer, each (rows, ...)."""

    def __init__(self, count: int) -> None:
        """So many of each kind, whose shapes are known after one forward pass."""
        _Linear.__init__(self, number_of_states=count)

    def adopt(self, other: Any) -> None:
        """Take the other's shapes where there are none yet."""
        for mine, others in (
            (self.conv_states, other.conv_states),
            (self.recurrent_states, other.recurrent_states),
        ):
            mine |= {i: x[:0] for i, x in others.items() if x is not None and mine[i] is None}
        for name in ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state"):
            getattr(self, name).update(getattr(other, name))
        self.conv_kernel_size |= other.conv_kernel_size
        self.device, self.dtype = other.device, other.dtype

    def refit(self, used: int, window: tuple[int, int], end: int) -> None:
        """No columns, nothing to move."""

    def write(self, row: int, end: int, other: Any, pick: int, last: int, length: int) -> None:
        """Append another layer's row."""
        for mine, others in (
            (self.conv_states, other.conv_states),
            (self.recurrent_states, other.recurrent_states),
        ):
            for i, x in others.items():
                if x is not None:
                    mine[i] = torch.cat([mine[i], x[pick : pick + 1]])

    def drop(self, row: int, last: int) -> None:
        """Put the last row in the place of another."""
        for states in (self.conv_states, self.recurrent_states):
            for i, x in states.items():
                if x is not None:
                    x[row] = x[last]
                    states[i] = x[:last].clone()
