"""``tamp plan``: decide how much of each linear to drop, or compare two plans."""

import argparse
from collections.abc import Sequence

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
    from tamp import files

    if options.model[0] == "diff" and len(options.model) == 3:
        common.refuse_idle(options, options.usual, "on the difference of two plans")
        first, second = map(tamp.Plan.read, options.model[1:])
        table = differences(first, second)
        largest = table["points"].abs().sort_values(ascending=False).index
        print(table.loc[largest].head(10).round(4).to_string(index=False))
        print(f"{distance(first.drops, second.drops):.2%} of the dropped weights lie in other linears")
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


def distance(drops: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of the weights dropped by one plan that another with the same total drops in other linears."""
    return sum(abs(a - b) for a, b in zip(drops, other)) / 2 / max(1, sum(drops))


def differences(first, second):
    """Compare two plans (:class:`tamp.Plan`) for the same linears.

    Returns:
        A row per linear: linear, weights, first and second (sparsity under each), points (the second minus the first, in
        percentage points).

    Raises:
        UserError: if they are not for the same linears.
    """
    second.check(dict(zip(first.linears, first.sizes)))
    table = first.table().drop(columns="score").rename(columns={"sparsity": "first"})
    table["second"] = table["linear"].map(second.table().set_index("linear")["sparsity"])
    return table.assign(points=100 * (table["second"] - table["first"]))
