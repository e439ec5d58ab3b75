"""Routes of studies of settings; what needs a model is a job."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from shoal.server.body import Body
from shoal.server.dependencies import Open, Owner
from shoal.server.pools import run_in
from shoal.server.routes_operations import shown_job
from shoal.server.schemas import Name
from shoal.server.tune_requests import NewStudy

router = APIRouter()
StudyName = Annotated[str, Path(max_length=64, description="name of a study")]


class Training(Body):
    """`POST /v1/studies/NAME/train`."""

    adapter: Name


@router.post("/v1/jobs/tune", status_code=202)
async def create_study(new: NewStudy, service: Open, owner: Owner) -> dict[str, Any]:
    """Find settings for a LoRA, or see that the defaults stay; a study that was cut short goes on."""
    return shown_job(await run_in(service.pools.uploads, service.studies.tune, new, owner))


@router.get("/v1/studies")
def list_studies(service: Open, owner: Owner) -> dict[str, Any]:
    """The owner's studies."""
    data = [{"object": "study", "name": name} for name in service.studies.names(owner)]
    return {"object": "list", "data": data}


@router.get("/v1/studies/{name}")
def get_study(name: StudyName, service: Open, owner: Owner) -> dict[str, Any]:
    """One study: its trials, the importance of its fields, its verdict and the settings that were found."""
    return service.studies.shown(name, owner)


@router.post("/v1/studies/{name}/train", status_code=202)
async def train_found(name: StudyName, training: Training, service: Open, owner: Owner) -> dict[str, Any]:
    """Train a LoRA on a study's examples with the settings that it found, in the background."""
    train = service.studies.train
    return shown_job(await run_in(service.pools.uploads, train, name, training.adapter, owner))


@router.delete("/v1/studies/{name}")
def delete_study(name: StudyName, service: Open, owner: Owner) -> dict[str, Any]:
    """Remove a study with all its runs."""
    service.studies.delete(name, owner)
    return {"id": name, "object": "study", "deleted": True}
