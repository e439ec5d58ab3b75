"""Training an expert vector by reinforcement learning on verifiable rewards, or on right answers (a control).

Training starts at the base model itself. Two estimators of one gradient:

* `rloo`: answers are sampled, and each is judged against the mean reward of the others to its request
  (Ahmadian et al., arXiv 2402.14740, section 3.1); groups without variance teach nothing and are skipped;
* `expected_reward`: for a closed set of labels the sum over all of them is exact, `sum_l p(l) r(l)`.

Both may pay for divergence from the base model, exactly: the KL at every position of the answers, with the
same batch run at z = 1. The objective `evolution` takes no gradient: it tries a population of candidates for
z, see `shoal.training.evolution`. What is trained is a `Tuned`, so that other adapters can be trained on the
same rewards. Knows a backbone, its decompositions and tasks; nothing of routers or files.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.decomposition import Decompositions
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import ExpertTrainingConfig
from shoal.errors import UsageError
from shoal.inference.forward import Sequences, answer_logits, pad_sequences
from shoal.inference.generate import generate_greedy, sample_tokens
from shoal.models.backbone import Backbone
from shoal.tasks.answer_kinds import labels_of
from shoal.tasks.loading import Task, check_no_leakage
from shoal.tasks.rewards import REWARDS, Reward
from shoal.training.batches import BatchOrder, Corpus, TokenisedExample, tokenise
from shoal.training.evolution import evolve
from shoal.training.label_rewards import LabelRewards, log_likelihoods, source_of
from shoal.training.loop import RunSummary, StepLoss, run
from shoal.training.lora import fingerprint, set_for_training
from shoal.transformer2.population import ExpertPopulation

log = logging.getLogger(__name__)

GATE_EXAMPLES = 64  # of all tasks together, on which the base model is tried first


class Tuned(Protocol):
    """Parameters that rewards train, with the change of a model that they stand for."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters, float32."""

    def attached(self) -> AbstractContextManager[object]:
        """The model changed by the parameters, gradients included; outside it is the base model."""

    def fingerprint(self) -> object:
        """Names what they change, for the run folder."""


class SingularValues:
    """The z of an expert, as 1 + theta with theta from 0: training starts at the base model."""

    def __init__(self, model: nn.Module, basis: Decompositions) -> None:
        """Start at z = 1."""
        self._model = model
        self.basis = basis
        self.module = nn.ParameterList(
            nn.Parameter(torch.zeros_like(d.s, dtype=torch.float32)) for d in basis.values()
        )

    def attached(self) -> AbstractContextManager[object]:
        """The model with the expert attached."""
        return attach_expert(self._model, self.basis, self._current())

    def fingerprint(self) -> list[tuple[str, int]]:
        """Modules and the number of singular values of each."""
        return [(name, d.s.numel()) for name, d in self.basis.items()]

    def experts(self, candidates: Float[Tensor, "candidates parameters"]) -> ExpertVector:
        """The experts of other parameters, which stand in the order of the weights, as a batch."""
        parts = candidates.split([theta.numel() for theta in self.module], dim=1)
        return ExpertVector({name: 1 + theta for name, theta in zip(self.basis, parts, strict=True)})

    def expert(self) -> ExpertVector:
        """The expert as it stands, float32 on the CPU."""
        return ExpertVector({name: z.detach().cpu() for name, z in self._current().z.items()})

    def _current(self) -> ExpertVector:
        return ExpertVector({n: 1 + theta for n, theta in zip(self.basis, self.module, strict=True)})


@dataclass(frozen=True)
class TrainedExpert:
    """The result of a training.

    Attributes:
        expert: its z, float32 on the CPU.
        summary: how the run went.
        base_success: mean reward of the base model's greedy answers on training examples, in [0, 1].
    """

    expert: ExpertVector
    summary: RunSummary
    base_success: float


def train_expert(
    backbone: Backbone,
    basis: Decompositions,
    tasks: Sequence[Task],
    folder: Path,
    config: ExpertTrainingConfig,
    *,
    held_out: Sequence[Task] = (),
    reward: Reward | None = None,
    show_progress: bool = True,
) -> TrainedExpert:
    """Train one expert on the `train` lists of one or more tasks, drawn evenly.

    Args:
        backbone: the frozen model.
        basis: decompositions of the weights that the expert scales.
        tasks: what to train on.
        folder: of the run; training resumes from a checkpoint in it.
        config: optimisation settings.
        held_out: tasks that must share no example with `tasks`.
        reward: what an answer earns; by default the configuration's own.
        show_progress: draw a progress bar.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the training examples.
        UsageError: no tasks or weights, a base model that earns nearly nothing or everything, labels that are
            not a closed set, or a folder of another run.
        Interrupted: Ctrl-C, after the checkpoint is written.
    """
    if not basis:
        raise UsageError("an expert needs decomposed weights, got 0; decompose some")
    tuned = SingularValues(backbone.model, basis)
    summary, success = train_on_rewards(
        backbone, tuned, tasks, folder, config, held_out=held_out, reward=reward, show_progress=show_progress
    )
    return TrainedExpert(tuned.expert(), summary, success)


def train_on_rewards(
    backbone: Backbone,
    tuned: Tuned,
    tasks: Sequence[Task],
    folder: Path,
    config: ExpertTrainingConfig,
    *,
    held_out: Sequence[Task] = (),
    reward: Reward | None = None,
    show_progress: bool = True,
) -> tuple[RunSummary, float]:
    """Train anything tunable as `train_expert` trains a z; the same arguments and errors.

    Returns:
        How the run went, and the base model's mean reward before it.
    """
    if not tasks:
        raise UsageError("an expert needs tasks, got 0; give some")
    if config.objective == "evolution" and not isinstance(tuned, SingularValues):
        raise UsageError(
            f"evolution tries candidates for an expert's z, not for {type(tuned).__name__}; choose rloo"
        )
    check_no_leakage(tasks, held_out)
    reward = reward or REWARDS[config.reward]
    corpus = tokenise(tasks, backbone, config.max_length, describe=config.describe)
    objective = ExpertObjective(backbone, tuned, corpus, config, reward)
    success = base_success(backbone, corpus, reward, config)
    if config.objective != "sft" and not config.least_success <= success <= config.most_success:
        raise UsageError(
            f"the base model earns {success:.2f} of 1 on the training examples, outside "
            f"{config.least_success:g} to {config.most_success:g}: rewards would be nearly all equal; "
            "choose an easier or harder task"
        )
    if isinstance(tuned, SingularValues) and config.objective == "evolution":
        population = ExpertPopulation(backbone, tuned, corpus, config, reward, objective.fingerprint())
        return evolve(population, config, folder, show_progress=show_progress), success
    with set_for_training(backbone):
        summary = run(objective, config, folder, show_progress=show_progress)
    return summary, success


def base_success(backbone: Backbone, corpus: Corpus, reward: Reward, config: ExpertTrainingConfig) -> float:
    """Mean reward of the base model's greedy answers to the first training examples of every task."""
    log.info("measuring what the base model earns on training examples")
    each = max(1, GATE_EXAMPLES // len(corpus.tasks))
    earned = []
    for task, examples in zip(corpus.tasks, corpus.examples, strict=True):
        places = [e.place for e in examples[:each]]
        shown = [task.train[place] for place in places]
        requests = [
            task.described(e.input, place) if config.describe else e.input
            for place, e in zip(places, shown, strict=True)
        ]
        answers = generate_greedy(backbone, requests, max_new_tokens=config.max_new_tokens)
        earned += [reward(e, answer) for e, answer in zip(shown, answers, strict=True)]
    return sum(earned) / len(earned)


class ExpertObjective:
    """The loss of what is tuned: minus the expected reward, plus the divergence from the base model."""

    def __init__(
        self, backbone: Backbone, tuned: Tuned, corpus: Corpus, config: ExpertTrainingConfig, reward: Reward
    ) -> None:
        """See that the tasks suit the objective.

        Raises:
            UsageError: `expected_reward` and a task with fewer than 2 or more than 32 different answers.
        """
        self._backbone = backbone
        self._tuned = tuned
        self._corpus = corpus
        self._config = config
        self._reward = reward
        self._order = BatchOrder(corpus, config.batch_size, config.seed, config.examples_a_task)
        self._labels = LabelRewards(backbone, corpus, reward)
        if config.objective == "expected_reward":
            for task in corpus.tasks:
                labels_of(task)
        self.module = tuned.module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters at one learning rate."""
        return [{"params": list(self.module.parameters()), "lr": self._config.learning_rate}]

    def loss(self, forward_pass: int) -> StepLoss:
        """Loss of one batch; sampling is decided by the seed and the number of the forward pass."""
        examples = self._order.batch(forward_pass)
        if self._config.objective == "sft":
            return self._right_answers(examples)
        if self._config.objective == "expected_reward":
            return self._expected_reward(examples)
        return self._sampled(examples)

    def fingerprint(self) -> str:
        """Names base model, data, the weights that are scaled and what answers earn."""
        right = [[e.outputs for e in task.train] for task in self._corpus.tasks]
        reward = getattr(self._reward, "__qualname__", type(self._reward).__qualname__)
        return fingerprint(self._backbone, self._corpus, self._tuned.fingerprint(), right, reward)

    def _right_answers(self, examples: Sequence[TokenisedExample]) -> StepLoss:
        """Cross-entropy of the right answers, the mean over each sample's tokens."""
        batch = self._padded([(e.prompt, e.completion) for e in examples])
        with self._tuned.attached():
            logits = answer_logits(self._backbone, batch)
        likely = log_likelihoods(logits, batch)
        return StepLoss(-(likely / batch.answer.sum(1)).mean(), batch.tokens)

    def _expected_reward(self, examples: Sequence[TokenisedExample]) -> StepLoss:
        """Minus `sum_l p(l) r(l)`, with the model's own probability of every label and its end."""
        answers = [answer for example in examples for answer in self._labels.answers(example)]
        batch = self._padded([(a.prompt, a.completion) for a in answers])
        likely, divergence = self._policy(batch)
        rewards = torch.tensor([a.reward for a in answers], device=likely.device)
        expected = (likely.exp() * rewards).sum() / len(examples)
        loss = -expected + self._config.kl_weight * divergence
        metrics = {"reward": float(expected.detach()), "kl": float(divergence.detach())}
        return StepLoss(loss, batch.tokens, metrics)

    def _sampled(self, examples: Sequence[TokenisedExample]) -> StepLoss:
        """REINFORCE with the mean reward of the other samples as baseline."""
        config, count = self._config, self._config.samples
        prompts = [e.prompt for e in examples for _ in range(count)]
        # The loop has seeded torch from the run's seed and the forward pass: the generator continues from it.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        with torch.no_grad(), self._tuned.attached():
            answers = sample_tokens(
                self._backbone,
                prompts,
                generator=generator,
                temperature=config.temperature,
                max_new_tokens=config.max_new_tokens,
            )
        sources = [source_of(self._corpus, e) for e in examples for _ in range(count)]
        earned = [
            self._reward(e, self._backbone.decode(ids)) for e, ids in zip(sources, answers, strict=True)
        ]
        rewards = torch.tensor(earned).view(len(examples), count)
        advantages = leave_one_out(rewards).flatten()
        useful = [i for i, advantage in enumerate(advantages.tolist()) if advantage]
        metrics = {"reward": float(rewards.mean()), "useful": len(useful) / len(prompts), "kl": 0.0}
        if not useful:
            tokens = sum(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
            nothing = torch.stack([p.sum() for p in self.module.parameters()]).sum() * 0
            return StepLoss(nothing, tokens, metrics)
        batch = self._padded([(prompts[i], answers[i]) for i in useful])
        likely, divergence = self._policy(batch)
        gain = (advantages[useful].to(likely.device) * likely).sum() / len(prompts)
        loss = -gain + config.kl_weight * divergence
        return StepLoss(loss, batch.tokens, {**metrics, "kl": float(divergence.detach())})

    def _policy(self, batch: Sequences) -> tuple[Float[Tensor, " batch"], Float[Tensor, ""]]:
        """(log-likelihood of every answer, mean divergence from the base model per token of an answer)."""
        with self._tuned.attached():
            logits = answer_logits(self._backbone, batch)
        likely = log_likelihoods(logits, batch)
        if not self._config.kl_weight:
            return likely, likely.new_zeros(())
        with torch.no_grad():  # the rows of the same batch at z = 1; their gradient is not needed
            base = answer_logits(self._backbone, batch).float().log_softmax(-1)
        own = logits.float().log_softmax(-1)
        return likely, F.kl_div(base, own, log_target=True, reduction="none").sum(-1).mean()

    def _padded(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sequences:
        return pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)


def leave_one_out(rewards: Float[Tensor, "requests samples"]) -> Float[Tensor, "requests samples"]:
    """Every reward minus the mean of the others to the same request; 0 where all are equal."""
    count = rewards.shape[1]
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(equal, 0.0, (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1))
