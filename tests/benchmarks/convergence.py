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


def distance(one: list[int], other: list[int]) -> float:
    """Return the share of dropped weights that two plans drop in different linears."""
    return sum(abs(a - b) for a, b in zip(one, other)) / 2 / sum(one)


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
    sizes = {
        f"{i}.{name}": linear.weight.numel()
        for i, block in enumerate(stack)
        for name, linear in models.linears(block).items()
    }
    per_block = [len(models.linears(block)) for block in stack]
    recipe = tamp.Recipe.preset("das", sparsity=0.6)
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= options.n]

    def plan(captured: list) -> list[int]:
        with torch.no_grad():
            scores = planning.das_scores(stack, captured, recipe, progress=False)
        return list(planning.make_plan(sizes, per_block, scores, recipe).drops)

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
    uniform = planning.make_plan(sizes, per_block, None, recipe).drops
    result = {
        "model": "mini-llava-next",
        "sparsity": 0.6,
        "reference_samples": options.n,
        "seeds": options.seeds,
        "uniform_distance": round(distance(list(uniform), every), 5),
        "curve": curve,
    }
    recording.write("allocation_convergence", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
