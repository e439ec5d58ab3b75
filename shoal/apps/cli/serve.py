"""`shoal serve`: the service on a port."""

from __future__ import annotations

import logging
import math
import signal
import socket
import sys

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import BASE_HELP
from shoal.apps.cli.registry import Place
from shoal.apps.cli.settings import Output, check_extra
from shoal.config import EngineConfig, ServiceConfig
from shoal.errors import ShoalError, UsageError, reason

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SWITCH_SECONDS = 0.001  # after which a thread that computes lets the one of the connections go on
BACKLOG = 2048  # connections that wait to be accepted, while the model loads too


class Address(BaseModel):
    """Where, for whom and which model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = Field(None, description=BASE_HELP)
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any")
    open: bool = Field(False, description="take requests without a key, from this machine alone")


def serve(address: Address, place: Place, engine: EngineConfig, config: ServiceConfig) -> Output:
    """Serve the OpenAI-compatible API until stopped.

    Requests need a key of `shoal keys create`.
    """
    check_service(address)
    from shoal.models.backbone import DEFAULT_MODEL
    from shoal.server.app import create_app
    from shoal.server.connections import Server
    from shoal.server.service import open_service

    sockets = bound(address.host, address.port, config.send_seconds)
    if engine.engine == "vllm":
        check_extra("vLLM", "vllm", "httpx2")
    base = address.base or DEFAULT_MODEL
    service = open_service(place.open(), base, config, engine=engine, open=address.open)
    server = Server(
        create_app(service),
        service.end_answers,
        head_seconds=config.head_seconds,
        leaving_seconds=config.leaving_seconds,
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    # uvicorn raises it again when it has ended, for whoever listened before: that is no failure here.
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        for one in sockets:
            log.info("listening on port %d of %s", one.getsockname()[1], address.host)
        server.run(sockets=sockets)
    except SystemExit:  # uvicorn has said why on standard error
        raise ShoalError(f"the service could not start on {address.host}:{address.port}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.flush()
    return Output({"stopped": True}, "stopped")


def check_service(address: Address) -> None:
    """See that the service can run here, and that nobody is let in by mistake.

    Raises:
        ShoalError: what it needs is not installed.
        UsageError: it would be open to other machines.
    """
    check_extra(
        "the service",
        "serve",
        "fastapi",
        "uvicorn",
        "limits",
        "prometheus_client",
        "multipart",
        "fastapi_offline",
    )
    if address.open and address.host not in LOOPBACK:
        raise UsageError(
            f"--open with --host {address.host} would let anyone in; leave one out, and make keys with "
            "`shoal keys create`"
        )


def bound(host: str, port: int, send_seconds: float) -> list[socket.socket]:
    """Sockets that listen, whose connections end where a client takes nothing of what was sent for so long.

    Closing would not do: a connection is kept until all that was written is read, if that is never.

    Raises:
        ShoalError: the address cannot be used.
    """
    sockets = []
    try:
        for family, kind, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sockets.append(one := socket.socket(family, kind))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the connections inherit it
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(1000 * send_seconds))
            one.bind(where)
            one.listen(BACKLOG)  # two may bind one port, if neither listens
    except OSError as error:
        for one in sockets:
            one.close()
        raise ShoalError(f"cannot listen on {host}:{port}: {reason(error)}") from None
    return sockets
