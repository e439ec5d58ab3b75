"""A library of two skills on a tiny model, learnt once; every test has a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from shoal.library.library import Library
from shoal.models.backbone import Backbone
from tests.fixtures.library import learn, new_library, open_library, sharp_backbone


@pytest.fixture(scope="session")
def sharp_llama(tiny_llama: Path) -> Backbone:
    """The tiny Llama with larger logits; nothing changes it."""
    return sharp_backbone(tiny_llama)


@pytest.fixture(scope="session")
def learnt(sharp_llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 3: empty, with `digits`, with `capitals` too."""
    folder = tmp_path_factory.mktemp("library") / "library"
    torch.manual_seed(0)
    library = new_library(folder, sharp_llama)
    for name in ("digits", "capitals"):
        learn(library, name)
    return folder


@pytest.fixture
def library(learnt: Path, sharp_llama: Backbone, tmp_path: Path) -> Library:
    shutil.copytree(learnt, tmp_path / "library")
    return open_library(tmp_path / "library", sharp_llama)
