"""Scores of published benchmarks: a row per task, and what a pruned model keeps of a dense one."""

import numpy as np
import pandas as pd

from tamp.errors import UserError
from tamp.evaluation import paired
from tamp.evaluation.tables import overall, rounded, wilson

COLUMNS = ("task", "n", "accuracy", "low", "high", "choice_accuracy", "nll", "chance", "empty", "unparsable")


def summarise(scored: pd.DataFrame) -> pd.DataFrame:
    """Average the answers to a published benchmark per task, in order of appearance.

    Args:
        scored: from :func:`tamp.evaluation.benchmarks.answers`.

    Returns:
        A row per task, shares in [0, 1]: task, n, accuracy (the published metric), low and high (95 % Wilson interval; for
        scores between 0 and 1 it is too wide rather than too narrow), choice_accuracy (the option with the highest
        likelihood; NaN without options), nll, chance, and the shares of answers that are empty and unparsable. Its
        ``attrs`` are those of the answers, and for POPE ``f1``, in which what is not "yes" counts as "no".
    """
    means = {name: (name, "mean") for name in ("nll", "chance", "empty", "unparsable")}
    table = (
        scored.groupby("task", sort=False)
        .agg(n=("score", "size"), accuracy=("score", "mean"), choice_accuracy=("choice_correct", "mean"), **means)
        .reset_index()
    )
    table["low"], table["high"] = wilson(table["accuracy"], table["n"])
    table = table[list(COLUMNS)]
    table.attrs = dict(scored.attrs)
    if scored.attrs["benchmark"] == "pope":
        table.attrs["f1"] = f1(scored["read"] == "A", scored["right"] == "A")
    return table


def f1(said: pd.Series, right: pd.Series) -> float:
    """Return the harmonic mean of precision and recall, 0 if nothing is both said and right."""
    both = (said & right).sum()
    return float(2 * both / (said.sum() + right.sum())) if both else 0.0


def refusal(scored: pd.DataFrame) -> str:
    """Return why answers do not bear a retention, in a sentence; "" if they do."""
    share = float((scored["empty"] | scored["unparsable"]).mean())
    if share <= paired.MOST_LOST:
        return ""
    return (
        f"{share:.0%} of the answers to {scored.attrs['benchmark']} are empty or unparsable, more than "
        f"{paired.MOST_LOST:.0%}: the score says how often the model keeps to the form. "
        "Compare the choices by likelihood, or prune less."
    )


def retention(dense: pd.DataFrame, pruned: pd.DataFrame, column: str = "score") -> dict[str, float]:
    """Compute what a pruned model keeps of the dense model's score.

    Args:
        dense: answers of the dense model, from :func:`tamp.evaluation.benchmarks.answers`.
        pruned: answers of the pruned model to the same questions.
        column: ``"score"``, the published metric, or ``"choice_correct"``, by likelihood.

    Returns:
        ``retention`` (pruned over dense), ``low`` and ``high`` (95 %, bootstrap over questions, paired).

    Raises:
        UserError: if the questions differ, the dense score is 0, or more than ``paired.MOST_LOST`` of either model's
            generated answers are empty or unparsable.
    """
    if column == "score":
        for scored in (dense, pruned):
            if why := refusal(scored):
                raise UserError(why)
    keys = ["configuration", "number"]
    one, other = (scored.fillna({"configuration": ""}).set_index(keys)[column] for scored in (dense, pruned))
    if len(one) != len(other) or set(one.index) != set(other.index):
        raise UserError("A retention compares answers to the same questions: evaluate both models with the same limit.")
    before, after = one.to_numpy(float), other.loc[one.index].to_numpy(float)
    if not np.isfinite(before).all() or before.mean() <= 0:
        raise UserError(f"The dense model's {column} is {before.mean():.2f}: there is nothing to keep of it.")
    kept = paired.retention(after, before)
    return dict(zip(("retention", "low", "high"), (value / 100 for value in kept)))


def in_per_cent(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a table of :func:`summarise` for reading: a last row over all tasks, shares in per cent, rounded."""
    return rounded(pd.concat([scores, overall(scores, always=())]) if len(scores) > 1 else scores)
