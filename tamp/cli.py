"""The command line: a thin skin over the functions of the package, one sentence for every mistake."""

import argparse
import copy
import logging
import os
import sys
import time
from pathlib import Path

import pandas as pd

DEMO = {"smol-llava-next": (0.5, 300, 16), "mini-llava-next": (0.7, 1000, 64)}
"""Model to the demo's sparsity, questions and calibration samples."""
DEMO_METHODS = ("magnitude", "wanda", "tamp")
DEBUG_HINT = "Run again with --debug to see where."


def main(arguments: list[str] | None = None) -> int:
    """Run ``tamp ...`` and return its exit status: 0, 2 for a user's mistake, 130 when interrupted, 1 for anything else."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.debug else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers  # after the parser: --help should not wait for it

    from tamp.errors import UserError

    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries, twice each; the end is told below
    transformers.utils.logging.disable_progress_bar()
    try:
        options.run(options)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            raise
        notes = " ".join(getattr(error, "__notes__", []))
        if isinstance(error, KeyboardInterrupt):
            said, status = "interrupted.", 130
        elif isinstance(error, UserError):
            said, status = str(error), 2
        else:
            said, status = f"{type(error).__name__}: {error} {DEBUG_HINT}", 1
        print(f"tamp: {said} {notes}".strip(), file=sys.stderr)
        return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tamp", description="Prune multimodal large language models after training.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, summary: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.set_defaults(run=run)
        made.add_argument("--debug", action="store_true", help="show tracebacks")
        return made

    def shared(made: argparse.ArgumentParser) -> None:
        made.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
        made.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")

    prune = command("prune", _prune, "prune a model and save it")
    prune.add_argument("model", help="a shipped name, a folder or a hub id")
    prune.add_argument("--preset", default="tamp", help="a row of the table of methods (default: tamp)")
    prune.add_argument("--sparsity", type=float, help="share of weights to drop (default: 0.5)")
    prune.add_argument("--pattern", help="n:m, such as 2:4, instead of a sparsity")
    prune.add_argument("--allocation", help="uniform, owl, alphapruning, ecoflap or das, instead of the preset's")
    prune.add_argument("--tokens", help="all, text, atv or amia, instead of the preset's")
    prune.add_argument("--criterion", help="magnitude, wanda or sparsegpt, instead of the preset's")
    prune.add_argument(
        "--calibration", help="a shipped set, a file or a datasets folder (default: the set of a shipped model)"
    )
    prune.add_argument("--n", type=int, default=128, help="calibration samples (default: 128)")
    prune.add_argument("--seed", type=int, default=42, help="of the calibration samples (default: 42)")
    prune.add_argument("--out", required=True, help="folder to save to")
    prune.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    shared(prune)

    evaluate = command("evaluate", _evaluate, "evaluate a model on a benchmark")
    evaluate.add_argument("model", help="a shipped name, a folder or a hub id")
    evaluate.add_argument(
        "--benchmark", help="a shipped benchmark or a file of questions (default: the set of a shipped model)"
    )
    evaluate.add_argument("--limit", type=int, help="how many questions")
    evaluate.add_argument("--seed", type=int, default=0, help="of a shipped benchmark's questions (default: 0)")
    evaluate.add_argument("--out", help="also write the table as CSV")
    shared(evaluate)

    verify = command("verify", _verify, "check a saved folder against its manifest")
    verify.add_argument("folder")

    convert = command("convert-videollama2", _convert, "convert published VideoLLaMA 2 weights so that tamp loads them")
    convert.add_argument("source", help="folder of the published checkpoint")
    convert.add_argument("out", help="folder to write")
    convert.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")

    demo = command("demo", _demo, "prune a model that tamp knows by name, evaluate before and after, write a page")
    demo.add_argument("--model", default="smol-llava-next", choices=DEMO, help="default: smol-llava-next")
    demo.add_argument("--sparsity", type=float, help="share of weights to drop (default: 0.5, the mini model 0.7)")
    demo.add_argument("--limit", type=int, help="questions (default: 300, the mini model 1000)")
    demo.add_argument("--n", type=int, help="calibration samples (default: 16, the mini model 64)")
    demo.add_argument("--out", default="demo.html", help="page to write")
    shared(demo)
    return parser


def _prune(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations
    from tamp.checkpoint import check_free

    changes = {
        name: getattr(options, name)
        for name in ("sparsity", "pattern", "allocation", "tokens", "criterion")
        if getattr(options, name) is not None
    }
    recipe = tamp.Recipe.preset(options.preset, **changes)
    check_free(options.out, options.overwrite)  # before the work, not after it
    source = conversations.own_set(options.model, options.calibration, "--calibration") if recipe.needs_samples else ""
    model, processor = tamp.load(options.model, options.device, options.dtype)
    samples = tamp.calibration_set(source, processor, options.n, options.seed) if recipe.needs_samples else None
    report = tamp.prune(model, samples, recipe, progress=_bars())
    print(report)
    print(f"saved to {tamp.save(model, processor, options.out, report=report, overwrite=options.overwrite)}")


def _evaluate(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations, evaluation

    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    model, processor = tamp.load(options.model, options.device, options.dtype)
    scores = tamp.evaluate(model, processor, benchmark, options.limit, options.seed, _bars())
    print(_percent(pd.concat([scores, evaluation.overall(scores)])).to_string(index=False))
    if options.out:
        scores.to_csv(options.out, index=False)


def _verify(options: argparse.Namespace) -> None:
    import tamp

    manifest = tamp.verify(options.folder)
    report = manifest["report"]
    print(
        f"{options.folder}: {len(manifest['files'])} weight files as saved"
        + (f", {report['sparsity']:.4%} of {report['weights']:,} pruned weights are zero" if report else "")
    )


def _convert(options: argparse.Namespace) -> None:
    from tamp.videollama2.convert import convert

    print(f"saved to {convert(options.source, options.out, options.overwrite)}")


def _demo(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations, evaluation, figures, report

    start = time.perf_counter()
    sparsity, limit, n = (
        usual if given is None else given
        for given, usual in zip((options.sparsity, options.limit, options.n), DEMO[options.model])
    )
    recipes = {preset: tamp.Recipe.preset(preset, sparsity=sparsity) for preset in DEMO_METHODS}
    model, processor = tamp.load(options.model, options.device, options.dtype)
    source = conversations.OWN_SETS[options.model]
    benchmark = evaluation.prepare(processor, source, limit)
    samples = tamp.calibration_set(source, processor, n)
    scores = {"dense": tamp.evaluate(model, processor, benchmark, progress=_bars())}
    reports = {}
    for preset, recipe in recipes.items():
        pruned = copy.deepcopy(model)
        reports[preset] = tamp.prune(pruned, samples, recipe, _bars())
        scores[preset] = tamp.evaluate(pruned, processor, benchmark, progress=_bars())

    every = pd.concat(
        {name: pd.concat([table, evaluation.overall(table)]) for name, table in scores.items()}, names=["model"]
    )
    every = _percent(every.reset_index("model"))
    totals = every[every["task"] == "all"].drop(columns="task").set_index("model")
    totals.insert(0, "sparsity", [0.0, *(100 * reports[name].sparsity for name in DEMO_METHODS)])
    tasks = every.pivot(index="task", columns="model", values="accuracy")[list(scores)].reindex(scores["dense"]["task"])
    print(totals.round(2).to_string())
    page = report.write_html(
        options.out,
        f"tamp: {options.model} at {sparsity:.0%} sparsity",
        [
            ("Before and after", totals.round(3)),
            ("Accuracy per task (%)", tasks),
            ("", figures.accuracy_figure(scores)),
            *((f"How {name} pruned", made) for name, made in reports.items()),
        ],
    )
    print(f"{time.perf_counter() - start:.0f} s; figures and details: {Path(page).resolve()}")


def _bars() -> bool:
    """Whether to show progress: to a person, not to a log file."""
    return sys.stderr.isatty()


def _percent(scores: pd.DataFrame) -> pd.DataFrame:
    """Write the shares of a table of scores in per cent, for reading."""
    shares = ["accuracy", "low", "high", "choice_accuracy", "chance"]
    return scores.assign(**{name: (100 * scores[name]).round(1) for name in shares}, nll=scores["nll"].round(3))


if __name__ == "__main__":
    sys.exit(main())
