"""Which models can be pruned: a tiny random one of every family, pruned beside whole forward passes.

Records data/results/families.json.

python tests/benchmarks/family_table.py
"""

import sys
import warnings
from pathlib import Path

import recording
import torch
import transformers
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

import asking
import families
import whole_passes

import tamp
from tamp import accumulators, matrices, models
from tamp.errors import UserError
from tamp.evaluation import scoring
from tamp.planning import MOST_MISSED
from tamp.recipe import Recipe

MEDIA = {
    "picture": ("pixel_values", "image_patches", "image_pixel_values", "flattened_patches"),
    "video": ("pixel_values_videos",),
    "sound": ("input_features", "audio_input_features", "input_values", "audio_input_ids"),
}
"""What a family takes, by the names of its inputs."""


def described(name: str, model: torch.nn.Module, samples: list[dict]) -> dict:
    """Say what a family is called and what it takes; so far it is not refused."""
    inputs = {key for sample in samples for key in sample}
    media = [kind for kind, names in MEDIA.items() if inputs & set(names)]
    return {"family": name, "class": type(model).__name__, "media": media, "refused": None}


def look(name: str) -> dict:
    """Prune a family's tiny model and say what came of it."""
    model, samples = families.build(name)
    found = described(name, model, samples)
    try:
        report = tamp.prune(model, samples, Recipe(sparsity=0.5), progress=False, allow_partial=True)
    except UserError as error:
        return found | {"refused": str(error)}
    first, second = (families.build(name)[0] for _ in range(2))
    wanda = tamp.prune(first, samples, Recipe.preset("wanda"), progress=False, allow_partial=True)
    expected = whole_passes.wanda_by_whole_passes(second, samples, 0.5)
    linears = models.all_linears(first)
    off = sum(int(((linears[each].weight == 0) != expected[each]).sum()) for each in wanda.plan.linears)
    missed = sum(size for size, reason in report.left_out.values() if reason not in matrices.BY_RULE)
    return found | {
        "sparsity": report.sparsity,
        "missed": missed / (missed + sum(report.plan.sizes)),
        "experts": sum("[" in each["linear"] for each in report.rows),
        "blocks": len(models.blocks(model)),
        "unread": report.unread,
        "differing": off,
        "weights": sum(wanda.plan.sizes),
        "evaluated": evaluated(first, samples),
    }


def evaluated(model, samples: list[dict]) -> str:
    """Score questions about the samples, and say how that was done, or why not."""
    try:
        return scoring.answers(model, None, asking.benchmark(samples), progress=False).attrs["scored"]
    except UserError as error:
        return f"no: {error}".partition(".")[0]


def table(recorded: list[dict], media: bool) -> str:
    """Write a row per family that takes pictures, video or sound, or of those that take text alone; then who is refused."""
    columns = ["family", *(["takes"] if media else []), "pruned", "experts", "all tokens", "scored"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    refused = []
    for row in recorded:
        if bool(row["media"]) != media:
            continue
        if row["refused"]:
            refused.append(f"* `{row['family']}`: {row['refused'].partition('. ')[0].rstrip('.')}.")
            continue
        cells = [f"`{row['family']}`", *([", ".join(row["media"])] if media else [])]
        cells.append(f"but for {row['missed']:.0%}" if row["missed"] > MOST_MISSED else "yes")
        cells.append(f"{row['experts']}" if row["experts"] else "")
        cells.append(f"{row['unread']} of {row['blocks']}" if row["unread"] else "")
        lines.append(f"| {' | '.join(cells)} | {row['evaluated']} |")
    return "\n".join([*lines, "", "Refused, with what `tamp` says:", "", *refused])


def main() -> None:
    """Look at every family and record what was found."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    accumulators.FEW = 1  # the samples are short: an expert counts by its own tokens
    rows = [look(name) for name in tqdm(sorted(families.rows()))]
    recording.write("families", {"families": rows})


if __name__ == "__main__":
    main()
