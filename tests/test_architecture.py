"""The rules of the house that no linter knows: nothing unsafe is loaded, names hold.

That imports go down is checked by import-linter, whose contracts stand in `pyproject.toml`.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import shoal

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "shoal").rglob("*.py"))

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole module name"
            yield node.module


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_nothing_unsafe_is_loaded(path: Path) -> None:
    unsafe = {name for name in imports(path) if name.split(".")[0] in UNSAFE_MODULES}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "torch.save"}:
            unsafe.add(f"{ast.unparse(node)}, line {node.lineno}")
        if isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            unsafe |= set() if off else {f"{node.arg}, line {node.lineno}"}
    assert not unsafe, f"{dotted_name(path)}: {unsafe}; tensors are kept as safetensors"


def narrows(test: ast.expr) -> bool:
    """Whether an asserted expression only tells a type checker what a value is."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return all(map(narrows, test.values))
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot):
        return ast.unparse(test.comparators[0]) == "None" and len(test.ops) == 1
    return isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance"


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_nothing_is_checked_by_assert(path: Path) -> None:
    """`python -O` leaves assertions out (vLLM, CVE-2026-41523), so no check may be one."""
    asserted = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Assert)]
    checks = [f"line {node.lineno}: {ast.unparse(node.test)}" for node in asserted if not narrows(node.test)]
    assert not checks, f"{dotted_name(path)} checks by assert: {checks}; raise an error"


SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")])


def borrowed(code: str) -> Iterator[tuple[str, str]]:
    """Modules of `shoal` that code imports, with the names from them; also in code that is a string of it."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "__name__") for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            with suppress(SyntaxError):  # a sentence
                yield from borrowed(node.value)


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "shoal"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_scripts_take_from_shoal_is_there(path: Path) -> None:
    for module, name in borrowed(path.read_text("utf-8")):
        found = importlib.import_module(module)
        there = hasattr(found, name) or (
            hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}")
        )
        assert there, f"{path.name} imports {name} from {module}, which has none"


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=600)


def test_the_documented_path_is_the_library() -> None:
    documented = importlib.import_module("src.core.training.sakana_ai_methods")
    assert documented.SakanaAIIntegration is shoal.integration.SakanaAIIntegration
    assert documented.TextToLoRAConfig is shoal.config.TextToLoRAConfig
    assert documented.Transformer2Config is shoal.config.Transformer2Config


def test_importing_shoal_loads_no_library() -> None:
    run_python("import sys, shoal\nassert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)")


def test_generating_an_adapter_needs_no_extra() -> None:
    extras = [
        "accelerate",
        "cma",
        "tensorboard",
        "rouge_score",
        "sacrebleu",
        "matplotlib",
        "prometheus_client",
        "lm_eval",
        "datasets",
        "reasoning_gym",
        "peft",
    ]
    run_python(
        f"import sys\nsys.modules.update(dict.fromkeys({extras}))\n"  # None makes an import fail
        "import shoal.integration, shoal.text_to_lora.generator, shoal.apps.cli.main"
    )


@pytest.mark.parametrize("name", shoal.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(shoal, name).__module__.startswith("shoal.")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LoRa'"):
        _ = shoal.LoRa
