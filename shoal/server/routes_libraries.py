"""Routes of libraries of skills; what needs a model is a job."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from shoal.adapters.files import check_name
from shoal.server.body import Body
from shoal.server.dependencies import Open, Owner
from shoal.server.learn_requests import LibraryStep, NewSkill
from shoal.server.pools import run_in
from shoal.server.routes_operations import shown_job

router = APIRouter()
LibraryName = Annotated[str, Path(max_length=64, description="name of a library")]


class Restored(Body):
    """`POST /v1/libraries/NAME/rollback`."""

    version: int = Field(ge=1, le=2**31, description="to restore")


@router.get("/v1/libraries")
def list_libraries(service: Open, owner: Owner) -> dict[str, Any]:
    """The owner's libraries."""
    return {"object": "list", "data": service.libraries.page(owner)}


@router.get("/v1/libraries/{name}")
def get_library(name: LibraryName, service: Open, owner: Owner) -> dict[str, Any]:
    """One library: its skills, its versions, and scores over time."""
    return service.libraries.shown(name, owner)


@router.post("/v1/libraries/{name}/rollback")
def roll_back(name: LibraryName, restored: Restored, service: Open, owner: Owner) -> dict[str, Any]:
    """Restore an older version of a library, as a new one."""
    return service.libraries.rollback(name, owner, restored.version)


@router.delete("/v1/libraries/{name}")
def delete_library(name: LibraryName, service: Open, owner: Owner) -> dict[str, Any]:
    """Remove a library with all its skills."""
    service.libraries.delete(name, owner)
    return {"id": name, "object": "library", "deleted": True}


@router.post("/v1/jobs/learn", status_code=202)
async def learn(new: NewSkill, service: Open, owner: Owner) -> dict[str, Any]:
    """Learn a skill into a library, in the background; it is committed if no older skill loses by it."""
    check_name(new.name)
    return shown_job(await run_in(service.pools.uploads, service.libraries.learn, new, owner))


@router.post("/v1/jobs/forget", status_code=202)
async def forget(step: LibraryStep, service: Open, owner: Owner) -> dict[str, Any]:
    """Remove a skill and every file of it, in the background."""
    return shown_job(await run_in(service.pools.uploads, service.libraries.forget, step, owner))
