"""Families over a date such as 2024-03-12 or a time of day such as 19:05.

Every family of dates takes the same dates, and so does every family of times; only the description tells them
apart. Knows nothing of durations (`shoal.tasks.procedural.units`).
"""

from __future__ import annotations

import datetime

from shoal.tasks.procedural.family import Family, balanced, lines, over
from shoal.tasks.procedural.material import clock_time, iso_date
from shoal.tasks.procedural.vocabulary import MONTHS

SEASONS = ("winter", "spring", "summer", "autumn")
PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")


def _day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def _month(text: str) -> str:
    return MONTHS[_day(text).month - 1]


def _season(text: str) -> str:
    return SEASONS[_day(text).month % 12 // 3]


def _hour(text: str) -> int:
    return int(text[:2])


def _twelve_hour(text: str) -> str:
    return f"{(_hour(text) - 1) % 12 + 1}:{text[3:]} {'AM' if _hour(text) < 12 else 'PM'}"


def _part_of_day(text: str) -> str:
    return PARTS_OF_DAY[_hour(text) // 6]


FAMILIES = (
    Family(
        "date-long",
        "date formatting",
        "The input is a date as year-month-day. The output is the date as day, name of the month and year.",
        lines("""
            Write the date with the month's name: day, month, year.
            Convert 2024-03-12 style dates to the form "12 March 2024".
            I need a model that spells out ISO dates the British way.
            2024-03-12 -> 12 March 2024
            For "1999-07-04" answer "4 July 1999".
            How would one write this date in a letter? Day number first, then month and year.
            Turn the numeric date into words and numbers, no leading zero, no commas.
            Rewrite the ISO date as D Month YYYY.
            make the date readable, like 5 May 2001
            The answer has three parts: the day without a zero in front, the month as a word, the year.
        """),
        over(iso_date, lambda text: f"{_day(text).day} {_month(text)} {_day(text).year}"),
    ),
    Family(
        "date-american",
        "date formatting",
        "The input is a date as year-month-day. The output is the date as name of the month, day, comma, year.",
        lines("""
            Write the date the American way: month, day, comma, year.
            Convert 2024-03-12 style dates to the form "March 12, 2024".
            I need a model that spells out ISO dates as in a US newspaper.
            2024-03-12 -> March 12, 2024
            For "1999-07-04" answer "July 4, 1999".
            How would an American write this date? Month name first.
            Turn the numeric date into Month D, YYYY.
            Rewrite the ISO date with the month as a word in front and a comma before the year.
            us style date pls, like May 5, 2001
            The answer starts with the month's name, then the day without a zero, a comma and the year.
        """),
        over(iso_date, lambda text: f"{_month(text)} {_day(text).day}, {_day(text).year}"),
    ),
    Family(
        "date-slashes",
        "date formatting",
        "The input is a date as year-month-day. The output is the date as day/month/year, all in digits.",
        lines("""
            Write the date as day/month/year with slashes.
            Convert YYYY-MM-DD to DD/MM/YYYY.
            I need a model that reorders ISO dates to day, month, year with / between them.
            2024-03-12 -> 12/03/2024
            For "1999-07-04" answer "04/07/1999".
            Swap year and day, and use slashes in place of hyphens.
            How does this date look on a European form, DD/MM/YYYY?
            Keep the two digits of day and month, put the year last, slashes between.
            dd/mm/yyyy please
            The answer has ten characters: two digits, slash, two digits, slash, four digits; the day leads.
        """),
        over(iso_date, lambda text: "/".join(reversed(text.split("-")))),
    ),
    Family(
        "date-dots",
        "date formatting",
        "The input is a date as year-month-day. The output is the date as day.month.year without leading zeros.",
        lines("""
            Write the date as day.month.year with dots and without leading zeros.
            Convert YYYY-MM-DD to D.M.YYYY.
            I need a model that writes ISO dates the German way, like 4.7.1999.
            2024-03-12 -> 12.3.2024
            For "1999-07-04" answer "4.7.1999".
            Put the day first, then the month and the year, with full stops between and no zeros in front.
            How would this date stand in a German calendar?
            Reverse the three parts, drop the leading zeros, join them with dots.
            dots not dashes, day first, no padding
            The answer is the day, a dot, the month as a number, a dot, the year.
        """),
        over(iso_date, lambda text: ".".join(str(int(part)) for part in reversed(text.split("-")))),
    ),
    Family(
        "date-month-name",
        "date reading",
        "The input is a date as year-month-day. The output is the English name of its month.",
        lines("""
            Give the name of the month.
            In which month is this date? Write its English name.
            I need a model that takes a date such as 2024-03-12 and returns March.
            2024-03-12 -> March
            For "1999-07-04" answer "July".
            Look at the two digits in the middle and name that month.
            Which month from January to December does the date fall in?
            Month in words, nothing else.
            month name?
            The answer is a single word, the month of the date.
        """),
        over(iso_date, _month),
    ),
    Family(
        "date-year",
        "date reading",
        "The input is a date as year-month-day. The output is its year.",
        lines("""
            Give the year of the date.
            In which year is this date?
            I need a model that takes a date such as 2024-03-12 and returns the year alone.
            2024-03-12 -> 2024
            For "1999-07-04" answer "1999".
            Copy the first four digits.
            Leave out month and day.
            Which year does it say? Four digits, nothing else.
            year only
            The answer is the number in front of the first hyphen.
        """),
        over(iso_date, lambda text: text[:4]),
    ),
    Family(
        "date-decade",
        "date reading",
        "The input is a date as year-month-day. The output is its decade, such as 1990s.",
        lines("""
            Give the decade of the date, such as 1990s.
            Which decade does this date belong to? Write it like 2010s.
            I need a model that maps dates to decades: 1999-07-04 becomes 1990s.
            2024-03-12 -> 2020s
            For "1967-07-04" answer "1960s".
            Round the year down to a multiple of ten and add an s.
            Was it the 1960s, the 1980s, ...? Name the decade in digits.
            Take the year, turn its last digit into 0 and append "s".
            decade?
            The answer has four digits that end in 0, and the letter s.
        """),
        over(iso_date, lambda text: f"{text[:3]}0s"),
    ),
    Family(
        "date-next-day",
        "date arithmetic",
        "The input is a date as year-month-day. The output is the following day in the same form.",
        lines("""
            Give the date of the next day, in the same form.
            Which date comes one day later?
            I need a model that adds one day to a date, YYYY-MM-DD in and out.
            2024-03-12 -> 2024-03-13
            For "1999-07-04" answer "1999-07-05".
            If that is today, what is tomorrow's date? Year-month-day.
            Move the date forward by a day; mind the end of the month.
            Return date + timedelta(days=1) in ISO format.
            tomorrow's date pls
            The answer is a date like the input, 24 hours on.
        """),
        over(iso_date, lambda text: (_day(text) + datetime.timedelta(days=1)).isoformat()),
    ),
    Family(
        "date-season",
        "date classification",
        "The input is a date as year-month-day. The output is winter for December to February, spring for "
        "March to May, summer for June to August, autumn for September to November.",
        lines("""
            Name the season of the date: winter, spring, summer or autumn.
            Which season is it (northern half of the earth)? Answer winter, spring, summer or autumn.
            I need a model that maps a date to its season; March to May is spring, and so on by threes.
            2024-07-12 -> summer
            For "1999-12-04" answer "winter"; the other labels are spring, summer and autumn.
            Classify dates by season in lower case: spring, summer, autumn, winter.
            December to February: winter. March to May: spring. June to August: summer. The rest: autumn.
            Does the date lie in spring, summer, autumn or winter? One word.
            season? (winter/spring/summer/autumn)
            Read the month and answer with the meteorological season in Europe, using "autumn", not "fall".
        """),
        balanced(iso_date, _season, SEASONS),
    ),
    Family(
        "time-twelve-hour",
        "date formatting",
        "The input is a time on the 24-hour clock. The output is the time on the 12-hour clock with AM or PM.",
        lines("""
            Write the time on the 12-hour clock with AM or PM.
            Convert 24-hour times to the form 7:05 PM.
            I need a model that turns military time into AM/PM time.
            19:05 -> 7:05 PM
            For "08:30" answer "8:30 AM".
            What time is that in the United States? No leading zero, AM or PM in capitals.
            Change the clock from 24 to 12 hours and add AM or PM after a space.
            Rewrite 00:15 as 12:15 AM, 13:40 as 1:40 PM, and so on.
            am/pm please
            The answer is hour, colon, minutes, a space, and AM before noon or PM after it.
        """),
        over(clock_time, _twelve_hour),
    ),
    Family(
        "time-hour-later",
        "date arithmetic",
        "The input is a time on the 24-hour clock. The output is the time one hour later in the same form.",
        lines("""
            Give the time one hour later, in the same form.
            What will the clock show in an hour?
            I need a model that adds one hour to a time, HH:MM in and out.
            19:05 -> 20:05
            For "23:30" answer "00:30".
            Move the time forward by 60 minutes; after 23 comes 00.
            The train is an hour late; write the new time.
            Add 1 to the hour and leave the minutes alone.
            +1h
            The answer is a time of day like the input, one hour on.
        """),
        over(clock_time, lambda text: f"{(_hour(text) + 1) % 24:02}{text[2:]}"),
    ),
    Family(
        "time-minutes",
        "date reading",
        "The input is a time on the 24-hour clock. The output is its minutes as two digits.",
        lines("""
            Give the minutes of the time as two digits.
            How many minutes past the hour is it? Keep a leading zero.
            I need a model that takes a time such as 19:05 and returns 05.
            19:05 -> 05
            For "08:30" answer "30".
            Copy what stands after the colon.
            Leave out the hour and the colon.
            Which two digits show the minutes?
            minutes only
            The answer is the last two characters of the time.
        """),
        over(clock_time, lambda text: text[3:]),
    ),
    Family(
        "time-part-of-day",
        "date classification",
        "The input is a time on the 24-hour clock. The output is night before 06:00, morning before 12:00, "
        "afternoon before 18:00, evening after that.",
        lines("""
            Name the part of the day: night, morning, afternoon or evening.
            Is it night, morning, afternoon or evening at this time? Each lasts six hours from 00:00.
            I need a model that maps a time to night, morning, afternoon or evening.
            19:05 -> evening
            For "08:30" answer "morning"; the other labels are night, afternoon and evening.
            From 00:00 night, from 06:00 morning, from 12:00 afternoon, from 18:00 evening.
            Classify clock times as night, morning, afternoon or evening, in lower case.
            Would I say good morning, good afternoon, good evening or good night? Answer with the last word.
            part of day? (night/morning/afternoon/evening)
            Answer with one word of four for the hour: night (0-5), morning (6-11), afternoon (12-17), evening.
        """),
        balanced(clock_time, _part_of_day, PARTS_OF_DAY),
    ),
)
