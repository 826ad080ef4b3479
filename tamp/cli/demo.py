"""``tamp demo``: prune a shipped model, evaluate before and after, write a page."""

import argparse

from tamp.cli import common
from tamp.zoo import MODELS


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    shown = {name: known.demo for name, known in MODELS.items() if known.demo}

    def usual(field: str) -> str:
        return ", ".join(f"{getattr(demo, field)} for {name}" for name, demo in shown.items())

    parser.add_argument("--model", default=next(iter(shown)), choices=shown, help=f"default: {next(iter(shown))}")
    parser.add_argument("--sparsity", type=float, help=f"share of weights to drop (default: {usual('sparsity')})")
    parser.add_argument(
        "--n-questions", "--limit", type=int, help=f"number of questions (default: {usual('n_questions')})"
    )
    parser.add_argument(
        "--n-samples", "--n", type=int, help=f"number of calibration samples (default: {usual('n_samples')})"
    )
    parser.add_argument("--out", default="demo.html", help="page to write (default: demo.html)")
    common.device_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    from tamp.evaluation import demo

    demo.run(
        options.model,
        sparsity=options.sparsity,
        n_questions=options.n_questions,
        n_samples=options.n_samples,
        out=options.out,
        device=options.device,
        dtype=options.dtype,
        progress=common.bars(),
        say=lambda line: print(line, flush=True),
    )
