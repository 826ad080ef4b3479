"""``tamp mask``: write the zeros of a model as a file of one bit per weight, apply it to a model, or compare two."""

import argparse
import os

from tamp.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    export = actions.add_parser("export", help="write which weights of a pruned model are zero")
    common.model_arguments(export)
    export.add_argument("--out", required=True, help="file to write, such as masks.safetensors")
    apply = actions.add_parser("apply", help="set to zero what a file of masks says, and save the model")
    common.model_arguments(apply)
    apply.add_argument("masks", help="a file written by `tamp mask export`")
    apply.add_argument("--out", required=True, help="folder to save to")
    apply.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    compare = actions.add_parser("compare", help="print how far two files of masks, or the zeros of two models, agree")
    compare.add_argument("first", help="a file written by `tamp mask export`, or a model")
    compare.add_argument("second", help="the other")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import files, packs

    if options.action == "export":
        files.check_file(options.out)  # before the work, not after it
        made = _of_model(options.model, options.device, options.dtype)
        path = packs.write(made, options.out)
        weights = sum(out * width for out, width in made.shapes.values())
        print(f"{path}: {made.sparsity:.4%} of {weights:,} weights are zero, in {path.stat().st_size:,} bytes")
    elif options.action == "apply":
        files.check_free(options.out, options.overwrite)  # before the work, not after it
        made = packs.read(options.masks)
        model, processor = tamp.load(options.model, options.device, options.dtype)
        packs.apply(model, made)
        folder = tamp.save(model, processor, options.out, overwrite=options.overwrite)
        print(f"{made.sparsity:.4%} of {len(made)} matrices set to zero; saved to {folder}")
    else:
        first, second = map(_read, (options.first, options.second))
        table = packs.table(first, second)
        print(table.sort_values("iou", kind="stable").head(10).round(4).to_string(index=False))
        same = (table["agreement"] * table["weights"]).sum() / table["weights"].sum()
        print(
            f"{packs.iou(first, second):.2%} of what either drops is dropped by both; {same:.2%} of all weights agree"
        )


def _of_model(name: str, device: str = "auto", dtype: str = "auto"):
    """Pack the zeros of a model, with the fingerprint of the dense one if its folder records it."""

    import tamp
    from tamp import checkpoint, packs

    model, _ = tamp.load(name, device, dtype)
    saved = os.path.isfile(os.path.join(name, checkpoint.MANIFEST))
    report = checkpoint.read_manifest(name)["report"] if saved else None
    return packs.export(model, (report or {}).get("fingerprint", ""))


def _read(name: str):
    """Read a file of masks, or pack the zeros of a model."""

    from tamp import packs

    return packs.read(name) if os.path.isfile(name) else _of_model(name)
