"""Facts and provenance of an adapter: as data for machines, and as a model card for people.

Knows text only: no tensors, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shoal.adapters.output_format import OutputFormat
from shoal.errors import ShoalError

MAX_LABELS = 256  # of one label set
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what `--max-lora-rank` accepts
UNTRAINED = "**no**: every delta weight is zero, the model answers as without it"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class LabelSet(BaseModel):
    """The closed set of answers that an adapter chooses from, with what is needed to choose fairly."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels: tuple[str, ...] = Field(min_length=2, max_length=MAX_LABELS, description="the answers")
    priors: tuple[float, ...] | None = Field(
        None,
        description="mean log-probability of each label under this adapter over texts whose labels are not "
        "known, in nats; None: measured on content-free texts when it first answers",
    )
    cosines: tuple[float, ...] | None = Field(
        None,
        description="mean cosine of each label to the texts of the priors, by the sentence encoder; None: to "
        "texts of many kinds",
    )
    source: Literal["description", "given", "examples"] = Field(
        "given", description="where the labels were named"
    )
    calibrated_on: str | None = Field(None, description="the texts of the priors, for people")

    @model_validator(mode="after")
    def _one_mean_a_label(self) -> LabelSet:
        for name, means in (("priors", self.priors), ("cosines", self.cosines)):
            if means is not None and len(means) != len(self.labels):
                raise ValueError(f"{len(means)} {name} for {len(self.labels)} labels")
        return self

    def calibrated(
        self, priors: Sequence[float], texts: str, cosines: Sequence[float] | None = None
    ) -> LabelSet:
        """The set with the priors of an adapter, and a word on the texts that they are means over."""
        means = {"priors": tuple(priors), "cosines": None if cosines is None else tuple(cosines)}
        return self.model_copy(update={**means, "calibrated_on": texts})


class AdapterCard(BaseModel):
    """Provenance of one adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    generator: str = Field(description="what made the adapter, for example `text-to-lora` or `lora training`")
    trained: bool = Field(description="False where the adapter is the identity because nothing was trained")
    description: str | None = Field(None, description="the task description that it was made from")
    checkpoint_sha256: str | None = Field(None, description="hash of the hypernetwork, in hex")
    seed: int | None = Field(None, description="seed of its training or generation")
    start_sha256: str | None = Field(
        None, description="fingerprint of the adapter that its training started from, in hex"
    )
    parents: Mapping[str, str] = Field(
        default_factory=dict, description="of a merge: name of each parent -> its fingerprint, in hex"
    )
    trained_on: tuple[str, ...] = Field(
        (), max_length=64, description="some hashes of its training examples, in hex; none where not known"
    )
    label_set: LabelSet | None = Field(
        None, description="the answers that it chooses from, if they are closed"
    )
    suggested_format: OutputFormat | None = Field(
        None, description="that its description names; answers are held to it where a request asks for that"
    )
    scores: Mapping[str, float] = Field(default_factory=dict, description="metric -> measured value")
    notes: tuple[str, ...] = Field((), description="further sentences for people")

    @property
    def names_task(self) -> bool:
        """True where a task is described; the adapter then answers greedily by default."""
        return self.description is not None


def parse_card(value: object, source: object) -> AdapterCard:
    """The card that a file holds as JSON values; `source` names the file in errors.

    Raises:
        ShoalError: it is no card.
    """
    try:
        return AdapterCard.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("card", *first["loc"])))
        raise ShoalError(f"{source}: {where}: {first['msg']}; write the adapter again") from None


@dataclass(frozen=True)
class AdapterFacts:
    """Facts of an adapter directory's files.

    Attributes:
        base_model: hub id or path of the model that it adapts.
        rank: LoRA rank.
        alpha: LoRA alpha.
        target_modules: short module names.
        layers: adapted layer indices, ascending.
        zero_layers: those of them whose B is zero, written for loaders that need every layer.
        num_layers: decoder layers of the base model.
    """

    base_model: str
    rank: int
    alpha: float
    target_modules: Sequence[str]
    layers: Sequence[int]
    zero_layers: Sequence[int]
    num_layers: int


def render_card(card: AdapterCard, facts: AdapterFacts) -> str:
    """The model card: YAML front matter as the hub reads it, then Markdown."""
    rows = {
        "Base model": facts.base_model,
        "Trained": "yes" if card.trained else UNTRAINED,
        "Generator": card.generator,
        "Checkpoint (SHA-256)": card.checkpoint_sha256 or "none",
        "Seed": "none" if card.seed is None else str(card.seed),
        "Rank, alpha": f"{facts.rank}, {facts.alpha:g}",
        "Target modules": ", ".join(facts.target_modules),
        "Layers": _layers_row(facts),
        **({"Start (SHA-256)": card.start_sha256} if card.start_sha256 else {}),
        **{f"Parent: {name} (SHA-256)": sha for name, sha in card.parents.items()},
        **({"Labels": ", ".join(card.label_set.labels)} if card.label_set else {}),
        **({"Suggested format": card.suggested_format.text} if card.suggested_format else {}),
        **{f"Score: {name}": f"{value:.4g}" for name, value in sorted(card.scores.items())},
    }
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())
    parts = [_front_matter(facts.base_model), f"# LoRA adapter for {_cell(facts.base_model)}"]
    if card.description is not None:
        parts += ["Made from this description:", _fenced(card.description)]
    parts += [f"| | |\n|---|---|\n{table}", *(_cell(note) for note in card.notes), _usage(facts)]
    return "\n\n".join(parts) + "\n"


def _front_matter(base_model: str) -> str:
    hub = [f"base_model: {base_model}"] if _HUB_ID.fullmatch(base_model) else []
    tags = [f"base_model:adapter:{base_model}"] if hub else []
    lines = [*hub, "library_name: peft", "pipeline_tag: text-generation", "tags:"]
    tagged = [f"- {tag}" for tag in [*tags, "lora", "shoal", "transformers"]]
    return "\n".join(["---", *lines, *tagged, "---"])


def _layers_row(facts: AdapterFacts) -> str:
    if not facts.layers:
        return "none"
    if len(facts.layers) < facts.num_layers:
        where = f"{_spans(facts.layers)} of 0-{facts.num_layers - 1} (`layers_to_transform`)"
    else:
        where = f"all {facts.num_layers}"
    if not facts.zero_layers:
        return where
    zero = _spans(facts.zero_layers)
    return f"{where}; B is zero in layers {zero}, so that loaders which need every layer take it"


def _spans(indices: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> `0-2, 5`."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][-1] + 1:
            spans[-1][1:] = [index]
        else:
            spans.append([index])
    return ", ".join("-".join(map(str, span)) for span in spans)


def _usage(facts: AdapterFacts) -> str:
    vllm_rank = next((r for r in VLLM_RANKS if r >= facts.rank), None)
    vllm = "vLLM takes ranks up to 512 only."
    if vllm_rank:
        vllm = f"vLLM: `--enable-lora --max-lora-rank {vllm_rank}`."
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({facts.base_model!r})\n"
        "model = PeftModel.from_pretrained(base, PATH_OF_THIS_DIRECTORY)"
    )
    prompt = (
        "Prompt: the base model's chat template with the input alone as one user message, no system message."
    )
    return "\n\n".join(["## Use", _fenced(code, "python"), prompt, vllm])


def _fenced(text: str, language: str = "text") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
