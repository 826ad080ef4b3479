"""Recorded grids: what was right is read back, intervals cover what they should, differences are paired."""

import numpy as np
import pandas as pd
import pytest

from tamp.errors import UserError
from tamp.evaluation import results


def cell(method, level, seed, correct, **scores):
    bits = pd.Series(correct)
    made = {"method": method, "level": level, "calibration_seed": seed, "n_questions": len(bits)}
    return {**made, "correct": results.pack(bits), "accuracy": bits.mean(), **scores}


@pytest.fixture
def grid():
    random = np.random.default_rng(0)
    base = random.random(400) < 0.6
    better = base | (random.random(400) < 0.25)  # right wherever the base is, and in some more
    return {
        "cells": [
            cell("dense", 0.0, 0, np.ones(400, bool)),
            *(cell("wanda", 0.5, seed, base) for seed in range(3)),
            *(cell("tamp", 0.5, seed, better) for seed in range(3)),
            cell("wanda", "2:4", 0, ~base),
        ]
    }


@pytest.mark.parametrize("n", [1, 7, 8, 9, 400])
def test_answers_are_read_back(n):
    correct = np.random.default_rng(n).random(n) < 0.5
    assert (results.unpack(cell("wanda", 0.5, 0, correct)) == correct).all()


def test_methods_and_levels_come_in_order_without_the_dense_model(grid):
    assert results.methods(grid) == ["wanda", "tamp"]
    assert results.levels(grid) == [0.5, "2:4"]
    assert len(results.cells_of(grid, "tamp", 0.5)) == 3 and not results.cells_of(grid, "tamp", "2:4")


def test_an_interval_of_one_cell_is_close_to_the_binomial_one(grid):
    cells = results.cells_of(grid, "wanda", 0.5)
    mean, low, high = results.interval(cells)
    share = cells[0]["accuracy"]
    assert mean == pytest.approx(100 * share)
    half = 196 * np.sqrt(share * (1 - share) / 400)
    assert high - mean == pytest.approx(half, rel=0.12) and mean - low == pytest.approx(half, rel=0.12)


def test_seeds_that_differ_widen_an_interval():
    few, many = np.arange(400) < 100, np.arange(400) < 300
    same = [cell("a", 0.5, seed, few) for seed in range(3)]
    apart = [cell("a", 0.5, seed, each) for seed, each in enumerate((few, many, few))]
    widths = [high - low for _, low, high in map(results.interval, (same, apart))]
    assert widths[1] > 3 * widths[0]


def test_differences_are_paired(grid):
    """The interval of a method that is right wherever the other is is narrower than two independent ones would give."""
    (row,) = results.differences(grid).to_dict("records")
    ours, theirs = (results.cells_of(grid, method, 0.5) for method in ("tamp", "wanda"))
    expected = 100 * (ours[0]["accuracy"] - theirs[0]["accuracy"])
    assert row["method"] == "tamp" and row["points"] == pytest.approx(expected, abs=0.051)
    assert 0 < row["low"] < row["points"] < row["high"]
    independent = sum(high - low for _, low, high in map(results.interval, (ours, theirs)))
    assert row["high"] - row["low"] < 0.6 * independent


def test_differences_are_paired_over_calibration_sets_too():
    """A calibration set that is hard for both methods does not widen the interval of their difference."""
    bases = [np.arange(400) < right for right in (100, 200, 300)]
    grid = {
        "cells": [
            *(cell("wanda", 0.5, seed, base) for seed, base in enumerate(bases)),
            # in another order, as a grid that was added to may have them; right in one in ten more, whatever the set
            *(cell("tamp", 0.5, seed, bases[seed] | (np.arange(400) >= 360)) for seed in (2, 0, 1)),
            cell("magnitude", 0.5, 0, np.zeros(400, bool)),
            cell("das", 0.5, 7, bases[0]),
            cell("das", 0.5, 8, bases[0]),
        ]
    }
    rows = results.differences(grid).set_index("method")
    assert rows.loc["tamp", "points"] == 10 and rows.loc["tamp", "high"] - rows.loc["tamp", "low"] < 7
    assert rows.loc["magnitude", "points"] == -50 and rows.loc["magnitude", "low"] < -70
    assert "das" not in rows.index  # no calibration set in common
    assert np.isnan(results.interval(results.cells_of(grid, "das", 0.5), grid["cells"][:3])).all()


def test_retention_is_in_per_cent_of_dense(grid):
    table = results.retention(grid)
    assert table.loc["wanda", 0.5] == pytest.approx(100 * results.cells_of(grid, "wanda", 0.5)[0]["accuracy"])
    assert np.isnan(table.loc["tamp", "2:4"])


def test_cells_of_dense_or_pattern_are_read_again():
    level = "dense|2:4@0.3"
    results.check_cells(
        "grid.json", [cell("wanda", level, 0, [1, 0, 1], seconds=1.0, choice_accuracy=0.5, nll=1.0, tasks={})]
    )
    with pytest.raises(UserError, match="has a level that is not one"):
        results.check_cells(
            "grid.json", [cell("wanda", "dense|4:2@0.3", 0, [1], seconds=1.0, choice_accuracy=0.5, nll=1.0, tasks={})]
        )
