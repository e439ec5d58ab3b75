"""The documented entry point, `SakanaAIIntegration`: each call goes to the class that does the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from shoal.config import TextToLoRAConfig, Transformer2Config
from shoal.errors import ShoalError, UsageError, shorten
from shoal.models.backbone import DEFAULT_MODEL, load_backbone
from shoal.process import resident
from shoal.text_to_lora.generated_adapter import GeneratedAdapter
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.skill_check import detection_accuracy
from shoal.text_to_lora.skills import SkillDetector
from shoal.transformer2.model import Transformer2


class _Metric(NamedTuple):
    help: str
    unit: str


_METRICS = {
    "total_requests": _Metric("Requests so far", ""),
    "successful_requests": _Metric("Requests that ended without an error", ""),
    "avg_response_time": _Metric("Mean time of a request in seconds", "seconds"),
    "avg_memory_usage": _Metric("Mean resident memory at the end of a request in bytes", "bytes"),
    "skill_detection_accuracy": _Metric(
        "Share of labelled prompts whose skills are all found and no other", ""
    ),
}


class SakanaAIIntegration:
    """Adapters from descriptions, for any base model by name."""

    def __init__(
        self,
        text_to_lora_config: TextToLoRAConfig | None = None,
        transformer2_config: Transformer2Config | None = None,
    ) -> None:
        """Nothing is loaded until it is needed.

        Args:
            text_to_lora_config: sizes of the adapters and of their hypernetwork, as `TextToLoRA` takes them.
            transformer2_config: settings of the models that `create_transformer2_model` wraps.
        """
        self._text_to_lora_config = text_to_lora_config
        self._transformer2_config = transformer2_config
        self._generators: dict[str, TextToLoRA] = {}
        self._skills = SkillDetector()
        self._requests = RequestLog()
        self._accuracy: float | None = None

    def generate_adapter_from_text(
        self,
        prompt: str,
        model_path: str = DEFAULT_MODEL,
        *,
        method: Literal["hypernetwork", "distil"] = "hypernetwork",
        inputs: Sequence[str] = (),
        labels: Sequence[str] | None = None,
        sample_inputs: bool = False,
    ) -> dict[str, Any]:
        """Generate one adapter from a task description; one that was asked before comes from a cache.

        Args:
            prompt: the task description, in English.
            model_path: alias, directory or hub id of the base model.
            method: `distil` teaches the adapter what the base model answers to `inputs` with the prompt
                before them: minutes, for any base model, without a hypernetwork.
            inputs: of the task, without answers; see `TextToLoRA.generate` and `TextToLoRA.distil`.
            labels: the answers that there are; None reads them from the prompt.
            sample_inputs: take inputs that the package ships; see `TextToLoRA.generate`.

        Returns:
            `success` (bool), `duration` (seconds) and `adapter_info`: `prompt`, `detected_skills` (names, the
            heaviest first), `skill_weights` (a weight for each of them, sum 1), `adapters` (tensor name, such
            as `model.layers.0.self_attn.q_proj.lora_A.weight` -> tensor), `notes` (plain sentences: what to
            know before relying on the adapter), `label_set` (None where answers are open, else a `LabelSet`
            as a dict) and `hypernetwork`: `trained`, and with it `nearest_tasks` (name -> distance),
            `distance` to the nearest, `confidence` in [0, 1] and `nonsense`, True where the prompt says
            nothing. Where `trained` is False the adapter is the identity, and `how_to_train` says what to do.

        Raises:
            UsageError: the prompt, the model path, the method, the inputs or the labels cannot be used.
            ShoalError: a model or checkpoint is damaged.
        """
        path = str(model_path)
        if method not in ("hypernetwork", "distil"):
            raise UsageError(f"method {shorten(method)} is unknown; choose from hypernetwork, distil")
        if method == "distil" and sample_inputs:
            raise UsageError("distilling needs inputs of the task; give some, and leave sample_inputs out")
        with self._requests.request():
            if path not in self._generators:
                self._generators[path] = TextToLoRA(path, self._text_to_lora_config, skills=self._skills)
            generator = self._generators[path]
            if method == "distil":
                adapter = generator.distil(prompt, inputs, labels=labels)
            else:
                adapter = generator.generate(
                    prompt, inputs=inputs, labels=labels, sample_inputs=sample_inputs
                )
        return {"success": True, "duration": adapter.duration, "adapter_info": _info(adapter)}

    def create_transformer2_model(
        self, base_model: str | nn.Module = DEFAULT_MODEL, config: Transformer2Config | None = None
    ) -> Transformer2:
        """Wrap a causal language model so that it re-tunes itself for each request.

        Experts are shipped for SmolLM2-135M-Instruct. Any other model answers as it is and detects no skill,
        which is logged; pass trained experts to `Transformer2` itself.

        Args:
            base_model: alias, directory or hub id, or a loaded model of `transformers`.
            config: settings of `Transformer2`; by default those that this integration was given.

        Raises:
            UsageError: no such model, or settings that do not fit it.
            ShoalError: the model is damaged.
        """
        model = base_model if isinstance(base_model, nn.Module) else load_backbone(str(base_model)).model
        return Transformer2.shipped(model, config or self._transformer2_config)

    def add_custom_skills(self, skills: Mapping[str, Any] | Sequence[str]) -> None:
        """Teach skill detection further skills; see `SkillDetector.add_custom_skills`."""
        self._skills.add_custom_skills(skills)
        self._accuracy = None
        for generator in self._generators.values():
            generator.clear_cache()

    def metrics(self) -> MonitoringMetrics:
        """Counts of the adapters asked for so far, and how well skills are detected.

        The accuracy is measured once, on the prompts of `shoal.text_to_lora.skill_check`, which takes about a
        second; again where custom skills were taught since.
        """
        if self._accuracy is None:
            self._accuracy = detection_accuracy(
                lambda texts: [found.skills for found in self._skills.detect_many(texts)]
            )
        return self._requests.metrics(self._accuracy)

    def prometheus_metrics(self) -> str:
        """`metrics` in Prometheus' text format, for a scraper to read; errors as `to_prometheus`."""
        return self.metrics().to_prometheus()


def _info(adapter: GeneratedAdapter) -> dict[str, Any]:
    tensors = {}
    for name, factors in adapter.lora.factors.items():
        tensors[f"{name}.lora_A.weight"] = factors.a
        tensors[f"{name}.lora_B.weight"] = factors.b
    return {
        "prompt": adapter.description,
        "detected_skills": list(adapter.skills.skills),
        "skill_weights": [adapter.skills.weights[skill] for skill in adapter.skills.skills],
        "adapters": tensors,
        "notes": list(adapter.notes),
        "label_set": adapter.label_set.model_dump(mode="json") if adapter.label_set else None,
        "hypernetwork": adapter.hypernetwork,
    }


@dataclass(frozen=True)
class MonitoringMetrics:
    """Metrics that an operator watches.

    Attributes:
        total_requests: requests so far.
        successful_requests: those that ended without an error.
        avg_response_time: mean over all requests, in seconds; None before the first.
        avg_memory_usage: mean of what the process held when each ended, in bytes; None before the first.
        skill_detection_accuracy: share of the labelled prompts whose skills are exactly right, in [0, 1].
    """

    total_requests: int
    successful_requests: int
    avg_response_time: float | None
    avg_memory_usage: float | None
    skill_detection_accuracy: float

    def __str__(self) -> str:
        """A line for each number that is known, with its unit."""
        lines = []
        for name, (_, unit) in _METRICS.items():
            value = getattr(self, name)
            if value is not None:
                shown = f"{value:.0f}" if unit == "bytes" else f"{value:.4g}"
                lines.append(f"{name}: {shown} {unit}".rstrip())
        return "\n".join(lines)

    def to_prometheus(self, prefix: str = "shoal") -> str:
        """The same in Prometheus' text format; what is not known yet is left out.

        Raises:
            ShoalError: prometheus-client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Gauge, generate_latest
        except ImportError as error:
            raise ShoalError(
                f"metrics for Prometheus need {error.name}, which is not installed; "
                "pip install 'shoal[monitoring]'"
            ) from None
        registry = CollectorRegistry()
        for name, metric in _METRICS.items():
            value = getattr(self, name)
            if value is not None:  # gauges all: a counter's name would have to end otherwise
                Gauge(f"{prefix}_{name}", metric.help, registry=registry).set(value)
        return generate_latest(registry).decode()


class RequestLog:
    """Counts requests; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._successful = 0
        self._seconds = self._bytes = 0.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count what happens inside as one request, successful unless it raises."""
        started, failed = time.perf_counter(), True
        try:
            yield
            failed = False
        finally:
            self.add(time.perf_counter() - started, successful=not failed)

    def add(self, seconds: float, *, successful: bool) -> None:
        """Count a request that has ended after so many seconds."""
        held = resident()
        with self._lock:
            self._total += 1
            self._successful += successful
            self._seconds += seconds
            self._bytes += held

    def metrics(self, skill_detection_accuracy: float) -> MonitoringMetrics:
        """The counts so far, with an accuracy that was measured elsewhere."""
        with self._lock:
            total = self._total
            return MonitoringMetrics(
                total_requests=total,
                successful_requests=self._successful,
                avg_response_time=self._seconds / total if total else None,
                avg_memory_usage=self._bytes / total if total else None,
                skill_detection_accuracy=skill_detection_accuracy,
            )
