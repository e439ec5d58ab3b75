"""A library of eight skills: planted harms and harmless updates at its gate, and one adapter of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from _library_skills import Skills, learnt_cell, training
from _merging_bench import Bench

from shoal.errors import ShoalError
from shoal.library.gate import RefusedError
from shoal.tasks.records import Example

EIGHT = 8
LEARNT, KEEP, UPDATE = 128, 32, 26  # examples of a skill, exemplars of it, examples of an update
HARMS = HARMLESS = 20


class Gate:
    """The library, and what is tried on it: every try begins with the same version."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.skills = bench, Skills(bench)
        self.library = self.skills.library("eight")
        self.names = list(self.skills.tasks)[:EIGHT]
        self.training = training(bench)
        for name in self.names:
            learnt_cell(bench, self.library, f"eight/learn/{name}", name, partial(self.learn, name))

    def learn(self, name: str) -> dict[str, Any]:
        """One of the eight."""
        task = self.skills.tasks[name]
        found = self.library.learn(
            name,
            task.train[:LEARNT],
            task.descriptions[0],
            keep=KEEP,
            allow_loss=sorted(self.library.skills.keys() - {name}),
            training=self.training,
        )
        return {"learning_seconds": found.seconds, "points": found.facts.points(found.facts.kept)}

    def tried(self, name: str, examples: Sequence[Example], description: str) -> dict[str, Any]:
        """Learn something, and roll back what was taken."""
        before = self.library.version.number
        try:
            found = self.library.learn(name, examples, description, training=self.training)
        except RefusedError as error:
            losers = [verdict.skill for verdict in error.verdicts if verdict.loses]
            return {"taken": False, "losers": losers, "gate_seconds": error.seconds}
        except ShoalError as error:
            return {"taken": False, "error": str(error)}
        self.library.rollback(before)
        return {"taken": True, "kept": found.facts.kept, "gate_seconds": found.gate_seconds}

    def harm(self, number: int) -> dict[str, Any]:
        """A new skill on the inputs of an old one: with the answers of other inputs, or of another task."""
        victim = self.names[number % len(self.names)]
        task = self.skills.tasks[victim]
        examples = task.train[LEARNT + number : LEARNT + number + UPDATE]
        if number // len(self.names) % 2:
            kind, wrong = "other task", [e.input.split()[0].upper() for e in examples]
            description = "Write the first word of the text in capital letters."
        else:
            kind, wrong = "wrong answers", mixed_up(examples, number)
            description = task.descriptions[0]
        harmful = [replace(e, outputs=(text,)) for e, text in zip(examples, wrong, strict=True)]
        return {"victim": victim, "kind": kind, **self.tried(f"harm-{number}", harmful, description)}

    def update(self, number: int) -> dict[str, Any]:
        """A skill that the library has not, or right examples for one that it has."""
        new = list(self.skills.tasks)[EIGHT:]
        name = new[number] if number < len(new) else self.names[number - len(new)]
        task, kind = self.skills.tasks[name], "new skill" if number < len(new) else "new version"
        examples = task.train[LEARNT : LEARNT + UPDATE] if kind == "new version" else task.train[:UPDATE]
        return {"skill": name, "kind": kind, **self.tried(name, examples, task.descriptions[0])}


def try_gate(bench: Bench) -> None:
    """All tries."""
    if f"gate/update/{HARMLESS - 1}" in bench.cells:
        return
    gate = Gate(bench)
    for number in range(HARMS):
        bench.cell(f"gate/harm/{number}", partial(gate.harm, number))
    for number in range(HARMLESS):
        bench.cell(f"gate/update/{number}", partial(gate.update, number))


def press(bench: Bench) -> None:
    """The eight skills in one adapter of rank 16: in closed form, then with replay."""
    if f"consolidation/{bench.args.replay}" in bench.cells:
        return
    gate = Gate(bench)
    for steps in (0, bench.args.replay):
        bench.cell(f"consolidation/{steps}", partial(pressed, gate, steps))


def pressed(gate: Gate, steps: int) -> dict[str, Any]:
    """What is left of every skill's gain."""
    found = gate.library.consolidate(16, least=0.0, replay=steps)
    return {"retention": found.report["retention"], "rank": found.lora.rank, "bytes": found.lora.nbytes}


def mixed_up(examples: Sequence[Example], number: int) -> list[str]:
    """For each example the answer of another one, which is not right here."""
    answers = [e.outputs[0] for e in examples]
    found = []
    for place, e in enumerate(examples):
        later = [*answers[place + 1 + number % 3 :], *answers[:place], *answers]
        found.append(next(text for text in later if text not in e.outputs))
    return found
