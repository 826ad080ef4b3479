"""Write what data/README.md says of the shipped files from the files themselves: `python tests/refresh_data.py`."""

import json
import re
from pathlib import Path

from matplotlib.figure import Figure

from tamp.checkpoint import sha256
from tamp.report import METHODS

DATA = Path(__file__).parents[1] / "data"


def file_table() -> str:
    """List every shipped file but the recorded results, with size and SHA-256."""
    rows = [
        f"| `{path.relative_to(DATA).as_posix()}` | {path.stat().st_size:,} | `{sha256(path)}` |"
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path.name != "README.md" and "results" not in path.parts
    ]
    return "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])


def training_table(record: dict) -> str:
    """Tell what training made, from its record."""
    final = record["held_out"]
    rows = [
        f"| {task} | {row['n']} | {100 * row['accuracy']:.1f} | {100 * row['chance']:.1f} |"
        for task, row in final["tasks"].items()
    ]
    spent = ", ".join(f"{stage} {seconds / 60:.0f} min" for stage, seconds in record["seconds"].items())
    asked = sum(row["n"] for row in final["tasks"].values())
    return "\n".join(
        [
            f"{record['parameters']:,} parameters; seed {record['seed']}; on one core {spent}. Held out, {asked:,} fresh "
            f"questions, greedy decoding and exact match: mean {100 * final['mean']:.1f} %.",
            "",
            "| task | questions | accuracy % | chance % |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def training_figure(record: dict, path: Path) -> None:
    """Draw the loss and the held-out accuracy of the language stage."""
    curve = [entry for entry in record["curve"] if entry["stage"] == "language"]
    steps = [entry["step"] for entry in curve]
    figure = Figure(figsize=(9, 3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    left.plot(steps, [entry["loss"] for entry in curve], color="#4d4d4d")
    left.set(xlabel="step of the language stage", ylabel="loss (nats per token)", yscale="log")
    for number, task in enumerate(curve[0]["accuracy"]):
        right.plot(
            steps,
            [100 * entry["accuracy"][task] for entry in curve],
            lw=1,
            label=task,
            color=METHODS[number % len(METHODS)],
            ls=("-", "--")[number // len(METHODS)],
        )
    right.plot(steps, [100 * entry["mean"] for entry in curve], color="black", lw=2.2, label="mean")
    right.set(xlabel="step of the language stage", ylabel="held-out accuracy (%)", ylim=(0, 103))
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=130)


def filled(text: str, record: dict) -> str:
    """Put both tables between their marks."""
    for mark, table in (("files", file_table()), ("training", training_table(record))):
        text = re.sub(
            rf"(<!-- {mark} -->\n).*?(\n?<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n<!-- end -->", text, flags=re.S
        )
    return text


def main() -> None:
    """Refresh page and figure."""
    record = json.loads((DATA / "mini-llava-next" / "training.json").read_text())
    page = DATA / "README.md"
    page.write_text(filled(page.read_text(), record))
    training_figure(record, DATA / "results" / "mini_training.png")


if __name__ == "__main__":
    main()
