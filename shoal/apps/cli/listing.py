"""`shoal models` and `shoal skills`: what is available."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.apps.cli.settings import Output
from shoal.errors import ShoalError


def skills(
    text: Annotated[str | None, typer.Argument(help="a description or request to find skills in")] = None,
) -> Output:
    """List the skills, or those in a text."""
    if text is None:
        from shoal.text_to_lora.skill_keywords import SKILLS

        return Output({"skills": list(SKILLS)}, "\n".join(SKILLS))
    from shoal.text_to_lora.skills import SkillDetector

    found = SkillDetector().detect(text)
    lines = [f"{name:20}{weight:.2f}" for name, weight in found.weights.items()]
    record = {"text": text, "skills": list(found.skills), "weights": dict(found.weights)}
    return Output(record, "\n".join(lines) or "none of the known skills")


def models() -> Output:
    """Show the base models and their modules.

    That is: the default, shapes that are known without a download, and the roles of target modules.
    """
    from shoal.config import DEFAULT_MODEL
    from shoal.models.known import DEFAULT_HUB_ID, KNOWN_MODELS, ROLES
    from shoal.models.sources import find_model

    known = {
        name: {"model_type": m.model_type, "layers": m.layers, "width": m.width}
        for name, m in KNOWN_MODELS.items()
    }
    try:
        source = find_model(DEFAULT_MODEL).location
    except ShoalError as error:
        source = f"nowhere: {error}"
    record = {
        "default": {"alias": DEFAULT_MODEL, "hub_id": DEFAULT_HUB_ID, "source": source},
        "known_shapes": known,
        "roles": {role: list(names) for role, names in ROLES.items()},
    }
    lines = [
        f"{DEFAULT_MODEL}  the default: {DEFAULT_HUB_ID}, from {source}",
        "any other     a directory or a hub id of a decoder-only model",
        "",
        "Shapes known without a download:",
        *(
            f"  {name:36}{k['model_type']}, {k['layers']} layers of width {k['width']}"
            for name, k in known.items()
        ),
        "",
        "Target modules by role, as each family names them:",
        *(f"  {role:12}{', '.join(names)}" for role, names in ROLES.items()),
    ]
    return Output(record, "\n".join(lines))
