"""Families over pairs of whole numbers: sums, differences, comparisons and small stories.

Every family of pairs takes the same pairs; only the description tells them apart. Knows nothing of one number
(`shoal.tasks.procedural.single_numbers`), of lists of numbers (`shoal.tasks.procedural.number_lists`) or of labels.
"""

from __future__ import annotations

import re

from shoal.tasks.procedural.family import Family, lines, over
from shoal.tasks.procedural.material import coin_story, number_pair


def numbers_in(text: str) -> list[int]:
    """The whole numbers of a text in their order."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _equation(text: str) -> str:
    first, second = numbers_in(text)
    return f"{first} + {second} = {first + second}"


def _inequality(text: str) -> str:
    first, second = numbers_in(text)
    return f"{first} {'>' if first > second else '<'} {second}"


def _gap(text: str) -> str:
    first, second = numbers_in(text)
    return str(abs(first - second))


def _story_total(text: str) -> str:
    first, second = numbers_in(text)
    return str(first + second if " gets " in text else first - second)


FAMILIES = (
    Family(
        "pair-sum",
        "arithmetic",
        "The input is two whole numbers joined by 'and'. The output is their sum.",
        lines("""
            Add the two numbers.
            What is the sum of these numbers?
            I need a model that adds two small whole numbers and returns only the result.
            23 and 8 -> 31
            For "10 and 45" answer "55".
            How much do the two make together? Just the number.
            Return a + b.
            Compute the total.
            add them up pls
            The answer is one number: what you get when you put both together.
        """),
        over(number_pair, lambda text: str(sum(numbers_in(text)))),
    ),
    Family(
        "pair-difference",
        "arithmetic",
        "The input is two whole numbers joined by 'and'. The output is the larger minus the smaller.",
        lines("""
            Subtract the smaller number from the larger.
            What is the difference between these numbers? Never negative.
            I need a model that tells how far apart two whole numbers are.
            23 and 8 -> 15
            For "10 and 45" answer "35".
            How much larger is the larger one?
            Return abs(a - b).
            Compute the gap, a positive number.
            difference?
            The answer is one number: the distance from one to the other on the number line.
        """),
        over(number_pair, _gap),
    ),
    Family(
        "pair-larger",
        "comparison",
        "The input is two whole numbers joined by 'and'. The output is the larger of them.",
        lines("""
            Give the larger of the two numbers.
            Which of these numbers is bigger? Answer with the number.
            I need a model that compares two whole numbers and returns the greater.
            23 and 8 -> 23
            For "10 and 45" answer "45".
            Pick the higher value.
            Return max(a, b).
            Copy whichever number is more.
            the bigger one
            The answer is one of the two numbers, the one that the other does not reach.
        """),
        over(number_pair, lambda text: str(max(numbers_in(text)))),
    ),
    Family(
        "pair-smaller",
        "comparison",
        "The input is two whole numbers joined by 'and'. The output is the smaller of them.",
        lines("""
            Give the smaller of the two numbers.
            Which of these numbers is less? Answer with the number.
            I need a model that compares two whole numbers and returns the lesser.
            23 and 8 -> 8
            For "10 and 45" answer "10".
            Pick the lower value.
            Return min(a, b).
            Copy whichever number is less.
            the smaller one
            The answer is one of the two numbers, the one that the other exceeds.
        """),
        over(number_pair, lambda text: str(min(numbers_in(text)))),
    ),
    Family(
        "pair-equation",
        "arithmetic",
        "The input is two whole numbers joined by 'and'. The output is the equation of their sum, such as "
        "2 + 3 = 5.",
        lines("""
            Write the sum of the two numbers as an equation, such as 2 + 3 = 5.
            Add the numbers and show the whole calculation: a + b = c.
            I need a model that answers with the full equation of an addition, spaces around + and =.
            23 and 8 -> 23 + 8 = 31
            For "10 and 45" answer "10 + 45 = 55".
            Write first number, plus sign, second number, equals sign, total.
            Return f"{a} + {b} = {a + b}".
            How would the addition stand on a blackboard? One line with + and =.
            show the sum like 1 + 1 = 2
            The answer repeats both numbers, in their order, and ends with what they add up to.
        """),
        over(number_pair, _equation),
    ),
    Family(
        "pair-inequality",
        "comparison",
        "The input is two whole numbers joined by 'and'. The output is the two numbers in their order with < "
        "or > between them.",
        lines("""
            Write the two numbers with the right sign, < or >, between them.
            Replace "and" by < or >, whichever is true.
            I need a model that states as an inequality which number is larger, like 3 < 9.
            23 and 8 -> 23 > 8
            For "10 and 45" answer "10 < 45".
            Keep the order of the numbers and put a less-than or greater-than sign between.
            Less than or greater than? Write it out with the symbol.
            Make a true statement of the form a < b or a > b; do not swap the numbers.
            < or > ?
            The answer has both numbers in their order and one comparison sign with spaces around it.
        """),
        over(number_pair, _inequality),
    ),
    Family(
        "coin-story",
        "arithmetic",
        "The input is a story in which a person has some coins and gets or loses some. The output is the "
        "number of coins in the end.",
        lines("""
            How many coins are there in the end? Answer with a number.
            Work out how many coins the person has now.
            I need a model that solves one-step coin problems and returns only the number.
            has 12, gets 5 -> 17; has 12, loses 5 -> 7
            Add what is gained or subtract what is lost, and give the result.
            Solve the word problem; digits only.
            Read the story and return the final number of coins.
            Compute the coins left or collected at the end of the story.
            how many now?
            The answer is the first number plus the second if coins come in, minus the second if they go.
        """),
        over(coin_story, _story_total),
    ),
)
