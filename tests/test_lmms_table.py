"""Comparing lmms-eval's answers question by question; no lmms-eval is needed here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tamp import cli
from tamp.errors import UserError
from tamp.evaluation import lmms_table, paired, results
from tamp.evaluation.benchmarks import TABLE


def task(points, answers=None, start=0, total=0.5):
    answers = answers or ["a"] * len(points)
    rows = [{"doc_id": start + n, "answer": said, "points": one} for n, (one, said) in enumerate(zip(points, answers))]
    return {"metric": "score", "total": total, "questions": rows}


def made(**models):
    return {"models": list(models), "limit": None, "tasks": {"mme": models}}


def test_models_are_compared_on_the_questions_that_both_answered():
    dense = task([1.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d"])
    other = task([0.0, 0.3, 1.0], ["b", "x", "d"], start=1)  # the documents 1, 2 and 3
    table = lmms_table.compare(made(dense=dense, pruned=other)).set_index("model")
    assert table.loc["dense", "points"] == 75 and table.loc["dense", "same"] == 100
    row = table.loc["pruned"]
    assert row["n"] == 3 and row["lmms_eval"] == 0.5
    assert row["points"] == pytest.approx(130 / 3) and row["dense"] == pytest.approx(200 / 3)
    assert row["difference"] == pytest.approx(100 * (-1 + 0.3 + 0) / 3)
    assert row["retention"] == pytest.approx(100 * 1.3 / 2)
    assert row["same"] == pytest.approx(200 / 3) and row["empty"] == 0


@pytest.mark.parametrize(("blank", "given"), [(1, True), (2, False)])  # of 20: 5 % and 10 %
def test_no_retention_is_given_where_many_answers_are_empty(blank, given):
    said = [" "] * blank + ["a"] * (20 - blank)
    table = lmms_table.compare(made(dense=task([1.0] * 20), pruned=task([1.0] * 20, said)))
    assert (not np.isnan(table["retention"].iloc[1])) == given
    assert table["empty"].iloc[1] == 5 * blank and table["difference"].iloc[1] == 0


def test_a_task_without_points_by_question_has_lmms_evals_own_total_only():
    table = lmms_table.compare(made(dense=task([None, None]), pruned=task([None, None], total=0.25)))
    assert table[["points", "difference", "retention"]].isna().all(None) and table["lmms_eval"].tolist() == [0.5, 0.25]


def test_a_model_without_answers_is_an_error():
    with pytest.raises(UserError, match="pruned did not answer mme"):
        lmms_table.compare({"models": ["dense", "pruned"], "tasks": {"mme": {"dense": task([1.0])}}})


def test_intervals_of_paired_questions_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    inside = {"difference": 0, "retention": 0}
    for _ in range(200):
        base = random.random(150) < 0.8
        points = base & (random.random(150) < 0.75)
        for name, truth in (("difference", -20), ("retention", 75)):
            _, low, high = getattr(paired, name)(points, base)
            inside[name] += low <= truth <= high
    assert all(0.89 <= count / 200 <= 0.99 for count in inside.values()), inside


def test_retention_of_a_model_that_knows_nothing_is_not_a_number():
    assert np.isnan(paired.retention([1.0, 0.0], [0.0, 0.0])).all()
    assert paired.retention([0.5, 0.5], [1.0, 1.0]) == (50, 50, 50)


def interpreter(folder: Path, body: str) -> str:
    """Write a stand-in for a Python with lmms-eval, which gets the request's path as its last argument."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, sys\nif sys.argv[1] != '-c':\n    {body}\n")
    path.chmod(0o755)
    return str(path)


def test_every_model_is_a_run_of_its_own_and_failures_are_told(tmp_path, capsys):
    result = json.dumps({"mme": task([1.0, 0.0])})
    body = f"asked = json.load(open(sys.argv[-1])); asked['results'] = json.loads({result!r}); "
    python = interpreter(tmp_path, body + "json.dump(asked, open(asked['out'], 'w'))")
    out = tmp_path / "made.json"
    line = ["benchmark", "dense", "pruned", "--tasks", "mme", "--limit", "2", "--python", python, "--out", str(out)]
    assert cli.main(line) == 0
    assert [row["points"] for row in json.loads(out.read_text())["table"]] == [50, 50]
    assert "pruned" in capsys.readouterr().out
    for body, said in (("raise SystemExit('no such task')", "no such task"), ("print('done')", "done")):
        with pytest.raises(
            UserError, match=f"lmms-eval failed on dense: {said}"
        ):  # a run that ends well, but wrote nothing
            lmms_table.benchmark(["dense"], ["mme"], python=interpreter(tmp_path, body))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["d", "--tasks", "mme", "--data", "mme=x"], "TASK:SPLIT=FILE"),
        (["d", "d", "--tasks", "mme"], "named twice"),
        (["d", "--tasks", "mme", "--python", "/bin/false"], "has no lmms-eval beside tamp"),
    ],
)
def test_a_command_that_cannot_run_is_refused(line, message, capsys):
    assert cli.main(["benchmark", *line]) == 2
    assert message in capsys.readouterr().err


def test_scores_agree_with_lmms_eval_or_a_reason_is_recorded():
    found = results.recorded("agreement")["benchmarks"]
    assert found.keys() == TABLE.keys()
    for name, row in found.items():
        assert row["same_prompts"] == row["n"], name
        assert row["same_answers"] == row["n_answers"] > 0, name
        assert row["tokens"] == TABLE[name].longest and row["lmms_eval_tokens"] in (None, row["tokens"]), name
        assert row["same_scores"] == row["n"] or (row["different"] and row["reason"]), name
        assert abs(row["ours"] - row["lmms_eval"]) < 1e-4 or row["reason"], name
    page = (Path(__file__).parents[1] / "book" / "lmms_eval.md").read_text()
    assert all(f"| {row['title']} |" in page for row in found.values())
