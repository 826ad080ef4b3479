"""``tamp table``: prune by several methods and evaluate on published benchmarks, as one table of retentions."""

import argparse

from tamp.cli import common
from tamp.cli.compare import levels


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["wanda", "sparsegpt", "tamp"],
        help="presets, perhaps with changes, such as das:tokens=text (default: wanda sparsegpt tamp)",
    )
    parser.add_argument(
        "--levels", nargs="+", default=["0.5"], help="sparsities and patterns, such as 0.5 2:4 (default: 0.5)"
    )
    parser.add_argument("--benchmarks", nargs="+", required=True, help="published benchmarks, such as textvqa blink")
    parser.add_argument("--limit", type=int, help="number of questions per benchmark (default: all)")
    parser.add_argument("--data", help="folder with a local copy of each benchmark under its name (default: the hub)")
    parser.add_argument(
        "--protocol", help="prompts and scoring rules: lmms-eval, videollama2 or plain (default: lmms-eval)"
    )
    parser.add_argument("--frames", type=int, help="number of video frames to show as pictures")
    parser.add_argument("--batch-size", type=int, default=8, help="questions answered at once (default: 8)")
    parser.add_argument(
        "--no-likelihood", dest="likelihood", action="store_false", help="do not compare the options by likelihood"
    )
    common.calibration_arguments(parser)
    parser.add_argument("--out", default="table", help="folder to record in; the same command resumes (default: table)")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp.evaluation import retention_table

    asked = levels(options.levels)
    pruned = [method for method in options.methods if method != "dense"]
    needed = any(tamp.Recipe.spelled(method, level).needs_samples for method in pruned for level in asked)
    source, chosen = common.calibration_source(options, options.model, needed)
    settings = retention_table.Settings(
        model=options.model,
        calibration=source,
        chosen={**chosen, "on_error": options.on_error},
        n_samples=options.n_samples,
        calibration_seed=options.calibration_seed,
        limit=options.limit,
        protocol=options.protocol,
        frames=options.frames,
        likelihood=options.likelihood,
        dtype=options.dtype,
    )
    table = retention_table.make(
        settings,
        options.methods,
        asked,
        options.benchmarks,
        out=options.out,
        data=options.data,
        batch_size=options.batch_size,
        device=options.device,
        progress=common.bars(),
    )
    print(retention_table.wide(table).to_string())
    print("\n".join(retention_table.notes(table)))
    if options.likelihood:
        print(f"\nBy likelihood of the options\n{retention_table.wide(table, retention_table.CHOICE).to_string()}")
    print(f"written to {options.out}: table.md, table.html, table.json")
