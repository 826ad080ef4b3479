"""Short questions without pictures, about things that a pretrained language model knows."""

import zlib

import numpy as np

from tamp.records import Question

_PAIRS = {
    "capital": (
        "What is the capital of {}?",
        "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, Russia Moscow, Greece Athens, Egypt Cairo, "
        "China Beijing, Austria Vienna, Ireland Dublin, Portugal Lisbon, Poland Warsaw, Hungary Budapest, Cuba Havana, "
        "Sweden Stockholm, Norway Oslo, Peru Lima, Kenya Nairobi, Iraq Baghdad, Canada Ottawa, Denmark Copenhagen",
    ),
    "opposite": (
        'What is the opposite of "{}"?',
        "hot cold, big small, up down, good bad, open closed, light dark, fast slow, high low, happy sad, rich poor, "
        "strong weak, young old, early late, full empty, wet dry, hard soft, long short, true false, day night, war peace",
    ),
    "past": (
        'What is the past tense of "{}"?',
        "go went, see saw, eat ate, run ran, give gave, take took, come came, write wrote, begin began, know knew, "
        "speak spoke, think thought, buy bought, find found, fall fell, drive drove, sing sang, teach taught, grow grew, "
        "hold held",
    ),
    "plural": (
        'What is the plural of "{}"?',
        "child children, man men, mouse mice, foot feet, tooth teeth, goose geese, leaf leaves, city cities, box boxes, "
        "wolf wolves, knife knives, person people, story stories, bus buses, woman women, life lives, baby babies, "
        "dish dishes, hero heroes, party parties",
    ),
    "next": (
        "What comes after {}?",
        "Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday, Saturday Sunday, "
        "January February, February March, March April, April May, May June, June July, July August, August September, "
        "September October, October November, November December, two three, five six, eight nine",
    ),
}
TASKS = tuple(_PAIRS)
CHOICES = 4


def questions(n: int, *, seed: int, stream: str = "evaluation") -> list[Question]:
    """Make questions with four choices each, the tasks taking turns.

    Args:
        n: How many.
        seed: Number of the list within its stream, not negative.
        stream: "training" asks about one half of the facts, every other stream about the other half.

    Returns:
        The questions, without pictures; a fact may be asked about again, with other choices.
    """
    random = np.random.default_rng(np.random.SeedSequence((zlib.crc32(stream.encode()), seed)))
    made = []
    for number in range(n):
        task = TASKS[number % len(TASKS)]
        text, listed = _PAIRS[task]
        pairs = [tuple(pair.split()) for pair in listed.split(", ")]
        half = pairs[stream == "training" :: 2]
        asked, answer = half[random.integers(len(half))]
        others = [other for _, other in pairs if other not in (asked, answer)]
        wrong = [str(other) for other in random.permutation(others)[: CHOICES - 1]]
        made.append(
            Question(
                task=task, images=(), text=text.format(asked), answer=answer, choices=tuple(sorted([answer, *wrong]))
            )
        )
    return made
