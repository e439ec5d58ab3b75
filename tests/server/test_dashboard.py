"""The dashboard asks for nothing that the service does not tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

from shoal.inference.engine.adapter_cache import CacheStatistics
from shoal.inference.engine.records import EngineState
from shoal.server.metrics import Monitoring

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "deploy" / "grafana-dashboard.json"


def test_every_metric_of_the_dashboard_is_there() -> None:
    monitoring = Monitoring(lambda: EngineState(0, 0, 0, 0, CacheStatistics()), lambda: 0.5)
    monitoring.answered("/health", 200, 0.1)
    monitoring.answered("/nowhere", 404, 0.1)
    told = set(re.findall(r"^# TYPE (\S+)", monitoring.exposition().decode(), re.M))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name.removesuffix("_bucket")
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"shoal_\w+|(?:total|successful)_requests|avg_\w+|skill_\w+", target["expr"])
    }
    assert len(asked) >= 20 and asked <= told, asked - told
