"""mergekit's YAML: recipes of `BASE+ADAPTER` or whole models, whose slices keep layer numbers.

Read with bounds: no aliases, no tags, no unknown keys. What makes another model of several (assembling
layers, tokenizers, mixtures of experts) is refused by name. Knows recipes and text, no tensors.

Source: mergekit's documented configuration, https://github.com/arcee-ai/mergekit (LGPL; none of its code).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from shoal.adapters.merging.methods import FROM_ZERO, method_of
from shoal.adapters.merging.plain_yaml import as_list, as_mapping, as_text, plain_yaml
from shoal.adapters.merging.recipe import Clause, Recipe, Setting, Settings, Slice
from shoal.errors import UsageError, shorten
from shoal.file_errors import failures_named

MAX_BYTES = 256 * 2**10
DTYPES = ("float32", "float16", "bfloat16")
_CHECKPOINTS = "which makes another model of several; run mergekit for it"
REFUSED = {  # keys and methods of mergekit -> why there are none here
    **dict.fromkeys(("tokenizer", "tokenizer_source", "chat_template"), _CHECKPOINTS),
    **dict.fromkeys(("experts", "gate_mode", "modules", "name"), _CHECKPOINTS),
    **dict.fromkeys(("passthrough", "nearswap", "arcee_fusion", "merge_method_script"), _CHECKPOINTS),
}
WHOLE = ("slerp", "karcher", "multislerp", "nuslerp")  # of mergekit, where they have no base to count from
NO_EFFECT = ("int8_mask",)  # how mergekit stores masks


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file; errors as `parse_recipe`.

    Raises:
        ShoalError: the file cannot be read.
    """
    with failures_named(path, "read"), path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES} bytes, a recipe is shorter; shorten it")
    try:
        return parse_recipe(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8; save it as that") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def parse_recipe(text: str) -> Recipe:
    """The recipe in a text.

    Raises:
        UsageError: it is no YAML, has aliases or unknown keys, or makes another model of several.
    """
    document = as_mapping(plain_yaml(text), "the recipe")
    known = {"merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype"}
    _check_keys(document, known, "the recipe")
    method = as_text(document.get("merge_method"), "merge_method")
    if method in REFUSED:
        _refuse(method)
    method_of(method)
    if ("models" in document) == ("slices" in document):
        raise UsageError("a recipe has either models or slices, and this has both or neither; give one")
    dtype = document.get("out_dtype") or document.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {shorten(dtype)} is none of {', '.join(DTYPES)}; choose one")
    named = as_text(document["base_model"], "base_model") if "base_model" in document else None
    whole = _is_of_whole_models(document, named)
    counted_from = None if whole and method in FROM_ZERO and method != "slerp" else named
    if "slices" in document:
        parts = [_slice(each, counted_from, method) for each in as_list(document["slices"], "slices")]
    else:
        parts = [_all_layers(document["models"], counted_from, method)]
    models = parts[0][0]
    if any(own != models for own, _ in parts):
        raise UsageError("the slices have different models, or in another order; give all the same")
    _check_contiguous([part for _, part in parts])
    base, start = (named, None) if whole else _base_and_start(models, named, method)
    return Recipe(
        method=method,
        parents=tuple(models if whole else (_adapter(model)[1] for model in models)),
        slices=tuple(part for _, part in parts),
        settings=_settings(document.get("parameters"), method),
        base_model=base,
        start=start,
        dtype=dtype,
        notes=() if whole else _notes(method, named),
        whole=whole,
    )


def _all_layers(value: object, base: str | None, method: str) -> tuple[list[str], Slice]:
    models, each = _sources(as_list(value, "models"), {"model", "parameters"}, base, method)
    return models, Slice(each=each)


def _slice(value: object, base: str | None, method: str) -> tuple[list[str], Slice]:
    one = as_mapping(value, "a slice")
    _check_keys(one, {"sources", "parameters"}, "a slice")
    rows = as_list(one.get("sources"), "sources")
    ranges = [as_mapping(row, "a source").get("layer_range") for row in rows]
    first = ranges[0] if ranges else None
    if any(own != first for own in ranges):
        raise UsageError(
            f"the layer_range of sources are {shorten(ranges)}: a slice that moves layers is a new model; "
            "give all the same"
        )
    whole = isinstance(first, list) and len(first) == 2 and all(type(n) is int for n in first)
    if not isinstance(first, list) or not whole or not 0 <= first[0] < first[1]:
        raise UsageError(f"layer_range {shorten(first)} must be [first, behind the last]; correct it")
    models, each = _sources(rows, {"model", "parameters", "layer_range"}, base, method)
    shared = _settings(one.get("parameters"), method)
    return models, Slice((first[0], first[1]), each, shared)


def _sources(
    rows: list[Any], keys: set[str], base: str | None, method: str
) -> tuple[list[str], tuple[Settings, ...]]:
    """Models and their settings; the one that deltas count from has none, and is left out."""
    found: list[tuple[str, Settings]] = []
    for row in rows:
        one = as_mapping(row, "a model")
        _check_keys(one, keys, "a model")
        model = as_text(one.get("model"), "model")
        if model == base and method != "slerp":
            continue
        found.append((model, _settings(one.get("parameters"), method)))
    if method == "slerp":  # from base_model, at t = 0, to the other
        if base is None:
            raise UsageError("slerp needs base_model, the model at t = 0; name it")
        others = [pair for pair in found if pair[0] != base]
        found = [*([pair for pair in found if pair[0] == base] or [(base, {})]), *others]
    return [model for model, _ in found], tuple(settings for _, settings in found)


def _check_contiguous(parts: list[Slice]) -> None:
    expected = 0
    for first, end in (part.layers for part in parts if part.layers is not None):
        if first != expected:
            raise UsageError(
                f"layer_range [{first}, {end}] would become layers from {expected}: layers keep their "
                "numbers here, so slices follow each other from 0; correct it, or run mergekit"
            )
        expected = end


def _is_of_whole_models(document: Mapping[str, Any], base: str | None) -> bool:
    """True where models are named and none of them is `BASE+ADAPTER`; malformed rows are found later."""
    parts = document["slices"] if "slices" in document else [{"sources": document["models"]}]
    rows = [
        row
        for part in (parts if isinstance(parts, list) else [])
        for row in (part.get("sources") or () if isinstance(part, dict) else ())
    ]
    names = [row.get("model") for row in rows if isinstance(row, dict)] + [base]
    texts = [name for name in names if isinstance(name, str)]
    return bool(texts) and not any("+" in name for name in texts)


def _base_and_start(models: list[str], named: str | None, method: str) -> tuple[str, str | None]:
    bases = {_adapter(model)[0] for model in models}
    start = None
    if named is not None and method != "slerp":
        base, plus, adapter = named.partition("+")
        bases.add(base)
        start = adapter if plus else None
    if len(bases) != 1:
        raise UsageError(
            f"models of {len(bases)} base models ({shorten(', '.join(sorted(bases)))}); merge adapters of one"
        )
    return bases.pop(), start


def _adapter(model: str) -> tuple[str, str]:
    base, plus, adapter = model.partition("+")
    if not plus or not base or not adapter:
        raise UsageError(
            f"model {shorten(model)} is no BASE+ADAPTER, and another one is; name adapters, or whole models"
        )
    return base, adapter


def _notes(method: str, base: str | None) -> tuple[str, ...]:
    if method not in WHOLE or (base is not None and method != "slerp"):
        return ()
    return (f"{method} turns the deltas; mergekit without a base to count from turns whole weights.",)


def _settings(value: object, method: str) -> Settings:
    if value is None:
        return {}
    found = {}
    for name, setting in as_mapping(value, "parameters").items():
        if name not in NO_EFFECT:
            found[name] = _setting(setting, name)
    unknown = [name for name in found if method_of(method).parameter(name) is None]
    if unknown:
        names = ", ".join(p.name for p in method_of(method).parameters) or "none"
        raise UsageError(f"{method} has no parameter {shorten(unknown[0])}; it has {names}")
    return found


def _setting(value: object, name: str) -> Setting:
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        for row in value:
            _check_keys(row, {"filter", "value"}, f"a value of {name}")
        return tuple(Clause(_numbers(row.get("value"), name), _filter(row, name)) for row in value)
    return (Clause(_numbers(value, name)),)


def _filter(row: Mapping[str, Any], name: str) -> str | None:
    text = row.get("filter")
    return None if text is None or text == "*" else as_text(text, f"filter of {name}")


def _numbers(value: object, name: str) -> tuple[float | bool, ...]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or any(type(v) not in (int, float, bool) for v in values):
        raise UsageError(
            f"{name} {shorten(value)} is no number, list of numbers, or list of filters; correct it"
        )
    return tuple(v if isinstance(v, bool) else float(v) for v in values)


def _check_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in value:
        if key in REFUSED:
            _refuse(key)
        if key not in known:
            raise UsageError(
                f"{where} has the unknown key {shorten(key)}; known are {', '.join(sorted(known))}"
            )


def _refuse(name: str) -> NoReturn:
    raise UsageError(f"{name} is not merged here, {REFUSED[name]}")
