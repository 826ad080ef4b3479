"""``tamp prune``: prune a model and save it."""

import argparse

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    common.recipe_arguments(parser, "allocation", "tokens", "criterion", "update")
    parser.add_argument(
        "--plan", help="a file written by `tamp plan`; it takes the place of sparsity, pattern, allocation"
    )
    parser.add_argument("--out", required=True, help="folder to save to")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import files

    plan, fixed = None, {}
    if options.plan:
        if given := [name for name in ("sparsity", "pattern", "allocation") if getattr(options, name) is not None]:
            raise UserError(f"A plan fixes the {given[0]}: leave out --{given[0]}, or --plan.")
        plan = tamp.Plan.read(options.plan)
        fixed = {"allocation": "uniform", "pattern": plan.pattern, "sparsity": plan.target}
    recipe = common.recipe_of(options, **fixed)
    files.check_free(options.out, options.overwrite)  # before the work, not after it
    needed = recipe.needs_samples
    source, chosen = common.calibration_source(options, options.model) if needed else ("", {})
    model, processor = tamp.load(options.model, options.device, options.dtype)
    n, seed = options.n_samples, options.calibration_seed
    samples = tamp.calibration_set(source, processor, n, seed, **chosen) if needed else None
    report = tamp.prune(model, samples, recipe, progress=common.bars(), plan=plan, allow_partial=options.allow_partial)
    print(report)
    print(f"saved to {tamp.save(model, processor, options.out, report=report, overwrite=options.overwrite)}")
