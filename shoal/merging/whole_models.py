"""Whole models merged into one: fine-tuned models of one architecture, tensor by tensor.

Out of core: one tensor of every parent is in memory at a time, whatever the models' size. The result has the
files, configuration and tokenizer of the base model, and is there whole or not at all. Knows files and
recipes; inputs for RegMean are measured by `shoal.merging.inputs`.

Source: the paper beside each method in `shoal.adapters.merging.methods`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.adapters.merging.dense import merge_dense
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.adapters.merging.methods import FROM_ZERO, WITHOUT_BASE, method_of
from shoal.adapters.merging.modules import generator_of
from shoal.adapters.merging.recipe import Recipe
from shoal.errors import UnavailableError, UsageError, shorten
from shoal.file_formats import TensorSize, read_json
from shoal.files import check_place, write_directory
from shoal.models.backbone import DTYPES as BY_NAME
from shoal.models.shapes import decoder_layers, on_meta
from shoal.models.sources import find_model, read_config
from shoal.models.tensor_files import DTYPES, FILE, INDEX, TensorFiles, nbytes, raw, sized, write_tensors

RECIPE_FILE, REPORT_FILE = "merge.yml", "report.json"
BESIDE = (  # what a model's directory has besides weights, and is copied
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


class Measured(NamedTuple):
    """Covariances of a weight's inputs, (in, in) under every parent; transposed where it is (in, out)."""

    values: Sequence[Tensor]
    transposed: bool


Covariance = Callable[[str], Measured | None]  # name of a weight -> what was measured, if it was


class WholeModels:
    """The models of a merge, found to fit each other by their headers alone.

    Attributes:
        recipe: how they are merged.
        parents: their tensors.
        origin: tensors that deltas count from; None counts from zero.
        layout: of the result: the base model, else the first parent.
        sizes: tensor name -> dtype and shape in the result, in its files' order.
    """

    def __init__(self, recipe: Recipe, base: str | None) -> None:
        """Open the models.

        Args:
            recipe: of whole models.
            base: model that deltas count from and whose configuration the result has; None is the recipe's.

        Raises:
            UsageError: a mistake of the recipe, no base model where the method needs one, a model that is not
                in a directory here, or models of differing architecture, tensors or shapes.
            ShoalError: a model's files are missing or damaged.
        """
        recipe.check()
        base = base or recipe.base_model
        if base is None and recipe.method not in WITHOUT_BASE:
            raise UsageError(
                f"{recipe.method} counts from the model that the others were tuned from; name it with --base"
            )
        self.recipe = recipe
        folders = [_directory(parent) for parent in recipe.parents]
        layout = folders[0] if base is None else _directory(base)
        configs = [read_json(folder / "config.json") for folder in (layout, *folders)]
        for folder, config in zip(folders, configs[1:], strict=True):
            if config.get("model_type") != configs[0].get("model_type"):
                raise UsageError(
                    f"{folder} is a {shorten(config.get('model_type'))} model and {layout} a "
                    f"{shorten(configs[0].get('model_type'))} one; merge models of one architecture"
                )
        self._config = configs[0]
        self.parents = [TensorFiles(folder) for folder in folders]
        self.layout = TensorFiles(layout)
        self.origin = None if base is None or recipe.method in FROM_ZERO else self.layout
        dtype = BY_NAME[recipe.dtype] if recipe.dtype else None
        # A head that is tied to the embedding is the same weight again, and some tools write it.
        spare = {"lm_head.weight"} if self._config.get("tie_word_embeddings") else set()
        for files in self.parents:
            _check_alike(files, self.layout, spare)
        self._files = {
            file: [name for name in names if name not in spare] for file, names in self.layout.files.items()
        }
        own = self.layout.sizes
        self.sizes = {
            name: sized(own[name], dtype) if dtype else own[name]
            for names in self._files.values()
            for name in names
        }
        self._num_layers, self._behind = _order(layout)

    @property
    def nbytes(self) -> int:
        """Bytes of the result's tensors."""
        return sum(nbytes(size) for size in self.sizes.values())

    def check_target(self, out: Path) -> None:
        """See that the result can be written; errors as `check_place`.

        Raises:
            UnavailableError: the disk has less room than the result needs.
        """
        check_place(out, (*self.layout.files, INDEX, "config.json", RECIPE_FILE, REPORT_FILE, *BESIDE))
        nearest = next(folder for folder in out.absolute().parents if folder.is_dir())
        if (free := shutil.disk_usage(nearest).free) < self.nbytes:
            raise UnavailableError(
                f"{out} needs {self.nbytes} bytes and its disk has {free}; free some space or choose another"
            )

    def write(self, out: Path, covariance: Covariance | None = None, seed: int = 0) -> dict[str, Any]:
        """Merge and write, whole or not at all.

        Args:
            out: directory; one of an earlier merge is replaced.
            covariance: of RegMean's inputs.
            seed: of random masks, which depend on it, the parent's own tensor and its name alone.

        Returns:
            Facts for machines, which are also in the result's `report.json`.

        Raises:
            UsageError: NaN or infinity in a parent, integers that differ, RegMean without covariances, or a
                recipe that lacks a layer.
            UnavailableError: the disk is full.
            ShoalError: a file cannot be read or written.
        """
        if method_of(self.recipe.method).form == "covariances" and covariance is None:
            raise UsageError(
                f"{self.recipe.method} needs inputs under each parent; give them, or another method"
            )
        self.check_target(out)
        report: dict[str, Any] = {}

        def fill(folder: Path) -> None:
            digests = [hashlib.sha256() for _ in self.parents]
            for file, names in self._files.items():
                tensors = (self._merged(name, covariance, seed, digests) for name in names)
                write_tensors(folder / file, {name: self.sizes[name] for name in names}, tensors)
            if list(self._files) != [FILE]:
                (folder / INDEX).write_text(_index(self._files, self.sizes), "utf-8")
            self._copy_beside(folder)
            prints = [digest.hexdigest() for digest in digests]
            report.update(self._report(dict(zip(self.recipe.labels, prints, strict=True)), seed))
            base = None if self.origin is None else str(self.origin.folder)
            (folder / RECIPE_FILE).write_text(write_recipe(self.recipe, base), "utf-8")
            (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", "utf-8")

        write_directory(out, fill)
        return report

    def _merged(self, name: str, covariance: Covariance | None, seed: int, digests: Sequence[Any]) -> Tensor:
        """One tensor of the result."""
        size = self.sizes[name]
        own = [files.read(name) for files in self.parents]
        prints = [hashlib.sha256(raw(tensor)).hexdigest() for tensor in own]
        for digest, each in zip(digests, prints, strict=True):
            digest.update(each.encode())
        if not own[0].is_floating_point():
            return self._equal(name, own)
        origin = (
            0.0 if self.origin is None else self._finite(name, self.origin.read(name).float(), "the base")
        )
        deltas = []
        for tensor, label in zip(own, self.recipe.labels, strict=True):
            deltas.append(self._finite(name, tensor.float(), label) - origin)
        del own
        method = method_of(self.recipe.method)
        module = name.removesuffix(".weight")
        values = self.recipe.values(module, self._num_layers, name in self._behind)
        scale = values.pop("lambda", 1.0)
        measured = covariance(name) if covariance else None
        transposed = measured is not None and measured.transposed
        delta = merge_dense(
            method,
            [delta.T for delta in deltas] if transposed else deltas,
            values,
            [generator_of(seed, name, each) for each in prints],
            measured.values if measured else None,
        )
        return (origin + scale * (delta.T if transposed else delta)).to(DTYPES[size.dtype])

    def _finite(self, name: str, tensor: Tensor, label: str) -> Tensor:
        if not bool(tensor.isfinite().all()):
            raise UsageError(f"{name} of {label} holds NaN or infinity; train or copy it again")
        return tensor

    def _equal(self, name: str, own: Sequence[Tensor]) -> Tensor:
        like = self.layout.read(name)
        if not all(torch.equal(like, tensor) for tensor in own):
            raise UsageError(
                f"{name} holds {like.dtype} that differ between the models, which cannot be merged; give "
                "models that are not quantised"
            )
        return like

    def _copy_beside(self, folder: Path) -> None:
        for name in BESIDE:
            if (self.layout.folder / name).is_file():
                shutil.copyfile(self.layout.folder / name, folder / name)
        config = dict(self._config)
        if self.recipe.dtype:
            config |= {key: self.recipe.dtype for key in ("dtype", "torch_dtype") if key in config}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    def _report(self, parents: Mapping[str, str], seed: int) -> dict[str, Any]:
        recipe = self.recipe
        paper = method_of(recipe.method).paper
        return {
            "method": recipe.method,
            "paper": paper,
            "parents": parents,
            "base_model": None if self.origin is None else str(self.origin.folder),
            "seed": seed,
            "dtype": recipe.dtype,
            "tensors": len(self.sizes),
            "bytes": self.nbytes,
            "notes": [f"Merged by {recipe.method} ({paper}) from {', '.join(recipe.labels)}.", *recipe.notes],
        }


def _directory(model: str) -> Path:
    folder = Path(find_model(model).location)
    if not folder.is_dir():
        raise UsageError(f"model {model} is not in a directory here; download it, and name its directory")
    return folder


def _check_alike(files: TensorFiles, layout: TensorFiles, spare: Collection[str]) -> None:
    """See that a model has the tensors of another, but for those that are spare."""
    lacking = sorted(layout.sizes.keys() - files.sizes.keys() - set(spare))
    more = sorted(files.sizes.keys() - layout.sizes.keys() - set(spare))
    if lacking or more:
        holder, other, name = (layout, files, lacking[0]) if lacking else (files, layout, more[0])
        raise UsageError(
            f"{holder.folder} has {name}, which {other.folder} lacks; merge models of one architecture"
        )
    for name, size in layout.sizes.items():
        own = files.sizes.get(name, size)
        if own.shape != size.shape:
            raise UsageError(
                f"{name} is {list(own.shape)} in {files.folder} and {list(size.shape)} in {layout.folder}; "
                "merge models of one shape"
            )


def _order(folder: Path) -> tuple[int, frozenset[str]]:
    """Decoder layers of a model, and names of the tensors behind them."""
    model = on_meta(read_config(find_model(str(folder))), str(folder))
    prefix, layers = decoder_layers(model)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    last = max(i for i, name in enumerate(names) if name.startswith(f"{prefix}."))
    return len(layers), frozenset(names[last + 1 :])


def _index(files: Mapping[str, Sequence[str]], sizes: Mapping[str, TensorSize]) -> str:
    total = sum(nbytes(size) for size in sizes.values())
    weights = {name: file for file, names in files.items() for name in names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weights}, indent=2) + "\n"
