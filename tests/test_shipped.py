"""The procedural world and the recipe of the shipped model."""

import json
from collections import Counter

import pytest
import torch
import transformers
from resuming import whole_and_pieces

from tamp.shipped import mini, pictures

SMOKE = (
    "--vision-steps",
    "4",
    "--alignment-steps",
    "4",
    "--language-steps",
    "4",
    "--save-every",
    "2",
    "--check-every",
    "2",
    "--held-out",
    "10",
    "--final",
    "20",
)


def test_the_same_seed_makes_the_same_questions_and_the_first_n_are_the_first_n():
    many, few = pictures.questions(60, seed=7), pictures.questions(25, seed=7)
    for one, other in zip(many, few):
        assert (one.task, one.text, one.answer, one.choices) == (other.task, other.text, other.answer, other.choices)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    assert many[0].images[0].tobytes() != pictures.questions(1, seed=8)[0].images[0].tobytes()


def test_streams_never_share_pictures():
    seen = [
        {image.tobytes() for question in pictures.questions(300, seed=3, stream=stream) for image in question.images}
        for stream in ("training", "evaluation", "calibration", "validation")
    ]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_tasks_are_balanced_and_answers_are_among_their_choices():
    asked = pictures.questions(1000, seed=1)
    counts = Counter(question.task for question in asked)
    assert set(counts) == set(pictures.TASKS)
    assert max(counts.values()) - min(counts.values()) <= 3
    for question in asked:
        assert question.answer in question.choices and len(set(question.choices)) == len(question.choices) >= 2


@pytest.mark.parametrize("task", pictures.TASKS)
def test_no_constant_answer_does_much_better_than_chance(task):
    asked = pictures.questions(600, seed=2, tasks=[task])
    best = Counter(question.answer for question in asked).most_common(1)[0][1] / len(asked)
    chance = sum(1 / len(question.choices) for question in asked) / len(asked)
    assert best <= max(1.6 * chance, chance + 0.15), (
        f"always answering the same is right {best:.0%}, chance {chance:.0%}"
    )


def test_most_of_a_picture_is_background():
    """As in real photographs, most patches say the same: more than half of the pixels are within the background's noise."""
    shares = []
    for question in pictures.questions(80, seed=4, tasks=["colour"]):
        pixels = torch.tensor(list(question.images[0].getdata()), dtype=torch.float32)
        common = pixels.median(0).values
        shares.append(((pixels - common).abs().amax(1) < 24).float().mean().item())
    assert sum(shares) / len(shares) > 0.5


def test_training_goes_on_where_it_was_killed_and_ends_with_the_same_model(tmp_path):
    folders = whole_and_pieces(mini.main, tmp_path, SMOKE, minutes="0.002", most=60)
    whole, pieces = [
        transformers.LlavaNextForConditionalGeneration.from_pretrained(folder).state_dict() for folder in folders
    ]
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    for record in records:
        for entry in record["curve"]:
            del entry["seconds"]
    assert records[0]["curve"] == records[1]["curve"]
    assert records[0]["held_out"] == records[1]["held_out"]
    assert {entry["stage"] for entry in records[0]["curve"]} == {"vision", "alignment", "language"}


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    arguments = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *SMOKE]
    assert mini.main([*arguments, "--minutes", "0"]) == 3
    with pytest.raises(ValueError, match="another seed or recipe|seed"):
        mini.main([*arguments, "--seed", "5"])
