"""`shoal adapters export`, `merge` and `merge-into-model`: what becomes of adapters that are there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli import registry
from shoal.apps.cli.model import Place, load, warn_of_another_base
from shoal.apps.cli.settings import Output
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.files import StoredAdapter

SOURCE_HELP = "name in the registry, or an adapter directory"
Source = Annotated[str, typer.Argument(metavar="NAME|DIR", help=SOURCE_HELP)]


class Export(BaseModel):
    """Targets of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path | None = Field(
        None, description="FILE.gguf for llama.cpp, FILE.zip, or the PEFT directory to write"
    )
    gguf: Path | None = Field(None, description="GGUF file to write, for llama.cpp; also beside --out")
    base: str | None = Field(
        None, description="for GGUF: the base model, where the adapter names none that can be found"
    )


class Merging(BaseModel):
    """Weights and rank of a merge, and its target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[float, ...] = Field(
        (), description="of each adapter, in their order; none means equal shares"
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="rank of the result, by singular value decomposition; none means the sum of the ranks",
    )
    base: str | None = Field(None, description="base model, where the adapters name none")
    out: Path = Field(description="PEFT directory to write")


class Model(BaseModel):
    """Target of a whole model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="directory to write the model to")


def export_adapter(source: Source, place: registry.Place, export: Export) -> Output:
    """Write an adapter as a PEFT directory, ZIP or GGUF.

    The ending of --out says which.
    """
    from shoal.adapters.archive import pack
    from shoal.adapters.files import ADAPTER_FILES, load_adapter
    from shoal.files import check_place, check_writable, write_directory, write_file

    as_gguf = [path for path in (export.out, export.gguf) if path is not None and path.suffix == ".gguf"]
    if export.gguf is not None and export.gguf not in as_gguf:
        raise UsageError(f"--gguf {export.gguf}: a GGUF file ends in .gguf; rename it")
    if export.out is None and export.gguf is None:
        raise UsageError("nothing says where to: give --out DIR, --out FILE.zip or --out FILE.gguf")
    out = export.out if export.out not in as_gguf else None
    for file in [*as_gguf, *([out] if out is not None and out.suffix == ".zip" else [])]:
        check_writable(file)
    if out is not None and out.suffix != ".zip":
        check_place(out, ADAPTER_FILES)

    def write_zip(path: Path) -> None:
        with path.open("wb") as file:
            pack(directory, file)

    with ExitStack() as stack:
        directory = _directory(stack, source, place)
        stored = load_adapter(directory)  # nothing damaged leaves
        for file in as_gguf:
            _write_gguf(stored, file, source, export.base)
        if out is not None and out.suffix == ".zip":
            write_file(out, write_zip)
        elif out is not None:
            write_directory(out, lambda f: shutil.copytree(directory, f, dirs_exist_ok=True))
    written = [str(path) for path in (*as_gguf, out) if path is not None]
    return Output({"adapter": source, "written": written}, f"{source} written to {', '.join(written)}")


def merge_adapters(
    sources: Annotated[list[str], typer.Argument(metavar="NAME|DIR...", help=SOURCE_HELP)],
    place: registry.Place,
    merging: Merging,
) -> Output:
    """Merge adapters into one, the weighted sum of them.

    The sum is exact, at the sum of their ranks; --rank gives the nearest adapter of a smaller rank.
    """
    from shoal.adapters.files import ADAPTER_FILES, load_adapter, save_adapter
    from shoal.adapters.merging import weighted_sum
    from shoal.files import check_place
    from shoal.models.shapes import load_shape

    check_place(merging.out, ADAPTER_FILES)
    with ExitStack() as stack:
        stored = [load_adapter(_directory(stack, source, place)) for source in sources]
    shape = load_shape(merging.base or _common_base(sources, stored))
    for source, one in zip(sources, stored, strict=True):
        warn_of_another_base(one.base_model, merging.base, source)
    merged = weighted_sum([one.lora for one in stored], sources, merging.weights, merging.rank)
    save_adapter(merging.out, merged.lora, shape=shape, card=merged.card)
    record = {
        "adapters": sources,
        "weights": merged.weights,
        "rank": merged.lora.rank,
        "base_model": shape.base_model,
        "out": str(merging.out),
    }
    return Output(record, f"{merged.card.notes[0]} Rank {merged.lora.rank}, written to {merging.out}")


def merge_into_model(source: Source, place: Place, registry_place: registry.Place, model: Model) -> Output:
    """Write the base model with an adapter in its weights.

    For tools that take whole models and no adapters: the directory holds a model as the hub keeps them.
    """
    from shoal.adapters.export import MODEL_FILES, export_merged
    from shoal.adapters.files import load_adapter
    from shoal.adapters.matching import check_targets
    from shoal.files import check_place
    from shoal.models.shapes import load_shape

    check_place(model.out, MODEL_FILES)
    with ExitStack() as stack:
        stored = load_adapter(_directory(stack, source, registry_place))
    base = place.base or _named_base(source, stored)
    check_targets(load_shape(base), stored.lora)
    backbone = load(place, base)
    export_merged(backbone.model, backbone.tokenizer, stored.lora, model.out)
    record = {"adapter": source, "base_model": backbone.shape.base_model, "out": str(model.out)}
    return Output(record, f"{backbone.shape.base_model} with {source} in its weights written to {model.out}")


def _directory(stack: ExitStack, source: str, place: registry.Place) -> Path:
    """The files of an adapter: a directory where the text is a path, else of the registry, else a directory.

    Raises:
        UsageError: there is neither.
    """
    path = Path(source).expanduser()
    if len(path.parts) > 1 or source.startswith((".", "~")):
        if not path.is_dir():
            raise UsageError(f"{source} is no directory; check the path")
        return path
    try:
        kept = stack.enter_context(registry.opened(place))
        return kept.directory(kept.get(source, None))
    except UsageError:
        if path.is_dir():
            return path
        raise


def _named_base(source: str, stored: StoredAdapter) -> str:
    if stored.base_model is None:
        raise UsageError(f"{source} names no base model; give it with --base")
    return stored.base_model


def _common_base(sources: Sequence[str], stored: Sequence[StoredAdapter]) -> str:
    """The base model that all adapters name."""
    bases = {_named_base(source, one): source for source, one in zip(sources, stored, strict=True)}
    if len(bases) > 1:
        (one, first), (other, second) = list(bases.items())[:2]
        raise UsageError(f"{first} is for {one} and {second} for {other}; merge adapters of one base model")
    return next(iter(bases))


def _write_gguf(stored: StoredAdapter, file: Path, name: str, base: str | None) -> None:
    from shoal.adapters.export import export_gguf
    from shoal.models.sources import find_config

    config: Any = find_config(base or _named_base(name, stored))
    export_gguf(stored.lora, file, config=config, name=Path(name).name[:64])
