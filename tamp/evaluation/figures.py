"""Figures: one palette and one style for all, and pictures put back together from their visual tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tamp.evaluation import results
from tamp.recipe import Recipe
from tamp.report import Report

MODALITIES = {"visual": "#d1813f", "text": "#3d7ea6", "audio": "#8a5a9e"}
METHODS = {
    "dense": "#4d4d4d",
    "magnitude": "#a3a3a3",
    "wanda": "#5a62b5",
    "sparsegpt": "#b3923b",
    "text": "#57a9c9",
    "owl": "#2f7f78",
    "alphapruning": "#8e5ea2",
    "ecoflap": "#7b5d3f",
    "atv": "#1d4e89",
    "das": "#6aa84f",
    "amia": "#d07ba5",
    "tamp": "#c2373d",
    "repair": "#0f9d76",
}
LINEARS = ("#33508c", "#5f86c4", "#9db8dd", "#7b7b7b", "#a65628", "#d98c4a", "#ecc08f")
"""One colour per linear of a block: attention in blues, its output in grey, the MLP in browns."""


def style() -> None:
    """Set the style of the book: white ground, so that figures read on a dark page too, and small type.

    A notebook then shows figures as drawings (SVG), of the same bytes each time.
    """
    import matplotlib
    import seaborn
    from matplotlib import pyplot

    pyplot.switch_backend(matplotlib.get_backend())  # a notebook then shows figures made without pyplot, too
    seaborn.set_theme(style="ticks", palette=list(METHODS.values()), font_scale=0.85)
    matplotlib.rcParams.update(
        {
            "figure.facecolor": "white",
            "figure.dpi": 110,
            "svg.hashsalt": "tamp",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "legend.frameon": False,
        }
    )
    if matplotlib.get_backend() in ("inline", "module://matplotlib_inline.backend_inline"):
        from matplotlib_inline import backend_inline

        backend_inline.set_matplotlib_formats("svg", metadata={"Date": None, "Creator": None})


def color_of(method: str) -> str:
    """Return the colour of a method: that of its preset, also with changes; brown for a preset without one."""
    return METHODS.get(method.partition(":")[0], LINEARS[4])


def marker_of(method: str) -> str:
    """Return the marker of a method: a square if it allocates, a triangle if it chooses tokens, a diamond if both."""
    recipe = Recipe.spelled(method)
    return {(False, False): "o", (True, False): "s", (False, True): "^", (True, True): "D"}[
        recipe.allocation != "uniform", recipe.tokens != "all"
    ]


def split_at(axis: Axes, modality: Tensor) -> None:
    """Draw lines into a T x T map where the modality changes, and name the runs along its left edge.

    Args:
        axis: holds the map.
        modality: (T,) codes, see :mod:`tamp.models`.
    """
    from tamp.models import MODALITY_NAMES

    codes = modality.tolist()
    starts = [0, *(i for i in range(1, len(codes)) if codes[i] != codes[i - 1])]
    for start, end in zip(starts, [*starts[1:], len(codes)]):
        name = MODALITY_NAMES[codes[start]]
        axis.axhline(end - 0.5, color="white", lw=0.8)
        axis.axvline(end - 0.5, color="white", lw=0.8)
        for line in (axis.plot([-1.5] * 2, [start, end - 1]), axis.plot([start, end - 1], [-1.5] * 2)):
            line[0].set(color=MODALITIES[name], lw=4, clip_on=False, solid_capstyle="butt")
    axis.set(xlim=(-2.5, len(codes) - 0.5), ylim=(len(codes) - 0.5, -2.5))


def picture_grids(model, image_size: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how LLaVA-NeXT lays out the visual tokens of a picture: base view, then full view, row by row.

    The full view is cut into tiles, put back together, and cropped to the picture's own shape; each of its rows ends with
    one more token, the newline.

    Args:
        model: a LLaVA-NeXT.
        image_size: (height, width) of the picture, pixels.

    Returns:
        (rows, columns) of the base view and (rows, columns) of the full view, newlines not counted.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    vision = model.config.vision_config
    edge = vision.image_size // vision.patch_size
    down, across = get_anyres_image_grid_shape(tuple(image_size), model.config.image_grid_pinpoints, vision.image_size)
    whole = torch.zeros(1, down * edge, across * edge)
    rows, columns = unpad_image(whole, tuple(image_size)).shape[1:]
    return (edge, edge), (rows, columns)


def on_picture(model, values: Tensor, image_size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a number per visual token of one picture as maps of the picture.

    Args:
        model: a LLaVA-NeXT.
        values: (V,), a number per visual token of the picture.
        image_size: (height, width) of the picture, pixels.

    Returns:
        Base view and full view, arrays of rows by columns; newline tokens are left out.

    Raises:
        ValueError: if the picture has another number of tokens.
    """
    (top, left), (rows, columns) = picture_grids(model, image_size)
    if len(values) != top * left + rows * (columns + 1):
        raise ValueError(
            f"a picture of {tuple(image_size)} pixels has {top * left + rows * (columns + 1)} tokens, not {len(values)}"
        )
    base, full = values[: top * left], values[top * left :]
    return base.reshape(top, left).numpy(), full.reshape(rows, columns + 1)[:, :-1].numpy()


def accuracy_figure(scores: dict[str, pd.DataFrame]) -> Figure:
    """Draw accuracy per task with its interval, one bar per model, chance as a line.

    Args:
        scores: tables of :func:`tamp.evaluate` by name of the model, over the same tasks.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    width = 0.8 / len(scores)
    others = iter(LINEARS)
    for number, (name, table) in enumerate(scores.items()):
        x = [position + (number - (len(scores) - 1) / 2) * width for position in range(len(table))]
        share = table["accuracy"] * 100
        spread = [(share - table["low"] * 100).clip(lower=0), (table["high"] * 100 - share).clip(lower=0)]
        color = METHODS.get(name) or next(others)
        axis.bar(x, share, width * 0.92, label=name, color=color, yerr=spread, error_kw={"lw": 0.8})
    first = next(iter(scores.values()))
    places = range(len(first))
    axis.hlines(
        first["chance"] * 100,
        [place - 0.42 for place in places],
        [place + 0.42 for place in places],
        colors="black",
        linestyles="dotted",
        lw=1.2,
        label="chance",
    )
    axis.set_xticks(places, first["task"])
    axis.set(ylabel="accuracy (%)", ylim=(0, 105))
    axis.legend(ncols=len(scores) + 1, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return figure


def grid_figure(grid: dict[str, Any], methods: Sequence[str] | None = None, text: bool = True) -> Figure:
    """Draw accuracy, likelihood of the answers and, where measured, perplexity of text against sparsity.

    Markers show what a method does, see :func:`marker_of`.

    Args:
        grid: a recorded grid, see :mod:`tamp.evaluation.results`.
        methods: which to draw; all of them by default.
        text: whether to draw perplexity where it was measured.
    """
    dense = results.cells_of(grid, "dense", 0.0)[0]
    methods = methods or results.methods(grid)
    levels = [level for level in results.levels(grid) if not isinstance(level, str)]
    panels = [("accuracy", "accuracy (%)", 100), ("nll", "answer NLL (nats per token)", 1)]
    panels += [("documentation", "perplexity of text", 1)] if text and "documentation" in dense else []
    figure = Figure(figsize=(3.7 * len(panels), 3.5), layout="constrained", facecolor="white")
    for axis, (key, label, scale) in zip(figure.subplots(1, len(panels)), panels):
        for method in methods:
            cells = {100 * level: results.cells_of(grid, method, level) for level in levels}
            cells = {x: some for x, some in cells.items() if some}
            color = color_of(method)
            line = {"color": color, "ls": ":" if ":" in method else "-", "lw": 2.4 if method == "tamp" else 1.3}
            values = [scale * results.mean(some, key) for some in cells.values()]
            axis.plot(list(cells), values, label=method, marker=marker_of(method), ms=4, **line)
            if key == "accuracy" and cells:
                low, high = zip(*(results.interval(some)[1:] for some in cells.values()))
                axis.fill_between(list(cells), low, high, color=color, alpha=0.13, lw=0)
        axis.axhline(scale * dense[key], color=METHODS["dense"], ls="dashed", lw=1.2, label="dense")
        axis.set(xlabel="sparsity (%)", ylabel=label, xticks=[100 * level for level in levels])
        axis.spines[["top", "right"]].set_visible(False)
        if key == "accuracy":
            axis.set_ylim(0, 104)
        else:
            axis.set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return figure


def difference_figure(grid: dict[str, Any], levels: Sequence[float | str], baseline: str = "wanda") -> Figure:
    """Draw what every method gains over a baseline, in points of accuracy with 95 % intervals, a panel per level.

    Args:
        grid: a recorded grid, see :mod:`tamp.evaluation.results`.
        levels: sparsities or patterns of the grid.
        baseline: the method that all are compared with.
    """
    rows = results.differences(grid, baseline)
    names = [method for method in results.methods(grid) if method in set(rows["method"])][::-1]
    size = 1.6 + 3.2 * len(levels), 0.32 * len(names) + 0.9
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    for axis, level in zip(figure.subplots(1, len(levels), sharey=True, squeeze=False)[0], levels):
        axis.axvline(0, color=METHODS["dense"], lw=0.8)
        for row in rows[rows["level"] == level].itertuples():
            line = {"color": color_of(row.method), "ls": ":" if ":" in row.method else "-", "lw": 2}
            height = names.index(row.method)
            axis.plot([row.low, row.high], [height, height], **line)
            axis.plot(row.points, height, marker_of(row.method), color=line["color"], ms=5)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel=f"points against {baseline}")
        axis.set_title(f"accuracy at {results.level_name(level)}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def report_figure(report: Report) -> Figure:
    """Draw sparsity per linear and, where it was measured, error per block."""
    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    for color, (name, rows) in zip(LINEARS * 4, report.table.groupby("linear", sort=False)):
        left.plot(rows["block"], rows["got"] * 100, "o-", ms=4, lw=1, color=color, label=name.split(".")[-1])
    left.set(xlabel="block", ylabel="sparsity (%)", title="sparsity per linear")
    target = 100 * report.sparsity
    left.set_ylim(min(left.get_ylim()[0], target - 12), max(left.get_ylim()[1], target + 12))
    left.axhline(target, color=METHODS["dense"], ls="dotted", lw=1)
    left.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    errors = report.table.groupby("block")["error"].first().dropna()
    right.plot(errors.index, errors, "o-", ms=4, color=METHODS["dense"])
    right.set_ylim(bottom=0)
    right.set(xlabel="block", ylabel="relative error", title="error of the block's output")
    right.set_visible(not errors.empty)
    return figure
