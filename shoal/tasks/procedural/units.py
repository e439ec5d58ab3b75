"""Families over a quantity: a length in metres, an amount in euros, a duration in hours and minutes.

The families of one kind take the same quantities; only the description tells them apart. Knows nothing of
dates or times of day.
"""

from __future__ import annotations

from shoal.tasks.procedural.arithmetic import numbers_in
from shoal.tasks.procedural.family import Family, balanced, lines, over
from shoal.tasks.procedural.material import amount, duration, length


def _scaled(factor: int, unit: str, text: str) -> str:
    return f"{int(text.split()[0]) * factor} {unit}"


def _minutes(text: str) -> int:
    hours, minutes = numbers_in(text)
    return 60 * hours + minutes


def _clock(text: str) -> str:
    hours, minutes = numbers_in(text)
    return f"{hours}:{minutes:02}"


def _spelled_duration(text: str) -> str:
    hours, minutes = numbers_in(text)
    return f"{hours} hour{'s' if hours > 1 else ''} and {minutes} minutes"


def _price_class(text: str) -> str:
    euros = numbers_in(text)[0]
    return "cheap" if euros < 20 else "medium" if euros < 100 else "expensive"


FAMILIES = (
    Family(
        "metres-to-centimetres",
        "unit conversion",
        "The input is a length in metres, such as 34 m. The output is the length in centimetres, with cm.",
        lines("""
            Convert metres to centimetres, with the unit cm.
            How many centimetres is that? Answer like 3400 cm.
            I need a model that turns lengths in m into lengths in cm.
            34 m -> 3400 cm
            For "7 m" answer "700 cm".
            Multiply the number by 100 and change the unit to cm.
            Express this length in centimeters, number and unit.
            Append two zeros and write cm in place of m.
            in cm pls
            The answer is a hundred times the number, a space and cm.
        """),
        over(length, lambda text: _scaled(100, "cm", text)),
    ),
    Family(
        "metres-to-millimetres",
        "unit conversion",
        "The input is a length in metres, such as 34 m. The output is the length in millimetres, with mm.",
        lines("""
            Convert metres to millimetres, with the unit mm.
            How many millimetres is that? Answer like 34000 mm.
            I need a model that turns lengths in m into lengths in mm.
            34 m -> 34000 mm
            For "7 m" answer "7000 mm".
            Multiply the number by 1000 and change the unit to mm.
            Express this length in millimeters, number and unit.
            Append three zeros and write mm in place of m.
            in mm pls
            The answer is a thousand times the number, a space and mm.
        """),
        over(length, lambda text: _scaled(1000, "mm", text)),
    ),
    Family(
        "metres-spelled-out",
        "unit notation",
        "The input is a length in metres, such as 34 m. The output has the word metres in place of m.",
        lines("""
            Spell out the unit: metres in place of m.
            Write the length with the full word "metres".
            I need a model that replaces the abbreviation m by the word metres.
            34 m -> 34 metres
            For "7 m" answer "7 metres".
            Keep the number and write the unit in full.
            How is this length read aloud? Number in digits, unit as a word (British spelling).
            Do not convert anything; only expand the m.
            unit as a word please
            The answer is the same number followed by the word metres.
        """),
        over(length, lambda text: f"{text}etres"),
    ),
    Family(
        "length-number-only",
        "unit notation",
        "The input is a length in metres, such as 34 m. The output is the number without the unit.",
        lines("""
            Give the number without the unit.
            Strip the unit from the length.
            I need a model that returns only the number of a measurement.
            34 m -> 34
            For "7 m" answer "7".
            Copy the digits and leave the m out.
            What is the bare value, as one would type it into a spreadsheet?
            Remove " m" from the end.
            no unit pls
            The answer consists of digits alone, the same as in the input.
        """),
        over(length, lambda text: text.split()[0]),
    ),
    Family(
        "euros-to-cents",
        "unit conversion",
        "The input is an amount in euros, such as 34 euros. The output is the amount in cents, with the word "
        "cents.",
        lines("""
            Convert euros to cents, with the word cents.
            How many cents is that? Answer like 3400 cents.
            I need a model that turns amounts in euros into amounts in cents.
            34 euros -> 3400 cents
            For "7 euros" answer "700 cents".
            Multiply the number by 100 and write cents after it.
            Express this sum in cents, number and word.
            Append two zeros and change the word euros to cents.
            in cents
            The answer is a hundred times the number, a space and the word cents.
        """),
        over(amount, lambda text: _scaled(100, "cents", text)),
    ),
    Family(
        "euros-symbol",
        "unit notation",
        "The input is an amount in euros, such as 34 euros. The output is the amount with the euro sign in "
        "front and two decimals.",
        lines("""
            Write the amount with the euro sign in front and two decimals.
            Format as a price tag: €34.00.
            I need a model that shows amounts as € and a number with cents.
            34 euros -> €34.00
            For "7 euros" answer "€7.00".
            Put € before the number and .00 after it; drop the word.
            How would this price stand on an invoice in English? Sign first, two decimals.
            Replace the word euros by the sign €, placed at the front, and add .00.
            € + two decimals
            The answer starts with € and ends with .00, without spaces.
        """),
        over(amount, lambda text: f"€{text.split()[0]}.00"),
    ),
    Family(
        "euros-code",
        "unit notation",
        "The input is an amount in euros, such as 34 euros. The output is EUR, a space and the number.",
        lines("""
            Write the amount with the currency code in front: EUR 34.
            Format as EUR and the number.
            I need a model that puts the ISO code EUR before the number and drops the word euros.
            34 euros -> EUR 34
            For "7 euros" answer "EUR 7".
            Start with EUR, then a space, then the number as it is.
            How would a bank write this amount without decimals? Code first.
            Replace the word euros by EUR and move it to the front.
            iso currency code first
            The answer has two parts: EUR in capitals and the number.
        """),
        over(amount, lambda text: f"EUR {text.split()[0]}"),
    ),
    Family(
        "price-class",
        "classification",
        "The input is an amount in euros. The output is cheap below 20, medium from 20 to 99 and expensive "
        "from 100.",
        lines("""
            Classify the price: cheap (below 20), medium (20 to 99) or expensive (100 and more).
            Is this cheap, medium or expensive? The limits are 20 and 100 euros.
            I need a model that answers cheap, medium or expensive for an amount in euros.
            34 euros -> medium
            For "7 euros" answer "cheap"; the other labels are medium and expensive.
            Below 20 say "cheap", from 100 on say "expensive", between them "medium".
            Sort amounts into cheap, medium, expensive: up to 19, from 20 to 99, three digits.
            Which price class is it? One word: cheap, medium or expensive.
            cheap/medium/expensive?
            Label the amount: cheap under twenty, medium under a hundred, else expensive.
        """),
        balanced(amount, _price_class, ("cheap", "medium", "expensive")),
    ),
    Family(
        "duration-minutes",
        "unit conversion",
        "The input is a duration in hours and minutes, such as 2 h 15 min. The output is the duration in "
        "minutes, with min.",
        lines("""
            Convert the duration to minutes, with min.
            How many minutes is that in all? Answer like 135 min.
            I need a model that turns hours and minutes into minutes.
            2 h 15 min -> 135 min
            For "1 h 5 min" answer "65 min".
            Multiply the hours by 60, add the minutes, write min after it.
            Express the time in minutes only, number and unit.
            The film is that long; how many minutes?
            total min
            The answer is one number of minutes, a space and min.
        """),
        over(duration, lambda text: f"{_minutes(text)} min"),
    ),
    Family(
        "duration-clock",
        "unit notation",
        "The input is a duration in hours and minutes, such as 2 h 15 min. The output is hours, a colon and "
        "the minutes in two digits.",
        lines("""
            Write the duration with a colon: hours:minutes, minutes in two digits.
            Format as H:MM.
            I need a model that shows durations the way a stopwatch does, 2:15.
            2 h 15 min -> 2:15
            For "1 h 5 min" answer "1:05".
            Put a colon between hours and minutes and drop the units; pad the minutes with a zero.
            How would a video player show this running time?
            Remove h and min; join the numbers by a colon.
            h:mm
            The answer is the hours, a colon, and always two digits for the minutes.
        """),
        over(duration, _clock),
    ),
    Family(
        "duration-spelled-out",
        "unit notation",
        "The input is a duration in hours and minutes, such as 2 h 15 min. The output has the words hour or "
        "hours, and, minutes in place of the units.",
        lines("""
            Spell out the units: hours and minutes.
            Write the duration as "2 hours and 15 minutes".
            I need a model that expands h and min to words, with "and" between the parts.
            2 h 15 min -> 2 hours and 15 minutes
            For "1 h 5 min" answer "1 hour and 5 minutes".
            Keep the numbers, write the units in full, join them by "and"; 1 takes "hour".
            How does one read this duration aloud? Digits for the numbers, words for the units.
            Replace h by hours (or hour), min by minutes, and put "and" between.
            units as words
            The answer is the same duration in the form X hours and Y minutes.
        """),
        over(duration, _spelled_duration),
    ),
)
