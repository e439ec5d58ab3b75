"""One copy of the base model's weights, in modules for three uses: a hook on one is at work in no other.

So a service answers under adapters, descriptions are read and adapters are trained at the same time, all over
the same weights. Knows backbones; nothing of descriptions or adapters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shoal.errors import UnavailableError
from shoal.models.backbone import Backbone, load_backbone


class BaseWeights:
    """A base model that is loaded when it is first needed; any thread may ask for it."""

    def __init__(
        self,
        name: str,
        backbone: Backbone | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            name: hub id or path of the base model.
            backbone: the same, where it is loaded already; nothing may be attached to it now.
            device: where to load it; by default as `load_backbone`.
            dtype: of its weights then.
        """
        self._name = name
        self._device = device
        self._dtype = dtype
        self._loading = threading.Lock()
        self._training = threading.Lock()
        self._closed = threading.Event()
        self._backbone: Backbone | None = None
        if backbone is not None:
            self._take(backbone)

    @property
    def backbone(self) -> Backbone:
        """The model for whoever answers with it; errors as `load_backbone`."""
        with self._loading:
            return self._backbone or self._take(
                load_backbone(self._name, device=self._device, dtype=self._dtype)
            )

    @property
    def read(self) -> Backbone:
        """The model whose states are read, to which nothing is ever attached."""
        _ = self.backbone
        return self._read

    @contextmanager
    def training(self) -> Iterator[Backbone]:
        """The model that adapters in training are attached to, for one thread at a time.

        Raises:
            UnavailableError: it was closed, before or while the model computes.
        """
        _ = self.backbone
        with self._training:
            self._check_open()
            hook = self._trained.model.register_forward_pre_hook(self._check_open)
            try:
                yield self._trained
            finally:
                hook.remove()

    def close(self) -> None:
        """End the training that runs, at its next forward pass, and those that wait; answers go on."""
        self._closed.set()

    def _check_open(self, *_: object) -> None:
        if self._closed.is_set():
            raise UnavailableError("training has ended, the service was stopped; ask again when it is back")

    def _take(self, backbone: Backbone) -> Backbone:
        self._read = backbone.twin()
        self._trained = self._read.twin()
        self._backbone = backbone
        return backbone
