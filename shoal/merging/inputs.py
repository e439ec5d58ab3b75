"""Covariances of inputs under whole models, for RegMean: measured one model at a time, and kept on the disk.

Knows models and files; nothing of how weights are merged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import UsageError
from shoal.file_errors import failures_named
from shoal.file_formats import TensorSize
from shoal.inference.covariances import input_covariances
from shoal.merging.whole_models import Covariance, Measured
from shoal.models.backbone import Backbone
from shoal.models.tensor_files import FILE, TensorFiles, write_tensors


@contextmanager
def measured_inputs(
    models: Mapping[str, str],
    inputs: Mapping[str, Sequence[str]],
    weights: Sequence[str],
    load: Callable[[str], Backbone],
) -> Iterator[Covariance]:
    """The covariances of the linear maps in every layer; other weights have none.

    Args:
        models: name -> model, in the recipe's order.
        inputs: name -> texts, each worded as a request.
        weights: names of the tensors that will be merged.
        load: loads one model; it is let go before the next.

    Raises:
        UsageError: no weight belongs to a linear map of the model.
        UnavailableError: the disk for temporary files is full.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-covariances-") as folder:
        root, transposed = Path(folder), dict[str, bool]()
        for number, (name, model) in enumerate(models.items()):
            backbone = load(model)
            transposed = {t.name: t.fan_in_fan_out for t in backbone.shape.targets}
            found = input_covariances(backbone, None, inputs[name])
            del backbone
            own = root / str(number)
            with failures_named(own):
                own.mkdir()
                sizes = {module: TensorSize("F32", tuple(g.shape)) for module, g in found.items()}
                write_tensors(own / FILE, sizes, found.values())
            del found
        files = [TensorFiles(root / str(number)) for number in range(len(models))]
        # Files may lack the prefix of the model inside.
        module_of = {f"{m}.weight": m for m in transposed} | {
            f"{m.partition('.')[2]}.weight": m for m in transposed
        }
        if not any(weight in module_of for weight in weights):
            raise UsageError("no weight of these models belongs to a linear map; merge by another method")

        def measured(weight: str) -> Measured | None:
            module = module_of.get(weight)
            if module is None:
                return None
            return Measured([each.read(module) for each in files], transposed[module])

        yield measured
