"""The skill that a request is for: by name, by a sentence, or by the input alone, where that can tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import functional as F

from shoal.errors import UsageError, shorten
from shoal.library.contents import Contents
from shoal.library.models import Models
from shoal.text_to_lora.encoders.sentence import TaskEncoder, check_description
from shoal.transformer2.router import NONE, Decision

NEAR = 0.3  # least cosine of a sentence and the description of the skill that it asks for
SHARPNESS = 20.0  # of the probabilities of such cosines


def decide(
    contents: Contents, models: Models, requests: Sequence[str], skill: str | None, describe: str | None
) -> list[Decision]:
    """As `Library.decide`."""
    if isinstance(requests, str) or not requests:
        raise UsageError(f"requests {shorten(requests)}: a list of at least 1 is needed; ask something")
    if skill is not None and describe is not None:
        raise UsageError("a skill's name and a sentence are given; one of them decides, leave the other out")
    if skill is not None:
        contents.check_known(skill)
        return [Decision(skill, {skill: 1.0})] * len(requests)
    if not contents.skills:
        return [Decision(NONE, {NONE: 1.0})] * len(requests)
    if describe is not None:
        return [by_description(contents, models.encoder, describe)] * len(requests)
    return contents.discriminant.decide(models.states(requests, contents.discriminant.layer))


def by_description(contents: Contents, encoder: TaskEncoder, sentence: str) -> Decision:
    """The skill whose description is nearest to a sentence; `NONE` where none is near.

    Raises:
        UsageError: the sentence is no description.
    """
    sentence = check_description(sentence)
    texts = [skill.facts.description for skill in contents.skills.values()]
    asked, *own = F.normalize(encoder.encode([sentence, *texts]).float(), dim=-1)
    cosines = asked.new_tensor([*(float(vector @ asked) for vector in own), NEAR])
    names = (*contents.skills, NONE)
    probabilities = F.softmax(cosines * SHARPNESS, dim=-1).tolist()
    return Decision(names[int(cosines.argmax())], dict(zip(names, probabilities, strict=True)))


def check_told_apart(contents: Contents, requests: Sequence[str], decisions: Sequence[Decision]) -> None:
    """See that no request was decided by its input between skills that inputs do not tell apart.

    Raises:
        UsageError: one was.
    """
    pairs = {frozenset((pair.skill, pair.other)) for pair in contents.version.confused}
    for request, decision in zip(requests, decisions, strict=True):
        alike = sorted({name for pair in pairs if decision.skill in pair for name in pair})
        if alike:
            raise UsageError(
                f"{shorten(request)} is for {' or '.join(alike)}, whose inputs look alike; name the skill "
                "(--skill), or describe the task in a sentence (--describe); in the service `adapter` holds "
                "skill or describe"
            )
