"""What pruning larger models would take, computed from their configurations: a table for a page. Nothing is measured."""

import torch
import transformers

from tamp import estimate
from tamp.recipe import Recipe

N_SAMPLES, TOKENS = 128, 2_900
METHODS = ("wanda", "tamp", "sparsegpt")

CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
CLIP |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
SIGLIP |= {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16}


def decoder(kind: str, *sizes: int) -> dict:
    """Return the configuration of a language model."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {"model_type": kind, **dict(zip((*names, "vocab_size"), sizes))}


MODELS = {
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": transformers.LlavaOnevisionConfig(
        text_config={**decoder("qwen2", 896, 4864, 24, 14, 2, 152_000), "tie_word_embeddings": True},
        vision_config=SIGLIP,
        tie_word_embeddings=True,
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": transformers.LlavaNextConfig(
        text_config=decoder("llama", 4096, 11_008, 32, 32, 32, 32_064), vision_config=CLIP
    ),
    "llava-hf/llama3-llava-next-8b-hf": transformers.LlavaNextConfig(
        text_config=decoder("llama", 4096, 14_336, 32, 32, 8, 128_320), vision_config=CLIP
    ),
}
"""Configurations as published beside these models."""


def sizes_of(name: str) -> estimate.Sizes:
    """Return the sizes of a model in float16."""
    config = MODELS[name]
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float16)
    return estimate.Sizes.of(model)


def table() -> str:
    """Make a table of memory, a line per model and method, and of minutes on cards."""
    cards = list(estimate.CARDS)
    rows = [
        "| model | method | weights | all on the GPU | weights on the host | states too | " + " | ".join(cards) + " |",
        "|---" * (6 + len(cards)) + "|",
    ]
    lengths = [TOKENS] * N_SAMPLES
    for name in MODELS:
        sizes = sizes_of(name)
        for method in METHODS:
            recipe = Recipe.preset(method)
            need = estimate.need(sizes, recipe, lengths)
            parts = [sizes.weights, need.resident, need.onloaded, need.least]
            cells = [estimate.gigabytes(size) for size in parts]
            for card in estimate.CARDS.values():
                choice = estimate.choose(need, card.memory)
                minutes = estimate.seconds(sizes, recipe, lengths, card, choice.offload) / 60
                cells.append(f"{minutes:.1f}{'*' if choice.offload else ''}" if choice.fits else "–")
            rows.append(f"| `{name}` | {method} | {' | '.join(cells)} |")
    sources = ", ".join(f"[{name}]({card.source})" for name, card in estimate.CARDS.items())
    return "\n".join(rows) + (
        f"\n\nComputed, not measured, for {N_SAMPLES} samples of {TOKENS:,} tokens in float16. GB, then minutes; * "
        f"is with weights on the host. Minutes count on {estimate.ATTAINED:.0%} of what the data sheets say: {sources}."
    )
