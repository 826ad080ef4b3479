"""The table of methods by published benchmarks: cells that go on, paired retentions, and where none is given."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import tamp
from tamp import cli
from tamp.evaluation import benchmarks, paired, retention_table
from tamp.evaluation.compare import DENSE

DATA = Path(__file__).parent / "fixtures" / "benchmarks"
LINE = "table mini-llava-next --methods dense magnitude wanda --levels 0.5 --benchmarks textvqa pope --limit 2 --n-samples 2"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table made by the command line."""
    out = tmp_path_factory.mktemp("made") / "table"
    line = [*LINE.split(), "--data", str(DATA), "--out", str(out), "--device", "cpu", "--no-likelihood"]
    assert cli.main(line) == 0
    return out, line


def test_one_command_makes_the_table_in_three_forms(table):
    out, _ = table
    made = json.loads((out / "table.json").read_text())
    assert made["settings"]["limit"] == 2 and made["settings"]["calibration"] == "mini-vqa"
    cells = [(row["method"], row["benchmark"]) for row in made["rows"]]
    assert cells == [(m, b) for m in ("dense", "magnitude", "wanda") for b in ("textvqa", "pope", "mean")]
    assert all(row["n"] == 2 for row in made["rows"] if row["benchmark"] != "mean")
    text = (out / "table.md").read_text()
    assert text.startswith("| method | textvqa | pope | mean |") and "| wanda, 50 % |" in text
    assert "<table" in (out / "table.html").read_text()


def test_a_stopped_table_goes_on_with_the_cells_that_are_missing(table, monkeypatch):
    out, line = table
    before = json.loads((out / "table.json").read_text())["rows"]
    (out / "cells" / "magnitude-0.5-pope.json").unlink()
    asked, answers = [], benchmarks.answers

    def count(model, processor, name, *given, **options):
        asked.append((name, Path(options["recorded"]).is_file()))  # its answers are there already
        return answers(model, processor, name, *given, **options)

    monkeypatch.setattr(retention_table.benchmarks, "answers", count)
    assert cli.main(line) == 0
    assert asked == [("pope", True)]
    assert json.loads((out / "table.json").read_text())["rows"] == before
    monkeypatch.setattr(retention_table.loading, "load", None)
    assert cli.main(line) == 0  # nothing is missing: no model is loaded


def test_on_a_gpu_a_model_is_pruned_one_block_at_a_time_and_then_settled(table, monkeypatch):
    out, line = table
    path = out / "cells" / "wanda-0.5-pope.json"
    kept, seen = path.read_text(), []
    path.unlink()
    stubs = {
        "loading.resolve_device": lambda device: torch.device("cuda"),
        "loading.load": lambda name, device, dtype, offload: (seen.append(f"offload {offload}"), (None, None))[1],
        "loading.settle": lambda model: seen.append("settle"),
        "pruning.prune": lambda *given, **named: (seen.append("prune"), SimpleNamespace(sparsity=0.5, seconds={}))[1],
        "benchmarks.check": lambda *given: None,
        "benchmarks.answers": lambda *given, **named: 1 / 0,
        "calibration.calibration_set": lambda *given, **named: [],
        "running.fingerprint": lambda model: "",
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(f"tamp.evaluation.retention_table.{name}", stub)
    assert cli.main(line) == 1
    assert seen == ["offload True", "prune", "settle"]
    path.write_text(kept)


def test_a_folder_with_another_table_is_refused(table, tmp_path, capsys):
    out, line = table
    assert cli.main([*line, "--n-samples", "3"]) == 2
    assert "n_samples=2, not 3" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert cli.main([*line, "--out", str(tmp_path)]) == 2
    assert "does not hold a table" in capsys.readouterr().err


def cells(folder, **scores):
    """Write cells by hand: method to (scores, answers that are lost)."""
    for method, (points, lost) in scores.items():
        level = 0.0 if method == "dense" else 0.5
        path = retention_table._path(folder, (method, level, 42) if method != "dense" else DENSE, "textvqa")
        path.parent.mkdir(exist_ok=True)
        n = len(points)
        kept = {"configuration": [None] * n, "number": list(range(n)), "score": points, "choice_correct": [None] * n}
        kept |= {"empty": [number < lost for number in range(n)], "unparsable": [False] * n}
        path.write_text(json.dumps({"benchmark": "textvqa", "answers": kept}))
    wanted = [DENSE, *((method, 0.5, 42) for method in scores if method != "dense")]
    return retention_table.rows(folder, wanted, ["textvqa"]).set_index("method")


def test_a_retention_is_the_ratio_of_the_scores_on_the_same_questions(tmp_path):
    base, points = [1.0, 0.3, 0.6, 0.0] * 10, [0.9, 0.3, 0.3, 0.3] * 10
    made = cells(tmp_path, dense=(base, 0), wanda=(points, 2)).loc["wanda"]
    assert made["retention"] == pytest.approx(100 * 1.8 / 1.9) and made["lost"] == 5 and made["why"] == ""
    random = np.random.default_rng(5)
    drawn = random.integers(40, size=(4000, 40))
    ratios = 100 * np.array(points)[drawn].sum(1) / np.array(base)[drawn].sum(1)
    assert (made["low"], made["high"]) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])), abs=1.5)


@pytest.mark.parametrize(
    ("dense", "pruned", "why"),
    [
        (([1.0] * 40, 0), ([1.0] * 40, 3), "8% of the answers to textvqa are empty or unparsable"),
        (([1.0] * 40, 3), ([1.0] * 40, 0), "8% of the answers to textvqa are empty or unparsable"),
        (([0.0] * 40, 0), ([1.0] * 40, 0), "dense model has no point"),
        (([1.0] * 40, 0), ([1.0] * 39, 0), "Not the same questions"),
    ],
)
def test_where_answers_are_lost_there_is_no_retention(tmp_path, dense, pruned, why):
    made = cells(tmp_path, dense=dense, wanda=pruned)
    assert np.isnan(made.loc["wanda", "retention"]) and why in made.loc["wanda", "why"]
    assert retention_table.wide(made.reset_index()).loc["wanda, 50 %", "textvqa"] == "–"
    assert any(why in note for note in retention_table.notes(made.reset_index()))


def test_the_choice_is_kept_where_answers_are_lost(tmp_path):
    scores, choices = [1.0] * 40, {"dense": [1.0, 1.0, 0.0, 1.0] * 10, "wanda": [1.0, 0.0, 0.0, 1.0] * 10}
    for method, choice in choices.items():
        path = retention_table._path(tmp_path, DENSE if method == "dense" else (method, 0.5, 42), "textvqa")
        kept = {"configuration": [None] * 40, "number": list(range(40)), "score": scores, "choice_correct": choice}
        kept |= {"empty": [number < 3 for number in range(40)], "unparsable": [False] * 40}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"benchmark": "textvqa", "answers": kept}))
    made = retention_table.rows(tmp_path, [DENSE, ("wanda", 0.5, 42)], ["textvqa"])
    row = made.set_index("method").loc["wanda"]
    assert np.isnan(row["retention"]) and row["choice_retention"] == pytest.approx(100 * 2 / 3)
    assert row["choice_low"] < 100 * 2 / 3 < row["choice_high"]
    assert retention_table.wide(made, retention_table.CHOICE).loc["wanda, 50 %", "textvqa"].startswith("66.7 [")
    assert "By likelihood" in retention_table.markdown(made)


def test_the_mean_over_benchmarks_is_that_of_their_retentions():
    couples = [([0.5] * 9, [1.0] * 9), ([0.9] * 5, [1.0] * 5)]
    assert paired.mean_retention(couples) == pytest.approx((70, 70, 70))
    assert np.isnan(paired.mean_retention([*couples, ([0.0], [0.0])])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--benchmarks", "coco"), "There is no published benchmark 'coco'"),
        (("--benchmarks", "pope", "pope"), "each once"),
        (("--benchmarks", "nextqa"), "takes no videos"),
        (("--methods", "wand"), "wand"),
    ],
)
def test_what_cannot_be_run_is_refused_before_work(change, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmarks, "answers", None)
    assert cli.main([*LINE.split(), "--out", str(tmp_path / "new"), *change]) == 2
    assert message in capsys.readouterr().err


def test_several_models_are_evaluated_and_compared_on_the_same_questions(tmp_path, capsys, mini):
    model, processor = mini
    tamp.prune(model, None, tamp.Recipe.preset("magnitude", sparsity=0.8), progress=False)
    tamp.save(model, processor, tmp_path / "pruned")
    line = ["evaluate", "mini-llava-next", str(tmp_path / "pruned"), "--benchmark", "mini-vqa", "pope", "--limit", "6"]
    line += ["--data", str(DATA), "--no-likelihood", "--device", "cpu", "--out", str(tmp_path / "scores.csv")]
    assert cli.main(line) == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    means = {key: (every["accuracy"] * every["n"]).sum() / 6 for key, every in scores.groupby(["model", "benchmark"])}
    said = capsys.readouterr().out.split("on the same questions (points)")[1].split("\n")
    for name in ("mini-vqa", "pope"):
        (row,) = (line.split() for line in said if line.strip().startswith(name))
        gain = 100 * (means[str(tmp_path / "pruned"), name] - means["mini-llava-next", name])
        assert row[2] == "6" and float(row[3]) == pytest.approx(gain, abs=0.051)
    assert cli.main(["evaluate", "m", "m", "--benchmark", "pope"]) == 2
    assert "named twice" in capsys.readouterr().err
