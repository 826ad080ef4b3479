"""How many samples a DAS plan needs: the plan from few samples against the plan from many, and against other samples.

    python tests/benchmarks/convergence.py [--n-samples 256] [--n-seeds 5]

The distance of two plans is the share of all dropped weights that one of them would drop elsewhere. The curve sets the
default of ``Recipe.allocation_samples``.
"""

import argparse

import recording
import torch

import tamp
from tamp.plans import Plan, distance

MODEL, SPARSITY = "mini-llava-next", 0.6


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-samples", type=int, default=256)
    parser.add_argument("--n-seeds", type=int, default=5)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = tamp.load(MODEL, device="cpu")
    recipe = tamp.Recipe.preset("das", sparsity=SPARSITY, allocation_samples=None)

    def plan(n: int, seed: int) -> Plan:
        return tamp.plan(model, tamp.calibration_set("mini-vqa", processor, n, seed), recipe, progress=False)

    every = plan(options.n_samples, 1000)
    curve = []
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if n > options.n_samples:
            break
        apart = [distance(plan(n, seed).drops, every.drops) for seed in range(options.n_seeds)]
        curve.append(
            {"n_samples": n, "distance_mean": round(sum(apart) / len(apart), 5), "distance_max": round(max(apart), 5)}
        )
    uniform = tamp.plan(model, None, tamp.Recipe.preset("wanda", sparsity=SPARSITY), progress=False)
    result = {
        "model": MODEL,
        "sparsity": SPARSITY,
        "n_reference_samples": options.n_samples,
        "n_seeds": options.n_seeds,
        "uniform_distance": round(distance(uniform.drops, every.drops), 5),
        "curve": curve,
    }
    recording.write("allocation_convergence", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
