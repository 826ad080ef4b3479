"""What a pruning run did."""

import contextlib
import functools
import platform
import statistics
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tamp.methods import name_of
from tamp.plans import Plan
from tamp.recipe import Recipe


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure :func:`peak_memory` anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return bytes: the most torch held on the GPU since the last reset; on a CPU the process's largest resident size, on
    Linux since the last reset, elsewhere since its start; 0 on Windows, which does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    if find_spec("resource") is None:  # Windows
        return 0
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`tamp.prune` did.

    Attributes:
        recipe: the recipe it followed.
        plan: weights to drop per linear.
        rows: one per linear: block, linear, weights, score (NaN if uniform), asked and got (shares of weights), kept
            (calibration tokens that counted, mean per sample), error (of the block's output, relative to what the block adds
            to its input).
        sparsity: share of zeros among the weights of all pruned linears, counted.
        samples: calibration samples used.
        seconds: wall time by phase.
        peak_memory: bytes, see :func:`peak_memory`.
        model: name or path of the model.
        left_out: parameters of the decoder's blocks that stay dense, ``{name: (weights, reason)}``, see
            :func:`tamp.models.left_out`.
        pooled: experts that too few tokens reached, pruned by the statistic of all experts in their tensor.
        unread: blocks whose attention cannot be read, so that AMIA counted all tokens.
    """

    recipe: Recipe
    plan: Plan
    rows: tuple[dict[str, Any], ...]
    sparsity: float
    samples: int
    seconds: dict[str, float]
    peak_memory: int
    model: str
    left_out: dict[str, tuple[int, str]]
    pooled: tuple[str, ...] = ()
    unread: int = 0

    @property
    def coverage(self) -> float:
        """Share of the weights in the decoder's matrices that the pruned ones hold."""
        pruned = sum(self.plan.sizes)
        return pruned / (pruned + sum(size for size, _ in self.left_out.values()))

    @functools.cached_property
    def table(self):
        """The rows as a DataFrame."""
        import pandas

        return pandas.DataFrame(self.rows).astype({"kept": float, "error": float})

    def summary(self) -> dict[str, Any]:
        """Return what is worth recording, as plain JSON types."""
        return {
            "model": self.model,
            "fingerprint": self.plan.fingerprint,
            "recipe": self.recipe.summary(),
            "sparsity": self.sparsity,
            "weights": sum(self.plan.sizes),
            "coverage": self.coverage,
            "left_out": {name: {"weights": size, "reason": reason} for name, (size, reason) in self.left_out.items()},
            "pooled": list(self.pooled),
            "unread": self.unread,
            "samples": self.samples,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "peak_memory_bytes": self.peak_memory,
            "versions": versions(),
        }

    def _dense(self) -> str:
        """Describe what stays dense, by reason."""
        totals: dict[str, int] = {}
        for size, reason in self.left_out.values():
            totals[reason] = totals.get(reason, 0) + size
        said = ", ".join(f"{reason} ({size:,})" for reason, size in totals.items())
        return f"; dense stay: {said}" if said else ""

    def _said(self) -> str:
        """Describe experts, and blocks whose attention could not be read, a line each."""
        said = ""
        experts = [row["kept"] * self.samples for row in self.rows if "[" in row["linear"]]
        if experts and self.samples:
            said += (
                f"{len(experts)} experts' matrices; tokens that counted for each: least {min(experts):,.0f}, median "
                f"{statistics.median(experts):,.0f}; {len(self.pooled)} with too few use the statistic of all experts\n"
            )
        if self.unread:
            said += f"all tokens counted in {self.unread} blocks whose attention cannot be read\n"
        return said

    def __str__(self) -> str:
        spent = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
        whole = self.table.assign(**{name: self.table[name] * self.table["weights"] for name in ("asked", "got")})
        table = whole.groupby("block", sort=False).agg(
            {"weights": "sum", "score": "mean", "asked": "sum", "got": "sum", "kept": "mean", "error": "first"}
        )
        table[["asked", "got"]] = table[["asked", "got"]].div(table["weights"], axis=0)
        return (
            f"{self.plan.allocation} + {name_of(self.recipe.tokens)} + {name_of(self.recipe.criterion)}"
            f"{' ' + self.recipe.pattern if self.recipe.pattern else ''}: {self.sparsity:.4%} of "
            f"{sum(self.plan.sizes):,} weights are zero; they are {self.coverage:.1%} of the decoder's matrices"
            f"{self._dense()}\n"
            f"{table.to_string(float_format='{:.3f}'.format, na_rep='-')}\n"
            f"{self._said()}{self.samples} samples; {spent}; peak memory {self.peak_memory / 2**20:,.0f} MiB"
        )


def versions() -> dict[str, str]:
    """Return the versions that matter for a result."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": version("transformers")}
