"""`shoal adapters export` and `merge-into-model`: what becomes of adapters that are there."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli import registry
from shoal.apps.cli.model import Place, load
from shoal.apps.cli.settings import Output
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.files import StoredAdapter

Source = Annotated[str, typer.Argument(metavar="NAME|DIR", help=registry.SOURCE_HELP)]


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
        directory = registry.adapter_directory(stack, source, place)
        stored = load_adapter(directory)  # nothing damaged leaves
        for file in as_gguf:
            _write_gguf(stored, file, source, export.base)
        if out is not None and out.suffix == ".zip":
            write_file(out, write_zip)
        elif out is not None:
            write_directory(out, lambda f: shutil.copytree(directory, f, dirs_exist_ok=True))
    written = [str(path) for path in (*as_gguf, out) if path is not None]
    return Output({"adapter": source, "written": written}, f"{source} written to {', '.join(written)}")


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
        stored = load_adapter(registry.adapter_directory(stack, source, registry_place))
    base = place.base or _named_base(source, stored)
    check_targets(load_shape(base), stored.lora)
    backbone = load(place, base)
    export_merged(backbone.model, backbone.tokenizer, stored.lora, model.out)
    record = {"adapter": source, "base_model": backbone.shape.base_model, "out": str(model.out)}
    return Output(record, f"{backbone.shape.base_model} with {source} in its weights written to {model.out}")


def _named_base(source: str, stored: StoredAdapter) -> str:
    if stored.base_model is None:
        raise UsageError(f"{source} names no base model; give it with --base")
    return stored.base_model


def _write_gguf(stored: StoredAdapter, file: Path, name: str, base: str | None) -> None:
    from shoal.adapters.export import export_gguf
    from shoal.models.sources import find_config

    config: Any = find_config(base or _named_base(name, stored))
    export_gguf(stored.lora, file, config=config, name=Path(name).name[:64])
