"""``tamp verify``: check a saved folder against its manifest."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("folder", help="a folder that `tamp prune` or `tamp drop-experts` saved")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp

    manifest = tamp.verify(options.folder)
    report = manifest["report"]
    said = ""
    if report and "sparsity" in report:
        said = f", {report['sparsity']:.4%} of {report['weights']:,} pruned weights are zero"
    elif report:
        said = f", {report['experts']['now']} of {report['experts']['before']} experts per layer"
    print(f"{options.folder}: {len(manifest['files'])} files as saved{said}")
