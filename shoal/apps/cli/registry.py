"""`shoal adapters` and `shoal keys`: the registry and its API keys, as the operator sees them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import BASE_HELP
from shoal.apps.cli.settings import Output, check_extra
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.registry.records import AdapterRecord
    from shoal.registry.registry import Registry

Name = Annotated[str, typer.Argument(help="name of the adapter")]
OPERATOR = "operator"
SOURCE_HELP = "name in the registry, NAME@VERSION for an older version, or an adapter directory"


class Place(BaseModel):
    """The registry of a command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: Path | None = Field(
        None, description="directory of the registry; none means $SHOAL_REGISTRY, else ~/.local/share/shoal"
    )
    database: str | None = Field(
        None,
        description="URL of its database, such as postgresql://user@host/name; none means $SHOAL_DATABASE, "
        "else a SQLite file in the directory",
    )

    def open(self) -> Registry:
        """The registry.

        Raises:
            ShoalError: the extra `serve` is not installed, or as `Registry`.
        """
        check_extra("the registry", "serve", "sqlalchemy", "alembic")
        from shoal.registry.registry import open_registry

        return open_registry(self.registry, self.database)


class Paging(BaseModel):
    """A page of adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search: str | None = Field(None, description="text in name or description")
    after: str = Field("", description="go on after this name")
    limit: int = Field(50, ge=1, le=200, description="adapters at most")


class Arrival(BaseModel):
    """Base model, owner and publicity of an adapter that is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = Field(None, description=BASE_HELP)
    owner: str = Field(OPERATOR, description="whose adapter it will be")
    public: bool = Field(True, description="other owners may use it")
    other_base: bool = Field(False, description="the base model is right, though the adapter names another")


class Hub(BaseModel):
    """Repository on the hub."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    private: bool = Field(True, description="make a new repository private")


def list_adapters(place: Place, paging: Paging) -> Output:
    """List adapters by name."""
    with opened(place) as registry:
        page = registry.page(None, after=paging.after, limit=paging.limit, search=paging.search)
    lines = [
        f"{r.name:32} v{r.version:<4}{r.owner:16}{'public ' if r.public else 'private'} {r.bytes:>10,} B  "
        f"{' '.join((r.card.description or '').split())[:60]}".rstrip()
        for r in page.records
    ]
    more = [f"more: --after {page.after}"] if page.after else []
    record = {"adapters": [_facts(r) for r in page.records], "after": page.after}
    return Output(record, "\n".join([*lines, *more]) or "no adapters")


def show_adapter(name: Name, place: Place) -> Output:
    """Show one adapter."""
    with opened(place) as registry:
        facts = _facts(registry.get(name, None))
    return Output(
        facts, "\n".join(f"{key + ':':13}{value}" for key, value in facts.items() if value is not None)
    )


def import_adapter(
    name: Name,
    source: Annotated[Path, typer.Argument(help="PEFT adapter directory, or a ZIP of one")],
    place: Place,
    arrival: Arrival,
) -> Output:
    """Keep a PEFT LoRA under a name; it is checked first."""
    from shoal.adapters.archive import unpack
    from shoal.registry.importing import MAX_BYTES, without_paths

    with opened(place) as registry, tempfile.TemporaryDirectory() as folder, without_paths(Path(folder)):
        if source.is_file():
            with source.open("rb") as file:
                unpack(file, Path(folder), max_bytes=MAX_BYTES)
        return _keep(registry, name, Path(folder) if source.is_file() else source, arrival)


def push_adapter(
    name: Name, hub_id: Annotated[str, typer.Argument(help="owner/name on the hub")], place: Place, hub: Hub
) -> Output:
    """Send an adapter to a model hub; HF_ENDPOINT and HF_TOKEN are read."""
    from shoal.adapters.hub import push

    with opened(place) as registry:
        record = registry.get(name, None)
        registry.load(record)
        address = push(registry.directory(record), hub_id, private=hub.private)
    return Output({**_facts(record), "commit": address}, f"{name} pushed: {address}")


def pull_adapter(
    name: Name,
    hub_id: Annotated[str, typer.Argument(help="owner/name on the hub")],
    place: Place,
    arrival: Arrival,
) -> Output:
    """Keep an adapter of a model hub under a name; it is checked first."""
    from shoal.adapters.hub import pull
    from shoal.registry.importing import MAX_BYTES, without_paths

    with opened(place) as registry, tempfile.TemporaryDirectory() as folder, without_paths(Path(folder)):
        pull(hub_id, folder, max_bytes=MAX_BYTES)
        return _keep(registry, name, Path(folder), arrival)


def remove_adapter(name: Name, place: Place) -> Output:
    """Remove an adapter with all its versions."""
    with opened(place) as registry:
        registry.delete(name, None)
    return Output({"name": name, "deleted": True}, f"{name} removed")


def create_key(owner: Annotated[str, typer.Argument(help="whom the key stands for")], place: Place) -> Output:
    """Make an API key; it is printed once and kept hashed."""
    from shoal.registry.api_keys import ApiKeys

    with opened(place) as registry:
        key = ApiKeys(registry.database).create(owner)
    return Output({"owner": owner, "key": key}, key)


def list_keys(place: Place) -> Output:
    """List API keys by id and owner."""
    from shoal.registry.api_keys import ApiKeys

    with opened(place) as registry:
        keys = ApiKeys(registry.database).list()
    lines = [f"{k.id}  {k.owner:24}{_day(k.created)}{'  revoked' if k.revoked else ''}" for k in keys]
    return Output({"keys": [vars(k) for k in keys]}, "\n".join(lines) or "no keys")


def revoke_key(
    identity: Annotated[str, typer.Argument(metavar="ID", help="id of the key")], place: Place
) -> Output:
    """End an API key."""
    from shoal.registry.api_keys import ApiKeys

    with opened(place) as registry:
        ApiKeys(registry.database).revoke(identity)
    return Output({"id": identity, "revoked": True}, f"{identity} revoked")


@contextmanager
def opened(place: Place) -> Iterator[Registry]:
    """The registry, closed after use; errors as `Place.open`."""
    registry = place.open()
    try:
        yield registry
    finally:
        registry.close()


def _keep(registry: Registry, name: str, directory: Path, arrival: Arrival) -> Output:
    from shoal.models.backbone import DEFAULT_MODEL, load_shape
    from shoal.registry.importing import keep_foreign

    if not directory.is_dir():
        raise UsageError(f"{directory} is no adapter directory and no file; check the path")
    shape = load_shape(arrival.base or DEFAULT_MODEL)
    record = keep_foreign(
        registry,
        name,
        directory,
        shape,
        owner=arrival.owner,
        public=arrival.public,
        other_base=arrival.other_base,
    )
    return Output(_facts(record), f"{name} kept as version {record.version}")


def _facts(record: AdapterRecord) -> dict[str, Any]:
    facts = {key: value for key, value in vars(record).items() if key != "card"}
    return {**facts, "created": _day(record.created), **record.card.model_dump(mode="json")}


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def adapter_directory(stack: ExitStack, source: str, place: Place) -> Path:
    """The files of an adapter: a directory where the text is a path, else of the registry, else a directory.

    Raises:
        UsageError: there is neither, or a version that is no number.
    """
    path = Path(source).expanduser()
    if len(path.parts) > 1 or source.startswith((".", "~")):
        if not path.is_dir():
            raise UsageError(f"{source} is no directory; check the path")
        return path
    try:
        kept = stack.enter_context(opened(place))
        name, at, version = source.partition("@")
        if at and not version.isdecimal():
            raise UsageError(f"{source} is no NAME@VERSION; write for example {name}@2")
        return kept.directory(kept.get(name, None, int(version) if at else None))
    except UsageError:
        if path.is_dir():
            return path
        raise
