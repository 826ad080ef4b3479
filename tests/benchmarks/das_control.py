"""Where DAS's gain comes from: the diversity scores, or the rule that shares the budget per linear and not per weight.

    python tests/benchmarks/das_control.py [--limit 1000] [--n 64]

The rule keeps a larger fraction of a small linear even when all scores are equal. So DAS (with Wanda's tokens and criterion)
is run with its own scores, with equal scores, with its scores in reverse order, and per block, where the rule has no small
linears to favour; uniform allocation is Wanda itself.
"""

import argparse
import copy

import quality
import recording
import torch

import tamp
from tamp import evaluation, grid, planning

SCORES = {
    "diversity": lambda scores: scores,
    "equal": lambda scores: [1.0] * len(scores),
    "reversed": lambda scores: reverse_ranks(scores),
}
VARIANTS = [("uniform", None), *((name, "linear") for name in SCORES), ("diversity", "block")]


def reverse_ranks(scores: list[float]) -> list[float]:
    """Give the largest score to the linear that had the smallest, and so on."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    swapped = dict(zip(order, reversed(order)))
    return [scores[swapped[place]] for place in range(len(scores))]


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = tamp.load("mini-llava-next", device="cpu")
    ready = evaluation.prepare(processor, "mini-vqa", options.limit, quality.EVALUATION_SEED)
    samples = tamp.calibration_set("mini-vqa", processor, options.n, seed=0)
    original = planning.das_scores
    rows = []
    try:
        for sparsity in options.sparsities:
            for scores, granularity in VARIANTS:
                recipe = (
                    tamp.Recipe.preset("das", sparsity=sparsity, das_granularity=granularity)
                    if granularity
                    else tamp.Recipe.preset("wanda", sparsity=sparsity)
                )
                change = SCORES.get(scores)
                planning.das_scores = lambda *a, change=change: change(original(*a))
                pruned = copy.deepcopy(model)
                tamp.prune(pruned, samples, recipe, progress=False)
                made = grid.score(evaluation.answers(pruned, processor, ready, progress=False))
                rows.append(
                    {
                        "sparsity": sparsity,
                        "scores": scores,
                        "granularity": granularity,
                        **{name: made[name] for name in ("n", "accuracy", "choice_accuracy", "nll")},
                    }
                )
    finally:
        planning.das_scores = original
    result = {"model": "mini-llava-next", "calibration_samples": options.n, "calibration_seed": 0, "rows": rows}
    recording.write("das_control", result, options.out)
    return result


if __name__ == "__main__":
    print(*main()["rows"], sep="\n")
