"""Transformer²: experts on own and unseen tasks, dispatch, two passes, mixtures, controls, with intervals.

    python benchmarks/transformer2.py --experts runs/experts

Takes experts in DIR/SKILL-SEED, trains IA3 and LoRA of as many parameters on the same rewards where they are
missing, and writes docs/results/transformer2.json and transformer2.md. Answers that are there are reused from
--work, so a run that was stopped goes on. --parts measures some parts again; the others stay as the JSON has
them. `unseen_by_experts.yaml` names two training tasks of each skill that no expert saw. Dispatch, two passes
and few-shot mixtures use what ships.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from _expert_controls import IA3, LORA, PLACE, control, recipe, skills, tasks_of
from _machine import DATA, ROOT, machine
from _prompt_router import PromptRouter
from _transformer2_page import (
    BASE,
    BEST_PROMPT,
    FEW_SHOT,
    ORACLE,
    PROBE,
    PROMPT,
    RANDOM,
    RANDOM_MIXTURE,
    UNIFORM,
    card,
    page,
)
from everyday_requests import ASKED, read
from everyday_requests import right as right_skill

from shoal.adapters.svf import ExpertVector, mix
from shoal.adapters.svf_files import WEIGHTS_FILE, load_expert
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import MixtureSearchConfig, Transformer2Config
from shoal.evaluation.environment import commit
from shoal.evaluation.predictors import Predictor
from shoal.file_formats import sha256_of
from shoal.files import write_file
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import DEFAULT_MODEL, load_backbone
from shoal.tasks.loading import Task, load_split
from shoal.tasks.metrics import Interval, bootstrap_difference, bootstrap_interval
from shoal.tasks.rewards import REWARDS
from shoal.tasks.texts import normalise
from shoal.transformer2.experts import ROUTER, SHIPPED, load_expert_set
from shoal.transformer2.mixture_search import search_mixture
from shoal.transformer2.model import Transformer2
from shoal.transformer2.router import NONE
from shoal.transformer2.router_files import WEIGHTS_FILE as PROBE_WEIGHTS
from shoal.transformer2.router_files import load_probe
from shoal.transformer2.router_recipe import TEST, LabelledRequest, labelled_requests

TOKENS = 24
SELECTION = 16  # by default: training examples of a task on which the base model's best prompt is chosen
SHOTS = 10
UNSEEN_TASKS = 5
HELD_OUT = Path(__file__).with_name("unseen_by_experts.yaml")
OWN_TASK, UNSEEN, DISPATCH, CONTROLS, TWO_PASSES, FEW_SHOTS = PARTS = (
    "own_task",
    "unseen",
    "dispatch",
    "controls",
    "two_passes",
    "few_shot",
)


class Bench:
    """What all parts share: model, experts, requests, and answers that are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.backbone = load_backbone(DEFAULT_MODEL)
        self.skills = args.skills or skills()
        self.tasks = {skill: tasks_of(skill) for skill in self.skills}
        self.shipped = load_expert_set(args.shipped, self.backbone.model)
        self.experts, self.basis = self.shipped.experts, self.shipped.basis
        self.requests = labelled_requests(self.tasks, args.requests, TEST)
        files = sorted(args.shipped.rglob("*.safetensors"))
        self.weights = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]

    def trained(self, skill: str, seed: int) -> ExpertVector:
        return load_expert(self.args.experts / f"{skill}-{seed}", self.basis).expert

    def hash(self, skill: str, seed: int) -> str:
        """Of a trained expert's numbers."""
        return sha256_of(self.args.experts / f"{skill}-{seed}" / WEIGHTS_FILE)[:16]

    def attach(self, expert: ExpertVector | None) -> AbstractContextManager[object]:
        return attach_expert(self.backbone.model, self.basis, expert) if expert else nullcontext()

    def scores(
        self,
        name: str,
        way: Callable[[Sequence[str]], list[str]],
        requests: Sequence[LabelledRequest],
        weights: str | None = None,
    ) -> list[float]:
        """What the answers earn, in [0, 1].

        Answers with this name to these requests are made once, as long as the weights are the same: as a rule
        all that ship; the base model's are always the same.
        """
        texts = [r.text for r in requests]
        digest = hashlib.sha256(
            json.dumps([name, TOKENS, texts, "" if name == BASE else weights or self.weights]).encode()
        ).hexdigest()[:16]
        path = self.args.work / f"{digest}.json"
        if not path.is_file():
            started = time.perf_counter()
            answers = way(texts)
            self.args.work.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps({"name": name, "answers": answers}))
            say(f"{name}: {len(texts)} answers, {time.perf_counter() - started:.0f} s")
        answers = json.loads(path.read_text("utf-8"))["answers"]
        return [earned(r, a) for r, a in zip(requests, answers, strict=True)]

    def answered(self, expert: ExpertVector | None) -> Callable[[Sequence[str]], list[str]]:
        def way(texts: Sequence[str]) -> list[str]:
            with self.attach(expert):
                return generate_greedy(self.backbone, texts, max_new_tokens=TOKENS)

        return way

    def beside_best_prompt(self, skill: str, requests: Sequence[LabelledRequest]) -> dict[str, Any]:
        """The expert of a skill, a mean over seeds, the base model, and it with its best prompt; the gain."""
        found = {
            BASE: self.scores(BASE, self.answered(None), requests),
            BEST_PROMPT: best_prompt(self, requests),
            ORACLE: mean(
                self.scores(
                    f"{skill}-{seed}",
                    self.answered(self.trained(skill, seed)),
                    requests,
                    self.hash(skill, seed),
                )
                for seed in self.args.seeds
            ),
        }
        return {
            "skill": skill,
            "requests": len(requests),
            **{name: interval(bootstrap_interval(values)) for name, values in found.items()},
            "gain": interval(bootstrap_difference(found[ORACLE], found[BEST_PROMPT])),
        }

    def of(self, skill: str) -> list[LabelledRequest]:
        return [r for r in self.requests if r.skill == skill]


def earned(request: LabelledRequest, answer: str) -> float:
    reward = recipe(request.skill)["reward"] if request.skill in skills() else "rouge_l"
    return REWARDS[str(reward)](request.example, answer)


def main() -> None:
    args = parse()
    bench = Bench(args)
    say(f"{len(bench.skills)} skills, {len(bench.requests)} requests")
    path = args.out / "transformer2.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    results |= {
        "seeds": args.seeds,
        "rewards": {s: recipe(s)["reward"] for s in skills()},
        "tasks": {s: recipe(s)["task"] for s in skills()},
    }
    measure = {
        OWN_TASK: own_task,
        UNSEEN: unseen,
        DISPATCH: dispatch,
        CONTROLS: controls,
        TWO_PASSES: two_passes,
        FEW_SHOTS: few_shot,
    }
    where = f"{machine(bench.backbone.dtype)}, commit {commit() or 'unknown'}"
    for part in args.parts:
        found, name = measure[part](bench), part
        if args.skills and part in (OWN_TASK, UNSEEN):  # rows of other skills stay
            found = list({row["skill"]: row for row in [*results.get(part, ()), *found]}.values())
            name = f"{part} ({', '.join(args.skills)})"
        results[part] = found
        results.setdefault("measured", {})[name] = [where, shlex.join(["python", *sys.argv])]
    args.out.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(results, indent=1) + "\n")
    write_file(args.out / "transformer2.md", page(results))
    probe = load_probe(args.shipped / ROUTER)
    write_file(args.shipped / "README.md", card(results, bench.shipped.stored, probe))
    print(page(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--experts", type=Path, default=PLACE, help="directory of SKILL-SEED")
    add(
        "--shipped",
        type=Path,
        default=SHIPPED / DEFAULT_MODEL,
        help="set of the first seed's experts and the probe; gets a card",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add(
        "--skills",
        nargs="+",
        choices=skills(),
        help="whose experts are measured; by default all with a recipe",
    )
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="what is measured; by default all")
    add("--requests", type=int, default=50, help="test requests a skill")
    add("--unseen-requests", type=int, default=60, help="test requests of each skill's unseen tasks")
    add("--selection", type=int, default=SELECTION, help="training examples that a prompt is chosen on")
    add("--matrix-requests", type=int, default=20, help="of them, for rows of an expert on all skills")
    add("--population", type=int, default=16)
    add("--iterations", type=int, default=12)
    add("--few-shot-examples", type=int, default=40, help="test examples of each unseen task")
    add("--work", type=Path, default=ROOT / "runs" / "transformer2")
    add("--out", type=Path, default=ROOT / "docs" / "results")
    return parser.parse_args()


def own_task(bench: Bench) -> list[dict[str, Any]]:
    """Every expert on its own skill's requests, against the base model's best prompt."""
    return [bench.beside_best_prompt(skill, bench.of(skill)) for skill in bench.skills]


def unseen(bench: Bench) -> list[dict[str, Any]]:
    """Every expert on tasks of its skill that no expert saw, against the base model's best prompt."""
    names = yaml.safe_load(HELD_OUT.read_text("utf-8"))
    known = {t.name: t for t in load_split(DATA).train}
    trained = {t.name for tasks in bench.tasks.values() for t in tasks}
    found = []
    for skill in filter(names.__contains__, bench.skills):
        tasks = [known[name] for name in names[skill]]
        assert trained.isdisjoint(names[skill]), names[skill]
        requests = labelled_requests({skill: tasks}, bench.args.unseen_requests, TEST)
        found.append({"tasks": names[skill], **bench.beside_best_prompt(skill, requests)})
    return found


def controls(bench: Bench) -> dict[str, dict[str, Any]]:
    """IA3 and LoRA of as many parameters as an expert, on each skill's requests."""
    found: dict[str, dict[str, Any]] = {}
    for kind in (IA3, LORA):
        for skill in bench.skills:
            of_seeds = []
            for seed in bench.args.seeds:

                def way(
                    texts: Sequence[str], kind: str = kind, seed: int = seed, skill: str = skill
                ) -> list[str]:
                    backbone, tuned = control(kind, skill, seed)
                    with tuned.attached():
                        return generate_greedy(backbone, texts, max_new_tokens=TOKENS)

                of_seeds.append(bench.scores(f"{kind} {skill} {seed}", way, bench.of(skill)))
            found.setdefault(skill, {})[kind] = interval(bootstrap_interval(mean(of_seeds)))
    return found


def best_prompt(bench: Bench, requests: Sequence[LabelledRequest]) -> list[float]:
    """Scores of the base model with, for each task, the prompt that does best on its training examples."""
    found: list[float] = [0.0] * len(requests)
    for task in {r.task.name: r.task for r in requests}.values():
        rows = [i for i, r in enumerate(requests) if r.task is task]
        shown = task.train[len(task.train) - bench.args.selection :]  # not those that stand in prompts
        trial = [LabelledRequest("", requests[rows[0]].skill, task, e) for e in shown]
        ways = prompts_of(task)
        means = {}
        for name, worded in ways.items():
            asked = [r._replace(text=worded(r)) for r in trial]
            means[name] = statistics.mean(bench.scores(BASE, bench.answered(None), asked))
        best = max(means, key=means.__getitem__)
        asked = [requests[i]._replace(text=ways[best](requests[i])) for i in rows]
        for i, score in zip(rows, bench.scores(BASE, bench.answered(None), asked), strict=True):
            found[i] = score
    return found


def prompts_of(task: Task) -> dict[str, Callable[[LabelledRequest], str]]:
    """Ways to word a request of a task."""
    labels = sorted({o for e in task.train for o in e.outputs})
    closed = f" Answer with one of: {', '.join(labels)}." if len(labels) <= 12 else " Answer briefly."
    shots = "\n\n".join(f"Input: {e.input}\nOutput: {e.outputs[0]}" for e in task.train[:3])
    return {
        "input": lambda r: r.example.input,
        "description": lambda r: task.described(r.example.input),
        "second description": lambda r: task.described(r.example.input, 1),
        "description and form": lambda r: f"{task.definition}{closed}\n\n{r.example.input}",
        "3 examples": lambda r: f"{shots}\n\nInput: {r.example.input}\nOutput:",
        "description and 3 examples": lambda r: (
            f"{task.definition}\n\n{shots}\n\nInput: {r.example.input}\nOutput:"
        ),
    }


def two_passes(bench: Bench) -> dict[str, Any]:
    """Dispatch and what it answers, on requests of all skills mixed."""
    some = [r for s in bench.skills for r in bench.of(s)[: bench.args.matrix_requests]]
    first = bench.experts
    matrix = {s: bench.scores(f"shipped {s}", bench.answered(first[s]), some) for s in first}
    chance = random.Random(0)
    rows = {f"expert for {skill}": values for skill, values in matrix.items()}
    rows[RANDOM] = [matrix[chance.choice(list(first))][i] for i in range(len(some))]
    uniform = mix(list(first.values()), torch.full((len(first),), 1 / len(first)))
    rows[UNIFORM] = bench.scores("uniform", bench.answered(uniform), some)
    rows[BASE] = bench.scores(BASE, bench.answered(None), some)
    rows[ORACLE] = [matrix.get(r.skill, rows[BASE])[i] for i, r in enumerate(some)]

    loss = {}
    for name, router in routers_of(bench).items():
        answers = bench.scores(f"{name}, {fingerprint(bench)}", adaptive(bench, router), bench.requests)
        single = [
            v
            for s in bench.skills
            for v in bench.scores(f"shipped {s}", bench.answered(first.get(s)), bench.of(s))
        ]
        loss[name] = interval(bootstrap_difference(answers, single))
        rows[name] = [answers[i] for i, r in enumerate(bench.requests) if any(r is o for o in some)]
    return {
        "rows": {name: interval(bootstrap_interval(values)) for name, values in rows.items()},
        "requests": len(bench.requests),
        "matrix_requests": len(some),
        "against_own_expert": loss,
    }


def dispatch(bench: Bench) -> dict[str, Any]:
    """What the first pass finds: requests of the experts' tasks, everyday ones, and of other tasks."""
    everyday, unknown, found = read(ASKED), unseen_requests(bench), {}
    texts = bench.backbone.encode_prompts([r["request"] for r in everyday])
    for name, router in routers_of(bench).items():
        away = [d.skill for d in router.decide(unknown)]
        known = right_skill(everyday, [d.skill for d in router.decide(texts)])
        found[name] = {
            "own_tasks": interval(bootstrap_interval(right(bench, router, bench.requests))),
            "everyday": interval(bootstrap_interval([float(hit) for hit in known])),
            "none_at_other_tasks": statistics.mean(float(skill == NONE) for skill in away),
            "base_at_other_tasks": statistics.mean(float(skill not in bench.experts) for skill in away),
            "first_pass_share": share_of_time(bench, router),
        }
    counts = {"requests": len(bench.requests), "everyday": len(everyday), "other_tasks": len(unknown)}
    return {"routers": found, **counts}


def right(bench: Bench, router: Any, requests: Sequence[LabelledRequest]) -> list[float]:
    """1 for each request whose skill the first pass finds, else 0."""
    decisions = router.decide(bench.backbone.encode_prompts([r.text for r in requests]))
    return [float(d.skill == r.skill) for d, r in zip(decisions, requests, strict=True)]


def fingerprint(bench: Bench) -> str:
    """Of the probe, whose answers are not another one's."""
    return hashlib.sha256((bench.args.shipped / ROUTER / PROBE_WEIGHTS).read_bytes()).hexdigest()[:16]


def routers_of(bench: Bench) -> dict[str, Any]:
    return {
        PROBE: bench.shipped.router,
        PROMPT: PromptRouter(bench.backbone, bench.skills),
    }


def adaptive(bench: Bench, router: Any) -> Callable[[Sequence[str]], list[str]]:
    """Answers of `Transformer2` itself, both passes."""
    settings = Transformer2Config(adaptation_strength=1.0, num_expert_vectors=len(bench.skills))
    model = Transformer2(
        bench.backbone.model, settings, experts=bench.experts, basis=bench.basis, router=router
    )
    return lambda texts: Predictor(bench.backbone, wrapped=model).answers(texts, max_new_tokens=TOKENS)


def unseen_requests(bench: Bench) -> list[list[int]]:
    tasks = load_split(DATA).validation
    requests = labelled_requests({t.name: [t] for t in tasks}, 4, TEST)
    return bench.backbone.encode_prompts([r.text for r in requests])


def share_of_time(bench: Bench, router: Any, tokens: int = 32, repeats: int = 8) -> float:
    """The first pass's share of an answer of so many tokens, in [0, 1]; medians of requests one at a time."""
    first, whole = [], []
    for request in bench.requests[:: max(1, len(bench.requests) // repeats)]:
        prompt = bench.backbone.encode_prompt(request.text)
        ids = torch.tensor([prompt])
        started = time.perf_counter()
        decision = router.decide([prompt])[0]
        decided = time.perf_counter()
        with bench.attach(bench.experts.get(decision.skill)):
            bench.backbone.model.generate(
                ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, attention_mask=ids * 0 + 1
            )
        first.append(decided - started)
        whole.append(time.perf_counter() - started)
    return statistics.median(first) / statistics.median(whole)


def few_shot(bench: Bench) -> dict[str, Any]:
    """Mixtures found from ten examples, on tasks that no expert was trained on; ROUGE-L."""
    experts = list(bench.experts.values())
    tasks = [t for t in load_split(DATA).validation if len({o for e in t.train for o in e.outputs}) <= 8]
    rows: dict[str, list[float]] = {BASE: [], UNIFORM: [], RANDOM_MIXTURE: [], FEW_SHOT: []}
    found_for: dict[str, Any] = {}
    for task in tasks[:UNSEEN_TASKS]:
        test = [
            LabelledRequest(task.described(e.input), task.name, task, e)
            for e in task.test[: bench.args.few_shot_examples]
        ]
        rows[BASE] += bench.scores(BASE, bench.answered(None), test)
        uniform = mix(experts, torch.full((len(experts),), 1 / len(experts)))
        rows[UNIFORM] += bench.scores("uniform", bench.answered(uniform), test)
        randoms, searched = [], []
        for seed in bench.args.seeds:
            generator = torch.Generator().manual_seed(seed)
            weights = torch.randn(len(experts), generator=generator).softmax(-1)
            randoms.append(bench.scores(f"random {seed}", bench.answered(mix(experts, weights)), test))
            expert, facts = mixture_for(bench, task, seed)
            found_for[f"{task.name} {seed}"] = facts
            searched.append(bench.scores(f"few-shot {task.name} {seed}", bench.answered(expert), test))
        rows[RANDOM_MIXTURE] += mean(randoms)
        rows[FEW_SHOT] += mean(searched)
    return {
        "tasks": [t.name for t in tasks[:UNSEEN_TASKS]],
        "rows": {name: interval(bootstrap_interval(values)) for name, values in rows.items()},
        "against": {
            name: interval(bootstrap_difference(rows[FEW_SHOT], rows[name]))
            for name in (BASE, UNIFORM, RANDOM_MIXTURE)
        },
        "mixtures": found_for,
    }


def mixture_for(bench: Bench, task: Task, seed: int) -> tuple[ExpertVector, dict[str, Any]]:
    """The mixture that ten training examples choose, kept under the work directory."""
    shots = random.Random(f"{seed}/{task.name}").sample(task.train, SHOTS)
    shared = {normalise(e.input) for e in shots} & {normalise(e.input) for e in task.test}
    assert not shared, shared
    search = MixtureSearchConfig(
        population=bench.args.population, iterations=bench.args.iterations, seed=seed
    )
    size = f"{search.population}x{search.iterations}"
    path = bench.args.work / f"mixture-{task.name}-{seed}-{size}-{bench.weights}.json"
    experts = list(bench.experts.values())
    if not path.is_file():
        started = time.perf_counter()
        pairs = [
            (
                bench.backbone.encode_prompt(task.described(e.input)),
                bench.backbone.encode_completion(e.outputs[0]),
            )
            for e in shots
        ]
        found = search_mixture(bench.backbone, bench.basis, experts, pairs, search)
        facts = {
            "coefficients": found.coefficients[0].tolist(),
            "loss": found.loss,
            "base_loss": found.base_loss,
            "seconds": time.perf_counter() - started,
        }
        write_file(path, json.dumps(facts))
        say(f"mixture for {task.name}: {found.base_loss:.2f} -> {found.loss:.2f}, {facts['seconds']:.0f} s")
    facts = json.loads(path.read_text("utf-8"))
    base = ExpertVector.identity({n: bench.basis[n] for n in experts[0].z})
    return mix([*experts, base], torch.tensor(facts["coefficients"])), facts


def mean(lists: Any) -> list[float]:
    return [statistics.mean(values) for values in zip(*lists, strict=True)]


def interval(found: Interval) -> dict[str, Any]:
    return asdict(found)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
