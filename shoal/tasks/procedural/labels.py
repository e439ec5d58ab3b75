"""Families that sort sentences, lists and numbers by what can be seen on their surface.

They take the inputs of families that ask for something else. Every definition states its labels, so that
`shoal.tasks.procedural.relabel` can rename them. Knows nothing of meaning (`shoal.tasks.procedural.topics`).
"""

from __future__ import annotations

import random

from shoal.tasks.procedural.family import Family, balanced, lines
from shoal.tasks.procedural.lists import items_of
from shoal.tasks.procedural.material import number, number_list, sentence, word_list
from shoal.tasks.procedural.strings import bare_words
from shoal.tasks.procedural.vocabulary import ANIMALS, COLOURS, WEEKDAYS

YES_NO = ("yes", "no")
CATEGORY = "classification"


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _parity(text: str) -> str:
    return "odd" if int(text) % 2 else "even"


def _digits(text: str) -> str:
    return ("small", "medium", "large")[len(text) - 1]


def _length(text: str) -> str:
    return "long" if len(text.split()) > 8 else "short"


def _has_digit(text: str) -> str:
    return _yes(any(character.isdigit() for character in text))


def _mentions(text: str, words: tuple[str, ...]) -> bool:
    return not set(words).isdisjoint(bare_words(text))


def _weekday(text: str) -> str:
    return "weekday" if _mentions(text, WEEKDAYS) else "none"


def _colour(text: str) -> str:
    return "colour" if _mentions(text, COLOURS) else "plain"


def _animal(text: str) -> str:
    return _yes(_mentions(text, ANIMALS))


def _order(text: str) -> str:
    numbers = [int(item) for item in items_of(text)]
    return "sorted" if numbers == sorted(numbers) else "unsorted"


def _maybe_sorted(rng: random.Random) -> str:
    text = number_list(rng)
    return ", ".join(sorted(items_of(text), key=int)) if rng.random() < 0.5 else text


def _list_size(text: str) -> str:
    return "big" if len(items_of(text)) > 4 else "little"


def _ends(text: str) -> str:
    numbers = [int(item) for item in items_of(text)]
    return "up" if numbers[-1] > numbers[0] else "down"


def _has_animal(text: str) -> str:
    return "animal" if set(items_of(text)) & set(ANIMALS) else "no animal"


def _opening(text: str) -> str:
    return "article" if text.split()[0] in ("A", "An", "The") else "other"


FAMILIES = (
    Family(
        "number-parity",
        CATEGORY,
        "The input is a whole number. The output is 'even' or 'odd'.",
        lines("""
            Is the number even or odd? Answer with that word.
            Classify numbers as even or odd.
            I need a model that says "even" for even numbers and "odd" for odd ones.
            48 -> even; 7 -> odd
            Return "even" if n % 2 == 0 else "odd".
            Can it be divided by two? Say even if so and odd if not.
            Tell the parity of the number: even / odd.
            even or odd?
            The answer is one word, either "even" or "odd".
            Look at the last digit: 0, 2, 4, 6, 8 mean even, the others mean odd.
            Label each number with its parity, the labels being even and odd.
            Would this many people pair off without a rest? even = yes, odd = one is left over.
        """),
        balanced(number, _parity, ("even", "odd")),
    ),
    Family(
        "number-size",
        CATEGORY,
        "The input is a whole number from 1 to 999. The output is 'small' for one digit, 'medium' for two "
        "digits and 'large' for three digits.",
        lines("""
            Is the number small (one digit), medium (two digits) or large (three digits)?
            Classify by the count of digits: 1 is small, 2 is medium, 3 is large.
            I need a model that sorts numbers into small (below 10), medium (10 to 99) and large (100 up).
            7 -> small; 48 -> medium; 512 -> large
            Answer small under ten, medium under a hundred, large otherwise.
            How big is it? Choose from small, medium, large by the number of digits.
            Label numbers: "small" 1-9, "medium" 10-99, "large" 100-999.
            small / medium / large, by digits
            The answer is one of the words small, medium and large.
            Put the number in a size class: small has one digit, medium two, large three.
            Return ("small", "medium", "large")[len(digits) - 1].
            Say whether a number of one, two or three digits comes in, as small, medium or large.
        """),
        balanced(number, _digits, ("small", "medium", "large")),
    ),
    Family(
        "sentence-length",
        CATEGORY,
        "The input is an English sentence. The output is 'long' if it has more than 8 words and 'short' if it "
        "has 8 or fewer.",
        lines("""
            Is the sentence long (more than 8 words) or short (8 words or fewer)?
            Classify sentences by their number of words: up to 8 is short, above 8 is long.
            I need a model that answers "short" or "long"; the limit is eight words.
            Anna found a key. -> short
            Count the words; say long if there are nine or more, otherwise short.
            Tell whether this is a short or a long sentence (long starts at 9 words).
            Label with "long" when the sentence has over eight words and with "short" when it does not.
            short or long?
            The answer is either short or long, by word count.
            Return "long" if len(words) > 8 else "short".
            Does the text fit into eight words? If so answer short, if not answer long.
            Sort the sentences into a pile of short ones (8 words at most) and a pile of long ones.
        """),
        balanced(sentence, _length, ("short", "long")),
    ),
    Family(
        "sentence-digit",
        CATEGORY,
        "The input is an English sentence. The output is 'yes' if it contains a digit and 'no' if not.",
        lines("""
            Does the sentence contain a digit? Answer yes or no.
            Say yes if there is a number in figures in the text, otherwise no.
            I need a model that detects digits in sentences, answering "yes" or "no".
            Anna sold 12 cakes. -> yes; Anna sold a cake. -> no
            Is any of the characters 0-9 in it? yes/no
            Check for numerals: yes when one is found, no when none is.
            Label the text "yes" if it has a digit in it and "no" if it has none.
            digits? yes / no
            The answer is yes or no, depending on whether figures occur.
            Return "yes" if any(c.isdigit() for c in text) else "no".
            Tell me with a yes or a no whether numbers are written in this sentence.
            Look for figures such as 7 or 42; report yes or no.
        """),
        balanced(sentence, _has_digit, YES_NO),
    ),
    Family(
        "sentence-weekday",
        CATEGORY,
        "The input is an English sentence. The output is 'weekday' if it names a day of the week and 'none' if "
        "it does not.",
        lines("""
            Does the sentence name a day of the week? Answer weekday if it does, none if not.
            Say "weekday" for sentences with Monday, Tuesday and so on, and "none" for the others.
            I need a model that flags mentions of days of the week: weekday or none.
            They left on Friday. -> weekday; They left. -> none
            Look for Monday to Sunday in the text: weekday when found, none when not.
            Is a day such as Thursday mentioned? Reply weekday or none.
            Label each sentence weekday (a day is named) or none (no day is named).
            weekday / none
            The answer is "weekday" or "none", nothing else.
            Classify by whether the name of a day occurs; the labels are weekday and none.
            Detect names of days: output weekday on a hit, none otherwise.
            Would I find a day of the week in this sentence? Then say weekday; if not, say none.
        """),
        balanced(sentence, _weekday, ("weekday", "none")),
    ),
    Family(
        "sentence-colour",
        CATEGORY,
        "The input is an English sentence. The output is 'colour' if it contains the name of a colour and "
        "'plain' if not.",
        lines("""
            Is a colour named in the sentence? Answer colour if so, plain if not.
            Say "colour" for sentences with a word like red or blue, "plain" for all others.
            I need a model that spots colour words and answers colour or plain.
            Anna found a red key. -> colour; Anna found a key. -> plain
            Look for red, green, white and the like: colour when found, plain when not.
            Does the text tell what colour something has? Reply colour or plain.
            Label each sentence colour (a colour word occurs) or plain (none occurs).
            colour / plain
            The answer is "colour" or "plain", nothing else.
            Classify by the presence of a colour word; the labels are colour and plain.
            Detect colour names: output colour on a hit, plain otherwise.
            Would an illustrator learn a colour from this sentence? colour if yes, plain if no.
        """),
        balanced(sentence, _colour, ("colour", "plain")),
    ),
    Family(
        "sentence-animal",
        CATEGORY,
        "The input is an English sentence. The output is 'yes' if it mentions an animal and 'no' if not.",
        lines("""
            Does the sentence mention an animal? Answer yes or no.
            Say yes if some animal occurs in the text, otherwise no.
            I need a model that finds out whether animals are spoken of, answering "yes" or "no".
            The cat slept. -> yes; The baker slept. -> no
            Is a creature such as a dog, an owl or a bee in it? yes/no
            Check for animals: yes when one is named, no when none is.
            Label the text "yes" if an animal appears and "no" if none appears.
            animal? yes / no
            The answer is yes or no, depending on whether an animal is mentioned.
            Would a zoologist care about this sentence? yes with an animal in it, no without.
            Tell me with a yes or a no whether there is an animal in this sentence.
            Search the sentence for names of animals and report yes or no.
        """),
        balanced(sentence, _animal, YES_NO),
    ),
    Family(
        "sentence-opening",
        CATEGORY,
        "The input is an English sentence. The output is 'article' if it begins with A, An or The and 'other' "
        "if not.",
        lines("""
            Does the sentence begin with an article? Answer article if so, other if not.
            Say "article" when the first word is A, An or The, and "other" in all other cases.
            I need a model that labels sentence openings: article or other.
            The dog slept. -> article; Anna slept. -> other
            Look only at the first word: a, an, the give article, anything else gives other.
            How does the sentence start? Reply article (a, an, the) or other.
            Label each sentence by its first word, with article for a/an/the and other for the rest.
            article / other, by first word
            The answer is "article" or "other", nothing else.
            Classify by the opening word; the labels are article and other.
            Check whether it opens with A, An or The: article if it does, other if it does not.
            Ignore all but word one and tell article from other.
        """),
        balanced(sentence, _opening, ("article", "other")),
    ),
    Family(
        "numbers-sorted",
        CATEGORY,
        "The input is a list of numbers with commas between them. The output is 'sorted' if they rise from "
        "left to right and 'unsorted' if not.",
        lines("""
            Is the list sorted or unsorted? Sorted means rising from left to right.
            Say "sorted" if every number is larger than the one before it, else "unsorted".
            I need a model that checks whether numbers are in ascending order: sorted or unsorted.
            4, 9, 17 -> sorted; 9, 4, 17 -> unsorted
            Check the order of the numbers and answer sorted or unsorted.
            Return "sorted" if numbers == sorted(numbers) else "unsorted".
            Do the numbers only go up? If so reply sorted, otherwise unsorted.
            sorted / unsorted (ascending)
            The answer is one word, "sorted" or "unsorted".
            Label each list: sorted for ascending order, unsorted for any other order.
            Would sorting this list upwards change it? unsorted if it would, sorted if not.
            Tell ascending lists (sorted) from jumbled ones (unsorted).
        """),
        balanced(_maybe_sorted, _order, ("sorted", "unsorted")),
    ),
    Family(
        "numbers-trend",
        CATEGORY,
        "The input is a list of numbers with commas between them. The output is 'up' if the last number is "
        "larger than the first and 'down' if it is smaller.",
        lines("""
            Compare the last number with the first: answer up if it is larger, down if smaller.
            Did the value go up or down from the start of the list to its end?
            I need a model that reads a series of numbers and says "up" or "down", by first and last value.
            10, 3, 25 -> up; 25, 3, 10 -> down
            Ignore the middle; is the end above the start (up) or below it (down)?
            The list is a share price over time. Has it gone up or down overall?
            Label the series up if last > first, down if last < first.
            up / down
            The answer is one word, "up" or "down".
            Give the overall trend, up or down, judged only by the two ends of the list.
            Return "up" if numbers[-1] > numbers[0] else "down".
            Is there a gain (up) or a loss (down) between the first and the last number?
        """),
        balanced(number_list, _ends, ("up", "down")),
    ),
    Family(
        "list-size",
        CATEGORY,
        "The input is a list of words with commas between them. The output is 'big' if it has 5 or more items "
        "and 'little' if it has 4 or fewer.",
        lines("""
            Is the list big (5 items or more) or little (4 or fewer)?
            Classify lists by length: up to 4 words is little, from 5 words on is big.
            I need a model that answers "big" or "little"; big begins at five entries.
            pear, lamp, tiger -> little; pear, lamp, tiger, rope, nurse -> big
            Count the items and say big for more than four, otherwise little.
            Tell whether it is a big list or a little one (the border is between 4 and 5 items).
            Label with "big" when there are at least five words, with "little" when there are not.
            big or little?
            The answer is either big or little, by the number of items.
            Return "big" if len(items) > 4 else "little".
            Can the items be counted on four fingers? little if so, big if not.
            Sort the lists into little ones (at most 4 items) and big ones.
        """),
        balanced(word_list, _list_size, ("big", "little")),
    ),
    Family(
        "list-animal",
        CATEGORY,
        "The input is a list of words with commas between them. The output is 'animal' if at least one of them "
        "is an animal and 'no animal' if none is.",
        lines("""
            Is there an animal in the list? Answer animal or no animal.
            Say "animal" if at least one item is an animal, else "no animal".
            I need a model that checks lists for animals: animal when there is one, no animal when not.
            pear, lamp, tiger -> animal; pear, lamp, rope -> no animal
            Look through the items; reply animal for a list with a creature in it, no animal otherwise.
            Could one of these things bark, swim or fly by itself? Then animal, if not, no animal.
            Label each list animal (one or more items are animals) or no animal.
            animal / no animal
            The answer is "animal" or "no animal", nothing else.
            Classify by whether any of the words names an animal; the labels are animal and no animal.
            Detect animals among the words: output animal on a hit, no animal otherwise.
            Pets are forbidden here: flag the list as animal if it breaks the rule, as no animal if it is fine.
        """),
        balanced(word_list, _has_animal, ("animal", "no animal")),
    ),
)
