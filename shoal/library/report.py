"""A library as JSON values: its skills, its steps, and scores over time."""

from __future__ import annotations

from typing import Any

from shoal.library.library import Library


def skill_rows(library: Library) -> list[dict[str, Any]]:
    """Facts of every skill, with scores in points: by its name, and as the router finds it by the input."""
    rows = []
    for name, skill in library.skills.items():
        facts, asked = skill.facts, library.version.asked[name].mean
        rows.append(
            {
                "skill": name,
                "description": facts.description,
                "labels": facts.label_set.labels if facts.label_set else None,
                "kept": facts.kept,
                "examples": facts.examples,
                "exemplars": len(facts.own_scores),
                "named": facts.points(facts.kept),
                "by_input": None if asked is None else 100 * asked,
                "bytes": skill.nbytes,
            }
        )
    return rows


def step_rows(library: Library) -> list[dict[str, Any]]:
    """Every version with the step that made it, oldest first; errors as `Library.versions`."""
    return [
        {"version": v.number, **v.step.model_dump(mode="json"), "skills": sorted(v.skills)}
        for v in library.versions
    ]


def library_record(library: Library) -> dict[str, Any]:
    """All of it; errors as `Library.history`."""
    return {
        "version": library.version.number,
        "base_model": library.base_model,
        "skills": skill_rows(library),
        "versions": step_rows(library),
        "history": library.history().record(),
        "confused": [pair.model_dump(mode="json") for pair in library.version.confused],
    }
