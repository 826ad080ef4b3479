"""What weight updates cost on one matrix as wide as those of an 8B model, beside SparseGPT.

    python tests/benchmarks/update_speed.py [--rehearse]

A down projection of random weights (4096 x 14336), inputs that share directions as activations do, half of it dropped.
Seconds without the Hessian, which all three need, and how much of the masked matrix's error each leaves.
"""

import argparse

import recording
import torch

from tamp import criteria, masks, updates


def main(arguments: list[str] | None = None) -> dict:
    """Measure, record and return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="small, on any machine")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, width, tokens = (64, 96, 256) if options.rehearse else (4096, 14336, 16384)
    torch.manual_seed(0)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    mixing = torch.randn(width // 4, width, device=device) / (width // 4) ** 0.5
    inputs = (
        torch.randn(tokens, width // 4, device=device) @ mixing + 0.5 * torch.randn(tokens, width, device=device)
    ).to(kind)
    weight = torch.randn(rows, width, device=device).to(kind) / width**0.5
    square, hessian = criteria.MeanSquare(width, device), criteria.Hessian(width, device)
    square.add(inputs)
    result = {
        "shape": [rows, width],
        "tokens": tokens,
        "hessian": round(recording.seconds(lambda: hessian.add(inputs)), 4),
    }
    outer = hessian.value()
    drop = rows * width // 2

    def choose(weight: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        return masks.unstructured(criteria.wanda(weight, square.value()), drop=round(share * drop))

    def error(pruned: torch.Tensor) -> float:
        off = pruned.float() - weight.float()
        return (off @ outer).mul_(off).sum().item()

    mask = choose(weight)
    masked = error(weight.masked_fill(mask, 0))

    def alternating() -> torch.Tensor:
        chosen, start = updates.admm(weight, choose, outer)
        return updates.least_squares(weight, chosen, outer, steps=updates.FINISH, start=start)

    calls = {
        "least_squares": lambda: updates.least_squares(weight, mask, outer),
        "admm": alternating,
        "sparsegpt": lambda: criteria.sparsegpt(weight, outer, drop=drop),
    }
    result["updates"] = {}
    for name, call in calls.items():
        try:
            pruned = call()
            result["updates"][name] = {
                "seconds": round(recording.seconds(call), 4),
                "error_over_masked": round(error(pruned) / masked, 4),
            }
        except torch.OutOfMemoryError as problem:
            result["updates"][name] = {"out_of_memory": str(problem).splitlines()[0]}
        recording.write("gpu_updates", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
