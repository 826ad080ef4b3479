"""How many weights of a mask depend on the number of threads or on what is picked together.

    python tests/benchmarks/repeatability.py [--n 32]

Statistics are summed in a fixed order, so that only the forward pass itself can differ: torch's attention kernels split
their work by the number of threads and round differently.
"""

import argparse
import copy

import recording
import torch

import tamp
from tamp import models, pruning


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2, help="the other number of threads")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    model, processor = tamp.load("mini-llava-next", device="cpu")
    samples = tamp.calibration_set("mini-vqa", processor, n=options.n)
    lock_step, threads_before = pruning.LOCK_STEP, torch.get_num_threads()

    def masks(recipe: tamp.Recipe, threads: int, together: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        pruning.LOCK_STEP = together
        pruned = copy.deepcopy(model)
        tamp.prune(pruned, samples, recipe, progress=False)
        return torch.cat([linear.weight.flatten() == 0 for linear in models.all_linears(pruned).values()])

    rows = []
    try:
        for preset in ("wanda", "sparsegpt", "das", "amia", "tamp"):
            recipe = tamp.Recipe.preset(preset, sparsity=0.6)
            first = masks(recipe, 1, lock_step)
            rows.append(
                {
                    "preset": preset,
                    "weights": first.numel(),
                    "same_run_again": int((first ^ masks(recipe, 1, lock_step)).sum()),
                    "picked_one_sample_at_a_time": int((first ^ masks(recipe, 1, 1)).sum()),
                    "other_threads": int((first ^ masks(recipe, options.threads, lock_step)).sum()),
                }
            )
    finally:
        torch.set_num_threads(threads_before)
        pruning.LOCK_STEP = lock_step
    result = {
        "model": "mini-llava-next",
        "samples": options.n,
        "threads": [1, options.threads],
        "differing_weights": rows,
    }
    recording.write("repeatability", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
