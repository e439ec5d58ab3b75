"""The steps of a library: learn, check, roll back, forget. Each that writes is one transaction.

Nothing is current before the manifest is written, which is the last thing that a step does; only forgetting
removes files after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from shoal.errors import UsageError
from shoal.library.contents import Contents, accepted_scores
from shoal.library.gate import BOUND, Exam, RefusedError, Verdict, ask_exams, confusions, judge
from shoal.library.learning import Training, learn_skill
from shoal.library.lessons import Lesson, check_against
from shoal.library.models import Models
from shoal.library.skills import SkillFacts
from shoal.library.store import Store
from shoal.library.versions import Asked, Confusion, Step, Version, check_restorable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gate:
    """The limits of what older skills may lose by a step.

    Attributes:
        bound: points of ROUGE-L.
        allowed: skills that may lose more.
    """

    bound: float = BOUND
    allowed: frozenset[str] = frozenset()

    def check(self, contents: Contents) -> None:
        """Raises UsageError where the bound is out of range, or a skill is not there."""
        if not 0 <= self.bound <= 100:
            raise UsageError(f"bound {self.bound:g} points is outside 0 to 100; {BOUND:g} is usual")
        for name in self.allowed:
            contents.check_known(name)


@dataclass(frozen=True)
class Learnt:
    """A skill that was learnt and committed.

    Attributes:
        version: of the library after it.
        facts: of the new skill.
        replaced: the name was taken, and the skill is a new version of it.
        routed: share of its exemplars that the router gives to it, in [0, 1]; None without exemplars.
        verdicts: on every older skill.
        confused: pairs with the new skill that inputs do not tell apart; these want a name or a sentence.
        gate_seconds: that asking the older skills took.
        seconds: that all of it took.
    """

    version: int
    facts: SkillFacts
    replaced: bool
    routed: float | None
    verdicts: tuple[Verdict, ...]
    confused: tuple[Confusion, ...]
    gate_seconds: float
    seconds: float


def learn(store: Store, models: Models, lesson: Lesson, gate: Gate, training: Training) -> Learnt:
    """As `Library.learn`."""
    started = time.perf_counter()
    name = lesson.name
    with store.writing() as current:
        before = Contents.read(store, current)
        gate.check(before)
        old = before.skills.get(name)
        if old is not None:
            log.warning("the name %s is taken: this is a new version of the skill", name)
            lesson = lesson.without(old.exemplars)
        others = {n: skill.exemplars for n, skill in before.skills.items() if n != name}
        check_against(lesson, others, gate.allowed)
        run = store.staging() / "run"
        content = learn_skill(models, lesson, store.none, store.facts.layer, run, training, old)
        digest = store.add(content, models.backbone.shape)  # that no version names yet
        learnt = time.perf_counter()
        after = before.added(name, digest)
        asked = after.asked(name, models)
        confused = confusions({n: own.routes for n, own in asked.items()})
        own_pairs = tuple(pair for pair in confused if name in (pair.skill, pair.other))
        alike = {pair.skill for pair in own_pairs} | {pair.other for pair in own_pairs}
        verdicts = _verdicts(before, after, name, asked, gate, models, alike - {name})
        gate_seconds = time.perf_counter() - learnt
        if any(verdict.loses and not verdict.allowed for verdict in verdicts):
            raise RefusedError(name, verdicts, own_pairs, gate_seconds)
        seconds = time.perf_counter() - started
        step = Step(kind="learn", skill=name, allowed=tuple(sorted(gate.allowed)), seconds=seconds)
        accepted = accepted_scores(current.accepted, asked, {name, *gate.allowed})
        digests = {**current.skills, name: digest}
        now = before.committed(step, digests, asked, accepted, confused)
    facts, routes = now.skills[name].facts, asked[name].routes
    routed = routes.count(name) / len(routes) if routes else None
    _say(facts, routed, own_pairs)
    number = now.version.number
    return Learnt(number, facts, old is not None, routed, tuple(verdicts), own_pairs, gate_seconds, seconds)


def check(store: Store, models: Models, gate: Gate) -> list[Verdict]:
    """As `Library.check`."""
    contents = Contents.read(store, store.current())
    gate.check(contents)
    exams = []
    for name, skill in contents.skills.items():
        skill.check_files()
        states = models.states([e.input for e in skill.exemplars], store.facts.layer)
        routes = contents.discriminant.routes(states) if skill.exemplars else ()
        exams.append(Exam(name, skill.exemplars, routes, None))
    asked = ask_exams(exams, {}, (), contents.answering(models))
    return judge(contents.version.accepted, asked, bound=gate.bound)


def rollback(store: Store, number: int) -> Version:
    """As `Library.rollback`."""
    with store.writing() as current:
        found = check_restorable(store.versions(), number)
        for skill in Contents.read(store, found).skills.values():
            skill.check_files()
        step = Step(kind="rollback", to=number)
        here = Contents(store, current, {})
        return here.committed(step, found.skills, found.asked, found.accepted, found.confused).version


def forget(store: Store, models: Models, name: str) -> Version:
    """As `Library.forget`."""
    started = time.perf_counter()
    with store.writing() as current:
        before = Contents.read(store, current)
        before.check_known(name)
        asked = before.removed(name).asked(name, models)
        confused = confusions({n: own.routes for n, own in asked.items()})
        digests = {n: digest for n, digest in current.skills.items() if n != name}
        step = Step(kind="forget", skill=name, seconds=time.perf_counter() - started)
        accepted = accepted_scores({}, asked, asked)
        now = before.committed(step, digests, asked, accepted, confused)
        store.remove(name)
    if not now.skills:
        log.warning("that was the last skill: the library is empty, and answers as the base model")
    return now.version


def _verdicts(
    before: Contents,
    after: Contents,
    name: str,
    asked: Mapping[str, Asked],
    gate: Gate,
    models: Models,
    alike: Set[str],
) -> list[Verdict]:
    """On every older skill; also on the one that is replaced, whose exemplars the new adapter answers."""
    accepted = before.version.accepted
    others = {n: own for n, own in accepted.items() if n != name}
    found = judge(others, asked, bound=gate.bound, allowed=gate.allowed, alike=alike)
    old = before.skills.get(name)
    if old is not None and old.exemplars:
        exam = Exam(name, old.exemplars, after.discriminant.routes(old.states), None)
        now = ask_exams([exam], {}, (), after.answering(models))
        found += judge({name: accepted[name]}, now, bound=gate.bound, allowed=gate.allowed)
    return found


def _say(facts: SkillFacts, routed: float | None, confused: Sequence[Confusion]) -> None:
    for pair in confused:
        log.warning("%s: requests for the two want a name or a sentence", pair)
    if facts.kept != "learnt":
        log.warning("%s: %s", facts.name, facts.why)
    own, base = facts.points(facts.kept), facts.points("base")
    if own is not None and base is not None and own <= base:
        log.warning("%s scores %.1f and the base model %.1f: it does not help", facts.name, own, base)
    if routed is not None and routed < 0.5:
        log.warning("the router gives %s only %.0f%% of its own requests", facts.name, 100 * routed)
