"""Families that look something up in a small table which the input brings along.

The families of one kind of table take the same inputs; only the description tells them apart. Knows nothing of
records of people (`shoal.tasks.procedural.records`).
"""

from __future__ import annotations

from shoal.tasks.procedural.family import Family, balanced, lines, over
from shoal.tasks.procedural.material import cipher, price_list, price_question


def entries_of(text: str) -> dict[str, int]:
    """The things of a price list with their prices; a question after it is left out."""
    pairs = (entry.split(": ") for entry in text.split(" | ")[0].split("; "))
    return {thing: int(price) for thing, price in pairs}


def _asked(text: str) -> str:
    return text.split(" | ")[1]


def _cheapest(text: str) -> str:
    entries = entries_of(text)
    return min(entries, key=lambda thing: entries[thing])


def _dearest(text: str) -> str:
    entries = entries_of(text)
    return max(entries, key=lambda thing: entries[thing])


def _is_listed(text: str) -> str:
    return "yes" if _asked(text) in entries_of(text) else "no"


def _price_or_none(text: str) -> str:
    price = entries_of(text).get(_asked(text))
    return "not found" if price is None else str(price)


def _decoded(text: str) -> str:
    key, code = text.split(" | ")
    table = dict(entry.split("=") for entry in key.split(" "))
    return " ".join(table[letter] for letter in code.split(" "))


def _first_decoded(text: str) -> str:
    return _decoded(text).split(" ")[0]


FAMILIES = (
    Family(
        "prices-cheapest",
        "table lookup",
        "The input is a list of things with their prices. The output is the thing with the lowest price.",
        lines("""
            Name the cheapest thing on the list.
            Which thing has the lowest price? Answer with its name, not the price.
            I need a model that reads a price list and returns what costs least.
            pear: 3; lamp: 18 -> pear
            For "rope: 25; lamp: 18; pear: 30" answer "lamp".
            Find the smallest number and copy the word before it.
            I have little money; what should I buy? One word from the list.
            Return min(prices, key=prices.get).
            cheapest?
            The answer is the word whose number is the least.
        """),
        over(price_list, _cheapest),
    ),
    Family(
        "prices-dearest",
        "table lookup",
        "The input is a list of things with their prices. The output is the thing with the highest price.",
        lines("""
            Name the most expensive thing on the list.
            Which thing has the highest price? Answer with its name, not the price.
            I need a model that reads a price list and returns what costs most.
            pear: 3; lamp: 18 -> lamp
            For "rope: 25; lamp: 18; pear: 30" answer "pear".
            Find the largest number and copy the word before it.
            Money is no object; which is the dearest? One word from the list.
            Return max(prices, key=prices.get).
            priciest?
            The answer is the word whose number is the greatest.
        """),
        over(price_list, _dearest),
    ),
    Family(
        "prices-things",
        "table reading",
        "The input is a list of things with their prices. The output is the things alone, with commas between "
        "them.",
        lines("""
            List the things without their prices, with commas between them.
            Which things are on the list? Leave the numbers out.
            I need a model that strips the prices from a price list and joins the names by commas.
            pear: 3; lamp: 18 -> pear, lamp
            Copy the words, drop colons and numbers, separate by commas.
            Return ", ".join(prices).
            Turn the price list into a shopping list: names only, commas between.
            What can be bought here? Comma-separated, in the order of the list.
            names only, commas
            The answer has every thing in order and no digit.
        """),
        over(price_list, lambda text: ", ".join(entries_of(text))),
    ),
    Family(
        "prices-numbers",
        "table reading",
        "The input is a list of things with their prices. The output is the prices alone, with spaces between "
        "them.",
        lines("""
            List the prices without the things, with spaces between them.
            Which numbers are on the list? Leave the words out.
            I need a model that keeps only the prices of a price list, separated by spaces.
            pear: 3; lamp: 18 -> 3 18
            Copy the numbers in order, one space between.
            Return " ".join(str(price) for price in prices.values()).
            Strip the list down to its numbers; no commas, no semicolons.
            What are the prices, from left to right? Digits and spaces only.
            numbers only, spaces between
            The answer has every price in order and no letter.
        """),
        over(price_list, lambda text: " ".join(str(price) for price in entries_of(text).values())),
    ),
    Family(
        "prices-first",
        "table reading",
        "The input is a list of things with their prices. The output is the price of the first thing.",
        lines("""
            Give the price of the first thing on the list.
            What does the thing at the front cost? Number only.
            I need a model that returns the first price of a price list.
            pear: 3; lamp: 18 -> 3
            For "rope: 25; lamp: 18; pear: 30" answer "25".
            Copy the number after the first colon.
            Look only at the leading entry and say how much it is.
            Return list(prices.values())[0].
            1st price
            The answer is the number that comes first.
        """),
        over(price_list, lambda text: str(next(iter(entries_of(text).values())))),
    ),
    Family(
        "prices-csv",
        "table reading",
        "The input is a list of things with their prices. The output has a line for each thing: the thing, a "
        "comma and the price.",
        lines("""
            Write the list as CSV: one line for each thing, with thing,price.
            Put each entry on its own line as name,price without spaces.
            I need a model that exports price lists to CSV, no header line.
            pear: 3; lamp: 18 -> pear,3 / lamp,18 on separate lines
            Replace "; " by a new line and ": " by a comma.
            Can you make this list ready for a spreadsheet (two columns, comma between)?
            One row a thing: the word, a comma, the number.
            Convert to comma-separated values with two fields a line.
            csv, no header
            The answer has as many lines as the list has things, each like lamp,18.
        """),
        over(price_list, lambda text: text.replace("; ", "\n").replace(": ", ",")),
    ),
    Family(
        "price-of",
        "table lookup",
        "The input is a price list, a bar and the name of a thing. The output is the price of that thing, or "
        "'not found' if it is not on the list.",
        lines("""
            Give the price of the thing after the bar, or "not found".
            What does the thing named at the end cost? If it is not listed, say not found.
            I need a model that looks a price up in a list and answers "not found" where there is none.
            pear: 3; lamp: 18 | lamp -> 18
            For "pear: 3; lamp: 18 | rope" answer "not found".
            Search the list for the word after | and copy its number; write not found if it is missing.
            Return prices.get(thing, "not found").
            Treat the part before the bar as a table and the part after it as the key.
            price or "not found"
            The answer is the number that belongs to the last word, or the two words not found.
        """),
        over(price_question, _price_or_none),
    ),
    Family(
        "is-listed",
        "table lookup",
        "The input is a price list, a bar and the name of a thing. The output is yes if the thing is on the "
        "list and no if it is not.",
        lines("""
            Is the thing after the bar on the list? Answer yes or no.
            Say yes if the last word is among the listed things, else no.
            I need a model that checks whether something is in stock: yes or no.
            pear: 3; lamp: 18 | lamp -> yes
            For "pear: 3; lamp: 18 | rope" answer "no".
            Ignore the prices; tell me with yes or no whether the word after | occurs before it.
            Does the table have an entry for the key behind the bar? yes/no
            Return "yes" if thing in prices else "no".
            listed? (yes/no)
            The answer is yes when the word is found in the list and no when it is missing.
        """),
        balanced(price_question, _is_listed, ("yes", "no")),
    ),
    Family(
        "decode",
        "table lookup",
        "The input is a code table such as A=pear B=lamp, a bar and some of its letters. The output is the "
        "words for these letters, in their order, with spaces between them.",
        lines("""
            Decode the letters after the bar with the table before it; put spaces between the words.
            Replace each letter behind the bar by its word.
            I need a model that translates letters to words with a table that stands in the input.
            A=pear B=lamp C=owl | C A -> owl pear
            For "A=pear B=lamp | B A" answer "lamp pear".
            Which words do the letters stand for? Write them in the order of the letters.
            Look every letter up in the key and write down what it means.
            The part before | is a dictionary, the part after it a message in code. Decipher it.
            decode it
            The answer has one word for each letter after the bar.
        """),
        over(cipher, _decoded),
    ),
    Family(
        "decode-first",
        "table lookup",
        "The input is a code table such as A=pear B=lamp, a bar and some of its letters. The output is the "
        "word for the first of these letters.",
        lines("""
            Give the word for the first letter after the bar.
            What does the first letter behind the bar stand for?
            I need a model that decodes only the first letter of the message after the table.
            A=pear B=lamp C=owl | C A -> owl
            For "A=pear B=lamp | B A" answer "lamp".
            Look up the letter right after | and ignore the letters that follow.
            Which word starts the message once it is decoded? One word.
            Decipher one letter, the first of the code.
            first word of the decoded text
            The answer is a single word of the table, the one for the letter next to the bar.
        """),
        over(cipher, _first_decoded),
    ),
)
