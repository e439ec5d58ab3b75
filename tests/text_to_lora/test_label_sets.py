"""Label sets read from descriptions: the set, or nothing."""

import pytest

from shoal.adapters.card import MAX_LABELS
from shoal.errors import UsageError
from shoal.text_to_lora.label_sets import check_labels, read_label_set


@pytest.mark.parametrize(
    ("description", "labels"),
    [
        ("Classify a commit message as feat, fix, docs, refactor or chore.", "feat fix docs refactor chore"),
        ("Tell whether a review is positive, negative or neutral.", "positive negative neutral"),
        ("Is this review positive or negative?", "positive negative"),
        ("Answer yes or no: does the text mention a price?", "yes no"),
        ("Classify the sentiment as positive/negative/neutral", "positive negative neutral"),
        ("What is the mood of the text? happy, sad, angry, calm", "happy sad angry calm"),
        ("Triage bug reports by severity: critical, major, minor, trivial", "critical major minor trivial"),
        ('Reply "urgent" if the customer may leave, otherwise reply "normal".', "urgent normal"),
        ("Which of the two sentences is the more positive, A or B?", "A B"),
        ("Say which colour leads. Labels: red, green and blue.", "red green blue"),
        ("Decide whether the message is about billing, shipping or returns.", "billing shipping returns"),
        ("Classify commits into feat, fix and docs.", "feat fix docs"),
        ("Route the ticket to sales, support or engineering.", "sales support engineering"),
        ("Assign a priority of low, medium or high to the bug report.", "low medium high"),
        ("Classify the sentiment (positive/negative/neutral).", "positive negative neutral"),
        ("Classify the news as World, Sports, Business or Sci/Tech.", "World Sports Business Sci/Tech"),
        ("Predict its category (World, Sports, Business, Sci/Tech).", "World Sports Business Sci/Tech"),
        ("Triage the issue: bug, feature or question.", "bug feature question"),
    ],
)
def test_a_closed_list_is_the_label_set(description, labels) -> None:
    assert read_label_set(description) == tuple(labels.split())


@pytest.mark.parametrize(
    ("description", "labels"),
    [
        ("Is this email spam or not spam?", ("spam", "not spam")),
        ("Label each ticket: bug, feature request, question, or complaint.", None),
        (
            "Label bank complaints by kind: wrong rate, declined or failed, still pending, reversed.",
            ("wrong rate", "declined or failed", "still pending", "reversed"),
        ),
        (
            "Count the syllables, spelling the number out: one, two, three or four or more.",
            ("one", "two", "three", "four or more"),
        ),
    ],
)
def test_a_label_may_have_several_words(description, labels) -> None:
    assert read_label_set(description) == (labels or ("bug", "feature request", "question", "complaint"))


@pytest.mark.parametrize(
    "description",
    [
        "Rewrite the sentence politely.",
        "Extract the city or none.",
        "Translate English to French or German.",
        "Summarise the text in one or two sentences.",
        "Name the animal, such as cat, dog or horse.",
        "Classify questions into one of ten topics, from card, activation to PIN or fee.",
        "Write a question that can be answered yes or no.",
        "Find the largest number, regardless of whether it is positive or negative.",
        'Turn "yes" into "no" and the like.',
        "Time slot from a dialogue: span or none.",
        "Tag ten kinds: cat, dog or horse.",
        "Sort the list into ascending or descending order.",
        "Sort the names into alphabetical order, ignoring case.",
        "Classify emails into folders, labels or categories.",
        "Say which topic (sports, politics, health) the text avoids and rewrite it.",
        "Classify the message; it is not about billing, shipping or returns.",
        "Send the letter to Anna, Bob and Carl.",
        "Put the words into groups and sort them.",
        "",
    ],
)
def test_silence_is_better_than_a_wrong_set(description) -> None:
    assert read_label_set(description) == ()


def test_given_labels_are_stripped_and_kept_in_order() -> None:
    assert check_labels([" b", "a  c ", "B2"]) == ("b", "a c", "B2")


def test_labels_may_be_prefixes_of_each_other() -> None:
    assert check_labels(["bone", "bone marrow"]) == ("bone", "bone marrow")


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ("a,b", "one string"),
        (["only"], "1 labels"),
        ([], "0 labels"),
        ([f"l{n}" for n in range(500)], "500 labels"),
        (["a", "A "], "twice"),
        (["a", " "], "characters"),
        (["a", "x" * 300], "characters"),
        (["a", 3], "string"),
        (["a", "half \ud83d"], "not valid Unicode"),
    ],
)
def test_lists_that_are_no_choice_are_refused(labels, part) -> None:
    with pytest.raises(UsageError, match=part):
        check_labels(labels)


def test_the_most_labels_there_may_be() -> None:
    assert len(check_labels([f"l{n}" for n in range(MAX_LABELS)])) == MAX_LABELS
