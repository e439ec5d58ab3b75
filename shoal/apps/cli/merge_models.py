"""`shoal merge` of whole models: several fine-tuned models in, one model's directory out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shoal.apps.cli.merge_settings import Merging
from shoal.apps.cli.model import Place, load
from shoal.apps.cli.settings import Output
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.merging.recipe import Recipe

FOR_ADAPTERS = ("start", "evolve", "tasks")


def merge_models(
    place: Place, merging: Merging, plan: Recipe, inputs: Mapping[str, Sequence[str]] | None
) -> Output:
    """Merge whole models tensor by tensor, by a closed form."""
    from shoal.merging.inputs import measured_inputs
    from shoal.merging.whole_models import WholeModels

    if given := next((name for name in FOR_ADAPTERS if getattr(merging, name)), None):
        raise UsageError(f"--{given} is for adapters, and these are whole models; leave it out")
    models = WholeModels(plan, place.base)
    models.check_target(merging.out)
    if inputs is None:
        report = models.write(merging.out, seed=merging.seed)
    else:
        named = dict(zip(plan.labels, plan.parents, strict=True))
        with measured_inputs(named, inputs, list(models.sizes), lambda model: load(place, model)) as found:
            report = models.write(merging.out, found, merging.seed)
    text = f"{' '.join(report['notes'])} {report['tensors']} tensors, {report['bytes']} bytes, written to "
    return Output({**report, "out": str(merging.out)}, f"{text}{merging.out}")
