"""Everything behind the routes, opened once and closed once: model, engine, registry, keys, limits, jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from shoal.config import EngineConfig, ServiceConfig
from shoal.errors import UnavailableError
from shoal.inference.engine.runner import Runner
from shoal.models.backbone import Backbone
from shoal.models.sources import DEFAULT_HUB_ID, DEFAULT_MODEL
from shoal.process import give_back
from shoal.registry.api_keys import ANYONE, ApiKeys
from shoal.registry.registry import Registry
from shoal.server.adapter_selection import AdapterSelector
from shoal.server.adapters import Adapters
from shoal.server.completions import Completions
from shoal.server.engines import load_served, open_engine
from shoal.server.jobs import Jobs
from shoal.server.libraries import Libraries
from shoal.server.metrics import Monitoring
from shoal.server.pools import Pools
from shoal.server.rate_limits import RateLimits
from shoal.server.shared_rates import SharedRates
from shoal.server.skills import OwnerSkills
from shoal.server.studies import Studies
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.skill_check import detection_accuracy
from shoal.text_to_lora.skills import SkillDetector
from shoal.transformer2.experts import ExpertSet

log = logging.getLogger(__name__)

GIVE_BACK_SECONDS = 10.0  # between two times that free memory is given back


@dataclass(frozen=True)
class Service:
    """The parts that routes call.

    Attributes:
        base_names: hub id or path of the base model first, then its other names.
        open: whether no key is needed; everybody is then `ANYONE`.
        pools: threads for blocking work.
        closers: of its parts: the last opened is closed first.
    """

    config: ServiceConfig
    registry: Registry
    keys: ApiKeys
    base_names: Sequence[str]
    open: bool
    pools: Pools
    runner: Runner
    monitoring: Monitoring
    limits: RateLimits
    skills: OwnerSkills
    adapters: Adapters
    selector: AdapterSelector
    completions: Completions
    jobs: Jobs
    libraries: Libraries
    studies: Studies
    closers: ExitStack = field(repr=False)

    def close(self) -> None:
        """End trainings, jobs, answers and connections; a part that fails to end keeps none open."""
        self.closers.close()

    def end_answers(self) -> None:
        """End every answer that is being generated, and every adapter, with an error that says so."""
        self.adapters.close()
        self.runner.close()

    def ready(self) -> None:
        """Do nothing, or raise what keeps requests from being answered."""
        self.registry.count(ANYONE)
        self.runner.ready()


def open_service(
    registry: Registry,
    base: str = DEFAULT_MODEL,
    config: ServiceConfig | None = None,
    *,
    engine: EngineConfig | None = None,
    open: bool = False,
    backbone: Backbone | None = None,
    experts: ExpertSet | None = None,
) -> Service:
    """Load the model and start what the routes need.

    Args:
        registry: of adapters, keys and jobs; closed with the service, or where that cannot be opened.
        base: alias, directory or hub id of the base model.
        config: limits.
        engine: what answers; by default an engine here.
        open: take requests without a key.
        backbone: the base model, if it is loaded already; not for vLLM, which has its own.
        experts: for `adapter: "auto"`; by default those that ship for this model, if any do.

    Raises:
        UsageError: no such model.
        ShoalError: it is damaged or does not fit the memory, or the registry cannot be used.
    """
    config = config or ServiceConfig()
    with ExitStack() as closers:  # closes what was opened where the rest cannot be
        closers.callback(registry.close)
        pools = Pools(config.max_open)
        closers.callback(pools.close)
        _sweep(registry)
        wanted = engine or EngineConfig()
        backbone = backbone or load_served(base, wanted)
        # Before the engine attaches anything: the generator takes modules of its own over the same weights.
        generator = TextToLoRA(backbone=backbone) if backbone else TextToLoRA(base)
        detector = SkillDetector(generator.encoder)
        skills = OwnerSkills(detector, registry.database, config.max_custom_skills)
        monitoring = Monitoring(lambda: runner.state(), lambda: _accuracy(detector))
        observe = monitoring.observe
        opened = open_engine(registry, base, wanted, config, observe, backbone=backbone, experts=experts)
        closers.callback(opened.close)
        runner, shape = opened.runner, opened.backbone.shape
        limits = RateLimits(config, SharedRates(registry.database) if config.shared else None)
        alias = (DEFAULT_MODEL,) if shape.base_model == DEFAULT_HUB_ID else ()
        names = (shape.base_model, *alias)
        registry.reserve(names)
        jobs = Jobs(registry, shape, base, config)
        closers.callback(jobs.close)
        adapters = Adapters(registry, generator, skills, monitoring, opened.discard, config)
        closers.callback(adapters.close)
        libraries = Libraries(registry, jobs, shape.base_model, base, generator)
        selector = AdapterSelector(
            registry, names, adapters, opened.experts, runner.run, config.max_mix, libraries, opened.backbone
        )
        completions = Completions(
            opened.backbone, runner, selector, limits, generator.label_similarity, config
        )
        closers.callback(_give_back_until_closed().set)
        log.info("serving %s from %s", shape.base_model, registry.database.shown)
        return Service(
            config=config,
            registry=registry,
            keys=ApiKeys(registry.database),
            base_names=names,
            open=open,
            pools=pools,
            runner=runner,
            monitoring=monitoring,
            limits=limits,
            skills=skills,
            adapters=adapters,
            selector=selector,
            completions=completions,
            jobs=jobs,
            libraries=libraries,
            studies=Studies(registry, jobs, shape, base, config),
            closers=closers.pop_all(),
        )


def _accuracy(detector: SkillDetector) -> float:
    return detection_accuracy(lambda texts: [found.skills for found in detector.detect_many(texts)])


def _sweep(registry: Registry) -> None:
    """Remove what a killed service left."""
    try:
        registry.sweep()
    except UnavailableError as error:  # others are writing: they are alive, and sweep when they start
        log.info("not swept: %s", error)


def _give_back_until_closed() -> threading.Event:
    """Give free memory back to the system from time to time, until the event is set."""
    closing = threading.Event()

    def work() -> None:
        while not closing.wait(GIVE_BACK_SECONDS) and give_back():
            pass

    threading.Thread(target=work, name="shoal-memory", daemon=True).start()
    return closing
