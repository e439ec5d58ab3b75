"""The files of deploy/ fit together, and what they start is there. Nothing here runs a container."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from shoal.apps.cli import main as cli
from shoal.apps.cli.cluster import Deployment
from shoal.config import ServiceConfig
from shoal.server import affinity

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
KUBERAY = {d["kind"]: d for d in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text("utf-8"))}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
RAY = KUBERAY["RayService"]["spec"]
GROUPS = [RAY["rayClusterConfig"]["headGroupSpec"], *RAY["rayClusterConfig"]["workerGroupSpecs"]]
PODS = [group["template"] for group in GROUPS]


def images() -> Iterator[str]:
    yield from (service["image"] for service in COMPOSE["services"].values())
    yield from (c["image"] for pod in PODS for c in pod["spec"]["containers"])
    yield from re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)


def test_images_are_pinned() -> None:
    assert len(list(images())) >= 8
    for image in images():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?", image), image


def parses(arguments: list[str]) -> None:
    """Whether `shoal` takes a command line, without running it."""
    command: Any = typer.main.get_command(cli._app())
    while arguments and not arguments[0].startswith("-"):
        named = command.get_command(None, arguments[0])
        assert named is not None, f"there is no command {arguments[0]}"
        command, arguments = named, arguments[1:]
    command.make_context("shoal", list(arguments))


@pytest.mark.parametrize(
    "service", [n for n, s in COMPOSE["services"].items() if s["image"].startswith("shoal")]
)
def test_what_compose_starts_is_a_command(service: str) -> None:
    parses(COMPOSE["services"][service]["command"])


def test_the_image_starts_a_command_as_nobody_in_particular() -> None:
    parses(json.loads(re.findall(r"^CMD (\[.*\])", DOCKERFILE, re.M)[-1]))
    assert json.loads(re.findall(r"^ENTRYPOINT (\[.*\])", DOCKERFILE, re.M)[0]) == ["shoal"]
    steps = re.findall(r"^[A-Z]+ .*", DOCKERFILE, re.M)
    user = next(step for step in steps if step.startswith("USER"))
    assert user == "USER 10001:10001" and steps.index(user) > max(
        i for i, step in enumerate(steps) if step.startswith("RUN")
    )
    assert not re.search(r"(?i)(password|token|secret|api_key)\s*=", DOCKERFILE)
    extras = re.search(r'^ARG EXTRAS="([\w,]+)"', DOCKERFILE, re.M)
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert extras and set(extras[1].split(",")) <= set(known)
    copied = [part for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.M) for part in line.split()[:-1]]
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert all((ROOT / name).exists() and f"!{name}" in ignore for name in (n.strip("./") for n in copied))


def test_all_that_the_service_writes_is_on_the_volume(tmp_path: Path) -> None:
    """With the image's variables alone, as the code itself reads them: the rest of compose's is read-only."""
    (volume,) = re.findall(r"^VOLUME (\S+)", DOCKERFILE, re.M)
    pairs = [pair for line in re.findall(r"^ENV (.*)", DOCKERFILE, re.M) for pair in line.split()]
    variables = {n: v.replace(volume, str(tmp_path), 1) for n, v in (pair.split("=", 1) for pair in pairs)}
    script = (
        "from huggingface_hub.constants import HF_HUB_CACHE\n"
        "from shoal.models.sources import cache_root\n"
        "from shoal.registry.registry import open_registry\n"
        "print(open_registry().root, cache_root(), HF_HUB_CACHE)"
    )
    environment = {**variables, "HOME": "/nowhere/that/can/be/made", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(said) == 3 and all(tmp_path in Path(folder).parents for folder in said), said
    service = COMPOSE["services"]["service"]
    assert service["read_only"] and [v.split(":")[1] for v in service["volumes"]] == [volume]


def test_composes_files_and_names_are_there() -> None:
    services, secrets = COMPOSE["services"], COMPOSE["secrets"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert set(service.get("depends_on", [])) <= set(services)
        assert set(service.get("secrets", [])) <= set(secrets)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "without TLS nothing listens outside"
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "DATABASE" in name:
                assert "${" in value, f"{name} is written down"
    ignored = (ROOT / ".gitignore").read_text("utf-8")
    assert all(secret["file"].removeprefix("./secrets/") for secret in secrets.values())
    assert "deploy/secrets/" in ignored and "deploy/.env" in ignored


def test_prometheus_asks_the_service_and_grafana_prometheus() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["service:8000"]}] and job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"] == "/run/secrets/prometheus_key"
    (source,) = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text("utf-8"))["providers"]
    mounted = [v.split(":")[1] for v in COMPOSE["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/shoal.json" in mounted


def test_kuberay_starts_our_application_with_settings_that_it_takes() -> None:
    config = yaml.safe_load(RAY["serveConfigV2"])
    (application,) = config["applications"]
    assert application["import_path"] == "shoal.apps.cli.cluster:application"
    deployment = Deployment.model_validate(application["args"])
    workers = GROUPS[1]
    assert deployment.service.shared and deployment.replicas.max_replicas == workers["maxReplicas"]
    assert deployment.replicas.cpus <= float(PODS[1]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert config["http_options"]["port"] == 8000
    for pod in PODS:
        (container,) = pod["spec"]["containers"]
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]["value"] == affinity.IMPORT_PATH
        said = ServiceConfig.model_validate_json(environment[affinity.CONFIG_VARIABLE]["value"])
        assert said == deployment.service
        assert "value" not in environment["SHOAL_DATABASE"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert str(deployment.place.registry).startswith("/data/") and "/data" in mounted
        (volume,) = pod["spec"]["volumes"]
        assert volume["name"] == mounted["/data"]
        claim = volume["persistentVolumeClaim"]["claimName"]
        assert claim == KUBERAY["PersistentVolumeClaim"]["metadata"]["name"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and container["resources"]["limits"]["memory"]
        assert pod["metadata"]["labels"] == KUBERAY["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert KUBERAY["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_kuberay_asks_for_a_token_and_the_version_that_is_installed() -> None:
    cluster = RAY["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    pinned = re.search(r'"ray\[serve\]>=([\d.]+),', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert pinned and cluster["rayVersion"].startswith(pinned[1])
