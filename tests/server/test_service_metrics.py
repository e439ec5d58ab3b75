"""What the service counts of its requests, answers and adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from shoal.models.backbone import pick_device, pick_dtype
from tests.fixtures.service import GREEDY, wait_until


def samples(http: httpx2.Client) -> dict[tuple[str, ...], float]:
    """(name, value of each label ...) -> number, of all that is told; but not what asking for it counts."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    found = {(one.name, *one.labels.values()): one.value for f in families for one in f.samples}
    return {key: value for key, value in found.items() if "/metrics" not in key}


def counted(http: httpx2.Client, before: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """What was added since, of what only counts: neither seconds nor memory."""
    changes = {key: value - before.get(key, 0) for key, value in samples(http).items()}
    counts = ("_total", "_count", "_rows_sum")
    own = {k: v for k, v in changes.items() if k[0].startswith("shoal_") and k[0].endswith(counts)}
    return {key: value for key, value in own.items() if value}


def wait_until_counted(
    http: httpx2.Client,
    before: Mapping[tuple[str, ...], float],
    wanted: Mapping[tuple[str, ...], float],
) -> None:
    """An answer is there a moment before it is counted."""
    with suppress(AssertionError):  # the next line shows the difference
        wait_until(lambda: counted(http, before) == wanted)
    assert counted(http, before) == wanted


def test_every_metric_counts_what_it_says(serve: Any, make_loud: Callable[[int], bytes]) -> None:
    chats, adapters = "/v1/chat/completions", "/v1/adapters"
    room = 2_000 * pick_dtype(pick_device()).itemsize  # for one adapter, of 1,344 numbers
    with serve(cache_bytes=room) as running, running.http(running.ada) as http:
        for name, seed in (("loud", 5), ("other", 6)):
            sent = {"data": {"name": name}, "files": {"file": ("x.zip", make_loud(seed))}}
            assert http.post("/v1/adapters/import", **sent).status_code == 201
        of_a_chat = {
            ("shoal_requests_total", chats, "200"): 1,
            ("shoal_request_seconds_count", chats): 1,
            ("shoal_generations_total", "length"): 1,
            ("shoal_queue_seconds_count",): 1,
            ("shoal_first_token_seconds_count",): 1,
            ("shoal_token_gap_seconds_count",): 7,  # between 8 tokens
            ("shoal_tokens_total", "completion"): 8,
            ("shoal_batch_rows_count",): 7,  # steps: the first token comes from reading the prompt
            ("shoal_batch_rows_sum",): 7,  # rows in them
        }
        miss, hit = ("shoal_adapter_cache_misses_total",), ("shoal_adapter_cache_hits_total",)
        evicted = ("shoal_adapter_cache_evictions_total",)
        for model, cache in (("loud", {miss: 1}), ("loud", {hit: 1}), ("other", {miss: 1, evicted: 1})):
            before = samples(http)
            answer = http.post(chats, json={"model": model, **GREEDY})
            prompt = answer.json()["usage"]["prompt_tokens"]
            wait_until_counted(http, before, {**of_a_chat, **cache, ("shoal_tokens_total", "prompt"): prompt})
            assert samples(http)["shoal_cached_adapters",] == 1
        assert 0 < samples(http)["shoal_cached_adapter_bytes",] <= room

        before = samples(http)
        new = {"name": "made", "description": "Write the plural of the given noun."}
        assert http.post(adapters, json=new).status_code == 201
        made = {("shoal_requests_total", adapters, "201"): 1, ("shoal_request_seconds_count", adapters): 1}
        wait_until_counted(http, before, {**made, ("shoal_adapter_generation_seconds_count",): 1})

        before = samples(http)
        assert http.post(chats, json={"model": "nobody", **GREEDY}).status_code == 404
        refused = {("shoal_requests_total", chats, "404"): 1, ("shoal_request_seconds_count", chats): 1}
        wait_until_counted(http, before, {**refused, ("shoal_errors_total", "404"): 1})


def test_the_guides_names_count_too(serve: Any) -> None:
    with serve() as running, running.http(running.ada) as http:
        assert http.post("/v1/chat/completions", json={"model": running.model, **GREEDY}).status_code == 200
        assert http.post("/v1/chat/completions", json={"model": "nobody", **GREEDY}).status_code == 404
        wait_until(lambda: running.service.monitoring.usage().total_requests >= 2)
        usage = http.get("/v1/monitoring").json()
        assert (usage["total_requests"], usage["successful_requests"]) == (2, 1)
        assert usage["avg_response_time"] > 0 and usage["avg_memory_usage"] > 2**20
        assert 0.8 < usage["skill_detection_accuracy"] < 1
        shown = samples(http)
        assert {name for name in usage if usage[name] is not None} <= {key[0] for key in shown}
        assert shown["successful_requests",] == shown["total_requests",] - 1
        assert shown["shoal_memory_bytes",] > 2**20
