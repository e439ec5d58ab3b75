"""The first pass: the router that decides which skill a request needs, from the request alone.

`ProbeRouter` reads a hidden state after the first layers of the model as it is, and is trained once on
labelled requests. (With solved examples of a task there is another way, `shoal.transformer2.mixture_search`.)
Where no skill serves, the decision is `NONE`, and no expert is attached. Knows a model; nothing of experts.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.2.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from shoal.errors import UsageError
from shoal.inference.forward import hidden_before, pad_sequences
from shoal.models.shapes import decoder_layers
from shoal.training.logistic import fit_logistic

NONE = "none"
PAD = 0  # any token: what is padding is masked
ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Decision:
    """A decision of the first pass about one request.

    Attributes:
        skill: the most likely skill, or `NONE`. There need not be an expert for it; then the base model
            answers.
        probabilities: of every skill and of `NONE`, in [0, 1].
    """

    skill: str
    probabilities: Mapping[str, float]


class Router(Protocol):
    """Chooses a skill for each request, from the request alone."""

    @property
    def skills(self) -> tuple[str, ...]:
        """Names that it chooses from, besides `NONE`."""

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """One decision for each request, given as the token ids of its prompt."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of hidden states into classes, several of which may be of one skill.

    Attributes:
        classes: the skill of each class, or `NONE`, which is that of the last.
        layer: decoder layer whose input it reads, from 0.
        mean: of its training states.
        scale: their standard deviation.
        weight: one row per class.
        bias: one number per class.
    """

    classes: tuple[str, ...]
    layer: int
    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]

    @property
    def skills(self) -> tuple[str, ...]:
        """The skills that it tells apart, besides `NONE`."""
        return tuple(dict.fromkeys(skill for skill in self.classes if skill != NONE))

    def probabilities(self, states: Float[Tensor, "batch width"]) -> Float[Tensor, "batch skills"]:
        """Softmax of the linear scores, summed over the classes of each skill and, last, of `NONE`."""
        found = F.linear((states - self.mean) / self.scale, self.weight, self.bias).softmax(-1)
        names = (*self.skills, NONE)
        places = torch.tensor([names.index(skill) for skill in self.classes])
        return found.new_zeros(len(found), len(names)).index_add(1, places, found)


class ProbeRouter:
    """Reads the mean hidden state of the request after the first layers, for a fraction of a forward pass."""

    def __init__(self, model: PreTrainedModel, probe: Probe) -> None:
        """Take a trained probe.

        Raises:
            UsageError: the probe reads another width or a layer that the model lacks.
        """
        width, layers = model.config.hidden_size, len(decoder_layers(model)[1])
        if probe.mean.shape != (width,) or not 0 <= probe.layer < layers:
            raise UsageError(
                f"the probe reads {probe.mean.numel()} numbers before layer {probe.layer}, the model has "
                f"{width} and {layers} layers; train one for it"
            )
        self.skills = probe.skills
        self._model = model
        self._probe = probe

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """One decision for each request; errors as `check_prompts`."""
        check_prompts(prompts)
        states = mean_states(self._model, prompts, self._probe.layer)
        return [decision_of(self.skills, row) for row in self._probe.probabilities(states)]


@torch.no_grad()
def mean_states(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], layer: int
) -> Float[Tensor, "batch width"]:
    """The mean over its tokens of what every prompt is before a decoder layer; float32 on the CPU."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for begin in range(0, len(order), ROWS_AT_ONCE):
        rows = order[begin : begin + ROWS_AT_ONCE]
        batch = pad_sequences([(prompts[i], ()) for i in rows], PAD, model.device)
        real = batch.real[..., None].float()
        states = (hidden_before(model, batch, layer).float() * real).sum(1) / real.sum(1)
        for i, state in zip(rows, states.cpu(), strict=True):
            found[i] = state
    return torch.stack(found)


def train_probe(
    states: Float[Tensor, "requests width"],
    labels: Int[Tensor, " requests"],
    skills: Sequence[str],
    layer: int,
    *,
    penalty: float = 1e-3,
    steps: int = 200,
) -> Probe:
    """Logistic regression of standardised states.

    Args:
        states: of the requests, from `mean_states`.
        labels: index of each one's class; `len(skills)` for the last, which is `NONE`.
        skills: of the classes but the last; several may be of one skill, or `NONE`.
        layer: whose input the states are.
        penalty: weight of the mean squared weights.
        steps: of L-BFGS, at most.

    Raises:
        UsageError: as many labels as states are not given, or a label is out of range.
    """
    classes = len(skills) + 1
    in_range = len(labels) > 0 and 0 <= int(labels.min()) <= int(labels.max()) < classes
    if len(states) != len(labels) or not in_range:
        raise UsageError(
            f"{len(states)} states and {len(labels)} labels of {classes} classes do not belong together; "
            "give every state a label of 0 to the number of skills"
        )
    mean, scale = states.mean(0), states.std(0, correction=0).clamp(min=1e-6)
    weight, bias = fit_logistic((states - mean) / scale, labels, classes, penalty=penalty, steps=steps)
    return Probe((*skills, NONE), layer, mean, scale, weight, bias)


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """See that there is something to decide about.

    Raises:
        UsageError: no prompts, or one without tokens.
    """
    if not len(prompts) or any(not len(ids) for ids in prompts):
        raise UsageError(
            f"{len(prompts)} prompts, of {[len(ids) for ids in prompts][:8]} tokens: at least 1 prompt of at "
            "least 1 token is needed; ask something"
        )


def without_expert(skill: str, experts: Container[str]) -> str | None:
    """What to tell where a skill was found that none of the experts has; None where one has, or at `NONE`."""
    if skill == NONE or skill in experts:
        return None
    return f"the request is for {skill}, for which there is no expert: the base model answers"


def decision_of(skills: Sequence[str], probabilities: Float[Tensor, " classes"]) -> Decision:
    """The decision for probabilities of the skills and, last, of `NONE`."""
    names = (*skills, NONE)
    return Decision(names[int(probabilities.argmax())], dict(zip(names, probabilities.tolist(), strict=True)))
