"""`shoal train refining`: how a hypernetwork's adapters are refined on a few examples."""

from __future__ import annotations

from dataclasses import asdict, replace

from shoal.apps.cli.model import Place, check_directories, load
from shoal.apps.cli.settings import Output, check_extra
from shoal.apps.cli.tasks import Data, divided
from shoal.errors import UsageError
from shoal.text_to_lora.refining_config import RefiningTrainingConfig


def train_refining(place: Place, data: Data, training: RefiningTrainingConfig) -> Output:
    """Learn how a hypernetwork's adapters are refined on a few examples.

    The hypernetwork of --start is written to --out with `refining.json` beside it, unless tasks that were not
    learned from say that constants are better. The same command resumes a run that was stopped.
    """
    check_extra("training", "train", "accelerate", "tqdm")
    if data.start is None:
        raise UsageError(
            "--start is missing; give it: directory of the hypernetwork whose adapters are refined"
        )
    check_directories(start=data.start)
    tasks, held_out = divided(data)
    import torch

    from shoal.files import check_place
    from shoal.text_to_lora.checkpoint import HYPERNETWORK_FILES, HypernetworkCheckpoint, save_hypernetwork
    from shoal.text_to_lora.generator import TextToLoRA
    from shoal.text_to_lora.learn_refining import RUN_FOLDERS, RefiningLearner
    from shoal.text_to_lora.starts import load_start
    from shoal.training.checkpoints import check_run_folder

    check_place(data.out, HYPERNETWORK_FILES)
    check_run_folder(data.run_folder, data.out, RUN_FOLDERS)
    start = load_start(data.start)
    if not isinstance(start, HypernetworkCheckpoint):
        raise UsageError(f"--start {data.start} is an adapter; refining is learned for a hypernetwork")
    backbone = load(place, start.base_model if place.base is None else None)
    emitter = TextToLoRA(backbone=backbone, hypernetwork=data.start).emitter
    learner = RefiningLearner(backbone, emitter, tasks, data.run_folder, training, held_out=held_out)
    learned = learner.learn()
    better = learned.gain.mean > 0
    kept = replace(start, refining=learned.refining if better else None)
    save_hypernetwork(kept, data.out, torch.bfloat16)
    record = {**asdict(learned), "kept": better, "tasks": len(tasks), "out": str(data.out)}
    gain = f"{learned.gain.mean:.3f}"
    if learned.gain.low is not None:
        gain += f" ({learned.gain.low:.3f} to {learned.gain.high:.3f})"
    lines = [
        f"{way}: " + ", ".join(f"{count} examples {loss:.3f}" for count, loss in losses.items())
        for way, losses in learned.losses.items()
    ]
    end = "written with refining.json" if better else "constants are better: written without refining.json"
    text = "\n".join(
        [
            f"loss on {len(learned.asked)} tasks that were not learned from, nats per token:",
            *lines,
            f"best: {learned.chosen}, {gain} below the constants, after selection on the same tasks",
            f"{end}, to {data.out}",
        ]
    )
    return Output(record, text)
