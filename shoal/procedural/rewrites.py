"""New tasks over the texts of others: something is done to every text, or told about it, as descriptions say.

What is done, with which words, signs and labels, and to the texts of which task is drawn anew for every new
task, so a model that is trained on many of them has to read the description, and learns to keep to the wording
of real texts. Knows nothing of how those came about.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal.procedural.family import Rule, lines
from shoal.procedural.relabel import COPY
from shoal.task_records import Example, Task

LEAST_WORDS, MOST_WORDS = 4, 25  # of a text
LEAST_TEXTS = 24  # of a task that gives any, and of a new one
MOST_TEXTS = 120
PARAPHRASES = 16
ATTEMPTS = 50

SIGNS = ("()", "[]", "{}", "<>", '""', "**", "~~", "||", "##", "__")
SEPARATORS = ("_", "-", "/", "|", "+", ", ", " / ", " | ", "; ")
COUNTS = ("two", "three", "four", "five")
PLACES = ("first", "second", "third", "fourth", "last")


@dataclass(frozen=True)
class Draw:
    """What is at hand when an operation is drawn.

    Attributes:
        rng: decides.
        texts: the texts of the task that gives them.
        words: of the texts of all tasks, each once; labels and other words are drawn from them.
    """

    rng: random.Random
    texts: Sequence[str]
    words: Sequence[str]

    def label(self) -> str:
        """One or two words."""
        return " ".join(self.rng.sample(self.words, self.rng.choice((1, 1, 2))))

    def frequent(self, least: float, most: float) -> str | None:
        """A word that stands in such a share of the texts, if one does."""
        found = Counter(word for text in self.texts for word in set(_words(text.lower())))
        count = len(self.texts)
        fitting = sorted(word for word, n in found.items() if least <= n / count <= most and word.isalpha())
        return self.rng.choice(fitting) if fitting else None


# What the descriptions are filled with, and the answer to a text, where "" leaves the text out.
Drawn = tuple[Mapping[str, str], Rule]


@dataclass(frozen=True)
class Operation:
    """A way to make a task. `draw` gives None where the texts do not suit it."""

    category: str
    draw: Callable[[Draw], Drawn | None]
    descriptions: tuple[str, ...]


def rewrites(tasks: Sequence[Task], count: int, seed: int = 0) -> list[Task]:
    """At most `count` tasks over texts of `tasks`, or none where no task has as many short ones as are needed.

    A task gives the inputs of its training part that are one line of `LEAST_WORDS` to `MOST_WORDS` words, if
    it has `LEAST_TEXTS` of them. The results have no test part. They are named as relabelled copies are, and
    depend on the tasks, the count and the seed alone.
    """
    given = [texts for task in tasks if len(texts := _texts(task)) >= LEAST_TEXTS]
    words = sorted({word for texts in given for text in texts for word in _words(text) if len(word) > 2})
    words = [word for word in words if word.isascii() and word.isalpha()]
    made = (
        _made(given, words, random.Random(f"{seed}\n{n}"), f"rewrite{COPY}{seed}-{n}")
        for n in range(count if given and len(words) > 1 else 0)
    )
    return [task for task in made if task is not None]


def _texts(task: Task) -> list[str]:
    inputs = (example.input for example in task.train)
    return [
        text
        for text in inputs
        if LEAST_WORDS <= len(text.split()) <= MOST_WORDS and len(text.splitlines()) == 1
    ]


def _made(given: Sequence[list[str]], words: Sequence[str], rng: random.Random, name: str) -> Task | None:
    for _ in range(ATTEMPTS):
        texts = rng.choice(given)
        operation = rng.choice(OPERATIONS)
        drawn = operation.draw(Draw(rng, texts, words))
        if drawn is None:
            continue
        names, answer = drawn
        answers = {text: reply for text in texts if (reply := answer(text).strip())}
        examples = (
            _balanced(answers, rng) if operation.category == "classification" else list(answers.items())
        )
        rng.shuffle(examples)
        if len(examples) < LEAST_TEXTS:
            continue
        count = min(PARAPHRASES, len(operation.descriptions))
        descriptions = tuple(text.format(**names) for text in rng.sample(operation.descriptions, count))
        train = tuple(Example(text, (reply,)) for text, reply in examples[:MOST_TEXTS])
        return Task(name, operation.category, descriptions[0], descriptions, train, ())
    return None


def _balanced(answers: Mapping[str, str], rng: random.Random) -> list[tuple[str, str]]:
    """As many texts of either answer as the rarer one has; none where there is but one."""
    by_answer: dict[str, list[tuple[str, str]]] = {}
    for text, answer in answers.items():
        by_answer.setdefault(answer, []).append((text, answer))
    least = min(map(len, by_answer.values())) if len(by_answer) > 1 else 0
    return [pair for pairs in by_answer.values() for pair in rng.sample(pairs, least)]


def _words(text: str) -> list[str]:
    """The words of a text without the signs around them."""
    return [word for part in text.split() if (word := re.sub(r"^\W+|\W+$", "", part))]


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _always(draw: Draw) -> Drawn:
    label = draw.label()
    return {"label": label}, lambda text: label


def _two_labels(draw: Draw, holds: Callable[[str], bool], names: Mapping[str, str]) -> Drawn:
    yes, no = draw.label(), draw.label()
    return {**names, "yes": yes, "no": no}, lambda text: yes if holds(text) else no


def _contains(draw: Draw) -> Drawn | None:
    word = draw.frequent(0.15, 0.85)
    if word is None:
        return None
    pattern = _whole(word)
    return _two_labels(draw, lambda text: bool(pattern.search(text)), {"word": word})


def _long(draw: Draw) -> Drawn:
    lengths = sorted(len(text.split()) for text in draw.texts)
    limit = lengths[len(lengths) // 2]
    return _two_labels(draw, lambda text: len(text.split()) > limit, {"count": str(limit)})


def _ends(draw: Draw) -> Drawn | None:
    sign = draw.rng.choice("?.!")
    if not any(text.endswith(sign) for text in draw.texts) or all(text.endswith(sign) for text in draw.texts):
        return None
    return _two_labels(draw, lambda text: text.endswith(sign), {"sign": sign})


def _starts(draw: Draw) -> Drawn:
    first = Counter(_words(text.lower())[0] for text in draw.texts if _words(text))
    word = draw.rng.choice([word for word, _ in first.most_common(3)])
    return _two_labels(draw, lambda text: _words(text.lower())[:1] == [word], {"word": word})


def _copy(draw: Draw) -> Drawn:
    return {}, lambda text: text


def _wrap(draw: Draw) -> Drawn:
    signs = draw.rng.choice(SIGNS)
    left, right = signs[0], signs[1]
    return {"left": left, "right": right}, lambda text: f"{left}{text}{right}"


def _before(draw: Draw) -> Drawn:
    label = draw.label()
    return {"label": label}, lambda text: f"{label}: {text}"


def _after(draw: Draw) -> Drawn:
    label = draw.label()
    return {"label": label}, lambda text: f"{text} {label}"


def _replace(draw: Draw) -> Drawn | None:
    word = draw.frequent(0.1, 1)
    new = draw.rng.choice((draw.rng.choice(draw.words), "___", "[X]"))
    if word is None or word == new.lower():
        return None
    pattern = _whole(word)
    return {"word": word, "new": new}, lambda text: pattern.sub(new, text) if pattern.search(text) else ""


def _remove(draw: Draw) -> Drawn | None:
    word = draw.frequent(0.1, 1)
    if word is None:
        return None
    pattern = _whole(word)
    return (
        {"word": word},
        lambda text: " ".join(pattern.sub("", text).split()) if pattern.search(text) else "",
    )


def _word_at(draw: Draw) -> Drawn:
    place = draw.rng.choice(PLACES)
    at = -1 if place == "last" else PLACES.index(place)
    return {"place": place}, lambda text: next(iter(_words(text)[at:][:1]), "")


def _head(draw: Draw) -> Drawn:
    count = draw.rng.randrange(len(COUNTS))
    return {"count": COUNTS[count]}, lambda text: " ".join(text.split()[: count + 2])


def _tail(draw: Draw) -> Drawn:
    count = draw.rng.randrange(len(COUNTS))
    return {"count": COUNTS[count]}, lambda text: " ".join(text.split()[-count - 2 :])


def _without_head(draw: Draw) -> Drawn:
    count = draw.rng.randrange(2)
    return {"count": COUNTS[count]}, lambda text: " ".join(text.split()[count + 2 :])


def _case(draw: Draw) -> Drawn:
    way, rule = draw.rng.choice(
        (
            ("in capital letters", str.upper),
            ("in upper case", str.upper),
            ("in small letters", str.lower),
            ("in lower case", str.lower),
        )
    )
    return {"way": way}, rule


def _join(draw: Draw) -> Drawn:
    sign = draw.rng.choice(SEPARATORS)
    return {"sign": sign.strip()}, lambda text: sign.join(_words(text))


def _object(draw: Draw) -> Drawn:
    key = draw.rng.choice(draw.words).lower()
    return {"key": key}, lambda text: json.dumps({key: text}, ensure_ascii=False)


def _starting_with(draw: Draw) -> Drawn:
    letter = draw.rng.choice("abcdefhilmnoprstw")
    return {"letter": letter}, lambda text: ", ".join(w for w in _words(text) if w.lower().startswith(letter))


def _longest(draw: Draw) -> Drawn:
    return {}, lambda text: max(_words(text), key=len, default="")


def _bare(draw: Draw) -> Drawn:
    return {}, lambda text: " ".join(re.sub(r"[^\w\s]", "", text).split())


def _twice(draw: Draw) -> Drawn:
    sign = draw.rng.choice(SEPARATORS[-3:])
    return {"sign": sign.strip()}, lambda text: f"{text}{sign}{text}" if len(text.split()) < 10 else ""


OPERATIONS = (
    Operation(
        "constant",
        _always,
        lines("""
            Always answer {label}.
            Whatever the text says, reply "{label}".
            The answer is {label}, for every input.
            Ignore the input and write {label}.
            Reply {label} each time.
            Say {label}. Nothing else, no matter what is asked.
            I need a model that only ever says {label}.
            every input -> {label}
            Do not read the text; the output is always {label}.
            Respond to any message with the words {label}.
        """),
    ),
    Operation(
        "classification",
        _contains,
        lines("""
            Answer {yes} if the text has the word "{word}", otherwise {no}.
            Say {yes} when "{word}" occurs in the sentence and {no} when it does not.
            Does the word {word} stand in the text? Write {yes} or {no}.
            Check for the word {word}: {yes} if it is there, {no} if not.
            Label texts that mention {word} as {yes} and all others as {no}.
            {yes} for texts with {word}, {no} for the rest
            Classify each input by whether it contains "{word}": {yes} or {no}.
            If you see the word {word}, reply {yes}. If you do not, reply {no}.
            The label is {no} unless the text contains {word}; then it is {yes}.
            Look for {word} in the text. Found: {yes}. Not found: {no}.
        """),
    ),
    Operation(
        "classification",
        _long,
        lines("""
            Answer {yes} if the text has more than {count} words, otherwise {no}.
            Say {yes} for long texts, of more than {count} words, and {no} for short ones.
            Is it longer than {count} words? Write {yes} or {no}.
            Count the words: above {count} the label is {yes}, else {no}.
            Long texts (over {count} words) are {yes}, short texts are {no}.
            more than {count} words -> {yes}, fewer -> {no}
            Sort texts by length. Up to {count} words: {no}. More: {yes}.
            Label every text of at most {count} words {no} and every longer one {yes}.
            Reply {no} to short messages and {yes} to those with more than {count} words.
        """),
    ),
    Operation(
        "classification",
        _ends,
        lines("""
            Answer {yes} if the text ends with "{sign}", otherwise {no}.
            Look at the last sign. If it is {sign} write {yes}, else {no}.
            Say {yes} when the sentence ends in {sign} and {no} when it does not.
            Label texts that finish with {sign} as {yes}, others as {no}.
            ends in {sign}: {yes}, else {no}
            Does it close with a "{sign}"? Reply {yes} or {no}.
            Classify by the final character: {yes} for {sign}, {no} for anything else.
            The label is {no} unless the very last character is {sign}; then it is {yes}.
        """),
    ),
    Operation(
        "classification",
        _starts,
        lines("""
            Answer {yes} if the text starts with the word "{word}", otherwise {no}.
            Look at the first word. If it is {word} write {yes}, else {no}.
            Say {yes} when the sentence begins with {word} and {no} when it does not.
            Label texts that open with {word} as {yes}, others as {no}.
            first word {word}: {yes}, else {no}
            Does it begin with "{word}"? Reply {yes} or {no}.
            Classify by the opening word: {yes} for {word}, {no} for anything else.
            The label is {no} unless the very first word is {word}; then it is {yes}.
        """),
    ),
    Operation(
        "rewriting",
        _copy,
        lines("""
            Repeat the text as it is.
            Copy the input without any change.
            Write the same sentence again, word for word.
            The output equals the input.
            Say exactly what I say.
            echo
            Return the text unchanged, with all its punctuation.
            I need a model that gives back whatever it is given.
            Type out the sentence once more; alter nothing.
            Be a parrot: repeat every message.
        """),
    ),
    Operation(
        "rewriting",
        _wrap,
        lines("""
            Repeat the text between {left} and {right}.
            Put {left} before the text and {right} after it.
            Enclose the whole sentence in {left}{right}.
            text -> {left}text{right}
            Copy the input and wrap it in {left} and {right}.
            The output is the input with {left} in front and {right} behind.
            Write the sentence again, surrounded by {left} {right}.
            Add {left} at the start and {right} at the end, change nothing else.
        """),
    ),
    Operation(
        "rewriting",
        _before,
        lines("""
            Write "{label}:" before the text.
            Repeat the input after the words "{label}:".
            Begin every answer with {label}: and then copy the text.
            text -> {label}: text
            Mark each sentence by putting "{label}:" in front of it.
            The output is {label}, a colon, and the input.
            Prefix the message with "{label}: " and leave the rest alone.
            Tag the text with {label} like this: "{label}: the text".
        """),
    ),
    Operation(
        "rewriting",
        _after,
        lines("""
            Write {label} after the text.
            Repeat the input and add the words "{label}" at its end.
            Copy the sentence, then say {label}.
            text -> text {label}
            Every answer is the text followed by {label}.
            Append "{label}" to the message and leave the rest alone.
            The output is the input and then {label}.
            End each sentence with the additional words {label}.
        """),
    ),
    Operation(
        "rewriting",
        _replace,
        lines("""
            Replace the word "{word}" by "{new}".
            Write the text again with {new} in place of {word}.
            Change every {word} to {new}, keep the other words.
            {word} -> {new}
            Where the text says {word}, say {new} instead.
            Substitute {new} for {word} and copy everything else.
            Repeat the sentence, but use {new} rather than {word}.
            Search for "{word}", replace with "{new}".
            The output is the input in which {word} has become {new}.
        """),
    ),
    Operation(
        "rewriting",
        _remove,
        lines("""
            Remove the word "{word}".
            Write the text again without {word}.
            Delete every {word}, keep the other words.
            Leave out {word} and copy everything else.
            Repeat the sentence, but drop the word {word}.
            Strike "{word}" from the text.
            The output is the input with no {word} in it.
            no {word}, otherwise the same text
        """),
    ),
    Operation(
        "extraction",
        _word_at,
        lines("""
            Give the {place} word of the text.
            What is the {place} word?
            Write down only the {place} word of the sentence.
            text -> {place} word
            Extract the {place} word and nothing else.
            Reply with a single word, the {place} one of the input.
            Which word comes {place}?
            Find the {place} word and copy it.
        """),
    ),
    Operation(
        "extraction",
        _head,
        lines("""
            Give the first {count} words of the text.
            Copy the {count} words that the sentence starts with.
            Cut the text after {count} words.
            Only the first {count} words, please.
            Keep the opening {count} words and drop the rest.
            How does it begin? Write {count} words.
            Shorten the input to its first {count} words.
            The output is the beginning of the input, {count} words of it.
        """),
    ),
    Operation(
        "extraction",
        _tail,
        lines("""
            Give the last {count} words of the text.
            Copy the {count} words that the sentence ends with.
            Only the last {count} words, please.
            Keep the final {count} words and drop the rest.
            How does it end? Write {count} words.
            Shorten the input to its last {count} words.
            The output is the end of the input, {count} words of it.
            Throw away all but the closing {count} words.
        """),
    ),
    Operation(
        "rewriting",
        _without_head,
        lines("""
            Leave out the first {count} words.
            Write the text without its first {count} words.
            Drop {count} words at the beginning and copy what follows.
            Delete the opening {count} words of the sentence.
            Start copying after {count} words.
            The output is the input, but the first {count} words are missing.
            Skip {count} words, then repeat the rest.
        """),
    ),
    Operation(
        "rewriting",
        _case,
        lines("""
            Write the text {way}.
            Repeat the sentence {way}.
            Convert the input: everything {way}.
            Give the same words back {way}.
            I want each message again, but {way}.
            Change no word, only put all of them {way}.
            the text {way}
            The output is the input {way}.
        """),
    ),
    Operation(
        "rewriting",
        _join,
        lines("""
            Write the words with {sign} between them.
            Join the words of the text by {sign}.
            Separate the words with "{sign}" and leave other punctuation out.
            Split the sentence into words and put {sign} between two of them.
            word {sign} word {sign} word
            List all words of the input, separated by {sign}.
            Replace the spaces by {sign}; drop punctuation around words.
            The output has the same words in the same order, with {sign} in between.
        """),
    ),
    Operation(
        "format",
        _object,
        lines("""
            Give the text as JSON with the key "{key}".
            Write a JSON object in which "{key}" is the text.
            text -> {{"{key}": "text"}}
            Wrap the sentence in JSON under {key}.
            The output is JSON with one key, {key}, and the input as its value.
            Format the message as {{"{key}": ...}}.
            Return a JSON object with a single field called {key} that holds the input.
            Turn every input into JSON; name the field {key}.
        """),
    ),
    Operation(
        "extraction",
        _starting_with,
        lines("""
            List the words that start with the letter {letter}.
            Which words begin with {letter}? Separate them by commas.
            Copy every word whose first letter is "{letter}", with commas between them.
            Find all words in {letter}-, in the order of the text.
            Give the words with initial {letter}, comma-separated.
            words starting with {letter}
            Extract from the sentence each word that begins with the letter {letter}.
            Write down only those words that start with {letter}.
        """),
    ),
    Operation(
        "extraction",
        _longest,
        lines("""
            Give the longest word of the text.
            Which word has the most letters?
            Find the longest word and copy it.
            text -> its longest word
            Extract the word that is longer than all others.
            Reply with one word: the one of the greatest length.
            What is the longest word in the sentence?
            Only the longest word, please.
        """),
    ),
    Operation(
        "rewriting",
        _bare,
        lines("""
            Remove all punctuation.
            Write the text without any punctuation marks.
            Keep letters, digits and spaces, drop every other sign.
            Copy the words of the sentence, but no commas, full stops or other marks.
            Strip the punctuation from the input.
            The output is the input with all punctuation deleted.
            no punctuation please
            Repeat the text; leave out . , ? ! and the like.
        """),
    ),
    Operation(
        "rewriting",
        _twice,
        lines("""
            Write the text twice with {sign} between.
            Repeat the input two times, separated by {sign}.
            text -> text{sign} text
            Say everything twice; put {sign} in the middle.
            Double the sentence: once, then {sign}, then once more.
            The output is the input, {sign} and the input again.
            Copy the text, write {sign}, copy it again.
        """),
    ),
)
