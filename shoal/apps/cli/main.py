"""The command line `shoal`: which commands there are, and how they end.

A mistake in the arguments ends with exit code 2, any other failure with 1, each with one line on standard
error. Standard output carries results alone. A command's module is imported when the command is run, and
imports what is heavy itself: help and listings come at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

import shoal
from shoal.apps.cli.progress import end_stages, show_stages
from shoal.errors import ShoalError, UsageError
from shoal.server.json_logs import log_json_lines

log = logging.getLogger("shoal.apps.cli")  # also where this module is the program


@dataclass(frozen=True)
class Entry:
    """A command before it is imported.

    Attributes:
        home: `module:function`, the module within `shoal.apps.cli`.
        summary: first line of its help, for listings.
    """

    home: str
    summary: str

    def function(self) -> Callable[..., Any]:
        """The function, imported now."""
        module, name = self.home.split(":")
        return getattr(import_module(f"shoal.apps.cli.{module}"), name)


@dataclass(frozen=True)
class Group:
    """Commands under one word."""

    summary: str
    commands: Mapping[str, Entry | Group]


COMMANDS: dict[str, Entry | Group] = {
    "generate": Entry("generate:generate", "Turn a task description into a LoRA adapter."),
    "ask": Entry("ask:ask", "Answer a request, with an adapter or an expert, or without."),
    "adapt": Entry("experts:adapt", "Find a mixture of experts from a few solved examples."),
    "learn": Entry(
        "library:learn", "Learn a skill into a library, and commit it if no older skill loses by it."
    ),
    "library": Group(
        "Skills that are learnt one after another.",
        {
            "list": Entry("library:list_skills", "List the skills of a library with their scores."),
            "show": Entry("library:show", "Show the versions of a library, and scores over time."),
            "check": Entry("library:check", "Ask the exemplars of every skill again, end to end."),
            "rollback": Entry("library:rollback", "Restore an older version of a library, as a new one."),
            "consolidate": Entry(
                "library:consolidate",
                "Make one adapter of all skills of a library, and say what each of them keeps.",
            ),
            "forget": Entry("library:forget", "Remove a skill and every file of it, for good."),
        },
    ),
    "evaluate": Entry("evaluate:evaluate", "Score the model, adapters and Text-to-LoRA."),
    "benchmark": Entry("benchmark:benchmark", "Compare classic LoRA, Text-to-LoRA and Transformer²."),
    "merge": Entry(
        "merge:merge",
        "Merge adapters, or whole models, into one by a closed form, or by a search for weights.",
    ),
    "compare": Entry("compare:compare", "Compare base models on the same descriptions."),
    "scaling": Entry("compare:scaling", "Measure what an adapter costs as base models grow."),
    "models": Entry("listing:models", "Show the base models and their modules."),
    "skills": Entry("listing:skills", "List the skills, or those in a text."),
    "serve": Entry("serve:serve", "Serve the OpenAI-compatible API until stopped."),
    "ui": Entry("ui:ui", "Show the web page of a service until stopped."),
    "cluster": Group(
        "The service on several machines.",
        {"up": Entry("cluster:up", "Serve from several replicas on a Ray cluster until stopped.")},
    ),
    "train": Group(
        "Train a LoRA for one task or many, the hypernetwork, or experts.",
        {
            "lora": Entry("train:train_lora", "Train a LoRA on one task."),
            "multi-task": Entry("train:train_multi_task", "Train one LoRA on many tasks."),
            "text-to-lora": Entry("train:train_text_to_lora", "Train the hypernetwork."),
            "refining": Entry(
                "refining:train_refining",
                "Learn how a hypernetwork's adapters are refined on a few examples.",
            ),
            "average": Entry("networks:average_networks", "Average the weights of hypernetworks."),
            "fallback": Entry("networks:set_fallback", "Give a hypernetwork the LoRA that nonsense gets."),
            "expert": Entry("experts:train_expert", "Train an expert on verifiable rewards."),
            "dispatch": Entry(
                "experts:train_dispatch", "Train the probe that chooses an expert for a request."
            ),
        },
    ),
    "tune": Group(
        "Find settings within a budget, or see that the defaults stay.",
        {
            "lora": Entry("tune:tune_lora", "Find settings for a LoRA on one task."),
            "expert": Entry("tune:tune_expert", "Find settings for an expert on one task."),
            "refine": Entry(
                "tune:tune_refine",
                "Find settings for going on from the adapter of --start on a few examples.",
            ),
            "export": Entry(
                "tune:export", "Write the settings of a study as a file for `shoal train --config`."
            ),
        },
    ),
    "adapters": Group(
        "The registry of adapters.",
        {
            "list": Entry("registry:list_adapters", "List adapters by name."),
            "show": Entry("registry:show_adapter", "Show one adapter."),
            "import": Entry("registry:import_adapter", "Keep a PEFT LoRA under a name; it is checked first."),
            "export": Entry("adapters:export_adapter", "Write an adapter as a PEFT directory, ZIP or GGUF."),
            "merge": Entry("merge:merge_exactly", "Merge adapters into one, the weighted sum of them."),
            "merge-into-model": Entry(
                "adapters:merge_into_model", "Write the base model with an adapter in its weights."
            ),
            "push": Entry(
                "registry:push_adapter",
                "Send an adapter to a model hub; HF_ENDPOINT and HF_TOKEN are read.",
            ),
            "pull": Entry(
                "registry:pull_adapter",
                "Keep an adapter of a model hub under a name; it is checked first.",
            ),
            "rm": Entry("registry:remove_adapter", "Remove an adapter with all its versions."),
        },
    ),
    "data": Group(
        "Files of solved examples.",
        {
            "check": Entry(
                "tasks:check_data", "Say how a file of solved examples is understood, with three of them."
            )
        },
    ),
    "keys": Group(
        "API keys of the service.",
        {
            "create": Entry("registry:create_key", "Make an API key; it is printed once and kept hashed."),
            "list": Entry("registry:list_keys", "List API keys by id and owner."),
            "revoke": Entry("registry:revoke_key", "End an API key."),
        },
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
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each retry would be a warning; the end is one line
    code = _run()
    end_stages()
    sys.exit(code)


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


class _Table(TyperGroup):
    """Commands that are imported when they are run, and listed without."""

    entries: Mapping[str, Entry | Group]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(self.entries)  # their names, also for suggestions

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry, Group):
            group = _group(entry, _start_group)
            return _named(typer.main.get_command(group), cmd_name)
        from shoal.apps.cli.settings import command

        alone = typer.Typer(**_PLAIN)
        alone.command(cmd_name)(command(entry.function()))
        return _named(typer.main.get_command(alone), cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.entries.items()])


def _named(command: Any, name: str) -> Any:
    command.name = name
    return command


_PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}


def _app() -> typer.Typer:
    return _group(Group("A sentence in, a working LoRA adapter out.", COMMANDS), _start)


def _group(group: Group, start: Callable[..., None]) -> typer.Typer:
    table = type("_Table", (_Table,), {"entries": group.commands})
    app = typer.Typer(help=group.summary, cls=table, **_PLAIN)
    app.callback(invoke_without_command=True)(start)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shoal {shoal.__version__}")
        raise typer.Exit


def _start(
    context: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="log what is done, to standard error"),
    version: bool = typer.Option(
        False, "--version", help="print the version", callback=_print_version, is_eager=True
    ),
) -> None:
    if context.invoked_subcommand == "serve":  # its standard error is a log of JSON lines from the first on
        log_json_lines()
    else:
        show_stages(verbose)
    log.info("loading libraries")
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
    end_stages()
    print("error:", " ".join(str(reason).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
