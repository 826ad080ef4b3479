"""How large files of pruned weights are: compact, under zstd, and as a bitmask with values; and how long coding takes.

Weights are pruned by magnitude. The program zstd must be installed. What is recorded already is not measured again.

python tests/benchmarks/sizes.py [--models smol-llava-next mini-llava-next]
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import recording
import torch
from safetensors.torch import save_file

import tamp
from tamp import compact, models

LEVELS = (0.3, 0.5, 0.6, 0.7, "2:4")
MODELS = {
    "mini-llava-next": {"bfloat16": LEVELS, "float16": LEVELS},
    "smol-llava-next": {"bfloat16": LEVELS, "float16": LEVELS},
}
"""Levels to measure, by model and type."""

ORDER = [(name, dtype, level) for name, types in MODELS.items() for dtype, levels in types.items() for level in levels]

HARDEST = [("mini-llava-next", dtype, level) for dtype in ("bfloat16", "float16") for level in (0.5, "2:4")]
"""What ``zstd -19`` codes too, at a few MB a second."""


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call and of the programs it runs, which other work on the machine does not change."""
    before = os.times()
    call()
    return round(sum(os.times()[:4]) - sum(before[:4]), 3)


def zstd(path: Path, level: int) -> dict:
    """Code a file with one thread of zstd: bytes, and seconds to code and to decode."""
    coded, again = path.with_suffix(".zst"), path.with_suffix(".again")
    command = ["zstd", "-q", "-f", "-T1"]
    spent = seconds(lambda: subprocess.run([*command, f"-{level}", path, "-o", coded], check=True))
    back = seconds(lambda: subprocess.run([*command, "-d", coded, "-o", again], check=True))
    assert again.read_bytes() == path.read_bytes()
    return {"bytes": coded.stat().st_size, "encode_seconds": spent, "decode_seconds": back}


def squeezed(path: Path) -> dict:
    """Code a file as a compact one: bytes, and seconds to code and to decode."""
    coded, again = path.with_suffix(compact.SUFFIX), path.with_suffix(".again")
    spent = seconds(lambda: compact.write(path, coded))
    back = seconds(lambda: compact.read(coded, again))
    assert again.read_bytes() == path.read_bytes()
    return {"bytes": coded.stat().st_size, "encode_seconds": spent, "decode_seconds": back}


def matrices(name: str, dtype: str, level: float | str, folder: Path) -> dict:
    """Prune a model, write a file of its pruned matrices and one of the whole model, and count."""
    model, _ = tamp.load(name, device="cpu", dtype=dtype)
    asked = {"pattern": level} if isinstance(level, str) else {"sparsity": level}
    tamp.prune(model, None, tamp.Recipe.preset("magnitude", **asked), progress=False)
    weights = {key: linear.weight.detach().contiguous() for key, linear in models.all_linears(model).items()}
    save_file(weights, folder / "matrices.safetensors")
    model.save_pretrained(folder)
    kept = sum(int((weight != 0).sum()) for weight in weights.values())
    total = sum(weight.numel() for weight in weights.values())
    return {"weights": total, "bitmask": total // 8 + kept * getattr(torch, dtype).itemsize}


def measure(name: str, dtype: str, level: float | str) -> dict:
    """Measure the file of the pruned matrices of a model, and the size of the whole model's file."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"model": name, "dtype": dtype, "level": level, **matrices(name, dtype, level, Path(folder))}
        part, whole = (Path(folder) / f"{name}.safetensors" for name in ("matrices", "model"))
        found |= {"plain": part.stat().st_size, "compact": squeezed(part), "zstd -3": zstd(part, 3)}
        compact.write(whole, whole.with_suffix(compact.SUFFIX))
        return found | {"whole": [file.stat().st_size for file in (whole, whole.with_suffix(compact.SUFFIX))]}


def hardest(row: dict) -> dict:
    """Measure ``zstd -19`` on the file of a row."""
    with tempfile.TemporaryDirectory() as folder:
        matrices(row["model"], row["dtype"], row["level"], Path(folder))
        return zstd(Path(folder) / "matrices.safetensors", 19)


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", default=recording.RESULTS, type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    version = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout
    path = options.out / "sizes.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    found = {"zstd": re.search(r"v(\d[\d.]*\d)", version)[1], "rows": rows}
    done = [(row["model"], row["dtype"], row["level"]) for row in rows]
    for name in options.models:
        for dtype, levels in MODELS[name].items():
            for level in levels:
                if (name, dtype, level) not in done:
                    rows.append(measure(name, dtype, level))
                    rows.sort(key=lambda row: ORDER.index((row["model"], row["dtype"], row["level"])))
                    recording.write("sizes", found, options.out)
    for row in rows:
        wanted = row["model"] in options.models and (row["model"], row["dtype"], row["level"]) in HARDEST
        if wanted and "zstd -19" not in row:
            row["zstd -19"] = hardest(row)
            recording.write("sizes", found, options.out)
    return found


def table(recorded: dict) -> str:
    """Write the size of the pruned matrices' files in per cent of their plain size, and what coding costs."""
    lines = [
        "| model, type, level | compact | `zstd -3` | `zstd -19` | bitmask and values | whole model, compact |",
        "|---|---|---|---|---|---|",
    ]
    for row in recorded["rows"]:
        level = row["level"] if isinstance(row["level"], str) else f"{row['level']:.0%}"
        sizes = [row.get(name, {}).get("bytes") for name in ("compact", "zstd -3", "zstd -19")] + [row["bitmask"]]
        shares = [f"{100 * size / row['plain']:.1f}" if size else "–" for size in sizes]
        shares.append(f"{100 * row['whole'][1] / row['whole'][0]:.1f}")
        lines.append(f"| `{row['model']}`, {row['dtype']}, {level} | {' | '.join(shares)} |")
    half = next(row for row in reversed(recorded["rows"]) if row["dtype"] == "bfloat16" and row["level"] == 0.5)
    speeds = [
        " and ".join(f"{half['plain'] / 1e6 / half[name][f'{way}code_seconds']:,.0f}" for way in ("en", "de"))
        for name in ("compact", "zstd -3")
    ]
    note = (
        "Size of the file of the pruned matrices in % of its plain size, and of the file of the whole model. Pruned by "
        f"magnitude; zstd {recorded['zstd']}. The {half['plain'] / 1e6:,.0f} MB of `{half['model']}` at 50 % are coded and "
        f"decoded at {speeds[0]} MB per second of processor time, by `zstd -3` at {speeds[1]}."
    )
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    print(table(main()))
