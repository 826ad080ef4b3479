"""Write what README.md and data/README.md show of recorded results and shipped files, and the figures.

python tests/benchmarks/pages.py
"""

import json
from pathlib import Path

import quality
import real_lm
import recording
from matplotlib.figure import Figure

from tamp import evaluation
from tamp.checkpoint import sha256
from tamp.report import METHODS

DATA = recording.ROOT / "data"


def file_table() -> str:
    """List every shipped file but the recorded results, with size and SHA-256."""
    rows = [
        f"| `{path.relative_to(DATA).as_posix()}` | {path.stat().st_size:,} | `{sha256(path)}` |"
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path.name != "README.md" and "results" not in path.parts
    ]
    return "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])


def training_table(record: dict) -> str:
    """Tell what training made, from its record."""
    final = record["held_out"]
    rows = [
        f"| {task} | {row['n']} | {100 * row['accuracy']:.1f} | {100 * row['chance']:.1f} |"
        for task, row in final["tasks"].items()
    ]
    spent = ", ".join(f"{stage} {seconds / 60:.0f} min" for stage, seconds in record["seconds"].items())
    asked = sum(row["n"] for row in final["tasks"].values())
    return "\n".join(
        [
            f"{record['parameters']:,} parameters; seed {record['seed']}; on one core {spent}. Held out, {asked:,} fresh "
            f"questions, greedy decoding and exact match: mean {100 * final['mean']:.1f} %.",
            "",
            "| task | questions | accuracy % | chance % |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def training_figure(record: dict, path: Path) -> None:
    """Draw the loss and the held-out accuracy of the language stage."""
    curve = [entry for entry in record["curve"] if entry["stage"] == "language"]
    steps = [entry["step"] for entry in curve]
    figure = Figure(figsize=(9, 3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.plot(steps, [entry["loss"] for entry in curve], color="#4d4d4d")
    left.set(xlabel="step of the language stage", ylabel="loss (nats per token)", yscale="log")
    for number, task in enumerate(curve[0]["accuracy"]):
        right.plot(
            steps,
            [100 * entry["accuracy"][task] for entry in curve],
            lw=1,
            label=task,
            color=METHODS[number % len(METHODS)],
            ls=("-", "--")[number // len(METHODS)],
        )
    right.plot(steps, [100 * entry["mean"] for entry in curve], color="black", lw=2.2, label="mean")
    right.set(xlabel="step of the language stage", ylabel="held-out accuracy (%)", ylim=(0, 103))
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)


def of(recorded: dict, method: str, sparsity: float) -> list[dict]:
    """Pick a method's cells at one sparsity."""
    return [cell for cell in recorded["cells"] if cell["method"] == method and cell["sparsity"] == sparsity]


def quality_table(recorded: dict) -> str:
    """Write accuracy with its interval and likelihood, per method and sparsity."""
    dense = of(recorded, "dense", 0.0)[0]
    lines = [
        "| accuracy % (answer NLL) | "
        + " | ".join(f"{100 * sparsity:.0f} %" for sparsity in quality.SPARSITIES)
        + " |",
        "|---|" + "---|" * len(quality.SPARSITIES),
    ]
    for method in quality.METHOD_NAMES:
        row = []
        for sparsity in quality.SPARSITIES:
            cells = of(recorded, method, sparsity)
            mean, low, high = quality.interval(cells)
            nll = sum(cell["nll"] for cell in cells) / len(cells)
            row.append(f"{mean:.1f} [{low:.1f}, {high:.1f}] ({nll:.2f})")
        lines.append(f"| `{method}` | " + " | ".join(row) + " |")
    low, high = evaluation.wilson(dense["accuracy"], dense["n"])
    note = (
        f"Dense: {100 * dense['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({dense['nll']:.2f}). "
        f"{dense['n']:,} fresh questions, {recorded['calibration_samples']} calibration samples, {len(quality.SEEDS)} "
        "calibration seeds; in brackets 95 % intervals, bootstrapped over questions and seeds."
    )
    return "\n".join([*lines, "", note])


def quality_figure(recorded: dict, path: Path) -> None:
    """Draw accuracy and answer likelihood against sparsity."""
    dense = of(recorded, "dense", 0.0)[0]
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    x = [100 * sparsity for sparsity in quality.SPARSITIES]
    for number, (method, color) in enumerate(zip(quality.METHOD_NAMES, METHODS)):
        cells = [of(recorded, method, sparsity) for sparsity in quality.SPARSITIES]
        mean, low, high = zip(*(quality.interval(some) for some in cells))
        style = {"color": color, "lw": 2.4 if method == "tamp" else 1.3, "marker": "osD^v<>"[number], "ms": 4}
        left.plot(x, mean, label=method, **style)
        left.fill_between(x, low, high, color=color, alpha=0.13, lw=0)
        right.plot(x, [sum(cell["nll"] for cell in some) / len(some) for some in cells], **style)
    left.axhline(100 * dense["accuracy"], color="#4d4d4d", ls="dotted", lw=1.2)
    left.text(x[-1], 100 * dense["accuracy"] + 1, "dense", fontsize=8, color="#4d4d4d", ha="right")
    left.set(xlabel="sparsity (%)", ylabel="accuracy (%)", ylim=(0, 106), xticks=x)
    right.axhline(dense["nll"], color="#4d4d4d", ls="dotted", lw=1.2)
    right.set(xlabel="sparsity (%)", ylabel="answer NLL (nats per token)", yscale="log", xticks=x)
    left.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)


def control_table(recorded: dict) -> str:
    """Write DAS with its own scores beside DAS with others."""
    levels = list(dict.fromkeys(row["sparsity"] for row in recorded["rows"]))
    variants: dict[str, list[str]] = {}
    for row in recorded["rows"]:  # by sparsity, then by variant
        name = row["scores"] if row["granularity"] is None else f"{row['scores']}, per {row['granularity']}"
        variants.setdefault(name, []).append(f"{100 * row['accuracy']:.1f}")
    lines = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in variants.items()]
    head = "| scores (accuracy %) | " + " | ".join(f"{100 * level:.0f} %" for level in levels) + " |"
    return "\n".join([head, "|---|" + "---|" * len(levels), *lines])


def real_table(recorded: dict) -> str:
    """Write the perplexities of the real language model, documentation / licence, of the levels that are complete."""
    cells = {
        (cell["method"], cell["sparsity"]): f"{cell['documentation']:,.1f} / {cell['licence']:,.1f}"
        for cell in recorded["cells"]
    }
    levels = [
        level
        for level in dict.fromkeys(cell["sparsity"] for cell in recorded["cells"])
        if all((method, level) in cells for method in real_lm.METHODS)
    ]
    lines = [
        "| perplexity | " + " | ".join(f"{100 * level:.0f} %" for level in levels) + " |",
        "|---|" + "---|" * len(levels),
    ]
    lines += [
        f"| `{method}` | " + " | ".join(cells[method, level] for level in levels) + " |" for method in real_lm.METHODS
    ]
    note = (
        f"Dense: {cells['dense', 0.0]}. Calibrated on {recorded['samples']} windows of {recorded['window']} tokens of "
        f"Python's documentation, measured on {recorded['windows']} windows each of other documentation / of Python's "
        "licence; one run."
    )
    return "\n".join([*lines, "", note])


def cost_table(pruning: dict, selection: dict) -> str:
    """Write what pruning and selecting cost."""
    lines = ["| | in units of Wanda | of one forward pass |", "|---|---|---|"]
    for name, ratio in pruning["over_wanda"].items():
        lines.append(f"| `{name}` | {ratio:.2f} | {pruning['over_forward'][name]:.2f} |")
    note = (
        f"{pruning['samples']} samples on `mini-llava-next`, medians of {pruning['rounds']} rounds side by side on one "
        f"core. AMIA's selection at {selection['tokens']:,} tokens of width {selection['width']:,} takes "
        f"{selection['amia_over_floor']:.2f} times its floor (normalise, one `u @ u.T`, one `topk`, one `exp`). Forced to "
        f"pick {selection['picked']['forced']} tokens, its loop is {selection['released_over_picking']:.0f} times as "
        "fast as the loop of the released code, which picks the same; with the floor counted on both sides, "
        f"{selection['released_over_whole']:.0f} times."
    )
    return "\n".join([*lines, "", note])


def refreshed(readme: str, data_page: str) -> tuple[str, str]:
    """Put everything generated between its marks in README.md and data/README.md."""
    for mark, content in (
        ("quality", quality_table(read("mini_quality"))),
        ("control", control_table(read("das_control"))),
        ("real", real_table(read("smollm2_text"))),
        ("costs", cost_table(read("pruning_speed"), read("selection_speed"))),
    ):
        readme = recording.filled(readme, mark, content)
    for mark, content in (("training", training_table(training_record())), ("files", file_table())):
        data_page = recording.filled(data_page, mark, content)
    return readme, data_page


def read(name: str) -> dict:
    """Read a recorded result."""
    return json.loads((recording.RESULTS / f"{name}.json").read_text())


def training_record() -> dict:
    """Read the shipped model's training record."""
    return json.loads((DATA / "mini-llava-next" / "training.json").read_text())


def main() -> None:
    """Refresh pages and figures."""
    pages = recording.ROOT / "README.md", DATA / "README.md"
    for page, text in zip(pages, refreshed(*(page.read_text() for page in pages))):
        page.write_text(text)
    quality_figure(read("mini_quality"), recording.RESULTS / "mini_quality.png")
    training_figure(training_record(), recording.RESULTS / "mini_training.png")


if __name__ == "__main__":
    main()
