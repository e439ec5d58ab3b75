"""Answers from a closed set of labels, by calibrated likelihood.

A label's score is the log-probability of its tokens and the end-of-turn token after the prompt, less the
label's prior: the mean of that log-probability over texts whose labels are not known, the user's own inputs
or content-free ones. So neither a label's length nor its frequency in pretraining decides. The end of turn
tells a label from one that begins with it. Every prompt is read once; the labels continue copies of its keys
and values.

Source: Zhao et al., "Calibrate Before Use", arXiv 2102.09690 (content-free texts, division by the prior); Han
et al., "Prototypical Calibration", arXiv 2205.10183, and Zhou et al., "Batch Calibration", arXiv 2309.17249
(the mean over a batch of unlabelled inputs). Knows prompts, labels and adapters; nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.base import Adapter
from shoal.adapters.card import LabelSet
from shoal.errors import UsageError, shorten
from shoal.inference.decoding import Rows
from shoal.inference.generate import attached, check_adapters, check_lengths
from shoal.models.backbone import Backbone

MAX_LABELS = 256
ROWS = 256  # continued together: prompts times labels
CONTENT_FREE = (
    "N/A",
    "...",
    "text",
    "[MASK]",
    "?",
    "this",
    "lorem ipsum dolor sit amet",
    "The input is missing.",
)


@dataclass(frozen=True)
class LabelAnswer:
    """The likeliest label after calibration, and the probability of every label, summing to 1."""

    label: str
    probabilities: Mapping[str, float]


def encode_labels(backbone: Backbone, labels: Sequence[str]) -> list[list[int]]:
    """Token ids of every label, closed by the end-of-turn token.

    Raises:
        UsageError: fewer than 2 labels or more than `MAX_LABELS`, one that the tokenizer cannot spell, or two
            that are the same to it.
    """
    if isinstance(labels, str) or not 2 <= len(labels) <= MAX_LABELS:
        count = 1 if isinstance(labels, str) else len(labels)
        raise UsageError(
            f"a label set has 2 to {MAX_LABELS} labels, got {count}; give all the answers there are"
        )
    encoded = backbone.encode_completions(labels)
    unknown = backbone.tokenizer.unk_token_id
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, encoded, strict=True):
        if len(ids) < 2 or (unknown is not None and unknown in ids[:-1]):
            raise UsageError(
                f"the tokenizer of {backbone.shape.base_model} cannot spell the label {shorten(label)}; "
                "word it in characters that it knows"
            )
        if other := seen.get(tuple(ids)):
            raise UsageError(
                f"the labels {shorten(other)} and {shorten(label)} are the same tokens; word them apart"
            )
        seen[tuple(ids)] = label
    return encoded


@torch.no_grad()
def label_log_likelihoods(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[str],
    adapters: Adapter | Sequence[Adapter | None] | None = None,
) -> Float[Tensor, "prompts labels"]:
    """Log-probability of every label as the whole answer to every prompt, in nats, float32 on the CPU.

    Args:
        backbone: the model, with whatever is attached to it.
        prompts: token ids.
        labels: 2 to `MAX_LABELS`; see `encode_labels`.
        adapters: one for all prompts, one each, or none.

    Raises:
        UsageError: as `encode_labels`; as many adapters as prompts are not given; or a prompt with a label is
            too long for the model.
    """
    completions = encode_labels(backbone, labels)
    check_adapters(adapters, len(prompts))
    longest = max(map(len, completions))
    check_lengths(backbone, prompts, [longest] * len(prompts))
    shared = None if isinstance(adapters, Sequence) else adapters
    own = list(adapters) if isinstance(adapters, Sequence) else [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = torch.empty(len(prompts), len(labels))
    size = max(1, min(32, ROWS // len(labels)))
    with attached(backbone, shared, (), {}):
        for begin in range(0, len(order), size):
            rows = order[begin : begin + size]
            found[rows] = _batch(backbone, [prompts[i] for i in rows], completions, [own[i] for i in rows])
    return found


def label_priors(log_likelihoods: Float[Tensor, "texts labels"]) -> list[float]:
    """Mean log-probability of every label over some texts, in nats (Batch Calibration, equation 4)."""
    return [float(x) for x in log_likelihoods.mean(0)]


def answer_with_labels(
    labels: Sequence[str],
    log_likelihoods: Float[Tensor, "prompts labels"],
    priors: Sequence[float],
) -> list[LabelAnswer]:
    """The label of each prompt, and softmax(log-likelihood - prior) over the labels."""
    calibrated = torch.softmax(log_likelihoods - torch.tensor(priors), -1)
    return [
        LabelAnswer(labels[int(row.argmax())], dict(zip(labels, row.tolist(), strict=True)))
        for row in calibrated
    ]


def choose_labels(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    label_set: LabelSet,
    adapter: Adapter | None = None,
) -> list[LabelAnswer]:
    """Answer prompts (token ids) from a label set; its priors, where it has none, are content-free ones.

    Raises:
        UsageError: as `label_log_likelihoods`.
    """
    scores = label_log_likelihoods(backbone, prompts, label_set.labels, adapter)
    priors = label_set.priors or content_free_priors(backbone, label_set.labels, adapter)
    return answer_with_labels(label_set.labels, scores, priors)


def content_free_priors(
    backbone: Backbone, labels: Sequence[str], adapters: Adapter | None = None
) -> list[float]:
    """The priors where there are no inputs: over `CONTENT_FREE`; errors as `label_log_likelihoods`."""
    return label_priors(
        label_log_likelihoods(backbone, backbone.encode_prompts(CONTENT_FREE), labels, adapters)
    )


def _batch(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    adapters: Sequence[Adapter | None],
) -> Float[Tensor, "prompts labels"]:
    """Scores of one batch: prompts are read once, then every (prompt, label) goes on as a row of its own."""
    rows = Rows(backbone, prompts, adapters)
    first = torch.log_softmax(rows.read().float().cpu(), -1)
    scores = first[:, [ids[0] for ids in completions]]
    # Longest labels first: the rows that are finished are then always the last ones, which leave in order.
    order = sorted(range(len(completions)), key=lambda i: -len(completions[i]))
    places = [(prompt, label) for label in order for prompt in range(len(prompts))]
    spread = Rows(backbone)
    spread.join(rows, [prompt for prompt, _ in places])
    for depth in range(max(map(len, completions)) - 1):
        while len(completions[places[-1][1]]) <= depth + 1:
            spread.drop(len(spread) - 1)
            places.pop()
        said = torch.tensor([completions[label][depth] for _, label in places])
        following = torch.log_softmax(spread.step(said).float().cpu(), -1)
        nexts = torch.tensor([completions[label][depth + 1] for _, label in places])
        at = torch.tensor(places)
        scores[at[:, 0], at[:, 1]] += following[torch.arange(len(places)), nexts]
    return scores
