"""Training without gradients: an evolution strategy proposes candidates and learns from their rewards.

The strategy is sep-CMA-ES, whose covariance is diagonal: its time and memory are linear in the parameters. It
is a pure function of the seed and of the rewards that it was given, so a checkpoint holds these, and a run
resumes by telling them again. Candidates that all earn the same teach nothing: they are tried again, on the
next batch. Knows nothing of models or tasks: a population tries the candidates.

Source: Ros, Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity" (PPSN 2008),
as the library `cma` implements it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from shoal.config import EvolutionConfig
from shoal.errors import ShoalError, UsageError
from shoal.training.checkpoints import CHECKPOINT, Progress, load_checkpoint, save_checkpoint
from shoal.training.loop import RunSummary, drive, identity_of, moved_on
from shoal.training.processes import start_together, summed


@dataclass(frozen=True)
class Fitness:
    """The rewards of candidates on one batch.

    Attributes:
        rewards: of every candidate, the higher the better.
        tokens: real (unpadded) tokens that were read and written.
    """

    rewards: Sequence[float]
    tokens: int


class Population(Protocol):
    """Tries candidates."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters: where the strategy starts, then its mean."""

    def fitness(self, candidates: Float[Tensor, "candidates parameters"], forward_pass: int) -> Fitness:
        """Try candidates, float32, all on the same batch; `forward_pass` counts them as in the loop."""

    def fingerprint(self) -> str:
        """Names the data and the start, so that a run is never resumed on others."""


def evolve(
    population: Population,
    config: EvolutionConfig,
    folder: Path,
    *,
    show_progress: bool = True,
    until: int | None = None,
) -> RunSummary:
    """Evolve until `config.steps` or `config.minutes`, from the checkpoint in `folder` if it holds one.

    What is left in `population.module` is the mean of the strategy's distribution: the best candidate of a
    generation owes its place to the batch too. Of several processes each tries the candidates on a batch of
    its own.

    Args:
        population: parameters and what they earn.
        config: settings, `population` and `sigma` among them.
        folder: of this run: checkpoint, JSONL log and TensorBoard events; shared by all processes.
        show_progress: draw a progress bar on standard error.
        until: generation after which this sitting ends, also by the clock; None for the end of the run.

    Returns:
        How it went; its loss is minus the mean reward of all candidates.

    Raises:
        UsageError: the folder holds another run's checkpoint, or there is only one parameter.
        Interrupted: Ctrl-C; calling again resumes. A second Ctrl-C stops at once, without a checkpoint.
        ShoalError: a reward is not finite, a checkpoint does not lead to where it was written, or a file
            cannot be written.
    """
    module, place = population.module, folder / CHECKPOINT
    accelerator = Accelerator(cpu=next(module.parameters()).device.type == "cpu")
    identity = identity_of(population.fingerprint(), config, accelerator.num_processes)
    strategy = Strategy(
        parameters_to_vector(module.parameters()), config.population, config.sigma, config.seed
    )
    progress = load_checkpoint(place, module, None, identity)
    start_together(module, progress, accelerator)
    _replay(strategy, progress, module, place)

    def take_step(interrupts: list[int]) -> tuple[dict[str, float], bool]:
        return _generation(population, strategy, config, accelerator, progress, interrupts)

    return drive(
        take_step,
        lambda: save_checkpoint(place, module, None, identity, progress),
        progress,
        config,
        folder,
        accelerator,
        show_progress=show_progress,
        until=until,
    )


class Strategy:
    """sep-CMA-ES: proposes candidates and takes rewards; the same rewards give the same candidates."""

    def __init__(self, start: Float[Tensor, " parameters"], population: int, sigma: float, seed: int) -> None:
        """A normal distribution around `start` with the standard deviation `sigma` everywhere.

        Raises:
            UsageError: fewer than 2 parameters.
        """
        if start.numel() < 2:
            raise UsageError(
                f"an evolution needs at least 2 parameters, got {start.numel()}; scale more weights"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its plots need matplotlib
            import cma
        generator = np.random.default_rng(seed)
        options = {
            "CMA_diagonal": True,
            "popsize": population,
            "randn": lambda *shape: generator.standard_normal(shape),
            "seed": math.nan,  # leaves numpy's own generator alone
            "verbose": -9,
            "verb_log": 0,
            "signals_filename": "",
        }
        self._search = cma.CMAEvolutionStrategy(start.detach().cpu().double().numpy(), sigma, options)
        self._asked: list[np.ndarray] = []

    @property
    def mean(self) -> Float[Tensor, " parameters"]:
        """Of the distribution, float32."""
        return torch.from_numpy(np.array(self._search.mean, dtype=np.float32))

    @property
    def sigma(self) -> float:
        """The step size, in units of the parameters."""
        return float(self._search.sigma)

    def ask(self) -> Float[Tensor, "candidates parameters"]:
        """The candidates of the next generation, float32; the last ones again where nothing was learnt."""
        self._asked = self._asked or self._search.ask()
        return torch.from_numpy(np.stack(self._asked).astype(np.float32))

    def tell(self, rewards: Sequence[float]) -> bool:
        """Learn from what the last candidates earn; False, and nothing learnt, where all earn the same."""
        if min(rewards) == max(rewards):
            return False
        self._search.tell(self._asked, [-reward for reward in rewards])
        self._asked = []
        return True


def _replay(strategy: Strategy, progress: Progress, module: nn.Module, place: Path) -> None:
    """Bring a fresh strategy to where a checkpoint was written."""
    try:
        if len(progress.rewards) != progress.step:
            raise ValueError(f"{len(progress.rewards)} generations of rewards, not {progress.step}")
        for rewards in progress.rewards:
            if len(strategy.ask()) != len(rewards):
                raise ValueError(f"{len(rewards)} rewards in a generation")
            strategy.tell(rewards)
    except (TypeError, ValueError) as error:
        raise ShoalError(f"{place} is damaged ({error}); delete it to start over") from None
    if not torch.equal(strategy.mean, parameters_to_vector(module.parameters()).detach().cpu()):
        raise ShoalError(
            f"telling the {progress.step} generations of {place} again leads elsewhere: another version of "
            "cma or numpy wrote it; use that one, or delete it to start over"
        )


@torch.no_grad()
def _put(numbers: Float[Tensor, " parameters"], module: nn.Module) -> None:
    """Copy numbers into the parameters, in their order."""
    parameters = list(module.parameters())
    for parameter, part in zip(parameters, numbers.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def _generation(
    population: Population,
    strategy: Strategy,
    config: EvolutionConfig,
    accelerator: Accelerator,
    progress: Progress,
    interrupts: list[int],
) -> tuple[dict[str, float], bool]:
    """Ask, try and tell once: (numbers for the log, whether any process was interrupted)."""
    started, step = time.perf_counter(), progress.step
    candidates = strategy.ask()
    batches = config.accumulation * accelerator.num_processes
    numbers = dict.fromkeys([*map(str, range(len(candidates))), "tokens"], 0.0)
    for part in range(config.accumulation):
        forward_pass = (step * config.accumulation + part) * accelerator.num_processes
        tried = population.fitness(candidates, forward_pass + accelerator.process_index)
        for number, reward in enumerate(tried.rewards):
            numbers[str(number)] += reward
        numbers["tokens"] += tried.tokens
    numbers["interrupts"] = len(interrupts)
    if accelerator.num_processes > 1:
        numbers = summed(numbers, accelerator)
    stopping, tokens = numbers.pop("interrupts") > 0, int(numbers.pop("tokens"))
    rewards = [reward / batches for reward in numbers.values()]
    odd = next((reward for reward in rewards if not math.isfinite(reward)), None)
    if odd is not None:
        raise ShoalError(
            f"the reward {odd} of a candidate of step {step + 1} is not finite; lower sigma (now "
            f"{config.sigma:g}), or check the data"
        )
    useful = strategy.tell(rewards)
    progress.rewards.append(rewards)
    _put(strategy.mean, population.module)
    mean = sum(rewards) / len(rewards)
    speed = moved_on(progress, -mean, tokens, started, accelerator)
    spread = {"reward": mean, "best": max(rewards), "useful": float(useful), "sigma": strategy.sigma}
    return {"loss": -mean, "tokens_per_second": speed, **spread}, stopping
