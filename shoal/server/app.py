"""The service over HTTP: routes by noun behind one guard, and errors as OpenAI words them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from shoal.errors import ShoalError
from shoal.server import (
    routes_adapters,
    routes_completions,
    routes_docs,
    routes_libraries,
    routes_operations,
    routes_studies,
)
from shoal.server.errors import Failure, disk_full, failure_of
from shoal.server.middleware import Guard
from shoal.server.service import Service
from shoal.server.validation_errors import describe

ROUTES = {
    "Models, chats and completions": routes_completions,
    "Adapters": routes_adapters,
    "Libraries of skills": routes_libraries,
    "Studies of settings": routes_studies,
    "Skills, training and operation": routes_operations,
    "Pages": routes_docs,
}


def create_app(service: Service) -> FastAPI:
    """The application of an open service; the service is closed when the application stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Of routes that block: one may wait for another's adapter, so every open request has a thread.
        to_thread.current_default_thread_limiter().total_tokens = service.config.max_open
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Shoal",
        description=routes_docs.ABOUT,
        version=version("shoal"),
        docs_url=None,  # see routes_docs
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"4XX": {"description": "an OpenAI error body"}, "503": {"description": "try again later"}},
    )
    app.state.service = service
    for tag, routes in ROUTES.items():
        app.include_router(routes.router, tags=[tag])
    app.mount("/docs/static", routes_docs.static_files())
    for kind in (Failure, ShoalError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(Guard, service=service)
    if service.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.allowed_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app


async def _failed(request: Request, error: Exception) -> JSONResponse:
    failure = _failure(error, request.app.state.service.config.retry_seconds)
    return failure.response(error.headers if isinstance(error, HTTPException) else None)


def _failure(error: Exception, retry_seconds: int) -> Failure:
    if isinstance(error, RequestValidationError) and isinstance(error.body, bytes):  # it was not read as JSON
        about = "the body is of another type than JSON; send it with Content-Type: application/json"
        return Failure(415, about, code="unsupported_media_type")
    if isinstance(error, RequestValidationError):
        message, field = describe(error.errors(), error.body)
        return Failure(400, message, param=field)
    if isinstance(error.__cause__, Failure):  # raised while the body was read, which FastAPI words anew
        return error.__cause__
    if isinstance(error.__cause__, ValueError | RecursionError):
        about = (
            "the body cannot be read: it is compressed, not UTF-8, nested too deep, or a number in it has "
            "thousands of digits; send plain JSON"
        )
        return Failure(400, about)
    if isinstance(error, HTTPException) and not disk_full(error):  # else of a body that was to be kept
        return Failure(
            error.status_code, str(error.detail), code="not_found" if error.status_code == 404 else None
        )
    return failure_of(error, retry_seconds)
