"""The training of mini-llava-next: `python -m training.mini --out data/mini-llava-next`.

After an interruption the same command resumes from its last checkpoint and ends with the same model. At every held-out
check it writes a loadable snapshot into the out folder.
"""

from training.running import command
from training.trainer import Recipe, Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; the process's own by default.

    Returns:
        0 when training is over, 3 when time ran out first; the same command then resumes.
    """
    return command("python -m training.mini", "build/mini-llava-next", Recipe(), Trainer, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
