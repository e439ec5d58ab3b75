"""Answers from a closed set of labels, by calibrated likelihood.

A label's score is the log-probability of its tokens and the end-of-turn token after the prompt, less the
label's prior: the mean of that log-probability over texts whose labels are not known, the user's own inputs
or content-free ones. So neither a label's length nor its frequency in pretraining decides. The end of turn
tells a label from one that begins with it. Every prompt is read once; the labels continue copies of its keys
and values, as many together as there are places for.

Sources: Zhao et al., "Calibrate Before Use", arXiv 2102.09690 (content-free texts, division by the prior);
Zhou et al., "Batch Calibration", arXiv 2309.17249 (unlabelled inputs; as there, but with the mean of
log-probabilities instead of probabilities). Knows prompts, labels and adapters; nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.base import Adapter, Attachment
from shoal.adapters.card import MAX_LABELS, LabelSet
from shoal.adapters.decomposition import Decompositions, ModelBasis
from shoal.adapters.kinds import attach_adapter
from shoal.errors import UsageError, shorten
from shoal.inference.decoding import Rows
from shoal.inference.generate import check_lengths
from shoal.inference.sampling import not_finite
from shoal.models.backbone import Backbone

PLACES = 32768  # for keys and values of prompts and of the labels that go on together
PROMPTS = 32  # read together, at most
ROWS = 256  # that go on together, at most: each has logits over the vocabulary
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


def label_log_likelihoods(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[str],
    adapter: Adapter | None = None,
    *,
    basis: Decompositions | None = None,
    places: int = PLACES,
) -> Float[Tensor, "prompts labels"]:
    """Log-probability of every label as the whole answer to every prompt, in nats, float32 on the CPU.

    Args:
        backbone: the model, with whatever is attached to it.
        prompts: token ids.
        labels: 2 to `MAX_LABELS`; see `encode_labels`.
        adapter: for all prompts.
        basis: decompositions that experts scale.
        places: for keys and values: of the prompts that are read together and their labels that go on
            together, times tokens of the longest prompt with a label. Short prompts share a batch; the labels
            of a long one are spread over several. One prompt with one label takes what it needs.

    Raises:
        UsageError: as `encode_labels`; the adapter does not fit; or a prompt with a label is too long for the
            model.
        ShoalError: the logits are not finite.
    """
    passes = score_labels(backbone, prompts, labels, adapter, basis=basis, places=places)
    while True:
        try:
            next(passes)
        except StopIteration as end:
            scores: Tensor = end.value
            return scores


def score_labels(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[str],
    adapter: Adapter | None = None,
    *,
    basis: Decompositions | None = None,
    places: int = PLACES,
    prefill_tokens: Callable[[], int] | None = None,
) -> Generator[int, None, Float[Tensor, "prompts labels"]]:
    """`label_log_likelihoods` by single forward passes; it yields the tokens of each, and returns the scores.

    Between passes others may use the model: nothing stays attached. Args and errors as there; of prompts as
    many tokens are read in one pass as `prefill_tokens` gives before it.
    """
    completions = encode_labels(backbone, labels)
    longest = max(map(len, completions))
    check_lengths(backbone, prompts, [longest] * len(prompts))
    attached = partial(attach_adapter, backbone.model, adapter, ModelBasis(backbone.model, basis))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = torch.empty(len(prompts), len(labels))
    while order:
        taken, rows = _next_batch([len(prompts[i]) + longest for i in order], len(labels), places)
        batch, order = order[:taken], order[taken:]
        read = Rows(backbone, [prompts[i] for i in batch])
        while True:
            before = read.unread
            with attached():
                logits = read.read(
                    min(before, max(1, prefill_tokens() // taken) if prefill_tokens else before)
                )
            yield (before - read.unread) * taken
            if not read.unread:
                break
        found[batch] = yield from _following(backbone, attached, read, logits, completions, rows)
    if bool(found.isnan().any()):
        raise not_finite(backbone.dtype)
    return found


def label_priors(log_likelihoods: Float[Tensor, "texts labels"]) -> list[float]:
    """Mean log-probability of every label over some texts, in nats."""
    return [float(x) for x in log_likelihoods.mean(0)]


def batch_calibrated(
    log_likelihoods: Float[Tensor, "texts labels"],
) -> Float[Tensor, "texts labels"]:
    """Scores less each label's prior over these very texts, in nats."""
    return log_likelihoods - log_likelihoods.mean(0)


def answer_with_labels(
    labels: Sequence[str], log_likelihoods: Float[Tensor, "prompts labels"], priors: Sequence[float]
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
    *,
    basis: Decompositions | None = None,
    evidence: Float[Tensor, "prompts labels"] | None = None,
) -> list[LabelAnswer]:
    """Answer prompts (token ids) from a label set; its priors, where it has none, are content-free ones.

    `evidence` for each label, in nats, is added to its log-likelihood. Other args and errors as
    `label_log_likelihoods`.
    """
    labels = label_set.labels
    scores = label_log_likelihoods(backbone, prompts, labels, adapter, basis=basis)
    scores = scores if evidence is None else scores + evidence
    priors = label_set.priors or content_free_priors(backbone, labels, adapter, basis=basis)
    return answer_with_labels(labels, scores, priors)


def content_free_priors(
    backbone: Backbone,
    labels: Sequence[str],
    adapter: Adapter | None = None,
    *,
    basis: Decompositions | None = None,
) -> list[float]:
    """The priors where there are no inputs: over `CONTENT_FREE`; as `label_log_likelihoods`."""
    prompts = backbone.encode_prompts(CONTENT_FREE)
    return label_priors(label_log_likelihoods(backbone, prompts, labels, adapter, basis=basis))


class _Share(NamedTuple):
    """The prompts that are read together, and the rows that go on together."""

    prompts: int
    rows: int


def _next_batch(widths: Sequence[int], labels: int, places: int) -> _Share:
    """The next prompts, by ascending width in tokens, whose labels all fit; at least one with one label."""
    taken = 1
    while taken < min(len(widths), PROMPTS, ROWS // labels) and (
        (taken + 1) * (labels + 1) * widths[taken] <= places
    ):
        taken += 1
    return _Share(taken, max(1, min(ROWS, places // widths[taken - 1] - taken)))


def _following(
    backbone: Backbone,
    attached: Callable[[], Attachment],
    read: Rows,
    logits: Float[Tensor, "prompts vocabulary"],
    completions: Sequence[Sequence[int]],
    rows: int,
) -> Generator[int, None, Float[Tensor, "prompts labels"]]:
    """Scores after prompts that are read, with the logits there; labels go on in at most so many rows."""
    logits = logits.float()
    firsts = torch.tensor([ids[0] for ids in completions], device=logits.device)
    scores = (logits[:, firsts] - logits.logsumexp(-1, keepdim=True)).cpu()
    # Longest labels first: the rows that are finished are then always the last ones, which leave in order.
    order = sorted(range(len(completions)), key=lambda i: -len(completions[i]))
    together = max(1, rows // len(read))
    for begin in range(0, len(order), together):
        some = order[begin : begin + together]
        scores[:, some] += yield from _continued(backbone, attached, read, [completions[i] for i in some])
    return scores


def _continued(
    backbone: Backbone, attached: Callable[[], Attachment], read: Rows, completions: Sequence[Sequence[int]]
) -> Generator[int, None, Float[Tensor, "prompts labels"]]:
    """Log-probability of what follows the first token of each label, the longest first, after each prompt."""
    scores = torch.zeros(len(read), len(completions))
    places = [(prompt, label) for label in range(len(completions)) for prompt in range(len(read))]
    spread = Rows(backbone)
    spread.join(read, [prompt for prompt, _ in places])
    for depth in range(len(completions[0]) - 1):
        while len(completions[places[-1][1]]) <= depth + 1:
            spread.drop(len(spread) - 1)
            places.pop()
        said = torch.tensor([completions[label][depth] for _, label in places])
        with attached():
            logits = spread.step(said).float()
        nexts = torch.tensor([completions[label][depth + 1] for _, label in places], device=logits.device)
        found = logits.gather(1, nexts[:, None])[:, 0] - logits.logsumexp(-1)
        at = torch.tensor(places)
        scores[at[:, 0], at[:, 1]] += found.cpu()
        yield len(places)
    return scores
