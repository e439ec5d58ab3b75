"""Changes of what single modules compute, begun and ended in any order.

A hook sees a module's output alone. A change inside, such as of weights, is a `ForwardChange`. Knows modules,
no adapters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from shoal.adapters.base import Hook


class ForwardChange(ABC):
    """A change around a module's own forward."""

    @abstractmethod
    def run(
        self, module: nn.Module, forward: Callable[..., Any], inputs: tuple[Tensor, ...], inner: bool
    ) -> Any:
        """What the module computes.

        Args:
            module: with its inputs.
            forward: its own, with the changes that were begun before.
            inputs: of it.
            inner: no other change is at work in `forward`.
        """


def begin(module: nn.Module, change: Hook | ForwardChange) -> Callable[[], None]:
    """Begin a change of a module; gives the function that ends it."""
    if not isinstance(change, ForwardChange):
        return module.register_forward_hook(change).remove
    changed = vars(module).get("forward")
    if not isinstance(changed, _ChangedForward):
        changed = _ChangedForward(module)
        module.forward = changed
    changed.changes.append(change)
    return partial(changed.end, change)


class _ChangedForward:
    """A module's forward with several changes around it, in the order in which they were begun."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Set where another library has replaced the class's method.
        self._replaced = vars(module).get("forward")
        self._forward = module.forward
        self.changes: list[ForwardChange] = []

    def __call__(self, *inputs: Tensor) -> Any:
        return self._run(len(self.changes), *inputs)

    def _run(self, count: int, *inputs: Tensor) -> Any:
        """What the module computes with the first so many changes."""
        if not count:
            return self._forward(*inputs)
        change = self.changes[count - 1]
        return change.run(self._module, partial(self._run, count - 1), inputs, inner=count == 1)

    def end(self, change: ForwardChange) -> None:
        """End a change that is at work; a second time does nothing."""
        self.changes = [other for other in self.changes if other is not change]
        if not self.changes and vars(self._module).get("forward") is self:
            if self._replaced is None:
                del self._module.forward
            else:
                self._module.forward = self._replaced
