"""A training run without and with interruptions, for the tests of every shipped model's training."""

from collections.abc import Callable
from pathlib import Path


def whole_and_pieces(
    main: Callable[[list[str]], int], folder: Path, arguments: list[str], minutes: str, most: int
) -> tuple[Path, Path]:
    """Train to the end at once, and again with interruptions.

    Args:
        main: The training command; it returns 0 when training is over and 3 when time ran out.
        folder: Where to.
        arguments: Of both runs.
        minutes: Time limit of a piece.
        most: Largest number of interruptions.

    Returns:
        The folders of the two models.
    """

    def train(name: str, *more: str) -> int:
        return main(["--out", str(folder / name), "--work", str(folder / f"{name}-work"), *arguments, *more])

    assert train("whole") == 0
    stops = 0
    while train("pieces", "--minutes", minutes):
        stops += 1
        assert stops < most
    assert stops > 1
    return folder / "whole", folder / "pieces"
