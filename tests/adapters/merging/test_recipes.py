"""Recipes in mergekit's YAML: read as mergekit reads them, written for it, and refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.adapters.merging.mergekit_reader import REFUSED as BY_NAME
from shoal.adapters.merging.mergekit_reader import parse_recipe, read_recipe
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.adapters.merging.recipe import Clause, Recipe, Slice, constant
from shoal.errors import ShoalError, UsageError

MODELS = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: base+adapters/a
    parameters:
      weight: 0.5
      density: [0.2, 0.4, 1.0]
  - model: base+adapters/b
    parameters:
      weight:
        - filter: q_proj
          value: [0, 1]
        - value: 0.3
parameters:
  density: 0.8
  normalize: false
  int8_mask: true
dtype: bfloat16
"""
SLICES = """
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base+a, layer_range: [0, 2], parameters: {weight: [0, 1]}}
      - {model: base+b, layer_range: [0, 2]}
    parameters: {weight: 2}
  - sources:
      - {model: base+a, layer_range: [2, 4]}
      - {model: base+b, layer_range: [2, 4]}
parameters: {weight: 3}
"""


def q(layer: int, role: str = "q_proj") -> str:
    return f"model.layers.{layer}.self_attn.{role}"


def test_parameters_are_of_the_parent_else_of_the_recipe() -> None:
    recipe = parse_recipe(MODELS)
    assert (recipe.base_model, recipe.parents, recipe.dtype) == (
        "base",
        ("adapters/a", "adapters/b"),
        "bfloat16",
    )
    values = recipe.values(q(1, "v_proj"), num_layers=3)
    assert values["weight"].tolist() == [0.5, 0.3] and values["density"].tolist() == [0.4, 0.8]
    assert values["normalize"] is False and values["lambda"] == 1.0


def test_gradients_go_from_the_first_layer_to_the_last() -> None:
    recipe = parse_recipe(MODELS)
    density = [float(recipe.values(q(layer), num_layers=5)["density"][0]) for layer in range(5)]
    assert density == pytest.approx([0.2, 0.3, 0.4, 0.7, 1.0])
    assert float(recipe.values(q(1), num_layers=3)["weight"][1]) == 0.5
    with pytest.raises(UsageError, match="a gradient needs"):
        recipe.values("lm_head", num_layers=3)


def test_slices_keep_layer_numbers_and_have_gradients_of_their_own() -> None:
    recipe = parse_recipe(SLICES)
    assert [part.layers for part in recipe.slices] == [(0, 2), (2, 4)]
    weights = [recipe.values(q(layer), num_layers=4)["weight"].tolist() for layer in range(4)]
    assert weights == [[0, 2], [1, 2], [3, 3], [3, 3]]
    with pytest.raises(UsageError, match="no slice of the recipe has the layer"):
        recipe.values(q(4), num_layers=5)


def test_a_slice_of_one_layer_has_the_last_value_of_a_gradient_as_mergekit_has() -> None:
    part = Slice((1, 2), shared={"lambda": (Clause((0.2, 0.9)),)})
    recipe = Recipe("task_arithmetic", ("a", "b"), (Slice((0, 1)), part))
    assert recipe.values(q(1), num_layers=2)["lambda"] == 0.9


def test_slerp_goes_from_the_base_model_to_the_other() -> None:
    recipe = parse_recipe(
        "{merge_method: slerp, base_model: m+b, models: [{model: m+a}], parameters: {t: 0.3}}"
    )
    assert recipe.parents == ("b", "a") and recipe.start is None and "whole weights" in recipe.notes[0]


def test_an_adapter_as_base_model_is_the_start() -> None:
    recipe = parse_recipe("{merge_method: ties, base_model: m+s, models: [{model: m+a}, {model: m+b}]}")
    assert (recipe.base_model, recipe.start, recipe.parents) == ("m", "s", ("a", "b"))


@pytest.mark.parametrize("text", [MODELS, SLICES])
def test_what_is_written_is_read_as_the_same(text: str) -> None:
    recipe = parse_recipe(text)
    again = parse_recipe(write_recipe(recipe, "base"))
    for layer in range(3):
        one, two = (r.values(q(layer), num_layers=4) for r in (recipe, again))
        assert {n: str(v) for n, v in one.items()} == {n: str(v) for n, v in two.items()}
    assert again.parents == recipe.parents and again.method == recipe.method


def test_what_mergekit_lacks_is_said_at_the_top() -> None:
    assert write_recipe(Recipe.of("regmean", ["a", "b"]), "base").startswith("# mergekit has no regmean")
    written = parse_recipe(write_recipe(Recipe.of("slerp", ["a", "b"], parameters={"t": 0.3}), "base"))
    assert written.method == "nuslerp" and written.values("q")["weight"].tolist() == [0.7, 0.3]


def test_a_path_that_a_recipe_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a\+b has a '\+'"):
        write_recipe(Recipe.of("linear", ["a+b", "c"]), "base")


def test_gradients_of_slerp_become_those_of_nuslerp() -> None:
    part = Slice((0, 3), shared={"t": (Clause((0.0, 1.0), "q_proj"),)})
    again = parse_recipe(write_recipe(Recipe("slerp", ("a", "b"), (part,)), "base"))
    weights = [again.values(q(1, role))["weight"].tolist() for role in ("q_proj", "v_proj")]
    assert weights == [[0.5, 0.5], [0.5, 0.5]] and again.values(q(2))["weight"].tolist() == [0, 1]


def test_a_slice_writes_every_setting() -> None:
    part = Slice(
        (0, 2), ({"weight": (Clause((0.0, 1.0)),)}, {"weight": constant(0.5)}), {"normalize": constant(True)}
    )
    again = parse_recipe(write_recipe(Recipe("ties", ("a", "b"), slices=(part,)), "base"))
    assert again.slices == (part,)


PAIR = "models: [{model: m+a}, {model: m+b}]"
REFUSED = {
    "merge_method: passthrough\n" + PAIR: "passthrough is not merged here, which makes another model",
    "merge_method: nearswap\n" + PAIR: "nearswap is not merged here",
    "merge_method: linear\ntokenizer_source: union\n" + PAIR: "tokenizer_source is not merged here",
    "base_model: m\ngate_mode: hidden\nexperts: []": "gate_mode is not merged here",
    "merge_method: linear\nmodel: x\n" + PAIR: "unknown key 'model'; known are base_model",
    "merge_method: magic\n" + PAIR: "'magic' is no merge method",
    "merge_method: linear\nmodels: [{model: m+a, weight: 1}]": "a model has the unknown key 'weight'",
    "merge_method: linear\nparameters: {gamma: 1}\n" + PAIR: "linear has no parameter 'gamma'",
    "merge_method: ties\nparameters: {density: high}\n" + PAIR: "density 'high' is no number",
    "merge_method: linear\ndtype: int8\n" + PAIR: "dtype 'int8' is none of float32",
    "merge_method: linear\nmodels: [{model: m}, {model: m+b}]": "model 'm' is no BASE\\+ADAPTER",
    "merge_method: linear\nmodels: [{model: m+a}, {model: n+b}]": "models of 2 base models",
    "merge_method: slerp\n" + PAIR: "slerp needs base_model",
    "merge_method: linear\n": "either models or slices",
    "merge_method: linear\nmodels: []": "models is \\[\\], not a list",
    "merge_method: linear\nmerge_method: ties\n" + PAIR: "'merge_method' is given twice",
    "just text": "is 'just text', not `name: value` lines",
    "a: [": "not valid YAML",
    "[" * 100_000: "nested deeper than 32",
    "x: !!python/object/apply:os.system [ls]": "not valid YAML",
    "a: &a [1]\nb: [*a, *a]": "YAML aliases",
    "x: [" + "1," * 5_001 + "]": "more than 5000 values",
    SLICES.replace("[2, 4]", "[1, 3]"): "would become layers from 2",
    SLICES.replace(
        "b, layer_range: [0, 2]", "b, layer_range: [1, 3]"
    ): "a slice that moves layers is a new model",
    SLICES.replace("[0, 2]", "all"): "must be \\[first, behind the last\\]",
    SLICES.replace("base+b, layer_range: [2", "base+c, layer_range: [2"): "the slices have different models",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_other_documents_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[text]) as error:
        parse_recipe(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("name", BY_NAME)
def test_what_makes_another_model_is_refused_by_name(name: str) -> None:
    texts = f"merge_method: {name}\n{PAIR}", f"merge_method: linear\n{name}: x\n{PAIR}"
    for text in texts:
        with pytest.raises(UsageError, match=f"{name} is not merged here, which makes another model"):
            parse_recipe(text)


def test_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text("#" * 300_000)
    with pytest.raises(UsageError, match="more than 262144 bytes"):
        read_recipe(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_recipe(path)
    with pytest.raises(ShoalError, match="recipe.yml"):
        read_recipe(tmp_path / "no" / "recipe.yml")
