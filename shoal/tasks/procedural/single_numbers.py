"""Families over one whole number: its neighbours and multiples, and other ways to write it.

Every family takes the same numbers, as far as their size allows; only the description tells them apart. Knows
nothing of pairs (`shoal.tasks.procedural.arithmetic`) or of lists of numbers (`shoal.tasks.procedural.number_lists`).
"""

from __future__ import annotations

from shoal.tasks.procedural.family import Family, lines, over
from shoal.tasks.procedural.material import number, small_number
from shoal.tasks.procedural.vocabulary import number_in_words

ROMAN = ((90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def _ordinal(text: str) -> str:
    teen = len(text) > 1 and text[-2] == "1"
    return text + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(text[-1], "th"))


def _roman(text: str) -> str:
    rest, letters = int(text), ""
    for value, numeral in ROMAN:
        letters += numeral * (rest // value)
        rest %= value
    return letters


FAMILIES = (
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
)
