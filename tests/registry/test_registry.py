"""The registry keeps what it acknowledged, shows owners their own, and leaves nothing half behind."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
import torch
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import WEIGHTS_FILE
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import ConflictError, NotFoundError, ShoalError, UnavailableError, UsageError
from shoal.models.shapes import BackboneShape, load_shape
from shoal.registry.api_keys import ApiKeys
from shoal.registry.database import Database
from shoal.registry.quotas import Quota
from shoal.registry.records import AdapterRecord
from shoal.registry.registry import Registry
from shoal.registry.schema import METADATA, MOST, SKILLS, check_row

CARD = AdapterCard(generator="test", trained=True, description="Plurals.", scores={"exact match": 0.5})


@pytest.fixture(scope="module")
def shape(tiny_llama: Path) -> BackboneShape:
    return load_shape(str(tiny_llama))


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    url = None
    if request.param == "postgresql":
        url = fresh_database(request.getfixturevalue("postgresql"), f"d{time.time_ns()}")
    registry = Registry(tmp_path / "registry", url, reserved=["smollm2-135m-instruct"])
    yield registry
    registry.close()


def fresh_database(url: str, name: str) -> str:
    engine = sqlalchemy.create_engine(
        sqlalchemy.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")


def lora_of(shape: BackboneShape, value: float = 1.0, rank: int = 4) -> LoRA:
    targets = shape.select(("q_proj", "v_proj"), 2)
    return LoRA(
        {
            t.name: LoraFactors(
                torch.full((rank, t.in_features), value), torch.full((t.out_features, rank), 0.1)
            )
            for t in targets
        },
        8.0,
    )


def add(
    registry: Registry, shape: BackboneShape, name: str, value: float = 1.0, **more: object
) -> AdapterRecord:
    options = {"card": CARD, "owner": "ada", **more}
    return registry.add(name, lora_of(shape, value), shape=shape, **options)


def files(registry: Registry) -> list[str]:
    return sorted(p.name for p in (registry.root / "objects").glob("*/*")) + [
        p.name for p in (registry.root / "incoming").iterdir()
    ]


def test_what_is_added_comes_back(registry: Registry, shape: BackboneShape) -> None:
    record = add(registry, shape, "plural", 2.0)
    assert (record.version, record.owner, record.public, record.rank) == (1, "ada", False, 4)
    assert record.base == shape.base_model and record.card == CARD
    assert registry.get("plural", "ada") == record
    stored = registry.load(record)
    assert stored.lora == lora_of(shape, 2.0) and stored.card == CARD
    lines = subprocess.run(
        "sha256sum *", shell=True, cwd=registry.directory(record), capture_output=True
    ).stdout
    whole = subprocess.run(["sha256sum"], input=lines, capture_output=True).stdout.decode()
    assert whole.split()[0] == record.sha256
    assert record.bytes == sum(p.stat().st_size for p in registry.directory(record).iterdir())


def test_a_name_gets_versions_and_loses_them_together(registry: Registry, shape: BackboneShape) -> None:
    first, second = add(registry, shape, "plural", 1.0), add(registry, shape, "plural", 2.0)
    assert (first.version, second.version) == (1, 2)
    assert registry.get("plural", "ada") == second and registry.get("plural", "ada", 1) == first
    assert [r.version for r in registry.page("ada").records] == [2]
    registry.delete("plural", "ada")
    assert files(registry) == [] and registry.count("ada") == 0
    with pytest.raises(NotFoundError, match="there is no adapter 'plural' of version 2; list"):
        registry.load(second)


def test_owners_see_their_own_and_public_ones(registry: Registry, shape: BackboneShape) -> None:
    add(registry, shape, "mine")
    add(registry, shape, "ours", public=True)
    assert [r.name for r in registry.page("eve").records] == ["ours"]
    assert [r.name for r in registry.page("ada").records] == ["mine", "ours"]
    assert [r.name for r in registry.page(None).records] == ["mine", "ours"]
    with pytest.raises(NotFoundError):
        registry.get("mine", "eve")
    for act in (lambda: registry.delete("ours", "eve"), lambda: registry.publish("ours", "eve", False)):
        with pytest.raises(ConflictError, match="only its owner may change it"):
            act()
    with pytest.raises(ConflictError, match="'mine' is taken; choose another"):
        add(registry, shape, "mine", owner="eve")
    assert registry.publish("mine", "ada", True).public
    assert registry.get("mine", "eve").owner == "ada"


def test_pages_go_by_name(registry: Registry, shape: BackboneShape) -> None:
    names = sorted(["a", "a-b", "a.b", "a_b", "ab", "b", "9"])
    for name in names:
        add(
            registry, shape, name, card=AdapterCard(generator="t", trained=True, description=f"About {name}_")
        )
    assert len(files(registry)) == len(names)
    found, after = [], ""
    while True:
        page = registry.page("ada", after=after, limit=3)
        found += [r.name for r in page.records]
        if page.after is None:
            break
        after = page.after
    assert found == names
    assert [r.name for r in registry.page("ada", search="ABOUT A_B_").records] == ["a_b"]
    for limit in (0, 201):
        with pytest.raises(UsageError, match=r"outside 1\.\.200"):
            registry.page("ada", limit=limit)


def test_the_same_content_is_kept_once(registry: Registry, shape: BackboneShape) -> None:
    one, two = add(registry, shape, "one"), add(registry, shape, "two")
    assert one.sha256 == two.sha256 and len(files(registry)) == 1
    registry.delete("one", "ada")
    assert registry.load(two).lora == lora_of(shape)
    registry.delete("two", "ada")
    assert files(registry) == []


def test_limits_and_reserved_names(registry: Registry, shape: BackboneShape) -> None:
    add(registry, shape, "a", quota=Quota(1, 10**9))
    with pytest.raises(ConflictError, match="ada has 1 adapters, the limit is 1; delete some"):
        add(registry, shape, "b", quota=Quota(1, 10**9))
    for name, message in (("smollm2-135m-instruct", "is a model's own"), ("../a", "is no adapter name")):
        with pytest.raises(UsageError, match=message):
            add(registry, shape, name)
    registry.reserve(["gpt2"])
    with pytest.raises(UsageError, match="the name 'gpt2' is a model's own"):
        add(registry, shape, "gpt2")
    with pytest.raises(UsageError, match="the name 'tiny' is a model's own"):
        add(registry, replace(shape, base_model="tiny"), "tiny")
    assert len(files(registry)) == 1


def test_a_deleted_name_stays_its_owners_until_the_operator_frees_it(
    registry: Registry, shape: BackboneShape
) -> None:
    for viewer in ("ada", None):
        add(registry, shape, "mine", owner="ada")
        registry.delete("mine", viewer)
        if viewer:
            with pytest.raises(ConflictError, match="'mine' is taken; choose another"):
                add(registry, shape, "mine", owner="eve")
    assert add(registry, shape, "mine", owner="eve").owner == "eve"


def test_an_owners_bytes_and_names_are_limited(registry: Registry, shape: BackboneShape) -> None:
    size = add(registry, shape, "a").bytes
    with pytest.raises(ConflictError, match=f"have {size} bytes, with this one more than"):
        add(registry, shape, "b", 2.0, quota=Quota(9, 2 * size - 1))
    for number in range(9):
        add(registry, shape, f"n{number}")
        registry.delete(f"n{number}", "ada")
    registry.delete("a", "ada")
    with pytest.raises(ConflictError, match="has used 10 names"):
        add(registry, shape, "b", quota=Quota(1, 10**9))
    add(registry, shape, "a", quota=Quota(1, 10**9))  # one that they have


def test_quotas_hold_whatever_comes_at_once(registry: Registry, shape: BackboneShape) -> None:
    def add_one(number: int) -> bool:
        try:
            add(registry, shape, f"n{number}", quota=Quota(3, 10**9))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(add_one, range(12))) == 3


@pytest.mark.parametrize("name", [None, "b" * 513])
def test_a_text_that_is_too_long_is_not_kept(
    registry: Registry, shape: BackboneShape, name: str | None
) -> None:
    long = replace(shape, base_model=name) if name else shape
    with pytest.raises(UsageError, match="has 513 characters, the limit is|has 129 characters, the limit is"):
        registry.add("a", lora_of(shape), shape=long, card=CARD, owner="ada", revision="r" * 129)
    assert registry.count(None) == 0


def test_a_full_disk_can_be_cleared(small_disk: Path, shape: BackboneShape) -> None:
    registry = Registry(small_disk / "registry")
    record = add(registry, shape, "first")
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096) == 4096:
            pass
    with pytest.raises(ShoalError, match="full"):
        add(registry, shape, "second", 2.0)
    registry.delete("first", "ada")
    assert not registry.directory(record).exists() and registry.count("ada") == 0
    registry.close()


def test_threads_and_registries_number_versions_once(registry: Registry, shape: BackboneShape) -> None:
    other = Registry(registry.root, url_of(registry))
    with ThreadPoolExecutor(8) as pool:
        added = [pool.submit(add, (registry, other)[i % 2], shape, "plural", float(i + 1)) for i in range(16)]
        records = [f.result() for f in added]
    assert sorted(r.version for r in records) == list(range(1, 17))
    assert other.get("plural", "ada").version == 16
    other.delete("plural", "ada")
    assert registry.count(None) == 0 and files(registry) == []
    other.close()


def test_damaged_files_are_named_and_healed(registry: Registry, shape: BackboneShape) -> None:
    record = add(registry, shape, "plural")
    weights = registry.directory(record) / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ShoalError, match="are not those that were written"):
        registry.load(record)
    again = add(registry, shape, "plural")
    assert again.sha256 == record.sha256 and registry.load(again).lora == lora_of(shape)


def test_sweeping_removes_what_no_row_names(registry: Registry, shape: BackboneShape) -> None:
    record, lost = add(registry, shape, "kept"), add(registry, shape, "lost", 3.0)
    with registry.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM adapters WHERE name = 'lost'")
    (registry.root / "incoming" / "0123").mkdir()
    assert registry.sweep() == 1 and files(registry) == [record.sha256]
    assert not registry.directory(lost).exists()


def test_the_migrations_make_the_tables_of_the_schema(registry: Registry) -> None:
    with registry.database.writing() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def url_of(registry: Registry) -> str | None:
    """The URL of a registry's PostgreSQL; None for the SQLite file in its directory."""
    url = registry.database._engine.url
    return url.render_as_string(False) if "postgresql" in registry.database.shown else None


def test_a_database_of_the_first_version_keeps_its_rows(registry: Registry, shape: BackboneShape) -> None:
    records = [add(registry, shape, name, float(number + 1)) for number, name in enumerate(("one", "two"))]
    key = ApiKeys(registry.database).create("ada")
    with registry.database.writing() as connection:  # as v1 left it
        for statement in (
            "DROP TABLE names",
            "DROP TABLE rates",
            "DROP TABLE skills",
            "UPDATE alembic_version SET version_num='v1'",
        ):
            connection.exec_driver_sql(statement)
    newer = Registry(registry.root, url_of(registry))
    assert list(newer.page(None).records) == records and newer.load(records[1]).lora == lora_of(shape, 2.0)
    assert ApiKeys(newer.database).owner_of(key) == "ada"
    with pytest.raises(ConflictError, match="'one' is taken"):
        add(newer, shape, "one", owner="eve")
    with newer.database.writing() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == [] and context.get_current_revision() == "v3"
    newer.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_processes_that_open_a_fresh_database_at_once_make_its_tables_once(
    tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    url = f"sqlite:///{tmp_path / 'r.db'}"
    if database == "postgresql":
        url = fresh_database(request.getfixturevalue("postgresql"), "fresh")
    script = (
        "import sys\nfrom shoal.registry.database import Database\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "Database(sys.argv[1]).close()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script, url], **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 4
    opened = Database(url)
    with opened.writing() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").all() == [("v3",)]
    opened.close()


def test_a_fresh_database_waits_for_another_process_that_writes_it(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "r.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (a)")  # no write-ahead log yet
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.5, other.execute, ("COMMIT",))
    release.start()
    Database(f"sqlite:///{tmp_path / 'r.db'}").close()
    release.join()
    other.close()
    with sqlite3.connect(tmp_path / "r.db") as later:
        assert later.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    later.close()


def test_opening_a_database_again_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'r.db'}"
    first = Database(url)
    with first.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM adapters").all()
        Database(url).close()
        alone = (  # succeeds where no other process holds a lock on the file
            "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=0)\n"
            "c.execute('PRAGMA journal_mode=DELETE')"
        )
        taken = subprocess.run(
            [sys.executable, "-c", alone, tmp_path / "r.db"], capture_output=True, text=True
        )
    assert "database is locked" in taken.stderr
    first.close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path / 'r.db'}").close()
    with sqlite3.connect(tmp_path / "r.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v999'")
    connection.close()
    with pytest.raises(ShoalError, match="revision v999, this version knows v3; use a newer version"):
        Database(f"sqlite:///{tmp_path / 'r.db'}")


@pytest.mark.parametrize("url", ["mysql://a:secret@b/c", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_other_databases_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write sqlite:///path/of.db or postgresql://") as caught:
        Registry(tmp_path, url)
    assert "secret" not in str(caught.value)


def test_a_lost_database_is_unavailable(tmp_path: Path, shape: BackboneShape) -> None:
    registry = Registry(tmp_path / "r")
    add(registry, shape, "plural")
    for path in (tmp_path / "r").glob("registry.db*"):
        path.unlink()
    for act in (lambda: registry.get("plural", "ada"), lambda: add(registry, shape, "b")):
        with pytest.raises(UnavailableError, match="removed or replaced while in use"):
            act()
    registry.close()
    with pytest.raises(UnavailableError, match=r"postgresql\+psycopg://a:\*\*\*@.* cannot be used"):
        Registry(tmp_path / "s", f"postgresql://a:secret@/b?host={tmp_path}")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "registry.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UnavailableError, match="file is not a database"):
        Registry(tmp_path / "t")


def test_a_postgresql_connection_that_breaks_is_made_again(
    postgresql: str, tmp_path: Path, shape: BackboneShape
) -> None:
    registry = Registry(tmp_path, fresh_database(postgresql, "broken"))
    add(registry, shape, "plural")
    engine = sqlalchemy.create_engine(
        sqlalchemy.make_url(postgresql).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname='broken'"
        )
    engine.dispose()
    assert registry.get("plural", "ada").version == 1
    registry.close()


def test_a_full_disk_keeps_what_was_there(small_disk: Path, tmp_path: Path, shape: BackboneShape) -> None:
    registry = Registry(small_disk / "registry", f"sqlite:///{tmp_path / 'r.db'}")
    record = add(registry, shape, "kept")
    with pytest.raises(UnavailableError, match="the disk is full; free some space"):
        for number in range(200):
            add(registry, shape, f"a{number}", float(number + 2))
    assert registry.load(record).lora == lora_of(shape)
    for adapter in registry.page(None, limit=200).records:
        registry.load(adapter)
    assert not list((registry.root / "incoming").iterdir())
    registry.delete("a0", "ada")
    add(registry, shape, "again", 0.5)
    registry.close()


# Forks a writer for every line that it reads and says when it was killed: the imports take much longer.
ADD_AND_DELETE_UNTIL_KILLED = """
import itertools, os, sys, torch
from shoal.models.shapes import load_shape
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.card import AdapterCard
from shoal.registry.registry import Registry

shape = load_shape(sys.argv[1])
targets = shape.select(("q_proj",), None)

def write(run):
    registry = Registry(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    print(os.getpid(), flush=True)
    for number in itertools.count():
        a, b = number + 1.0, 0.5
        factors = {t.name: LoraFactors(torch.full((4, t.in_features), a), torch.full((t.out_features, 4), b))
                   for t in targets}
        lora = LoRA(factors, 8.0)
        name = f"{run}-{number}"
        registry.add(name, lora, shape=shape, card=AdapterCard(generator="t", trained=True), owner="ada")
        print("added", name, flush=True)
        if number % 3 == 2:
            print("deleting", f"{run}-{number - 1}", flush=True)
            registry.delete(f"{run}-{number - 1}", "ada")

for line in sys.stdin:
    if os.fork() == 0:
        write(line.strip())
    print("killed" if os.waitstatus_to_exitcode(os.wait()[1]) == -9 else "failed", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_killed_writers_lose_nothing_acknowledged(
    tiny_llama: Path, tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    url = ()
    if database == "postgresql":
        url = (fresh_database(request.getfixturevalue("postgresql"), "killed"),)
    chance = random.Random(0)
    added: set[str] = set()
    deleted: set[str] = set()
    command = [sys.executable, "-c", ADD_AND_DELETE_UNTIL_KILLED, tiny_llama, tmp_path / "r", *url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for run in range(12):
            print(f"run{run}", file=process.stdin, flush=True)
            writer = int(process.stdout.readline())
            wanted = chance.randint(0, 8)  # however slow the machine is
            said = [process.stdout.readline() for _ in range(wanted)]
            time.sleep(chance.uniform(0, 0.05))
            os.kill(writer, signal.SIGKILL)
            while (line := process.stdout.readline()) != "killed\n":
                said.append(line)
            for what, name in (line.split() for line in said):
                {"added": added, "deleting": deleted}[what].add(name)
    registry = Registry(tmp_path / "r", *url)
    records: list[AdapterRecord] = []
    after: str | None = ""
    while after is not None:
        page = registry.page(None, after=after, limit=200)
        records, after = records + list(page.records), page.after
    names = {r.name for r in records}
    assert added and not added - deleted - names, "an acknowledged adapter is lost"
    for record in records:
        registry.load(record)
    registry.sweep()
    assert files(registry) == sorted({r.sha256 for r in records})
    for name in added:  # whose owner was killed in whatever step
        with pytest.raises(ConflictError, match="is taken"):
            registry.check(name, "eve")
    registry.close()


def test_content_that_was_deleted_is_not_found_and_a_damaged_one_is_a_failure(
    registry: Registry, shape: BackboneShape
) -> None:
    kept, gone = add(registry, shape, "kept", 1.0), add(registry, shape, "gone", 2.0)
    registry.delete("gone", "ada")
    with pytest.raises(NotFoundError, match="was deleted meanwhile"):  # by one who looked it up before
        registry.read(gone.sha256)
    (registry.directory(kept) / WEIGHTS_FILE).unlink()
    with pytest.raises(ShoalError) as caught:
        registry.read(kept.sha256)
    assert not isinstance(caught.value, NotFoundError)


def test_characters_of_a_definition_are_counted_as_they_are_written() -> None:
    row = {"definition": {"examples": ["你" * (MOST["json"] - 100)]}}
    assert check_row(SKILLS, row) is row
    with pytest.raises(UsageError, match="definition has 65554 characters"):
        check_row(SKILLS, {"definition": {"examples": ["你" * MOST["json"]]}})
