"""Episodes of refining: one task, a description, examples to learn from, others to be asked; and curves.

A curve is the loss on the others after so many steps, with what was seen on the way. Knows tasks, emitters
and runs; nothing of what is learned from curves.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.adapters.lora import LoRA
from shoal.file_formats import read_json
from shoal.files import write_file
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task
from shoal.tasks.records import Example
from shoal.tasks.texts import normalise
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.few_shot import MAX_TOKENS, REFINING, refine
from shoal.text_to_lora.refining import LOOK, Seen, averaged_since
from shoal.training.batches import TokenisedExample, tokenise
from shoal.training.refining import RefiningRun

LOOKS = (0, 1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)


@dataclass(frozen=True)
class Episode:
    """A small training set of one task, and other examples that judge it.

    Attributes:
        task: its name.
        description: one of its descriptions.
        shots: examples to learn from.
        queries: others, of other inputs.
    """

    task: str
    description: str
    shots: tuple[Example, ...]
    queries: tuple[Example, ...]

    def tokens(self, backbone: Backbone, examples: Sequence[Example]) -> tuple[TokenisedExample, ...]:
        """Some of its examples, tokenised, whatever their length."""
        texts = (self.description,)
        task = Task(self.task, "few-shot", self.description, texts, tuple(examples), ())
        return tokenise([task], backbone, 2**31).examples[0]


@dataclass(frozen=True)
class Curve:
    """The losses on an episode's queries, nats per token.

    Attributes:
        task: its name.
        losses: steps taken -> mean loss.
        seen: of the first steps.
    """

    task: str
    losses: Mapping[int, float]
    seen: Seen

    def after(self, steps: int) -> float:
        """The loss after the measured number of steps that is nearest."""
        return self.losses[min(self.losses, key=lambda step: (abs(step - steps), step))]


class EpisodeSource:
    """Draws episodes of tasks; the same task, number and seed give the same episode."""

    def __init__(self, backbone: Backbone, tasks: Sequence[Task], queries: int, max_length: int) -> None:
        """Examples of more than `max_length` tokens are left out."""
        self._queries = queries
        self._fitting: dict[str, list[Example]] = {}
        self._tasks = {task.name: task for task in tasks}
        self._backbone, self._max_length = backbone, max_length

    def draw(self, name: str, shots: int, seed: object) -> Episode | None:
        """An episode of a task, or None where it has too few different examples."""
        examples = self._of(name)
        if len(examples) < shots + self._queries:
            return None
        chance = random.Random(f"{seed}/{name}/{shots}")
        drawn = chance.sample(examples, shots + self._queries)
        description = chance.choice(self._tasks[name].descriptions)
        return Episode(name, description, tuple(drawn[:shots]), tuple(drawn[shots:]))

    def _of(self, name: str) -> list[Example]:
        if name not in self._fitting:
            different = {normalise(e.input): e for e in self._tasks[name].train}
            examples = list(different.values())
            prompts = self._backbone.encode_prompts([e.input for e in examples])
            completions = self._backbone.encode_completions([e.outputs[0] for e in examples])
            self._fitting[name] = [
                e
                for e, p, c in zip(examples, prompts, completions, strict=True)
                if len(p) + len(c) <= self._max_length
            ]
        return self._fitting[name]


def emitted(emitter: Emitter, episode: Episode) -> LoRA:
    """The adapter of the episode's description, and of its examples where the network reads such."""
    return emitter.emit([episode.description], [episode.shots]).adapters.row(0).to("cpu")


def curve(
    backbone: Backbone,
    emitter: Emitter,
    episode: Episode,
    rates: Mapping[str, float],
    decay: float,
    limit: int,
    kept: Path,
) -> Curve:
    """The losses on the queries while an adapter takes `limit` steps, from their file if it is there.

    `rates` are by module; the file is `kept / TASK-SHOTS-DIGEST.json`.
    """
    settings = (*_decided_by(backbone, emitter, episode), sorted(rates.items()), decay, limit, "mean")
    path = kept / f"{episode.task}-{len(episode.shots)}-{digest(settings)}.json"
    if path.is_file():
        return _curve_of(read_json(path))
    lora = emitted(emitter, episode)
    shots = episode.tokens(backbone, episode.shots)
    run = RefiningRun(backbone, lora, shots, rates, decay=decay)
    run.marks |= {averaged_since(step) for step in (*LOOKS, limit)}
    losses, seen = {0: _loss(backbone, episode, lora)}, []
    for step, taken in enumerate(run.steps(limit), start=1):
        if step <= LOOK:
            seen.append(float(taken.loss.detach()))
        if step in LOOKS or step == limit:
            losses[step] = _loss(backbone, episode, run.mean(averaged_since(step)))
    found = Curve(episode.task, losses, Seen(len(shots), seen, run.agreement))
    kept.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(asdict(found)))
    return found


def todays_loss(backbone: Backbone, emitter: Emitter, episode: Episode, kept: Path) -> float:
    """The loss on the queries after refining by constants, some examples held out; kept as a curve is."""
    settings = (*_decided_by(backbone, emitter, episode), REFINING.model_dump_json(), MAX_TOKENS)
    path = kept / f"{episode.task}-{len(episode.shots)}-{digest(settings)}.json"
    if path.is_file():
        return float(read_json(path)["loss"])
    refined = refine(backbone, emitted(emitter, episode), episode.shots, description=episode.description)
    loss = _loss(backbone, episode, refined.lora)
    kept.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"loss": loss, "steps": refined.steps, "seconds": refined.seconds}))
    return loss


def _curve_of(record: Mapping[str, Any]) -> Curve:
    losses = {int(step): float(loss) for step, loss in record["losses"].items()}
    return Curve(record["task"], losses, Seen(**record["seen"]))


def _decided_by(backbone: Backbone, emitter: Emitter, episode: Episode) -> tuple[object, ...]:
    """All that decides an adapter before it is refined, and the examples."""
    return str(backbone.dtype), emitter.checkpoint.base_model, emitter.checkpoint.sha256, asdict(episode)


def _loss(backbone: Backbone, episode: Episode, lora: LoRA) -> float:
    asked, wanted = [e.input for e in episode.queries], [e.outputs[0] for e in episode.queries]
    losses = reference_losses(backbone, asked, wanted, lora.to(backbone.device))
    return sum(losses) / len(losses)


def digest(settings: object) -> str:
    """12 hexadecimal digits that name settings, in the name of a file."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
