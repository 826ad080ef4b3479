"""``tamp evaluate``: evaluate a model on a benchmark."""

import argparse

from tamp.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    common.question_arguments(parser, None, "1000 of a shipped set, all of a file")
    common.error_argument(parser)
    parser.add_argument("--out", help="also write the table as CSV")


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import tamp
    from tamp import conversations, files
    from tamp.evaluation import scoring

    if options.out:
        files.check_file(options.out)
    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    model, processor = tamp.load(options.model, options.device, options.dtype)
    asked = (benchmark, options.n_questions, options.question_seed, common.bars(), options.on_error)
    scores = tamp.evaluate(model, processor, *asked)
    print(scoring.in_per_cent(scores).to_string(index=False))
    if options.out:
        files.write_text(options.out, scores.to_csv(index=False))
