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
    parser.add_argument(
        "--format",
        default="plain",
        choices=("plain", "compact"),
        help="compact: smaller files, for tamp (default: plain)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run to the same folder that was stopped, if there is one"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the folder if it exists, and what a stopped run has left"
    )
    parser.add_argument(
        "--offload",
        default="auto",
        choices=("auto", "on", "off"),
        help="leave the weights on the host and bring one block at a time to the device; auto: if they do not fit on it",
    )
    parser.add_argument(
        "--states",
        default="auto",
        choices=("auto", "device", "host"),
        help="where hidden states wait between blocks; auto: on the host if they would fill half of the device",
    )


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import checkpoint, files, onloading, ranks

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
    device = onloading.resolve_device(ranks.join(options.device))
    chosen_here = options.offload == "auto" and device.type == "cuda"
    model, processor = tamp.load(options.model, str(device), options.dtype, chosen_here or options.offload == "on")
    checkpoint.check_savable(model, processor)
    drawn = (options.n_samples, options.calibration_seed, options.on_error)
    samples = tamp.calibration_set(source, processor, *drawn, **chosen) if needed else None
    if chosen_here:
        options.states = placed(model, samples, recipe, device, options.states)
    report = tamp.prune(
        model,
        samples,
        recipe,
        progress=common.bars() and not ranks.rank(),
        plan=plan,
        allow_partial=options.allow_partial,
        states=options.states,
        out=options.out,
        processor=processor,
        resume=options.resume,
        overwrite=options.overwrite,
        format=options.format,
    )
    if ranks.rank():  # all have the same model; the first one saves it
        return
    print(report)
    print(f"saved to {options.out}")


def placed(model, samples: list | None, recipe, device, states: str) -> str:
    """Move a model from the host to a device if it fits, say so, and return where the states wait."""
    import torch

    from tamp import estimate, ranks

    need = estimate.need(estimate.Sizes.of(model), recipe, estimate.lengths(samples))
    choice = estimate.choose(need, torch.cuda.mem_get_info(device)[0])
    if not ranks.rank():
        print(choice.said)
    if not choice.offload:
        model.to(device)
        del model.computed_on
    return choice.states if states == "auto" else states
