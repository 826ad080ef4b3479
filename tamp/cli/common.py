"""Arguments that several commands share."""

import argparse
import sys
from collections.abc import Iterable, Sequence

from tamp.errors import UserError


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
        help="prune a model even if more than a hundredth of its decoder is unknown to tamp and stays dense",
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
    """Add where calibration samples come from, and which of them are taken."""
    parser.add_argument(
        "--calibration",
        help="a shipped set, a data set of the hub, tamp-llava-next or tamp-videollama2 (the paper's settings), a file or a "
        "folder (default: the set of a shipped model)",
    )
    parser.add_argument(
        "--mix",
        nargs="+",
        metavar="SOURCE=SHARE",
        help="several sources with their shares, such as a.jsonl=0.7 facts=0.3",
    )
    parser.add_argument(
        "--filter",
        nargs="+",
        metavar="COLUMN=VALUE",
        help="take only records with this value, such as data_source=sharegpt4v*",
    )
    parser.add_argument(
        "--balance", nargs="+", metavar="KIND", help="draw equal numbers of records of these kinds, such as text image"
    )
    parser.add_argument("--min-tokens", type=int, default=0, help="leave out shorter calibration samples")
    parser.add_argument("--max-tokens", type=int, help="leave out longer calibration samples")
    parser.add_argument("--media", help="folder of pictures, videos and sounds, if not beside the records")
    samples_argument(parser)
    error_argument(parser)
    parser.add_argument(
        "--calibration-seed",
        "--seed",
        type=int,
        default=42,
        help="random seed for drawing calibration samples (default: 42)",
    )


CALIBRATION = ("calibration", "mix", "filter", "balance", "min_tokens", "max_tokens", "media")
"""Options that say which samples are taken."""

DRAWN = (*CALIBRATION, "n_samples", "on_error", "calibration_seed")
"""All options of a command that takes calibration samples."""


def refuse_idle(options: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuse options that have no effect beside the others, unless they are as they are by default.

    Raises:
        UserError: naming the first of them.
    """
    for name in names:
        spelled, usual = options.usual[name]
        if getattr(options, name) != usual:
            raise UserError(f"{spelled} has no effect {why}: leave it out.")


def calibration_source(options: argparse.Namespace, model: str, needed: bool = True):
    """Return the source of calibration samples that a command line asks for, and the options of its draw.

    Args:
        options: of the command line.
        model: which may have a set of its own.
        needed: whether anything looks at samples; if nothing does, options about them are refused.
    """
    from tamp import conversations

    if not needed:
        refuse_idle(options, DRAWN, "because the chosen methods use no calibration samples")
        return "", {}
    if options.mix and options.calibration:
        raise UserError("--mix names the calibration sets itself: leave out --calibration.")
    if options.mix:
        source = {}
        for name, share in _pairs("--mix", options.mix):
            try:
                source[name] = float(share)
            except ValueError as error:
                raise UserError(f"--mix takes SOURCE=SHARE, a share such as 0.7, not {share!r}.") from error
    else:
        source = conversations.own_set(model, options.calibration, "--calibration")
        if source in conversations.SETS:
            refuse_idle(options, (*CALIBRATION[2:], "on_error"), f"on {source}, a shipped set")
    return source, {
        "filter": dict(_pairs("--filter", options.filter or ())),
        "balance": options.balance or (),
        "min_tokens": options.min_tokens,
        "max_tokens": options.max_tokens,
        "media": options.media,
    }


def _pairs(option: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``NAME=VALUE`` at the last sign for shares, at the first for values."""
    made = []
    for each in given:
        name, sign, value = each.rpartition("=") if option == "--mix" else each.partition("=")
        if not (name and sign and value):
            raise UserError(f"{option} takes NAME=VALUE, not {each!r}.")
        made.append((name, value))
    return made


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
