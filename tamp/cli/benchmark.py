"""``tamp benchmark``: run lmms-eval's tasks on a dense model and pruned ones, and compare them question by question."""

import argparse
import os
import sys
from pathlib import Path

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("dense", help="the dense model: a shipped name, a folder or a hub id")
    parser.add_argument("pruned", nargs="*", help="pruned versions of it")
    parser.add_argument("--tasks", nargs="+", required=True, help="tasks of lmms-eval, such as textvqa_val mme")
    parser.add_argument("--limit", type=int, help="number of questions per task (default: all)")
    parser.add_argument(
        "--data",
        nargs="+",
        default=(),
        metavar="TASK:SPLIT=FILE",
        help="local parquet files in place of a task's own data",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of an environment with lmms-eval (default: this one)"
    )
    parser.add_argument("--out", help="also write every answer and the table as JSON")
    common.device_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    from tamp.evaluation import lmms_table, results

    data: dict[str, dict[str, str]] = {}
    for given in options.data:
        where, sign, file = given.partition("=")
        task, mark, split = where.partition(":")
        if not (sign and mark and os.path.isfile(file)):
            raise UserError(f"--data takes TASK:SPLIT=FILE, an existing parquet file, not {given!r}.")
        if task not in options.tasks:
            raise UserError(
                f"--data {given} is for a task that --tasks does not name: add it there, or leave this out."
            )
        data.setdefault(task, {})[split] = str(Path(file).resolve())
    models = [options.dense, *options.pruned]
    if len(set(models)) < len(models):
        raise UserError("A model is named twice: leave one out.")
    made = lmms_table.benchmark(
        models,
        options.tasks,
        options.limit,
        data=data,
        device=options.device,
        dtype=options.dtype,
        python=options.python,
    )
    table = lmms_table.compare(made)
    print(table.round(2).to_string(index=False, na_rep="–"))
    if options.out:
        rows = [
            {name: None if value != value else value for name, value in row.items()} for row in table.to_dict("records")
        ]
        print(f"recorded in {results.write_result(options.out, {**made, 'table': rows})}")
