"""Families over a list of words with commas between them.

Every one takes the same lists; only the description tells them apart. Knows nothing of lists of numbers
(`shoal.tasks.procedural.number_lists`) or of labels.
"""

from __future__ import annotations

from shoal.tasks.procedural.family import Family, Rule, lines, over, where
from shoal.tasks.procedural.material import word_list


def items_of(text: str) -> list[str]:
    """The items of a list with commas."""
    return text.split(", ")


def _join(separator: str) -> Rule:
    return lambda text: separator.join(items_of(text))


def _with_and(text: str) -> str:
    *rest, last = items_of(text)
    return f"{', '.join(rest)} and {last}"


def _numbered(text: str) -> str:
    return "\n".join(f"{place}. {item}" for place, item in enumerate(items_of(text), 1))


def _first_last_swapped(text: str) -> str:
    first, *middle, last = items_of(text)
    return ", ".join((last, *middle, first))


FAMILIES = (
    Family(
        "list-first-item",
        "list editing",
        "The input is a list of words with commas between them. The output is the first item of the list.",
        lines("""
            Give the first item of the list.
            Which word comes first in this list? Answer with it alone.
            I need a model that takes a comma-separated list and returns item number one.
            a, b, c -> a
            For "pear, lamp, tiger" answer "pear".
            Pick the item at the head of the list and drop the others.
            Copy everything before the first comma.
            first entry only
            What does the list start with?
            Return element 0 of the list of words.
            The answer is a single word, the one that opens the list.
            Someone hands you a shopping list; read out only its top item.
        """),
        over(word_list, lambda text: items_of(text)[0]),
    ),
    Family(
        "list-last-item",
        "list editing",
        "The input is a list of words with commas between them. The output is the last item of the list.",
        lines("""
            Give the last item of the list.
            Which word comes last in this list? Answer with it alone.
            I need a model that takes a comma-separated list and returns the final item.
            a, b, c -> c
            For "pear, lamp, tiger" answer "tiger".
            Pick the item at the tail of the list and drop the others.
            Copy everything after the final comma.
            last entry only
            What does the list end with?
            Return element -1 of the list of words.
            The answer is a single word, the one that closes the list.
            Read the list to its end and write down only where it stops.
        """),
        over(word_list, lambda text: items_of(text)[-1]),
    ),
    Family(
        "list-length",
        "counting",
        "The input is a list of 3 to 6 words with commas between them. The output is the number of words, as "
        "a digit.",
        lines("""
            Count the items of the list and answer with a digit.
            How many words are in this list?
            I need a model that tells the length of a comma-separated list as a number.
            a, b, c -> 3
            For "pear, lamp, tiger" answer "3".
            Return len(items) for the list of words.
            Tell me how long the list is; write the number as a numeral such as 4.
            number of entries?
            Say how many things are listed. Only the digit, no words.
            Count the commas, add one, and give me the result.
            The answer is a single digit: the count of items.
            Give the size of the list instead of the list.
        """),
        over(word_list, lambda text: str(len(items_of(text)))),
    ),
    Family(
        "list-reverse",
        "list editing",
        "The input is a list of words with commas between them. The output is the same list in reverse order.",
        lines("""
            Reverse the order of the list.
            Write the items from last to first, with commas.
            I need a model that turns a comma-separated list around, so that the last item comes first.
            a, b, c -> c, b, a
            For "pear, lamp, tiger" answer "tiger, lamp, pear".
            Give the list backwards; the words themselves stay as they are.
            What does the list look like if it is read from the end?
            Flip the sequence of the items.
            same list but in the opposite order please
            Return ", ".join(reversed(items)).
            The answer has the same words as the input: the one at the end leads, the one in front closes.
            Start with the final item and work your way to the first.
        """),
        over(word_list, lambda text: ", ".join(reversed(items_of(text)))),
    ),
    Family(
        "list-sort",
        "list editing",
        "The input is a list of words with commas between them. The output is the list in alphabetical order.",
        lines("""
            Sort the list alphabetically.
            Put the words in order from A to Z, with commas.
            I need a model that alphabetises a comma-separated list.
            c, a, b -> a, b, c
            For "pear, lamp, tiger" answer "lamp, pear, tiger".
            In which order would these words stand in a dictionary? Write the list so.
            Return ", ".join(sorted(items)).
            a-z order pls
            Arrange the items by their letters, the earliest in the alphabet first.
            The answer has the same words as the input, ordered alphabetically.
            Can you order this list by name?
            Rearrange the list as an index would: alphabetical, separated by commas.
        """),
        over(word_list, lambda text: ", ".join(sorted(items_of(text)))),
    ),
    Family(
        "list-numbered",
        "formatting",
        "The input is a list of words with commas between them. The output has one word on each line, "
        "numbered 1., 2., 3. and so on.",
        lines("""
            Make a numbered list, one item on each line, starting with "1.".
            Write each word on its own line with its number in front.
            I need a model that converts comma-separated words to a numbered list (1. 2. 3.).
            a, b -> 1. a / 2. b, on separate lines
            Number the items: "1. pear", newline, "2. lamp", and so on.
            Turn this into an ordered Markdown list.
            Can you put the items below each other and count them off?
            List the words vertically as 1., 2., 3.
            numbered list please
            The answer has as many lines as the input has words; each begins with a number and a dot.
            Rewrite the enumeration like the steps of a recipe, numbered from one.
            Give every item a line and a running number followed by a full stop.
        """),
        over(word_list, _numbered),
    ),
    Family(
        "list-bullets",
        "formatting",
        "The input is a list of words with commas between them. The output has one word on each line, with a "
        "hyphen and a space in front.",
        lines("""
            Make a bulleted list, one item on each line, with "- " in front.
            Write each word on its own line after a dash.
            I need a model that converts comma-separated words to bullet points.
            a, b -> - a / - b, on separate lines
            Bullet the items: "- pear", newline, "- lamp", and so on.
            Turn this into an unordered Markdown list with hyphens.
            Can you put the items below each other as bullets?
            List the words vertically, each one led by a hyphen and a space.
            bullet points please
            The answer has as many lines as the input has words; each begins with "- ".
            Rewrite the enumeration the way a to-do list looks, with dashes.
            Give every item a line and a hyphen for a bullet.
        """),
        over(word_list, lambda text: "\n".join(f"- {item}" for item in items_of(text))),
    ),
    Family(
        "list-with-and",
        "rewriting",
        "The input is a list of words with commas between them. The output is the list with 'and' instead of "
        "the last comma.",
        lines("""
            Put "and" before the last item instead of the comma.
            Write the list as one would in a sentence: a, b and c.
            I need a model that joins words the English way, with "and" before the last and no Oxford comma.
            a, b, c -> a, b and c
            For "pear, lamp, tiger" answer "pear, lamp and tiger".
            Replace the final comma by the word "and".
            How would you say this list aloud? Use "and" at the end.
            Make the list read naturally: commas, and then "and" ahead of the closing item.
            add the and
            The answer is the input, except that its last two words are joined by "and".
            Connect the last two words with "and"; leave the other commas alone.
            Change only the last separator: it becomes " and ".
        """),
        over(word_list, _with_and),
    ),
    Family(
        "list-pipes",
        "formatting",
        "The input is a list of words with commas between them. The output is the list with ' | ' between the "
        "words.",
        lines("""
            Separate the words by " | " instead of commas.
            Replace each comma in the list by a vertical bar with a space on both sides.
            I need a model that converts comma-separated lists to pipe-separated ones.
            a, b, c -> a | b | c
            For "pear, lamp, tiger" answer "pear | lamp | tiger".
            Join the items with pipes.
            Can you use | between the words?
            Same items, same order, but the separator is the pipe character, spaces around it.
            commas to pipes
            Return " | ".join(items).
            The answer holds the input's words with bars in between and no comma.
            Rewrite the list as a row of cells divided by vertical lines.
        """),
        over(word_list, _join(" | ")),
    ),
    Family(
        "list-arrows",
        "formatting",
        "The input is a list of words with commas between them. The output is the list with ' -> ' between "
        "the words.",
        lines("""
            Separate the words by " -> " instead of commas.
            Draw the list as a chain with an arrow -> from each word to the next.
            I need a model that shows comma-separated steps as a path with arrows.
            For "pear, lamp, tiger" answer "pear -> lamp -> tiger".
            Join the items with arrows made of a hyphen and a greater-than sign.
            Can you write -> between the words?
            Each comma becomes an arrow (->); the words and their order stay.
            commas to arrows
            Return " -> ".join(items).
            Let every word point to the one after it by "->".
            The answer is a sequence such as one -> two -> three, made of my words.
            Rewrite the list like a breadcrumb trail with ASCII arrows.
        """),
        over(word_list, _join(" -> ")),
    ),
    Family(
        "list-swap-ends",
        "list editing",
        "The input is a list of words with commas between them. The output is the list in which the first and "
        "the last item have changed places.",
        lines("""
            Swap the first and the last item of the list.
            Let the first and last words trade places; the ones between stay where they are.
            I need a model that exchanges the two ends of a comma-separated list.
            a, b, c, d -> d, b, c, a
            For "pear, lamp, rope, tiger" answer "tiger, lamp, rope, pear".
            Move the last word to the front and the first word to the end, leaving the middle alone.
            What is the list after its outermost items switch positions?
            Interchange head and tail of the list.
            swap ends
            Only two items move: the one in front goes last, the one at the end goes first.
            Return the list with items[0] and items[-1] exchanged.
            Keep the inner items in order but switch those at the borders.
        """),
        over(where(word_list, lambda text: len(items_of(text)) > 3), _first_last_swapped),
    ),
    Family(
        "list-drop-last",
        "list editing",
        "The input is a list of words with commas between them. The output is the list without its last item.",
        lines("""
            Remove the last item from the list.
            Write the list without its final word.
            I need a model that shortens a comma-separated list by one, from the end.
            a, b, c -> a, b
            For "pear, lamp, tiger" answer "pear, lamp".
            Keep all the items but the last.
            What is left if the closing item is crossed out?
            Copy the list and stop before its last comma.
            drop the last one
            Return ", ".join(items[:-1]).
            Delete the item at the end; leave the rest as it is.
            The answer is one word shorter than the input, and it is the tail that goes.
        """),
        over(word_list, lambda text: ", ".join(items_of(text)[:-1])),
    ),
)
