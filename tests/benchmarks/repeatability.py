"""How much of a mask depends on the number of threads or on what is picked together, and what that does to answers.

    python tests/benchmarks/repeatability.py [--models smol-videollama2]

Statistics are summed in a fixed order, so that only the forward pass itself can differ: torch's kernels split their work by
the number of threads and round differently.
"""

import argparse
import copy

import recording
import torch

import tamp
from tamp import models, pruning
from tamp.evaluation import scoring

ASKED = {
    "mini-llava-next": ("mini-vqa", 32, 0.6),
    "smol-llava-next": ("smol-vqa", 16, 0.5),
    "smol-videollama2": ("smol-avqa", 16, 0.5),
}
"""Model to its set, samples and sparsity."""
PRESETS = ("wanda", "sparsegpt", "das", "amia", "tamp")


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(ASKED), choices=ASKED)
    parser.add_argument("--n-samples", type=int, help="number of calibration samples")
    parser.add_argument("--n-questions", type=int, default=300, help="number of questions")
    parser.add_argument("--threads", type=int, default=2, help="the other number of threads")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    lock_step, threads_before = pruning.LOCK_STEP, torch.get_num_threads()
    try:
        found = {name: measured(name, options, lock_step) for name in options.models}
    finally:
        torch.set_num_threads(threads_before)
        pruning.LOCK_STEP = lock_step
    result = {"threads": [1, options.threads], "models": found}
    recording.write("repeatability", result, options.out)
    return result


def measured(name: str, options: argparse.Namespace, lock_step: int) -> dict:
    """Prune a model four times with every preset, compare the masks, and ask under one thread and under more."""
    source, n, sparsity = ASKED[name]
    model, processor = tamp.load(name, device="cpu")
    samples = tamp.calibration_set(source, processor, n=options.n_samples or n)
    benchmark = scoring.prepare(processor, source, options.n_questions)

    def pruned(preset: str, threads: int, together: int = lock_step) -> torch.nn.Module:
        torch.set_num_threads(threads)
        pruning.LOCK_STEP = together
        made = copy.deepcopy(model)
        tamp.prune(made, samples, tamp.Recipe.preset(preset, sparsity=sparsity), progress=False)
        return made

    rows = []
    for preset in PRESETS:
        first, other = pruned(preset, 1), pruned(preset, options.threads)
        scores = [scoring.answers(each, processor, benchmark, progress=False) for each in (first, other)]
        rows.append(
            {
                "preset": preset,
                "same_run_again": sum(differing(first, pruned(preset, 1))),
                "picked_one_sample_at_a_time": sum(differing(first, pruned(preset, 1, 1))),
                "other_threads": differing(first, other),
                "accuracy": [round(table["correct"].mean(), 4) for table in scores],
                "nll": [round(table["nll"].mean(), 4) for table in scores],
            }
        )
    weights = [sum(each.weight.numel() for each in models.linears(block).values()) for block in blocks_of(model)]
    return {
        "n_samples": len(samples),
        "sparsity": sparsity,
        "n_questions": options.n_questions,
        "weights": weights,
        "rows": rows,
    }


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """List a model's decoder blocks."""
    return list(models.blocks(model).values())


def differing(model: torch.nn.Module, other: torch.nn.Module) -> list[int]:
    """Count, per block, the weights that one model has and the other has not."""
    return [
        sum(
            int(((one.weight == 0) ^ (two.weight == 0)).sum())
            for one, two in zip(models.linears(block).values(), models.linears(second).values())
        )
        for block, second in zip(blocks_of(model), blocks_of(other))
    ]


if __name__ == "__main__":
    print(main())
