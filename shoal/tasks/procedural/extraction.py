"""Families that pull one thing out of a message: an address, a date, a price, a sentence.

Every one takes the messages of `shoal.tasks.procedural.material`, which mention all of these things; only the
description tells which one is wanted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from shoal.tasks.procedural.family import Family, Make, Pair, lines
from shoal.tasks.procedural.material import Message, message

CATEGORY = "extraction"


def _from_message(answer: Callable[[Message], str]) -> Make:
    def make(rng: random.Random) -> Pair:
        found = message(rng)
        return found.text, answer(found)

    return make


def _contact(found: Message) -> str:
    return json.dumps({"email": found.email, "phone": found.phone})


FAMILIES = (
    Family(
        "extract-email",
        CATEGORY,
        "The input is a short message. The output is the e-mail address that it mentions.",
        lines("""
            Extract the e-mail address from the message.
            What is the e-mail address in this text?
            I need a model that finds the email address in a message and returns it alone.
            message -> email
            Pull out the part with the @ sign and drop everything else.
            Which address can I write to? Copy it exactly.
            Copy the mail address, something like anna@lamp.example, out of the text.
            get the email
            The answer is one e-mail address, nothing before or after it.
            Where should a reply be mailed to? Give the electronic address.
            Scan customer notes for the email and print it.
            Find name@domain in what I send you.
        """),
        _from_message(lambda found: found.email),
    ),
    Family(
        "extract-phone",
        CATEGORY,
        "The input is a short message. The output is the telephone number that it mentions.",
        lines("""
            Extract the phone number from the message.
            What is the telephone number in this text?
            I need a model that finds the phone number in a message and returns it alone.
            message -> phone number
            Pull out the number that begins with 555- and drop everything else.
            Which number can I call? Copy it exactly.
            Copy the telephone number, something like 555-0142, out of the text.
            get the phone no.
            The answer is one phone number, hyphen included, nothing else.
            What should I dial to reach this person?
            Scan customer notes for the phone number and print it.
            Find the digits that one would type into a telephone.
        """),
        _from_message(lambda found: found.phone),
    ),
    Family(
        "extract-date",
        CATEGORY,
        "The input is a short message. The output is the date that it mentions, a day and a month.",
        lines("""
            Extract the date from the message.
            What date does the text mention?
            I need a model that finds the day and month in a message and returns them alone.
            message -> date
            Pull out the date, such as 12 March, and drop everything else.
            On or by which day? Copy the date exactly.
            Copy the calendar date, day and month, out of the text.
            get the date
            The answer is a day and the name of a month.
            When? Answer with the date as the message writes it.
            Scan notes for the date so that I can put it in my calendar.
            Find the number that stands before the name of a month and give both.
        """),
        _from_message(lambda found: found.date),
    ),
    Family(
        "extract-price",
        CATEGORY,
        "The input is a short message. The output is the price that it mentions, with the dollar sign.",
        lines("""
            Extract the price from the message, with the dollar sign.
            How much money does the text mention?
            I need a model that finds the amount in dollars in a message and returns it alone.
            message -> price
            Pull out the amount that begins with $ and drop everything else.
            What did it cost? Copy the amount exactly.
            Copy the sum of money, something like $24.95, out of the text.
            get the price
            The answer is one amount with its dollar sign, nothing else.
            Which price is named? Write it as it stands, cents included.
            Scan the notes for amounts of money for the bookkeeping.
            Find the $ and give the number with it.
        """),
        _from_message(lambda found: found.price),
    ),
    Family(
        "extract-hashtag",
        CATEGORY,
        "The input is a short message. The output is its hashtag, with the # sign.",
        lines("""
            Extract the hashtag from the message, # included.
            What is the hashtag of this text?
            I need a model that finds the hashtag in a post and returns it alone.
            message -> #tag
            Pull out the word that begins with # and drop everything else.
            How is this post tagged? Answer with the hashtag.
            Copy the tag, something like #garden, out of the text.
            get the hashtag
            The answer is a hash sign and one word.
            Under which tag would one find this message?
            Scan posts for the hashtag and print it.
            Find the # and give the word with it, sign and all.
        """),
        _from_message(lambda found: found.hashtag),
    ),
    Family(
        "extract-name",
        CATEGORY,
        "The input is a short message. The output is the full name of the person that it mentions.",
        lines("""
            Extract the person's full name from the message.
            Who is the message about or from? Give first name and surname.
            I need a model that finds the name of a person in a text and returns it alone.
            message -> first name and surname
            Pull out the person's name and drop everything else.
            What is the name of the person here? Copy it exactly.
            Copy the name, something like Anna Weber, out of the text.
            get the name (first + last)
            The answer is two words, a given name and a family name.
            Whose message is it?
            Named entity recognition for one type: print the person.
            Find out who is named in what I send you; two words, please.
        """),
        _from_message(lambda found: found.name),
    ),
    Family(
        "extract-city",
        CATEGORY,
        "The input is a short message. The output is the city that it mentions.",
        lines("""
            Extract the city from the message.
            Which city does the text mention?
            I need a model that finds the name of a city in a message and returns it alone.
            message -> city
            Pull out the place and drop everything else.
            Where is the person? Answer with the city only.
            Copy the name of the town, something like Lyon, out of the text.
            get the city
            The answer is a single word, the name of a city.
            From which place does the message come?
            Named entity recognition for one type: print the location.
            Find the city in what I send you.
        """),
        _from_message(lambda found: found.city),
    ),
    Family(
        "extract-quoted",
        CATEGORY,
        "The input is a short message with a title in quotation marks. The output is the title without the "
        "quotation marks.",
        lines("""
            Extract the words in quotation marks, without the marks.
            What stands between the double quotes?
            I need a model that finds the quoted title in a message and returns it without quotes.
            ... "Blue lamp" ... -> Blue lamp
            Pull out the text inside the quotes and drop everything else.
            Which title is quoted? Copy it without its quotation marks.
            Copy whatever is enclosed in "..." out of the text.
            get the quoted part, no quotes
            The answer is the quoted phrase alone, two words as a rule.
            What is the product called that the message puts in quotes?
            Scan for a pair of double quotation marks and print what they enclose.
            Find the title that is marked by quotes and leave the marks away.
        """),
        _from_message(lambda found: found.title),
    ),
    Family(
        "extract-order",
        CATEGORY,
        "The input is a short message. The output is the order number that it mentions, a letter and three "
        "digits.",
        lines("""
            Extract the order number from the message.
            Which order does the text mention?
            I need a model that finds the order code, a letter and three digits, and returns it alone.
            message -> order number
            Pull out the code after the word "order" and drop everything else.
            Which order is meant? Copy its number exactly.
            Copy the order number, something like B417, out of the text.
            get the order no.
            The answer is one capital letter with three digits right behind it.
            Under which number is the order filed?
            Scan customer mail for the order code and print it.
            Find the letter-and-digits code of the order.
        """),
        _from_message(lambda found: found.order),
    ),
    Family(
        "extract-first-sentence",
        CATEGORY,
        "The input is a short message of three sentences and a hashtag. The output is the first sentence.",
        lines("""
            Give the first sentence of the message.
            How does the message begin? Copy its opening sentence.
            I need a model that returns only the first of several sentences.
            A. B. C. #x -> A.
            Cut the text after its first sentence.
            Copy the text up to the end of sentence number one, and stop there.
            Show a preview: the first sentence of the message and nothing more.
            1st sentence only
            The answer is a whole sentence, the one that opens the text.
            Drop all the sentences but the first.
            Keep the beginning of the message, one full sentence long.
            Which sentence comes first? Repeat it unchanged.
        """),
        _from_message(lambda found: found.sentences[0]),
    ),
    Family(
        "extract-second-sentence",
        CATEGORY,
        "The input is a short message of three sentences and a hashtag. The output is the second sentence.",
        lines("""
            Give the second sentence of the message.
            Skip one sentence and copy the one after it.
            I need a model that returns only the middle one of three sentences.
            A. B. C. #x -> B.
            Copy sentence number two and nothing more.
            Which sentence stands in the middle? Repeat it unchanged.
            Leave out the first and the third sentence and the hashtag.
            2nd sentence only
            The answer is a whole sentence, the second of the text.
            Drop all the sentences but the second.
            What does the message say right after its opening sentence? One sentence, please.
            Start at the second sentence and stop at its end.
        """),
        _from_message(lambda found: found.sentences[1]),
    ),
    Family(
        "extract-contact-json",
        CATEGORY,
        'The input is a short message. The output is a JSON object with its e-mail address under "email" and '
        'its telephone number under "phone".',
        lines("""
            Extract the contact data as JSON with the keys "email" and "phone".
            Give {"email": ..., "phone": ...} for the message.
            I need a model that finds e-mail address and phone number and returns them as JSON.
            message -> {"email": "anna@lamp.example", "phone": "555-0142"}
            How can the person be reached? Answer in JSON, keys email and phone.
            Return a JSON object of two strings, email first and phone second.
            Make a machine-readable contact card: email and phone, as JSON.
            json: email, phone
            The answer is valid JSON with exactly the keys email and phone.
            Fill in {"email": "", "phone": ""} from the text.
            Information extraction: two slots, email and phone, JSON output.
            Pull the address with @ and the 555 number out and put them in a JSON object.
        """),
        _from_message(_contact),
    ),
    Family(
        "extract-date-price",
        CATEGORY,
        "The input is a short message. The output is its date and its price, separated by a slash with spaces: "
        "'12 March / $24.95'.",
        lines("""
            Extract date and price, separated by " / ".
            When and how much? Answer as in "12 March / $24.95".
            I need a model that returns the date, a slash and the amount of a message.
            message -> date / price
            Give the day and month first, then a slash, then the dollars.
            Copy the date and the price out of the text with a slash between.
            Make an entry for the cash book: date / amount.
            date / price pls
            The answer has two parts, a date and an amount with $, divided by a slash.
            Pull out what a bookkeeper needs: 3 May / $7.50.
            Find the date and the sum of money; join them by " / ".
            On which date was which price named? Write both, slash in between.
        """),
        _from_message(lambda found: f"{found.date} / {found.price}"),
    ),
)
