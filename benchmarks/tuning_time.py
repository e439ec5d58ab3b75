"""Time of a trial inside a study, beside a command of its own and beside Optuna with PEFT and the Trainer.

    python benchmarks/tuning_time.py [--trials 8] [--commands 3] [--steps 16]

The same settings are trained in turns, for the same number of steps: as a trial of a study, whose model,
tokenised examples and frozen layers' states are shared; by `shoal train lora` as a command of its own; and by
Optuna with transformers' Trainer and PEFT, as its users do: the model is loaded anew in every trial, as
`model_init` of `hyperparameter_search` does, on examples that were tokenised once, with one evaluation at the
end. A trial of the study takes losses of the same examples four times. All is counted: checkpoints, losses,
Optuna; what a study does once, loading and tokenising, is added where whole studies are compared. Seconds are
of the wall, and of the processor, which other work on the machine changes less.

With `--packed N` nothing else is timed than steps of N trials of equal modules one by one, beside the same
steps in one forward and backward pass, as rows of one batch that have an adapter each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import fmean
from typing import Any

import optuna
import torch
from _machine import DATA, ROOT, machine, table
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.config import DEFAULT_MODEL, LoraTrainingConfig, TextToLoRAConfig
from shoal.models.backbone import Backbone, load_backbone
from shoal.models.sources import find_model
from shoal.tasks.loading import Task, load_task_directory
from shoal.training.batches import BatchOrder, TokenisedExample, tokenise
from shoal.training.lora import TrainableLora, set_for_training
from shoal.training.prefix_cache import PrefixCache
from shoal.tuning.lora import LoraWorkload
from shoal.tuning.plan import StudyPlan
from shoal.tuning.search_space import read_space
from shoal.tuning.spaces import MODELS, default_space
from shoal.tuning.storage import default_url, open_storage
from shoal.tuning.study import Study

EXAMPLES, BATCH = 160, 8
COMMAND_TARGETS = {8: 0.6, None: 0.75}  # by layers: a trial's time over the command's, at most
HEAD = ["seconds of the wall (of the processor)", "in the study", "otherwise", "ratio", "wanted"]
PEER_TARGET, OVERHEAD_TARGET = 3.0, 0.02


@dataclass
class Times:
    """Seconds of the wall and of the processor, of every time that something was done."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the time of a block."""
        started, before = time.perf_counter(), _processor()
        yield
        self.wall.append(time.perf_counter() - started)
        self.processor.append(_processor() - before)

    def over(self, other: Times) -> str:
        """Mean of this over the mean of the other: of the wall, and of the processor."""
        ratios = [a / b for a, b in zip(self.means(), other.means(), strict=True)]
        return f"{ratios[0]:.2f} ({ratios[1]:.2f})"

    def means(self) -> tuple[float, float]:
        """Mean seconds of the wall, and of the processor."""
        return fmean(self.wall), fmean(self.processor)

    def whole(self, *once: Times) -> Times:
        """The sum of all of these and of what was done once, as one time."""
        parts = [self, *once]
        return Times([sum(sum(p.wall) for p in parts)], [sum(sum(p.processor) for p in parts)])

    def __str__(self) -> str:
        wall, processor = self.means()
        return f"{wall:.1f} ({processor:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--task", default="math_sort_ascending")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--commands", type=int, default=3, help="of the trials, also made as a command")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--packed", type=int, default=0, help="trials that share a pass; only this is timed")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (whole,) = load_task_directory(args.data / "tasks", [args.task])
    task = replace(whole, train=whole.train[:EXAMPLES], test=())
    loading = Times()
    with loading.taken():
        backbone = load_backbone()
    print(f"{machine(backbone.dtype)}; load average {os.getloadavg()[0]:.1f}; model loaded in {loading} s")
    if args.packed:
        print(packed(backbone, task, args.packed, args.steps))
        return
    rows = []
    for layers, most in COMMAND_TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            compared = Compared(backbone, task, layers, args.steps, Path(folder), loading)
            count = args.trials if layers else args.commands
            for number in range(count):
                compared.turn(number, command=number < args.commands, peer=layers is not None)
                print(
                    f"{compared.name}, turn {number + 1}: load average {os.getloadavg()[0]:.1f}", flush=True
                )
            rows += compared.rows(most)
            print(table(HEAD, rows), flush=True)


def packed(backbone: Backbone, task: Task, count: int, steps: int) -> str:
    """Steps of so many trials one by one, and in one pass, in turns."""
    corpus = tokenise([task], backbone, LoraTrainingConfig().max_length)
    rows = []
    for layers in COMMAND_TARGETS:
        targets = backbone.shape.select(TextToLoRAConfig().target_modules, layers)
        config, prefix = (
            LoraTrainingConfig(batch_size=BATCH),
            PrefixCache(backbone, min(t.layer for t in targets)),
        )
        own = [
            TrainableLora(
                LoRA.identity(targets, 16, 32.0, generator=torch.Generator().manual_seed(seed)),
                backbone.device,
            )
            for seed in range(count)
        ]
        order = BatchOrder(corpus, BATCH, 0)
        alone, together = Times(), Times()
        for step in range(steps + 1):
            if step == 1:  # the first one filled the cache
                alone, together = Times(), Times()
            examples = order.batch(step % 2)
            with set_for_training(backbone), alone.taken():
                for lora in own:
                    prefix.answer_losses(examples, lora.current(), config)[0].mean().backward()
            with set_for_training(backbone), together.taken():
                rows_of = _stacked([lora.current() for lora in own], len(examples))
                losses, _ = prefix.answer_losses(examples * count, rows_of, config)
                losses.reshape(count, -1).mean(1).sum().backward()
        name = f"last {layers} layers" if layers else "all layers"
        rows.append(
            [f"{name}: a step of {count} trials", str(together), str(alone), together.over(alone), "< 1"]
        )
    return table([HEAD[0], "packed", "one by one", "ratio", "wanted"], rows)


def _stacked(loras: Sequence[LoRA], times: int) -> BatchedLoRA:
    """Each adapter for so many rows of a batch."""
    factors = {}
    for name in loras[0].factors:
        pairs = zip(*((lora.factors[name].a, lora.factors[name].b) for lora in loras), strict=True)
        factors[name] = LoraFactors(*(torch.stack(part).repeat_interleave(times, 0) for part in pairs))
    return BatchedLoRA(factors, loras[0].alpha)


class Compared:
    """Ways to train the same settings, in turns."""

    def __init__(
        self, backbone: Backbone, task: Task, layers: int | None, steps: int, folder: Path, loading: Times
    ) -> None:
        self.name = f"last {layers} layers" if layers else "all layers"
        self._backbone, self._task, self._layers, self._folder = backbone, task, layers, folder
        self._training = LoraTrainingConfig(steps=steps, batch_size=BATCH)
        sizes = TextToLoRAConfig(num_layers_to_adapt=layers)
        self._loading = loading
        self.setting_up, self.trials, self.commands, self.peers = Times(), Times(), Times(), Times()
        with self.setting_up.taken():
            self._workload = LoraWorkload(backbone, task, self._training, sizes)
            space = read_space(default_space("lora", steps, {"steps": steps}), MODELS["lora"])
            plan = StudyPlan("time", "random", "none", trials=0)
            self._study = Study(
                self._workload, space, plan, open_storage(default_url(folder)), folder / "study", "code"
            )
        file = folder / "examples.jsonl"
        rows = [json.dumps({"input": e.input, "output": e.outputs[0]}) for e in task.train]
        file.write_text("\n".join(rows), encoding="utf-8")
        self._file = file
        self._peer = optuna.create_study(storage=f"sqlite:///{folder / 'peer.db'}")
        self._beside = 0.0

    def turn(self, number: int, *, command: bool, peer: bool) -> None:
        """One more trial, and the same settings in the other ways."""
        self._study.plan = replace(self._study.plan, trials=number + 1)
        before = self._study.runs.clock()
        with self.trials.taken():
            self._study.search()
        self._beside += self._study.runs.clock() - before
        settings = self._study.optuna.trials[number].user_attrs["settings"]
        if command:
            with self.commands.taken():
                self._command(settings, number)
        if peer:
            with self.peers.taken():
                self._peer.optimize(lambda trial: self._trained_by_peft(trial, settings), n_trials=1)

    def rows(self, most: float) -> list[list[str]]:
        """Lines of the table."""
        found = [
            [f"{self.name}: `shoal train lora`, {len(self.commands.wall)} times", str(self.trials)]
            + [str(self.commands), self.trials.over(self.commands), f"<= {most:g}"]
        ]
        if self.peers.wall:
            ours, theirs = self.trials.whole(self._loading, self.setting_up), self.peers.whole()
            found.append(
                [f"{self.name}: Optuna, Trainer and PEFT, all {len(self.peers.wall)} settings", str(ours)]
                + [str(theirs), theirs.over(ours), f">= {PEER_TARGET:g}"]
            )
        share = self._beside / sum(self.trials.wall)
        own = f"{self._beside:.2f} of {sum(self.trials.wall):.1f}"
        return [
            *found,
            [f"{self.name}: the tuner itself", own, "", f"{share:.1%}", f"<= {OVERHEAD_TARGET:.0%}"],
        ]

    def _command(self, settings: dict[str, Any], number: int) -> None:
        names = ("learning_rate", "adapter_rank", "adapter_alpha", "target_modules", "num_layers_to_adapt")
        config = self._folder / f"{number}.json"
        own = {"steps": self._training.steps, "batch_size": BATCH, "test_size": 0}
        config.write_text(json.dumps({**own, **{name: settings[name] for name in names}}))
        words = [sys.executable, "-m", "shoal", "train", "lora", "--config", str(config)]
        words += ["--tasks", str(self._file), "--definition", self._task.descriptions[0]]
        words += ["--out", str(self._folder / f"adapter{number}")]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)

    def _trained_by_peft(self, trial: optuna.Trial, settings: dict[str, Any]) -> float:
        """One trial as users of Optuna and the Trainer write it; the loss on the examples that select."""
        trial.set_user_attr("settings", settings)
        model = AutoModelForCausalLM.from_pretrained(
            find_model(DEFAULT_MODEL).location, dtype=self._backbone.dtype
        )
        count = self._backbone.shape.num_layers
        layers = list(range(count - self._layers, count)) if self._layers else None
        config = LoraConfig(
            r=settings["adapter_rank"],
            lora_alpha=settings["adapter_alpha"],
            target_modules=list(settings["target_modules"]),
            layers_to_transform=layers,
            task_type="CAUSAL_LM",
        )
        fit, selection = self._workload._examples.divided(0)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=16,
                max_steps=self._training.steps,
                learning_rate=settings["learning_rate"],
                use_cpu=self._backbone.device.type == "cpu",
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            trainer = Trainer(
                model=get_peft_model(model, config),
                args=arguments,
                train_dataset=_rows(fit.examples[0]),
                eval_dataset=_rows(selection),
                data_collator=DataCollatorForSeq2Seq(self._backbone.tokenizer),
            )
            trainer.train()
            return float(trainer.evaluate()["eval_loss"])


def _rows(examples: Sequence[TokenisedExample]) -> list[dict[str, list[int]]]:
    return [
        {
            "input_ids": [*e.prompt, *e.completion],
            "attention_mask": [1] * e.length,
            "labels": [-100] * len(e.prompt) + list(e.completion),
        }
        for e in examples
    ]


def _processor() -> float:
    """Seconds of the processor, with those of commands that ended."""
    children = getrusage(RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
