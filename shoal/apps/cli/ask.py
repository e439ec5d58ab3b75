"""`shoal ask`: an answer of the base model, or of an adapter or an expert on it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.generate import OPEN
from shoal.apps.cli.model import (
    HYPERNETWORK_HELP,
    Place,
    check_directories,
    load,
    usable_place,
    warn_of_another_base,
)
from shoal.apps.cli.settings import Output
from shoal.apps.cli.tasks import solved_examples
from shoal.config import CAREFUL_HELP, MIN_EXAMPLES, REFINE_HELP
from shoal.errors import ShoalError, UsageError
from shoal.transformer2.skill_names import under_either_name

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.adapters.base import Adapter
    from shoal.adapters.card import LabelSet
    from shoal.adapters.decomposition import Decompositions
    from shoal.adapters.output_format import OutputFormat
    from shoal.models.backbone import Backbone
    from shoal.tasks.loading import Example

log = logging.getLogger(__name__)


class Asking(BaseModel):
    """With which adapter `ask` answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    describe: str | None = Field(
        None,
        description="answer with the adapter of this task description; with --library, the skill near it",
    )
    examples: Path | None = Field(
        None,
        description="with --describe: JSONL of 4 to 16 solved examples (`input`, `output`)",
    )
    refine: bool = Field(True, description=REFINE_HELP)
    careful: bool = Field(False, description=CAREFUL_HELP)
    adapter: Path | None = Field(None, description="answer with the adapter of any kind in this directory")
    expert: Path | None = Field(None, description="answer with the expert or mixture in this directory")
    transformer2: bool = Field(
        False, description="let the model choose one of its experts for the request, or none"
    )
    experts: Path | None = Field(
        None, description="with --transformer2: directory of experts; none means the shipped ones"
    )
    library: Path | None = Field(
        None, description="answer with the skill of this library that the request is for"
    )
    skill: str | None = Field(
        None, description="with --library: name of the skill; none lets the input decide"
    )
    strength: float = Field(1.0, ge=0, description="of an expert: 0 is the base model, 1 is as trained")
    hypernetwork: Path | None = Field(None, description=HYPERNETWORK_HELP)
    labels: tuple[str, ...] | None = Field(
        None,
        description="answer with the likeliest of these, separated by commas; by default the adapter's own "
        "labels, if it has some; none lets it answer freely",
    )
    choice: tuple[str, ...] | None = Field(
        None,
        description="the answer is one of these, separated by commas, as the model words it token by token",
    )
    regex: str | None = Field(None, description="the answer matches this regular expression as a whole")
    json_schema: Path | None = Field(
        None, description="the answer is JSON that the JSON schema in this file accepts"
    )
    format: Literal["suggested"] | None = Field(
        None, description="`suggested` holds the answer to the format that the adapter's description names"
    )
    max_new_tokens: int = Field(128, ge=1, description="limit of the answer, in tokens")


def ask(
    request: Annotated[str, typer.Argument(help="the input; `-` reads standard input")],
    place: Place,
    choice: Asking,
) -> Output:
    """Answer a request, with an adapter or an expert, or without.

    --describe, --adapter, --expert, --transformer2 and --library choose one; the base model answers by itself
    where none is given. Answers are greedy, the likeliest token at each step: the same request gets the same
    answer.
    """
    _check_choice(choice)
    text = sys.stdin.read() if request == "-" else request
    if not text.strip():
        raise UsageError(
            f"the request {text!r} is blank; at least 1 visible character is needed, ask something"
        )
    if choice.library is not None:
        return _ask_library(choice.library, text, place, choice)
    solved: Sequence[Example] = ()
    if choice.examples and choice.describe:
        solved = solved_examples(choice.examples, choice.describe, MIN_EXAMPLES if choice.refine else 1)
    from shoal.inference.generate import generate_greedy
    from shoal.inference.grammar import GrammarCompiler
    from shoal.inference.labels import choose_labels
    from shoal.text_to_lora.material import given_label_set

    given = given_label_set(() if choice.labels == OPEN else choice.labels)
    wanted = _wanted_format(choice)
    backbone, adapter, basis, facts, own, suggested = _chosen(place, choice, solved)
    if choice.format is not None:
        wanted = suggested
        if wanted is None:
            raise UsageError(
                "--format suggested: the adapter suggests no format; give --regex or --json-schema"
            )
    label_set = None if wanted else own if choice.labels is None else given
    grammar = GrammarCompiler(backbone).compile(wanted) if wanted else None
    likely: dict[str, float] | None = None
    expert: dict[str, Any] = {}
    started = time.perf_counter()
    with ExitStack() as stack:
        if choice.transformer2 or choice.expert is not None:
            expert = _attach_expert(stack, backbone, text, choice)
        if label_set is None:
            (answer,) = generate_greedy(
                backbone,
                [text],
                adapter,
                basis=basis,
                grammars=grammar,
                max_new_tokens=choice.max_new_tokens,
            )
        else:
            evidence = _meaning_of(label_set, text)
            prompts = backbone.encode_prompts([text])
            (chosen,) = choose_labels(backbone, prompts, label_set, adapter, basis=basis, evidence=evidence)
            answer, likely = chosen.label, dict(chosen.probabilities)
    seconds = time.perf_counter() - started
    record = {
        "request": text,
        "answer": answer,
        "base_model": backbone.shape.base_model,
        "description": choice.describe,
        "adapter": str(choice.adapter) if choice.adapter else None,
        "hypernetwork": facts,
        "labels": likely,
        **expert,
        "seconds": seconds,
    }
    return Output(record, answer)


def _wanted_format(choice: Asking) -> OutputFormat | None:
    """The format that the answer is held to."""
    from shoal.adapters.output_format import OutputFormat
    from shoal.file_formats import read_json

    if choice.choice is not None:
        return OutputFormat.choice(choice.choice)
    if choice.regex is not None:
        return OutputFormat.regex(choice.regex)
    if choice.json_schema is not None:
        return OutputFormat.json_schema(read_json(choice.json_schema))
    return None


def _meaning_of(label_set: LabelSet, text: str) -> Tensor | None:
    """The evidence for each label from what it means; None, and a warning, where there is no encoder."""
    from shoal.text_to_lora.encoders.sentence import TaskEncoder
    from shoal.text_to_lora.label_similarity import LabelSimilarity

    try:
        return LabelSimilarity(TaskEncoder).evidence(label_set, [text])
    except ShoalError as error:
        log.warning("labels are chosen by likelihood alone: %s", error)
        return None


def _ask_library(folder: Path, text: str, place: Place, choice: Asking) -> Output:
    """The answer of the skill of a library that a request is for."""
    from shoal.apps.cli.library import opened

    library = opened(folder, place)
    started = time.perf_counter()
    (found,) = library.ask(
        [text], skill=choice.skill, describe=choice.describe, max_new_tokens=choice.max_new_tokens
    )
    record = {
        "request": text,
        "answer": found.answer,
        "base_model": library.base_model,
        "library": str(folder),
        "version": library.version.number,
        "skill": found.decision.skill,
        "probabilities": dict(found.decision.probabilities),
        "seconds": time.perf_counter() - started,
    }
    return Output(record, found.answer)


def _check_choice(choice: Asking) -> None:
    """See that one thing answers, and that every flag belongs to it."""
    ways = {
        "--describe": choice.describe is not None and choice.library is None,
        "--library": choice.library is not None,
        "--adapter": choice.adapter is not None,
        "--expert": choice.expert is not None,
        "--transformer2": choice.transformer2,
    }
    given = [way for way, chosen in ways.items() if chosen]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are given; one of them answers, leave the other out")
    fields = ("labels", "choice", "regex", "json_schema", "format")
    formats = [f"--{name.replace('_', '-')}" for name in fields if getattr(choice, name) is not None]
    if len(formats) > 1:
        raise UsageError(f"{' and '.join(formats)} are given, each a format; leave all but one out")
    if choice.library is not None or choice.skill is not None:
        return _check_library_choice(choice)
    if choice.hypernetwork is not None and choice.describe is None:
        raise UsageError("--hypernetwork makes adapters of descriptions; give --describe, or leave it out")
    if choice.examples is not None and choice.describe is None:
        raise UsageError("--examples refine the adapter of a description; give --describe, or leave it out")
    if choice.examples is None and not {"refine", "careful"}.isdisjoint(choice.model_fields_set):
        raise UsageError("--no-refine and --careful say what --examples are for; give these, or leave it out")
    if choice.experts is not None and not choice.transformer2:
        raise UsageError("--experts is what --transformer2 chooses from; give both, or leave it out")
    if "strength" in choice.model_fields_set and not choice.transformer2 and choice.expert is None:
        raise UsageError("--strength is that of an expert; give --transformer2 or --expert, or leave it out")
    check_directories(
        adapter=choice.adapter,
        expert=under_either_name(choice.expert) if choice.expert else None,
        experts=choice.experts,
        hypernetwork=choice.hypernetwork,
    )


def _check_library_choice(choice: Asking) -> None:
    """See that every flag belongs to a library."""
    if choice.library is None:
        raise UsageError("--skill names a skill of --library; give both, or leave it out")
    if others := sorted(choice.model_fields_set - {"library", "skill", "describe", "max_new_tokens"}):
        raise UsageError(f"--{others[0].replace('_', '-')} is not for --library; leave one of them out")
    if choice.skill is not None and choice.describe is not None:
        raise UsageError("--skill and --describe are given; one of them decides, leave the other out")
    check_directories(library=choice.library)


def _attach_expert(stack: ExitStack, backbone: Backbone, text: str, choice: Asking) -> dict[str, Any]:
    """Attach the chosen expert until the stack is left; what was chosen."""
    from shoal.adapters.svf_files import basis_of, read_expert
    from shoal.adapters.svf_hooks import attach_expert

    if choice.expert is not None:
        stored = read_expert(under_either_name(choice.expert))
        expert, basis = stored.expert.strengthened(choice.strength), basis_of(stored, backbone.model)
        stack.enter_context(attach_expert(backbone.model, basis, expert))
        return {"expert": str(choice.expert), "skill": stored.skill}
    import torch

    from shoal.config import Transformer2Config
    from shoal.transformer2.model import Transformer2
    from shoal.transformer2.router import without_expert

    settings = Transformer2Config(expert_vector_dim=None, adaptation_strength=choice.strength)
    model = Transformer2.shipped(backbone.model, settings, folder=choice.experts)
    decisions = model.decide(torch.tensor([backbone.encode_prompt(text)], device=backbone.device))
    stack.enter_context(model.adapted(decisions))
    found = {"skill": decisions[0].skill, "probabilities": dict(decisions[0].probabilities)}
    if note := without_expert(decisions[0].skill, model.experts):
        log.warning(note)
        found["note"] = note
    return found


class _Chosen(NamedTuple):
    """The base model that answers, its adapter with the facts of its generator, and its labels."""

    backbone: Backbone
    adapter: Adapter | None = None
    basis: Decompositions | None = None
    facts: Mapping[str, Any] | None = None
    label_set: LabelSet | None = None
    suggested_format: OutputFormat | None = None


def _chosen(place: Place, choice: Asking, solved: Sequence[Example]) -> _Chosen:
    """The base model, by default that of the adapter, and the adapter."""
    from shoal.models.backbone import DEFAULT_MODEL

    if choice.adapter is not None:
        from shoal.adapters import kinds

        loaded = kinds.load(choice.adapter)
        if place.base is None and loaded.base_model is None:
            log.warning("%s names no base model; it is put on %s", choice.adapter, DEFAULT_MODEL)
        warn_of_another_base(loaded.base_model, place.base, choice.adapter)
        labels = loaded.card.label_set if loaded.card else None
        backbone = load(place, place.base or loaded.base_model)
        basis = kinds.basis_for(backbone.model, loaded)
        suggested = loaded.card.suggested_format if loaded.card else None
        return _Chosen(backbone, loaded.adapter, basis, label_set=labels, suggested_format=suggested)
    if choice.describe is not None:
        from shoal.text_to_lora.encoders.sentence import check_description
        from shoal.text_to_lora.generator import TextToLoRA
        from shoal.text_to_lora.suggested_format import suggest_format

        check_description(choice.describe)  # before the slower search for a model
        chosen = usable_place(place)
        generator = TextToLoRA(
            place.base, device=chosen.device, dtype=chosen.dtype, hypernetwork=choice.hypernetwork
        )
        adapter = generator.generate(choice.describe, solved, refine=choice.refine, careful=choice.careful)
        return _Chosen(
            generator.backbone,
            adapter.lora,
            facts=adapter.hypernetwork,
            label_set=adapter.label_set,
            suggested_format=suggest_format(choice.describe),
        )
    return _Chosen(load(place))
