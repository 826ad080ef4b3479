"""Figures: values per token are put back on their picture, and every method of the table has a colour."""

import io

import matplotlib
import pandas as pd
import pytest
import tiny
import torch

from tamp import conversations, models, pruning
from tamp.evaluation import figures, results
from tamp.recipe import PRESETS, Recipe
from tamp.records import Question


def test_every_method_has_a_colour_of_its_own_that_no_modality_has():
    assert all(figures.color_of(preset) for preset in (*PRESETS, "a preset that has no colour yet"))
    colors = [*figures.METHODS.values(), *figures.MODALITIES.values()]
    assert len(set(colors)) == len(colors)
    assert set(models.MODALITY_NAMES.values()) == set(figures.MODALITIES)


def test_markers_tell_what_a_method_does():
    shared, chosen, both = (
        ("owl", "alphapruning", "ecoflap", "das"),
        ("text", "atv", "amia"),
        ("tamp", "das:tokens=text"),
    )
    assert {figures.marker_of(method) for method in shared} == {"s"}
    assert {figures.marker_of(method) for method in chosen} == {"^"}
    assert {figures.marker_of(method) for method in both} == {"D"}
    assert {figures.marker_of(method) for method in ("magnitude", "wanda", "sparsegpt")} == {"o"}


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (64, 32), (48, 80), (100, 40)])
def test_the_grids_count_the_tokens_that_the_processor_writes(shipped, size):
    """Also where the full view is cropped to the picture's shape."""
    from PIL import Image

    model, processor = shipped
    picture = Image.new("RGB", size[::-1], (40, 60, 80))
    question = Question(task="", images=(picture,), text="what is it ?", answer="cat", choices=())
    sample = conversations.process(processor, conversations.dialogue(question.text, None, question.images), prompt=True)
    tokens = int((models.modality(model, sample) == models.VISUAL).sum())
    (top, left), (rows, columns) = figures.picture_grids(model, size)
    assert top * left + rows * (columns + 1) == tokens


def test_a_number_per_token_comes_back_where_the_token_looked(shipped):
    """The model's own merging of tiles, with tokens that say their number, is undone."""
    model, _ = shipped
    edge = model.config.vision_config.image_size // model.config.vision_config.patch_size
    width = model.config.text_config.hidden_size
    features = torch.arange(5.0 * edge * edge).reshape(1, 5, edge * edge, 1).expand(-1, -1, -1, width)
    merged, _ = model.model.pack_image_features(
        [features[0]], torch.tensor([[64, 64]]), "default", image_newline=torch.full((width,), -1.0)
    )
    base, full = figures.on_picture(model, merged[0][:, 0], (64, 64))
    assert (base.flatten() == range(edge * edge)).all()
    for tile in range(4):  # tiles lie row by row, and patches row by row in them
        row, column = edge * (tile // 2), edge * (tile % 2)
        seen = full[row : row + edge, column : column + edge].flatten()
        assert (seen == torch.arange((tile + 1.0) * edge * edge, (tile + 2.0) * edge * edge).numpy()).all()
    with pytest.raises(ValueError, match="88 tokens"):
        figures.on_picture(model, torch.zeros(87), (64, 64))


def test_maps_are_split_where_the_modality_changes():
    axis = matplotlib.figure.Figure().subplots()
    figures.split_at(axis, torch.tensor([2, 0, 0, 0, 2, 2]))
    ends = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
    assert ends == [0.5, 3.5, 5.5]


def test_a_drawing_has_the_same_bytes_each_time():
    drawn = []
    with matplotlib.rc_context():
        figures.style()
        for _ in range(2):
            figure = figures.difference_figure(results.recorded("mini_quality"), [0.7])
            figure.savefig(held := io.BytesIO(), format="svg", metadata={"Date": None})
            drawn.append(held.getvalue())
    assert drawn[0] == drawn[1]


def test_a_grid_is_drawn_with_a_line_per_method():
    figure = figures.grid_figure(results.recorded("mini_quality"), ["wanda", "tamp"])
    names = [line.get_label() for line in figure.axes[0].lines]
    assert names == ["wanda", "tamp", "dense"] and len(figure.axes) == 2


def test_accuracy_is_drawn_with_a_bar_per_task_and_model():
    table = pd.DataFrame(
        {"task": ["a", "b"], "accuracy": [0.5, 1.0], "low": [0.4, 0.9], "high": [0.6, 1.0], "chance": 0.5}
    )
    figure = figures.accuracy_figure({"dense": table, "mine": table})
    assert len(figure.axes[0].patches) == 4


def test_differences_are_drawn_in_the_order_of_the_methods_with_their_intervals():
    grid = results.recorded("mini_quality")
    figure = figures.difference_figure(grid, [0.7, "2:4"], baseline="amia")
    assert [axis.get_title() for axis in figure.axes] == ["accuracy at 70 %", "accuracy at 2:4"]
    assert all(axis.get_xlabel() == "points against amia" for axis in figure.axes)
    methods = [method for method in results.methods(grid) if method != "amia"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == methods[::-1]
    rows = results.differences(grid, "amia").set_index(["level", "method"])
    points = dict(zip(methods, (line.get_xdata()[0] for line in figure.axes[0].lines[2::2])))
    assert points == rows.loc[0.7, "points"].to_dict()
    figures.difference_figure({"cells": [cell for cell in grid["cells"] if cell["method"] == "amia"]}, [0.7], "amia")


@pytest.mark.parametrize(("preset", "measured"), [("wanda", True), ("magnitude", False)])
def test_a_report_draws_the_error_of_its_blocks_where_it_is_known(preset, measured):
    """Magnitude pruning uses no samples, so there is no error to draw."""
    model, samples = tiny.build("llama")
    report = pruning.prune(model, samples, Recipe.preset(preset, sparsity=0.5), progress=False)
    sparsity, errors = figures.report_figure(report).axes
    assert sparsity.get_visible() and errors.get_visible() == measured
    assert len(errors.lines[0].get_xdata()) == measured * len(model.model.layers)
