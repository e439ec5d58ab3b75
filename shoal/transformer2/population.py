"""Rewards of candidates for an expert: a whole population in shared forward passes, each row with its own z.

Where a task's answers are labels the reward is the expected one, `sum_l p(l) r(l)`, and nothing is generated;
elsewhere greedy answers are judged. All candidates see the same examples, and no weight is built. Knows a
backbone, expert values and tasks; nothing of how candidates come about.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1, for z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.adapters.decomposition import Decompositions
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import ExpertTrainingConfig
from shoal.inference.forward import answer_logits, pad_sequences
from shoal.inference.generate import generate_with_experts
from shoal.models.backbone import Backbone
from shoal.tasks.answer_kinds import has_labels
from shoal.tasks.rewards import Reward
from shoal.training.batches import BatchOrder, Corpus, TokenisedExample
from shoal.training.evolution import Fitness
from shoal.training.label_rewards import LabelRewards, RewardedLabel, log_likelihoods, source_of

ROWS_AT_ONCE = 64


class Expert(Protocol):
    """An expert as parameters."""

    @property
    def module(self) -> nn.Module:
        """Holds them."""

    @property
    def basis(self) -> Decompositions:
        """Decompositions of the weights that the expert scales."""

    def experts(self, candidates: Float[Tensor, "candidates parameters"]) -> ExpertVector:
        """The experts of other parameters, as a batch."""


class ExpertPopulation:
    """Tries candidates on training examples, other ones in every generation."""

    def __init__(
        self,
        backbone: Backbone,
        expert: Expert,
        corpus: Corpus,
        config: ExpertTrainingConfig,
        reward: Reward,
        fingerprint: str,
    ) -> None:
        """Take what rewards are earned on; the fingerprint names all of it."""
        self._backbone = backbone
        self._expert = expert
        self._corpus = corpus
        self._config = config
        self._reward = reward
        self._fingerprint = fingerprint
        self._order = BatchOrder(corpus, config.batch_size, config.seed, config.examples_a_task)
        self._labels = LabelRewards(backbone, corpus, reward)
        self._closed = [has_labels(task) for task in corpus.tasks]
        self.module = expert.module

    def fingerprint(self) -> str:
        """Names base model, data, the weights that are scaled and what answers earn."""
        return self._fingerprint

    @torch.no_grad()
    def fitness(self, candidates: Float[Tensor, "candidates parameters"], forward_pass: int) -> Fitness:
        """Mean reward of every candidate on one batch."""
        examples = self._order.batch(forward_pass)
        experts = self._expert.experts(candidates.to(self._backbone.device))
        # A label that earns nothing adds nothing to the sum.
        labels = [
            answer
            for example in examples
            if self._closed[example.task]
            for answer in self._labels.answers(example)
            if answer.reward
        ]
        written = [example for example in examples if not self._closed[example.task]]
        total, tokens = torch.zeros(len(candidates), dtype=torch.float64), 0
        at_once = max(1, ROWS_AT_ONCE // len(candidates))
        for begin in range(0, len(labels), at_once):
            earned, read = self._expected(experts, labels[begin : begin + at_once])
            total, tokens = total + earned, tokens + read
        for begin in range(0, len(written), at_once):
            earned, read = self._greedy(experts, written[begin : begin + at_once])
            total, tokens = total + earned, tokens + read
        return Fitness((total / len(examples)).tolist(), tokens)

    def _expected(
        self, experts: ExpertVector, answers: Sequence[RewardedLabel]
    ) -> tuple[Float[Tensor, " candidates"], int]:
        """(what labels earn times their probability, tokens), with consecutive rows for each candidate."""
        count = experts.batch
        assert count is not None
        pairs = [(a.prompt, a.completion) for a in answers] * count
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        with attach_expert(self._backbone.model, self._expert.basis, experts):
            logits = answer_logits(self._backbone, batch)
        likely = log_likelihoods(logits, batch).exp().double().cpu().view(count, -1)
        return likely @ torch.tensor([a.reward for a in answers], dtype=torch.float64), batch.tokens

    def _greedy(
        self, experts: ExpertVector, examples: Sequence[TokenisedExample]
    ) -> tuple[Float[Tensor, " candidates"], int]:
        """(what greedy answers earn, tokens read and written)."""
        count = experts.batch
        assert count is not None
        prompts = [e.prompt for e in examples] * count
        answers = generate_with_experts(
            self._backbone,
            prompts,
            self._expert.basis,
            ExpertVector({name: z.repeat_interleave(len(examples), 0) for name, z in experts.z.items()}),
            max_new_tokens=self._config.max_new_tokens,
        )
        sources = [source_of(self._corpus, e) for e in examples] * count
        texts = [self._backbone.decode(ids) for ids in answers]
        earned = [self._reward(e, text) for e, text in zip(sources, texts, strict=True)]
        tokens = sum(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        return torch.tensor(earned, dtype=torch.float64).view(count, -1).sum(1), tokens
