"""Questions with choices, answered by likelihood: the choice whose text is the likeliest answer.

Log-likelihoods are divided by the choice's characters, as `acc_norm` of the LM evaluation harness (Gao et
al., "A framework for few-shot language model evaluation"); the end of turn is no part of a choice. Knows a
predictor; nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.errors import UsageError
from shoal.evaluation.predictors import Predictor


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its choices, and which of them is right, from 0.

    Raises:
        UsageError: fewer than two choices, a blank one, or a right one that is not there.
    """

    question: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(choice.strip() for choice in self.choices):
            raise UsageError(f"choices {self.choices}: at least 2 that are not blank are needed; add some")
        if not 0 <= self.answer < len(self.choices):
            raise UsageError(
                f"answer {self.answer}: must be 0 to {len(self.choices) - 1}, the index of a choice"
            )


@dataclass(frozen=True)
class ChoiceResult:
    """The answer to one question.

    Attributes:
        chosen: the likeliest choice by character.
        right: whether that is the right one.
        likeliest: the likeliest choice as a whole, however long it is (`acc` of the harness).
        nll: cross-entropy of the right choice's text, nats per token.
    """

    chosen: int
    right: bool
    likeliest: int
    nll: float


def answer_by_likelihood(
    predictor: Predictor,
    questions: Sequence[ChoiceQuestion],
    request: Callable[[ChoiceQuestion], str] = lambda question: question.question,
    *,
    batch_size: int = 32,
) -> list[ChoiceResult]:
    """One result a question.

    Args:
        predictor: who is asked.
        questions: at least one.
        request: how a question is worded; by default as it is.
        batch_size: choices that are scored together.

    Raises:
        UsageError: there is no question, or one is too long for the model.
    """
    if not questions:
        raise UsageError("there are 0 questions; at least 1 is needed, give some")
    pairs = [(request(q), choice) for q in questions for choice in q.choices]
    losses = predictor.losses(
        [r for r, _ in pairs], [c for _, c in pairs], closed=False, batch_size=batch_size
    )
    tokens = [len(ids) - 1 for ids in predictor.backbone.encode_completions([c for _, c in pairs])]
    results, begin = [], 0
    for q in questions:
        rows = range(begin, begin + len(q.choices))
        whole = [-losses[row] * tokens[row] for row in rows]
        scores = [likely / len(choice) for likely, choice in zip(whole, q.choices, strict=True)]
        chosen, likeliest = (max(range(len(s)), key=s.__getitem__) for s in (scores, whole))
        results.append(ChoiceResult(chosen, chosen == q.answer, likeliest, losses[begin + q.answer]))
        begin += len(q.choices)
    return results
