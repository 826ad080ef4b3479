"""Accuracy against the weight that text has in the statistic: from visual tokens alone to text alone.

    python tests/benchmarks/text_share.py

Wanda's mean square with a fixed share of its mass from text tokens, the rest from the others, on smol-llava-next. In a plain
mean that share is whatever it happens to be, a few per cent.
"""

import search
import update_search

from tamp.evaluation import results

MODEL = "smol-llava-next"
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
METHODS = ("wanda", *(f"wanda:tokens=balanced,text_share={share}" for share in SHARES))
ASKED = {**update_search.CONFIRM, "n_questions": 200}


def main() -> dict:
    """Run the cells that are missing, and return them."""
    return search.run(MODEL, ASKED, METHODS, (0.5,), "text_share", "wanda", text=False)


def table(grid: dict) -> str:
    """Write accuracy, with its interval, and likelihood per share."""
    lines = ["| share of text | accuracy % | answer NLL |", "|---|---|---|"]
    for method in METHODS:
        cells = results.cells_of(grid, method, 0.5)
        points, low, high = results.interval(cells)
        name = "as it is (`wanda`)" if method == "wanda" else f"{100 * float(method.rpartition('=')[2]):.0f} %"
        lines.append(f"| {name} | {points:.1f} [{low:.1f}, {high:.1f}] | {results.mean(cells, 'nll'):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
