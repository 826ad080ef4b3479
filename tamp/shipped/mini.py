"""Train the small shipped model: `python -m tamp.shipped.mini --out data/mini-llava-next`.

The command can be killed at any time and given again: it goes on from its last checkpoint and ends with the same
model. Along the way it keeps a loadable snapshot in the out folder.
"""

from tamp.shipped.running import command
from tamp.shipped.training import Recipe, Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; the process's own by default.

    Returns:
        0 when training is over, 3 when time ran out first: give the same command again.
    """
    return command("python -m tamp.shipped.mini", "build/mini-llava-next", Recipe(), Trainer, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
