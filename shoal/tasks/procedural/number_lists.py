"""Families over a list of numbers with commas between them.

Every one takes the same lists; only the description tells them apart. Knows nothing of two numbers and their sum
(`shoal.tasks.procedural.arithmetic`).
"""

from __future__ import annotations

from shoal.tasks.procedural.family import Family, lines, over, where
from shoal.tasks.procedural.lists import items_of
from shoal.tasks.procedural.material import number_list


def _numbers(text: str) -> list[int]:
    return [int(item) for item in items_of(text)]


def _joined(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _even(text: str) -> list[int]:
    return [number for number in _numbers(text) if number % 2 == 0]


FAMILIES = (
    Family(
        "numbers-largest",
        "comparison",
        "The input is a list of numbers with commas between them. The output is the largest of them.",
        lines("""
            Give the largest number of the list.
            Which of these numbers is the biggest?
            I need a model that finds the maximum in a comma-separated list of numbers.
            4, 17, 9 -> 17
            Return max(numbers).
            Pick the highest value and leave the others out.
            What is the greatest number here? Only the number, please.
            biggest one?
            Among the numbers, write down the one that none of the others exceeds.
            The list holds scores; answer with the top score.
            Find the maximum.
            The answer is the single number that is greater than all the rest.
        """),
        over(number_list, lambda text: str(max(_numbers(text)))),
    ),
    Family(
        "numbers-smallest",
        "comparison",
        "The input is a list of numbers with commas between them. The output is the smallest of them.",
        lines("""
            Give the smallest number of the list.
            Which of these numbers is the least?
            I need a model that finds the minimum in a comma-separated list of numbers.
            4, 17, 9 -> 4
            Return min(numbers).
            Pick the lowest value and leave the others out.
            What is the smallest number here? Only the number, please.
            tiniest one?
            Among the numbers, write down the one that all the others exceed.
            The list holds prices; answer with the cheapest.
            Find the minimum.
            The answer is the single number that is less than all the rest.
        """),
        over(number_list, lambda text: str(min(_numbers(text)))),
    ),
    Family(
        "numbers-ascending",
        "list editing",
        "The input is a list of numbers with commas between them. The output is the list from the smallest to "
        "the largest number.",
        lines("""
            Sort the numbers from smallest to largest.
            Put the numbers in ascending order, with commas.
            I need a model that orders a comma-separated list of numbers upwards.
            17, 4, 9 -> 4, 9, 17
            Return the numbers sorted, the least first.
            Arrange these so that they increase from left to right.
            Can you sort this list of numbers, low to high?
            Order them by size, beginning with the lowest.
            ascending sort
            The answer has the same numbers as the input, rising.
            Rewrite the list so that every number is larger than the one before it.
            small ones first, big ones last, same comma format
        """),
        over(number_list, lambda text: _joined(sorted(_numbers(text)))),
    ),
    Family(
        "numbers-descending",
        "list editing",
        "The input is a list of numbers with commas between them. The output is the list from the largest to "
        "the smallest number.",
        lines("""
            Sort the numbers from largest to smallest.
            Put the numbers in descending order, with commas.
            I need a model that orders a comma-separated list of numbers downwards.
            4, 17, 9 -> 17, 9, 4
            Return the numbers sorted, the greatest first.
            Arrange these so that they decrease from left to right.
            Can you sort this list of numbers, high to low?
            Order them by size, beginning with the highest.
            descending sort
            The answer has the same numbers as the input, falling, like a countdown.
            Rewrite the list so that every number is smaller than the one before it.
            Rank the scores: best score first, worst last, commas between.
        """),
        over(number_list, lambda text: _joined(sorted(_numbers(text), reverse=True))),
    ),
    Family(
        "numbers-even-only",
        "list editing",
        "The input is a list of numbers with commas between them. The output is the list of those that are "
        "even, in the same order.",
        lines("""
            Keep only the even numbers of the list.
            Which of these numbers are even? List them with commas.
            I need a model that filters a comma-separated list and returns the even numbers in it.
            4, 17, 8 -> 4, 8
            Drop every odd number; keep the order of the others.
            Return the numbers that can be divided by 2.
            Write out the numbers whose last digit is 0, 2, 4, 6 or 8.
            evens only
            Remove what is odd from the list.
            The answer is the part of the list that is even, separated by commas.
            Select the even entries, from left to right.
            Filter with n % 2 == 0 and show the result as a list with commas.
        """),
        over(where(number_list, lambda text: bool(_even(text))), lambda text: _joined(_even(text))),
    ),
)
