"""Transformer²: a model that re-tunes itself for each request.

Two passes: the first decides which skill a request needs, with the model as it is; the second answers with
that skill's expert attached, one for each row of a batch. Where there are no experts, or none serves, the
second pass is the base model, bit for bit. Joins a router, experts and a model; trains nothing.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.2.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shoal.adapters.decomposition import Decompositions
from shoal.adapters.svf import ExpertVector, check_fits
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import Transformer2Config
from shoal.errors import UsageError
from shoal.models.shapes import ROLES, BackboneShape, shape_of
from shoal.transformer2.experts import load_expert_set, shipped_experts
from shoal.transformer2.router import NONE, Decision, Router
from shoal.transformer2.skill_names import BySkill, known_name

log = logging.getLogger(__name__)

MLP_ROLES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Adaptation:
    """The change of one weight in the second pass.

    Attributes:
        module: its name.
        skill: of the expert that scaled it.
        row: of the batch.
        change: Frobenius norm of the difference over that of the components kept, from 0.
    """

    module: str
    skill: str
    row: int
    change: float


class Transformer2(nn.Module):
    """Wraps a causal language model; the model itself is never changed beyond a call.

    Attributes:
        model: the base model.
        config: how many experts, how many components, how strong.
        experts: skill -> expert, at the configured strength; found under synonyms of the skill too.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Transformer2Config | None = None,
        *,
        experts: Mapping[str, ExpertVector] | None = None,
        basis: Decompositions | None = None,
        router: Router | None = None,
    ) -> None:
        """Take experts and what chooses between them; without any the wrapped model is the base model.

        Args:
            model: a causal language model of `transformers`.
            config: settings.
            experts: skill -> single expert; at most `num_expert_vectors`.
            basis: decompositions of the weights that the experts scale; computed or read from the cache by
                default.
            router: chooses a skill for each request; needed where there are experts.

        Raises:
            UsageError: a model of another kind, more experts than `num_expert_vectors`, experts without
                a router or that it cannot choose, experts that do not fit, or layers that the model lacks.
        """
        super().__init__()
        if not isinstance(model, PreTrainedModel):
            raise UsageError(
                f"cannot wrap a {type(model).__name__}; give a causal language model of transformers"
            )
        self.model = model
        self.config = config or Transformer2Config()
        self._router = router
        self._lock = threading.Lock()  # over what is attached to the model
        shape = shape_of(model, "the model")
        layers = _layers(self.config.adaptation_layers, shape)
        given = dict(experts or {})
        if len(given) > self.config.num_expert_vectors:
            raise UsageError(
                f"{len(given)} experts are more than num_expert_vectors {self.config.num_expert_vectors}; "
                "raise it"
            )
        if given and (router is None or any(known_name(s, router.skills) is None for s in given)):
            known = ", ".join(router.skills) if router else "none, as there is no router"
            raise UsageError(
                f"the experts {', '.join(given)} need a router that chooses them; it knows {known}"
            )
        named = {name for expert in given.values() for name in expert.z}
        self._basis = _basis(model, named, basis, self.config) if given else {}
        for expert in given.values():
            check_fits(self._basis, expert)
        self.experts = BySkill[ExpertVector]()
        for skill, expert in given.items():
            limited = _limited(expert, shape, layers).strengthened(self.config.adaptation_strength)
            self.experts[skill] = limited.on(self._basis)
        if not given:
            log.warning("no experts are given: the model answers as it is, and every skill is %r", NONE)

    @classmethod
    def shipped(
        cls, model: nn.Module, config: Transformer2Config | None = None, *, folder: Path | None = None
    ) -> Transformer2:
        """A model with the experts that were trained for it; without any it answers as it is, and says so.

        Args:
            model: a causal language model of `transformers`.
            config: settings; the first `num_expert_vectors` experts are taken, and no more than
                `expert_vector_dim` of their components.
            folder: of experts (`shoal.transformer2.experts`); by default that of the shipped ones for these
                weights.

        Raises:
            UsageError: a model of another kind, or experts of other weights.
            ShoalError: an expert is damaged.
        """
        settings = config or Transformer2Config()
        if not isinstance(model, PreTrainedModel):
            return cls(model, settings)  # which refuses it
        size = settings.expert_vector_dim
        found = shipped_experts(model, components=size) if folder is None else None
        if folder is not None:
            found = load_expert_set(folder, model, components=size)
        if found is None:
            return cls(model, settings)
        taken = dict(list(found.experts.items())[: settings.num_expert_vectors])
        if len(taken) < len(found.experts):
            log.warning("of %d experts these are taken: %s", len(found.experts), ", ".join(taken))
        return cls(model, settings, experts=taken, basis=found.basis, router=found.router)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"],
        *,
        decisions: Sequence[Decision] | None = None,
        **inputs: Any,
    ) -> Any:
        """Both passes over a batch of token ids.

        Args:
            input_ids: of the requests; padding has 0 in `attention_mask`.
            decisions: of an earlier first pass, one per row, which is then not repeated.
            inputs: passed on to the model.

        Returns:
            The model's own output with three more attributes: `detected_skill`, the most frequent
            of the batch; `detected_skills`, one per row; `adaptations`, a record per adapted weight and row.

        Raises:
            UsageError: an empty batch or request, or another number of decisions.
        """
        decided = self.decide(input_ids, inputs.get("attention_mask")) if decisions is None else decisions
        _check_rows(decided, len(input_ids))
        with self.adapted(decided):
            output = self.model(input_ids, **{**inputs, "return_dict": True})
        skills = [d.skill for d in decided]
        output.detected_skill = Counter(skills).most_common(1)[0][0]
        output.detected_skills = skills
        output.adaptations = self._adaptations(skills)
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "batch length"],
        *,
        decisions: Sequence[Decision] | None = None,
        **options: Any,
    ) -> Any:
        """The model's own `generate`, beams and streamers included, after a first pass over the requests.

        Args and errors as `forward`; `options` go to the model's `generate`.
        """
        decided = self.decide(input_ids, options.get("attention_mask")) if decisions is None else decisions
        _check_rows(decided, len(input_ids))
        with self.adapted(decided):
            return self.model.generate(input_ids, **options)  # type: ignore[operator]

    @torch.no_grad()
    def decide(
        self, input_ids: Int[Tensor, "batch length"], attention_mask: Tensor | None = None
    ) -> list[Decision]:
        """The first pass alone: one decision per row, `NONE` where there are no experts.

        Raises:
            UsageError: no rows, or one without tokens.
        """
        if input_ids.dim() != 2 or not input_ids.numel():
            raise UsageError(
                f"input_ids of shape {tuple(input_ids.shape)}: at least 1 row of at least 1 token is needed"
            )
        if self._router is None:
            return [Decision(NONE, {NONE: 1.0})] * len(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape:
            raise UsageError(
                f"attention_mask of shape {tuple(mask.shape)} does not fit input_ids of "
                f"{tuple(input_ids.shape)}; a step from a cache takes the first pass's `decisions`"
            )
        prompts = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)]
        with self._lock:
            return self._router.decide(prompts)

    @contextmanager
    def adapted(self, decisions: Sequence[Decision]) -> Iterator[None]:
        """The base model with each row's expert attached, for a second pass of one's own.

        Args:
            decisions: one per row of the batches that will be run.
        """
        chosen = [self.experts.get(d.skill) for d in decisions]
        if not any(expert is not None for expert in chosen):
            with self._lock:
                yield
            return
        identity = ExpertVector.identity(self._basis)
        own = chosen[:1] if all(expert is chosen[0] for expert in chosen) else chosen
        full = [identity if e is None else ExpertVector({**identity.z, **e.z}) for e in own]
        expert = full[0] if len(full) == 1 else ExpertVector.stack(full)
        with self._lock, attach_expert(self.model, self._basis, expert):
            yield

    def _adaptations(self, skills: Sequence[str]) -> list[Adaptation]:
        return [
            Adaptation(name, skill, row, self._change(name, z))
            for row, skill in enumerate(skills)
            if skill in self.experts
            for name, z in self.experts[skill].z.items()
            if bool((z != 1).any())
        ]

    def _change(self, name: str, z: Tensor) -> float:
        s = self._basis[name].s.cpu()
        return float((s * (z.cpu() - 1)).norm() / s.norm())


def _check_rows(decisions: Sequence[Decision], rows: int) -> None:
    if len(decisions) != rows:
        raise UsageError(f"{len(decisions)} decisions do not fit {rows} rows; give one per row")


def mlp_modules(shape: BackboneShape, layers: Sequence[int] | None = None) -> list[str]:
    """Names of the MLP's linear maps, in all layers or some: the weights that experts scale by default.

    Raises:
        UsageError: there are none, or the model lacks a layer that is named.
    """
    chosen = _layers(layers, shape)
    endings = [ending for role in MLP_ROLES for ending in ROLES[role]]
    names = [
        t.name
        for t in shape.targets
        if t.layer in chosen and any(t.type == e or t.type.endswith("." + e) for e in endings)
    ]
    if not names:
        raise UsageError(f"{shape.base_model} has no MLP weights in layers {layers or 'all'}; choose others")
    return names


def _layers(layers: Sequence[int] | None, shape: BackboneShape) -> set[int]:
    wanted = range(shape.num_layers) if layers is None else layers
    odd = next((layer for layer in wanted if not 0 <= layer < shape.num_layers), None)
    if odd is not None:
        raise UsageError(
            f"adaptation_layers names layer {odd}, the model has 0 to {shape.num_layers - 1}; choose some"
        )
    return set(wanted)


def _basis(
    model: nn.Module, names: set[str], basis: Decompositions | None, config: Transformer2Config
) -> dict[str, Any]:
    """Decompositions of the named weights: those given, or the model's own cut to the configured size."""
    if basis is None:
        ordered = [name for name, _ in model.named_modules() if name in names]
        missing = sorted(names - set(ordered))
        if missing:
            raise UsageError(f"the model has no module {missing[0]!r}; use the experts' own base model")
        return decompose_model(model, ordered, components=config.expert_vector_dim)
    return {name: basis[name] for name in basis if name in names}


def _limited(expert: ExpertVector, shape: BackboneShape, layers: set[int]) -> ExpertVector:
    """The expert with z = 1 outside the layers that are adapted."""
    layer_of = {t.name: t.layer for t in shape.targets}
    return ExpertVector(
        {n: z if layer_of.get(n, -1) in layers else torch.ones_like(z) for n, z in expert.z.items()}
    )
