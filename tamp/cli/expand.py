"""``tamp expand``: write a compact folder as a plain one."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("folder", help="a folder that was saved as compact")
    parser.add_argument("out", help="folder to write, which from_pretrained loads")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp

    print(f"saved to {tamp.expand(options.folder, options.out, options.overwrite)}")
