"""How much of a score is rounding: cells of the confirmation once more, with the sums of H in the other type.

    python tests/benchmarks/rounding.py

SparseGPT sums H in float64 and the updates in float32; here it is the reverse, on the same samples and questions. Both are
right; what differs between them no interval over questions or calibration seeds contains.
"""

import dataclasses
from functools import partial
from unittest import mock

import search
import torch
import update_search

from tamp import criteria, updates
from tamp.evaluation import results

MODEL = "smol-llava-next"
LEVELS = (0.6,)


def main() -> dict:
    """Run the cells that are missing, and return them."""
    with mock.patch.dict(criteria.CRITERIA), mock.patch.dict(updates.UPDATES):
        exchange()
        methods = update_search.confirmed()
        return search.run(MODEL, update_search.CONFIRM, methods, LEVELS, "update_rounding", "sparsegpt", text=False)


def exchange() -> None:
    """Give SparseGPT sums in float32, and the updates sums in float64."""
    for table, name, dtype in (
        (criteria.CRITERIA, "sparsegpt", torch.float32),
        (updates.UPDATES, "least_squares", torch.float64),
        (updates.UPDATES, "admm", torch.float64),
    ):
        table[name] = dataclasses.replace(table[name], statistic=partial(criteria.Hessian, dtype=dtype))


def table(first: dict, second: dict) -> str:
    """Write per method and level the accuracy under either type, and how far apart single runs are."""
    levels = results.levels(second)
    lines = [f"| `{second['model']}` | {' | '.join(map(results.level_name, levels))} |"]
    lines.append("|---" * (len(levels) + 1) + "|")
    for method in results.methods(second):
        row = []
        for level in levels:
            pairs = list(zip(*(results.cells_of(grid, method, level) for grid in (first, second))))
            apart = [100 * abs(one["accuracy"] - other["accuracy"]) for one, other in pairs]
            means = [100 * results.mean([pair[i] for pair in pairs], "accuracy") for i in (0, 1)]
            row.append(f"{means[0]:.1f}, {means[1]:.1f} (at most {max(apart):.1f})")
        lines.append(f"| `{update_search.called(method)}` | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
