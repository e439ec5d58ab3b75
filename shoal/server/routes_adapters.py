"""Routes of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, File, Form, Path, Query, UploadFile
from fastapi.responses import StreamingResponse

from shoal.adapters.files import ADAPTER_NAME, check_name
from shoal.errors import NotFoundError, shorten
from shoal.server.adapters import shown, shown_generated
from shoal.server.dependencies import Open, Owner
from shoal.server.pools import run_in
from shoal.server.schemas import NewAdapter, NewAdapters, Publicity

router = APIRouter()
Name = Annotated[str, Path(max_length=64, description="name of an adapter")]
_BLOCK = 2**18


@router.get("/v1/adapters")
def list_adapters(
    service: Open,
    owner: Owner,
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    search: Annotated[str | None, Query(max_length=200)] = None,
) -> dict[str, Any]:
    """A page of the owner's adapters and the public ones, by name."""
    page = service.registry.page(owner, after=after, limit=limit, search=search)
    return {"object": "list", "data": [shown(r) for r in page.records], "after": page.after}


@router.post("/v1/adapters", status_code=201)
def create_adapter(new: NewAdapter, service: Open, owner: Owner) -> dict[str, Any]:
    """Generate an adapter from a description and keep it.

    With 4 or more solved `examples`, or with `inputs` without answers, it is then trained for a while:
    that is what makes it useful. The response holds `confidence`, `nonsense` and
    `notes` besides the adapter.
    """
    return shown_generated(*service.adapters.create(new, owner))


@router.post("/v1/adapters/batch", status_code=201)
def create_adapters(new: NewAdapters, service: Open, owner: Owner) -> dict[str, Any]:
    """Generate many adapters in one pass and keep them."""
    made = service.adapters.create_many(new.adapters, owner)
    return {"object": "list", "data": [shown_generated(*one) for one in made]}


@router.post("/v1/adapters/import", status_code=201)
async def import_adapter(
    service: Open,
    owner: Owner,
    name: Annotated[str, Form(min_length=1, max_length=64)],
    file: Annotated[UploadFile, File(description="ZIP of a PEFT adapter directory")],
    public: Annotated[bool, Form()] = False,
) -> dict[str, Any]:
    """Check an uploaded PEFT LoRA and keep it."""
    upload, uploads = service.adapters.upload, service.pools.uploads
    return shown(await run_in(uploads, upload, check_name(name), file.file, owner, public=public))


@router.get("/v1/adapters/{name}")
def get_adapter(name: Name, service: Open, owner: Owner) -> dict[str, Any]:
    """One adapter."""
    return shown(service.registry.get(_known(name), owner))


@router.patch("/v1/adapters/{name}")
def publish_adapter(name: Name, change: Publicity, service: Open, owner: Owner) -> dict[str, Any]:
    """Let others use an adapter, or no longer."""
    return shown(service.registry.publish(_known(name), owner, change.public))


@router.delete("/v1/adapters/{name}")
def delete_adapter(name: Name, service: Open, owner: Owner) -> dict[str, Any]:
    """Remove an adapter with all its versions."""
    service.adapters.delete(_known(name), owner)
    return {"id": name, "object": "adapter", "deleted": True}


@router.get("/v1/adapters/{name}/download", response_class=StreamingResponse)
def download_adapter(name: Name, service: Open, owner: Owner) -> StreamingResponse:
    """An adapter as a ZIP of its PEFT directory."""
    file = service.adapters.download(_known(name), owner)
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(_blocks(file), media_type="application/zip", headers=headers)


@router.get("/v1/adapters/{name}/norms")
def adapter_norms(name: Name, service: Open, owner: Owner) -> dict[str, Any]:
    """How much an adapter changes each module: the Frobenius norm of the delta weight."""
    return {"name": name, "norms": service.adapters.norms(_known(name), owner)}


def _known(name: str) -> str:
    """A name in a path: one that no adapter can have is as unknown as one that none has."""
    if not ADAPTER_NAME.fullmatch(name):
        raise NotFoundError(
            f"there is no adapter {shorten(name)}; GET /v1/adapters lists those that there are"
        )
    return name


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK):
            yield block
