"""One door to evaluation: shipped sets and files of questions, and published benchmarks by name."""

import os
from pathlib import Path

import pandas as pd
from torch import nn

from tamp import conversations
from tamp.errors import UserError, unknown
from tamp.evaluation import benchmarks, scoring
from tamp.evaluation.questions import Benchmark


def evaluate(
    model: nn.Module,
    processor,
    benchmark: str | Path | Benchmark,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """Evaluate a model on a benchmark.

    Args:
        model: a model from :func:`tamp.load`, pruned or not.
        processor: its processor.
        benchmark: a shipped set (``"mini-vqa"``, ``"smol-vqa"``, ``"facts"``, ``"smol-avqa"``), a ``.jsonl`` or ``.json``
            file of questions (see :func:`tamp.conversations.questions`), one from :func:`tamp.evaluation.prepare`, or a
            published benchmark (``"textvqa"``, ``"mvbench"``, ``"videomme"``, ``"nextqa"``, ``"egoschema"``,
            ``"muirbench"``, ``"blink"``, ``"clothoaqa"``, ``"vocalsound"``, ``"pope"``).
        limit: how many questions in all; None for 1000 of a shipped set, or all of anything else.
        seed: random seed for drawing the questions of a shipped set.
        progress: show a bar.
        options: for a set or a file ``on_error``, what to do with a record that cannot be used: ``"raise"`` its error, or
            ``"skip"`` it and warn at the end. For a published benchmark those of
            :func:`tamp.evaluation.benchmarks.answers`: ``data`` (a local copy), ``protocol``, ``batch_size``, ``recorded``
            (a file to go on from), ``likelihood`` and ``frames``.

    Returns:
        A row per task, with shares in [0, 1]: task, n, accuracy (greedy decoding; exact match, or the published metric),
        low and high (95 % Wilson interval of it), choice_accuracy (the choice with the highest likelihood), nll (nats per
        answer token), chance; for a published benchmark also the shares of answers that are empty and unparsable. Its
        ``attrs["scored"]`` is that of :func:`tamp.evaluation.answers`; for a published benchmark ``attrs`` also hold
        ``benchmark``, ``protocol`` and ``missing``, the questions that lack a file.

    Raises:
        UserError: if there is no such benchmark, a question, picture, video or sound is not right, the model does not
            take what the questions are about, or it has no language model head.
    """
    check_name(benchmark)
    if isinstance(benchmark, str) and benchmark in benchmarks.TABLE:
        if options.pop("on_error", "raise") != "raise":
            raise UserError(f"on_error has no effect on {benchmark}, a published benchmark: leave it out.")
        return benchmarks.summarise(
            benchmarks.answers(model, processor, benchmark, limit, progress=progress, **options)
        )
    if published := {"data", "protocol", "batch_size", "recorded", "likelihood", "frames"}.intersection(options):
        raise UserError(
            f"{min(published)} is for published benchmarks ({', '.join(benchmarks.TABLE)}); {benchmark} does not use it."
        )
    if options.get("on_error", "raise") != "raise" and isinstance(benchmark, str) and benchmark in conversations.SETS:
        raise UserError(f"on_error has no effect on {benchmark}, a shipped set: leave it out.")
    return scoring.summarise(scoring.answers(model, processor, benchmark, limit, seed, progress, **options))


def check_name(benchmark) -> None:
    """Check that a benchmark that is given by name exists.

    Raises:
        UserError: if it does not.
    """
    if not isinstance(benchmark, str | Path) or os.path.exists(os.path.expanduser(benchmark)):
        return
    known = [*conversations.SETS, *benchmarks.TABLE]
    if str(benchmark) not in known:
        raise unknown("benchmark", str(benchmark), known, "A .jsonl or .json file or a datasets folder works too.")
