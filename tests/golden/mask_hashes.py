"""Hash the masks, plans and scores of every preset on the shipped models, to see that a rewrite changes none of them.

    python tests/golden/mask_hashes.py MODEL [PRESET ...]

prints JSON. The environment below makes sums round alike on every x86-64 processor, at a fraction of the speed.
"""

import hashlib
import json
import os
import sys

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
SAMPLES = {"mini-llava-next": 6, "smol-llava-next": 2, "smol-videollama2": 2}
SETS = {"mini-llava-next": "mini-vqa", "smol-llava-next": "smol-vqa", "smol-videollama2": "smol-avqa"}
LEVELS = {"mini-llava-next": ({"sparsity": 0.6}, {"pattern": "2:4"})}


def hashes(name: str, presets: list[str]) -> dict[str, dict]:
    """Prune a shipped model by every preset and condense what came out.

    Returns:
        ``{"preset level": {"masks": sha256, "drops": sha256, "scores": their sum, rounded}}``.
    """
    import copy

    import torch

    import tamp

    torch.set_num_threads(1)
    model, processor = tamp.load(name, device="cpu")
    samples = tamp.calibration_set(SETS[name], processor, n=SAMPLES[name], seed=7)
    found = {}
    for preset in presets:
        for level in LEVELS.get(name, ({"sparsity": 0.5},)):
            pruned = copy.deepcopy(model)
            report = tamp.prune(pruned, samples, tamp.Recipe.preset(preset, **level), progress=False)
            masks = hashlib.sha256()
            for key, tensor in pruned.state_dict().items():
                if tensor.ndim == 2:
                    masks.update(key.encode() + (tensor == 0).numpy().tobytes())
            drops = hashlib.sha256(str(report.plan.drops).encode()).hexdigest()
            scores = [round(float(score), 6) for score in report.table["score"].dropna()]
            level_name = str(*level.values())
            found[f"{preset} {level_name}"] = {
                "masks": masks.hexdigest()[:24],
                "drops": drops[:24],
                "scores": hashlib.sha256(str(scores).encode()).hexdigest()[:24],
            }
    return found


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in PORTABLE.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PORTABLE})
    from tamp.recipe import PRESETS

    print(json.dumps({sys.argv[1]: hashes(sys.argv[1], sys.argv[2:] or list(PRESETS))}, indent=1))
