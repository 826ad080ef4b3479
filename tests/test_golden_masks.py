"""Masks, plans and scores of every preset on the shipped models are the recorded ones, to the bit.

They were recorded before the walk and the method tables were written; see golden/mask_hashes.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "mask_hashes.json").read_text())


@pytest.mark.parametrize(
    ("model", "presets"),
    [
        ("mini-llava-next", tuple(dict.fromkeys(name.split()[0] for name in RECORDED["mini-llava-next"]))),
        pytest.param("smol-llava-next", ("wanda", "tamp"), marks=pytest.mark.slow),
        pytest.param("smol-videollama2", ("wanda", "tamp"), marks=pytest.mark.slow),
    ],
)
def test_masks_plans_and_scores_are_the_recorded_ones(model, presets):
    script = GOLDEN / "mask_hashes.py"
    done = subprocess.run([sys.executable, script, model, *presets], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[model]
    expected = {name: each for name, each in RECORDED[model].items() if name.split()[0] in presets}
    different = [name for name in expected if found.get(name) != expected[name]]
    assert not different and found.keys() == expected.keys()
