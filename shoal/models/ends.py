"""The two ends of a language model outside its decoder layers: the embedding, and the output layer (head).

An adapter from elsewhere may change them; none is trained or generated here. An embedding is the linear map
of one-hot tokens, whose weight is stored (in, out). Knows nothing of adapters.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from shoal.models.modules import any_sizes, is_embedding


@dataclass(frozen=True)
class EndModule:
    """The embedding or the output layer of a model.

    Attributes:
        name: full module name, for example `model.embed_tokens` or `lm_head`.
        in_features: size of its input: of the vocabulary for an embedding.
        out_features: size of its output: of the vocabulary for an output layer.
        embedding: True for the embedding.
        tied: True where both ends are one weight.
    """

    name: str
    in_features: int
    out_features: int
    embedding: bool
    tied: bool


def end_modules(model: nn.Module) -> tuple[EndModule, ...]:
    """The ends of a model that an adapter may change; none for a module that is no language model."""
    found: dict[str, nn.Module] = {}
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            end = getattr(model, getter)()
        except (AttributeError, NotImplementedError):  # as transformers says that a module has no such end
            continue
        name = next((name for name, module in model.named_modules() if module is end), None)
        if name and isinstance(end, nn.Module) and any_sizes(end):
            found[name] = end
    tied = len(found) == 2 and len({id(getattr(end, "weight", end)) for end in found.values()}) == 1
    return tuple(
        EndModule(name, *(any_sizes(end) or (0, 0)), embedding=is_embedding(end), tied=tied)
        for name, end in found.items()
    )


def embedding_scale(module: nn.Module) -> float:
    """The factor by which a family multiplies what its embedding gives inside the module; 1 for most."""
    return float(getattr(module, "embed_scale", None) or 1.0)
