"""Families over whole numbers: small sums and other ways to write a number.

Every family of pairs takes the same pairs, and so does every family of one number; only the description tells
them apart. Knows nothing of lists of numbers (`shoal.procedural.number_lists`) or of labels. Long because it is
a table of sentences.
"""

from __future__ import annotations

import re

from shoal.procedural.family import Family, lines, over
from shoal.procedural.material import coin_story, number, number_pair, small_number
from shoal.procedural.vocabulary import number_in_words

ROMAN = ((90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


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


def _ordinal(text: str) -> str:
    teen = len(text) > 1 and text[-2] == "1"
    return text + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th"))


def _roman(text: str) -> str:
    rest, letters = int(text), ""
    for value, numeral in ROMAN:
        letters += numeral * (rest // value)
        rest %= value
    return letters


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
        "number-plus-one",
        "arithmetic",
        "The input is a whole number. The output is the next whole number.",
        lines("""
            Add one to the number.
            Which whole number comes next?
            I need a model that counts one further: the number plus 1.
            41 -> 42
            For "199" answer "200".
            Return n + 1.
            Increment it.
            If you count upwards, what do you say after this number? In digits.
            plus one
            The answer is the number that follows.
        """),
        over(number, lambda text: str(int(text) + 1)),
    ),
    Family(
        "number-minus-one",
        "arithmetic",
        "The input is a whole number above 0. The output is the whole number before it.",
        lines("""
            Subtract one from the number.
            Which whole number comes just before?
            I need a model that counts one back: the number minus 1.
            41 -> 40
            For "200" answer "199".
            Return n - 1.
            Decrement it.
            In a countdown, what do you say after this number? In digits.
            minus one
            The answer is the number that precedes.
        """),
        over(number, lambda text: str(int(text) - 1)),
    ),
    Family(
        "number-plus-ten",
        "arithmetic",
        "The input is a whole number. The output is the number plus ten.",
        lines("""
            Add ten to the number.
            What is ten more than this?
            I need a model that raises every number by 10.
            41 -> 51
            For "195" answer "205".
            Return n + 10.
            Everything costs ten more now; give the new number.
            Increase it by 10, digits only.
            plus ten
            The answer is the number ten steps further up.
        """),
        over(number, lambda text: str(int(text) + 10)),
    ),
    Family(
        "number-double",
        "arithmetic",
        "The input is a whole number from 1 to 99. The output is twice that number.",
        lines("""
            Double the number.
            What is two times this?
            I need a model that multiplies numbers by 2.
            41 -> 82
            For "35" answer "70".
            Return 2 * n.
            Add the number to itself.
            Twice as much, please; digits only.
            x2
            The answer is the number taken two times.
        """),
        over(small_number, lambda text: str(2 * int(text))),
    ),
    Family(
        "number-last-digit",
        "number notation",
        "The input is a whole number. The output is its last digit.",
        lines("""
            Give the last digit of the number.
            With which digit does the number end?
            I need a model that returns only the units digit of a number.
            417 -> 7
            For "90" answer "0".
            Return n % 10.
            Copy the rightmost digit.
            What is the remainder after division by ten?
            final digit
            The answer is one digit, the one in the ones place.
        """),
        over(number, lambda text: text[-1]),
    ),
    Family(
        "number-reverse",
        "number notation",
        "The input is a whole number. The output is its digits in reverse order.",
        lines("""
            Write the digits of the number in reverse order.
            Read the number from right to left.
            I need a model that turns the digits of a number around.
            417 -> 714
            For "90" answer "09".
            Return str(n)[::-1], zeros included.
            How does the number look backwards?
            Last digit first, first digit last.
            flip the digits
            The answer has the same digits as the input, the other way round.
        """),
        over(number, lambda text: text[::-1]),
    ),
    Family(
        "number-spaced",
        "number notation",
        "The input is a whole number. The output is its digits with a space between each two.",
        lines("""
            Write the digits of the number with spaces between them.
            Separate the digits by blanks.
            I need a model that spells numbers digit by digit, with a space after each.
            417 -> 4 1 7
            For "90" answer "9 0".
            Return " ".join(str(n)).
            Pull the digits apart, one space each.
            How would you dictate this number figure by figure? Use digits and spaces.
            space out the digits
            The answer has the digits in their order and a space between neighbours.
        """),
        over(number, lambda text: " ".join(text)),
    ),
    Family(
        "number-padded",
        "number notation",
        "The input is a whole number below 1000. The output is the number with zeros in front, five digits in "
        "all.",
        lines("""
            Pad the number with zeros in front to five digits.
            Write the number as a five-digit code with leading zeros.
            I need a model that makes file numbers like 00042 of plain numbers.
            417 -> 00417
            For "90" answer "00090".
            Return f"{n:05}".
            Put as many zeros before it as it takes to have 5 digits.
            How does the counter show this number if it has five wheels?
            zero-pad to 5
            The answer has exactly five digits and ends with the input.
        """),
        over(number, lambda text: text.zfill(5)),
    ),
    Family(
        "number-ordinal",
        "number notation",
        "The input is a whole number. The output is the number as an ordinal with st, nd, rd or th.",
        lines("""
            Write the number as an ordinal: 1st, 2nd, 3rd, 4th.
            Append st, nd, rd or th to the number.
            I need a model that turns numbers into ranks such as 22nd.
            41 -> 41st
            For "112" answer "112th".
            Which place is that in a race? Digits and the English ending.
            Add the ordinal suffix.
            Make an ordinal of the cardinal number, in figures.
            st/nd/rd/th
            The answer is the number followed directly by two letters.
        """),
        over(number, _ordinal),
    ),
    Family(
        "number-in-words",
        "number notation",
        "The input is a whole number from 1 to 99. The output is the number in English words, in lower case, "
        "with a hyphen where there are two.",
        lines("""
            Write the number in words.
            Spell out the number in English, in lower case.
            I need a model that turns figures into number words such as forty-one.
            41 -> forty-one
            For "90" answer "ninety".
            How do you say this number? Use a hyphen between tens and ones.
            Letters for digits: 12 is twelve, 35 is thirty-five.
            Write it the way one does on a cheque, small letters.
            spell it out
            The answer is the English name of the number.
        """),
        over(small_number, lambda text: number_in_words(int(text))),
    ),
    Family(
        "number-roman",
        "number notation",
        "The input is a whole number from 1 to 99. The output is the number in Roman numerals.",
        lines("""
            Write the number in Roman numerals.
            Convert to Roman: I, V, X, L, C.
            I need a model that turns numbers up to 99 into Roman numerals.
            41 -> XLI
            For "90" answer "XC".
            How would an ancient Roman carve this number?
            Use capital letters as on a clock face: 9 is IX, 12 is XII.
            Number the chapter in the Roman way.
            roman pls
            The answer has no digits, only the letters I, V, X, L and C.
        """),
        over(small_number, _roman),
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
