"""LoRA training: real (unpadded) tokens per second of Shoal against PEFT with the transformers Trainer.

    python benchmarks/lora_training.py

Both train the same modules at the same rank on the same examples of real tasks, in the same batch size,
with a bfloat16 base and float32 adapters, AdamW, and labels on the answers alone. The Trainer takes
examples in random order and pads them to the longest of a batch, as its collator does. The runs take turns
in one process; the ratio is of the medians over runs, the first two steps of each not counted.

Where only the last layers are adapted, Shoal computes the frozen ones once an example: the first pass over
the data is slower than those after it, and is shown by itself. The claim is about the later ones, as a LoRA
of one task is trained for many. Shoal draws examples with replacement, so "later" means: after four passes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _machine import DATA, machine, table
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import load_split
from shoal.training.batches import Corpus, tokenise
from shoal.training.loop import StepLoss, run
from shoal.training.lora import LoraObjective, set_for_training

UNCOUNTED = 2  # steps at the start of a run
LATER, PASSES = 4, 6  # passes after which the cached layers are timed, and passes in all


@dataclass(frozen=True)
class Setting:
    """What is adapted, and how much faster the project promises to be."""

    name: str
    modules: tuple[str, ...]
    layers: int | None
    rank: int
    target: float


SETTINGS = {
    "last8": Setting("last 8 layers, q k v o, rank 16", ("q_proj", "k_proj", "v_proj", "o_proj"), 8, 16, 3.0),
    "all": Setting("all layers, q v, rank 8", ("q_proj", "v_proj"), None, 8, 1.7),
}


@dataclass(frozen=True)
class Speeds:
    """Real tokens per second of one run: over the first pass of the data, and later."""

    first: float
    later: float


class Stopwatch:
    """When each step began, and the real tokens that it read."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def speed(self, begin: int, end: int) -> float:
        """Tokens a second of the steps from `begin` up to `end`."""
        return sum(self.tokens[begin:end]) / (self.times[end] - self.times[begin])


class TimedObjective:
    """A LoRA objective whose forward passes are noted."""

    def __init__(self, objective: LoraObjective, watch: Stopwatch) -> None:
        self._objective, self._watch = objective, watch
        self.module, self.parameter_groups = objective.module, objective.parameter_groups
        self.fingerprint = objective.fingerprint

    def loss(self, forward_pass: int) -> StepLoss:
        self._watch.times.append(time.perf_counter())
        result = self._objective.loss(forward_pass)
        self._watch.tokens.append(result.tokens)
        return result


class TimedCollator(DataCollatorForSeq2Seq):
    """The Trainer's own padding, with the real tokens of each batch noted."""

    def __call__(self, features, return_tensors=None):
        self.watch.tokens.append(sum(len(f["input_ids"]) for f in features))
        return super().__call__(features, return_tensors)


class TimedSteps(TrainerCallback):
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._watch.times.append(time.perf_counter())

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._watch.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--setting", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--examples", type=int, default=128, help="all together; one pass over the data")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peer-autocast", action="store_true", help="give the Trainer bf16=True")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    ours, theirs = load_backbone(dtype=torch.bfloat16), load_backbone(dtype=torch.bfloat16)
    corpus = sample(args, ours)
    rows = []
    for setting in (SETTINGS[name] for name in args.setting):
        shoal, peer = [], []
        for seed in range(args.seed, args.seed + args.repeats):  # they take turns
            shoal.append(train_ours(args, ours, corpus, setting, seed))
            peer.append(train_theirs(args, theirs, corpus, setting, seed))
        first, later = (statistics.median(getattr(s, part) for s in shoal) for part in ("first", "later"))
        base = statistics.median(peer)
        what = ["first pass", "later passes"] if setting.layers else ["every pass"]
        for label, speed in zip(what, (first, later), strict=False):
            claimed = label != "first pass"
            target = f"{setting.target:g}" if claimed else ""
            rows.append(
                [f"{setting.name}, {label}", f"{speed:.0f}", f"{base:.0f}", f"{speed / base:.2f}", target]
            )
    tokens = sum(e.length for examples in corpus.examples for e in examples)
    print(
        f"{args.examples} examples of {args.tasks} tasks, {tokens} tokens; batch {args.batch}; "
        f"{machine(ours.dtype)}\n"
    )
    print(table(["real tokens per second", "Shoal", "PEFT + Trainer", "ratio", "target"], rows))


def sample(args: argparse.Namespace, backbone: Backbone) -> Corpus:
    """The same number of examples of every task."""
    chance = random.Random(args.seed)
    tasks = chance.sample(load_split(args.data).train, args.tasks)
    share = args.examples // args.tasks
    small = [replace(t, train=tuple(chance.sample(t.train, 4 * share))) for t in tasks]
    corpus = tokenise(small, backbone, LoraTrainingConfig().max_length)
    return replace(corpus, examples=tuple(examples[:share] for examples in corpus.examples))


def train_ours(
    args: argparse.Namespace, backbone: Backbone, corpus: Corpus, setting: Setting, seed: int
) -> Speeds:
    targets = backbone.shape.select(setting.modules, setting.layers)
    a_pass = args.examples // args.batch
    steps = a_pass * (PASSES if setting.layers else 2) + UNCOUNTED
    config = LoraTrainingConfig(steps=steps, batch_size=args.batch, checkpoint_every=steps, seed=seed)
    lora = LoRA.identity(
        targets, setting.rank, 2.0 * setting.rank, generator=torch.Generator().manual_seed(0)
    )
    watch = Stopwatch()
    objective = TimedObjective(LoraObjective(backbone, corpus, targets, lora, config), watch)
    with tempfile.TemporaryDirectory() as folder, set_for_training(backbone):
        run(objective, config, Path(folder), show_progress=False)
    first = a_pass if setting.layers else steps - 1
    return Speeds(watch.speed(UNCOUNTED, first), watch.speed(min(LATER * a_pass, steps // 2), steps - 1))


def train_theirs(
    args: argparse.Namespace, backbone: Backbone, corpus: Corpus, setting: Setting, seed: int
) -> float:
    layers = (
        range(backbone.shape.num_layers - setting.layers, backbone.shape.num_layers)
        if setting.layers
        else None
    )
    config = LoraConfig(
        r=setting.rank,
        lora_alpha=2 * setting.rank,
        target_modules=list(setting.modules),
        layers_to_transform=list(layers) if layers else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(backbone.model, config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    steps = args.examples // args.batch + UNCOUNTED
    watch = Stopwatch()
    collator = TimedCollator(backbone.tokenizer)
    collator.watch = watch
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=args.batch,
            max_steps=steps,
            learning_rate=1e-3,
            bf16=args.peer_autocast,
            use_cpu=backbone.device.type == "cpu",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows_of(corpus),
            data_collator=collator,
            callbacks=[TimedSteps(watch)],
        ).train()
    model.unload()
    backbone.model.requires_grad_(False).eval()
    return watch.speed(UNCOUNTED, steps)


def rows_of(corpus: Corpus) -> Sequence[dict[str, list[int]]]:
    return [
        {
            "input_ids": [*e.prompt, *e.completion],
            "attention_mask": [1] * e.length,
            "labels": [-100] * len(e.prompt) + list(e.completion),
        }
        for examples in corpus.examples
        for e in examples
    ]


if __name__ == "__main__":
    main()
