"""Which models can lose experts: a tiny random one of every family, cut and compared with the whole one.

Records data/results/expert_families.json.

python tests/benchmarks/expert_table.py
"""

import sys
import tempfile
import warnings
from pathlib import Path

import recording
import torch
import transformers
from family_table import described
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

import barring
import families

import tamp
from tamp.errors import UserError


def look(name: str) -> dict | None:
    """Drop experts of a family's tiny model and say what came of it; None for a model without experts."""
    model, samples = barring.build(name)
    found = described(name, model, samples)
    keep = 4 if name in barring.GROUPED else 3
    try:
        report = tamp.drop_experts(model, samples, keep, progress=False)
    except UserError as error:
        held = any("expert" in type(module).__name__.lower() for module in model.modules())
        return found | {"refused": str(error)} if held else None
    whole, _ = barring.build(name)
    with barring.barred(whole, barring.gone(report)):
        expected = [barring.logits(whole, sample) for sample in samples]
    differing = max(
        ((barring.logits(model, sample) - right).norm() / right.norm()).item()
        for sample, right in zip(samples, expected)
    )
    with tempfile.TemporaryDirectory() as folder:
        tamp.save(model, None, Path(folder) / "cut", report=report)
        _, info = type(model).from_pretrained(Path(folder) / "cut", output_loading_info=True)
    return found | {
        "layers": len(barring.gone(report)),
        "experts": [report.count, report.keep],
        "weights": list(report.weights),
        "difference": differing,
        "loads": not any(info.values()),
    }


def table(recorded: list[dict]) -> str:
    """Write a row per family that was cut; then who is refused."""
    lines = ["| family | takes | experts | weights now | difference | loads |", "|---|---|---|---|---|---|"]
    refused = []
    for row in recorded:
        if row["refused"]:
            refused.append(f"* `{row['family']}`: {row['refused'].partition('. ')[0].rstrip('.')}.")
            continue
        before, now = row["weights"]
        lines.append(
            f"| `{row['family']}` | {', '.join(row['media']) or 'text'} | {' to '.join(map(str, row['experts']))} in "
            f"{row['layers']} | {now / before:.1%} | {row['difference']:.0e} | {'yes' if row['loads'] else 'no'} |"
        )
    return "\n".join([*lines, "", "Refused, with what `tamp` says:", "", *refused])


def main() -> None:
    """Look at every family and record what was found."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows = []
    for name in tqdm(sorted(families.rows())):
        rows.append(look(name))
    recording.write("expert_families", {"families": [row for row in rows if row]})


if __name__ == "__main__":
    main()
