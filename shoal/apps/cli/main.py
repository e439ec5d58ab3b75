"""The command line `shoal`: which commands there are, and how they end.

A mistake in the arguments ends with exit code 2, any other failure with 1, each with one line on standard
error. Standard output carries results alone. Commands import what is heavy themselves, for a quick `--help`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer

from shoal.apps.cli.benchmark import benchmark
from shoal.apps.cli.cluster import up
from shoal.apps.cli.compare import compare, scaling
from shoal.apps.cli.evaluate import evaluate
from shoal.apps.cli.experts import adapt, train_dispatch, train_expert
from shoal.apps.cli.generate import ask, generate
from shoal.apps.cli.listing import models, skills
from shoal.apps.cli.registry import (
    create_key,
    export_adapter,
    import_adapter,
    list_adapters,
    list_keys,
    pull_adapter,
    push_adapter,
    remove_adapter,
    revoke_key,
    show_adapter,
)
from shoal.apps.cli.serve import serve
from shoal.apps.cli.settings import Output, command
from shoal.apps.cli.train import (
    average_networks,
    set_fallback,
    train_lora,
    train_multi_task,
    train_text_to_lora,
)
from shoal.apps.cli.ui import ui
from shoal.errors import ShoalError, UsageError

log = logging.getLogger(__name__)

COMMANDS: dict[str, Callable[..., Output]] = {
    "generate": generate,
    "ask": ask,
    "adapt": adapt,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "compare": compare,
    "scaling": scaling,
    "models": models,
    "skills": skills,
    "serve": serve,
    "ui": ui,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., Output]]]] = {
    "cluster": ("The service on several machines.", {"up": up}),
    "train": (
        "Train a LoRA for one task or many, the hypernetwork, or experts.",
        {
            "lora": train_lora,
            "multi-task": train_multi_task,
            "text-to-lora": train_text_to_lora,
            "average": average_networks,
            "fallback": set_fallback,
            "expert": train_expert,
            "dispatch": train_dispatch,
        },
    ),
    "adapters": (
        "The registry of adapters.",
        {
            "list": list_adapters,
            "show": show_adapter,
            "import": import_adapter,
            "export": export_adapter,
            "push": push_adapter,
            "pull": pull_adapter,
            "rm": remove_adapter,
        },
    ),
    "keys": (
        "API keys of the service.",
        {"create": create_key, "list": list_keys, "revoke": revoke_key},
    ),
}
# What click raises for mistakes that it finds itself; newer versions of typer carry a copy of click.
_PARSING_ERROR: Any = typer.BadParameter.__base__
INTERRUPTED = 130  # what typer returns after Ctrl-C


def main() -> None:
    """Run `shoal` and exit."""
    if not sys.stderr.isatty():
        # progress bars are for people; transformers reads this when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(_run())


def _run() -> int:
    """The exit code of the command in `sys.argv`; failures that are foreseen become one line."""
    try:
        code = _app()(prog_name="shoal", standalone_mode=False)
    except UsageError as error:
        return _fail(error, 2)
    except ShoalError as error:
        return _fail(error, 1)
    except _PARSING_ERROR as error:
        return _fail(f"{error.format_message().rstrip('.')} (see {_path(error)} --help)", 2)
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # a defect of ours: still one line, and the whole story where it is asked for
        log.info("the failure in full", exc_info=True)
        return _fail(f"unexpected {type(error).__name__}: {error}; `shoal --verbose ...` shows where", 1)
    return _fail("interrupted", 1) if code == INTERRUPTED else int(code or 0)


def _app() -> typer.Typer:
    plain: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}
    app = typer.Typer(help="A sentence in, a working LoRA adapter out.", **plain)
    app.callback(invoke_without_command=True)(_start)
    _add(app, COMMANDS)
    for name, (about, table) in GROUPS.items():
        group = typer.Typer(help=about, **plain)
        group.callback(invoke_without_command=True)(_start_group)
        _add(group, table)
        app.add_typer(group, name=name)
    return app


def _add(group: typer.Typer, table: Mapping[str, Callable[..., Output]]) -> None:
    for name, function in table.items():
        group.command(name)(command(function))


def _start(
    context: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="log what is done, to standard error"),
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s: %(message)s")
    _help_alone(context)


def _start_group(context: typer.Context) -> None:
    _help_alone(context)


def _help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def _path(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "shoal"


def _fail(reason: object, code: int) -> int:
    print("error:", " ".join(str(reason).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
