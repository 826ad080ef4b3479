"""``tamp verify``: check a saved folder against its manifest."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("folder", help="a folder that `tamp prune` saved")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp

    manifest = tamp.verify(options.folder)
    report = manifest["report"]
    print(
        f"{options.folder}: {len(manifest['files'])} files as saved"
        + (f", {report['sparsity']:.4%} of {report['weights']:,} pruned weights are zero" if report else "")
    )
