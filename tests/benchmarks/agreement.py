"""Compare tamp's published benchmarks with lmms-eval on the same questions, prompts and answers.

Runs in the environment that lmms_environment.sh makes: python tests/benchmarks/agreement.py

Two comparisons per benchmark, on the fixtures of tests/fixtures/benchmarks. A script answers every question in the ways in
which models answer, and both score it. Then a model answers, mini-llava-next where there are pictures and a tiny random
VideoLLaMA 2 where there are videos and sounds: by tamp's own evaluation, and by lmms-eval through the bridge.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import recording

import tamp
from tamp.evaluation import benchmarks
from tamp.evaluation.benchmarks import rules, running
from tamp.evaluation.benchmarks.source import Source

NAME = "agreement"
FIXTURES = recording.ROOT / "tests" / "fixtures" / "benchmarks"
TASKS = {
    "textvqa": "textvqa_val",
    "videomme": "videomme",
    "nextqa": "nextqa_mc_test",
    "egoschema": "egoschema_subset",
    "muirbench": "muirbench",
    "clothoaqa": "clotho_aqa_test",
    "vocalsound": "vocalsound_test",
    "pope": "pope",
}
"""Benchmark to task of lmms-eval; MVBench and BLINK have one per configuration."""

VIDEOS = {
    "mvbench": "mvbench_video",
    "videomme": "videomme",
    "nextqa": "nextqa",
    "egoschema": "egoschema",
}
"""Benchmark to the folder below HF_HOME in which lmms-eval looks for its videos."""

IN_PER_CENT = ("mvbench", "videomme")
"""Benchmarks whose total lmms-eval gives in per cent; that of the others is a share."""

UNLIMITED = ("textvqa", "nextqa", "vocalsound")
"""Benchmarks whose tasks in lmms-eval name no limit of tokens: there it is the model wrapper's. Both run with ours here."""

GUESS = "lmms-eval draws a random option where it reads none; ours counts such an answer as wrong"
REASONS = {
    "mvbench": 'lmms-eval takes a letter of any size anywhere for an option, such as the article in "a circle", and '
    "leaves empty answers out of the mean; ours counts both as wrong",
    "nextqa": GUESS,
    "egoschema": GUESS,
    "vocalsound": "of several classes in one answer lmms-eval takes the first in a list of its own, whatever the answer "
    "says first; ours counts such an answer as wrong",
}
"""Why the two differ where they do, on purpose."""


def task(name: str, configuration: str | None) -> str:
    """Name the task of lmms-eval for a benchmark's configuration."""
    return TASKS.get(name) or f"{name}_{configuration.replace('-', '_').lower()}"


def questions(name: str) -> dict[str, list]:
    """Read a fixture's questions: ``{task: [(record number, what it asks), ...]}``, those with their media in place."""
    known = benchmarks.TABLE[name]
    source = Source(name, known, FIXTURES / name)
    found = {}
    for configuration in known.configurations or (None,):
        asked = [
            (record["_number"], known.read(record, configuration or ""))
            for record in source.records(configuration, None)
        ]
        there = [(number, one) for number, one in asked if all(source.video(video) for video in one.videos)]
        found[task(name, configuration)] = there
    return found


def said(one: benchmarks.Asked, turn: int) -> str:
    """Return the answer of the script to a question: right, wrong, in many forms, or none."""
    if not one.options:
        right = max(one.answers, key=one.answers.count)
        forms = [
            right,
            right.upper(),
            f"{right}.",
            f"a {right}",
            f" {right}\n",
            "none of these",
            "",
            f"It is {right}.",
            "yes",
            "no",
        ]
        return forms[turn % len(forms)]
    known = list(rules.letters(one.options))
    place = known.index(one.right)
    option = one.options[place]
    other = known[(place + 1) % len(known)]
    if one.options == ("Yes", "No"):
        forms = [
            option,
            option.lower(),
            f"{option}.",
            one.options[1 - place],
            "",
            "maybe",
            f"{option}, there is",
            "Yes",
            "No",
        ]
    else:
        forms = [
            one.right,
            f"({one.right})",
            f"{one.right}. {option}",
            other,
            option,
            f"The answer is {one.right}.",
            "",
            one.right.lower(),
            f"({other}) {one.options[(place + 1) % len(known)]}",
            "It moves in a circle.",
            f"{option} or {one.options[(place + 1) % len(known)]}",
        ]
    return forms[turn % len(forms)]


def ours(name: str, one: benchmarks.Asked, answer: str) -> float:
    """Score an answer by tamp's rule."""
    rule = benchmarks.TABLE[name].protocols["lmms-eval"].rule
    answer = answer.strip()
    if not one.options:
        return float(rule(answer, one.answers))
    return float(bool(answer) and rule(answer, one.options) == one.right)


def lay_out(home: Path) -> None:
    """Put the videos of the fixtures where lmms-eval looks for them."""
    for name, folder in VIDEOS.items():
        (home / folder).mkdir(parents=True)
        for path in FIXTURES.joinpath(name).rglob("*.zip"):
            zipfile.ZipFile(path).extractall(home / folder)
        for path in FIXTURES.joinpath(name).rglob("*.mp4"):
            target = home / folder / path.relative_to(FIXTURES / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)


def local(name: str, task_name: str, configuration: str | None, kept: list[int], folder: Path) -> dict:
    """Return a task of lmms-eval over a fixture's records, whose media columns are named as such, as on the hub."""
    import datasets
    import pyarrow.parquet

    known = benchmarks.TABLE[name]
    files = Source(name, known, FIXTURES / name).tables(configuration)
    paths = [FIXTURES / name / (path if isinstance(path, str) else path[0]) for path in files]
    if paths[0].suffix == ".json":
        made = datasets.Dataset.from_list([record for path in paths for record in json.loads(path.read_text())])
    else:
        made = datasets.concatenate_datasets([datasets.Dataset(pyarrow.parquet.read_table(path)) for path in paths])
    for column, feature in made.features.items():
        fields = getattr(feature, "feature", feature)
        if isinstance(fields, dict) and "bytes" in fields:
            media = datasets.Audio() if column == "audio" else datasets.Image()
            made = made.cast_column(column, media if fields is feature else datasets.List(media))
    made.select(kept).to_parquet(folder / f"{task_name}.parquet")
    data = {known.split: str(folder / f"{task_name}.parquet")}
    made = {"task": task_name, "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
    return made | ({"generation_kwargs": {"max_new_tokens": known.longest}} if name in UNLIMITED else {})


@functools.lru_cache
def manager():
    """Return lmms-eval's index of tasks, which takes long to make."""
    from lmms_eval.tasks import TaskManager

    return TaskManager(model_name="tamp")


def theirs(model, tasks: list[dict]) -> dict:
    """Run lmms-eval's tasks: ``{task: (own total, [(prompt, answer, score), ...] in order, limit of tokens)}``."""
    from lmms_eval import evaluator

    from tamp.evaluation import lmms_run

    made = evaluator.simple_evaluate(
        model=model, tasks=[dict(each) for each in tasks], log_samples=True, batch_size=1, task_manager=manager()
    )
    found = {}
    for name, samples in made["samples"].items():
        metrics = [each["metric"] for each in made["configs"][name]["metric_list"]]
        rows = sorted(samples, key=lambda each: each["doc_id"])
        found[name] = (
            lmms_run.total(made["results"][name], metrics)[1],
            [(each["arguments"][0], lmms_run._answer(each), lmms_run.points(each, metrics)) for each in rows],
            made["configs"][name]["generation_kwargs"]["max_new_tokens"],
        )
    return found


def compare(names: list[str], n: int, home: Path) -> Iterator[tuple[str, dict]]:
    """Compare benchmarks, with ``n`` answers of a model to each: yield the name of each and what is recorded of it."""
    sys.path.insert(0, str(recording.ROOT / "tests"))
    import tiny_videollama2
    from lmms_eval.api.model import lmms

    from tamp.evaluation import lmms_bridge

    class Scripted(lmms):
        def __init__(self, answers):
            super().__init__()
            self.answers = answers

        def generate_until(self, requests):
            return [self.answers[request.args[4]][request.args[3]] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    tamp.save(tiny_videollama2.build(), tiny_videollama2.processor(), home / "tiny")
    models: dict[str, tuple] = {}
    for name in names:
        known = benchmarks.TABLE[name]
        asked = questions(name)
        tasks, by_task = [], {}
        for configuration in known.configurations or (None,):
            task_name = task(name, configuration)
            if every := asked[task_name]:
                by_task[task_name] = every
                tasks.append(local(name, task_name, configuration, [number for number, _ in every], home))
        turn, script = 0, defaultdict(list)
        for task_name, every in by_task.items():
            for _, one in every:
                script[task_name].append(said(one, turn))
                turn += 1
        scored = theirs(Scripted(script), tasks)
        rows = []
        for task_name, every in by_task.items():
            for (_, one), (prompt, answer, score) in zip(every, scored[task_name][1]):
                mine = known.protocols["lmms-eval"].prompt(one)
                rows.append((prompt == mine, answer, ours(name, one, answer), score))
        different = sorted({answer for _, answer, one, other in rows if one != other})
        source = "mini-llava-next" if known.kind == "image" else str(home / "tiny")
        if source not in models:
            models[source] = tamp.load(source, device="cpu")
        model, processor = models[source]
        own = benchmarks.answers(
            model, processor, name, n, data=FIXTURES / name, likelihood=False, progress=False, protocol="lmms-eval"
        )
        own = {(task(name, row.configuration or None), row.number): row.said for row in own.itertuples()}
        few, numbers = [], {}
        for configuration, first in running.parts(known, n):
            task_name = task(name, configuration)
            if here := [number for number, _ in asked[task_name] if number < first]:
                numbers[task_name] = here
                few.append(local(name, task_name, configuration, here, home / "few"))
        bridged = theirs(lmms_bridge.TampModel(source, device="cpu"), few)
        pairs = [
            (own[task_name, number], answer)
            for task_name, here in numbers.items()
            for number, (_, answer, _) in zip(here, bridged[task_name][1])
        ]
        unit = 100 if name in IN_PER_CENT else 1
        sizes = {task_name: len(every) for task_name, every in by_task.items()}
        yield (
            name,
            {
                "title": known.title,
                "n": len(rows),
                "same_prompts": sum(same for same, *_ in rows),
                "same_scores": sum(one == other for *_, one, other in rows),
                "ours": round(sum(one for *_, one, _ in rows) / len(rows), 4),
                "lmms_eval": round(sum(scored[each][0] * size for each, size in sizes.items()) / unit / len(rows), 4),
                "different": different,
                "model": Path(source).name,
                "tokens": known.longest,
                "lmms_eval_tokens": None if name in UNLIMITED else scored[next(iter(by_task))][2],
                "n_answers": len(pairs),
                "same_answers": sum(one == other for one, other in pairs),
                "reason": REASONS.get(name, "") if different else "",
            },
        )


def table(record: dict) -> str:
    """Write the page's table from the record."""
    lines = [
        "| benchmark | questions | same prompt | same score | ours % | lmms-eval's total % | same answers | tokens, ours "
        "| lmms-eval's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["benchmarks"].values():
        lines.append(
            f"| {row['title']} | {row['n']} | {row['same_prompts']} | {row['same_scores']} | {100 * row['ours']:.1f} | "
            f"{100 * row['lmms_eval']:.1f} | {row['same_answers']} of {row['n_answers']} | "
            f"{row['tokens']} | {row['lmms_eval_tokens'] or '–'} |"
        )
    said = [
        f"* {row['title']}: {row['reason']}. Scored differently: "
        + ", ".join(f"`{answer}`" if answer else "the empty answer" for answer in row["different"])
        + "."
        for row in record["benchmarks"].values()
        if row["different"]
    ]
    rest = [row.title for name, row in benchmarks.TABLE.items() if name not in record["benchmarks"]]
    said += [f"* Not recorded yet: {', '.join(rest)}."] if rest else []
    return "\n".join([*lines, "", *said])


def main(arguments: list[str] | None = None) -> dict:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmarks", nargs="+", default=list(benchmarks.TABLE), choices=benchmarks.TABLE)
    parser.add_argument(
        "--answers", type=int, default=20, help="answers of a model per benchmark (default: %(default)s)"
    )
    parser.add_argument("--out", default=recording.RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(HF_HOME=scratch, HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=f"{scratch}/cache")
        lay_out(Path(scratch))
        (Path(scratch) / "few").mkdir()
        options.out = Path(options.out).absolute()
        os.chdir(scratch)  # some tasks write files where they run
        found = {}
        for name, one in compare(options.benchmarks, options.answers, Path(scratch)):
            found[name] = one
            ordered = {name: found[name] for name in benchmarks.TABLE if name in found}
            made = {"lmms_eval": "0.7.3", "benchmarks": ordered}
            recording.write(NAME, made, Path(options.out))
    return made


if __name__ == "__main__":
    main()
