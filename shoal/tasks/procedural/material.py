"""The inputs that families share: sentences, lists, records, messages, tables, dates, quantities.

Many families draw from one generator, so that an input alone never tells what is asked for. Knows nothing of
the questions.
"""

from __future__ import annotations

import datetime
import random
import re
from dataclasses import dataclass

from shoal.tasks.procedural import vocabulary

SLOT = re.compile(r"\{(a )?(\w+)\}")
SLOTS = {
    "person": vocabulary.FIRST_NAMES,
    "surname": vocabulary.SURNAMES,
    "city": vocabulary.CITIES,
    "animal": vocabulary.ANIMALS,
    "food": vocabulary.FOODS,
    "object": vocabulary.OBJECTS,
    "job": vocabulary.JOBS,
    "spot": vocabulary.SPOTS,
    "colour": vocabulary.COLOURS,
    "adjective": vocabulary.ADJECTIVES,
    "adverb": vocabulary.ADVERBS,
    "weekday": vocabulary.WEEKDAYS,
    "month": vocabulary.MONTHS,
    "number": tuple(str(number) for number in range(2, 100)),
}

SENTENCES = tuple(
    line.strip()
    for line in """
    {person} found {a object} near the {spot}
    {person} bought {number} tickets for the {spot}
    the {job} forgot {a colour} {object} in the {spot}
    {a animal} slept under the {adjective} {object}
    my neighbour sold the {object} to {a job}
    {person} and {person} painted the {object} {colour}
    we {adverb} carried the {adjective} {object} to the {spot}
    the {spot} in {city} opens at {number} past nine
    {person} wants to become {a job}
    the {animal} ran past the {spot}
    a friend of {person} eats {a food} every {weekday}
    {number} people visited the {spot} in {month}
    {person} keeps {a animal} and {a animal} at home
    the {adjective} {spot} belongs to {a job} from {city}
    they left the {object} beside the {adjective} {object}
    {person} {adverb} opened the {adjective} {object}
    our {job} lost {number} coins in {city}
    {a adjective} {animal} stole the {food}
    the {colour} {object} costs {number} euros
    {person} moved from {city} to {city} in {month}
    nobody at the {spot} noticed the {animal}
    the {job} cooked {a food} for {person}
    {person} drew {a colour} {animal} on the wall
    every {weekday} the {job} cleans the {spot}
    she put the {food} on {a adjective} plate
    he repaired {a object} and {a object}
    the train to {city} was {number} minutes late
    {person} {adverb} watched the {animal} from the {spot}
    my brother works as {a job} in {city}
    the {animal} followed {person} into the {spot}
    {person} wrote {number} letters to the {job}
    I borrowed the {adjective} {object} from {person}
    the {job} and the {animal} crossed the {spot}
    {a food} lay next to the {colour} {object}
    {person} met the new {job} at the {spot}
    the children counted {number} clouds above the {spot}
    someone hid the {object} behind the {spot}
    {person} never eats {food} without {food}
    the {spot} closes early on {weekday}
    the {adverb} walking {job} dropped {a object}
    {person} is older than {person}
    we saw {a colour} {animal} near {city}
    {person} packed {a object}, {a food} and {a object}
    the {object} of {person} is {adjective} and {colour}
    {city} has {a adjective} {spot}
    the {job} asked for {number} chairs
    {person} likes the {adjective} {spot} of {city}
    an old {job} told a story about {a animal}
    there are {number} steps up to the {spot}
    {person} sold {number} cakes at the {spot}
    the {food} tasted better than the {food}
    grandmother gave the {object} to {person}
    the {weekday} market sells {adjective} things
    {person} dreamed of {a adjective} {animal}
    his {colour} jacket hangs in the {spot}
    the {animal} drank from the {adjective} bowl
    both sisters of {person} live in {city}
    {person} dropped the {food} on the floor
    the {job} showed {person} the way to the {spot}
    it rained in {city} all {weekday}
    {person} read {number} pages about the {animal}
    the {adjective} {job} speaks with the {job}
    a letter from {city} arrived in {month}
    {person} tied the {animal} to the {object}
    the team from {city} won by {number} points
    """.splitlines()
    if line.strip()
)
TAILS = (
    "on {weekday}",
    "with {person}",
    "after lunch",
    "last {month}",
    "before the storm",
    "at {number} dollars",
    "without a word",
    "because of the {job}",
    "in the early morning",
    "together with {a animal}",
)

OPENINGS = tuple(
    "My name is {0} and I live in {1}.|This is {0} from {1}.|{0} of {1} here.|Greetings from {0} in {1}.|"
    "I am {0}, writing from {1}.|Hello, {0} from {1} speaking.|You met {0} in {1}.|"
    "Please note that {0} has moved to {1}.|A note from {0} in {1}.".split("|")
)
CONTACTS = tuple(
    "Write to {0} or call {1}.|Call {1} or send mail to {0}.|My number is {1}, my address {0}.|"
    "Reach me at {0} and on {1}.|Answers go to {0}; in a hurry, dial {1}.|For questions there is {1} or {0}.|"
    "Use {0}, not the phone {1}.".split("|")
)
ORDERS = tuple(
    'Order {0} of "{1}" for {2} is due on {3}.|I paid {2} for "{1}" on {3}, order {0}.|'
    'On {3} you sent me "{1}", order {0}, for {2}.|The price of "{1}" was {2} on {3}, see order {0}.|'
    'Order {0} from {3} lists "{1}" at {2}.|"{1}" cost {2} in order {0} of {3}.|'
    'By {3} I need "{1}" at {2}, order {0}.'.split("|")
)


@dataclass(frozen=True)
class Message:
    """A short message of three sentences and a hashtag, with everything that it mentions."""

    text: str
    sentences: tuple[str, str, str]
    name: str
    city: str
    email: str
    phone: str
    order: str
    title: str
    price: str
    date: str
    hashtag: str


def fill(template: str, rng: random.Random) -> str:
    """`template` with a random word for each slot: `{object}`, or `{a object}` for one with its article."""

    def word(match: re.Match[str]) -> str:
        found = rng.choice(SLOTS[match[2]])
        return vocabulary.with_article(found) if match[1] else found

    return SLOT.sub(word, template)


def capitalised(text: str) -> str:
    """The text with its first character in upper case and the others as they are."""
    return text[:1].upper() + text[1:]


def sentence(rng: random.Random) -> str:
    """An English sentence of 5 to 14 words that ends in a full stop."""
    template = rng.choice(SENTENCES)
    if rng.random() < 0.35:
        template += " " + rng.choice(TAILS)
    return capitalised(fill(template, rng)) + "."


def noun(rng: random.Random) -> str:
    """One English noun in the singular, in lower case."""
    return rng.choice(vocabulary.NOUNS)


def word_list(rng: random.Random) -> str:
    """3 to 6 different nouns, with commas between them."""
    return ", ".join(rng.sample(vocabulary.NOUNS, rng.randint(3, 6)))


def number(rng: random.Random) -> str:
    """A whole number from 1 to 999, most often below 100."""
    return str(rng.randint(1, 99) if rng.random() < 0.4 else rng.randint(1, 999))


def small_number(rng: random.Random) -> str:
    """A whole number from 1 to 99."""
    return str(rng.randint(1, 99))


def number_list(rng: random.Random) -> str:
    """3 to 6 different whole numbers from 1 to 99, with commas between them."""
    return ", ".join(str(found) for found in rng.sample(range(1, 100), rng.randint(3, 6)))


def number_pair(rng: random.Random) -> str:
    """Two different whole numbers from 1 to 50: `23 and 8`."""
    return " and ".join(str(found) for found in rng.sample(range(1, 51), 2))


def record(rng: random.Random) -> str:
    """A person as name, age, job and city: `Anna Weber, 34, nurse, Lyon`."""
    return f"{fill('{person} {surname}', rng)}, {rng.randint(5, 90)}, {fill('{job}, {city}', rng)}"


def message(rng: random.Random) -> Message:
    """A message that mentions a name, a city, an address, a telephone number, an order and more."""
    name, city = fill("{person} {surname}", rng), fill("{city}", rng)
    email = fill(rng.choice(("{person}.{surname}", "{person}{number}", "{animal}{number}")), rng).lower()
    email += f"@{rng.choice(vocabulary.NOUNS)}.{rng.choice(('example', 'test'))}"
    phone = f"555-{rng.randrange(10000):04}"
    order = f"{rng.choice('ABCDEFGHK')}{rng.randint(100, 999)}"
    title = capitalised(fill(rng.choice(("{colour} {object}", "{adjective} {animal}", "the {spot}")), rng))
    price = f"${rng.randint(2, 99)}.{rng.choice(('00', '50', '95', '99', '20', '75'))}"
    date = f"{rng.randint(1, 28)} {rng.choice(vocabulary.MONTHS)}"
    sentences = [
        rng.choice(OPENINGS).format(name, city),
        rng.choice(CONTACTS).format(email, phone),
        rng.choice(ORDERS).format(order, title, price, date),
    ]
    rng.shuffle(sentences)
    first, second, third = sentences
    hashtag = "#" + rng.choice(vocabulary.NOUNS)
    text = " ".join((first, second, third, hashtag))
    return Message(text, (first, second, third), name, city, email, phone, order, title, price, date, hashtag)


def price_list(rng: random.Random) -> str:
    """3 to 5 things with different whole prices: `pear: 3; lamp: 18; rope: 5`."""
    size = rng.randint(3, 5)
    things = rng.sample(vocabulary.FOODS + vocabulary.OBJECTS, size)
    prices = rng.sample(range(1, 60), size)
    return "; ".join(f"{thing}: {price}" for thing, price in zip(things, prices, strict=True))


def iso_date(rng: random.Random) -> str:
    """A day from 1950 to 2039, written `2024-03-12`."""
    first = datetime.date(1950, 1, 1).toordinal()
    last = datetime.date(2039, 12, 31).toordinal()
    return datetime.date.fromordinal(rng.randint(first, last)).isoformat()


def clock_time(rng: random.Random) -> str:
    """A time of day on the 24-hour clock: `07:45`."""
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}"


def length(rng: random.Random) -> str:
    """A length of 2 to 999 whole metres: `34 m`."""
    return f"{max(2, int(number(rng)))} m"


def amount(rng: random.Random) -> str:
    """An amount of 2 to 999 whole euros: `34 euros`."""
    return f"{max(2, int(number(rng)))} euros"


def duration(rng: random.Random) -> str:
    """A duration of 1 to 12 hours and 2 to 59 minutes: `2 h 15 min`."""
    return f"{rng.randint(1, 12)} h {rng.randint(2, 59)} min"


def coin_story(rng: random.Random) -> str:
    """A story of someone who has 11 to 50 coins and gets or loses 2 to 10: `Anna has 20 coins and loses 5`."""
    start = fill(rng.choice(("{person} has", "the {job} has", "my friend {person} has", "{a job} has")), rng)
    middle = rng.choice((" and", ", then", " and later"))
    change = rng.choice(("gets", "loses"))
    more = " more" if change == "gets" else ""
    end = fill(rng.choice(("", " on {weekday}", " in the {spot}", " in {city}")), rng)
    text = f"{start} {rng.randint(11, 50)} coins{middle} {change} {rng.randint(2, 10)}{more}{end}."
    return capitalised(text)


def price_question(rng: random.Random) -> str:
    """A price list, a bar and a thing, listed or not: `pear: 3; lamp: 18 | lamp`."""
    listed = price_list(rng)
    things = [entry.split(": ")[0] for entry in listed.split("; ")]
    if rng.random() < 0.3:
        others = vocabulary.FOODS + vocabulary.OBJECTS
        things = [rng.choice([thing for thing in others if thing not in things])]
    return f"{listed} | {rng.choice(things)}"


def cipher(rng: random.Random) -> str:
    """3 or 4 letters with a word each, a bar and 2 or 3 of the letters: `A=pear B=lamp C=owl | C A`."""
    letters = "ABCD"[: rng.randint(3, 4)]
    words = rng.sample(vocabulary.NOUNS, len(letters))
    table = " ".join(f"{letter}={word}" for letter, word in zip(letters, words, strict=True))
    return f"{table} | {' '.join(rng.sample(letters, rng.randint(2, 3)))}"
