"""Choosing the next token of many rows, each by its own rule and its own random numbers, and scoring it.

A row's token depends on its own logits and its own number alone, so it is the same in any batch. Knows
tensors only.

Sources: top-p is Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751, section
3.1; top-k is Fan et al., "Hierarchical Neural Story Generation", arXiv 1805.04833, section 5.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.errors import ShoalError, UsageError

GREEDY_BELOW = 1e-5  # temperatures that no float tells from 0 once logits are divided by them
CANDIDATES = 512  # most likely tokens that top-p looks at before it sorts the whole vocabulary


@dataclass(frozen=True)
class Sampling:
    """Rules by which the next token is drawn.

    Attributes:
        temperature: divides the logits, 0 to 2; below `GREEDY_BELOW`, as 0, takes the most likely token.
        top_p: of the most likely tokens as few as have this probability together are kept, above 0 to 1.
        top_k: how many of the most likely tokens are kept before that; 0 is all.
        seed: decides the random numbers; None draws a seed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise UsageError(
                f"temperature {self.temperature}, top_p {self.top_p} and top_k {self.top_k} must be 0 to 2, "
                "above 0 to 1, and at least 0; correct what is not"
            )

    @property
    def greedy(self) -> bool:
        """True where the most likely token is taken."""
        return self.temperature < GREEDY_BELOW


class Score(NamedTuple):
    """A token and the natural logarithm of its probability under the model itself, at temperature 1."""

    token: int
    logprob: float


class Scores(NamedTuple):
    """A chosen token's score, and those of the most likely tokens, the likeliest first."""

    chosen: Score
    top: tuple[Score, ...]


def choose_tokens(
    logits: Float[Tensor, "rows vocabulary"], rules: Sequence[Sampling], numbers: Sequence[float]
) -> list[int | None]:
    """The next token of every row.

    Args:
        logits: of any floating dtype.
        rules: one per row.
        numbers: one per row, uniform in [0, 1); unused where the rule is greedy.

    Returns:
        Token ids; None where the row's logits are not finite at their largest, so that nothing can be drawn.
    """
    best, likeliest = logits.max(-1)
    tokens: list[int | None] = [int(token) for token in likeliest.tolist()]
    for row, finite in enumerate(best.isfinite().tolist()):
        if not finite:
            tokens[row] = None
    drawn = [row for row, rule in enumerate(rules) if not rule.greedy and tokens[row] is not None]
    if not drawn:
        return tokens
    temperatures = torch.tensor([rules[row].temperature for row in drawn], device=logits.device)
    below = logits[drawn].float() - best[drawn].float()[:, None]  # what is divided never overflows upwards
    likely = torch.softmax(below / temperatures[:, None], -1)
    plain = [i for i, row in enumerate(drawn) if rules[row].top_p == 1 and rules[row].top_k == 0]
    cut = [i for i in range(len(drawn)) if i not in set(plain)]
    for place, index in zip(plain, _draw(likely[plain], [numbers[drawn[i]] for i in plain]), strict=True):
        tokens[drawn[place]] = index
    for place in cut:
        row = drawn[place]
        tokens[row] = _draw_cut(likely[place], rules[row], numbers[row])
    return tokens


def not_finite(dtype: torch.dtype) -> ShoalError:
    """The error of logits that are not finite, in a model of this dtype."""
    remedy = "take bfloat16 or float32, or check" if dtype == torch.float16 else "check"
    name = str(dtype).removeprefix("torch.")
    return ShoalError(f"the logits are not finite in {name}; {remedy} the adapter and the weights")


def token_scores(
    logits: Float[Tensor, "rows vocabulary"], tokens: Sequence[int], tops: Sequence[int]
) -> list[Scores]:
    """Scores of chosen tokens, each with so many of the most likely ones."""
    logprobs = torch.log_softmax(logits.float(), -1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    best = logprobs.topk(max([1, *tops]))
    listed = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Scores(Score(token, logprob), tuple(map(Score, ids[:top], values[:top])))
        for token, logprob, top, (ids, values) in zip(tokens, own, tops, listed, strict=True)
    ]


def _draw(likely: Float[Tensor, "rows tokens"], numbers: Sequence[float]) -> list[int]:
    """For every row the first index at which the summed probability passes its number's share of all."""
    if not numbers:
        return []
    sums = likely.double().cumsum(-1)
    marks = torch.tensor(numbers, dtype=torch.float64, device=likely.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, marks, right=True)[:, 0].clamp(max=likely.shape[-1] - 1).tolist()


def _draw_cut(likely: Float[Tensor, " vocabulary"], rule: Sampling, number: float) -> int:
    """Draw among the tokens that top-k and top-p leave."""
    vocabulary = likely.shape[0]
    count = min(rule.top_k or CANDIDATES, vocabulary)
    kept = likely.topk(count)
    values, indices = kept.values, kept.indices
    if rule.top_k == 0 and float(values.sum()) < rule.top_p:
        values, indices = likely.sort(descending=True, stable=True)
    if rule.top_p < 1:
        sums = values.double().cumsum(-1)
        # Of top-k's tokens, which are made to sum to 1 first; the token that passes the limit is kept.
        whole = float(sums[-1]) if rule.top_k else 1.0
        values = values[: int((sums < rule.top_p * whole).sum()) + 1]
    return int(indices[_draw(values[None], [number])[0]])
