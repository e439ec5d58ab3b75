"""Pages for people: where one is, and the API's documentation. No key is needed, and no other site is asked.

The documentation is Swagger UI over `/openapi.json`, from the files of the package `fastapi-offline`.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

router = APIRouter()

LINKS = {
    "docs": "/docs",
    "schema": "/openapi.json",
    "models": "/v1/models",
    "chat": "/v1/chat/completions",
    "adapters": "/v1/adapters",
    "health": "/health",
    "ready": "/ready",
    "metrics": "/metrics",
}
ABOUT = (
    "An OpenAI-compatible service: chat with the base model or an adapter, and generate adapters from a "
    "sentence. Requests below /v1 need a key of `shoal keys create`, unless it runs with --open. "
    "`shoal ui` is the web page."
)
_POLICY = "default-src 'none'; style-src 'self' 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_DOCS_POLICY = f"{_POLICY}; script-src 'self'; img-src 'self' data:; font-src data:; connect-src 'self'"
_DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>Shoal API</title>
<link rel="stylesheet" href="/docs/static/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="api"></div>
<noscript>This page needs JavaScript; <a href="/openapi.json">/openapi.json</a> says the same.</noscript>
<script src="/docs/static/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#api", deepLinking: true, docExpansion: "list", defaultModelsExpandDepth: 0,
});
"""


def static_files() -> StaticFiles:
    """Swagger UI's script and style."""
    return StaticFiles(directory=str(files("fastapi_offline") / "static"))


@router.get("/", response_class=JSONResponse)
def home(request: Request) -> Response:
    """This service's name and where its parts are: a page for browsers, else JSON."""
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"service": "shoal", "version": version("shoal"), "about": ABOUT, "links": LINKS})
    rows = "".join(f'<li><a href="{path}">{path}</a> {name}</li>' for name, path in LINKS.items())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shoal</title>'
        "<style>body {font: 1rem/1.5 system-ui; max-width: 40rem; margin: 3rem auto; padding: 0 1rem}</style>"
        f"</head><body><h1>Shoal {version('shoal')}</h1><p>{ABOUT}</p><ul>{rows}</ul></body></html>"
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs", response_class=HTMLResponse)
def documentation() -> Response:
    """The API's documentation, to read and to try."""
    return HTMLResponse(_DOCS, headers={"Content-Security-Policy": _DOCS_POLICY})


@router.get("/docs/start.js", response_class=Response)
def start_script() -> Response:
    """The script that fills the page of `/docs`."""
    return Response(_START, media_type="text/javascript")
