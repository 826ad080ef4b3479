"""``tamp convert-videollama2``: convert published VideoLLaMA 2 weights."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("source", help="folder of the published checkpoint")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    from tamp.videollama2.convert import convert

    print(f"saved to {convert(options.source, options.out, options.overwrite)}")
