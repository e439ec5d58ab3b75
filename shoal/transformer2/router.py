"""The first pass: which skill a request needs, read from the request alone.

`PromptDispatch` needs no training: it asks the model, by the likelihood of every skill's name.
`ProbeDispatch` reads a hidden state after the first layers, and is trained once on labelled requests. (With
solved examples of a task there is a third way, `shoal.transformer2.mixture_search`.) Both read the model as
it is. Where no skill serves, the decision is `NONE`, and no expert is attached. Knows a backbone; nothing of
experts.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, hidden_before, pad_sequences
from shoal.models.backbone import Backbone
from shoal.models.shapes import decoder_layers
from shoal.training.logistic import fit_logistic

NONE = "none"
QUESTION = (
    "Which skill does this request need: {skills}, or {none}? Answer with its name.\n\nRequest: {request}"
)
CONTENT_FREE = ("N/A", "", "[MASK]")  # as section 4 of Zhao et al., arXiv 2102.09690
MARK = "REQUEST"
PAD = 0  # any token: what is padding is masked
ROWS_AT_ONCE, SPARE = 64, 8  # spare positions: cut text may be split into a few more tokens than before


@dataclass(frozen=True, eq=False)
class Decision:
    """What the first pass decided about one request.

    Attributes:
        skill: the most likely skill, or `NONE`.
        probabilities: of every skill and of `NONE`, in [0, 1].
    """

    skill: str
    probabilities: Mapping[str, float]


class Dispatch(Protocol):
    """A strategy that reads the request alone."""

    @property
    def skills(self) -> tuple[str, ...]:
        """Names that it chooses from, besides `NONE`."""

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """One decision for each request, given as the token ids of its prompt."""


class PromptDispatch:
    """Asks the model itself, by the likelihood of the skills' names (classification without any training).

    Likelihoods are calibrated: those after requests without content are divided out (Zhao et al., arXiv
    2102.09690, section 4), since a model likes some names better whatever is asked.
    """

    def __init__(self, backbone: Backbone, skills: Sequence[str]) -> None:
        """Measure the names' likelihoods without content.

        Raises:
            UsageError: no skills, two that read the same, one called `none`, or a name whose tokens begin
                another one's, which would make the shorter always the likelier.
        """
        self.skills = tuple(skills)
        self._backbone = backbone
        self._names = [skill.replace("_", " ") for skill in (*self.skills, NONE)]
        _check_names(self._names)
        self._labels = [tuple(backbone.encode_completion(name)) for name in self._names]
        _check_prefixes(self._names, [label[:-1] for label in self._labels])
        around = backbone.decode(backbone.encode_prompt(MARK)).split(MARK)  # what the template says of itself
        self._before, self._after = around[0], around[-1]
        self._room = self._free_positions()
        blank = [self._likelihoods(text).log_softmax(-1) for text in CONTENT_FREE]
        self._prior = torch.stack(blank).exp().mean(0).log()

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """One decision for each request; errors as `check_prompts`."""
        check_prompts(prompts)
        return [
            _decision(self.skills, (self._likelihoods(self._request(ids)) - self._prior).softmax(-1))
            for ids in prompts
        ]

    def _request(self, prompt: Sequence[int]) -> str:
        """What was asked, without the template's words; its beginning where all of it is too long."""
        said = self._backbone.decode(prompt).removeprefix(self._before).removesuffix(self._after).strip()
        tokens = self._backbone.encode_completion(said)[:-1]
        return said if len(tokens) <= self._room else self._backbone.decode(tokens[: self._room])

    def _free_positions(self) -> int:
        """Tokens that a request may have beside the question and the longest name."""
        limit = getattr(self._backbone.model.config, "max_position_embeddings", None) or 2**20
        used = len(self._asked("")) + max(len(label) for label in self._labels)
        return max(1, int(limit) - used - SPARE)

    def _asked(self, request: str) -> list[int]:
        skills = ", ".join(self._names[:-1])
        return self._backbone.encode_prompt(QUESTION.format(skills=skills, none=NONE, request=request))

    @torch.no_grad()
    def _likelihoods(self, request: str) -> Float[Tensor, " names"]:
        """Mean log-likelihood of every name, in nats per token."""
        asked = self._asked(request)
        pairs = [(asked, label) for label in self._labels]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        return -answer_losses(self._backbone, batch).cpu()


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of hidden states.

    Attributes:
        skills: its classes but the last, which is `NONE`.
        layer: decoder layer whose input it reads, from 0.
        mean: of its training states.
        scale: their standard deviation.
        weight: one row a class.
        bias: one a class.
    """

    skills: tuple[str, ...]
    layer: int
    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]

    def probabilities(self, states: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Softmax of the linear scores."""
        return F.linear((states - self.mean) / self.scale, self.weight, self.bias).softmax(-1)


class ProbeDispatch:
    """Reads the mean hidden state of the request after the first layers, for a fraction of a forward pass."""

    def __init__(self, model: PreTrainedModel, probe: Probe, *, least: float = 0.0) -> None:
        """Take a trained probe; a most likely skill below the probability `least` counts as `NONE`.

        Raises:
            UsageError: the probe reads another width or a layer that the model lacks.
        """
        width, layers = model.config.hidden_size, len(decoder_layers(model)[1])
        if probe.mean.shape != (width,) or not 0 <= probe.layer < layers:
            raise UsageError(
                f"the probe reads {probe.mean.numel()} numbers before layer {probe.layer}, the model has "
                f"{width} and {layers} layers; train one for it"
            )
        self.skills, self._model, self._probe, self._least = probe.skills, model, probe, least

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """One decision for each request; errors as `check_prompts`."""
        check_prompts(prompts)
        states = mean_states(self._model, prompts, self._probe.layer)
        return [_decision(self.skills, row, self._least) for row in self._probe.probabilities(states)]


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
        labels: index of each one's skill; `len(skills)` for `NONE`.
        skills: names of the classes but `NONE`.
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
    return Probe(tuple(skills), layer, mean, scale, weight, bias)


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


def _decision(skills: Sequence[str], probabilities: Tensor, least: float = 0.0) -> Decision:
    names = (*skills, NONE)
    best = int(probabilities.argmax())
    skill = names[best] if float(probabilities[best]) >= least else NONE
    return Decision(skill, dict(zip(names, probabilities.tolist(), strict=True)))


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise UsageError("dispatch needs at least 1 skill, got 0; name some")
    twice = sorted({name for name in names if sum(name.casefold() == n.casefold() for n in names) > 1})
    if twice:
        raise UsageError(f"{twice[0]!r} names two choices (none is one of them); name the skills apart")


def _check_prefixes(names: Sequence[str], labels: Sequence[Sequence[int]]) -> None:
    for name, label in zip(names, labels, strict=True):
        for other, longer in zip(names, labels, strict=True):
            if name != other and tuple(longer[: len(label)]) == tuple(label):
                raise UsageError(
                    f"the name {other!r} begins with the name {name!r}; rename one of the skills"
                )
