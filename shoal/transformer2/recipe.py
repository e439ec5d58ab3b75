"""From tasks to an expert: decompose, train, and write it with its provenance."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_files import EXPERT_FILES, StoredExpert, save_expert
from shoal.config import ExpertTrainingConfig, Transformer2Config
from shoal.errors import UsageError
from shoal.files import check_place
from shoal.models.backbone import Backbone
from shoal.models.shapes import BackboneShape
from shoal.tasks.loading import Task
from shoal.training.checkpoints import check_run_folder
from shoal.transformer2.model import mlp_modules
from shoal.transformer2.router import NONE
from shoal.transformer2.skill_names import skill_name
from shoal.transformer2.train import TrainedExpert, train_expert

log = logging.getLogger(__name__)


def make_expert(
    backbone: Backbone,
    tasks: Sequence[Task],
    directory: Path,
    *,
    skill: str,
    sizes: Transformer2Config,
    training: ExpertTrainingConfig,
    run: Path,
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> TrainedExpert:
    """Train an expert that scales the singular values of the MLP's weights, and write it.

    Args:
        backbone: the frozen model.
        tasks: what to train on.
        directory: of the expert.
        skill: the name by which the router chooses it; a synonym becomes the name of the guide.
        sizes: singular values and layers that it scales.
        training: optimisation settings.
        run: folder of checkpoints and logs.
        held_out: tasks that must share no example with `tasks`.
        show_progress: draw progress bars.

    Raises:
        UsageError: the directory holds something else, no skill is named, the model has no such layers, or as
            `decompose_model` and `train_expert`.
        ShoalError: as `decompose_model`, `train_expert` and `save_expert`.
    """
    check_expert_training(backbone.shape, directory, skill=skill, sizes=sizes, run=run)
    names = mlp_modules(backbone.shape, sizes.adaptation_layers)
    main = PartialState().is_main_process
    log.info("decomposing %d weights, which is kept for the next time", len(names))
    hidden = not (show_progress and main and sys.stderr.isatty())
    bar = tqdm(names, desc="singular values", disable=hidden)
    basis = decompose_model(
        backbone.model, names, components=sizes.expert_vector_dim, progress=lambda names: bar
    )
    trained = train_expert(
        backbone, basis, tasks, run, training, held_out=held_out, show_progress=show_progress
    )
    provenance = {
        **asdict(trained.summary),
        "base_success": trained.base_success,
        "tasks": [task.name for task in tasks],
        "config": training.model_dump(mode="json"),
    }
    if main:
        stored = StoredExpert(trained.expert, backbone.shape.base_model, skill_name(skill), provenance)
        save_expert(directory, stored, basis)
    return trained


def check_expert_training(
    shape: BackboneShape, directory: Path, *, skill: str, sizes: Transformer2Config, run: Path
) -> None:
    """Refuse before the base model is loaded what `make_expert` would refuse after; as there."""
    check_place(directory, EXPERT_FILES)
    check_run_folder(run, directory)
    mlp_modules(shape, sizes.adaptation_layers)
    if not skill.strip() or skill == NONE:
        raise UsageError(f"skill {skill!r} is no name for a router to choose; name what the expert is for")
