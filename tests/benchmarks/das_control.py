"""Where DAS's gain comes from: the diversity scores, or the rule that shares the budget per linear and not per weight.

    python tests/benchmarks/das_control.py [--n-questions 1000] [--n-samples 64]

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
from tamp import planning
from tamp.evaluation import compare, scoring

MODEL, CALIBRATION_SEED = "mini-llava-next", 0
SCORES = {
    "diversity": lambda scores: scores,
    "equal": lambda scores: [1.0] * len(scores),
    "reversed": lambda scores: reverse_ranks(scores),
}
VARIANTS = [("uniform", None), *((name, "linear") for name in SCORES), ("diversity", "block")]
"""(scores, granularity of the budget)."""


def reverse_ranks(scores: list[float]) -> list[float]:
    """Return the scores in reverse order of rank: the linear that had the smallest gets the largest, and so on."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    swapped = dict(zip(order, reversed(order)))
    return [scores[swapped[place]] for place in range(len(scores))]


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-questions", type=int, default=1000)
    parser.add_argument("--n-samples", type=int, default=64)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = tamp.load(MODEL, device="cpu")
    ready = scoring.prepare(processor, "mini-vqa", options.n_questions, quality.QUESTION_SEED)
    samples = tamp.calibration_set("mini-vqa", processor, options.n_samples, CALIBRATION_SEED)
    dense = tamp.plan(model, samples, tamp.Recipe.preset("das"), progress=False)
    rows = []
    for level in options.levels:
        for scores, granularity in VARIANTS:
            recipe, plan = tamp.Recipe.preset("wanda", sparsity=level), None
            if granularity:
                recipe = tamp.Recipe.preset("das", sparsity=level, das_granularity=granularity)
                changed = SCORES[scores](list(dense.scores))
                plan = planning.make_plan(model, dict(zip(dense.linears, changed)), recipe)
            pruned = copy.deepcopy(model)
            tamp.prune(pruned, samples, recipe, progress=False, plan=plan)
            made = compare.score(scoring.answers(pruned, processor, ready, progress=False))
            measured = {name: made[name] for name in ("n_questions", "accuracy", "choice_accuracy", "nll")}
            rows.append({"level": level, "scores": scores, "granularity": granularity, **measured})
    result = {
        "model": MODEL,
        "n_samples": options.n_samples,
        "calibration_seed": CALIBRATION_SEED,
        "rows": rows,
    }
    recording.write("das_control", result, options.out)
    return result


if __name__ == "__main__":
    print(*main()["rows"], sep="\n")
