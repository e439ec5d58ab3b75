"""Labelled prompts that skill detection was not fitted on, and its accuracy on them.

The prompts were written for this check before it was first run, in the way a person asks for an adapter. None
shares more than 70% of its words with one of benchmarks/skill_prompts.jsonl, which detection was fitted on: a
test sees to it. Knows labels; nothing of how skills are detected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# Prompts by the skills that they ask for, space-separated; the last ones ask for none.
LABELLED: Mapping[str, tuple[str, ...]] = {
    "code_generation": (
        "Write PHP classes for a small web shop",
        "a helper that turns pseudocode into C",
        "generate Ruby on Rails controllers from a short spec",
        "shell one-liners for sorting through log directories",
        "it should produce Swift code for iOS screens",
    ),
    "mathematics": (
        "good at integrals and differential equations",
        "help with percentages, ratios and compound interest",
        "prove statements in elementary number theory",
        "high school trigonometry exercises, worked out",
    ),
    "reasoning": (
        "solve logic puzzles by careful deduction",
        "make it think step by step before it concludes",
        "spot the fallacy in an argument",
        "common sense reasoning about everyday situations",
        "analogies of the kind a is to b as c is to what, reasoned out",
    ),
    "creative_writing": (
        "bedtime stories about a lighthouse keeper",
        "compose sonnets and free verse",
        "a novelist that keeps characters consistent over chapters",
        "song lyrics in the style of old sea shanties",
        "write dialogue for a stage play",
    ),
    "analysis": (
        "tell whether a product review is favourable",
        "find trends in monthly sales figures",
        "sentiment of hotel feedback",
        "compare two quarterly reports and assess the risks",
        "classify support mails by theme",
    ),
    "summarization": (
        "condense long board minutes into one paragraph",
        "tl;dr for scientific abstracts",
        "shorten news articles to three bullet points",
        "give the gist of a legal contract",
    ),
    "translation": (
        "translate Danish manuals into German",
        "a bilingual assistant for Polish and Ukrainian",
        "render English subtitles in Korean",
        "localise app texts for Brazil in Portuguese",
        "from Latin inscriptions to modern Italian",
    ),
    "question_answering": (
        "answer trivia about world capitals",
        "a FAQ bot for a public library",
        "reply to customers' questions about delivery times",
        "quiz answers about the history of music",
        "answer questions from a passage of text",
    ),
    "debugging": (
        "find out why my build fails with a segmentation fault",
        "explain stack traces and repair the bug",
        "troubleshoot crashes of a Node server",
        "fix failing unit tests",
        "locate off-by-one errors in loops",
    ),
    "optimization": (
        "make slow SQL queries run faster",
        "cut the memory use of a training loop",
        "speed up a numerical kernel",
        "tune the performance of a Spark job",
    ),
    "code_generation debugging": ("write Go services and fix the bugs in them",),
    "summarization translation": ("summarise French newspapers in English",),
    "optimization debugging": ("profile the C++ engine, make it faster and repair the crashes",),
    "mathematics reasoning": ("maths word problems solved with clear step by step reasoning",),
    "analysis summarization": ("analyse survey comments and summarise what people want",),
    "question_answering translation": ("answer customers' questions in Spanish and translate their letters",),
    "": (
        "be nicer",
        "always answer in capital letters",
        "you are a pirate now",
        "use fewer emojis, please",
    ),
}


def detection_accuracy(detect: Callable[[Sequence[str]], Sequence[Sequence[str]]]) -> float:
    """The share of the labelled prompts whose skills are exactly right: all of them, and no other.

    Args:
        detect: texts -> the skills of each.
    """
    prompts = [(text, set(skills.split())) for skills, texts in LABELLED.items() for text in texts]
    found = detect([text for text, _ in prompts])
    return sum(set(f) == s for f, (_, s) in zip(found, prompts, strict=True)) / len(prompts)
