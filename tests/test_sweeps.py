"""Cells of a comparison as jobs of a scheduler."""

import json

import pytest

import tamp
from tamp.errors import UserError
from tamp.evaluation import compare, sweeps

ASKED = {
    "model": "mini-llava-next",
    "benchmark": "mini-vqa",
    "calibration": "mini-vqa",
    "n_questions": 4,
    "n_samples": 2,
}
PLAIN = ("accuracy", "nll", "correct", "mask", "level", "method")


def without_seconds(cells: list[dict]) -> list[dict]:
    return [{name: cell[name] for name in PLAIN if name in cell} for cell in cells]


@pytest.mark.slow
def test_cells_elsewhere_are_those_of_this_process(tmp_path):
    pytest.importorskip("submitit")
    settings = tamp.Settings(**ASKED)
    there = tamp.compare(
        settings, ["wanda"], [0.5], [0], out=tmp_path / "there.json", device="cpu", progress=False, on="local"
    )
    here = tamp.compare(settings, ["wanda"], [0.5], [0], out=tmp_path / "here.json", device="cpu", progress=False)
    assert without_seconds(there["cells"]) == without_seconds(here["cells"])
    assert json.loads((tmp_path / "there.json").read_text())["cells"] == there["cells"]


def test_what_fails_elsewhere_loses_nothing_else(monkeypatch, tmp_path):
    """The records of the other cells are kept, and the error names the cell and what it said."""
    jobs = [(("dense", 0.0, 0), {"accuracy": 1.0}), (("wanda", 0.5, 0), RuntimeError("Traceback\nout of memory"))]
    monkeypatch.setattr(sweeps, "_jobs", lambda *given: iter(jobs))
    found = []
    with pytest.raises(UserError, match=r"1 of 2 cells failed on slurm, first \('wanda', 0.5, 0\): out of memory"):
        for record in sweeps.run(compare.run_cell, None, [cell for cell, _ in jobs], "cpu", "slurm:x=1", tmp_path):
            found.append(record)
    assert found == [{"accuracy": 1.0}]


@pytest.mark.parametrize(
    ("on", "said"), [("k8s", "slurm or local, not on 'k8s'"), ("slurm:gpu", "write options as slurm:name=value")]
)
def test_a_place_that_is_not_one_is_refused_before_the_work(on, said, tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match=said):
        tamp.compare(tamp.Settings(**ASKED), ["wanda"], [0.5], [0], out=tmp_path / "c.json", on=on)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(UserError, match="needs the package submitit"):
        sweeps.check("slurm")
