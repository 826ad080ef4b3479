"""``tamp drop-experts``: drop whole experts of a model and save it."""

import argparse

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    parser.add_argument(
        "--keep", default="0.5", help="experts to keep per layer: a number, or a share such as 0.5 (default: 0.5)"
    )
    known = common.method_arguments(parser, "tokens", otherwise="the tokens that count (default: all)")
    parser.set_defaults(tokens="all", fields=known)
    common.calibration_arguments(parser)
    parser.add_argument("--out", required=True, help="folder to save to")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import files
    from tamp.recipe import number

    keep = number(options.keep)
    if isinstance(keep, str):
        raise UserError(f"--keep {keep!r} is not a number: give a number of experts, or a share such as 0.5.")
    chosen = {name: getattr(options, name) for name in options.fields if getattr(options, name) is not None}
    files.check_free(options.out, options.overwrite)  # before the work, not after it
    source, drawn = common.calibration_source(options, options.model)
    model, processor = tamp.load(options.model, options.device, options.dtype)
    samples = tamp.calibration_set(
        source, processor, options.n_samples, options.calibration_seed, options.on_error, **drawn
    )
    report = tamp.drop_experts(model, samples, keep, options.tokens, progress=common.bars(), **chosen)
    print(report)
    print(f"saved to {tamp.save(model, processor, options.out, report=report, overwrite=options.overwrite)}")
