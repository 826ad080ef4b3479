"""Arguments that several commands share."""

import argparse
import sys


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and where it is loaded."""
    parser.add_argument("model", help="a shipped name, a folder or a hub id")
    device_arguments(parser)


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add device and dtype."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")


def recipe_arguments(parser: argparse.ArgumentParser, *axes: str) -> None:
    """Add a preset, a level, a choice per axis, and every option that the tables list for these axes."""
    from tamp.recipe import PRESETS, SAMPLES

    parser.add_argument("--preset", default="tamp", help=f"{', '.join(PRESETS)} (default: tamp)")
    parser.add_argument("--sparsity", type=float, help="share of weights to drop (default: 0.5)")
    parser.add_argument(
        "--pattern", help="n:m, such as 2:4, instead of a sparsity; or dense|n:m beside it, every matrix dense or n:m"
    )
    known = method_arguments(parser, *axes, otherwise="instead of the preset's", more={"allocation_samples": SAMPLES})
    parser.set_defaults(fields=("sparsity", "pattern", *axes, *known))
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="prune a model that holds much of its decoder in something that tamp does not know, which stays dense",
    )
    calibration_arguments(parser)


def method_arguments(
    parser: argparse.ArgumentParser, *axes: str, otherwise: str, more: dict | None = None
) -> list[str]:
    """Add a choice per axis and every option that the tables list for these axes; return the names of the options."""
    from tamp.recipe import METHODS

    for axis in axes:
        parser.add_argument(f"--{axis}", help=f"{', '.join(METHODS[axis])}, {otherwise}")
    known = dict(more or {})
    known |= {name: option for axis in axes for row in METHODS[axis].values() for name, option in row.options.items()}
    for name, option in known.items():
        kind = type(option.default)
        choices = option.choices or None
        said = f"{option.meaning} (default: {option.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, choices=choices, help=said)
    return list(known)


def calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the calibration set, how many samples of it, and the seed of their draw."""
    parser.add_argument(
        "--calibration", help="a shipped set, a file or a datasets folder (default: the set of a shipped model)"
    )
    samples_argument(parser)
    error_argument(parser)
    parser.add_argument(
        "--calibration-seed",
        "--seed",
        type=int,
        default=42,
        help="random seed for drawing calibration samples (default: 42)",
    )


def samples_argument(parser: argparse.ArgumentParser) -> None:
    """Add the number of calibration samples."""
    parser.add_argument(
        "--n-samples", "--n", type=int, default=128, help="number of calibration samples (default: 128)"
    )


def error_argument(parser: argparse.ArgumentParser) -> None:
    """Add what to do with a record of a file that cannot be used."""
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a record that cannot be used: stop, or skip it and say so at the end (default: raise)",
    )


def question_arguments(parser: argparse.ArgumentParser, default: int | None, usual: str) -> None:
    """Add which questions are asked, and how many."""
    parser.add_argument(
        "--benchmark", help="a shipped set or a file of questions (default: the set of a shipped model)"
    )
    parser.add_argument(
        "--n-questions", "--limit", type=int, default=default, help=f"number of questions (default: {usual})"
    )
    parser.add_argument(
        "--question-seed",
        "--seed",
        type=int,
        default=0,
        help="random seed for drawing the questions of a shipped set (default: 0)",
    )


def bars() -> bool:
    """Return whether to show progress: on a terminal, not in a log file."""
    return sys.stderr.isatty()


def recipe_of(options: argparse.Namespace, **changes):
    """Return the recipe that a command line asks for; ``changes`` hold unless it says otherwise."""
    import tamp

    asked = {name: getattr(options, name) for name in options.fields if getattr(options, name) is not None}
    return tamp.Recipe.preset(options.preset, **{**changes, **asked})
