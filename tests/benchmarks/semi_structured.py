"""Does 2:4 run faster? Dense against PyTorch's semi-structured layout, at the sizes of an 8B block.

    python tests/benchmarks/semi_structured.py [--rehearse]

Prefill multiplies 2,900 tokens by a matrix, decoding one (padded to 16, which the layout asks for). Medians of CUDA events.
On a machine without such kernels the record says so.
"""

import argparse
import statistics
import time

import recording
import torch

from tamp import masks

SHAPES = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "gate_proj": (14336, 4096), "down_proj": (4096, 14336)}
TOKENS = {"prefill": 2900, "decode": 16}


def spent(call, device: torch.device, rounds: int) -> float:
    """Return the median time of a call, microseconds."""
    times = []
    for _ in range(rounds + 3):
        if device.type == "cuda":
            ends = [torch.cuda.Event(enable_timing=True) for _end in range(2)]
            ends[0].record()
            call()
            ends[1].record()
            torch.cuda.synchronize()
            times.append(1000 * ends[0].elapsed_time(ends[1]))
        else:
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
    return round(statistics.median(times[3:]), 2)


def main(arguments: list[str] | None = None) -> dict:
    """Measure, record and return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="small, on any machine")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = 64 if options.rehearse else 1
    rows = []
    for name, (out, width) in SHAPES.items():
        weight = torch.randn(out // small, width // small, device=device).to(torch.bfloat16)
        weight.masked_fill_(masks.n_of_m(weight.float().abs(), 2, 4), 0)
        for phase, tokens in TOKENS.items():
            tokens = -(-tokens // 16) * 16 if not options.rehearse else 16
            inputs = torch.randn(tokens, weight.shape[1], device=device).to(torch.bfloat16)
            row = {"matrix": name, "phase": phase, "tokens": tokens, "shape": list(weight.shape)}
            row["dense"] = spent(lambda x=inputs, w=weight: torch.mm(w, x.T), device, options.rounds)
            try:
                packed = torch.sparse.to_sparse_semi_structured(weight)
                row["semi_structured"] = spent(lambda x=inputs, w=packed: torch.mm(w, x.T), device, options.rounds)
                there, here = torch.mm(packed, inputs.T).float(), torch.mm(weight, inputs.T).float()
                row["error"] = round(((there - here).norm() / here.norm()).item(), 6)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                row["not_run"] = str(error).splitlines()[0]
            rows.append(row)
            recording.write("gpu_semi_structured", {"rows": rows}, options.out)
    return {"rows": rows}


if __name__ == "__main__":
    print(main())
