"""smol-llava-next: LLaVA-NeXT over a real pretrained language model, SmolLM2-135M-Instruct.

Trained are a vision tower, a projector, and low-rank updates of the decoder's linears. They ship without the language model,
and :mod:`tamp.zoo` merges the two.
"""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from tamp import zoo
from tamp.worlds.drawing import PATCH
from training.building import image_processor, vision_config

NAME = "smol-llava-next"
TILE = 64
"""Edge of a vision tile, pixels."""

PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
IMAGE_TOKEN = "<empty_output>"
"""Placeholder of a visual token: a token of the language model that its chats never use."""

RANK = 16
LONGEST_ANSWER = 8

CHAT_TEMPLATE = """
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message['role'] + '\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- '<empty_output>\n' -}}{%- endfor -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".strip()
"""SmolLM2's own template, with pictures before the text of a turn."""


def end_ids(config: LlamaConfig) -> dict[str, int]:
    """Return the token ids of a language model's beginning, end and padding, by name."""
    return {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def assemble(base: LlamaForCausalLM, seed: int = 0) -> LlavaNextForConditionalGeneration:
    """Return a language model with an untrained tower and projector before it, in float32.

    Args:
        base: The language model; its weights are copied.
        seed: Seed of the untrained weights.
    """
    text = base.config
    ends = end_ids(text)
    config = LlavaNextConfig(
        vision_config=vision_config(TILE),
        text_config=text,
        image_token_index=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=True,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    model.model.language_model.load_state_dict(base.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(max_new_tokens=LONGEST_ANSWER, do_sample=False, **ends)
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaNextProcessor:
    """Return the processor over the language model's own tokenizer: 64-pixel tiles, SmolLM2's chat template."""
    tokenizer.padding_side = "left"
    tokenizer.image_token = IMAGE_TOKEN
    return LlavaNextProcessor(
        image_processor=image_processor(TILE, PINPOINTS),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def language_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load SmolLM2-135M-Instruct in float32, and its tokenizer."""
    source = zoo.language_model()
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), AutoTokenizer.from_pretrained(source)
