"""What pruning costs at full size: LLaVA-NeXT-8B's architecture with random weights, built where it runs.

    python tests/benchmarks/full_scale.py                 # a GPU with 40 GiB or more
    python tests/benchmarks/full_scale.py --scale tiny    # the same steps on any machine

Every sample has one picture of five tiles and about 2,900 tokens. Times are multiples of one forward pass over the
calibration samples, and of Wanda. Random weights say nothing about accuracy, and AMIA's number of picks, which is
reported, is that of random tokens. Methods warm up on two samples, take turns in rotated order, and what is known is
written after each; one that runs out of memory is noted and left out.
"""

import argparse
import contextlib
import gc
import statistics
import time
from functools import partial
from unittest import mock

import recording
import torch
import transformers

import tamp
from tamp import loading, models, pruning

LLAMA3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128320,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SCALES = {
    "8b": (LLAMA3_8B, CLIP_L, 2900),
    "tiny": (
        {
            **LLAMA3_8B,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        {
            **CLIP_L,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
        },
        70,
    ),
}
IMAGE = 300


def build(scale: str, device: torch.device, dtype: torch.dtype):
    """Build the model on the device, every weight drawn from a seed."""
    text, vision, _ = SCALES[scale]
    side = vision["image_size"]
    config = transformers.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **vision},
        text_config={"model_type": "llama", **text},
        image_token_id=IMAGE,
        image_grid_pinpoints=[[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return transformers.LlavaNextForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def make_samples(model, scale: str, n: int) -> list[dict]:
    """Make samples of random pixels and words, as the processor writes them."""
    _, vision, tokens = SCALES[scale]
    side, made = vision["image_size"], []
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([[2 * side, 2 * side - vision["patch_size"] * (2 if scale == "8b" else 0)]])
    for _ in range(n):
        pixels = torch.randn(1, 5, 3, side, side, generator=generator)
        visual = (
            sum(
                len(part)
                for part in model.get_image_features(
                    pixel_values=pixels.to(model.device, model.dtype), image_sizes=size.to(model.device)
                ).pooler_output
            )
            if not made
            else made[0]["input_ids"].eq(IMAGE).sum().item()
        )
        words = torch.randint(1, 250, (max(8, tokens - visual),), generator=generator)
        ids = torch.cat([words[:4], torch.full((visual,), IMAGE), words[4:]])[None]
        made.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_sizes": size}
        )
    return made


class Phases:
    """Measures the phases of pruning: seconds by the device's own clock, and the most memory of each, bytes."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.peak = device, {}, {}

    @contextlib.contextmanager
    def __call__(self, phase: str):
        """Measure what runs inside."""
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
            ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            ends[0].record()
        start = time.perf_counter()
        yield
        spent, most = time.perf_counter() - start, (0, 0)
        if gpu:
            ends[1].record()
            torch.cuda.synchronize(self.device)
            spent = ends[0].elapsed_time(ends[1]) / 1000
            most = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
        self.peak[phase] = [max(pair) for pair in zip(most, self.peak.get(phase, (0, 0)))]


def main(arguments: list[str] | None = None) -> dict:
    """Measure, write after every method, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="8b")
    parser.add_argument("--n", type=int, default=64, help="calibration samples")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--methods", nargs="+", default=["wanda", "tamp", "amia", "sparsegpt"])
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--seconds", type=float, default=180, help="no round begins after as many")
    parser.add_argument("--name", default="gpu_full_scale", help="of the file written")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    device = loading.resolve_device(options.device)
    model = build(options.scale, device, getattr(torch, options.dtype))
    samples = make_samples(model, options.scale, options.n)
    weights = {name: linear.weight for name, linear in models.all_linears(model).items()}
    saved = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
    times: dict[str, list[float]] = {}
    phases: dict[str, dict] = {}
    failed: dict[str, str] = {}
    kept: dict[str, float] = {}

    def forward(measure: Phases, samples: list[dict]) -> None:
        with torch.no_grad(), measure("forward"):
            for sample in samples:
                model(**models.to_model(model, sample), use_cache=False, logits_to_keep=1)

    def prune(measure: Phases, samples: list[dict], method: str) -> None:
        with mock.patch.object(pruning.Stopwatch, "__call__", lambda self, phase: measure(phase)):
            report = tamp.prune(model, samples, tamp.Recipe.preset(method, sparsity=0.5), progress=False)
        kept[method] = round(float(report.table["kept"].mean()), 1)

    calls = {"forward": forward} | {method: partial(prune, method=method) for method in options.methods}

    def run(name: str, samples: list[dict], record: bool) -> None:
        measure = Phases(device)
        try:
            calls[name](measure, samples)
        except torch.OutOfMemoryError as error:
            failed[name] = str(error).splitlines()[0]
        if record and name not in failed:
            times.setdefault(name, []).append(sum(measure.seconds.values()))
            phases[name] = {
                phase: {
                    "seconds": round(spent, 3),
                    "peak_allocated": measure.peak[phase][0],
                    "peak_reserved": measure.peak[phase][1],
                }
                for phase, spent in measure.seconds.items()
            }
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        for each, weight in weights.items():
            weight.data.copy_(saved[each])

    def result() -> dict:
        medians = {name: statistics.median(spent) for name, spent in times.items()}
        over = {unit: medians[unit] for unit in ("forward", "wanda") if unit in medians}
        return {
            "scale": options.scale,
            "weights_pruned": sum(weight.numel() for weight in weights.values()),
            "samples": options.n,
            "tokens_per_sample": samples[0]["input_ids"].shape[1],
            "dtype": options.dtype,
            "rounds": {name: len(spent) for name, spent in times.items()},
            "seconds": {name: round(spent, 3) for name, spent in medians.items()},
            **{
                f"over_{unit}": {name: round(medians[name] / base, 3) for name in options.methods if name in medians}
                for unit, base in over.items()
            },
            "phases": phases,
            "tokens_kept": kept,
            "out_of_memory": failed,
        }

    for name in calls:  # kernels are chosen and libraries loaded once; the time of that is nobody's
        run(name, samples[:2], record=False)
    for turn in range(options.rounds):
        names = [name for name in calls if name not in failed]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn and time.perf_counter() - began > options.seconds:
                break
            run(name, samples, record=True)
            recording.write(options.name, result(), options.out)
    recording.write(options.name, result(), options.out)
    return result()


if __name__ == "__main__":
    print(main())
