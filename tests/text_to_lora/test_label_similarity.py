"""What labels mean, by the real sentence encoder: nearness in nats, calibrated, and nothing in the logs."""

import pytest
import torch

from shoal.adapters.card import LabelSet
from shoal.errors import ShoalError
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.label_similarity import WEIGHT, LabelSimilarity, in_words

ROOMS = LabelSet(labels=("play_music", "set_alarm", "order_food"))
REQUESTS = ["Put on some jazz.", "Wake me at seven tomorrow.", "I want a large pizza with olives."]


@pytest.fixture(scope="module")
def encoder() -> TaskEncoder:
    return TaskEncoder()


@pytest.fixture(scope="module")
def similarity(encoder) -> LabelSimilarity:
    return LabelSimilarity(lambda: encoder)


def test_each_request_is_nearest_to_its_own_label(similarity) -> None:
    assert similarity.evidence(ROOMS, REQUESTS).argmax(-1).tolist() == [0, 1, 2]


def test_evidence_is_the_cosine_beyond_the_mean_in_nats(similarity) -> None:
    cosines = similarity.cosines(REQUESTS, ROOMS.labels)
    calibrated = ROOMS.calibrated([0.0] * 3, "3 inputs", cosines.mean(0).tolist())
    expected = WEIGHT * (cosines - cosines.mean(0))
    assert torch.allclose(similarity.evidence(calibrated, REQUESTS), expected, atol=1e-4)


def test_labels_that_mean_nothing_add_little(similarity) -> None:
    telling = similarity.evidence(ROOMS, REQUESTS).std(-1).mean()
    assert similarity.evidence(LabelSet(labels=("A", "B", "C")), REQUESTS).std(-1).mean() < telling / 2


def test_the_encoder_is_loaded_when_it_is_first_needed() -> None:
    def missing() -> TaskEncoder:
        raise ShoalError("no encoder")

    similarity = LabelSimilarity(missing)
    with pytest.raises(ShoalError, match="no encoder"):
        similarity.evidence(ROOMS, REQUESTS)


def test_a_long_text_is_read_by_its_beginning_and_never_logged(similarity, caplog) -> None:
    beginning = "Put on some jazz. " * 60
    found = similarity.evidence(ROOMS, [beginning, beginning + "I want a pizza. " * 20_000])
    assert torch.allclose(found[0], found[1], atol=1e-4) and not caplog.records


@pytest.mark.parametrize(
    ("label", "words"), [("set_alarm", "set alarm"), ("set-alarm", "set alarm"), ("a/b", "a b"), ("_", "_")]
)
def test_a_label_is_read_as_words(label: str, words: str) -> None:
    assert in_words(label) == words
