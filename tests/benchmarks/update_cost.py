"""What an update costs by counting: operations and launches per matrix, for a GPU that is not at hand.

    python tests/benchmarks/update_cost.py

Matrix products and launches are counted while the functions run on small matrices, at two widths. Products grow as
``out * in^2`` and launches are constant or grow with the columns, which a test holds; both are then computed for the
shapes of the 8B model. Factorisations, ``in^3`` each, are added by formula. Seconds follow from `RATE` and `LAUNCH`, which
are assumed.
"""

import recording
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tamp import criteria, masks, updates

SHAPES = {"q, o": (4096, 4096), "k, v": (1024, 4096), "gate, up": (14336, 4096), "down": (4096, 14336)}
"""Of a block of Llama-3-8B, (out, in), two of each but the last."""
BLOCKS = 32
RATE = 50e12  # float32 flops per second outside tensor cores, of the order of an H100's 67
LAUNCH = 5e-6  # seconds from one launch to the next
FACTORISATIONS = {"sparsegpt": 1.0, "least_squares": 0.0, "admm": 1.0}
"""In units of ``in^3``: Cholesky 1/3 and its inverse 2/3; on a GPU for SparseGPT that of its factor, in strips."""


class Launches(TorchDispatchMode):
    """Counts operations that compute something: a kernel each, on a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        views = function.is_view or "aten._local_scalar_dense" in str(function)
        self.count += not views
        return function(*arguments, **(keywords or {}))


def run(method: str, out: int, width: int, rows: int = 2) -> tuple[int, int]:
    """Prune and update a random matrix by half, and return launches and flops of products.

    Args:
        method: of `FACTORISATIONS`.
        out: rows of the matrix.
        width: its inputs.
        rows: tokens per input that H is made of.
    """
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=random)
    inputs = torch.randn(rows * width, width, generator=random)
    hessian = inputs.T @ inputs / len(inputs)

    def choose(weight, share=1.0):
        return masks.unstructured(weight.abs(), drop=round(share * weight.numel() / 2))

    # nothing may end early: on a GPU nobody looks
    with Launches() as launches, FlopCounterMode(display=False) as flops:
        if method == "sparsegpt":
            criteria.sparsegpt(weight, hessian, 0.5)
        elif method == "least_squares":
            updates.least_squares(weight, choose(weight), hessian, tolerance=0.0)
        else:
            mask, start = updates.admm(weight, choose, hessian, damping=0.01)
            updates.least_squares(weight, mask, hessian, damping=0.01, steps=updates.FINISH, start=start, tolerance=0.0)
    return launches.count, flops.get_total_flops()


def products(method: str, out: int, width: int) -> float:
    """Return how many products of the weight with an (in, in) matrix the method makes, ``2 * out * in^2`` flops each."""
    return run(method, out, width)[1] / (2 * out * width**2)


def launches(method: str) -> tuple[float, float]:
    """Return launches per matrix and per column, from two widths."""
    few, many = (run(method, 16, width)[0] for width in (256, 512))
    per_column = (many - few) / 256
    return few - 256 * per_column, per_column


def main() -> dict:
    """Count, compute for the 8B model, and record."""
    torch.set_num_threads(1)
    found = {}
    for method in FACTORISATIONS:
        made = products(method, 128, 512)
        fixed, per_column = launches(method)
        flops = count = 0.0
        for name, (out, width) in SHAPES.items():
            times = BLOCKS * (1 if name == "down" else 2)
            flops += times * (made * 2 * out * width**2 + FACTORISATIONS[method] * width**3)
            count += times * (fixed + per_column * width)
        found[method] = {
            "products": round(made, 2),
            "launches": round(fixed),
            "launches_per_column": round(per_column, 2),
            "petaflops": round(flops / 1e15, 2),
            "million_launches": round(count / 1e6, 3),
            "seconds": round(flops / RATE + count * LAUNCH),
        }
    widest = max(width for _, width in SHAPES.values())
    result = {
        "shapes": SHAPES,
        "blocks": BLOCKS,
        "rate": RATE,
        "launch": LAUNCH,
        "hessian_gb": round(4 * widest**2 / 1e9, 2),
        "methods": found,
    }
    recording.write("update_cost", result)
    return result


def table(record: dict) -> str:
    """Write what was counted and computed."""
    lines = [
        "| | products per matrix | launches per matrix | 8B: 10<sup>15</sup> flops | 8B: launches | 8B: seconds, computed |",
        "|---|---|---|---|---|---|",
    ]
    for method, row in record["methods"].items():
        columns = f" + {row['launches_per_column']:g} per column" if row["launches_per_column"] else ""
        lines.append(
            f"| `{method}` | {row['products']:.1f} | {row['launches']}{columns} | {row['petaflops']:.2f} | "
            f"{1e6 * record['methods'][method]['million_launches']:,.0f} | {row['seconds']} |"
        )
    note = (
        "A product is one of the weight with an (in, in) matrix. Products and launches were counted on small matrices, the "
        f"8B column computed: {record['rate'] / 1e12:.0f} float32 teraflops per second and {1e6 * record['launch']:.0f} "
        "microseconds per launch are assumed, and only the step after H is counted. The largest H takes "
        f"{record['hessian_gb']} GB."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    print(table(main()))
