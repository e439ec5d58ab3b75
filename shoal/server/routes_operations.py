"""Routes of skills, jobs, the guide's own, and of those who operate the service."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Query, UploadFile
from fastapi.responses import Response

from shoal.adapters.files import check_name
from shoal.models.sources import DEFAULT_MODEL
from shoal.server.dependencies import Open, Owner
from shoal.server.jobs import Job
from shoal.server.merge_requests import NewMerge
from shoal.server.pools import run_in
from shoal.server.schemas import CustomSkill, SkillText

router = APIRouter()
Identity = Annotated[str, Path(max_length=64, description="id of a job")]


@router.get("/health")
async def health() -> dict[str, str]:
    """The process runs."""
    return {"status": "ok"}


@router.get("/ready")
def ready(service: Open) -> dict[str, str]:
    """Requests can be answered."""
    service.ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
def metrics(service: Open, owner: Owner) -> Response:
    """Everything that is counted, for Prometheus."""
    return Response(service.monitoring.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/monitoring")
def monitoring(service: Open, owner: Owner) -> dict[str, Any]:
    """The guide's monitoring names."""
    return vars(service.monitoring.usage())


@router.post("/generate-adapter")
def generate_adapter(
    service: Open,
    owner: Owner,
    prompt: Annotated[str, Query(min_length=1, max_length=4000)],
    model_path: Annotated[str, Query(min_length=1, max_length=512)] = DEFAULT_MODEL,
) -> dict[str, Any]:
    """The guide's route: generate an adapter, and say which skills its description asks for."""
    return service.adapters.guide(prompt, model_path, owner)


@router.get("/v1/skills")
def list_skills(service: Open, owner: Owner) -> dict[str, Any]:
    """Names of the skills."""
    return {"object": "list", "data": service.skills.names(owner)}


@router.post("/v1/skills/detect")
def detect_skills(asked: SkillText, service: Open, owner: Owner) -> dict[str, Any]:
    """The skills that a text asks for, and their weights."""
    found = service.skills.detect(asked.text, owner)
    return {"skills": list(found.skills), "weights": dict(found.weights)}


@router.post("/v1/skills", status_code=201)
def add_skill(skill: CustomSkill, service: Open, owner: Owner) -> dict[str, Any]:
    """Teach a skill of the owner's own."""
    service.skills.add(skill, owner)
    return {"name": skill.name, **skill.definition()}


@router.post("/v1/jobs", status_code=202)
async def create_job(
    service: Open,
    owner: Owner,
    name: Annotated[str, Form(min_length=1, max_length=64)],
    definition: Annotated[str, Form(min_length=1, max_length=4000)],
    file: Annotated[UploadFile, File(description="JSONL with `input` and `output`")],
    steps: Annotated[int, Form(ge=1, le=2**31)] = 100,
    rank: Annotated[int, Form(ge=1, le=1024)] = 16,
) -> dict[str, Any]:
    """Train a LoRA on uploaded examples, in the background."""
    examples = await file.read(service.config.max_training_bytes + 1)
    submit, uploads = service.jobs.submit, service.pools.uploads
    job = await run_in(uploads, submit, check_name(name), definition, examples, owner, steps=steps, rank=rank)
    return shown_job(job)


@router.post("/v1/jobs/merge", status_code=202)
async def create_merge(new: NewMerge, service: Open, owner: Owner) -> dict[str, Any]:
    """Merge adapters into one, in the background."""
    check_name(new.name)
    return shown_job(await run_in(service.pools.uploads, service.jobs.merge, new, owner))


@router.get("/v1/jobs")
def list_jobs(service: Open, owner: Owner) -> dict[str, Any]:
    """The owner's newest jobs."""
    return {"object": "list", "data": [shown_job(job) for job in service.jobs.page(owner)]}


@router.get("/v1/jobs/{identity}")
def get_job(identity: Identity, service: Open, owner: Owner) -> dict[str, Any]:
    """One job."""
    return shown_job(service.jobs.get(identity, owner))


@router.post("/v1/jobs/{identity}/cancel")
def cancel_job(identity: Identity, service: Open, owner: Owner) -> dict[str, Any]:
    """End a job."""
    return shown_job(service.jobs.cancel(identity, owner))


def shown_job(job: Job) -> dict[str, Any]:
    """A job as the API shows it."""
    return {"object": "job", **vars(job)}
