"""Stream B: skills into a library one after another, its answers by every way of routing, and its router."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from _library_skills import Skills, files_of, inputs, learnt_cell, training, uncalibrated
from _merging_bench import Bench

from shoal.library.discriminant import Discriminant, fit_discriminant, kinds_like
from shoal.library.learning import MOST_STATES, Training
from shoal.library.lessons import prepare
from shoal.library.library import Library
from shoal.library.moments import Moments
from shoal.library.routing import by_description
from shoal.tasks.metrics import rouge_l
from shoal.tasks.records import Task
from shoal.text_to_lora.sample_inputs import input_kinds
from shoal.transformer2.router import NONE, Probe, train_probe
from shoal.transformer2.router_recipe import TEST, TRAIN, labelled_requests

EXAMPLES = 26  # of which `prepare` holds 6 out, so that the router has 20
SUMS = 20
CONTROLS = 10  # requests of a skill that the base model, S and the sentence's adapter answer
RANDOM = 5  # requests of a skill that are answered by a random skill
Routes = Mapping[str, Sequence[str]]


def grow(bench: Bench) -> None:
    """Learn every skill, ask all, and measure the router."""
    if "b/worded" in bench.cells:
        return
    names = ("skill_steps", "skill_batch", "requests")
    bench.cell("b/facts", lambda: {name: getattr(bench.args, name) for name in names})
    skills = Skills(bench)
    library = skills.library("stream_b")
    for name, task in skills.tasks.items():
        step = partial(learn, library, name, task, training(bench))
        learnt_cell(bench, library, f"b/learn/{name}", name, step)
    growth = Growth(skills, library)
    for name in skills.tasks:
        bench.cell(f"b/scores/{name}", partial(growth.scores, name))
    for order in (0, 1, 2):
        bench.cell(f"b/order/{order}", partial(growth.order, order))
    bench.cell("b/ways", growth.ways)
    bench.cell("b/answered", growth.answered)
    bench.cell("b/router", growth.router)
    bench.cell("b/worded", partial(worded, skills, library))


def learn(library: Library, name: str, task: Task, training: Training) -> dict[str, Any]:
    """One step, with all older skills allowed to lose; what the gate says of them is kept."""
    before = files_of(library)
    found = library.learn(
        name,
        task.train[:EXAMPLES],
        task.descriptions[0],
        allow_loss=sorted(library.skills.keys() - {name}),
        training=training,
    )
    after = files_of(library)
    return {
        "learning_seconds": found.seconds,
        "gate_seconds": found.gate_seconds,
        "kept": found.facts.kept,
        "routed": found.routed,
        "loses": [verdict.skill for verdict in found.verdicts if verdict.loses],
        "alike": [str(pair) for pair in found.confused],
        "untouched": all(after[path] == digest for path, digest in before.items()),
        "bytes": library.skills[name].nbytes,
    }


class Growth:
    """The library when all skills are there, and what is asked of it."""

    def __init__(self, skills: Skills, library: Library) -> None:
        self.bench, self.skills, self.models, self.library = skills.bench, skills, skills.models, library
        count = skills.bench.args.requests
        self.asked = {name: task.test[:count] for name, task in skills.tasks.items()}
        self.layer = library.contents.store.facts.layer
        self.none = library.contents.store.none
        self.states = {n: self.models.states(inputs(own), self.layer) for n, own in self.asked.items()}

    def scores(self, name: str) -> dict[str, Any]:
        """Of the test requests of one skill, under the base model, S, the sentence's adapter and its own."""
        task, own, asked = self.skills.tasks[name], self.library.skills[name], self.asked[name]
        labels, few = uncalibrated(own.facts.label_set), asked[:CONTROLS]
        sentence = self.models.generator.generate(own.facts.description).lora
        requests = inputs(few)
        rows = {
            "base": (requests, None),
            "described": ([task.described(text) for text in requests], None),
            "start": (requests, self.bench.start),
            "sentence": (requests, sentence),
        }
        found = {"own": self.models.scores(asked, own.lora, own.facts.label_set)}
        for row, (texts, lora) in rows.items():
            answers = self.models.answers(texts, lora, labels, self.bench.args.max_new_tokens)
            found[row] = [rouge_l(answer, e.outputs) for answer, e in zip(answers, few, strict=True)]
        return {row: [round(score, 4) for score in scores] for row, scores in found.items()}

    def order(self, order: int) -> dict[str, Any]:
        """Routes that are not the skill's own, after every step of one order."""
        names = list(self.asked)
        if order:
            random.Random(order).shuffle(names)
        steps = []
        for count in range(1, len(names) + 1):
            router = self.discriminant(names[:count])
            routes = {name: router.routes(self.states[name]) for name in names[:count]}
            steps.append({name: astray(name, own) for name, own in routes.items()})
        return {"skills": names, "astray": steps}

    def ways(self) -> dict[str, Any]:
        """Routes at the end: by the probe, by an unseen sentence, at random."""
        names, chance = sorted(self.asked), random.Random(0)
        probe = self.probe()
        found: dict[str, dict[str, dict[str, str]]] = {"probe": {}, "described": {}, "random": {}}
        for name, own in self.asked.items():
            kept = self.skills.tasks[name].descriptions[TEST[0] :: 4]
            near = [
                by_description(self.library.contents, self.models.encoder, text).skill
                for text in kept[: len(own)]
            ]
            found["probe"][name] = astray(name, probed(probe, self.states[name]))
            found["described"][name] = astray(name, [near[i % len(near)] for i in range(len(own))])
            found["random"][name] = astray(name, [chance.choice(names) for _ in own[:RANDOM]])
        return found

    def answered(self) -> dict[str, Any]:
        """Scores of the answers that other skills give, for every such route of any way and order."""
        cells = self.bench.cells
        ways = [cells["b/ways"][way] for way in ("probe", "described", "random")]
        ways += [step for order in (0, 1, 2) for step in cells[f"b/order/{order}"]["astray"]]
        wanted = {(route, n, i) for way in ways for n, own in way.items() for i, route in own.items()}
        found: dict[str, float] = {}
        for route, group in itertools.groupby(sorted(wanted), key=lambda row: row[0]):
            rows = list(group)
            asked = [self.asked[name][int(i)] for _, name, i in rows]
            scores = self.models.scores(asked, *self.library.contents.adapted(route))
            found |= {"/".join(row): round(score, 4) for row, score in zip(rows, scores, strict=True)}
        return {"scores": found}

    def router(self) -> dict[str, Any]:
        """Its requests and others', by the input alone, beside the logistic probe fitted to all at once."""
        started = time.perf_counter()
        router = self.discriminant(list(self.asked))
        seconds = time.perf_counter() - started
        other = self.discriminant(list(self.asked)[::-1])
        states = torch.cat(list(self.states.values()))
        apart = (router.probabilities(states) - other.probabilities(states)).abs().max()
        strange = [e.input for task in self.skills.others(60) for e in task.test[:2]]
        none = self.models.states(strange, self.layer)
        probe = self.probe()
        return {
            "right": {n: share(n, router.routes(x)) for n, x in self.states.items()},
            "probe_right": {n: share(n, probed(probe, x)) for n, x in self.states.items()},
            "none": share(NONE, router.routes(none)),
            "probe_none": share(NONE, probed(probe, none)),
            "others": len(strange),
            "fitting_seconds": seconds,
            "orders_apart": float(apart),
        }

    def discriminant(self, names: Iterable[str]) -> Discriminant:
        """The library's router with some of its skills."""
        own = {name: self.library.skills[name] for name in names}
        moments = {name: skill.moments for name, skill in own.items()}
        without = {kind for skill in own.values() for kind in skill.facts.kinds}
        return fit_discriminant(moments, self.none, self.layer, without=without)

    def probe(self) -> Probe:
        """The logistic probe of the same requests, fitted to all at once."""
        train = {
            name: inputs(prepare(name, task.descriptions[0], task.train[:EXAMPLES]).train[:MOST_STATES])
            for name, task in self.skills.tasks.items()
        }
        return joint_probe(self.skills, train, self.layer)


def worded(skills: Skills, library: Library) -> dict[str, Any]:
    """The router where requests carry a wording of their task, tested with wordings that it never saw.

    Twice: `none` from the texts that the package ships, and with the requests of other training tasks too.
    """
    groups = {name: [task] for name, task in skills.tasks.items()}
    layer, models = library.contents.store.facts.layer, skills.models

    def states(found: Mapping[str, Sequence[Task]], count: int, folds: Sequence[int]) -> dict[str, Any]:
        drawn = labelled_requests(found, count, folds)
        own: dict[str, list[str]] = {}
        for request in drawn:
            own.setdefault(request.skill, []).append(request.text)
        return {name: models.states(texts, layer) for name, texts in own.items()}

    train = states(groups, EXAMPLES, TRAIN)
    test = states(groups, skills.bench.args.requests, TEST)
    strange = states({NONE: skills.others(60)}, 120, TEST)[NONE]
    familiar = states({t.name: [t] for t in skills.others(60, 60)}, 6, TRAIN)
    shipped = {kind.kind: models.states(kind.inputs, layer) for kind in input_kinds()}
    found: dict[str, Any] = {}
    for row, texts in (("shipped texts", shipped), ("other tasks too", {**shipped, **familiar})):
        none = Moments.of(texts)
        moments = {name: Moments.of({name: x[:SUMS]}) for name, x in train.items()}
        without = {k for n, x in train.items() for k in kinds_like(moments[n], none, x[SUMS:], layer)}
        router = fit_discriminant(moments, none, layer, without=without)
        names = sorted(moments)
        rows = [*(train[n][:SUMS] for n in names), *texts.values()]
        labels = torch.tensor([min(i, len(names)) for i, own in enumerate(rows) for _ in own])
        probe = train_probe(torch.cat(rows), labels, names, layer)
        found[row] = {
            "right": {n: share(n, router.routes(x)) for n, x in test.items()},
            "probe_right": {n: share(n, probed(probe, x)) for n, x in test.items()},
            "none": share(NONE, router.routes(strange)),
            "probe_none": share(NONE, probed(probe, strange)),
        }
    return found


def joint_probe(skills: Skills, train: Mapping[str, Sequence[str]], layer: int) -> Probe:
    """The logistic probe of some requests and of the shipped texts of no skill."""
    names = sorted(train)
    texts = [*(train[name] for name in names), [t for kind in input_kinds() for t in kind.inputs]]
    labels = torch.tensor([i for i, own in enumerate(texts) for _ in own])
    states = skills.models.states([text for own in texts for text in own], layer)
    return train_probe(states, labels, names, layer)


def probed(probe: Probe, states: torch.Tensor) -> list[str]:
    """The routes of a probe."""
    names = (*probe.skills, NONE)
    return [names[i] for i in probe.probabilities(states).argmax(-1).tolist()]


def astray(name: str, routes: Sequence[str]) -> dict[str, str]:
    """Place -> route, of those that are not the skill's own."""
    return {str(i): route for i, route in enumerate(routes) if route != name}


def share(name: str, routes: Sequence[str]) -> float:
    """The share of routes to one name."""
    return sum(route == name for route in routes) / len(routes)
