"""A task's training examples, tokenised once, and divided into fit and selection anew for every seed.

Examples of one input are in one part. The `test` list is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.records import divide
from shoal.training.batches import Corpus, TokenisedExample, tokenise

LEAST_EXAMPLES, MOST_SELECTION, SELECTION_SHARE = 16, 64, 0.25


class DividedExamples:
    """Examples of one task.

    Attributes:
        task: with one example for every input, and nothing to be tested on.
        corpus: its examples, tokenised.
    """

    def __init__(self, backbone: Backbone, task: Task, config: LoraTrainingConfig) -> None:
        """Tokenise the examples of `task` that fit.

        Raises:
            UsageError: fewer than 16 different inputs, or none that fits.
        """
        whole, _ = divide(task.train, test_size=0)
        if len(whole) < LEAST_EXAMPLES:
            raise UsageError(
                f"{task.name} has {len(whole)} different training inputs, {LEAST_EXAMPLES} are needed to "
                "divide them; give more examples"
            )
        self.task = replace(task, train=whole, test=())
        self.corpus = tokenise([self.task], backbone, config.max_length, describe=config.describe)

    def divided(self, number: int) -> tuple[Corpus, list[TokenisedExample]]:
        """(the corpus to fit, examples that select) of a division by its number.

        Raises:
            UsageError: the examples that fit are all in one part.
        """
        size = min(MOST_SELECTION, round(SELECTION_SHARE * len(self.task.train)))
        _, chosen = divide(self.task.train, test_size=size, seed=number)
        inputs, examples = {e.input for e in chosen}, self.corpus.examples[0]
        asked = [e for e in examples if self.task.train[e.place].input in inputs]
        rest = tuple(e for e in examples if self.task.train[e.place].input not in inputs)
        if not asked or not rest:
            raise UsageError(
                f"the examples of {self.task.name} that fit cannot be divided; raise --max-length"
            )
        return replace(self.corpus, examples=(rest,)), asked

    def shown(self, examples: Sequence[TokenisedExample]) -> list[Example]:
        """The examples as the task has them."""
        return [self.task.train[e.place] for e in examples]
