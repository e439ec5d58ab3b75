"""Families that sort short texts by what they mean: mood, subject, urgency, language, tense.

A text of these families is put together from a template of its label, so the answer is certain. Every definition
states its labels, so that `shoal.tasks.procedural.relabel` can rename them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from shoal.tasks.procedural.family import Family, Make, Pair, lines
from shoal.tasks.procedural.material import capitalised, fill
from shoal.tasks.procedural.phrases import (
    COMMANDS,
    DEPARTMENTS,
    LANGUAGES,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    PRAISED,
    QUESTIONS,
    ROUTINE,
    STATEMENTS,
    SUBJECTS,
    TENSES,
    TIMES_OF_TENSES,
    URGENT,
)

CATEGORY = "classification"
Texts = Callable[[random.Random], str]


def _labelled(texts: Mapping[str, Texts]) -> Make:
    def make(rng: random.Random) -> Pair:
        label = rng.choice(list(texts))
        return texts[label](rng), label

    return make


def _filled(*parts: tuple[str, ...]) -> Texts:
    """Texts of one random template out of each of `parts`, with blanks between and a capital in front."""

    def text(rng: random.Random) -> str:
        return capitalised(" ".join(fill(rng.choice(part), rng) for part in parts))

    return text


def _tense(label: str) -> Texts:
    def text(rng: random.Random) -> str:
        verb = rng.choice(TENSES[label])
        when = rng.choice(TIMES_OF_TENSES[label])
        return capitalised(fill(f"{{person}} {verb} {when}.", rng))

    return text


def _language(label: str) -> Texts:
    subjects, predicates = LANGUAGES[label]
    return _filled(subjects, tuple(f"{predicate}." for predicate in predicates))


FAMILIES = (
    Family(
        "review-sentiment",
        CATEGORY,
        "The input is a short review. The output is 'positive' if the writer is pleased and 'negative' if not.",
        lines("""
            Is the review positive or negative?
            Classify the sentiment of the review as positive or negative.
            I need a model that reads customer reviews and answers "positive" or "negative".
            The soup was superb. -> positive; The soup was awful. -> negative
            Does the writer like it? Say positive if so, negative if not.
            Label reviews with their sentiment, positive or negative.
            Tell praise (positive) from complaint (negative).
            sentiment: positive / negative
            The answer is one word, either positive or negative.
            Was the customer happy (positive) or unhappy (negative)?
            Sentiment analysis with two labels, positive and negative.
            Decide if the opinion expressed is a positive or a negative one.
        """),
        _labelled({"positive": _filled(PRAISED, POSITIVE), "negative": _filled(PRAISED, NEGATIVE)}),
    ),
    Family(
        "review-stars",
        CATEGORY,
        "The input is a short review. The output is '5 stars' for praise, '3 stars' for a lukewarm review and "
        "'1 star' for a complaint.",
        lines("""
            How many stars does the review give: 5 stars, 3 stars or 1 star?
            Rate the review: 5 stars for praise, 3 stars for so-so, 1 star for a complaint.
            I need a model that turns reviews into "5 stars", "3 stars" or "1 star".
            The soup was superb. -> 5 stars; The soup was okay. -> 3 stars; The soup was awful. -> 1 star
            Guess the rating from the text; choose from 5 stars, 3 stars and 1 star.
            Happy writers give 5 stars, indifferent ones 3 stars, angry ones 1 star.
            Convert opinions into a number of stars (5 stars, 3 stars, 1 star).
            stars? 5 stars / 3 stars / 1 star
            The answer is exactly "5 stars", "3 stars" or "1 star".
            Three-way sentiment as stars: good is 5 stars, middling 3 stars, bad 1 star.
            Label each review as 1 star, 3 stars or 5 stars.
            What would this customer have clicked: 1 star, 3 stars or 5 stars?
        """),
        _labelled(
            {
                "5 stars": _filled(PRAISED, POSITIVE),
                "3 stars": _filled(PRAISED, NEUTRAL),
                "1 star": _filled(PRAISED, NEGATIVE),
            }
        ),
    ),
    Family(
        "news-topic",
        CATEGORY,
        "The input is a sentence from the news. The output is its topic: sport, weather, cooking, music or "
        "money.",
        lines("""
            What is the sentence about: sport, weather, cooking, music or money?
            Classify the topic as sport, weather, cooking, music or money.
            I need a model that sorts news into sport, weather, cooking, music and money.
            The striker scored twice. -> sport; Snow will fall at night. -> weather
            Choose the section of the newspaper: sport, weather, cooking, music, money.
            Label each sentence with one topic out of sport, weather, cooking, music, money.
            Topic? (sport / weather / cooking / music / money)
            sport, weather, cooking, music or money
            The answer is one of five words: sport, weather, cooking, music, money.
            Tell which of the subjects sport, weather, cooking, music and money is being written about.
            File the text under the right heading: cooking, money, music, sport or weather.
            Name the theme of the news item.
        """),
        _labelled({label: _filled(texts) for label, texts in SUBJECTS.items()}),
    ),
    Family(
        "message-urgency",
        CATEGORY,
        "The input is a request to a help desk. The output is 'urgent' if it must be dealt with at once and "
        "'routine' if it can wait.",
        lines("""
            Is the request urgent or routine?
            Classify help desk requests as urgent or routine.
            I need a model that triages requests into "urgent" (act at once) and "routine" (can wait).
            The cellar is on fire! -> urgent; Please order new pencils some time. -> routine
            Must somebody act now? Say urgent if so and routine if it can wait.
            Label each message urgent or routine.
            Sort the tickets by priority, with the labels urgent and routine.
            urgent / routine
            The answer is one word, either urgent or routine.
            Tell emergencies (urgent) from everyday wishes (routine).
            Should this wake the caretaker at night? urgent means yes, routine means no.
            Set the priority of the ticket: urgent for danger or haste, otherwise routine.
        """),
        _labelled({"urgent": _filled(URGENT), "routine": _filled(ROUTINE)}),
    ),
    Family(
        "sentence-type",
        CATEGORY,
        "The input is a sentence without its final punctuation. The output is 'statement', 'question' or "
        "'command'.",
        lines("""
            Is it a statement, a question or a command?
            Classify the sentence as statement, question or command; its punctuation is missing.
            I need a model that tells statements, questions and commands apart, answering with "statement",
              "question" or "command".
            where is the lamp -> question; open the door -> command; Anna sleeps -> statement
            Does it tell (statement), ask (question) or order (command) something?
            Label each sentence with its type: statement, question, command.
            Sentence type? (statement / question / command)
            statement, question or command
            The answer is one of three words: statement, question, command.
            Would it end in a question mark (question), is it an order (command), or neither (statement)?
            Grammar class for beginners: name the kind, be it command, question or statement.
            Find the mood of the unpunctuated sentence.
        """),
        _labelled(
            {"statement": _filled(STATEMENTS), "question": _filled(QUESTIONS), "command": _filled(COMMANDS)}
        ),
    ),
    Family(
        "sentence-tense",
        CATEGORY,
        "The input is an English sentence. The output is its tense: 'past', 'present' or 'future'.",
        lines("""
            Is the sentence in the past, the present or the future?
            Classify the tense as past, present or future.
            I need a model that answers with the tense of a sentence: past, present or future.
            Anna slept yesterday. -> past; Anna will sleep tomorrow. -> future; Anna sleeps now. -> present
            When does it happen? Choose past, present or future.
            Label each sentence by its verb: past, present, future.
            Tense? (past / present / future)
            past, present or future
            The answer is one of three words: past, present, future.
            Has it happened (past), is it happening (present) or will it happen (future)?
            Grammar drill: name the tense, one of future, past and present.
            Tell the time to which the verb refers.
        """),
        _labelled({label: _tense(label) for label in TENSES}),
    ),
    Family(
        "phrase-language",
        CATEGORY,
        "The input is a short sentence in English, French, German, Spanish or Italian. The output is the "
        "English name of its language.",
        lines("""
            Which language is it: English, French, German, Spanish or Italian?
            Identify the language as English, French, German, Spanish or Italian.
            I need a model that recognises English, French, German, Spanish and Italian.
            Le chien dort. -> French; Der Hund schläft. -> German
            In what language is this written? Choose English, French, German, Spanish or Italian.
            Label each sentence with its language: English, French, German, Spanish, Italian.
            Language? (English / French / German / Spanish / Italian)
            lang id: English, French, German, Spanish, Italian
            The answer is one of English, French, German, Spanish and Italian.
            From which country could the speaker come? Name the language, be it Italian, Spanish, German,
              French or English.
            Language detection for five European languages, answered in English.
            A letter arrives; tell the translator which language it needs.
        """),
        _labelled({label: _language(label) for label in LANGUAGES}),
    ),
    Family(
        "mail-department",
        CATEGORY,
        "The input is a sentence from a customer. The output is the department that deals with it: billing, "
        "technical, delivery or jobs.",
        lines("""
            Which department should get the message: billing, technical, delivery or jobs?
            Route the customer's message to billing, technical, delivery or jobs.
            I need a model that forwards mail to one of the departments billing, technical, delivery and jobs.
            I was charged twice. -> billing; The screen stays black. -> technical
            Who can help? Choose from billing, technical, delivery, jobs.
            Label each message: billing (money), technical (faults), delivery (parcels), jobs (applications).
            Department? (billing / technical / delivery / jobs)
            billing, technical, delivery or jobs
            The answer is one of four words: billing, technical, delivery, jobs.
            Payments go to billing, defects to technical, parcels to delivery, applicants to jobs: sort.
            Be the switchboard: connect the caller with delivery, jobs, billing or technical.
            Tell which team is in charge of the request.
        """),
        _labelled({label: _filled(texts) for label, texts in DEPARTMENTS.items()}),
    ),
)
