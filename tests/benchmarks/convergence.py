"""How many samples a DAS plan needs: the plan from few samples against the plan from many, and against other samples.

    python tests/benchmarks/convergence.py [--n 256] [--seeds 5]

The distance of two plans is the share of all dropped weights that one of them would drop elsewhere. The curve sets the
default of ``Recipe.allocation_samples``.
"""

import argparse

import recording
import torch

import tamp
from tamp import calibration, models, planning
from tamp.plans import distance


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = tamp.load("mini-llava-next", device="cpu")
    stack = list(models.blocks(model).values())
    sizes = [linear.weight.numel() for linear in models.all_linears(model).values()]
    per_block = [len(models.linears(block)) for block in stack]
    recipe = tamp.Recipe.preset("das", sparsity=0.6)
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= options.n]

    def plan(captured: list) -> list[int]:
        with torch.no_grad():
            scores = planning.das_scores(stack, captured, recipe, progress=False)
        return planning.share_out(sizes, per_block, scores, recipe)

    every = plan(calibration.capture(model, tamp.calibration_set("mini-vqa", processor, options.n, seed=1000), False))
    curve = []
    for n in counts:
        apart = []
        for seed in range(options.seeds):
            captured = calibration.capture(model, tamp.calibration_set("mini-vqa", processor, n, seed=seed), False)
            apart.append(distance(plan(captured), every))
        curve.append(
            {"samples": n, "distance_mean": round(sum(apart) / len(apart), 5), "distance_max": round(max(apart), 5)}
        )
    uniform = planning.share_out(sizes, per_block, None, recipe)
    result = {
        "model": "mini-llava-next",
        "sparsity": 0.6,
        "reference_samples": options.n,
        "seeds": options.seeds,
        "uniform_distance": round(distance(uniform, every), 5),
        "curve": curve,
    }
    recording.write("allocation_convergence", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
