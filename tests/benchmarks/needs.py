"""What pruning larger models would take, computed from their configurations: a table for a page. Nothing is measured."""

from dataclasses import replace

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


def card_table(name: str = "llava-hf/llama3-llava-next-8b-hf") -> str:
    """Make a table of what TAMP takes on one model, a line per card or pair of cards."""
    cards = estimate.CARDS
    smaller = replace(cards["A100"], memory=40e9, bandwidth=1555e9)  # as its data sheet says
    rigs = [("T4, 16 GB", cards["T4"], 1), ("L4, 24 GB", cards["L4"], 1), ("2 x L4, 24 GB", cards["L4"], 2)]
    rigs += [("A100, 40 GB", smaller, 1), ("A100, 80 GB", cards["A100"], 1)]
    sizes, recipe = sizes_of(name), Recipe.preset("tamp")
    rows = ["| GPU | weights wait | states wait | GB on a GPU | GB of the host | minutes |", "|---" * 6 + "|"]
    for rig, card, count in rigs:
        lengths = [TOKENS] * (N_SAMPLES // count)
        need = estimate.need(sizes, recipe, lengths)
        choice = estimate.choose(need, card.memory)
        host = choice.states == "host"
        takes = need.least if host else need.onloaded if choice.offload else need.resident
        own = (need.host if host else need.host - need.states) if choice.offload else 0
        minutes = estimate.seconds(sizes, recipe, lengths, card, choice.offload) / 60
        cells = ["on the host" if choice.offload else "on the GPU", "on the host" if host else "on the GPU"]
        cells += [estimate.gigabytes(takes), estimate.gigabytes(count * own) if own else "–", f"{minutes:.1f}"]
        rows.append(f"| {rig} | {' | '.join(cells)} |")
    return "\n".join(rows) + (
        f"\n\nWhat `tamp prune` chooses for `{name}` by TAMP, {N_SAMPLES} samples of {TOKENS:,} tokens in float16. All "
        "of it is computed, the host's memory beside mapped weights. On two GPUs each process takes half of the samples."
    )
