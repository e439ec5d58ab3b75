"""Routes of models, chats and completions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from shoal.registry.records import AdapterRecord
from shoal.server.accepted_request import AcceptedRequest
from shoal.server.dependencies import Open, Owner
from shoal.server.pools import run_in
from shoal.server.schemas import ChatRequest, CompletionRequest
from shoal.server.service import Service

router = APIRouter()


@router.get("/v1/models")
def list_models(
    service: Open,
    owner: Owner,
    after: Annotated[str, Query(max_length=512)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
) -> dict[str, Any]:
    """The base model and libraries, then adapters by name, a page at a time."""
    base = service.base_names[0]
    page = service.registry.page(owner, after="" if after == base else after, limit=limit)
    models = []
    if not after or after == base:
        models = [_base(service), *(_library(row, owner) for row in service.libraries.page(owner))]
    models += [_adapter(record) for record in page.records if record.base == base]
    return {"object": "list", "data": models, "has_more": page.after is not None}


@router.get("/v1/models/{name:path}")
def get_model(name: str, service: Open, owner: Owner) -> dict[str, Any]:
    """The base model, a library or an adapter."""
    if name in service.base_names:
        return _base(service)
    if (named := service.libraries.find(name, owner)) is not None:
        return _library({"name": name, "base_model": named.library.base_model}, owner)
    return _adapter(service.selector.find(name, owner))


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request, service: Open, owner: Owner) -> Response:
    """Answer a chat, whole or streamed."""
    return await _respond(body, request, service, owner)


@router.post("/v1/completions")
async def complete(body: CompletionRequest, request: Request, service: Open, owner: Owner) -> Response:
    """Go on with texts, whole or streamed."""
    return await _respond(body, request, service, owner)


async def _respond(
    body: ChatRequest | CompletionRequest, request: Request, service: Service, owner: str
) -> Response:
    left = threading.Event()
    accepting = asyncio.ensure_future(
        run_in(service.pools.requests, service.completions.accept, body, owner, left)
    )
    accepting.add_done_callback(lambda done: _cancel_unread(done, left))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        if not await _first(accepting, gone):
            return Response(status_code=499)
        accepted = accepting.result()
        if body.stream:
            return _EventStream(service, accepted)
        whole = asyncio.ensure_future(service.completions.whole(accepted))
        try:
            return JSONResponse(whole.result()) if await _first(whole, gone) else Response(status_code=499)
        finally:
            whole.cancel()
            accepted.cancel()
    finally:  # nobody is there to read it: its places are free at once
        left.set()
        gone.cancel()


async def _first(work: asyncio.Future[Any], gone: asyncio.Future[None]) -> bool:
    """True once some work is done, False once the client has left before that."""
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    return work.done()


def _cancel_unread(accepting: asyncio.Future[AcceptedRequest], left: threading.Event) -> None:
    """Free the places of a request that was accepted after its client had left."""
    if not accepting.cancelled() and not accepting.exception() and left.is_set():
        accepting.result().cancel()


class _EventStream(StreamingResponse):
    """Pieces of an answer as they come; its places are free as soon as it is left, for whatever reason."""

    def __init__(self, service: Service, accepted: AcceptedRequest) -> None:
        super().__init__(service.completions.events(accepted), media_type="text/event-stream")
        self._accepted = accepted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._accepted.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _base(service: Service) -> dict[str, Any]:
    name = service.base_names[0]
    return {"id": name, "object": "model", "created": 0, "owned_by": "shoal", "root": name, "parent": None}


def _library(row: Mapping[str, Any], owner: str) -> dict[str, Any]:
    base = row["base_model"]
    about = {"id": row["name"], "object": "model", "created": 0, "owned_by": owner}
    return {**about, "root": base, "parent": base}


def _adapter(record: AdapterRecord) -> dict[str, Any]:
    return {
        "id": record.name,
        "object": "model",
        "created": int(record.created),
        "owned_by": record.owner,
        "root": record.base,
        "parent": record.base,
        "description": record.card.description,
    }
