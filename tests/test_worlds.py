"""The procedural worlds of pictures, facts and prose."""

from collections import Counter

import pytest
import torch

from tamp.worlds import facts, pictures, prose


def test_questions_depend_on_the_seed_and_not_on_their_number():
    many, few = pictures.questions(60, seed=7), pictures.questions(25, seed=7)
    for one, other in zip(many, few):
        assert (one.task, one.text, one.answer, one.choices) == (other.task, other.text, other.answer, other.choices)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    assert many[0].images[0].tobytes() != pictures.questions(1, seed=8)[0].images[0].tobytes()


def test_streams_share_no_pictures():
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
def test_constant_answers_score_near_chance(task):
    asked = pictures.questions(600, seed=2, tasks=[task])
    best = Counter(question.answer for question in asked).most_common(1)[0][1] / len(asked)
    chance = sum(1 / len(question.choices) for question in asked) / len(asked)
    assert best <= max(1.6 * chance, chance + 0.15), (
        f"always answering the same is right {best:.0%}, chance {chance:.0%}"
    )


def test_more_than_half_of_a_picture_is_background():
    """Count the pixels within the noise of the most common colour."""
    shares = []
    for question in pictures.questions(80, seed=4, tasks=["colour"]):
        pixels = torch.tensor(list(question.images[0].getdata()), dtype=torch.float32)
        common = pixels.median(0).values
        shares.append(((pixels - common).abs().amax(1) < 24).float().mean().item())
    assert sum(shares) / len(shares) > 0.5


def test_facts_have_distinct_choices_and_training_asks_about_others():
    asked = facts.questions(400, seed=0)
    assert all(question.answer in question.choices for question in asked)
    assert all(len(set(question.choices)) == facts.CHOICES for question in asked)
    assert not {question.text for question in asked} & {
        question.text for question in facts.questions(400, seed=0, stream="training")
    }
    again = facts.questions(30, seed=0)
    assert [question.text for question in again] == [question.text for question in asked[:30]]
    with_noun = [question for question in asked if question.task == "next"]
    assert with_noun and all(question.answer not in question.text for question in with_noun)


def test_smol_vqa_has_three_picture_sizes_and_plain_english():
    asked = pictures.questions(200, seed=0, name="smol-vqa")
    assert {question.images[0].size for question in asked} == {(128, 128), (128, 64), (64, 128)}
    for question in asked:
        assert question.text[0].isupper() and question.text.endswith("?") and " ?" not in question.text
        assert question.answer in question.choices and len(set(question.choices)) == len(question.choices)
    numbers = [question.answer for question in asked if question.task == "number"]
    assert all(number.isdigit() and len(number) == 2 for number in numbers)


def test_training_and_evaluation_prose_share_no_text():
    measured = prose.texts()
    assert all(len(text) > 10_000 for text in measured.values())
    read = prose.docstrings()
    assert len(read) > 100 and not any(text[:200] in measured[name] for text in read for name in measured)
