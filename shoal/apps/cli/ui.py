"""`shoal ui`: the web page, a client of a service, by Streamlit."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.serve import LOOPBACK
from shoal.apps.cli.settings import Output, check_extra
from shoal.errors import UsageError

PAGE = Path(__file__).parents[1] / "ui" / "main.py"
UPLOAD_MEGABYTES = 128  # what a service takes by default


class Page(BaseModel):
    """Address of the page, and of the service that it asks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str = Field("http://127.0.0.1:8000", description="address of the service, of `shoal serve`")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8501, ge=1, le=65535, description="port to listen on")


def ui(page: Page) -> Output:
    """Show the web page of a service until stopped.

    The key is that of $OPENAI_API_KEY, or is typed in the page.
    """
    check_extra("the web page", "ui", "streamlit", "plotly", "httpx2", "prometheus_client")
    from streamlit.web import cli

    from shoal.server.client import KEY_VARIABLE, check_url

    service = check_url(page.service)
    if page.host not in LOOPBACK and os.environ.get(KEY_VARIABLE):
        raise UsageError(
            f"--host {page.host} would lend the key of ${KEY_VARIABLE} to anyone; "
            "unset it: visitors type their own"
        )
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    command = ["run", str(PAGE), *flags(page), "--", "--service", service]
    cli.main(command, standalone_mode=False)
    return Output({"stopped": True}, "stopped")


def flags(page: Page) -> list[str]:
    """Streamlit's flags: for this machine alone, silent towards its makers, without tracebacks."""
    settings: dict[str, object] = {
        "server.address": page.host,
        "server.port": page.port,
        "server.headless": "true",
        "server.enableXsrfProtection": "true",
        "server.enableCORS": "true",
        "server.maxUploadSize": UPLOAD_MEGABYTES,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "theme.base": "light",
        "theme.primaryColor": "#0f766e",
        "theme.secondaryBackgroundColor": "#f1f5f4",
        "theme.textColor": "#12211f",
        "theme.baseRadius": "medium",
    }
    listed = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    if page.host in LOOPBACK:  # a page of another site, by a name of its own, is not answered
        listed += [word for host in LOOPBACK for word in ("--server.allowedHosts", host)]
    return listed
