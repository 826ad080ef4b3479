"""Is a pruned matrix faster on a CPU? Dense products beside torch's compressed sparse rows, on one core.

python tests/benchmarks/cpu_speed.py [--size 4096] [--rounds 9]
"""

import argparse
import statistics
import time
from functools import partial

import recording
import torch

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TOKENS = (1, 64)
"""A token at a time, as in generation, and a prompt."""
PRUNED = "dense float32, 50% zeros"
"""A product whose zeros are multiplied like other numbers."""


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(options.size, options.size, generator=random)
    rows = []
    for tokens in TOKENS:
        inputs = torch.randn(options.size, tokens, generator=random)
        calls = {
            "dense float32": partial(torch.matmul, weight, inputs),
            "dense bfloat16": partial(torch.matmul, weight.bfloat16(), inputs.bfloat16()),
            PRUNED: partial(torch.matmul, weight * (torch.rand(weight.shape, generator=random) >= 0.5), inputs),
        }
        for sparsity in SPARSITIES:
            kept = torch.rand(weight.shape, generator=random) >= sparsity
            calls[f"sparse {sparsity}"] = partial(torch.matmul, (weight * kept).to_sparse_csr(), inputs)
        times = measure(calls, options.rounds)
        rows += [
            {
                "tokens": tokens,
                "what": name,
                "milliseconds": round(1e3 * statistics.median(spent), 3),
                "over_float32": round(statistics.median(spent) / statistics.median(times["dense float32"]), 2),
                "over_bfloat16": round(statistics.median(spent) / statistics.median(times["dense bfloat16"]), 2),
            }
            for name, spent in times.items()
        ]
    result = {"size": options.size, "rounds": options.rounds, "rows": rows}
    recording.write("cpu_speed", result, options.out)
    return result


def measure(calls: dict, rounds: int) -> dict[str, list[float]]:
    """Time calls in turn, round after round, in seconds of this thread's own work; the machine may be shared."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            repeats = 0
            while time.process_time() - start < 0.02:  # one call may be shorter than the clock can tell
                call()
                repeats += 1
            if turn:
                times[name].append((time.process_time() - start) / repeats)
    return times


def table(recorded: dict) -> str:
    """Write how long sparse products take in units of dense ones."""
    size = recorded["size"]
    lines = [
        "| product | " + " | ".join(f"{tokens} token{'s' * (tokens > 1)}" for tokens in TOKENS) + " |",
        "|---|---|---|",
    ]
    names = {row["what"]: None for row in recorded["rows"]}
    for name in names:
        found = [row for row in recorded["rows"] if row["what"] == name]
        kind, _, share = name.partition(" ")
        label = f"sparse rows, float32, {float(share):.0%} zeros" if kind == "sparse" else name
        cells = [f"{row['over_float32']:.2f} / {row['over_bfloat16']:.2f}" for row in found]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    note = (
        f"Time in units of the dense product in float32 / in bfloat16; {size:,} x {size:,}, one core, medians "
        f"of {recorded['rounds']} rounds."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    print(table(main()))
