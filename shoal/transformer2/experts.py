"""The experts of one model, and the router that chooses between them, as one directory.

    SET/<skill>/       an expert (`shoal.adapters.svf_files`)
    SET/dispatch/      the router's probe (`shoal.transformer2.router_files`)

A set belongs to a model whose singular values are those that its experts were trained on, whatever the model
is called. Knows directories and a model; nothing of passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from shoal.adapters.decomposition import Decomposition
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_files import (
    CONFIG_FILE,
    FORMAT,
    StoredExpert,
    check_belongs,
    decompose_for,
    is_for,
    read_expert,
)
from shoal.errors import ShoalError, UsageError
from shoal.file_formats import read_json
from shoal.transformer2.router import Probe, ProbeRouter
from shoal.transformer2.router_files import load_probe
from shoal.transformer2.skill_names import BySkill

ROUTER = "dispatch"
SHIPPED = Path(__file__).parents[1] / "weights" / "experts"


@dataclass(frozen=True, eq=False)
class ExpertSet:
    """Experts of one model, ready to be attached.

    Attributes:
        experts: skill -> expert, in the order of the router's skills; found under synonyms too.
        stored: skill -> the same with its provenance.
        basis: decompositions of the weights that they scale.
        router: chooses one of their skills, or none.
    """

    experts: Mapping[str, ExpertVector]
    stored: Mapping[str, StoredExpert]
    basis: Mapping[str, Decomposition]
    router: ProbeRouter


def load_expert_set(folder: Path, model: PreTrainedModel, *, components: int | None = None) -> ExpertSet:
    """Read all experts of a directory and their router.

    Args:
        folder: the set.
        model: that they scale.
        components: keep at most so many singular values; None keeps all that the experts were trained on.

    Raises:
        UsageError: no such set, or it is for other weights.
        ShoalError: a part of it is missing or damaged.
    """
    stored = [read_expert(directory) for directory in _some_directories(folder)]
    return _joined(folder, stored, load_probe(folder / ROUTER).probe, model, components)


def experts_of(model: PreTrainedModel, folder: Path | None = None) -> ExpertSet:
    """The experts of a directory, or the shipped ones; errors as `load_expert_set`, or where none are."""
    found = load_expert_set(folder, model) if folder else shipped_experts(model)
    if found is None:
        raise UsageError(
            f"no experts are shipped for {model.name_or_path}; train some with `shoal train expert`, give "
            "their directory"
        )
    return found


def tasks_of(folder: Path) -> dict[str, list[str]]:
    """Skill -> names of the tasks that its expert was trained on; no tensor is loaded.

    Raises:
        UsageError: the directory holds no experts.
        ShoalError: one does not name the tasks that it was trained on.
    """
    found = {}
    for directory in _some_directories(folder):
        path = directory / CONFIG_FILE
        record = read_json(path, format=FORMAT)
        try:
            found[str(record["skill"])] = [str(task) for task in record["provenance"]["tasks"]]
        except (KeyError, TypeError):
            raise ShoalError(f"{path} does not say its skill and tasks; train the expert again") from None
    return found


def shipped_experts(model: PreTrainedModel, *, components: int | None = None) -> ExpertSet | None:
    """The shipped experts that were trained on this model's weights, if there are some.

    Args:
        model: whatever it is called.
        components: as `load_expert_set`, and so are errors.
    """
    width = getattr(model.config, "hidden_size", None)
    for router in sorted(SHIPPED.glob(f"*/{ROUTER}")):
        probe = load_probe(router).probe
        if probe.mean.numel() != width:  # before singular values of a larger model are computed
            continue
        stored = [read_expert(directory) for directory in _directories(router.parent)]
        if stored and is_for(stored[0], model):
            return _joined(router.parent, stored, probe, model, components)
    return None


def _directories(folder: Path) -> list[Path]:
    """The experts' own directories, in the order of their names."""
    return [path.parent for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))]


def _some_directories(folder: Path) -> list[Path]:
    found = _directories(folder)
    if not found:
        raise UsageError(
            f"{folder} holds no experts; train some with `shoal train expert --out {folder}/SKILL`"
        )
    return found


def _joined(
    folder: Path,
    experts: Sequence[StoredExpert],
    probe: Probe,
    model: PreTrainedModel,
    components: int | None,
) -> ExpertSet:
    """Experts and a probe that were read, with the decompositions of the weights that they scale."""
    basis = decompose_for(experts, model)
    for expert in experts:
        check_belongs(expert, basis)
    stored = BySkill({expert.skill: expert for expert in experts})
    ordered = {skill: stored[skill] for skill in probe.skills if skill in stored}
    if len(ordered) < len(stored):
        raise ShoalError(
            f"{folder / ROUTER} chooses between {', '.join(probe.skills)}, the experts are for "
            f"{', '.join(stored)}; train it again with `shoal train dispatch`"
        )
    if components is not None:
        basis = {name: d.truncated(components) for name, d in basis.items()}
    cut = {skill: _cut(expert.expert, basis) for skill, expert in ordered.items()}
    return ExpertSet(BySkill(cut), BySkill(ordered), basis, ProbeRouter(model, probe))


def _cut(expert: ExpertVector, basis: Mapping[str, Decomposition]) -> ExpertVector:
    return ExpertVector({name: z[: basis[name].s.numel()] for name, z in expert.z.items()})
