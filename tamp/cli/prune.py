"""``tamp prune``: prune a model and save it."""

import argparse
import shutil
import tempfile
from pathlib import Path

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
    parser.add_argument(
        "--format",
        default="plain",
        choices=("plain", "compact"),
        help="compact: smaller files, for tamp (default: plain)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import checkpoint, files, ranks

    plan, fixed = None, {}
    if options.plan:
        if given := [name for name in ("sparsity", "pattern", "allocation") if getattr(options, name) is not None]:
            raise UserError(f"A plan fixes the {given[0]}: leave out --{given[0]}, or --plan.")
        plan = tamp.Plan.read(options.plan)
        fixed = {"allocation": "uniform", "pattern": plan.pattern, "sparsity": plan.target}
    recipe = common.recipe_of(options, **fixed)
    files.check_free(options.out, options.overwrite)  # before the work, not after it
    needed = recipe.needs_samples
    source, chosen = common.calibration_source(options, options.model, needed)
    model, processor = tamp.load(options.model, ranks.join(options.device), options.dtype)
    checkpoint.check_savable(model, processor)
    drawn = (options.n_samples, options.calibration_seed, options.on_error)
    samples = tamp.calibration_set(source, processor, *drawn, **chosen) if needed else None
    bars = common.bars() and not ranks.rank()
    report = tamp.prune(model, samples, recipe, progress=bars, plan=plan, allow_partial=options.allow_partial)
    if ranks.rank():  # all have the same model; the first one saves it
        return
    print(report)
    print(f"saved to {_saved(model, processor, options, report)}")


def _saved(model, processor, options: argparse.Namespace, report) -> Path:
    """Save a pruned model; if that fails, in the temporary folder, so that the work is not lost.

    Raises:
        UserError: if it is not where it should be; the message says where it is.
    """
    import tamp
    from tamp import files

    try:
        return tamp.save(model, processor, options.out, report, options.overwrite, options.format)
    except files.Kept:
        raise
    except UserError as error:
        kept = Path(tempfile.mkdtemp(prefix="tamp-"), Path(options.out).expanduser().resolve().name)
        try:
            tamp.save(model, processor, kept, report, format=options.format)
        except UserError:
            shutil.rmtree(kept.parent, ignore_errors=True)
            raise error from None
        raise UserError(f"{error} The pruned model was saved to {kept} instead.") from error
