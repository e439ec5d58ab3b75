"""What 10,000 adapters cost the registry: a page, a name, and memory over an empty registry.

    python benchmarks/registry.py --adapters 10000

The files are those of one small adapter, kept once; what is measured is the database, through the same calls
as the service's. `--database` names a PostgreSQL instead of the SQLite file.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _machine import machine
from sqlalchemy import insert

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA
from shoal.models.shapes import load_shape
from shoal.process import resident
from shoal.registry.registry import Registry
from shoal.registry.schema import ADAPTERS

LOOKS = 1000
READ = """
import sys
from shoal.process import resident
from shoal.registry.registry import Registry
registry = Registry(sys.argv[1], *sys.argv[2:])
after = ""
while after is not None:
    page = registry.page(None, after=after, limit=200)
    for record in page.records[:5]:
        registry.get(record.name, None)
    after = page.after
print(resident())
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--database", help="URL of a PostgreSQL database, by default SQLite")
    arguments = parser.parse_args()
    url = (arguments.database,) if arguments.database else ()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        empty = read_all(root / "empty")
        registry = Registry(root / "full", *url)
        fill(registry, arguments.adapters)
        names = [f"adapter-{i:06}" for i in range(arguments.adapters)]
        chance = random.Random(0)
        rows = {
            "list a page of 50": p95(lambda: registry.page("owner-1", after=chance.choice(names), limit=50)),
            "look up by name": p95(lambda: registry.get(chance.choice(names), None)),
            "search in names and descriptions": p95(
                lambda: registry.page(None, search="number 99", limit=50), 20
            ),
        }
        registry.close()
        more = read_all(root / "full", *url) - empty
    print(f"{machine()}; {arguments.adapters:,} adapters, {'PostgreSQL' if url else 'SQLite'}\n")
    print("| what | p50 | p95 |\n|---|---:|---:|")
    for what, (middle, high) in rows.items():
        print(f"| {what} | {middle:.2f} ms | {high:.2f} ms |")
    print(f"\nmemory of a process that read all of them, over an empty registry: {more / 2**20:.1f} MB")
    print(f"this process: {resident() / 2**20:.0f} MB")


def fill(registry: Registry, number: int) -> None:
    shape = load_shape()
    lora = LoRA.identity(shape.select(("q_proj",), 1), 4, 8.0, generator=torch.Generator().manual_seed(0))
    card = AdapterCard(generator="text-to-lora", trained=True, description="An adapter, number 0.")
    registry.add("first", lora, shape=shape, card=card, owner="owner-0", public=True)
    with registry.database.writing() as connection:
        row = dict(connection.execute(ADAPTERS.select()).mappings().one())
        rows = [
            {
                **row,
                "name": f"adapter-{i:06}",
                "owner": f"owner-{i % 10}",
                "public": i % 2 == 0,
                "description": f"Decide what the text of number {i} is about, and answer with one label.",
            }
            for i in range(number)
        ]
        connection.execute(insert(ADAPTERS), rows)


def p95(act: Callable[[], object], times: int = LOOKS) -> tuple[float, float]:
    """(median, 95th percentile) in ms."""
    act()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3, statistics.quantiles(seconds, n=20)[-1] * 1e3


def read_all(root: Path, *url: str) -> int:
    """Bytes in memory of a process that listed every adapter and looked some up."""
    command = [sys.executable, "-c", READ, str(root), *url]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)


if __name__ == "__main__":
    main()
