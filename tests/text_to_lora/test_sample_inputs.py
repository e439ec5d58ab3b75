"""The inputs that the package ships: well-formed, and of the kind that a description asks for."""

import pytest

from shoal.tasks.inputs import check_inputs
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.sample_inputs import input_kinds, nearest_kind


def test_every_kind_has_sixteen_inputs_of_its_own() -> None:
    kinds = input_kinds()
    assert len({kind.kind for kind in kinds}) == len(kinds) >= 40
    assert all(len(check_inputs(kind.inputs)) == 16 for kind in kinds)
    together = [text.casefold() for kind in kinds for text in kind.inputs]
    assert len(set(together)) == len(together)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("Say whether a film review is positive or negative.", "film-and-book-reviews"),
        ("Label each commit message as fix, feature or docs.", "commit-messages"),
        ("Is this text message spam or not spam?", "possible-spam-messages"),
        (
            "Decide whether the hypothesis is entailed, contradicted or neutral.",
            "premise-and-hypothesis-pairs",
        ),
    ],
)
def test_the_kind_fits_the_description(description: str, kind: str) -> None:
    assert nearest_kind(TaskEncoder(), description).kind == kind
