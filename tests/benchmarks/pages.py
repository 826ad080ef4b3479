"""Write what README.md and data/README.md show of recorded results and shipped files, and the figures.

python tests/benchmarks/pages.py
"""

import itertools
import json
import math
import statistics
from pathlib import Path

import outliers
import pandas as pd
import quality
import real_lm
import recording
import search
from matplotlib.figure import Figure

from tamp import comparison, evaluation, figures
from tamp.checkpoint import sha256
from tamp.report import recorded as read

DATA = recording.ROOT / "data"
COLOURS = list(figures.METHODS.values())[1:]


def file_table() -> str:
    """List every shipped file but the recorded results, with size and SHA-256."""
    rows = [
        f"| `{path.relative_to(DATA).as_posix()}` | {path.stat().st_size:,} | `{sha256(path)}` |"
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path.suffix != ".md" and "results" not in path.parts
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
            f"{record['parameters']:,} parameters; seed {record['seed']}; {spent}. Held out, {asked:,} fresh "
            f"questions, greedy decoding and exact match: mean {100 * final['mean']:.1f} %.",
            "",
            "| task | questions | accuracy % | chance % |",
            "|---|---|---|---|",
            *rows,
            *text_lines(record),
        ]
    )


def text_lines(record: dict) -> list[str]:
    """Tell what training did to text, where it was measured."""
    if "text" not in record:
        return []
    lines = [
        f"| {name} | {found['untouched']:.4g} | {found['shipped']:.4g} |"
        for name, found in (
            ("perplexity, Python's documentation", record["text"]["documentation"]),
            ("perplexity, Python's licence", record["text"]["licence"]),
            ("facts, choice accuracy", record["text"]["facts"]),
        )
    ]
    return ["", "| text | SmolLM2 untouched | as shipped |", "|---|---|---|", *lines]


def training_figure(record: dict, path: Path) -> None:
    """Draw the loss and the held-out accuracy of the stages in which the language model learns, end to end."""
    curve = [entry for entry in record["curve"] if "mean" in entry]
    last = {entry["stage"]: entry["step"] for entry in curve}  # stages in order, each with its length
    starts = dict(zip(last, itertools.accumulate(last.values(), initial=0)))
    steps = [starts[entry["stage"]] + entry["step"] for entry in curve]
    figure = Figure(figsize=(9, 3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.plot(steps, [entry["loss"] for entry in curve], color="#4d4d4d")
    left.set(xlabel="step of the language model's training", ylabel="loss (nats per token)", yscale="log")
    for number, task in enumerate(curve[0]["accuracy"]):
        right.plot(
            steps,
            [100 * entry["accuracy"][task] for entry in curve],
            lw=1,
            label=task,
            color=COLOURS[number % len(COLOURS)],
            ls=("-", "--")[number // len(COLOURS)],
        )
    right.plot(steps, [100 * entry["mean"] for entry in curve], color="black", lw=2.2, label="mean")
    right.set(xlabel="step of the language model's training", ylabel="held-out accuracy (%)", ylim=(0, 103))
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)


def header(*columns: str) -> list[str]:
    """Begin a table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def heading(levels: list[float | str], what: str) -> list[str]:
    """Begin a table with a column per level."""
    return header(what, *map(comparison.level_name, levels))


def quality_table(recorded: dict) -> str:
    """Write accuracy with its interval and likelihood, per method and level."""
    dense = comparison.cells_of(recorded, "dense", 0.0)[0]
    levels = comparison.levels(recorded)
    lines = heading(levels, "accuracy % (answer NLL)")
    seeds = set()
    for method in comparison.methods(recorded):
        row = []
        for level in levels:
            if cells := comparison.cells_of(recorded, method, level):
                points, low, high = comparison.interval(cells)
                row.append(f"{points:.1f} [{low:.1f}, {high:.1f}] ({comparison.mean(cells, 'nll'):.2f})")
                seeds |= {len(cells)} if method != "magnitude" else set()
            else:
                row.append("–")
        lines.append(f"| `{method}` | " + " | ".join(row) + " |")
    low, high = evaluation.wilson(dense["accuracy"], dense["n"])
    note = (
        f"Dense: {100 * dense['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({dense['nll']:.2f}). "
        f"{dense['n']:,} fresh questions, {recorded['calibration_samples']} calibration samples, "
        f"{' or '.join(map(str, sorted(seeds)))} calibration seeds (magnitude needs none); in brackets 95 % intervals, "
        "bootstrapped over questions and seeds; with three seeds they are rough."
    )
    return "\n".join([*lines, "", note])


def detail_table(recorded: dict, level: float) -> str:
    """Write everything that was measured at one level, per method."""
    shown = [cell for cell in recorded["cells"] if cell["sparsity"] in (0.0, level)]
    scores = comparison.scores({"cells": shown}).set_index("method")
    gains = pd.DataFrame(recorded["differences"]).set_index(["method", "sparsity"])
    lines = header(
        f"at {comparison.level_name(level)}",
        "accuracy %",
        f"against {recorded['compared_to'].capitalize()}",
        "retention %",
        "choice accuracy %",
        "answer NLL",
        "perplexity, documentation / licence",
        "facts %",
        "seconds",
    )
    for method, row in scores.iterrows():
        gain = "–"
        if (method, level) in gains.index:
            gain = "{points:+.1f} [{low:+.1f}, {high:+.1f}]".format(**gains.loc[(method, level)])
        spent = "–" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}"
        lines.append(
            f"| `{method}` | {row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}] | {gain} | {row['retention']:.0f} "
            f"| {row['choice_accuracy']:.1f} | {row['nll']:.2f} | {row['documentation']:.1f} / {row['licence']:.1f} "
            f"| {100 * row['facts']:.0f} | {spent} |"
        )
    note = (
        f"Seconds on one core, in {recorded['dtype']}. Facts: the right one of four answers, without a picture, so that "
        "25 % are right by chance."
    )
    return "\n".join([*lines, "", note])


def senses_table(recorded: dict) -> str:
    """Write accuracy per task on whole clips, and without what is heard or seen."""
    conditions = recorded["conditions"]
    whole = conditions["whole"]
    lines = header("task", *conditions, "chance")
    for task, row in whole.items():
        shares = [100 * rows[task]["accuracy"] for rows in conditions.values()]
        lines.append(
            f"| {task} | " + " | ".join(f"{share:.0f}" for share in shares) + f" | {100 * row['chance']:.0f} |"
        )
    low, high = evaluation.wilson(0.5, next(iter(whole.values()))["n"])
    note = (
        f"{sum(row['n'] for row in whole.values()):,} questions, the same in every column; a 95 % interval is at most "
        f"{50 * (high - low):.0f} points either way."
    )
    return "\n".join([*lines, "", note])


def search_line(short: str) -> str:
    """Tell what the search on a model chose and its confirmation found, in a sentence."""
    recorded, method = read(f"{short}_confirmation"), search.chosen(read(f"{short}_choice"))
    said = []
    for level in comparison.levels(recorded):
        found = {name: comparison.cells_of(recorded, name, level) for name in (method, *search.REFERENCES)}
        points, low, high = comparison.interval(found[method])
        others = " and ".join(
            f"{100 * comparison.mean(found[name], 'accuracy'):.1f} ({name})" for name in search.REFERENCES
        )
        said.append(
            f"{points:.1f} % [{low:.1f}, {high:.1f}] right at {comparison.level_name(level)} sparsity, instead of {others}"
        )
    return f"* `{recorded['model']}`, `{method}`: {'; '.join(said)}."


def outlier_table(recorded: dict) -> str:
    """Write the loudest channels and the first token's share, per model."""
    lines = [
        "| | loudest channel of q, k, v (median block, most) | of down_proj (median block, most) "
        "| norm of the first token (most) | attention to the first token (most) |",
        "|---|---|---|---|---|",
    ]
    for name, found in recorded["models"].items():
        loud = [
            f"{statistics.median(found['linears'][linear]):.0f} x, {max(found['linears'][linear]):.0f} x"
            for linear in ("q_proj", "down_proj")
        ]
        lines.append(
            f"| `{name}` | {loud[0]} | {loud[1]} | {max(found['first_norm']):,.0f} x | "
            f"{100 * max(found['first_attention']):.0f} % |"
        )
    note = (
        f"Input channels: norm over the tokens of {recorded['samples']} samples, in units of the median channel. First "
        "token: norm of its hidden state in units of the other tokens' median, and the last token's attention to it."
    )
    return "\n".join([*lines, "", note])


def control_table(recorded: dict) -> str:
    """Write DAS with its own scores beside DAS with others."""
    levels = list(dict.fromkeys(row["sparsity"] for row in recorded["rows"]))
    variants: dict[str, list[str]] = {}
    for row in recorded["rows"]:  # by sparsity, then by variant
        name = row["scores"] if row["granularity"] is None else f"{row['scores']}, per {row['granularity']}"
        variants.setdefault(name, []).append(f"{100 * row['accuracy']:.1f}")
    lines = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in variants.items()]
    return "\n".join([*heading(levels, "scores (accuracy %)"), *lines])


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
    lines = heading(levels, "perplexity")
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
    passes = ", ".join(f"{ratio:.2f} (`{name}`)" for name, ratio in pruning["allocation_over_forward"].items())
    note = (
        f"An allocation's pass over all samples, in units of one forward pass: {passes}.\n\n"
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
        ("smol", quality_table(read("smol_quality"))),
        ("half", detail_table(read("smol_quality"), 0.5)),
        ("sound", quality_table(read("smol_av_quality"))),
        ("search", "\n".join(map(search_line, ("mini", "smol")))),
        ("outliers", outlier_table(read("outliers"))),
        ("costs", cost_table(read("pruning_speed"), read("selection_speed"))),
    ):
        readme = recording.filled(readme, mark, content)
    for mark, content in (
        ("training", training_table(training_record("mini-llava-next"))),
        ("adapting", training_table(training_record("smol-llava-next"))),
        ("watching", training_table(training_record("smol-videollama2"))),
        ("senses", senses_table(read("senses"))),
        ("control", control_table(read("das_control"))),
        ("real", real_table(read("smollm2_text"))),
        ("files", file_table()),
    ):
        data_page = recording.filled(data_page, mark, content)
    return readme, data_page


def training_record(name: str) -> dict:
    """Read a shipped model's training record."""
    return json.loads((DATA / name / "training.json").read_text())


def main() -> None:
    """Refresh pages and figures."""
    pages = recording.ROOT / "README.md", DATA / "README.md"
    for page, text in zip(pages, refreshed(*(page.read_text() for page in pages))):
        page.write_text(text)
    outliers.draw(read("outliers"), recording.RESULTS / "outliers.png")
    for short in ("mini", "smol"):
        figures.grid_figure(read(f"{short}_quality")).savefig(recording.RESULTS / f"{short}_quality.png", dpi=150)
    for model, short in quality.SHORT.items():
        training_figure(training_record(model), recording.RESULTS / f"{short}_training.png")


if __name__ == "__main__":
    main()
