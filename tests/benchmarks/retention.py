"""A table of retentions on published benchmarks by name, as ``tamp table`` makes it, of a shipped model on the fixtures.

    python tests/benchmarks/retention.py [--work FOLDER]

The questions are the records of tests/fixtures/benchmarks: the published layout, with this project's own pictures. The model
knows no letters, so it is asked in the protocol ``plain``. A stopped run goes on with the same ``--work``.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import recording

from tamp.evaluation import retention_table

NAME = "retention"
FIXTURES = recording.ROOT / "tests" / "fixtures" / "benchmarks"
MODEL = "mini-llava-next"
METHODS = ("wanda", "sparsegpt", "das", "amia", "tamp")
LEVELS = (0.7,)
BENCHMARKS = ("textvqa", "blink", "pope")


def main(arguments: list[str] | None = None) -> dict:
    """Run what is missing, record and return."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--levels", nargs="+", type=float, default=LEVELS)
    parser.add_argument("--limit", type=int, help="questions per benchmark (default: all of the fixture)")
    parser.add_argument("--n-samples", type=int, default=64)
    parser.add_argument("--work", default="retention", help="folder of the cells (default: %(default)s)")
    parser.add_argument("--out", default=recording.RESULTS, type=Path)
    options = parser.parse_args(arguments)
    settings = retention_table.Settings(
        model=MODEL,
        calibration="mini-vqa",
        chosen={},
        n_samples=options.n_samples,
        limit=options.limit,
        protocol="plain",
    )
    retention_table.make(
        settings, options.methods, options.levels, BENCHMARKS, out=options.work, data=FIXTURES, device="cpu"
    )
    made = json.loads((Path(options.work) / "table.json").read_text())
    result = {name: made[name] for name in ("settings", "benchmarks", "rows")}
    recording.write(NAME, result, options.out)
    return result


def table(record: dict) -> str:
    """Write the page's table from the record."""
    return retention_table.markdown(pd.DataFrame(record["rows"])).rstrip()


if __name__ == "__main__":
    print(table(main()))
