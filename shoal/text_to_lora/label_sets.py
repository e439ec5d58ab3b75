"""Label sets that a task description names, read by rules that would rather say nothing than be wrong.

A set is read only where the description closes it: a list after a cue ("one of", "labels:", "classify as",
"whether it is"), quoted answers each with its condition, or yes and no. Examples ("such as"), counts that
do not match ("one of ten topics" before four names) and items that look like prose make it silent. Knows
text only, no models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from shoal.adapters.card import MAX_LABELS
from shoal.errors import UsageError, check_unicode, shorten
from shoal.text_to_lora import label_cues

MAX_LABEL_LENGTH = 200  # characters
MAX_WORDS = 4  # of a label that is read


def read_label_set(description: str) -> tuple[str, ...]:
    """The labels that a description closes its answers to, in its own spelling and order; none where unsure.

    Args:
        description: of a task, in English.

    Returns:
        At least two labels, or an empty tuple.
    """
    text = " ".join(description.split())
    if label_cues.WRITES.search(text):
        return ()
    found = [labels for labels in (_conditions(text), _listed(text), _polar(text)) if labels]
    if not found and (letters := label_cues.LETTERS.search(text)):
        found = [(letters[1], letters[2])]
    if not found and not label_cues.EVEN_IF.search(text) and (pair := label_cues.WHETHER.search(text)):
        labels = _items(pair["list"], weak=True, cue="whether ", before="")
        found = [labels] if labels and "not" not in labels else []
    if not found:
        return ()
    sets = {frozenset(map(label_key, labels)) for labels in found}
    if len(sets) != 1 or _unlike_labels(found[0], text):
        return ()
    return found[0]


def _unlike_labels(labels: tuple[str, ...], text: str) -> bool:
    """Signs that a list is not the set of answers: blanks to fill, other answers in quotes, uneven pairs."""
    words = [label.split() for label in labels]
    keys = {label_key(label) for label in labels}
    if (
        keys & {"none", "unknown"}
        and len(keys) < 4
        and {w[-1].casefold() for w in words} & label_cues.PLACEHOLDERS
    ):
        return True
    if any("=" in label or label.endswith(":") for label in labels):
        return True
    if any(label_cues.ORDERS & {*key.split()} for key in keys) or keys <= label_cues.KINDS_ALONE:
        return True
    quoted = {label_key(q) for q in _hide_quotes(text)[1]}
    if quoted and not quoted <= keys:
        return True
    return len(labels) == 2 and not quoted and abs(len(words[0]) - len(words[1])) > 1


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """A label set as the user gives it, stripped.

    Raises:
        UsageError: it is one string, has fewer than 2 or more than `MAX_LABELS`, or one of them is blank, too
            long, no string, or there twice (without regard to case and whitespace).
    """
    if isinstance(labels, str):
        raise UsageError(f"labels {shorten(labels)} is one string; give a list of at least 2")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or len(label) > MAX_LABEL_LENGTH:
            raise UsageError(
                f"label {shorten(label)} must be a string of 1 to {MAX_LABEL_LENGTH} characters with one "
                "that is visible; correct it or leave it out"
            )
        check_unicode(label, "label")
    stripped = tuple(" ".join(label.split()) for label in labels)
    if not 2 <= len(stripped) <= MAX_LABELS:
        raise UsageError(
            f"{len(stripped)} labels are no choice: 2 to {MAX_LABELS} are needed; give all answers"
        )
    keys = [label_key(label) for label in stripped]
    twice = next((label for label, key in zip(stripped, keys, strict=True) if keys.count(key) > 1), None)
    if twice is not None:
        raise UsageError(f"label {shorten(twice)} is given twice (case does not count); give each one once")
    return stripped


def label_key(label: str) -> str:
    """A label without regard to case and whitespace: what tells labels apart."""
    return " ".join(label.casefold().split())


def _listed(text: str) -> tuple[str, ...]:
    """The list after the first cue that one follows; none where two cues give different lists."""
    if label_cues.OPEN.search(text):
        return ()
    found: list[tuple[str, ...]] = []
    for sentence in _sentences(text):
        own = _in_sentence(sentence)
        if own:
            found.append(own)
    if not found:
        return ()
    longest = max(found, key=len)
    if any(not {*map(label_key, labels)} <= {*map(label_key, longest)} for labels in found):
        return ()
    stated = [
        label_cues.NUMBERS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in label_cues.NUMBERS
    ]
    stated += [int(n) for n in re.findall(rf"\b(\d+) (?:\w+ )?{label_cues.KINDS}", text)]
    numbers = {label_key(label) for label in longest} & label_cues.NUMBERS.keys()
    if stated and not numbers and len(longest) not in stated:
        return ()
    return longest


def _in_sentence(sentence: str) -> tuple[str, ...]:
    for number, cue in enumerate(label_cues.CUES):
        for match in cue.finditer(sentence):
            labels = _items(
                sentence[match.end() :],
                weak=number >= len(label_cues.STRONG),
                cue=match.group(),
                before=sentence[: match.start()],
            )
            if labels:
                return labels
    return ()


def _items(rest: str, *, weak: bool, cue: str, before: str) -> tuple[str, ...]:
    """The closed list that a text starts with, or nothing."""
    hidden, held = _hide_quotes(rest)
    end = label_cues.CLAUSE_END.search(hidden)
    clause = hidden[: end.start() if end else None]
    if clause.count(";") == 1:  # a new thought, no list
        clause = clause.split(";")[0]
    clause = label_cues.TRAILING.sub("", clause.rstrip(" .?!,"))
    parts, closed = _divided(clause)
    quotes = [re.fullmatch(r"(?:an? |the )?\x00(\d+)\x00", part) for part in parts]
    if not 2 <= len(parts) <= MAX_LABELS or (any("\x00" in part for part in parts) and not all(quotes)):
        return ()
    whole = clause == hidden.rstrip(" .?!,")
    question = hidden.startswith(clause + "?")
    if not _enough(
        parts, cue, before, closed=closed or all(quotes), weak=weak, whole=whole, question=question
    ):
        return ()
    if all(quotes):
        labels = [held[int(quote[1])] for quote in quotes if quote]
    else:
        labels = [re.sub(r"^(?:an?|either) (?=\S)", "", part) for part in parts]
        if not all(_clean(labels, place, cue) for place in range(len(labels))):
            return ()
    return tuple(labels) if len({*map(label_key, labels)}) == len(labels) else ()


def _enough(
    parts: Sequence[str], cue: str, before: str, *, closed: bool, weak: bool, whole: bool, question: bool
) -> bool:
    """Whether a list after this cue is long or closed enough to be the set of answers."""
    words = all(len(part.split()) == 1 for part in parts)
    if cue == "":  # of sentences that are nothing but a list, only the question ("Positive or negative?")
        return question and closed and words
    if cue.startswith(":"):
        return (
            len(parts) >= (2 if closed else 3) and (closed or words) and bool(label_cues.SORTS.search(before))
        )
    if cue.startswith("?"):
        return whole and (closed or len(parts) >= 3)
    if len(parts) >= 3 and words and whole and re.search(r"\b(?:into|as):? $", cue, re.IGNORECASE):
        return True  # "into bugs, features and questions"
    named = not weak and re.search(r"label|class|option|choice|tag", cue, re.IGNORECASE)
    return closed or len(parts) >= (2 if named else 4 if weak else 3)


def _clean(labels: Sequence[str], place: int, cue: str) -> bool:
    """Whether an item without quotes reads as a label; inside a long list after a good cue prose may too."""
    label = labels[place]
    trusted = len(labels) >= 6 and (place or "as" in cue.split()) and not cue.startswith((":", "?")) and cue
    negation = label in (f"not {other}" for other in labels)
    fits = re.fullmatch(r"[A-Z]", label) or trusted or negation or not label_cues.PROSE.search(label)
    return bool(fits) and len(label.split()) <= MAX_WORDS and _plain(label)


def _divided(clause: str) -> tuple[list[str], bool]:
    """The items of a list, and whether its last joint ("or", a slash) closes it; no items where unclear."""
    for mark in (";", "/", "|", ","):
        if mark not in clause or (mark in "/|" and clause.count(",") > 1):  # "sports, sci/tech or business"
            continue
        parts = [part.strip() for part in clause.split(mark)]
        if mark in "/|" and len(parts) > 1:
            return parts, True
        last, closed = parts[-1], False
        inner = [part for part in parts[:-1] if label_cues.JOINT.search(part)]
        if label_cues.LAST.match(last):
            parts[-1] = label_cues.LAST.sub("", last)
            closed = bool(re.match(r"or|else|otherwise", last, re.IGNORECASE))
        elif joints := [joint.strip().lower() for joint in label_cues.JOINT.findall(last)]:
            used = {joint.strip().lower() for part in inner for joint in label_cues.JOINT.findall(part)}
            if len(joints) > 1 or joints[0] in used:
                return [], False
            parts[-1:] = [part.strip() for part in label_cues.JOINT.split(last)]
            closed = joints[0] != "and"
        return parts, closed
    parts = [part.strip() for part in label_cues.JOINT.split(clause)]
    joints = [joint.strip().lower() for joint in label_cues.JOINT.findall(clause)]
    if len(parts) == 2:
        return parts, joints[0] != "and"
    return [], False


def _conditions(text: str) -> tuple[str, ...]:
    """Quoted answers, each with the condition under which it is right."""
    if label_cues.OPEN.search(text):
        return ()
    hidden, held = _hide_quotes(text)
    named = re.findall(r"\x00(\d+)\x00,? (?:if|when|where|otherwise|for (?:the|a|any|every|all))\b", hidden)
    named += re.findall(r"\b(?:otherwise|else|if not|not,)[ ,]+(?:\w+ ){0,2}\x00(\d+)\x00", hidden)
    named += re.findall(r"\bwith \x00(\d+)\x00", hidden)
    labels = list(dict.fromkeys(held[int(n)] for n in named))
    others = {label_key(h) for h in held} - {label_key(label) for label in labels}
    if len(labels) < 2 or others or any(len(label.split()) > MAX_WORDS for label in labels):
        return ()
    return tuple(labels) if len({*map(label_key, labels)}) == len(labels) else ()


def _polar(text: str) -> tuple[str, ...]:
    if label_cues.NOT_POLAR.search(text):
        return ()
    for pattern in (label_cues.YES_NO, label_cues.TRUE_FALSE):
        match = pattern.search(text)
        if match:
            return tuple(group for group in match.groups() if group)
    return ()


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!])\s+(?=[A-Z\"“])", text)


def _hide_quotes(text: str) -> tuple[str, list[str]]:
    """The text with every quotation replaced by its number, and the quotations."""
    held: list[str] = []

    def hide(match: re.Match[str]) -> str:
        held.append((match[1] or match[2]).strip(" .,"))
        return f"\x00{len(held) - 1}\x00"

    return label_cues.QUOTED.sub(hide, text), held


def _plain(item: str) -> bool:
    return bool(re.fullmatch(r"[\w&'’.+-]+(?: [\w&'’.+-]+)*|[A-Za-z]{2,}/[A-Za-z]{2,}", item))
