"""What a pruning run did: tables, figures and one HTML page."""

import base64
import contextlib
import html
import io
import json
import os
import platform
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import transformers

from tamp.errors import unknown
from tamp.plans import Plan
from tamp.shipped.places import data_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    Linux since the last reset, elsewhere since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`tamp.prune` did.

    Attributes:
        recipe: the recipe it followed.
        plan: weights to drop per linear.
        table: a row per linear: block, linear, weights, score (NaN if uniform), asked and got (shares of weights), kept
            (calibration tokens that counted, mean per sample), error (of the block's output, relative to what the block adds
            to its input).
        sparsity: share of zeros among the weights of all pruned linears, counted.
        samples: calibration samples used.
        seconds: wall time by phase.
        peak_memory: bytes, see :func:`peak_memory`.
        model: name or path of the model.
    """

    recipe: "Recipe"
    plan: Plan
    table: pd.DataFrame
    sparsity: float
    samples: int
    seconds: dict[str, float]
    peak_memory: int
    model: str

    def summary(self) -> dict[str, Any]:
        """Return what is worth recording, as plain JSON types."""
        return {
            "model": self.model,
            "recipe": asdict(self.recipe),
            "sparsity": self.sparsity,
            "weights": sum(self.plan.sizes),
            "samples": self.samples,
            "seconds": {phase: round(seconds, 3) for phase, seconds in self.seconds.items()},
            "peak_memory_bytes": self.peak_memory,
            "versions": versions(),
        }

    def __str__(self) -> str:
        spent = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
        whole = self.table.assign(**{name: self.table[name] * self.table["weights"] for name in ("asked", "got")})
        table = whole.groupby("block", sort=False).agg(
            {"weights": "sum", "score": "mean", "asked": "sum", "got": "sum", "kept": "mean", "error": "first"}
        )
        table[["asked", "got"]] = table[["asked", "got"]].div(table["weights"], axis=0)
        return (
            f"{self.recipe.allocation} + {self.recipe.tokens} + {self.recipe.criterion}"
            f"{' ' + self.recipe.pattern if self.recipe.pattern else ''}: {self.sparsity:.4%} of "
            f"{sum(self.plan.sizes):,} weights are zero\n"
            f"{table.to_string(float_format='{:.3f}'.format, na_rep='-')}\n"
            f"{self.samples} samples; {spent}; peak memory {self.peak_memory / 2**20:,.0f} MiB"
        )

    def figure(self) -> "Figure":
        """Draw sparsity per linear and, where it was measured, error per block."""
        from matplotlib.figure import Figure

        from tamp.figures import LINEARS, METHODS

        figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        for color, (name, rows) in zip(LINEARS * 4, self.table.groupby("linear", sort=False)):
            left.plot(rows["block"], rows["got"] * 100, "o-", ms=4, lw=1, color=color, label=name.split(".")[-1])
        left.set(xlabel="block", ylabel="sparsity (%)", title="sparsity per linear")
        target = 100 * self.sparsity
        left.set_ylim(min(left.get_ylim()[0], target - 12), max(left.get_ylim()[1], target + 12))
        left.axhline(target, color=METHODS["dense"], ls="dotted", lw=1)
        left.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        errors = self.table.groupby("block")["error"].first().dropna()
        right.plot(errors.index, errors, "o-", ms=4, color=METHODS["dense"])
        right.set_ylim(bottom=0)
        right.set(xlabel="block", ylabel="relative error", title="error of the block's output")
        right.set_visible(not errors.empty)
        return figure


def versions() -> dict[str, str]:
    """Return the versions that matter for a result."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def recorded(name: str) -> dict[str, Any]:
    """Read a recorded measurement, a file of ``data/results/`` without its ``.json``.

    Raises:
        UserError: if there is no such file.
    """
    folder = data_folder() / "results"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.json"))
        raise unknown("recorded result", name, known)
    return json.loads(path.read_text())


def write_result(path: str | Path, result: dict[str, Any]) -> Path:
    """Write a result as JSON beside the versions it was made with, completely or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps({"made_with": versions(), **result}, indent=1) + "\n")
    os.replace(beside, path)
    return path


def write_html(path: str | Path, title: str, parts: list[tuple[str, Any]]) -> Path:
    """Write one self-contained page.

    Args:
        path: file to write.
        title: of the page.
        parts: (heading, content) pairs; content is a DataFrame, a matplotlib figure, a :class:`Report` or text.

    Returns:
        The path.
    """
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{_content(content)}" for heading, content in parts)
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-size:14px}td,th{padding:.25rem .7rem;text-align:right;"
        "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}div.wide{overflow-x:auto}"
        "img{max-width:100%}pre{overflow-x:auto;background:#f6f6f6;padding:1rem;font-size:13px}"
    )
    path = Path(path)
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{style}</style><h1>{html.escape(title)}</h1>\n{body}\n</html>\n"
    )
    return path


def _content(content: Any) -> str:
    if isinstance(content, pd.DataFrame):
        if not isinstance(content.index, pd.RangeIndex):
            content = content.rename_axis(index=content.index.name or "", columns=None).reset_index()
        table = content.to_html(border=0, float_format="{:g}".format, na_rep="–", index=False, justify="inherit")
        return f"<div class=wide>{table}</div>"
    if isinstance(content, Report):
        return f"<pre>{html.escape(str(content))}</pre>{_content(content.figure())}"
    if hasattr(content, "savefig"):
        buffer = io.BytesIO()
        content.savefig(buffer, format="png", dpi=150)
        return f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    return f"<p>{html.escape(str(content))}</p>"
