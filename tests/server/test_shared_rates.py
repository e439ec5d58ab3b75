"""What several services of one database share: rates and skills; and what stops a service from opening."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, make_url, select, text

from shoal.config import ServiceConfig
from shoal.errors import ConflictError, ShoalError
from shoal.models import backbone
from shoal.registry.database import Database
from shoal.registry.registry import Registry
from shoal.registry.schema import RATES
from shoal.server.errors import Failure
from shoal.server.rate_limits import RateLimits
from shoal.server.schemas import CustomSkill
from shoal.server.service import open_service
from shoal.server.shared_rates import SharedRates
from shoal.server.skills import OwnerSkills
from shoal.text_to_lora.skills import SkillDetector


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    server, name = make_url(request.getfixturevalue("postgresql")), f"s{time.time_ns()}"
    engine = create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def two(url: str) -> Iterator[tuple[Database, Database]]:
    one, other = Database(url), Database(url)
    yield one, other
    one.close()
    other.close()


def test_two_services_count_together(two: tuple[Database, Database]) -> None:
    now = [6000.0]
    one, other = (SharedRates(database, lambda: now[0]) for database in two)
    for rates in (one, other, one):
        assert rates.hit("requests", "ada", 1, 3) is None
    assert one.hit("requests", "ada", 1, 3) == 60 and other.hit("requests", "ada", 1, 3) == 60
    assert other.hit("requests", "eve", 1, 3) is None and other.hit("tokens", "ada", 100, 100) is None
    now[0] = 6070.0  # ten seconds into the next minute: five sixths of the last one still count
    assert other.hit("requests", "ada", 1, 3) == 50
    now[0] = 6101.0
    assert other.hit("requests", "ada", 2, 3) is None
    now[0] = 6300.0
    assert one.hit("requests", "ada", 1, 3) is None
    with two[0].reading() as connection:
        mine = select(func.count()).where(RATES.c.owner == "ada", RATES.c.what == "requests")
        assert connection.execute(mine).scalar() == 1  # what no window needs is gone


def test_nothing_is_counted_twice_or_lost_in_a_crowd(two: tuple[Database, Database]) -> None:
    counted: list[int | None] = []

    def ask(database: Database) -> None:
        rates = SharedRates(database, lambda: 6000.0)
        for _ in range(20):
            counted.append(rates.hit("requests", "ada", 1, 50))

    threads = [threading.Thread(target=ask, args=(database,)) for database in (*two, *two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 80 and counted.count(None) == 50


def test_shared_limits_answer_as_others_do(two: tuple[Database, Database]) -> None:
    limits = [RateLimits(ServiceConfig(requests_per_minute=2), SharedRates(database)) for database in two]
    for one in limits:
        with one.request("ada"):
            pass
    with pytest.raises(Failure) as refused, limits[0].request("ada"):
        pass
    assert refused.value.status == 429 and 1 <= (refused.value.retry_after or 0) <= 60


def test_a_skill_taught_to_one_service_is_known_to_the_other(two: tuple[Database, Database]) -> None:
    shared = SkillDetector()
    one, other = (OwnerSkills(shared, database, 2) for database in two)
    one.add(CustomSkill(name="wine", keywords=["riesling"]), "ada")
    assert "wine" in other.names("ada") and "wine" not in other.names("eve")
    found = other.own("Is a riesling dry?", "ada")
    assert found is not None and "wine" in found.skills and other.own("riesling", "eve") is None
    other.add(CustomSkill(name="wine", keywords=["port"]), "ada")  # replaced
    own = one.own("A glass of port", "ada")
    assert own is not None and "wine" in own.skills
    other.add(CustomSkill(name="tea", keywords=["oolong"]), "ada")
    with pytest.raises(ConflictError, match="ada has 2 custom skills, the limit is 2"):
        one.add(CustomSkill(name="beer", keywords=["stout"]), "ada")


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "free_memory", lambda device: 1000)
    monkeypatch.setattr(backbone, "_read", None)  # nothing is read
    registry = Registry(tmp_path / "r")
    with pytest.raises(ShoalError, match=r"needs 0\.0 GiB for its weights in \w+, 0\.0 GiB are free on cpu"):
        open_service(registry, str(tiny_llama))
    registry.close()
