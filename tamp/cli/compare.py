"""``tamp compare``: run methods side by side on a benchmark."""

import argparse

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["magnitude", "wanda", "amia", "das", "tamp"],
        help="presets, perhaps with changes, such as das:tokens=text,das_cap=0.2 (default: magnitude wanda amia das tamp)",
    )
    parser.add_argument(
        "--levels",
        nargs="+",
        default=["0.5"],
        help="sparsities and patterns, such as 0.5 2:4 'dense|2:4@0.3' (default: 0.5)",
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
    common.samples_argument(parser)
    common.question_arguments(parser, 500, "500")
    parser.add_argument("--text", action="store_true", help="measure perplexity of text and facts too")
    parser.add_argument("--baseline", help="method that the others are compared with (default: wanda, or the first)")
    parser.add_argument("--out", default="comparison.json", help="file to record in (default: comparison.json)")
    parser.add_argument(
        "--on", help="run every cell as a job: slurm or local, perhaps with options of submitit, slurm:name=value,..."
    )
    parser.add_argument("--page", help="also write a page with tables and figures")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import conversations, files
    from tamp.evaluation import pages, results

    if options.page:
        files.check_file(options.page)
    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    if benchmark not in conversations.SETS:
        common.refuse_idle(options, ["question_seed"], f"on {benchmark}: its questions come in their own order")
    asked = levels(options.levels)
    if not any(tamp.Recipe.spelled(method, level).needs_samples for method in options.methods for level in asked):
        idle = ("calibration", "n_samples", "calibration_seeds")
        common.refuse_idle(options, idle, "because the chosen methods use no calibration samples")
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
        asked,
        options.calibration_seeds,
        out=options.out,
        baseline=options.baseline,
        device=options.device,
        progress=common.bars(),
        on=options.on,
    )
    for heading, table in results.tables(made):
        print(f"{heading}\n{table.to_string()}\n")
    if options.page:
        pages.write_comparison(options.page, made)
    print(f"recorded in {options.out}")


def levels(given: list[str]) -> list[float | str]:
    """Read sparsities and patterns."""
    return [level if ":" in level else _share(level) for level in given]


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"A level is a sparsity such as 0.5 or a pattern such as 2:4, not {text!r}.") from error
