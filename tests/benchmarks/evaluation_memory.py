"""Peak memory of evaluating on files of pictures, by the number of questions.

    python tests/benchmarks/evaluation_memory.py [--questions 50 200 5000]

Questions about JPEG files of 1024 x 768 pixels, one file each: some files under many names, by links. The smallest shipped
model answers. What the processor gave is kept up to ``HELD`` bytes, and again what the towers made of it. Here ``HELD`` is
so low that every size is beyond it, so the growth per question is that of everything else. Each size runs in a process of
its own.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import peak
import recording
from PIL import Image

from tamp.evaluation import questions

SIZE = 1024, 768
HELD = 2**20
CODE = """
import sys, peak
folder, held, *paths = sys.argv[1:]
sys.path[:0] = paths
import torch, tamp
from pathlib import Path
from tamp.evaluation import questions, scoring
torch.set_num_threads(1)
questions.HELD = scoring.HELD = int(held)
model, processor = tamp.load("mini-llava-next", device="cpu")
source = Path(folder) / "set.jsonl"
scoring.answers(model, processor, source, 20, progress=False)
before = peak.start()
ready = scoring.prepare(processor, source)
prepared = peak.resident("VmHWM") - before
table = scoring.answers(model, processor, ready, progress=False)
print(prepared, peak.resident("VmHWM") - before, len(table))
"""


def pictures(folder: Path, files: int) -> None:
    """Write some pictures, each smooth shades under noise of its own."""
    chance = np.random.default_rng(0)
    for number in range(files):
        coarse = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE)
        noise = chance.integers(-8, 9, (SIZE[1], SIZE[0], 1))
        shades = (np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(shades).save(folder / f"file{number}.jpg", quality=90)


def measure(count: int, files: int) -> dict:
    """Measure the peak growth of preparing and scoring so many questions, bytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures(folder, min(files, count))
        for number in range(count):
            os.link(folder / f"file{number % files}.jpg", folder / f"{number}.jpg")
        records = [
            {"image": f"{number}.jpg", "question": "what color is it ?", "answer": "yes"} for number in range(count)
        ]
        (folder / "set.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in records))
        prepared, scored, rows = peak.alone(CODE, folder, HELD, recording.ROOT)
    assert rows == count
    return {"questions": count, "prepared": prepared, "scored": scored}


def main(arguments: list[str] | None = None) -> dict:
    """Measure, record and return."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[50, 200, 5000])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    rows = [measure(count, options.files) for count in options.questions]
    few, many = rows[0], rows[-1]
    result = {
        "size": SIZE,
        "held": {"here": HELD, "usually": questions.HELD},
        "rows": rows,
        "per_question": round((many["scored"] - few["scored"]) / (many["questions"] - few["questions"])),
        "picture": 3 * SIZE[0] * SIZE[1],
    }
    recording.write("evaluation_memory", result, options.out)
    return result


def table(recorded: dict) -> str:
    """Write the growth by the number of questions."""
    lines = ["| questions | peak growth, preparing | scoring too |", "|---|---|---|"]
    lines += [
        f"| {row['questions']:,} | {row['prepared'] / 1e6:,.0f} MB | {row['scored'] / 1e6:,.0f} MB |"
        for row in recorded["rows"]
    ]
    (width, height), held, many = recorded["size"], recorded["held"], recorded["rows"][-1]
    note = (
        f"JPEG files of {width} x {height} pixels, one per question, answered by `mini-llava-next`. One more question takes "
        f"{recorded['per_question'] / 1e3:,.0f} kB; a decoded picture would take {recorded['picture'] / 1e3:,.0f} kB. "
        "What the processor and the towers made of pictures is kept on top, up to "
        f"{held['usually'] / 2**30:g} GiB each. Here that limit was {held['here'] / 2**20:g} MiB. So {many['questions']:,} "
        f"questions need about {(many['scored'] + 2 * held['usually']) / 2**30:.1f} GiB beside the model."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    print(table(main()))
