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
    from tamp.recipe import METHODS, PRESETS, SAMPLES

    parser.add_argument("--preset", default="tamp", help=f"{', '.join(PRESETS)} (default: tamp)")
    parser.add_argument("--sparsity", type=float, help="share of weights to drop (default: 0.5)")
    parser.add_argument("--pattern", help="n:m, such as 2:4, instead of a sparsity")
    for axis in axes:
        parser.add_argument(f"--{axis}", help=f"{', '.join(METHODS[axis])}, instead of the preset's")
    known = {"allocation_samples": SAMPLES}
    known |= {name: option for axis in axes for row in METHODS[axis].values() for name, option in row.options.items()}
    for name, option in known.items():
        kind = type(option.default)
        choices = option.choices or None
        said = f"{option.meaning} (default: {option.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, choices=choices, help=said)
    parser.set_defaults(fields=("sparsity", "pattern", *axes, *known))
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="prune a model that holds much of its decoder in something that tamp does not know, which stays dense",
    )
    parser.add_argument(
        "--calibration", help="a shipped set, a file or a datasets folder (default: the set of a shipped model)"
    )
    samples_argument(parser)
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


def question_arguments(parser: argparse.ArgumentParser, default: int | None, usual: str, several: bool = False) -> None:
    """Add which questions are asked, and how many."""
    what = (
        "shipped sets, files of questions or published benchmarks"
        if several
        else "a shipped set or a file of questions"
    )
    parser.add_argument(
        "--benchmark", nargs="+" if several else None, help=f"{what} (default: the set of a shipped model)"
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
