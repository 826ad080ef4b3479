"""``tamp evaluate``: evaluate a model on one benchmark or several."""

import argparse
from pathlib import Path

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    common.question_arguments(parser, None, "1000 of a shipped set, all of anything else", several=True)
    parser.add_argument("--out", help="also write the table as CSV")
    published = parser.add_argument_group("published benchmarks")
    published.add_argument(
        "--data", help="local copy of the benchmark's repository, or a folder of such copies by name (default: the hub)"
    )
    published.add_argument("--protocol", help="whose prompts and rules: lmms-eval or videollama2 (default: lmms-eval)")
    published.add_argument("--batch-size", type=int, help="questions answered at once (default: 8)")
    published.add_argument("--frames", type=int, help="show so many frames of a video as pictures")
    published.add_argument("--records", help="folder to record every answer in; the same command goes on from there")
    published.add_argument(
        "--no-likelihood",
        dest="likelihood",
        action="store_false",
        default=None,
        help="leave out the choice by likelihood",
    )


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import pandas as pd

    import tamp
    from tamp import conversations
    from tamp.evaluation import benchmarks, evaluating, scoring

    names = options.benchmark or [conversations.own_set(options.model, None, "--benchmark")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The benchmark {twice!r} is named twice: leave one out.")
    for name in names:
        evaluating.check_name(name)
    published = _options(options, names)
    model, processor = tamp.load(options.model, options.device, options.dtype)
    for name, known in published.items():
        benchmarks.check(processor, name, known.get("protocol"), known.get("frames"))
    tables = {}
    for name in names:
        of_it = published.get(name, {})
        scores = tamp.evaluate(
            model, processor, name, options.n_questions, options.question_seed, common.bars(), **of_it
        )
        tables[name] = scores
        if len(names) > 1:
            print(f"{name}\n")
        form = benchmarks.in_per_cent if name in published else scoring.in_per_cent
        print(form(scores).to_string(index=False))
        if "f1" in scores.attrs:
            print(f"F1 {100 * scores.attrs['f1']:.1f}")
        if len(names) > 1:
            print()
    if options.out:
        whole = pd.concat(tables, names=["benchmark"]).reset_index("benchmark") if len(tables) > 1 else scores
        whole.to_csv(options.out, index=False)


def _options(options: argparse.Namespace, names: list[str]) -> dict[str, dict]:
    """Return the options of every published benchmark that is asked for.

    Raises:
        UserError: if one is given and no published benchmark is asked for.
    """
    from tamp.evaluation import benchmarks

    given = ("data", "protocol", "batch_size", "frames", "records", "likelihood")
    set_ = {name: getattr(options, name) for name in given if getattr(options, name) is not None}
    published = {}
    for name in (each for each in names if each in benchmarks.TABLE):
        of_it = dict(set_)
        if records := of_it.pop("records", None):
            of_it["recorded"] = Path(records) / f"{name}.jsonl"
        if "data" in of_it and (Path(of_it["data"]) / name).is_dir():
            of_it["data"] = Path(of_it["data"]) / name
        if len(benchmarks.TABLE[name].protocols) == 1 and len(names) > 1:
            of_it.pop("protocol", None)
        published[name] = of_it
    if set_ and not published:
        option = f"--{next(iter(set_)).replace('_', '-')}" if "likelihood" not in set_ else "--no-likelihood"
        raise UserError(f"{option} is for published benchmarks: {', '.join(benchmarks.TABLE)}.")
    return published
