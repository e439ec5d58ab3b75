"""The shape of a base model: which of its linear maps an adapter can change, from the configuration alone.

So an adapter can be generated without loading the weights that it adapts. Targets are found by structure, as
the linear maps inside the decoder layers; `known` says what each family calls the common roles. Knows nothing
of weights, tokens or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from shoal.errors import ShoalError, UsageError, reason
from shoal.models.ends import EndModule, end_modules
from shoal.models.known import DEFAULT_HUB_ID, ROLES
from shoal.models.memories import cache_argument, layer_memories
from shoal.models.modules import TargetModule, is_conv1d, module_sizes
from shoal.models.parameters import TargetParameter, adaptable_parameters
from shoal.models.sources import DEFAULT_MODEL, find_model, known_config, quietly, read_config


@dataclass(frozen=True)
class BackboneShape:
    """The linear maps of a base model, and the name that adapters record.

    Attributes:
        base_model: hub id or path that adapters record.
        model_type: architecture name of `transformers`, for example `llama`.
        num_layers: decoder layers.
        targets: every linear map inside the decoder layers, in order.
        ends: embedding and output layer, which no role names: only adapters from elsewhere change them.
        parameters: weights of experts and routers there, which are no modules; adapters may change them, and
            none is trained on them here.
    """

    base_model: str
    model_type: str
    num_layers: int
    targets: tuple[TargetModule, ...]
    ends: tuple[EndModule, ...] = ()
    parameters: tuple[TargetParameter, ...] = ()

    @property
    def adaptable(self) -> tuple[TargetModule | EndModule | TargetParameter, ...]:
        """Everything that an adapter may change: targets, ends and parameters."""
        return (*self.targets, *self.ends, *self.parameters)

    def select(self, target_modules: Sequence[str], num_layers: int | None) -> tuple[TargetModule, ...]:
        """The targets of the named modules in the last `num_layers` layers (None: all), in the model's order.

        A name is a role of `ROLES` (`q_proj`, ...) or the model's own (`attn.c_attn`).

        Raises:
            UsageError: more layers than the model has, no name, or one that none of its modules has.
        """
        if num_layers is not None and not 1 <= num_layers <= self.num_layers:
            raise UsageError(
                f"cannot adapt {num_layers} layers of {self.base_model}, which has {self.num_layers}; "
                f"set num_layers_to_adapt to 1..{self.num_layers} or to none for all"
            )
        first = 0 if num_layers is None else self.num_layers - num_layers
        types = {t.type for t in self.targets}
        chosen: set[str] = set()
        for name in target_modules:
            endings = ROLES.get(name, (name,))
            found = {t for t in types for e in endings if t == e or t.endswith("." + e)}
            if not found:
                untrained = " (its experts are not trained here)" if self.parameters else ""
                raise UsageError(
                    f"{self.base_model} has no target module {name!r}{untrained}; choose from "
                    f"{', '.join(sorted(types))} or the roles {', '.join(ROLES)}"
                )
            chosen |= found
        if not chosen:
            raise UsageError(f"no target modules are named; choose from the roles {', '.join(ROLES)}")
        return tuple(t for t in self.targets if t.type in chosen and t.layer >= first)


def load_shape(model: str = DEFAULT_MODEL) -> BackboneShape:
    """Shape of a model from its configuration alone; no weight is read.

    Raises:
        UsageError: no model of that name or path.
        ShoalError: its configuration is broken, or not of a causal language model.
    """
    config = known_config(model)
    if config is not None:
        name = DEFAULT_HUB_ID if model == DEFAULT_MODEL else model
    else:
        source = find_model(model)
        name, config = source.name, read_config(source)
    return shape_of(on_meta(config, name), name)


def shape_of(model: nn.Module, base_model: str) -> BackboneShape:
    """Shape of a model that is there, on any device (the meta device too)."""
    prefix, layers = decoder_layers(model)
    targets, parameters = [], []
    for index, layer in enumerate(layers):
        for name, parameter, apart in adaptable_parameters(layer):
            parameters.append(TargetParameter(f"{prefix}.{index}.{name}", index, name, parameter, apart))
        for name, module in layer.named_modules():
            sizes = module_sizes(module)
            if sizes:
                targets.append(
                    TargetModule(f"{prefix}.{index}.{name}", index, name, *sizes, is_conv1d(module))
                )
    config: Any = model.config
    return BackboneShape(
        base_model, config.model_type, len(layers), tuple(targets), end_modules(model), tuple(parameters)
    )


def on_meta(config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model without weights.

    Raises:
        ShoalError: it is no decoder-only language model, or cannot be built.
    """
    named = config.architectures or ["CausalLM"]
    generative = any(a.endswith(("CausalLM", "LMHeadModel")) for a in named)
    # An encoder's class can be asked for tokens too, but each of them would see those after it.
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False) or encoder or not generative:
        what = ", ".join(config.architectures or ["no class named"])
        raise ShoalError(
            f"{name!r} is a {config.model_type} model ({what}), not a causal language model; "
            "choose a decoder-only one"
        )
    try:
        with torch.device("meta"), quietly():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a foreign configuration: its values fail wherever they are first used
        raise ShoalError(
            f"no {config.model_type} model can be built from the configuration of {name!r}: {reason(error)}; "
            "choose a causal language model, or correct its config.json"
        ) from error
    try:
        layer_memories(config, len(decoder_layers(model)[1]))
        if cache_argument(model) is None:
            raise ShoalError("it takes no cache of keys and values")
    except ShoalError as error:
        raise ShoalError(not_answering(name, model, error)) from None
    return model


def not_answering(name: str, model: nn.Module, error: ShoalError) -> str:
    """The sentence that refuses a model which cannot be continued."""
    config: Any = model.config
    return f"{name!r} is a {config.model_type} model, which cannot answer here: {error}; choose another"


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder layers: the outermost list of as many modules as there are layers.

    One of equal modules goes before; those of a hybrid model are of several classes.
    """
    config: Any = model.config
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and 0 < len(module) == count
    ]
    if not lists:
        raise ShoalError(
            f"found no list of {count} decoder layers in a {config.model_type} model; choose another"
        )
    return next((found for found in lists if len({type(m) for m in found[1]}) == 1), lists[0])
