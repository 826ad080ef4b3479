"""What pruning costs at full size: LLaVA-NeXT-8B's architecture with random weights, built where it runs.

    python tests/benchmarks/full_scale.py                 # a GPU with 40 GiB or more
    python tests/benchmarks/full_scale.py --scale tiny    # the same steps on any machine

Every sample has one picture of five tiles and about 2,900 tokens. Times are multiples of one forward pass over the
calibration samples, and of Wanda. Random weights say nothing about accuracy, and AMIA's number of picks, which is
reported, is that of random tokens.
"""

import argparse

import recording
import torch
import transformers

import tamp
from tamp import loading

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


def main(arguments: list[str] | None = None) -> dict:
    """Measure, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="8b")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--methods", nargs="+", default=["wanda", "amia", "tamp", "sparsegpt"])
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    device = loading.resolve_device(options.device)
    model = build(options.scale, device, getattr(torch, options.dtype))
    samples = make_samples(model, options.scale, options.n)
    saved = {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    def forward() -> None:
        with torch.no_grad():
            for sample in samples:
                model(
                    **{
                        key: value.to(device, model.dtype if value.is_floating_point() else None)
                        for key, value in sample.items()
                    },
                    use_cache=False,
                    logits_to_keep=1,
                )

    forward()  # kernels are chosen and memory is claimed once
    times = {"forward": recording.seconds(forward)}
    reports = {}
    for method in options.methods:
        model.load_state_dict(saved)
        recipe = tamp.Recipe.preset(method, sparsity=0.5)
        times[method] = recording.seconds(
            lambda recipe=recipe, method=method: reports.update(
                {method: tamp.prune(model, samples, recipe, progress=False)}
            )
        )
    result = {
        "scale": options.scale,
        "weights_pruned": sum(next(iter(reports.values())).plan.sizes),
        "samples": options.n,
        "tokens_per_sample": samples[0]["input_ids"].shape[1],
        "dtype": options.dtype,
        "seconds": {name: round(spent, 3) for name, spent in times.items()},
        "over_forward": {name: round(times[name] / times["forward"], 3) for name in reports},
        "over_wanda": {name: round(times[name] / times["wanda"], 3) for name in reports} if "wanda" in reports else {},
        "phases": {name: report.summary()["seconds"] for name, report in reports.items()},
        "tokens_kept": {name: round(float(report.table["kept"].mean()), 1) for name, report in reports.items()},
        "peak_memory_bytes": {name: report.peak_memory for name, report in reports.items()},
    }
    recording.write(f"full_scale_{options.scale}", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
