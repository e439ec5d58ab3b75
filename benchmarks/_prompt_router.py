"""A router without training, the baseline of the trained one: the model itself is asked for the skill."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.transformer2.router import NONE, Decision, check_prompts, decision_of

QUESTION = (
    "Which skill does this request need: {skills}, or {none}? Answer with its name.\n\nRequest: {request}"
)
CONTENT_FREE = ("N/A", "", "[MASK]")  # as section 4 of Zhao et al., arXiv 2102.09690
MARK = "REQUEST"
SPARE = 8  # positions: cut text may be split into a few more tokens than before


class PromptRouter:
    """Chooses by the likelihood of the skills' names under the model itself.

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
            decision_of(self.skills, (self._likelihoods(self._request(ids)) - self._prior).softmax(-1))
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


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise UsageError("a router needs at least 1 skill, got 0; name some")
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
