"""What the chapters share: the checks of exercises, the digest of picks, the example, and the drawings."""

import numpy as np
import pandas as pd
import pytest
import torch

from tamp.evaluation import lessons


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (..., "Not filled in yet."),
        (None, "Not filled in yet."),
        ([1.0, 2.0], "Right."),
        (torch.tensor([1.0, 2.0 + 1e-5]), "Right."),
        ([1.0, 2.1], "Not yet: 1 of 2 values are wrong, the first 2.1."),
        ([np.nan, 2.0], "Not yet: 1 of 2 values are wrong, the first nan."),
        ([1.0, 2.0, 3.0], "Not yet: the shape is (3,), and should be (2,)."),
    ],
)
def test_an_answer_is_checked(got, said):
    assert lessons.check(got, np.array([1.0, 2.0])) == said


def test_a_mask_is_checked():
    mask = torch.tensor([True, False, True])
    assert lessons.check(mask, mask) == "Right."
    assert lessons.check(~mask, mask).startswith("Not yet: 3 of 3")


def test_the_digest_sees_every_choice():
    masks = [torch.zeros(3, 50, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]
    before = lessons.digest(masks)
    masks[0][2, 17] = True
    assert len(before) == 8 and lessons.digest(masks) != before
    assert lessons.digest([[1, 2]]) != lessons.digest([[2, 1]])


def test_the_example_is_one_picture_with_eight_questions():
    for source in ("mini-vqa", "smol-vqa"):
        asked = lessons.example(source)
        assert len({question.images[0].tobytes() for question in asked}) == 1
        assert len({question.task for question in asked}) == len(asked) == 8
    assert lessons.level("2:4") == {"pattern": "2:4"} and lessons.level(0.5) == {"sparsity": 0.5}


def test_a_plan_is_drawn_as_shares():
    figure = lessons.plan_figure({"one": [5, 10], "other": [0, 20]}, [10, 20], ["a", "b"], 0.5)
    heights = [[bar.get_height() for bar in axis.patches] for axis in figure.axes]
    assert heights == [[50, 50], [0, 100]]


def test_what_was_not_measured_has_a_question_mark_and_no_bar():
    figure = lessons.worth_figure({"dense": (1, 1, 1), "other": (0.41, 1, None)})
    disk, _, time = figure.axes
    assert [bar.get_width() for bar in disk.patches] == [100, 41]
    assert [text.get_text().strip() for text in time.texts] == ["100%", "?"]


def test_bars_of_memory_are_stacked_beside_the_cards():
    needs = {"one": {"all": (1e9, 2e9, 4e9), "least": (5e8, 0, 0)}, "other": {"all": (3e9, 0, 0)}}
    figure = lessons.memory_figure(needs, [8e9, 16e9])
    one, other = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in one.patches] == [
        (0, 1),
        (0, 0.5),
        (1, 2),
        (0.5, 0),
        (3, 4),
        (0.5, 0),
    ]
    assert [text.get_text().strip() for text in one.texts] == ["7.0", "0.5"]
    assert [line.get_xdata()[0] for line in other.lines] == [8, 16]


def test_a_chapter_begins_without_what_its_last_run_left(tmp_path):
    for name in ("made", "made.partial", "other"):
        (tmp_path / name).mkdir()
    assert lessons.fresh(f"{tmp_path}/made") == f"{tmp_path}/made"
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    lessons.fresh(f"{tmp_path}/made")


def test_similarities_are_drawn_without_what_enters_a_block():
    rows = [("input", 1.0), ("q_proj", 0.2), ("q_proj", 0.4)]
    table = pd.DataFrame([{"where": where, "vv": x, "ll": x, "vl": x} for where, x in rows])
    figure = lessons.similarity_figure({"model": table})
    assert {text.get_text() for text in figure.axes[0].texts} == {"0.30"}


def test_every_token_is_drawn(mini):
    from tamp import conversations, models

    model, processor = mini
    asked = lessons.example("mini-vqa")[lessons.FOLLOWED]
    sample = conversations.process(processor, conversations.dialogue(asked.text, asked.answer, asked.images))
    codes = models.modality(model, sample)[0]
    tokens = processor.tokenizer.convert_ids_to_tokens(sample["input_ids"][0])
    values = torch.arange(1.0, len(codes) + 1)
    figure = lessons.token_figure(model, asked.images[0], tokens, codes, {"number": values})
    drawn = [number for axis in figure.axes[1:] for number in axis.images[0].get_array().ravel().tolist()]
    assert sorted(drawn) == values.tolist()
    words = [label.get_text() for label in figure.axes[3].get_yticklabels()]
    assert words == [token for token, code in zip(tokens, codes) if code != models.VISUAL]


@pytest.mark.parametrize(
    ("drops", "said"),
    [
        (..., "Not filled in yet."),
        ([1, 2], "Not yet: 2 linears drop 3 weights; 3 should drop 6."),
        ([1, 1, 1], "Not yet: 3 linears drop 3 weights; 3 should drop 6."),
        ([-1, 3, 4], "Not yet: a linear drops fewer than no weights, or more than it has."),
        ([5, 1, 0], "Not yet: a linear drops fewer than no weights, or more than it has."),
        ([3, 2, 1], "Not yet: NLL 3.00, and das has 1.00."),
        ([0, 2, 4], "Right. NLL 0.00, and das has 1.00."),
    ],
)
def test_a_plan_is_judged_under_the_same_budget(drops, said):
    from tamp.plans import Plan

    plan = Plan(linears=("a", "b", "c"), sizes=(4, 4, 4), drops=(1, 2, 3), target=0.5, allocation="das")
    assert lessons.beats(drops, plan, lambda drops: float(drops[0])) == said
