"""The rules of the house that no linter knows: imports go down, nothing unsafe is loaded, names hold."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import shoal

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "shoal").rglob("*.py"))

LEVELS = {
    "errors": 0,
    "config": 0,
    "file_failures": 0,
    "files": 0,
    "memory": 0,
    "leash": 0,
    "environment": 0,
    "lora": 1,
    "attachment": 1,
    "svf": 1,
    "expert_attachment": 1,
    "row_adapters": 1,
    "sampling": 1,
    "logistic": 0,
    "familiarity": 1,
    "heads": 1,
    "hypernetwork": 1,
    "grading": 1,
    "metrics": 1,
    "nonsense": 1,
    "reports": 1,
    "monitoring": 1,
    "client": 1,
    "client_failures": 1,
    "readings": 1,
    "skill_check": 1,
    "model_source": 2,
    "backbone_shape": 2,
    "backbone": 2,
    "kv_cache": 2,
    "description_states": 3,
    "task_embedding": 2,
    "skills": 2,
    "skill_features": 2,
    "task_records": 2,
    "task_files": 2,
    "hub_tasks": 2,
    "puzzles": 2,
    "procedural": 2,
    "tasks": 2,
    "model_card": 2,
    "peft_format": 2,
    "adapter_store": 2,
    "export": 2,
    "registry_schema": 0,
    "migrations": 0,
    "database": 1,
    "adapter_files": 2,
    "registry": 2,
    "adapter_import": 2,
    "adapter_archive": 2,
    "adapter_hub": 2,
    "api_keys": 2,
    "decompositions": 2,
    "expert_store": 2,
    "rewards": 2,
    "hypernetwork_store": 2,
    "forward": 3,
    "decoding": 3,
    "engine": 3,
    "evaluation": 3,
    "controls": 3,
    "dispatch": 3,
    "mixture_search": 3,
    "probe_store": 3,
    "expert_set": 3,
    "training": 4,
    "serving": 4,
    "vllm": 5,
    "generated_adapter": 2,
    "released": 2,
    "text_to_lora": 5,
    "transformer2": 5,
    "service": 6,
    "recipes": 6,
    "expert_recipe": 6,
    "dispatch_recipe": 6,
    "integration": 6,
    "multiple_choice": 5,
    "base_ability": 5,
    "respondents": 5,
    "scaling": 6,
    "comparison": 6,
    "benchmark": 6,
    "apps": 7,
    "": 8,  # shoal/__init__.py
}
LIBRARIES_ABOVE_L1 = {"transformers", "tokenizers", "sentence_transformers", "huggingface_hub", "peft"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def room(dotted: str) -> str:
    """`shoal.training.loop` -> `training`; `shoal` -> the empty string."""
    return (dotted.split(".") + [""])[1]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole module name"
            if node.module == "shoal":
                yield from (f"shoal.{a.name}" if a.name in LEVELS else "shoal" for a in node.names)
            else:
                yield node.module


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_imports_go_down(path: Path) -> None:
    here = room(dotted_name(path))
    assert here in LEVELS, f"{path.name}: give it a level in this test's table"
    for name in imports(path):
        library = name.split(".")[0]
        if library == "shoal":
            there = room(name)
            assert there in LEVELS and LEVELS[there] <= LEVELS[here], f"{dotted_name(path)} imports {name}"
        elif LEVELS[here] <= 1:
            assert library not in LIBRARIES_ABOVE_L1, f"{dotted_name(path)} imports {library}"


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


def test_every_module_is_in_the_documentation() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"automodule:: (\S+)", pages))
    assert documented == {dotted_name(path) for path in MODULES if path.name != "__init__.py"}


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
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_the_documented_path_is_the_library() -> None:
    run_python(
        "from src.core.training.sakana_ai_methods import "
        "SakanaAIIntegration, TextToLoRAConfig, Transformer2Config\n"
        "import shoal.config, shoal.integration\n"
        "assert SakanaAIIntegration is shoal.integration.SakanaAIIntegration\n"
        "assert TextToLoRAConfig is shoal.config.TextToLoRAConfig\n"
        "assert Transformer2Config is shoal.config.Transformer2Config\n"
    )


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
