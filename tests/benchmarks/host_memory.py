"""Memory of the host while a model that it maps from files is pruned to a folder, two blocks of it.

    python tests/benchmarks/host_memory.py [--gigabytes 4] [--width 2560] [--place FOLDER]

The model is a LLaVA-NeXT with Mistral's blocks and random weights, written shard by shard. The run is stopped when two
blocks are finished, and what there is then is saved: all other tensors must be those of the model, byte for byte.

A process has memory of its own (``RssAnon``), and pages of the files it has mapped (``RssFile``), which the system takes
back when it needs them. The first is what has to be there. It is told apart by what it is for: metrics and masks of a
matrix, which a GPU would hold if there were one, and all else. What is freed is given back at once, so that only memory in
use is counted.
"""

import argparse
import contextlib
import ctypes
import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import peak
import recording
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import tamp
from tamp import models, onloading, pruning, streaming

BLOCKS = 2
"""Blocks that are pruned."""


class Stop(Exception):
    """Ends a run when enough blocks are finished."""


def config_of(width: int, layers: int) -> transformers.LlavaNextConfig:
    """Return the configuration of a LLaVA-NeXT with Mistral's proportions at a width."""
    text = {
        "model_type": "mistral",
        "hidden_size": width,
        "intermediate_size": 7 * width // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "num_key_value_heads": width // 512,
        "vocab_size": 32_064,
    }
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlavaNextConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **vision},
        image_token_id=32_000,
        dtype="bfloat16",
    )


def write(folder: Path, width: int, gigabytes: float) -> int:
    """Write a checkpoint of about this size, a shard per block, and return its number of blocks."""
    shapes = [(2 * width + width // 2, width), (3 * 7 * width // 2, width)]
    layers = max(BLOCKS + 1, round((gigabytes * 1e9 / 2 - 2 * 32_064 * width) / sum(a * b for a, b in shapes)))
    config = config_of(width, layers)
    with torch.device("meta"):
        model = transformers.LlavaNextForConditionalGeneration(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        shards.setdefault(
            name.split("layers.")[1].split(".")[0] if "language_model.layers" in name else "rest", []
        ).append(name)
    noise = torch.empty(2**24, dtype=torch.bfloat16).normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    places, at = {}, 0
    for shard, names in shards.items():
        tensors = {}
        for name in names:
            shape = model.state_dict()[name].shape
            at += 7_919  # another part of the noise for every tensor
            repeated = noise.roll(at).repeat(-(-shape.numel() // len(noise)))
            tensors[name] = repeated[: shape.numel()].reshape(shape).clone()
            places[name] = f"model-{shard}.safetensors"
        save_file(tensors, folder / f"model-{shard}.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return layers


def give_back() -> None:
    """Let glibc return memory to the system as soon as it is freed."""
    with contextlib.suppress(OSError, AttributeError):  # of another system
        ctypes.CDLL("libc.so.6").mallopt(-3, 2**17)  # M_MMAP_THRESHOLD, which then does not grow


MASKS = threading.Event()
"""Set while a matrix is pruned."""


@contextlib.contextmanager
def highest(kind: str, every: float = 0.002) -> Iterator[list[int]]:
    """Yield two numbers that grow to the most of a kind of this process's memory, bytes: at any time, and beside masks."""
    most, done = [peak.resident(kind)] * 2, threading.Event()

    def watch() -> None:
        while not done.wait(every):
            beside, now = not MASKS.is_set(), peak.resident(kind)
            most[0] = max(most[0], now)
            if beside and not MASKS.is_set():
                most[1] = max(most[1], now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a folder by name."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def measure(folder: Path, out: Path, n_samples: int, tokens: int) -> dict:
    """Prune two blocks of a model to a folder, save what there is, and return what the memory was."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    chance = torch.Generator().manual_seed(0)
    samples = [
        {
            "input_ids": (ids := torch.randint(3, 30_000, (1, tokens), generator=chance)),
            "attention_mask": torch.ones_like(ids),
        }
        for _ in range(n_samples)
    ]
    block = model.get_submodule(next(iter(models.blocks(model))))
    size = sum(each.nbytes for each in block.parameters())
    keep = streaming.Keeper.keep

    def stop(self, position: int, *given) -> None:
        keep(self, position, *given)
        if position + 1 == BLOCKS:
            raise Stop

    def prune_linear(*given) -> None:
        MASKS.set()
        try:
            linear(*given)
        finally:
            MASKS.clear()

    linear, pruning.prune_linear = pruning.prune_linear, prune_linear
    recipe = tamp.Recipe.preset("wanda", sparsity=0.5)
    give_back()
    before, found = peak.resident("RssAnon"), {}
    streaming.Keeper.keep = stop
    try:
        with highest("RssAnon") as own, highest("RssFile") as mapped, contextlib.suppress(Stop):
            tamp.prune(model, samples, recipe, progress=False, out=out)
        found |= {"prune": own[0] - before, "beside_masks": own[1] - before}
        with highest("RssAnon") as own:
            tamp.save(model, None, out)
        found["save"] = own[0] - before
    finally:
        streaming.Keeper.keep, pruning.prune_linear = keep, linear
    right = dict(tensors(folder))
    changed = sum(not torch.equal(tensor, right[name]) for name, tensor in tensors(out))
    return {
        **found,
        "mapped": mapped[0],
        "block": size,
        "states": onloading.states_bytes(model, samples),
        "largest": max(each.numel() for each in block.parameters()),
        "model": sum(each.nbytes for each in model.parameters()),
        "tensors": len(right),
        "saved": sum(1 for _ in tensors(out)),
        "changed": changed,
    }


def table(record: dict) -> str:
    """Say what was measured, in a sentence or two."""
    size = {name: record[name] / 1e6 for name in ("model", "block", "states", "prune", "beside_masks", "save")}
    return (
        f"Measured on a CPU: a LLaVA-NeXT with {record['blocks']} blocks of Mistral's proportions at width "
        f"{record['width']:,}, {size['model']:,.0f} MB of random weights. While {record['pruned']} blocks of "
        f"{size['block']:,.0f} MB are pruned, with {size['states']:,.0f} MB of states, the process's own memory grows by "
        f"{size['prune']:,.0f} MB at most, and by {size['beside_masks']:,.0f} MB beside metrics and masks, which a GPU "
        f"would hold if there were one. While the result is saved it grows by {size['save']:,.0f} MB. The "
        f"{record['saved'] - record['changed']} other tensors of the result equal those of the model."
    )


def main(arguments: list[str] | None = None) -> dict:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--width", type=int, default=2560, help="a multiple of 512; 4096 for blocks of 8B models")
    parser.add_argument("--n-samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--place", help="folder to write to (default: the temporary folder)")
    parser.add_argument("--out", type=Path, default=recording.RESULTS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        layers = write(Path(place, "model"), options.width, options.gigabytes)
        found = measure(Path(place, "model"), Path(place, "out"), options.n_samples, options.tokens)
    settings = {name: getattr(options, name) for name in ("width", "n_samples", "tokens")}
    result = {**settings, "blocks": layers, "pruned": BLOCKS, **found}
    recording.write("host_memory", result, options.out)
    return result


if __name__ == "__main__":
    main()
