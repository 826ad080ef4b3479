"""``tamp plan``: decide how much of each linear to drop, or compare two plans."""

import argparse

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "model", nargs="+", help="a shipped name, a folder or a hub id; or: diff FIRST.json SECOND.json"
    )
    common.recipe_arguments(parser, "allocation")
    parser.add_argument("--out", default="plan.json", help="file to write (default: plan.json)")
    common.device_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import files, plans

    if options.model[0] == "diff" and len(options.model) == 3:
        common.refuse_idle(options, options.usual, "on the difference of two plans")
        first, second = map(tamp.Plan.read, options.model[1:])
        table = plans.differences(first, second)
        largest = table["points"].abs().sort_values(ascending=False).index
        print(table.loc[largest].head(10).round(4).to_string(index=False))
        print(f"{plans.distance(first.drops, second.drops):.2%} of the dropped weights lie in other linears")
        return
    if len(options.model) != 1:
        raise UserError("`tamp plan` takes one model, or: tamp plan diff FIRST.json SECOND.json")
    (model,) = options.model
    files.check_file(options.out)
    recipe = common.recipe_of(options)
    needed = recipe.allocation_needs_samples
    source, chosen = common.calibration_source(options, model, needed)
    model, processor = tamp.load(model, options.device, options.dtype, "auto")
    n = min(options.n_samples, recipe.allocation_samples or options.n_samples)
    drawn = (n, options.calibration_seed, options.on_error)
    samples = tamp.calibration_set(source, processor, *drawn, **chosen) if needed else None
    made = tamp.plan(model, samples, recipe, progress=common.bars(), allow_partial=options.allow_partial)
    print(made)
    print(f"written to {made.write(options.out)}")
