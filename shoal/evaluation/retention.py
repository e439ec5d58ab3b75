"""Retention of the base model's abilities: plain questions of general knowledge, answered by likelihood.

Asked before and after, they say what an adapter made the model forget. The right choice stands first in the
table: likelihood does not see an order. No task of the benchmark is among them. Knows a
predictor; nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.errors import UsageError
from shoal.evaluation.multiple_choice import ChoiceQuestion, answer_by_likelihood
from shoal.evaluation.predictors import Predictor
from shoal.tasks.metrics import perplexity

# Question, right answer, three wrong ones.
GENERAL_KNOWLEDGE: Sequence[tuple[str, str, str, str, str]] = (
    ("What is the capital of France?", "Paris", "Berlin", "Madrid", "Vienna"),
    ("Which animal barks?", "dog", "cat", "cow", "horse"),
    ("What do bees make?", "honey", "milk", "paper", "wool"),
    ("How many days are in a week?", "seven", "five", "nine", "twelve"),
    ("What colour is the sky on a clear day?", "blue", "green", "red", "black"),
    ("Which season follows winter?", "spring", "summer", "autumn", "night"),
    ("What is frozen water called?", "ice", "steam", "sand", "glass"),
    ("Which planet do people live on?", "Earth", "Mars", "Venus", "Jupiter"),
    ("What is two plus three?", "five", "four", "six", "eight"),
    ("Who wrote Hamlet?", "Shakespeare", "Newton", "Mozart", "Picasso"),
    ("What is the largest ocean?", "Pacific", "Atlantic", "Indian", "Arctic"),
    ("Which gas do plants take in?", "carbon dioxide", "oxygen", "helium", "neon"),
    ("What is the opposite of hot?", "cold", "warm", "tall", "loud"),
    ("Which organ pumps blood?", "heart", "lung", "liver", "brain"),
    ("What language is spoken in Brazil?", "Portuguese", "Spanish", "French", "Italian"),
    ("How many legs does a spider have?", "eight", "six", "four", "ten"),
    ("What is the plural of child?", "children", "childs", "childes", "childrens"),
    ("Which metal is attracted by a magnet?", "iron", "gold", "copper", "silver"),
    ("Where does the sun rise?", "in the east", "in the west", "in the north", "in the south"),
    ("What do you use to cut paper?", "scissors", "spoon", "pillow", "cup"),
    ("Which country has Tokyo as its capital?", "Japan", "China", "Korea", "Thailand"),
    ("What is the past tense of go?", "went", "goed", "gone to", "going"),
    ("Which is the longest?", "a kilometre", "a metre", "a centimetre", "a millimetre"),
    ("What does a thermometer measure?", "temperature", "weight", "time", "distance"),
    ("Which one is a fruit?", "apple", "carrot", "bread", "cheese"),
    ("What is the chemical symbol of water?", "H2O", "CO2", "NaCl", "O3"),
    (
        "Who was the first president of the United States?",
        "George Washington",
        "Abraham Lincoln",
        "John Kennedy",
        "Thomas Edison",
    ),
    ("What do you call a baby cat?", "kitten", "puppy", "calf", "lamb"),
    ("Which force pulls things to the ground?", "gravity", "friction", "magnetism", "pressure"),
    ("What is the first month of the year?", "January", "March", "June", "December"),
    ("Which instrument has black and white keys?", "piano", "violin", "drum", "flute"),
    ("What is needed for a fire to burn?", "oxygen", "water", "salt", "sand"),
)


@dataclass(frozen=True)
class BaseAbility:
    """Scores on the questions.

    Attributes:
        accuracy: share of the questions whose right choice is the likeliest, in [0, 1].
        perplexity: of the right choices, from 1.
    """

    accuracy: float
    perplexity: float


def base_ability(predictor: Predictor, questions: int = len(GENERAL_KNOWLEDGE)) -> BaseAbility:
    """Ask the first so many questions.

    Raises:
        UsageError: fewer than 1, or more than there are.
    """
    if not 1 <= questions <= len(GENERAL_KNOWLEDGE):
        raise UsageError(
            f"{questions} questions: must be 1 to {len(GENERAL_KNOWLEDGE)}; choose another number"
        )
    asked = [
        ChoiceQuestion(question, (right, *wrong), 0)
        for question, right, *wrong in GENERAL_KNOWLEDGE[:questions]
    ]
    results = answer_by_likelihood(predictor, asked)
    accuracy = sum(r.right for r in results) / len(results)
    return BaseAbility(accuracy, perplexity([r.nll for r in results]))
