"""The command line: every command parses its options, calls the package and prints the result, one sentence per mistake.

``tamp --help`` imports nothing that is slow to import: a command's arguments are added only if that command was given.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tamp.errors import UserError

DEBUG_HINT = "Run again with --debug to see where."


def main(arguments: list[str] | None = None) -> int:
    """Run ``tamp ...`` and return its exit status: 0, 2 for a user's mistake, 130 when interrupted, 1 for anything else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    interrupted = False

    def interrupt(number, frame):  # what is being imported may turn the exception into one of its own
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGINT, interrupt)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # in a locale that cannot write everything
    try:
        _check_folder()
        options = parse(arguments)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and arguments[:1] != ["prune"]:
            raise UserError("Only `tamp prune` shares its work among processes: run this command without torchrun.")
        _quiet(options.debug)
        options.run(options)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        notes = " ".join(getattr(error, "__notes__", []))
        if interrupted or isinstance(error, KeyboardInterrupt):
            message, status = "interrupted.", 130
        elif isinstance(error, UserError):
            message, status = str(error), 2
        else:
            message, status = f"{type(error).__name__}: {error} {DEBUG_HINT}", 1
        print(f"tamp: {message} {notes}".strip(), file=sys.stderr)
        return status
    finally:
        with contextlib.suppress(ValueError, UnboundLocalError):
            signal.signal(signal.SIGINT, before)


def _check_folder() -> None:
    """Check that the current folder is there, without which torch does not even start.

    Raises:
        UserError: if it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("The current folder was deleted: change to one that is there.") from error


def _quiet(debug: bool) -> None:
    """Leave on the screen what a command says, and warnings."""
    logging.basicConfig(format="%(message)s", level=logging.INFO if debug else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries, twice each; the end is told below
    transformers.utils.logging.disable_progress_bar()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; ``usual`` of what is returned has the spelling and the default of every option."""
    parser = parser_of(next((word for word in arguments if not word.startswith("-")), ""))
    actions = [action for each in parsers(parser) for action in each._actions if action.default != argparse.SUPPRESS]
    usual = {action.dest: (action.option_strings[0], action.default) for action in actions if action.option_strings}
    return argparse.Namespace(**{"debug": False, "usual": usual, **vars(parser.parse_args(arguments))})


def parser_of(command: str) -> argparse.ArgumentParser:
    """Make the parser; of all commands only the one that is given gets its arguments."""
    parser = argparse.ArgumentParser(prog="tamp", description="Prune multimodal large language models after training.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, known in COMMANDS.items():
        made = commands.add_parser(name, help=known.summary, description=known.summary)
        if name == command:
            module = importlib.import_module(f"tamp.cli.{known.module}")
            module.arguments(made)
            made.set_defaults(run=module.run)
    for each in parsers(parser):
        each.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its commands, whatever their depth."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


class Command(NamedTuple):
    """A command: its summary, and the module of this folder whose `arguments` adds its arguments and whose `run` runs it."""

    summary: str
    module: str


COMMANDS = {
    "prune": Command("prune a model and save it", "prune"),
    "drop-experts": Command("drop whole experts of a model and save the smaller model", "drop_experts"),
    "doctor": Command("say what pruning a model takes and what comes of it, before anything is loaded", "doctor"),
    "plan": Command(
        "decide how much of each linear to drop, and write it to a file; or compare two such files", "plan"
    ),
    "evaluate": Command("evaluate one or more models on benchmarks", "evaluate"),
    "compare": Command("run methods side by side on a benchmark, with intervals", "compare"),
    "table": Command(
        "prune by several methods, evaluate on published benchmarks, write a table of retentions", "table"
    ),
    "benchmark": Command("run lmms-eval tasks on a dense model and pruned ones, and compare them", "benchmark"),
    "verify": Command("check a saved folder against its manifest", "verify"),
    "mask": Command("write the zeros of a model to a file, apply them to a model, or compare two", "mask"),
    "expand": Command("convert a compact folder to a plain one", "expand"),
    "convert-videollama2": Command("convert published VideoLLaMA 2 weights so that tamp loads them", "convert"),
    "demo": Command("prune a shipped model, evaluate before and after, write a page", "demo"),
}
