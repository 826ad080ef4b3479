"""The command line: a thin skin over the functions of the package, one sentence for every mistake."""

import argparse
import copy
import logging
import os
import sys
import time
from pathlib import Path

import pandas as pd

DEMO = {"smol-llava-next": (0.5, 300, 16, "smol_quality"), "mini-llava-next": (0.7, 1000, 64, "mini_quality")}
"""Model to the demo's sparsity, questions, calibration samples, and the recorded grid that it shows beside them."""
DEMO_METHODS = ("magnitude", "wanda", "tamp")
DEMO_CLAIMS = (("tamp", "wanda"), ("wanda", "magnitude"))  # better, worse: of the TAMP and the Wanda paper
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

    def planned(made: argparse.ArgumentParser) -> None:
        made.add_argument("--preset", default="tamp", help="a row of the table of methods (default: tamp)")
        made.add_argument("--sparsity", type=float, help="share of weights to drop (default: 0.5)")
        made.add_argument("--pattern", help="n:m, such as 2:4, instead of a sparsity")
        made.add_argument("--allocation", help="uniform, owl, alphapruning, ecoflap or das, instead of the preset's")
        made.add_argument(
            "--calibration", help="a shipped set, a file or a datasets folder (default: the set of a shipped model)"
        )
        made.add_argument("--n", type=int, default=128, help="calibration samples (default: 128)")
        made.add_argument("--seed", type=int, default=42, help="of the calibration samples (default: 42)")

    prune = command("prune", _prune, "prune a model and save it")
    prune.add_argument("model", help="a shipped name, a folder or a hub id")
    planned(prune)
    prune.add_argument(
        "--plan", help="a file written by `tamp plan`; it takes the place of sparsity, pattern, allocation"
    )
    prune.add_argument("--tokens", help="all, text, atv or amia, instead of the preset's")
    prune.add_argument("--criterion", help="magnitude, wanda or sparsegpt, instead of the preset's")
    prune.add_argument("--out", required=True, help="folder to save to")
    prune.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    shared(prune)

    plan = command(
        "plan", _plan, "decide how much of each linear to drop, and write it to a file; or compare two such files"
    )
    plan.add_argument("model", nargs="+", help="a shipped name, a folder or a hub id; or: diff FIRST.json SECOND.json")
    planned(plan)
    plan.add_argument("--cap", type=float, help="how far above the sparsity any linear may go, under das and ecoflap")
    plan.add_argument("--out", default="plan.json", help="file to write (default: plan.json)")
    shared(plan)

    evaluate = command("evaluate", _evaluate, "evaluate a model on a benchmark")
    evaluate.add_argument("model", help="a shipped name, a folder or a hub id")
    evaluate.add_argument(
        "--benchmark", help="a shipped benchmark or a file of questions (default: the set of a shipped model)"
    )
    evaluate.add_argument("--limit", type=int, help="how many questions")
    evaluate.add_argument("--seed", type=int, default=0, help="of a shipped benchmark's questions (default: 0)")
    evaluate.add_argument("--out", help="also write the table as CSV")
    shared(evaluate)

    compare = command("compare", _compare, "run methods side by side on a benchmark, with intervals")
    compare.add_argument("model", help="a shipped name, a folder or a hub id")
    compare.add_argument(
        "--methods",
        nargs="+",
        default=["magnitude", "wanda", "amia", "das", "tamp"],
        help="presets, perhaps with changes, such as das:tokens=text,das_cap=0.2",
    )
    compare.add_argument("--levels", nargs="+", default=["0.5"], help="sparsities and patterns, such as 0.5 2:4")
    compare.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the calibration samples")
    compare.add_argument(
        "--benchmark", help="a shipped set or a file of questions (default: the set of a shipped model)"
    )
    compare.add_argument("--limit", type=int, default=500, help="questions (default: 500)")
    compare.add_argument("--seed", type=int, default=0, help="of a shipped benchmark's questions (default: 0)")
    compare.add_argument("--calibration", help="a shipped set or a file (default: the benchmark's)")
    compare.add_argument("--n", type=int, default=128, help="calibration samples (default: 128)")
    compare.add_argument("--text", action="store_true", help="measure perplexity of text and facts too")
    compare.add_argument("--to", help="method to compare the others with (default: wanda)")
    compare.add_argument("--workers", type=int, help="processes side by side (default: 2 on a CPU, 1 on a GPU)")
    compare.add_argument("--out", default="comparison.json", help="file to record in (default: comparison.json)")
    compare.add_argument("--page", help="also write a page with tables and figures")
    shared(compare)

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


def _recipe(options: argparse.Namespace, *names: str, **changes):
    import tamp

    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return tamp.Recipe.preset(options.preset, **{**changes, **asked})


def _prune(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations
    from tamp.checkpoint import check_free
    from tamp.errors import UserError

    plan, fixed = None, {}
    if options.plan:
        if given := [name for name in ("sparsity", "pattern", "allocation") if getattr(options, name) is not None]:
            raise UserError(f"A plan fixes the {given[0]}: leave out --{given[0]}, or --plan.")
        plan = tamp.Plan.read(options.plan)
        fixed = {"allocation": "uniform", "pattern": plan.pattern, "sparsity": plan.target}
    recipe = _recipe(options, "sparsity", "pattern", "allocation", "tokens", "criterion", **fixed)
    check_free(options.out, options.overwrite)  # before the work, not after it
    source = conversations.own_set(options.model, options.calibration, "--calibration") if recipe.needs_samples else ""
    model, processor = tamp.load(options.model, options.device, options.dtype)
    samples = tamp.calibration_set(source, processor, options.n, options.seed) if recipe.needs_samples else None
    report = tamp.prune(model, samples, recipe, progress=_bars(), plan=plan)
    print(report)
    print(f"saved to {tamp.save(model, processor, options.out, report=report, overwrite=options.overwrite)}")


def _plan(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations, plans
    from tamp.errors import UserError

    if options.model[0] == "diff" and len(options.model) == 3:
        first, second = map(tamp.Plan.read, options.model[1:])
        table = plans.differences(first, second)
        print(
            table.loc[table["points"].abs().sort_values(ascending=False).index].head(10).round(4).to_string(index=False)
        )
        print(f"{plans.distance(first.drops, second.drops):.2%} of the dropped weights lie in other linears")
        return
    if len(options.model) != 1:
        raise UserError("`tamp plan` takes one model, or: tamp plan diff FIRST.json SECOND.json")
    options.das_cap, (model,) = options.cap, options.model
    recipe = _recipe(options, "sparsity", "pattern", "allocation", "das_cap")
    needed = recipe.allocation_needs_samples
    source = conversations.own_set(model, options.calibration, "--calibration") if needed else ""
    model, processor = tamp.load(model, options.device, options.dtype)
    n = min(options.n, recipe.allocation_samples or options.n)
    samples = tamp.calibration_set(source, processor, n, options.seed) if needed else None
    made = tamp.plan(model, samples, recipe, progress=_bars())
    print(made)
    print(f"written to {made.write(options.out)}")


def _evaluate(options: argparse.Namespace) -> None:
    import tamp
    from tamp import conversations, evaluation

    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    model, processor = tamp.load(options.model, options.device, options.dtype)
    scores = tamp.evaluate(model, processor, benchmark, options.limit, options.seed, _bars())
    print(_percent(pd.concat([scores, evaluation.overall(scores)])).to_string(index=False))
    if options.out:
        scores.to_csv(options.out, index=False)


def _compare(options: argparse.Namespace) -> None:
    import tamp
    from tamp import comparison, conversations, figures, report

    benchmark = conversations.own_set(options.model, options.benchmark, "--benchmark")
    settings = tamp.Settings(
        model=options.model,
        benchmark=benchmark,
        calibration=options.calibration or benchmark,
        questions=options.limit,
        evaluation_seed=options.seed,
        calibration_samples=options.n,
        dtype=options.dtype,
        text=options.text,
    )
    made = tamp.compare(
        settings,
        options.methods,
        [level if ":" in level else _share(level) for level in options.levels],
        options.seeds,
        out=options.out,
        to=options.to,
        workers=options.workers,
        device=options.device,
        progress=_bars(),
    )
    scores = comparison.scores(made).assign(memory=lambda table: table["memory"] / 2**20)
    parts = [
        ("Scores (%, nats per token, s, MiB)", scores.round(2).set_index("method")),
        (
            f"Accuracy less that of {made['compared_to']}, on the same questions (points)",
            pd.DataFrame(made["differences"]),
        ),
    ]
    parts += [
        (f"Overlap of the dropped weights at {level}", comparison.overlaps(made, level).round(3))
        for level in comparison.levels(made)
    ]
    parts = [(heading, table) for heading, table in parts if len(table)]
    for heading, table in parts:
        print(f"{heading}\n{table.to_string()}\n")
    if options.page:
        levels = comparison.levels(made)
        drawn = [("", figures.grid_figure(made))] if any(isinstance(level, float) for level in levels) else []
        if made["differences"]:
            drawn.append(("", figures.difference_figure(made, levels, made["compared_to"])))
        report.write_html(options.page, f"tamp: methods compared on {options.model}", drawn + parts)
    print(f"recorded in {options.out}")


def _share(text: str) -> float:
    from tamp.errors import UserError

    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"A level is a sparsity such as 0.5 or a pattern such as 2:4, not {text!r}.") from error


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
    from tamp import comparison, conversations, evaluation, figures, report

    start = time.perf_counter()
    *usual, recorded = DEMO[options.model]
    sparsity, limit, n = (
        default if given is None else given
        for given, default in zip((options.sparsity, options.limit, options.n), usual)
    )
    recipes = {preset: tamp.Recipe.preset(preset, sparsity=sparsity) for preset in DEMO_METHODS}

    def stage(text: str) -> None:
        print(f"{time.perf_counter() - start:4.0f} s  {text}", flush=True)

    stage(f"loading {options.model}")
    model, processor = tamp.load(options.model, options.device, options.dtype)
    source = conversations.OWN_SETS[options.model]
    stage(f"preparing {limit} questions and {n} calibration samples")
    benchmark = evaluation.prepare(processor, source, limit)
    samples = tamp.calibration_set(source, processor, n)
    stage("evaluating the dense model")
    answered = {"dense": evaluation.answers(model, processor, benchmark, progress=_bars())}
    reports = {}
    for preset, recipe in recipes.items():
        pruned = copy.deepcopy(model)
        stage(f"pruning by {preset}")
        reports[preset] = tamp.prune(pruned, samples, recipe, _bars())
        stage(f"evaluating what {preset} left")
        answered[preset] = evaluation.answers(pruned, processor, benchmark, progress=_bars())
    stage(f"writing {options.out}\n")
    scores = {name: evaluation.summarise(scored) for name, scored in answered.items()}

    every = pd.concat(
        {name: pd.concat([table, evaluation.overall(table)]) for name, table in scores.items()}, names=["model"]
    )
    every = _percent(every.reset_index("model"))
    totals = every[every["task"] == "all"].drop(columns="task").set_index("model")
    totals.insert(0, "sparsity", [0.0, *(100 * reports[name].sparsity for name in DEMO_METHODS)])
    tasks = every.pivot(index="task", columns="model", values="accuracy")[list(scores)].reindex(scores["dense"]["task"])
    claims = _claims(answered)
    grid = report.recorded(recorded)
    print(totals.round(2).to_string(), claims.to_string(index=False), sep="\n\n")
    page = report.write_html(
        options.out,
        f"tamp: {options.model} at {sparsity:.0%} sparsity",
        [
            ("Before and after", totals.round(3)),
            ("What the literature says, and what these questions say (points of accuracy, 95 % interval)", claims),
            ("Accuracy per task (%)", tasks),
            ("", figures.accuracy_figure(scores)),
            (f"Every method, as recorded on {grid['questions']:,} other questions", figures.grid_figure(grid)),
            (
                "Recorded accuracy, in per cent of the dense model's",
                comparison.retention(grid).rename(columns=comparison.level_name).round(1),
            ),
            *((f"How {name} pruned", made) for name, made in reports.items()),
        ],
    )
    print(f"{time.perf_counter() - start:.0f} s; figures and details: {Path(page).resolve()}")


def _claims(answered: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Hold what the literature claims against the answers of a demo, question by question."""
    from tamp import comparison

    cells = {
        name: [{"n": len(scored), "correct": comparison.pack(scored["correct"])}] for name, scored in answered.items()
    }
    rows = []
    for better, worse in DEMO_CLAIMS:
        points, low, high = (round(value, 1) for value in comparison.interval(cells[better], cells[worse]))
        verdict = "holds here" if low > 0 else "the opposite holds here" if high < 0 else "not to be seen here"
        rows.append((f"{better} keeps more than {worse}", points, low, high, verdict))
    return pd.DataFrame(rows, columns=["claim", "points", "low", "high", "verdict"])


def _bars() -> bool:
    """Whether to show progress: to a person, not to a log file."""
    return sys.stderr.isatty()


def _percent(scores: pd.DataFrame) -> pd.DataFrame:
    """Write the shares of a table of scores in per cent, for reading."""
    shares = ["accuracy", "low", "high", "choice_accuracy", "chance"]
    return scores.assign(**{name: (100 * scores[name]).round(1) for name in shares}, nll=scores["nll"].round(3))


if __name__ == "__main__":
    sys.exit(main())
