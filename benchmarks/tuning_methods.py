"""Samplers, warm starts and confirmation compared on the table of `benchmarks/tuning_table.py`.

    python benchmarks/tuning_methods.py [--table FILE] [--repetitions 100] [--baselines 10] [--studies 200]

Prints how soon TPE with the defaults and the nearest tasks' settings is as good as random search after 24
trials; the regret of the defaults, the nearest task's settings, five rates, random search with as many and
with twice as many trials, a quasi-random sequence and TPE; how many of so many studies recommend anything
where settings differ by noise alone; and what is confirmed there beside what the search's best value
promises. The first two need the whole table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import optuna
from _machine import ROOT

from shoal.tasks.metrics import bootstrap_interval
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.tuning.nearest import nearest_settings, read_table
from shoal.tuning.table import baselines, compare, noise_verdicts, spread_over_seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=ROOT / "shoal" / "tuning" / "table.json")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument(
        "--baselines", type=int, default=10, help="repetitions of the ways to tune at their end"
    )
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--trials", type=int, default=24)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = json.loads(args.table.read_text("utf-8"))
    print(f"table: {len(record['cells'])} cells of {len(record['descriptions'])} tasks")
    encoder, tasks = TaskEncoder(), read_table(args.table)
    first = {
        task.name: nearest_settings(task.description, encoder, [t for t in tasks if t.name != task.name])
        for task in tasks
    }
    found = compare(record, first, args.repetitions, args.trials)
    share = found.share
    print(
        f"random search, {args.trials} trials: regret {found.regret:.4f} after {found.steps:.0f} steps; "
        f"TPE with warm starts is there after {share.mean:.0%} ({share.low:.0%} to {share.high:.0%}) of them"
    )
    print(f"spread of the defaults over seeds: {spread_over_seeds(record):.4f}; regret, nats per token, of")
    for name, regret in baselines(record, first, args.baselines, args.trials).items():
        print(f"  {name}: {regret.mean:.4f} ({regret.low:.4f} to {regret.high:.4f})")
    verdicts = noise_verdicts(record, args.studies, 8)
    alarms = sum(verdict.recommended is not None for verdict in verdicts)
    print(f"noise alone: {alarms} of {args.studies} studies recommend something")
    confirmed = bootstrap_interval([c.gain.mean for v in verdicts for c in v.candidates])
    promised = fmean(
        v.defaults_selection_loss - min(c.selection_loss for c in v.candidates)
        for v in verdicts
        if v.candidates and v.defaults_selection_loss is not None
    )
    print(
        f"true gain 0; confirmed {confirmed.mean:+.4f} ({confirmed.low:+.4f} to {confirmed.high:+.4f}), "
        f"promised by the best value {promised:+.4f}"
    )


if __name__ == "__main__":
    main()
