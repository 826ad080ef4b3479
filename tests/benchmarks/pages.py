"""Fill the generated parts of README.md, data/README.md and the pages of the book, and draw the recorded figures.

python tests/benchmarks/pages.py
"""

import itertools
import json
import math
import statistics
from pathlib import Path

import agreement
import benchmark_table
import block_reconstruction
import cpu_speed
import drawings
import evaluation_memory
import expert_table
import export_zeros
import family_table
import figure_data
import fuzz
import host_memory
import method_tables
import needs
import other_calibration
import outliers
import pandas as pd
import quality
import real_lm
import recording
import recovery
import rehearsal
import retention
import rounding
import search
import sizes
import stills
import text_share
import trained_experts
import update_cost
import update_search
from matplotlib.figure import Figure

from tamp.evaluation import figures, results, scoring
from tamp.evaluation.results import recorded as read
from tamp.files import sha256

DATA = recording.ROOT / "data"
COLOURS = list(figures.METHODS.values())[1:]
SHORT_LIST = ("magnitude", "wanda", "das", "tamp", "text", "atv", "sparsegpt")
"""Methods of the README's table of results."""


def file_table() -> str:
    """List every shipped file but the recorded results, with size and SHA-256."""
    rows = [
        f"| `{path.relative_to(DATA).as_posix()}` | {path.stat().st_size:,} | `{sha256(path)}` |"
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path.suffix != ".md" and not {"results", "training"} & set(path.relative_to(DATA).parts)
    ]
    return "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])


def training_table(record: dict) -> str:
    """Return what training made, from its record."""
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
    """Return what training did to text, where it was measured."""
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
    """Return the first lines of a table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def heading(levels: list[float | str], what: str) -> list[str]:
    """Return the first lines of a table with a column per level."""
    return header(what, *map(results.level_name, levels))


def quality_table(recorded: dict) -> str:
    """Write accuracy with its interval and likelihood, per method and level."""
    dense = results.cells_of(recorded, "dense", 0.0)[0]
    levels = results.levels(recorded)
    lines = heading(levels, "accuracy % (answer NLL)")
    seeds = set()
    for method in results.methods(recorded):
        row = []
        for level in levels:
            if cells := results.cells_of(recorded, method, level):
                points, low, high = results.interval(cells)
                row.append(f"{points:.1f} [{low:.1f}, {high:.1f}] ({results.mean(cells, 'nll'):.2f})")
                seeds |= {len(cells)} if method != "magnitude" else set()
            else:
                row.append("–")
        lines.append(f"| `{method}` | " + " | ".join(row) + " |")
    low, high = scoring.wilson(dense["accuracy"], dense["n_questions"])
    note = (
        f"Dense: {100 * dense['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({dense['nll']:.2f}). "
        f"{dense['n_questions']:,} fresh questions, {recorded['n_samples']} calibration samples, "
        f"{' or '.join(map(str, sorted(seeds)))} calibration seeds (magnitude needs none); in brackets 95 % intervals, "
        "bootstrapped over questions and seeds; with three seeds they are rough."
    )
    return "\n".join([*lines, "", note])


def detail_table(recorded: dict, level: float) -> str:
    """Write everything that was measured at one level, per method."""
    shown = [cell for cell in recorded["cells"] if cell["level"] in (0.0, level)]
    scores = results.scores({"cells": shown}).set_index("method")
    gains = pd.DataFrame(recorded["differences"]).set_index(["method", "level"])
    lines = header(
        f"at {results.level_name(level)}",
        "accuracy %",
        f"against {recorded['baseline'].capitalize()}",
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


def task_table(recorded: dict, level: float) -> str:
    """Write accuracy per kind of question at one level, methods without changes."""
    table = results.tasks(recorded, level).T
    rows = [name for name in table.index if ":" not in name]
    lines = header(f"accuracy % at {results.level_name(level)}", *table.columns)
    return "\n".join(
        [*lines, *(f"| `{name}` | " + " | ".join(f"{x:.0f}" for x in table.loc[name]) + " |" for name in rows)]
    )


def overlap_table(recorded: dict, level: float) -> str:
    """Write how much of what two methods drop at one level is the same, methods without changes."""
    alike = 100 * results.overlaps(recorded, level)
    rows = [name for name in alike if ":" not in name]
    lines = header(f"dropped by both, % at {results.level_name(level)}", *(f"`{name}`" for name in rows))
    for name in rows:
        cells = ["–" if math.isnan(x) else f"{x:.0f}" for x in alike.loc[name, rows]]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short_table(recorded: dict, level: float) -> str:
    """Write what the README shows of one level: accuracy, difference from the baseline, perplexity and seconds."""
    dense = results.cells_of(recorded, "dense", 0.0)[0]
    low, high = scoring.wilson(dense["accuracy"], dense["n_questions"])
    lines = header(
        f"`{recorded['model']}` at {results.level_name(level)}",
        "accuracy %",
        f"against {recorded['baseline'].capitalize()}",
        "perplexity",
        "seconds",
    )
    lines.append(
        f"| not pruned | {100 * dense['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | – "
        f"| {dense['documentation']:.1f} | – |"
    )
    for method in SHORT_LIST:
        cells = results.cells_of(recorded, method, level)
        points, low, high = results.interval(cells)
        gain = "–" if method == recorded["baseline"] else gain_of(recorded, level, method, recorded["baseline"])
        lines.append(
            f"| `{method}` | {points:.1f} [{low:.1f}, {high:.1f}] | {gain} | {results.mean(cells, 'documentation'):.1f} "
            f"| {results.mean(cells, 'seconds'):.0f} |"
        )
    note = (
        f"{dense['n_questions']} fresh questions, {recorded['n_samples']} calibration samples drawn three times, one core, "
        f"{recorded['dtype']}. In brackets 95 % intervals over questions and draws. Perplexity: Python's documentation."
    )
    return "\n".join([*lines, "", note])


def gain_of(recorded: dict, level: float | str, method: str, base: str) -> str:
    """Write the difference in accuracy between two methods, in points, with its 95 % interval."""
    points, low, high = results.interval(*(results.cells_of(recorded, name, level) for name in (method, base)))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


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
    low, high = scoring.wilson(0.5, next(iter(whole.values()))["n"])
    note = (
        f"{sum(row['n'] for row in whole.values()):,} questions, the same in every column; a 95 % interval is at most "
        f"{50 * (high - low):.0f} points either way."
    )
    return "\n".join([*lines, "", note])


def search_line(short: str) -> str:
    """Return what the search on a model chose and what its confirmation found, as a sentence."""
    recorded, method = read(f"{short}_confirmation"), search.chosen(read(f"{short}_choice"))
    said = []
    for level in results.levels(recorded):
        found = {name: results.cells_of(recorded, name, level) for name in (method, *search.REFERENCES)}
        points, low, high = results.interval(found[method])
        others = " and ".join(
            f"{100 * results.mean(found[name], 'accuracy'):.1f} ({name})" for name in search.REFERENCES
        )
        said.append(
            f"{points:.1f} % [{low:.1f}, {high:.1f}] right at {results.level_name(level)} sparsity, instead of {others}"
        )
    return f"* `{recorded['model']}`, `{method}`: {'; '.join(said)}."


def outlier_table(recorded: dict) -> str:
    """Write the largest channels and the first token's share, per model."""
    lines = [
        "| | largest input channel of q, k, v (median block, most) | of down_proj (median block, most) "
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
        f"Input channels: norm over the tokens of {recorded['n_samples']} samples, in units of the median channel. First "
        "token: norm of its hidden state in units of the other tokens' median, and the last token's attention to it."
    )
    return "\n".join([*lines, "", note])


def control_table(recorded: dict) -> str:
    """Write DAS with its own scores beside DAS with others."""
    levels = list(dict.fromkeys(row["level"] for row in recorded["rows"]))
    variants: dict[str, list[str]] = {}
    for row in recorded["rows"]:  # by level, then by variant
        name = row["scores"] if row["granularity"] is None else f"{row['scores']}, per {row['granularity']}"
        variants.setdefault(name, []).append(f"{100 * row['accuracy']:.1f}")
    lines = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in variants.items()]
    return "\n".join([*heading(levels, "scores (accuracy %)"), *lines])


def real_table(recorded: dict) -> str:
    """Write the perplexities of the real language model, documentation / licence, of the levels that are complete."""
    cells = {
        (cell["method"], cell["level"]): f"{cell['documentation']:,.1f} / {cell['licence']:,.1f}"
        for cell in recorded["cells"]
    }
    levels = [
        level
        for level in dict.fromkeys(cell["level"] for cell in recorded["cells"])
        if all((method, level) in cells for method in real_lm.METHODS)
    ]
    lines = heading(levels, "perplexity")
    lines += [
        f"| `{method}` | " + " | ".join(cells[method, level] for level in levels) + " |" for method in real_lm.METHODS
    ]
    note = (
        f"Dense: {cells['dense', 0.0]}. Calibrated on {recorded['n_samples']} windows of {recorded['window']} tokens of "
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
        f"{pruning['n_samples']} samples on `mini-llava-next`, medians of {pruning['rounds']} rounds side by side on one "
        f"core. AMIA's selection at {selection['tokens']:,} tokens of width {selection['width']:,} takes "
        f"{selection['amia_over_floor']:.2f} times its floor (normalise, one `u @ u.T`, one `topk`, one `exp`). Forced to "
        f"pick {selection['picked']['forced']} tokens, its loop is {selection['released_over_picking']:.0f} times as "
        "fast as the loop of the released code, which picks the same; with the floor counted on both sides, "
        f"{selection['released_over_whole']:.0f} times."
    )
    return "\n".join([*lines, "", note])


PAGES = {
    "README.md": {
        "methods": method_tables.preset_table,
        "half": lambda: short_table(read("smol_quality"), 0.5),
        "repair": lambda: update_search.short_table(read("smol_update_levels"), read("smol_update_half")),
    },
    "book/results.md": {
        "outliers": lambda: outlier_table(read("outliers")),
        "smol": lambda: quality_table(read("smol_quality")),
        "half": lambda: detail_table(read("smol_quality"), 0.5),
        "tasks": lambda: task_table(read("smol_quality"), 0.5),
        "overlaps": lambda: overlap_table(read("smol_quality"), 0.5),
        "quality": lambda: quality_table(read("mini_quality")),
        "control": lambda: control_table(read("das_control")),
        "sound": lambda: quality_table(read("smol_av_quality")),
        "search": lambda: "\n".join(map(search_line, ("mini", "smol"))),
        "update_mini": lambda: update_search.table(read("mini_update_choice")),
        "update_smol": lambda: update_search.table(read("smol_update_choice")),
        "update_smol_av": lambda: update_search.table(read("smol_av_update_choice")),
        "update_levels": lambda: update_search.levels_table(read("smol_update_levels")),
        "update_lines": lambda: "\n".join(
            update_search.line(
                read(f"{short}_{of}_confirmation"), update_search.chosen(read(f"{short}_{of}_choice"), name)
            )
            for short, of, name in (
                ("mini", "update", "least_squares"),
                ("mini", "admm", "admm"),
                ("smol_av", "update", "least_squares"),
            )
        ),
        "update_cost": lambda: update_cost.table(read("update_cost")),
        "update_confirmed": lambda: update_search.table(read("smol_update_confirmation")),
        "other_calibration": other_calibration.recorded_table,
        "rounding": lambda: rounding.table(read("smol_update_levels"), read("smol_update_rounding")),
        "reconstruction": lambda: block_reconstruction.table(read("smol_update_reconstruction")),
        "admm_mini": lambda: update_search.table(read("mini_admm_choice")),
        "admm_choice": lambda: update_search.table(read("smol_admm_choice")),
        "admm_steps": lambda: update_search.table(read("smol_steps_choice")),
        "text_share": lambda: text_share.table(read("smol_text_share")),
        "real": lambda: real_table(read("smollm2_text")),
        "costs": lambda: cost_table(read("pruning_speed"), read("selection_speed")),
    },
    "book/lmms_eval.md": {"agreement": lambda: agreement.table(read("agreement"))},
    "book/benchmarks.md": {
        "benchmarks": benchmark_table.table,
        "retention": lambda: retention.table(read("retention")),
    },
    "book/methods.md": {
        "presets": method_tables.preset_table,
        **{axis: lambda axis=axis: method_tables.axis_table(axis) for axis in method_tables.recipe.METHODS},
    },
    "book/tested.md": {
        "fuzz": lambda: fuzz.table(read("fuzz")),
        "kills": lambda: kills_table(read("kills")),
        "evaluation_memory": lambda: evaluation_memory.table(read("evaluation_memory")),
    },
    "book/running.md": {
        "needs": needs.table,
        "cards": needs.card_table,
        "host": lambda: host_memory.table(read("host_memory")),
        "rehearsal": lambda: rehearsal.table(read("rehearsal")),
    },
    "book/families.md": {
        "multimodal": lambda: family_table.table(read("families")["families"], media=True),
        "text": lambda: family_table.table(read("families")["families"], media=False),
    },
    "book/worth.md": {
        "sizes": lambda: sizes.table(read("sizes")),
        "cpu": lambda: cpu_speed.table(read("cpu_speed")),
        "export": lambda: export_zeros.table(read("export_zeros")),
        "recovery": lambda: recovery.table(read("recovery")),
    },
    "book/experts.md": {
        "families": lambda: expert_table.table(read("expert_families")["families"]),
        "trained": lambda: trained_experts.table(read("trained_experts")),
    },
    "data/README.md": {
        "training": lambda: training_table(training_record("mini-llava-next")),
        "adapting": lambda: training_table(training_record("smol-llava-next")),
        "watching": lambda: training_table(training_record("smol-videollama2")),
        "senses": lambda: senses_table(read("senses")),
        "files": file_table,
    },
}
"""Page to its marked parts, each with the function that writes it."""


def kills_table(record: dict) -> str:
    """Show what killing commands at random moments left, and whether they then ran."""
    rows = [
        f"| {row['command']} | {row['tries']} | {row['killed']} | {row['unfinished']} | {row['lost']} | {row['left']} | "
        f"{row['failed']} | {row['stale']} |"
        for row in record["commands"]
    ]
    names = ("tries", "killed", "half-written", "old one lost", "remains", "next run failed", "remains after it")
    return "\n".join([*header("command", *names), *rows])


def refreshed(page: str) -> str:
    """Read a page of :data:`PAGES` and put everything generated between its marks."""
    text = (recording.ROOT / page).read_text()
    for mark, content in PAGES[page].items():
        text = recording.filled(text, mark, content())
    return text


def training_record(name: str) -> dict:
    """Read a shipped model's training record."""
    return json.loads((DATA / name / "training.json").read_text())


def main() -> None:
    """Refresh pages and figures."""
    for page in PAGES:
        (recording.ROOT / page).write_text(refreshed(page))
    for name in figure_data.DERIVED:
        figure_data.write(name)
    stills.main([])
    drawings.main()
    outliers.draw(read("outliers"), recording.RESULTS / "outliers.png")
    for short in ("mini", "smol"):
        figures.grid_figure(read(f"{short}_quality")).savefig(recording.RESULTS / f"{short}_quality.png", dpi=150)
    for model, short in quality.SHORT.items():
        training_figure(training_record(model), recording.RESULTS / f"{short}_training.png")


if __name__ == "__main__":
    main()
