"""smol-videollama2: VideoLLaMA 2 with sound, at a small size, over a real pretrained language model, SmolLM2-135M-Instruct.

The parts are those of the large model: SigLIP, the spatial-temporal connector, BEATs, and a Qwen2 decoder. Qwen2 is Llama
with biases, so SmolLM2's weights fit with biases of zero. The trained parts ship, see :mod:`training.smol`.
"""

import torch
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tamp.videollama2 import BeatsConfig, VideoLlama2Config, VideoLlama2ForConditionalGeneration, VideoLlama2Processor
from tamp.videollama2.processing import TOKENS
from tamp.worlds import clips
from tamp.worlds.drawing import PATCH
from training import smol

NAME = "smol-videollama2"
RANK = 12
TOWER = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}


def assemble(base: LlamaForCausalLM, seed: int = 0) -> VideoLlama2ForConditionalGeneration:
    """Return a language model with untrained towers and connectors before it, in float32.

    Args:
        base: The language model; its weights are copied, and three placeholder tokens are added to its vocabulary.
        seed: Seed of the untrained weights.
    """
    text, vocabulary = base.config, base.config.vocab_size
    ends = smol.end_ids(text)
    shared = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
    )
    config = VideoLlama2Config(
        text_config=Qwen2Config(
            **{name: getattr(text, name) for name in shared},
            vocab_size=vocabulary + len(TOKENS),
            tie_word_embeddings=True,
            **ends,
        ),
        vision_config=SiglipVisionConfig(
            **TOWER, num_hidden_layers=4, image_size=clips.SIDE, patch_size=PATCH, vision_use_head=False
        ),
        audio_config=BeatsConfig(
            **TOWER,
            num_hidden_layers=3,
            embed_dim=64,
            conv_pos_kernel=16,
            conv_pos_groups=4,
            num_buckets=64,
            max_distance=128,
        ),
        num_frames=clips.FRAMES,
        projector_depth=2,
        **{f"{kind}_token_id": vocabulary + number for number, kind in enumerate(TOKENS)},
        tie_word_embeddings=True,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlama2ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    weights = base.model.state_dict()
    words = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = torch.cat([words, words.new_zeros(len(TOKENS), words.shape[1])])
    missing, _ = model.model.language_model.load_state_dict(weights, strict=False)
    for name in missing:  # the biases
        torch.nn.init.zeros_(model.model.language_model.get_parameter(name))
    model.tie_weights()
    model.generation_config = GenerationConfig(max_new_tokens=smol.LONGEST_ANSWER, do_sample=False, **ends)
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> VideoLlama2Processor:
    """Return the processor over the language model's own tokenizer: eight frames of 64 pixels, plain sound."""
    tokenizer.padding_side = "left"
    tokenizer.add_tokens(list(TOKENS.values()), special_tokens=True)
    return VideoLlama2Processor(
        image_processor=SiglipImageProcessorPil(size={"height": clips.SIDE, "width": clips.SIDE}),
        tokenizer=tokenizer,
        num_frames=clips.FRAMES,
        audio_policy="plain",
        patch_size=PATCH,
    )
