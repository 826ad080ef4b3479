"""The command line: every command parses its options, calls the package and prints the result, one sentence per mistake.

``tamp --help`` imports nothing that is slow to import: a command's arguments are added only if that command was given.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from tamp.errors import UserError
from tamp.zoo import MODELS

DEBUG_HINT = "Run again with --debug to see where."


def main(arguments: list[str] | None = None) -> int:
    """Run ``tamp ...`` and return its exit status: 0, 2 for a user's mistake, 130 when interrupted, 1 for anything else."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.debug else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries, twice each; the end is told below
    transformers.utils.logging.disable_progress_bar()
    try:
        options.run(options)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            raise
        notes = " ".join(getattr(error, "__notes__", []))
        if isinstance(error, KeyboardInterrupt):
            message, status = "interrupted.", 130
        elif isinstance(error, UserError):
            message, status = str(error), 2
        else:
            message, status = f"{type(error).__name__}: {error} {DEBUG_HINT}", 1
        print(f"tamp: {message} {notes}".strip(), file=sys.stderr)
        return status


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; of all commands only the one that was given gets its arguments."""
    parser = argparse.ArgumentParser(prog="tamp", description="Prune multimodal large language models after training.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        made = commands.add_parser(name, help=command.summary, description=command.summary)
        made.set_defaults(run=command.run)
        made.add_argument("--debug", action="store_true", help="show tracebacks")
        if arguments[:1] == [name]:
            command.arguments(made)
    return parser.parse_args(arguments)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a shipped name, a folder or a hub id")
    _device_arguments(parser)


def _device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")


def _recipe_arguments(parser: argparse.ArgumentParser, *axes: str) -> None:
    """Add a preset, a level, a choice per axis, and every option that the tables list for these axes."""
    from tamp.recipe import METHODS, PRESETS, SAMPLES

    parser.add_argument("--preset", default="tamp", help=f"{', '.join(PRESETS)} (default: tamp)")
    parser.add_argument("--sparsity", type=float, help="share of weights to drop (default: 0.5)")
    parser.add_argument("--pattern", help="n:m, such as 2:4, instead of a sparsity")
    for axis in axes:
        parser.add_argument(f"--{axis}", help=f"{', '.join(METHODS[axis])}, instead of the preset's")
    known = {"allocation_samples": SAMPLES}
    known |= {name: option for axis in axes for row in METHODS[axis].values() for name, option in row.options.items()}
    for name, option in known.items():
        kind = type(option.default)
        choices = option.choices or None
        said = f"{option.meaning} (default: {option.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, choices=choices, help=said)
    parser.set_defaults(fields=("sparsity", "pattern", *axes, *known))
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="prune a model that holds much of its decoder in something that tamp does not know, which stays dense",
    )
    parser.add_argument(
        "--calibration", help="a shipped set, a file or a datasets folder (default: the set of a shipped model)"
    )
    _samples_argument(parser)
    parser.add_argument(
        "--calibration-seed",
        "--seed",
        type=int,
        default=42,
        help="random seed for drawing calibration samples (default: 42)",
    )


def _samples_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n-samples", "--n", type=int, default=128, help="number of calibration samples (default: 128)"
    )


def _question_arguments(parser: argparse.ArgumentParser, default: int | None, usual: str) -> None:
    parser.add_argument(
        "--benchmark", help="a shipped set or a file of questions (default: the set of a shipped model)"
    )
    parser.add_argument(
        "--n-questions", "--limit", type=int, default=default, help=f"number of questions (default: {usual})"
    )
    parser.add_argument(
        "--question-seed",
        "--seed",
        type=int,
        default=0,
        help="random seed for drawing the questions of a shipped set (default: 0)",
    )


def _bars() -> bool:
    """Return whether to show progress: on a terminal, not in a log file."""
    return sys.stderr.isatty()


def _recipe(options: argparse.Namespace, **changes):
    import tamp

    asked = {name: getattr(options, name) for name in options.fields if getattr(options, name) is not None}
    return tamp.Recipe.preset(options.preset, **{**changes, **asked})


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _recipe_arguments(parser, "allocation", "tokens", "criterion", "update")
    parser.add_argument(
        "--plan", help="a file written by `tamp plan`; it takes the place of sparsity, pattern, allocation"
    )
    parser.add_argument("--out", required=True, help="folder to save to")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def _prune(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations, files

    plan, fixed = None, {}
    if options.plan:
        if given := [name for name in ("sparsity", "pattern", "allocation") if getattr(options, name) is not None]:
            raise UserError(f"A plan fixes the {given[0]}: leave out --{given[0]}, or --plan.")
        plan = tamp.Plan.read(options.plan)
        fixed = {"allocation": "uniform", "pattern": plan.pattern, "sparsity": plan.target}
    recipe = _recipe(options, **fixed)
    files.check_free(options.out, options.overwrite)  # before the work, not after it
    needed = recipe.needs_samples
    source = conversations.own_set(options.model, options.calibration, "--calibration") if needed else ""
    model, processor = tamp.load(options.model, options.device, options.dtype)
    samples = tamp.calibration_set(source, processor, options.n_samples, options.calibration_seed) if needed else None
    report = tamp.prune(model, samples, recipe, progress=_bars(), plan=plan, allow_partial=options.allow_partial)
    print(report)
    print(f"saved to {tamp.save(model, processor, options.out, report=report, overwrite=options.overwrite)}")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="+", help="a shipped name, a folder or a hub id; or: diff FIRST.json SECOND.json"
    )
    _recipe_arguments(parser, "allocation")
    parser.add_argument("--out", default="plan.json", help="file to write (default: plan.json)")
    _device_arguments(parser)


def _plan(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations, plans

    if options.model[0] == "diff" and len(options.model) == 3:
        first, second = map(tamp.Plan.read, options.model[1:])
        table = plans.differences(first, second)
        largest = table["points"].abs().sort_values(ascending=False).index
        print(table.loc[largest].head(10).round(4).to_string(index=False))
        print(f"{plans.distance(first.drops, second.drops):.2%} of the dropped weights lie in other linears")
        return
    if len(options.model) != 1:
        raise UserError("`tamp plan` takes one model, or: tamp plan diff FIRST.json SECOND.json")
    (model,) = options.model
    recipe = _recipe(options)
    needed = recipe.allocation_needs_samples
    source = conversations.own_set(model, options.calibration, "--calibration") if needed else ""
    model, processor = tamp.load(model, options.device, options.dtype)
    n = min(options.n_samples, recipe.allocation_samples or options.n_samples)
    samples = tamp.calibration_set(source, processor, n, options.calibration_seed) if needed else None
    made = tamp.plan(model, samples, recipe, progress=_bars(), allow_partial=options.allow_partial)
    print(made)
    print(f"written to {made.write(options.out)}")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _question_arguments(parser, None, "1000 of a shipped set, all of a file")
    parser.add_argument("--out", help="also write the table as CSV")


def _evaluate(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations
    from tamp.evaluation import scoring

    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    model, processor = tamp.load(options.model, options.device, options.dtype)
    scores = tamp.evaluate(model, processor, benchmark, options.n_questions, options.question_seed, _bars())
    print(scoring.in_per_cent(scores).to_string(index=False))
    if options.out:
        scores.to_csv(options.out, index=False)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["magnitude", "wanda", "amia", "das", "tamp"],
        help="presets, perhaps with changes, such as das:tokens=text,das_cap=0.2 (default: magnitude wanda amia das tamp)",
    )
    parser.add_argument(
        "--levels", nargs="+", default=["0.5"], help="sparsities and patterns, such as 0.5 2:4 (default: 0.5)"
    )
    parser.add_argument(
        "--calibration-seeds",
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        help="random seeds for drawing calibration samples, a run each (default: 0 1 2)",
    )
    parser.add_argument("--calibration", help="a shipped set or a file (default: the benchmark's)")
    _samples_argument(parser)
    _question_arguments(parser, 500, "500")
    parser.add_argument("--text", action="store_true", help="measure perplexity of text and facts too")
    parser.add_argument("--baseline", help="method that the others are compared with (default: wanda, or the first)")
    parser.add_argument("--out", default="comparison.json", help="file to record in (default: comparison.json)")
    parser.add_argument("--page", help="also write a page with tables and figures")


def _compare(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations
    from tamp.evaluation import pages, results

    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    settings = tamp.Settings(
        model=options.model,
        benchmark=benchmark,
        calibration=options.calibration or benchmark,
        n_questions=options.n_questions,
        question_seed=options.question_seed,
        n_samples=options.n_samples,
        dtype=options.dtype,
        text=options.text,
    )
    made = tamp.compare(
        settings,
        options.methods,
        [level if ":" in level else _share(level) for level in options.levels],
        options.calibration_seeds,
        out=options.out,
        baseline=options.baseline,
        device=options.device,
        progress=_bars(),
    )
    for heading, table in results.tables(made):
        print(f"{heading}\n{table.to_string()}\n")
    if options.page:
        pages.write_comparison(options.page, made)
    print(f"recorded in {options.out}")


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"A level is a sparsity such as 0.5 or a pattern such as 2:4, not {text!r}.") from error


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a folder that `tamp prune` saved")


def _verify(options: argparse.Namespace) -> None:
    import tamp

    manifest = tamp.verify(options.folder)
    report = manifest["report"]
    print(
        f"{options.folder}: {len(manifest['files'])} weight files as saved"
        + (f", {report['sparsity']:.4%} of {report['weights']:,} pruned weights are zero" if report else "")
    )


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of the published checkpoint")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def _convert(options: argparse.Namespace) -> None:
    from tamp.videollama2.convert import convert

    print(f"saved to {convert(options.source, options.out, options.overwrite)}")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    shown = {name: known.demo for name, known in MODELS.items() if known.demo}

    def usual(field: str) -> str:
        return ", ".join(f"{getattr(demo, field)} for {name}" for name, demo in shown.items())

    parser.add_argument("--model", default=next(iter(shown)), choices=shown, help=f"default: {next(iter(shown))}")
    parser.add_argument("--sparsity", type=float, help=f"share of weights to drop (default: {usual('sparsity')})")
    parser.add_argument(
        "--n-questions", "--limit", type=int, help=f"number of questions (default: {usual('n_questions')})"
    )
    parser.add_argument(
        "--n-samples", "--n", type=int, help=f"number of calibration samples (default: {usual('n_samples')})"
    )
    parser.add_argument("--out", default="demo.html", help="page to write (default: demo.html)")
    _device_arguments(parser)


def _demo(options: argparse.Namespace) -> None:
    from tamp.evaluation import demo

    demo.run(
        options.model,
        sparsity=options.sparsity,
        n_questions=options.n_questions,
        n_samples=options.n_samples,
        out=options.out,
        device=options.device,
        dtype=options.dtype,
        progress=_bars(),
        say=lambda line: print(line, flush=True),
    )


class Command(NamedTuple):
    """A command: its summary, the function that adds its arguments, and the one that runs it."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS = {
    "prune": Command("prune a model and save it", _prune_arguments, _prune),
    "plan": Command(
        "decide how much of each linear to drop, and write it to a file; or compare two such files",
        _plan_arguments,
        _plan,
    ),
    "evaluate": Command("evaluate a model on a benchmark", _evaluate_arguments, _evaluate),
    "compare": Command("run methods side by side on a benchmark, with intervals", _compare_arguments, _compare),
    "verify": Command("check a saved folder against its manifest", _verify_arguments, _verify),
    "convert-videollama2": Command(
        "convert published VideoLLaMA 2 weights so that tamp loads them", _convert_arguments, _convert
    ),
    "demo": Command("prune a shipped model, evaluate before and after, write a page", _demo_arguments, _demo),
}

if __name__ == "__main__":
    sys.exit(main())
