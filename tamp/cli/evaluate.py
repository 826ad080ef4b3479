"""``tamp evaluate``: evaluate models on one benchmark or several, and compare them question by question."""

import argparse
import os
from pathlib import Path

from tamp.cli import common
from tamp.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    common.model_arguments(parser)
    parser.add_argument("others", nargs="*", help="further models, such as pruned versions, compared with the first")
    common.question_arguments(parser, None, "1000 of a shipped set, all of anything else", several=True)
    common.error_argument(parser)
    parser.add_argument("--out", help="also write the table as CSV")
    published = parser.add_argument_group("published benchmarks")
    published.add_argument(
        "--data", help="local copy of the benchmark's repository, or a folder of such copies by name (default: the hub)"
    )
    published.add_argument(
        "--protocol", help="prompts and scoring rules: lmms-eval, videollama2 or plain (default: lmms-eval)"
    )
    published.add_argument("--batch-size", type=int, help="questions answered at once (default: 8)")
    published.add_argument("--frames", type=int, help="number of video frames to show as pictures")
    published.add_argument("--records", help="folder to record every answer in; the same command resumes")
    published.add_argument(
        "--no-likelihood",
        dest="likelihood",
        action="store_false",
        default=None,
        help="do not compare the options by likelihood",
    )


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import pandas as pd

    import tamp
    from tamp import conversations, files
    from tamp.evaluation import benchmarks, evaluating, scoring

    if options.out:
        files.check_file(options.out)

    names = options.benchmark or [conversations.own_set(options.model, None, "--benchmark")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The benchmark {twice!r} is named twice: leave one out.")
    for name in names:
        evaluating.check_name(name)
    published = _options(options, names)
    if not any(name in conversations.SETS for name in names):
        common.refuse_idle(options, ["question_seed"], "without a shipped set: other questions come in their own order")
    if all(name in published or name in conversations.SETS for name in names):
        common.refuse_idle(options, ["on_error"], "without a file of questions")
    models = [options.model, *options.others]
    if len(set(models)) < len(models):
        raise UserError("A model is named twice: leave one out.")
    tables, points, skipped = {}, {}, {}
    for place in models:
        if len(models) > 1:
            print(f"{place}\n")
        model, processor = tamp.load(place, options.device, options.dtype, "auto")
        for name, known in published.items():
            benchmarks.check(processor, name, known.get("protocol"), known.get("frames"))
        for name in names:
            asked = (model, processor, name, options.n_questions)
            if name in published:
                of_it = dict(published[name])
                if "recorded" in of_it and len(models) > 1:
                    folder = f"{models.index(place)}-{Path(place).name}"
                    of_it["recorded"] = of_it["recorded"].parent / folder / of_it["recorded"].name
                scored = benchmarks.answers(*asked, progress=common.bars(), **of_it)
                scores, form = benchmarks.summarise(scored), benchmarks.in_per_cent
                points[place, name] = scored.fillna({"configuration": ""}).set_index(["configuration", "number"])[
                    "score"
                ]
            else:
                scored = scoring.answers(*asked, options.question_seed, common.bars(), options.on_error)
                scores, form = scoring.summarise(scored), scoring.in_per_cent
                points[place, name] = scored["correct"].astype(float)
                if skipped.setdefault(name, scored.attrs["skipped"]) != scored.attrs["skipped"]:
                    raise UserError(
                        f"{place} cannot answer the same questions of {name} as {models[0]}: other records were skipped. "
                        "Evaluate the two one by one."
                    )
            tables[place, name] = scores
            if len(names) > 1:
                print(f"{name}\n")
            print(form(scores).to_string(index=False))
            if "f1" in scores.attrs:
                print(f"F1 {100 * scores.attrs['f1']:.1f}")
            if len(names) > 1 or len(models) > 1:
                print()
        del model
    if len(models) > 1:
        print(f"Difference to {models[0]} on the same questions (points)\n")
        print(_differences(points, models, names).round(1).to_string(index=False))
    if options.out:
        whole = pd.concat(tables, names=["model", "benchmark"]).reset_index(["model", "benchmark"])
        alike = [column for column, every in (("model", models), ("benchmark", names)) if len(every) == 1]
        files.write_text(options.out, whole.drop(columns=alike).to_csv(index=False))


def _differences(points: dict, models: list[str], names: list[str]):
    """Compare every model with the first, benchmark by benchmark, on the questions that both were asked."""
    import pandas as pd

    from tamp.evaluation import paired

    rows = []
    for name in names:
        for place in models[1:]:
            both = pd.concat([points[place, name], points[models[0], name]], axis=1, join="inner").to_numpy()
            gain, low, high = paired.difference(both[:, 0], both[:, 1])
            rows.append(
                {"benchmark": name, "model": place, "n": len(both), "difference": gain, "low": low, "high": high}
            )
    return pd.DataFrame(rows)


def _options(options: argparse.Namespace, names: list[str]) -> dict[str, dict]:
    """Return the options of every published benchmark that is asked for.

    Raises:
        UserError: if one is given and no published benchmark is asked for.
    """
    from tamp.evaluation import benchmarks
    from tamp.evaluation.benchmarks import running

    given = ("data", "protocol", "batch_size", "frames", "records", "likelihood")
    set_ = {name: getattr(options, name) for name in given if getattr(options, name) is not None}
    asked = [name for name in names if name in benchmarks.TABLE]
    protocols = running.chosen(asked, options.protocol)
    shown = any(benchmarks.TABLE[name].kind == "video" for name in asked)
    published = {}
    for name in asked:
        of_it = dict(set_)
        if shown and benchmarks.TABLE[name].kind != "video":
            of_it.pop("frames", None)
        if records := of_it.pop("records", None):
            of_it["recorded"] = Path(records) / f"{name}.jsonl"
        if "data" in of_it and os.path.isdir(os.path.join(of_it["data"], name)):
            of_it["data"] = Path(of_it["data"]) / name
        of_it["protocol"] = protocols[name]
        published[name] = of_it
    if set_ and not published:
        option = f"--{next(iter(set_)).replace('_', '-')}" if "likelihood" not in set_ else "--no-likelihood"
        raise UserError(f"{option} is for published benchmarks: {', '.join(benchmarks.TABLE)}.")
    return published
