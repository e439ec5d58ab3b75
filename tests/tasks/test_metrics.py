"""Metrics against rouge-score called directly, and intervals against their definitions."""

import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from shoal.errors import UsageError
from shoal.tasks.metrics import (
    Interval,
    bleu,
    bootstrap_difference,
    bootstrap_interval,
    chrf,
    exact_match,
    perplexity,
    rouge,
    rouge_l,
)

SENTENCES = [
    "The cats were running across the streets.",
    "A cat runs across a street",
    "police killed the gunman",
    "police kill the gunman",
    "the gunman kill police",
    "42",
    "",
    "no_such-thing; (really)",
]


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Paris", ["Paris"], 1),
        ("  paris.\n", ["London", "Paris"], 1),
        ("New\t York", ["new york."], 1),
        ("STRASSE", ["straße"], 1),
        ("Paris!", ["Paris"], 0),
        ("It is Paris", ["Paris"], 0),
        ("e.g..", ["e.g."], 0),
        (".", ["."], 1),
        ("", ["."], 0),
        ("", [""], 1),
        ("cafe\u0301", ["CAFÉ"], 1),
        ("\u1112\u1161\u11ab", ["한"], 1),
        ("猫。", ["猫"], 1),
        ("ठीक", ["ठीक।"], 1),
        ("ﾃｽﾄ", ["テスト"], 0),
        ("ԵՐԵՎԱՆ։", ["Երեվան"], 1),
        ("စာ။", ["စာ"], 1),
        ("ភាសា។", ["ភាសា"], 1),
        ("\ufeffParis", ["Paris"], 1),
        ("\u200fשלום\u200f", ["שלום"], 1),
        ("ภาษา\u200bไทย", ["ภาษาไทย"], 1),
        ("می\u200cخواهم", ["میخواهم"], 0),
    ],
)
def test_exact_match(answer: str, references: list[str], expected: float) -> None:
    assert exact_match(answer, references) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "tokenizer"),
    [
        ("今天天气不错", "今天天气很不错", "zh"),
        ("I like 天气 a lot", "I like the 天气 a lot", "zh"),
        ("今日は天気がいい", "今日は天気がとてもいい", "char"),
        ("วันนี้อากาศดี", "วันนี้อากาศดีมาก", "char"),
        ("អាកាសធាតុល្អ", "អាកាសធាតុល្អណាស់", "char"),
        ("ﾃｽﾄｹｯｶ", "ﾃｽﾄｹｯｶﾃﾞｽ", "char"),
        ("བོད་ཡིག་ཡིན", "བོད་ཡིག་རེད", "char"),
        ("ꦲꦏ꧀ꦱꦫꦗꦮ", "ꦲꦏ꧀ꦱꦫꦗꦮꦤ", "char"),
        ("ㄅㄆㄇㄈㄉ", "ㄅㄆㄇㄈㄊ", "char"),
        ("𠀀𠀁𠀂𠀃𠀅", "𠀀𠀁𠀂𠀃𠀄", "char"),
        ("the cat sat on a mat", "the cat sat on the mat", "13a"),
        ("한국어는 띄어쓰기를 합니다", "한국어는 띄어쓰기를 한다", "13a"),
    ],
)
def test_bleu_splits_the_script_of_its_references(answer: str, reference: str, tokenizer: str) -> None:
    found = bleu([answer], [[reference]])
    own = BLEU(tokenize=tokenizer, effective_order=True)
    assert found.score == own.corpus_score([answer], [[reference]]).score > 20
    assert f"tok:{tokenizer}" in found.signature


def test_sets_are_scored_alike_however_accents_are_written() -> None:
    for score in (bleu, chrf):
        assert score(
            ["le café est fermé ici"], [["le cafe\u0301 est ferme\u0301 ici"]]
        ).score == pytest.approx(100)


@pytest.mark.parametrize("reference", SENTENCES)
@pytest.mark.parametrize("answer", SENTENCES)
@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_score(reference: str, answer: str, kind: Any) -> None:
    expected = RougeScorer([kind], use_stemmer=True).score(reference, answer)[kind].fmeasure
    assert rouge(answer, [reference], kind) == expected


def test_rouge_l_takes_the_best_reference() -> None:
    references = ["something else", "police killed the gunman"]
    expected = RougeScorer(["rougeL"], use_stemmer=True).score_multi(references, "police kill the gunman")
    assert rouge_l("police kill the gunman", references) == expected["rougeL"].fmeasure == 1
    # Lin 2004, section 3.1: the longest common subsequence of these four words has two.
    assert rouge_l("the gunman police kill", ["police kill the gunman"]) == 0.5


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Привет, мир!", "привет мир", 1),
        ("мир", "привет мир", 2 / 3),
        ("hello world", "привет мир", 0),
        ("Straße", "strasse straße", 2 / 3),
        ("我爱猫", "我爱狗", 2 / 3),
        ("iPhone 手机", "iphone手机", 1),
        ("नमस्ते दुनिया", "नमस्ते", 2 / 3),
        ("cafe\u0301 running", "café runs", 1),
        ("?", "?", 1),
        ("??", "?!", 0.5),
        ("none", "?!", 0),
        ("", "мир", 0),
        (" ", " ", 0),
    ],
)
def test_rouge_l_of_what_rouge_score_drops(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, [reference]) == pytest.approx(expected)


@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_scores_are_shares(answer: str, references: list[str]) -> None:
    assert exact_match(answer, references) in (0, 1)
    assert 0 <= rouge_l(answer, references) <= 1
    assert exact_match(references[-1], references) == 1
    if any(character.isalnum() for character in references[0]):
        assert rouge_l(references[0], references) == pytest.approx(1)


@pytest.mark.parametrize("metric", [exact_match, rouge_l])
@pytest.mark.parametrize("references", [[], (), "Paris"])
def test_references_are_a_list(metric: Any, references: Any) -> None:
    with pytest.raises(UsageError, match="a list of at least 1 string is needed"):
        metric("Paris", references)


def test_an_interval_is_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).random(50)
    means = values[np.random.default_rng(7).integers(50, size=(300, 50))].mean(axis=1)
    interval = bootstrap_interval(values, level=0.9, samples=300, seed=7)
    low, high = np.quantile(means, [0.05, 0.95])
    assert interval == Interval(values.mean(), low, high, 50)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(list(values)) == bootstrap_interval(values)


def test_an_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 60))
    intervals = [bootstrap_interval(draw, level=0.9, samples=400) for draw in draws]
    covered = statistics.mean(
        i.low is not None and i.high is not None and i.low <= 3 <= i.high for i in intervals
    )
    assert 0.84 < covered < 0.94


def test_many_values_are_resampled_in_parts() -> None:
    values = np.random.default_rng(0).normal(size=1_500_000)
    interval = bootstrap_interval(values, samples=5)
    assert interval.n == len(values)
    assert interval.low is not None and interval.high is not None and interval.low < interval.high
    assert abs(interval.high - interval.mean) < 5 / len(values) ** 0.5


def test_intervals_without_spread() -> None:
    assert bootstrap_interval([0.25]) == Interval(0.25, None, None, 1)
    assert bootstrap_interval([0.25] * 3) == Interval(0.25, 0.25, 0.25, 3)


def test_a_difference_is_paired() -> None:
    base = np.random.default_rng(0).normal(scale=100, size=40)
    assert bootstrap_difference(base + 1, base) == bootstrap_interval((base + 1) - base)
    difference = bootstrap_difference(base + 1, base)
    assert difference.low == pytest.approx(1) and difference.high == pytest.approx(1)
    with pytest.raises(UsageError, match="2 and 1 values: paired scores must be of one length"):
        bootstrap_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, r"values of shape \(0,\)"),
        ({"values": [0.0, float("nan")]}, r"values of shape \(2,\): at least 1 finite"),
        ({"values": np.zeros((1, 1))}, r"values of shape \(1, 1\)"),
        ({"values": [0.0], "level": 1.0}, "level 1.0: must be between 0 and 1"),
        ({"values": [0.0], "samples": 0}, "samples 0: must be at least 1"),
    ],
)
def test_intervals_of_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap_interval(**arguments)


@pytest.mark.parametrize("answers", [SENTENCES, SENTENCES[::-1], ["42"] * len(SENTENCES)])
def test_bleu_and_chrf_are_those_of_sacrebleu(answers: list[str]) -> None:
    for ours, theirs in ((bleu, BLEU(effective_order=True)), (chrf, CHRF())):
        assert (
            ours(answers, [[s] for s in SENTENCES]).score == theirs.corpus_score(answers, [SENTENCES]).score
        )
    signature = bleu(["a"], [["a"]]).signature
    assert signature.startswith("nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp|version:")


def test_answers_may_have_unequal_numbers_of_references() -> None:
    answers, references = ["the cat sat", "a dog"], [["the cat sat", "one cat sat"], ["the dog"]]
    theirs = BLEU(effective_order=True).corpus_score(
        answers, [["the cat sat", "the dog"], ["one cat sat", None]]
    )
    ours = bleu(answers, references)
    assert ours.score == theirs.score and "nrefs:var" in ours.signature


def test_short_right_answers_have_full_marks_and_empty_ones_none() -> None:
    assert bleu(["positive"], [["positive"]]).score == pytest.approx(100)
    assert bleu([""], [["positive"]]).score == chrf([""], [["positive"]]).score == 0


@pytest.mark.parametrize(
    ("answers", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a"], ["a"]), (["a"], [["a"], ["b"]])]
)
@pytest.mark.parametrize("metric", [bleu, chrf])
def test_every_answer_has_references(metric: Any, answers: list, references: list) -> None:
    with pytest.raises(UsageError, match="is needed"):
        metric(answers, references)


def test_perplexity() -> None:
    assert perplexity([0.0]) == 1 and perplexity([1.0, 2.0]) == pytest.approx(np.exp(1.5))
    assert perplexity([1e4]) == perplexity([float("inf")]) == float("inf")
    for losses in ([], [float("nan")], [-1.0, 2.0]):
        with pytest.raises(UsageError, match="from 0"):
            perplexity(losses)
