"""How long methods take in units of Wanda, and allocation passes in units of one forward pass, on the shipped model.

python tests/benchmarks/pruning_speed.py [--n-samples 64] [--rounds 5]
"""

import argparse
import copy
import statistics

import recording
import torch

import tamp
from tamp import planning, walk

ALLOCATIONS = ("das", "owl", "alphapruning", "ecoflap")


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, processor = tamp.load("mini-llava-next", device="cpu")
    samples = tamp.calibration_set("mini-vqa", processor, options.n_samples)
    presets = ("wanda", "das", "amia", "tamp", "sparsegpt")
    captured = walk.capture(model, samples, progress=False)
    copies = iter([copy.deepcopy(model) for _ in range(len(presets) * (options.rounds + 1))])
    reports = {}

    def run(preset: str) -> None:
        recipe = tamp.Recipe.preset(preset, sparsity=options.sparsity)
        reports[preset] = tamp.prune(next(copies), samples, recipe, progress=False)

    def forward() -> None:
        with torch.no_grad():
            for sample in samples:
                model(**sample, use_cache=False)

    def allocate(preset: str) -> None:
        recipe = tamp.Recipe.preset(preset, sparsity=options.sparsity)
        if recipe.allocation_needs_samples:
            recipe = tamp.Recipe.preset(preset, sparsity=options.sparsity, allocation_samples=options.n_samples)
        with torch.no_grad():
            planning.score(model, captured, recipe, progress=False)

    calls = {"forward": forward} | {preset: lambda preset=preset: run(preset) for preset in presets}
    calls |= {f"{name}'s scores": lambda name=name: allocate(name) for name in ALLOCATIONS}
    times = recording.side_by_side(calls, options.rounds)
    result = {
        "model": "mini-llava-next",
        "n_samples": options.n_samples,
        "rounds": options.rounds,
        "seconds": {name: round(statistics.median(spent), 3) for name, spent in times.items()},
        "over_wanda": {name: recording.ratio(times, name, "wanda") for name in presets},
        "over_forward": {name: recording.ratio(times, name, "forward") for name in presets},
        "allocation_over_forward": {
            name: recording.ratio(times, f"{name}'s scores", "forward") for name in ALLOCATIONS
        },
        "phases": {name: reports[name].summary()["seconds"] for name in presets},
        "tokens_kept": round(float(reports["tamp"].table["kept"].mean()), 2),
        "peak_memory_bytes": {name: reports[name].peak_memory for name in presets},
    }
    recording.write("pruning_speed", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
