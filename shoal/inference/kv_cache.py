"""Keys and values of many rows whose newest tokens share one column, in buffers that are written in place.

Every row is padded on the left, so a row of any length can join, and a family's own masks stay right: to the
model this is one left-padded batch. A row that leaves is replaced by the last; columns that no row needs any
more are given up when room runs out. Knows nothing of tokens, adapters or requests.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from shoal.inference.row_states import Nothing, States
from shoal.models.memories import LayerMemory

SPARE = 128  # columns that a new buffer has beyond what is asked for, at least


class RowCache:
    """The rows' places in the buffers of every layer.

    Attributes:
        starts: for every row the column of its first token; what is before it is padding.
        end: the column after the newest tokens, the same for all rows.
        cache: what the model is given.
    """

    def __init__(self, memories: Sequence[LayerMemory], lengths: Sequence[int] = ()) -> None:
        """Rows for prompts of these lengths, of which no token is there yet.

        Args:
            memories: of the model's layers.
            lengths: in tokens; the prompts will all end in one column.
        """
        self.starts = [max(lengths) - length for length in lengths]
        self.end = 0
        self.room = (0, 0)  # rows and columns of the buffers
        self._layers = [_layer(self, memory) for memory in memories]
        self.cache = Cache(layers=list(self._layers))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def first(self) -> int:
        """The first column that is in use."""
        return min([self.end, *self.starts])

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.end - self.first

    def make_room(self, columns: int) -> None:
        """See that so many columns more can be written."""
        self._fit(len(self), self.width, columns)

    def advance(self, columns: int) -> None:
        """Count columns that the model has written in every layer."""
        self.end += columns

    def join(self, other: RowCache, picks: Sequence[int]) -> None:
        """Append copies of rows of another cache, which may be named several times."""
        for mine, others in zip(self._layers, other._layers, strict=True):
            mine.adopt(others)
        self._fit(len(self) + len(picks), max(self.width, other.width), 0)
        for row, pick in enumerate(picks, start=len(self)):
            length = other.end - other.starts[pick]
            for mine, others in zip(self._layers, other._layers, strict=True):
                mine.write(row, self.end, others, pick, other.end, length)
            self.starts.append(self.end - length)

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = self.starts.pop()
        if row < len(self):
            self.starts[row] = last
        for layer in self._layers:
            layer.drop(row, len(self))

    def _fit(self, rows: int, before: int, after: int) -> None:
        """Have room for so many rows, and for columns before and after the end; else move to new buffers."""
        have_rows, have_columns = self.room
        if rows <= have_rows and before <= self.end and self.end + after <= have_columns:
            return
        capacity, columns = 1 << (rows - 1).bit_length(), before + after
        columns += max(SPARE, columns // 4)
        self.room = (capacity, columns)
        for layer in self._layers:
            layer.refit(len(self), (self.first, self.end), before)
        shift = before - self.end
        self.starts = [start + shift for start in self.starts]
        self.end = before


class _KeysAndValues(CacheLayerMixin):
    """One layer's buffers, (rows, heads, columns, size); their shape is known after one forward pass."""

    is_sliding = False  # windows are a matter of the mask: all columns are kept

    def __init__(self, place: RowCache) -> None:
        super().__init__()
        # Not the place itself: in a cycle the buffers would stay until the garbage collector comes by.
        self._place: RowCache = weakref.proxy(place)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make buffers, of zeros: what was never written has to be finite, or it outweighs its mask."""
        (rows, columns), shape = self._place.room, key_states.shape
        self.keys = key_states.new_zeros(rows, shape[1], columns, shape[3])
        shape = value_states.shape
        self.values = value_states.new_zeros(rows, shape[1], columns, shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new columns, and give all that are in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, first, begin = len(self._place), self._place.first, self._place.end
        end = begin + key_states.shape[2]
        self.keys[:rows, :, begin:end] = key_states
        self.values[:rows, :, begin:end] = value_states
        return self.keys[:rows, :, first:end], self.values[:rows, :, first:end]

    def get_max_cache_shape(self) -> int:
        """-1, which stands for no limit; transformers 5.0 wants the method."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that the queries see, offset of the first)."""
        return self._place.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self._place.width

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def adopt(self, other: Any) -> None:
        """Take the other's shape where there is none yet."""
        if not self.is_initialized:
            _KeysAndValues.lazy_initialization(self, other.keys, other.values)

    def refit(self, used: int, window: tuple[int, int], end: int) -> None:
        """Move the used rows' window to new buffers, in which it ends at another column."""
        if not self.is_initialized:
            return
        first, last = window
        old = (self.keys, self.values)
        assert old[0] is not None and old[1] is not None
        _KeysAndValues.lazy_initialization(self, old[0], old[1])
        for buffer, source in zip((self.keys, self.values), old, strict=True):
            assert buffer is not None and source is not None
            buffer[:used, :, end - (last - first) : end] = source[:used, :, first:last]

    def write(self, row: int, end: int, other: Any, pick: int, last: int, length: int) -> None:
        """Copy a row's last columns from another layer; those before them become zero, whoever had them."""
        for buffer, source in ((self.keys, other.keys), (self.values, other.values)):
            assert buffer is not None and source is not None
            buffer[row, :, : end - length] = 0
            buffer[row, :, end - length : end] = source[pick, :, last - length : last]

    def drop(self, row: int, last: int) -> None:
        """Copy the last row over another, unless it is that one."""
        end = self._place.end
        for buffer in (self.keys, self.values):
            if row < last:
                assert buffer is not None
                buffer[row, :, :end] = buffer[last, :, :end]


class _KeysAndStates(States, _KeysAndValues):
    """Both of one layer."""

    def __init__(self, place: RowCache, count: int) -> None:
        _KeysAndValues.__init__(self, place)
        States.__init__(self, count)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Make the buffers of keys and values, which come by place, or of states, which come by name."""
        (_KeysAndValues if args else States).lazy_initialization(self, *args, **kwargs)

    def adopt(self, other: Any) -> None:
        """Take the other's shapes."""
        _KeysAndValues.adopt(self, other)
        States.adopt(self, other)

    def refit(self, used: int, window: tuple[int, int], end: int) -> None:
        """Move keys and values."""
        _KeysAndValues.refit(self, used, window, end)

    def write(self, row: int, end: int, other: Any, pick: int, last: int, length: int) -> None:
        """Copy a row's keys, values and states."""
        _KeysAndValues.write(self, row, end, other, pick, last, length)
        States.write(self, row, end, other, pick, last, length)

    def drop(self, row: int, last: int) -> None:
        """Copy the last row over another."""
        _KeysAndValues.drop(self, row, last)
        States.drop(self, row, last)


def _layer(place: RowCache, memory: LayerMemory) -> Any:
    if memory.states:
        return _KeysAndStates(place, memory.states) if memory.keys else States(memory.states)
    return _KeysAndValues(place) if memory.keys else Nothing()
