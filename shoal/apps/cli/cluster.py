"""`shoal cluster up`: the service of `shoal serve` as replicas on a Ray cluster, which share one registry.

Ray Serve starts, watches and scales the replicas; each is the whole application of `shoal.server.app`, and
`shoal.server.affinity` before them sends requests of one adapter to one replica. Ray is used with token
authentication alone: without it, whoever reaches its ports runs code (CVE-2023-48022).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shoal.apps.cli.registry import Place
from shoal.apps.cli.serve import Address, check_service
from shoal.apps.cli.settings import Output, check_extra
from shoal.config import EngineConfig, ServiceConfig
from shoal.errors import ShoalError, UsageError, reason
from shoal.server import affinity
from shoal.server.json_logs import log_json_lines

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

AUTH_VARIABLE = "RAY_AUTH_MODE"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
NAME = "shoal"


class Replicas(BaseModel):
    """Number of replicas, and the resources of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(2, ge=1, le=1024, description="replicas at least; each loads the model")
    max_replicas: int | None = Field(None, ge=1, le=1024, description="replicas at most; none: --replicas")
    busy: float = Field(8.0, gt=0, description="requests at once in a replica above which more are started")
    cpus: float = Field(1.0, ge=0, description="CPUs that a replica reserves")
    gpus: float = Field(0.0, ge=0, description="GPUs that a replica reserves")
    address: str | None = Field(
        None, description="HOST:PORT of a Ray cluster that runs; none starts one on this machine"
    )
    everywhere: bool = Field(
        False, description="listen on every node with a replica, not on Ray's head alone"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below replicas {self.replicas}; raise it")
        return self


class Deployment(BaseModel):
    """Everything that a replica is made from: the arguments of a Ray Serve config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Address = Address()
    place: Place = Place()
    engine: EngineConfig = EngineConfig()
    service: ServiceConfig = ServiceConfig(shared=True)
    replicas: Replicas = Replicas()


def up(
    address: Address, place: Place, engine: EngineConfig, replicas: Replicas, config: ServiceConfig
) -> Output:
    """Serve from several replicas on a Ray cluster until stopped.

    Settings are those of `shoal serve`. Ray's token is made when it is missing (`ray get-auth-token`).
    """
    check_service(address)
    check_extra("the cluster", "cluster", "ray", "mmh3")
    if address.port == 0:
        raise UsageError("--port 0: a cluster listens on a port that you name; give one, such as 8000")
    registry = place.open()  # migrated once, and refused here rather than in every replica
    registry.close()
    database = place.database or os.environ.get("SHOAL_DATABASE") or None
    deployment = Deployment(
        address=_absolute(address),
        place=Place(registry=registry.root.absolute(), database=database),
        engine=engine,
        service=config.model_copy(update={"shared": True}),
        replicas=replicas,
    )
    _start_ray(deployment)
    try:
        return _serve(deployment)
    finally:
        _stop_ray()


def application(arguments: Mapping[str, Any]) -> Application:
    """The application for Ray Serve, as the `import_path` of its config files names it.

    Args:
        arguments: of a `Deployment`.

    Raises:
        ValueError: they are not.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    deployment = Deployment.model_validate(arguments)
    wanted = deployment.replicas
    config = deployment.service

    def build() -> ASGIApp:
        return _Signed(deployment)

    scaling: dict[str, Any] = {"num_replicas": wanted.replicas}
    if wanted.max_replicas is not None and wanted.max_replicas > wanted.replicas:
        bounds = {"min_replicas": wanted.replicas, "max_replicas": wanted.max_replicas}
        scaling = {"autoscaling_config": AutoscalingConfig(**bounds, target_ongoing_requests=wanted.busy)}
    declare: Any = serve.deployment  # whose annotation knows its use as a decorator alone
    replica = declare(
        serve.ingress(build)(),
        name="Replica",
        max_ongoing_requests=2 * config.max_running,  # above it the next replica of an adapter takes over
        max_queued_requests=config.max_open,
        graceful_shutdown_timeout_s=config.leaving_seconds,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": wanted.cpus, "num_gpus": wanted.gpus},
        request_router_config=RequestRouterConfig.model_validate({"request_router_class": ROUTER}),
        **scaling,
    )
    return cast("Application", replica.bind())


class _Signed:
    """The application of `shoal.server.app`, whose answers name the replica that they are from."""

    def __init__(self, deployment: Deployment) -> None:
        """Open the service in this process, a replica."""
        from ray import serve

        from shoal.models.backbone import DEFAULT_MODEL
        from shoal.server.app import create_app
        from shoal.server.service import open_service

        address = deployment.address
        log_json_lines()
        service = open_service(
            deployment.place.open(),
            address.base or DEFAULT_MODEL,
            deployment.service,
            engine=deployment.engine,
            open=address.open,
        )
        self._app = create_app(service)
        self._name = serve.get_replica_context().replica_id.unique_id.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                signature = (affinity.REPLICA_HEADER.encode(), self._name)
                message = {**message, "headers": [*message.get("headers", []), signature]}
            await send(message)

        await self._app(scope, receive, signed)


def _absolute(address: Address) -> Address:
    """The same, with a base model in a directory named as every process finds it."""
    base = address.base
    return (
        address.model_copy(update={"base": str(Path(base).absolute())})
        if base and Path(base).is_dir()
        else address
    )


def _start_ray(deployment: Deployment) -> None:
    """Join a Ray cluster, or start one on this machine.

    Raises:
        UsageError: token authentication is turned off.
        ShoalError: there is no such cluster, or it does not take our token.
    """
    mode = os.environ.setdefault(AUTH_VARIABLE, "token")
    if mode.lower() not in ("token", "k8s"):
        raise UsageError(
            f"{AUTH_VARIABLE}={mode} lets anyone who reaches Ray's ports run code; set it to token everywhere"
        )
    variables = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": affinity.IMPORT_PATH,
        affinity.CONFIG_VARIABLE: deployment.service.model_dump_json(),
    }
    os.environ.update(variables)  # read by Ray's processes when they start
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # replicas answer people
    import ray

    address = deployment.replicas.address
    alone: dict[str, Any] = {
        "include_dashboard": False,
        "dashboard_host": "127.0.0.1",
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            address=address or "local",
            namespace=NAME,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {**variables, AUTH_VARIABLE: mode}},
            **({} if address else alone),
        )
    except Exception as error:
        raise ShoalError(
            f"the Ray cluster {address or 'of this machine'} cannot be used ({reason(error)}); see that it "
            "runs, and that its token is in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        ) from None


def _serve(deployment: Deployment) -> Output:
    from ray import serve

    from shoal.server.connections import KEEP_ALIVE_SECONDS

    address = deployment.address
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    everywhere = deployment.replicas.everywhere
    try:
        serve.start(
            proxy_location="EveryNode" if everywhere else "HeadOnly",
            http_options={
                "host": address.host,
                "port": address.port,
                "keep_alive_timeout_s": KEEP_ALIVE_SECONDS,
            },
        )
        serve.run(application(deployment.model_dump()), name=NAME, route_prefix="/")
    except Exception as error:
        raise ShoalError(f"the replicas could not start: {reason(error, 600)}") from None
    log_json_lines()
    where = "every node with a replica" if everywhere else address.host
    log.info("listening on port %d of %s, %d replicas", address.port, where, deployment.replicas.replicas)
    stopped.wait()
    return Output({"stopped": True}, "stopped")


def _stop_ray() -> None:
    """End the replicas, and a Ray cluster that was started here."""
    import ray
    from ray import serve

    try:
        serve.shutdown()
    except Exception as error:  # its cluster is gone already
        log.warning("not shut down in order: %s", reason(error))
    ray.shutdown()
