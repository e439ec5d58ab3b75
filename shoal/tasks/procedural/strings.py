"""Families that change a sentence or take a word of it.

Every one takes the sentences of `shoal.tasks.procedural.material`; only the description tells them apart. Knows
nothing of markup (`shoal.tasks.procedural.markup`) or of labels.
"""

from __future__ import annotations

import re

from shoal.tasks.procedural.family import Family, lines, over, where
from shoal.tasks.procedural.material import capitalised, sentence
from shoal.tasks.procedural.vocabulary import FIRST_NAMES


def bare_words(text: str) -> list[str]:
    """The words of a sentence without its commas and full stop."""
    return re.sub(r"[.,]", "", text).split()


def _initials(text: str) -> str:
    return "".join(word[0].upper() for word in bare_words(text))


def _has_name(text: str) -> bool:
    return any(word in FIRST_NAMES for word in bare_words(text))


def _hide_names(text: str) -> str:
    return re.sub(r"\w+", lambda match: "[NAME]" if match[0] in FIRST_NAMES else match[0], text)


def _has_the(text: str) -> bool:
    return "the" in text.lower().split()


def _the_to_this(text: str) -> str:
    return capitalised(re.sub(r"\bthe\b", "this", text, flags=re.IGNORECASE))


FAMILIES = (
    Family(
        "first-word",
        "word extraction",
        "The input is an English sentence. The output is its first word, spelled as in the sentence.",
        lines("""
            Give the first word of the sentence.
            What is the first word?
            I need a model that returns only the first word of whatever sentence I send.
            sentence -> first word
            Copy the opening word of each sentence and leave out the rest.
            Which word does the sentence begin with? Answer with that word alone.
            Take a sentence and keep just word number one.
            For "The dog slept under the lamp." answer "The".
            Extract the word that starts the sentence, with its capital letter.
            just the 1st word pls
            The answer is always a single word: the one at the very beginning of the text.
            Return word 1 of the input and discard everything after it.
        """),
        over(sentence, lambda text: bare_words(text)[0]),
    ),
    Family(
        "last-word",
        "word extraction",
        "The input is an English sentence. The output is its last word without the full stop.",
        lines("""
            Give the last word of the sentence, without the full stop.
            What word does the sentence end with?
            I need a model that returns only the final word of a sentence, punctuation removed.
            sentence -> last word
            Copy the closing word of each sentence; drop the period.
            For "The dog slept under the lamp." answer "lamp".
            Which word stands at the very end? Reply with that word alone.
            Read the sentence and write down nothing but its final word.
            last word only, no period
            Extract the word right before the full stop.
            Take a sentence and throw away all of it except the word at the end.
            The answer is always one word, the one with which the text finishes.
        """),
        over(sentence, lambda text: bare_words(text)[-1]),
    ),
    Family(
        "second-word",
        "word extraction",
        "The input is an English sentence. The output is its second word.",
        lines("""
            Give the second word of the sentence.
            What is word number two?
            I'd like a model that picks the second word out of a sentence.
            sentence -> second word
            Skip the first word and return the one after it, nothing more.
            For "The dog slept under the lamp." answer "dog".
            Which word comes right after the opening word?
            Copy only the word in position 2 of the text.
            2nd word please
            Reply with a single word: the second in the sentence.
            From each sentence extract the word that follows the first.
            Count the words from the left and write the one you call "two".
        """),
        over(sentence, lambda text: bare_words(text)[1]),
    ),
    Family(
        "upper-case",
        "rewriting",
        "The input is an English sentence. The output is the same sentence in capital letters.",
        lines("""
            Write the sentence in capital letters.
            Convert the text to upper case.
            Shout it: every letter becomes a capital, nothing else changes.
            I need a model that turns sentences into ALL CAPS.
            sentence -> SENTENCE
            Repeat my text with all letters in uppercase.
            For "Anna found a key." answer "ANNA FOUND A KEY."
            Can you put this whole sentence in caps?
            Make all the letters big and keep the words and the punctuation.
            uppercase this
            The answer is the input again, with no lower-case letter left in it.
            Apply Python's str.upper() to the sentence.
        """),
        over(sentence, str.upper),
    ),
    Family(
        "lower-case",
        "rewriting",
        "The input is an English sentence. The output is the same sentence without any capital letter.",
        lines("""
            Write the sentence in small letters only.
            Convert the text to lower case.
            I need a model that removes every capital from a sentence by making it lower case.
            Sentence -> sentence, all lowercase
            Repeat the text with no capital letters, not even for names.
            For "Anna found a key." answer "anna found a key."
            Can you lowercase this whole sentence?
            Turn all capitals into small letters and keep the words and the full stop.
            lowercase it
            The answer is the input once more, but each letter is a small one.
            Apply str.lower() to the sentence.
            Make it look as if my shift key were broken: nothing in capitals.
        """),
        over(sentence, str.lower),
    ),
    Family(
        "title-case",
        "rewriting",
        "The input is an English sentence. The output is the same sentence with a capital at the start of "
        "every word.",
        lines("""
            Capitalise the first letter of every word.
            Write the sentence in title case, each word with a capital.
            I need a model that gives every single word of a sentence a capital letter.
            sentence -> Every Word Capitalised
            For "Anna found a key." answer "Anna Found A Key."
            Turn the sentence into a headline in which all words begin with a capital letter.
            Can you make each word start with an uppercase letter?
            Repeat the text; words big at the front, small words like "a" and "the" included.
            title case, all words
            Change nothing but the initial of each word, which becomes upper case.
            The output has the same words as the input, Each Starting Like This.
            Make it look like a book title: a capital at the start of each word, the full stop stays.
        """),
        over(sentence, lambda text: " ".join(capitalised(word) for word in text.split())),
    ),
    Family(
        "snake-case",
        "rewriting",
        "The input is an English sentence. The output is its words in lower case, joined by underscores, "
        "without punctuation.",
        lines("""
            Convert the sentence to snake_case.
            Join the words with underscores, all in lower case and without punctuation.
            I need a model that turns a sentence into an identifier like this_is_it.
            sentence -> words_with_underscores
            For "Anna found a key." answer "anna_found_a_key".
            Make everything lowercase and put _ where the spaces are; no full stop.
            How would this sentence look in snake case?
            Replace each space by an underscore, drop the period and use small letters.
            snake_case this sentence
            Write my sentence as a Python variable name, word_by_word.
            The answer holds no space and no capital, only small words separated by underscores.
            Create a file name from the sentence: lower case, underscores between words.
        """),
        over(sentence, lambda text: "_".join(bare_words(text.lower()))),
    ),
    Family(
        "hyphen-slug",
        "rewriting",
        "The input is an English sentence. The output is its words in lower case, joined by hyphens, without "
        "punctuation.",
        lines("""
            Turn the sentence into a URL slug with hyphens.
            Join the words with hyphens, all in lower case and without punctuation.
            I need a model that makes web address slugs like this-is-it from sentences.
            sentence -> words-with-hyphens
            For "Anna found a key." answer "anna-found-a-key".
            Make everything lowercase and put a - where the spaces are; no full stop.
            How would this sentence look in kebab-case?
            Replace each space by a dash, drop the period and use small letters.
            kebab-case please
            Write a slug for a blog post of this title: small letters, dashes between the words.
            The answer holds no space and no capital, only small words separated by hyphens.
            slugify the text
        """),
        over(sentence, lambda text: "-".join(bare_words(text.lower()))),
    ),
    Family(
        "exclaim",
        "rewriting",
        "The input is an English sentence that ends in a full stop. The output is the sentence with three "
        "exclamation marks in place of the full stop.",
        lines("""
            Replace the full stop by three exclamation marks.
            End the sentence with !!! instead of a period.
            I want a model that makes every sentence excited: the final . becomes !!!
            sentence. -> sentence!!!
            For "Anna found a key." answer "Anna found a key!!!"
            Repeat the sentence, but finish it with three exclamation points.
            Can you add some drama? Same words, "!!!" at the end, no period.
            Swap the last character for !!! and leave the words alone.
            triple exclamation marks at the end pls
            The output is the input with its closing dot turned into "!!!".
            Write the text again as if it were shouted with joy, ending in !!!, letters unchanged.
            Change only the punctuation: three exclamation marks where the full stop was.
        """),
        over(sentence, lambda text: text[:-1] + "!!!"),
    ),
    Family(
        "drop-first-word",
        "rewriting",
        "The input is an English sentence. The output is the sentence without its first word.",
        lines("""
            Remove the first word and keep the rest.
            Write the sentence without its opening word.
            I need a model that cuts off the first word of a sentence and returns what remains.
            sentence -> everything after the first word
            For "Anna found a key." answer "found a key."
            Delete word one; copy all the others, and the full stop.
            What is left of the sentence if the first word is struck out?
            Start copying at the second word.
            drop the first word
            The output is the input from its second word to its end.
            Skip one word, then repeat the text to the period.
            Chop the beginning off: one word goes, the remainder stays the same.
        """),
        over(sentence, lambda text: text.split(" ", 1)[1]),
    ),
    Family(
        "hide-names",
        "rewriting",
        "The input is an English sentence with one or more first names. The output is the sentence with "
        "[NAME] in place of each first name.",
        lines("""
            Replace every first name with [NAME].
            Anonymise the sentence: people become [NAME].
            I need a model that masks the names of people with the tag [NAME] and changes nothing else.
            sentence -> sentence with [NAME] instead of names
            For "Anna found a key." answer "[NAME] found a key."
            Hide who is meant by writing [NAME] where a person is named.
            Can you redact the people in this sentence? Use [NAME].
            Copy the text, but put the placeholder [NAME] for each person; cities stay.
            redact first names -> [NAME]
            The output equals the input except that persons are called [NAME].
            Remove personal data: a given name is swapped for "[NAME]".
            Protect privacy by substituting [NAME] for the first names in the text.
        """),
        over(where(sentence, _has_name), _hide_names),
    ),
    Family(
        "the-to-this",
        "rewriting",
        "The input is an English sentence that contains the word 'the'. The output is the sentence with "
        "'this' in place of each 'the'.",
        lines("""
            Replace each "the" with "this".
            Change the word "the" to "this" wherever it stands in the sentence.
            I need a model that swaps every "the" for "this" and leaves the other words alone.
            the -> this
            For "The dog ate the pie." answer "This dog ate this pie."
            Write the sentence again, but say "this" where it says "the".
            Can you substitute "this" for "the" everywhere?
            Find all occurrences of the definite article "the" and turn them into "this".
            swap the/this, keep everything else
            The output is the input in which no "the" is left: "this" stands in its place.
            Do a search and replace on the text: search "the", replace by "this".
            Repeat the text and use "this" as the article in place of "the".
        """),
        over(where(sentence, _has_the), _the_to_this),
    ),
    Family(
        "sentence-initials",
        "rewriting",
        "The input is an English sentence. The output is the first letters of its words as capitals, without "
        "spaces.",
        lines("""
            Make an acronym of the sentence from the first letter of each word.
            Write down the initial of every word, in capitals and without spaces.
            I need a model that abbreviates a sentence to its first letters.
            sentence -> initials
            For "Anna found a key." answer "AFAK".
            Take the first letter of each word and put these letters together in upper case.
            What acronym do the words of this sentence form?
            Shorten each word to one capital letter; no dots, no blanks.
            first letters only, like ASAP
            The answer is one string of capitals, as long as the sentence has words.
            Keep only how each word starts and run the letters together: AFAK.
            Build the abbreviation of the whole sentence, one letter a word.
        """),
        over(where(sentence, lambda text: len(text.split()) < 10 and not re.search(r"\d", text)), _initials),
    ),
)
