"""A small procedural world of pictures and questions with known answers.

A picture is a grid of 16-pixel cells over a faintly noisy background, a few coloured shapes, each in a cell of its own, and
up to two signs, one with a two-digit number and one with a three-letter word. Questions come from ten tasks; eight are about
one picture, two compare a pair. There are two sets of questions: one about pictures of 4 x 4 cells in the words of a small
vocabulary, and one about larger pictures of several shapes in plain English.
"""

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from tamp.errors import UserError
from tamp.records import Question
from tamp.worlds.drawing import SHAPES
from tamp.worlds.scenes import GRID, MOST_OBJECTS, PALETTE, WORDS, Item, Scene, make_scene, render

SIZES = {"mini-vqa": (((4, 4),), ((4, 4),)), "smol-vqa": (((8, 8), (4, 8), (8, 4)), ((4, 8), (8, 4)))}
"""Set of questions to (sizes of single pictures, sizes of paired ones), each (rows, columns) of cells."""

SINGLE_TASKS = ("colour", "shape", "count", "exist", "position", "relation", "number", "word")
PAIR_TASKS = ("compare", "match")
TASKS: tuple[str, ...] = SINGLE_TASKS + PAIR_TASKS
"""Every task, in the order in which a round asks them."""

YES_NO = ("yes", "no")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
COUNTS = ("0", "1", "2", "3", "4")
ORDER = ("first", "second")
ACROSS = ("left", "right")
DOWN = ("above", "below")
NUMBER_CHOICES = 10


def _once(scene: Scene, attribute: str) -> list[Item]:
    values = [getattr(item, attribute) for item in scene.items]
    return [item for item, value in zip(scene.items, values, strict=True) if values.count(value) == 1]


def _named(scene: Scene) -> list[tuple[str, Item]]:
    """List every way to point at exactly one object by a single attribute."""
    by_shape = [(item.shape, item) for item in _once(scene, "shape")]
    return by_shape + [(f"{item.colour} object", item) for item in _once(scene, "colour")]


def _pick(random: np.random.Generator, options: Collection):
    return tuple(options)[random.integers(len(options))]


def _ask_colour(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    item = _pick(random, _once(scene, "shape"))
    return f"what color is the {item.shape} ?", item.colour


def _ask_shape(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    item = _pick(random, _once(scene, "colour"))
    return f"what shape is the {item.colour} object ?", item.shape


def _ask_count(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    seen = [item.colour for item in scene.items] + [item.shape for item in scene.items]
    counts = {value: seen.count(value) for value in PALETTE + SHAPES}
    # Nearly every value occurs zero times or once: without weights those two answers would swamp the others.
    largest = max(counts.values())
    wanted = _pick(random, (0, 1, largest, largest, largest))
    value = _pick(random, [value for value, count in counts.items() if count == wanted])
    return f"how many {value} objects are there ?", str(wanted)


def _ask_exist(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    present = {(item.colour, item.shape) for item in scene.items}
    if random.integers(2):
        colour, shape = _pick(random, sorted(present))
        return f"is there a {colour} {shape} ?", "yes"
    # Half of the absent pairs have a colour and a shape that both occur, so that neither alone gives the answer.
    near = random.integers(2)
    colours = sorted({item.colour for item in scene.items}) if near else PALETTE
    shapes = sorted({item.shape for item in scene.items}) if near else SHAPES
    absent = [(colour, shape) for colour in colours for shape in shapes if (colour, shape) not in present]
    colour, shape = _pick(random, absent)
    return f"is there a {colour} {shape} ?", "no"


def _ask_position(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    name, item = _pick(random, _named(scene))
    return f"where is the {name} ?", PLACES[2 * (2 * item.row >= scene.rows) + (2 * item.column >= scene.columns)]


def _ask_relation(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    names = _named(scene)
    if len({item for _, item in names}) < 2:
        # Rarely one object alone has a name of its own; colour and shape together always tell objects apart.
        names = [(f"{item.colour} {item.shape}", item) for item in scene.items]
    pairs = [(a, b) for a in names for b in names if a[1] is not b[1]]
    (name, item), (other_name, other) = _pick(random, pairs)
    across, down = item.column - other.column, item.row - other.row
    # Objects level with each other are never asked about along that axis.
    if across and (not down or random.integers(2)):
        return f"is the {name} left or right of the {other_name} ?", ACROSS[across > 0]
    return f"is the {name} above or below the {other_name} ?", DOWN[down > 0]


def _ask_sign(kind: str) -> Callable[[Scene, np.random.Generator], tuple[str, str]]:
    def ask(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
        text = next(sign.text for sign in scene.signs if sign.kind == kind)
        return f"what {kind} is shown ?", " ".join(text) if kind == "number" else text

    return ask


_ASK = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "exist": _ask_exist,
    "position": _ask_position,
    "relation": _ask_relation,
    "number": _ask_sign("number"),
    "word": _ask_sign("word"),
}

_CHOICES = {
    "colour": PALETTE,
    "shape": SHAPES,
    "count": COUNTS,
    "exist": YES_NO,
    "position": PLACES,
    "word": WORDS,
    "compare": ORDER,
    "match": ORDER,
}


def ask(task: str, scene: Scene, random: np.random.Generator) -> tuple[str, str, tuple[str, ...]]:
    """Ask one question about one scene.

    Args:
        task: One of `SINGLE_TASKS`; "number" and "word" need a scene with signs.
        scene: What the picture shows.
        random: Picks among the possible questions.

    Returns:
        The question, its answer, and the choices.
    """
    text, answer = _ASK[task](scene, random)
    if task == "number":
        return text, answer, _number_choices(answer, random)
    if task == "relation":
        return text, answer, ACROSS if answer in ACROSS else DOWN
    return text, answer, _CHOICES[task]


def _number_choices(answer: str, random: np.random.Generator) -> tuple[str, ...]:
    """Mix the answer with numbers that share its first or its last digit, and with others."""
    first, last = answer.split()
    near = [f"{first} {digit}" for digit in random.permutation(10) if str(digit) != last][:4]
    near += [f"{digit} {last}" for digit in random.permutation(np.arange(1, 10)) if str(digit) != first][:3]
    others = (" ".join(str(number)) for number in random.permutation(np.arange(10, 100)))
    far = [number for number in others if number != answer and number not in near]
    return tuple(sorted([answer, *near, *far[: NUMBER_CHOICES - 1 - len(near)]]))


def make_pair(
    random: np.random.Generator, *, most: int = MOST_OBJECTS, size: tuple[int, int] = (GRID, GRID)
) -> tuple[Scene, Scene]:
    """Compose two scenes without signs that differ in their number of objects.

    Args:
        random: Source of randomness.
        most: Largest number of shapes, 3 to 6.
        size: Rows and columns of cells of both.

    Returns:
        Two scenes, each with an object of a look the other does not show.
    """
    while True:
        limits = random.integers(2, most + 1, 2)
        first, second = (make_scene(random, most=int(limit), signs=False, size=size) for limit in limits)
        if len(first.items) != len(second.items) and all(_only(first, second)):
            return first, second


def _only(first: Scene, second: Scene) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """List the looks that only the first, and that only the second scene shows."""
    looks, other_looks = ([(item.colour, item.shape) for item in scene.items] for scene in (first, second))
    return [look for look in looks if look not in other_looks], [look for look in other_looks if look not in looks]


def ask_pair(task: str, pair: tuple[Scene, Scene], random: np.random.Generator) -> tuple[str, str, tuple[str, ...]]:
    """Ask one question about a pair of scenes.

    Args:
        task: One of `PAIR_TASKS`.
        pair: What the two pictures show, as `make_pair` composes them.
        random: Picks among the possible questions.

    Returns:
        The question, its answer, and the choices.
    """
    if task == "compare":
        return "which picture has more objects ?", ORDER[len(pair[1].items) > len(pair[0].items)], _CHOICES[task]
    which = int(random.integers(2))
    colour, shape = _pick(random, _only(*pair)[which])
    return f"which picture has a {colour} {shape} ?", ORDER[which], _CHOICES[task]


def plain(text: str) -> str:
    """Write a question or an answer of the small vocabulary in plain English."""
    if text.endswith(" ?"):
        return text[0].upper() + text[1:-2] + "?"
    return text.replace(" ", "").replace("-", " ")


def _round(random: np.random.Generator, tasks: Collection[str], name: str) -> Iterator[Question]:
    """Ask every wanted task once: first those about one picture, then those about a pair."""
    alone, paired = ({"size": _pick(random, sizes)} if len(sizes) > 1 else {} for sizes in SIZES[name])
    scene, pair = make_scene(random, **alone), make_pair(random, **paired)
    single = (Image.fromarray(render(scene, random)),)
    double = tuple(Image.fromarray(render(each, random)) for each in pair)
    word = str if name == "mini-vqa" else plain
    for task in TASKS:
        if task not in tasks:
            continue
        one = task in SINGLE_TASKS
        text, answer, choices = ask(task, scene, random) if one else ask_pair(task, pair, random)
        yield Question(
            task=task,
            images=single if one else double,
            text=word(text),
            answer=word(answer),
            choices=tuple(map(word, choices)),
        )


def questions(
    n: int, *, seed: int, stream: str = "evaluation", tasks: Iterable[str] | None = None, name: str = "mini-vqa"
) -> list[Question]:
    """Make questions, the tasks taking turns.

    The same arguments always give the same questions, and the first of a longer list are those of a shorter one.
    Streams never share pictures. Up to eight consecutive questions are about one picture.

    Args:
        n: How many.
        seed: Number of the list within its stream, not negative.
        stream: Name of the use, such as "training", "evaluation" or "calibration".
        tasks: Which tasks; all by default.
        name: Set of questions, a key of `SIZES`.

    Returns:
        The questions, each task as often as any other, give or take one.

    Raises:
        UserError: `n` or `seed` is negative, or a task is unknown, or none is given.
    """
    wanted = frozenset(TASKS if tasks is None else tasks)
    return in_rounds(lambda random: _round(random, wanted, name), n, seed, stream, wanted, TASKS)


def in_rounds(
    ask_round: Callable[[np.random.Generator], Iterable[Question]],
    n: int,
    seed: int,
    stream: str,
    wanted: Collection[str],
    known: Sequence[str],
) -> list[Question]:
    """Ask round after round until there are `n` questions; a round depends on stream, seed and its number alone.

    Args:
        ask_round: Asks every wanted task once.
        n: How many questions.
        seed: Number of the list within its stream, not negative.
        stream: Name of the use.
        wanted: Tasks that are asked for.
        known: Tasks that there are.

    Raises:
        UserError: `n` or `seed` is negative, or a task is unknown, or none is given.
    """
    if n < 0 or seed < 0:
        raise UserError(f"n and seed must not be negative: {n}, {seed}.")
    if not wanted or set(wanted) - set(known):
        raise UserError(f"Tasks are some of {', '.join(known)}, not {', '.join(sorted(wanted)) or 'none'}.")
    asked: list[Question] = []
    turn = 0
    while len(asked) < n:
        random = np.random.default_rng(np.random.SeedSequence((zlib.crc32(stream.encode()), seed, turn)))
        asked.extend(ask_round(random))
        turn += 1
    return asked[:n]
