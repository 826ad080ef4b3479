"""The way of a small model on Colab, gone here: LLaVA-OneVision 0.5B at its true size, with random weights, on a CPU.

    python tests/benchmarks/rehearsal.py [--n-samples 4] [--place FOLDER]

The commands are those of the book's page, each in a process of its own. The folder has the published configuration, image
processor and number of tokens; the tokenizer is one of single characters, and random weights say nothing about accuracy.
The processor needs torchvision.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import needs
import peak
import recording
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_folders

import tamp
from tamp import estimate

NAME = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
EDGES = [384 * number for number in range(1, 7)]
IMAGE, VIDEO = 151_646, 151_647


def write(folder: Path) -> None:
    """Write the model with random weights in half precision, and its processor."""
    pinpoints = [[height, width] for height in EDGES for width in EDGES]
    config = needs.MODELS[NAME]
    config.image_token_id, config.video_token_id, config.image_grid_pinpoints = IMAGE, VIDEO, pinpoints
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    family = tiny_folders.FAMILIES["llava_onevision"]
    tokenizer = tiny_folders.tokenizer([])
    fill = [f"<unused {number}>" for number in range(IMAGE - len(tokenizer))]
    tokenizer.add_tokens([*fill, *family["specials"]], special_tokens=True)
    tokenizer.save_pretrained(folder)
    size = {"height": 384, "width": 384}
    processor = {
        "processor_class": family["processor_class"],
        "image_processor": family["image_processor"] | {"size": size, "image_grid_pinpoints": pinpoints},
        "video_processor": family["video_processor"] | {"size": size},
        "num_image_tokens": 729,
        "vision_feature_select_strategy": "full",
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))
    marks = "{%- set MARKS = " + json.dumps(family["marks"]) + " -%}"
    (folder / "chat_template.jinja").write_text(marks + tiny_folders.TEMPLATE.strip())


def run(*words: object) -> dict:
    """Run a command of tamp, and return its seconds and its highest resident memory in bytes."""
    command = [sys.executable, "-m", "tamp", *map(str, words)]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        said.seek(0)
        lines = said.read().strip().splitlines()
    if status:
        raise RuntimeError("\n".join([" ".join(command), *lines[-20:]]))
    made = {"seconds": round(time.perf_counter() - begin, 1), "memory": 1024 * used.ru_maxrss}
    print(words[0], made, *lines[-1:], flush=True)
    return made


def table(record: dict) -> str:
    """Say what was measured, in a sentence or two."""
    said = [f"`tamp {name}` {step['memory'] / 1e9:.1f}" for name, step in record["steps"].items()]
    return (
        f"Rehearsed on a CPU, with the architecture at its true size, random weights of {record['bytes'] / 1e9:.1f} GB, "
        f"{len(record['tokens'])} calibration samples of up to {max(record['tokens']):,} tokens and {record['n_questions']} "
        f"questions. Memory of the host, where a CPU widens the weights to single precision, GB: {', '.join(said)}. "
        "Not measured on a T4."
    )


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-samples", type=int, default=4)
    parser.add_argument("--n-questions", type=int, default=8)
    parser.add_argument("--place", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--out", default=recording.RESULTS, type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.place) as scratch:
        folder, pruned = Path(scratch, "model"), Path(scratch, "pruned")
        # a process of its own: what is started counts the memory of the one that starts it
        peak.alone("import pathlib, sys, rehearsal\nrehearsal.write(pathlib.Path(sys.argv[1]))", folder)
        asked = ["smol-vqa", "--n-samples", options.n_samples]
        made = {
            "doctor": run("doctor", folder),
            "prune": run("prune", folder, "--preset", "tamp", "--calibration", *asked, "--out", pruned),
            "verify": run("verify", pruned),
            "evaluate": run("evaluate", pruned, "--benchmark", "smol-vqa", "--n-questions", options.n_questions),
        }
        processor = transformers.AutoProcessor.from_pretrained(folder)
        samples = tamp.calibration_set("smol-vqa", processor, options.n_samples)
        size = sum(path.stat().st_size for path in folder.iterdir())
    result = {"model": NAME, "bytes": size, "tokens": estimate.lengths(samples)}
    result |= {"n_questions": options.n_questions, "steps": made}
    recording.write("rehearsal", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
