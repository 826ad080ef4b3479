"""The untrained shipped model and its processor."""

import math

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tamp.worlds.drawing import CELL, COLOURS, GLYPHS, PATCH, SHAPES
from tamp.worlds.pictures import PLACES
from tamp.worlds.scenes import GRID, WORDS
from training.lessons import Vocabulary

TILE = 32
"""Edge of a vision tile, pixels."""

EDGE = GRID * CELL
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
PINPOINTS = [[TILE, EDGE], [EDGE, TILE], [EDGE, EDGE]]
HIDDEN, BLOCKS, HEADS, MLP = 192, 8, 6, 512
EMBEDDING_SCALE = 0.5
MATCH_SCALE = 0.8
LONGEST_ANSWER = 4

_ROWS, _COLUMNS = ([f"{axis}-{number + 1}" for number in range(GRID)] for axis in ("row", "column"))
_SYMBOLS = [symbol if symbol.isdigit() else f"letter-{symbol}" for symbol in GLYPHS]

_QUESTION_WORDS = (
    "what color is the shape object how many objects are there a where left right of above below number word shown "
    "which picture has more or ? answer : yes no first second third"
)

CHAT_TEMPLATE = """
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set parts = [{'type': 'text', 'text': message['content']}] -%}
  {%- else -%}
    {%- set parts = message['content'] -%}
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {{- ' answer :' -}}
    {%- for part in parts -%}{{- ' ' + part['text'] -}}{%- endfor -%}
    {{- ' <eos>' -}}
  {%- else -%}
    {%- for part in parts if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
    {%- for part in parts if part['type'] == 'text' -%}{{- ' ' + part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' answer :' -}}{%- endif -%}
""".strip()


def make_vocabulary() -> Vocabulary:
    """Return every token and its id, special ones first; `<pad>` is 0."""
    labels = [*_ROWS, *_COLUMNS, "sign"]
    words = [*SPECIAL, *COLOURS, *SHAPES, *_SYMBOLS, *WORDS, *PLACES, *_QUESTION_WORDS.split(), *labels]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def image_processor(tile: int, pinpoints: list[list[int]]) -> LlavaNextImageProcessorPil:
    """Return an image processor with tiles of `tile` pixels along an edge and the resolutions `pinpoints`."""
    return LlavaNextImageProcessorPil(
        size={"height": tile, "width": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints,
        resample=4,  # Box: halving is then a plain mean of four pixels.
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def vision_config(tile: int) -> CLIPVisionConfig:
    """Return the configuration of the vision tower, for tiles of `tile` pixels along an edge."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=tile,
        patch_size=PATCH,
        projection_dim=128,
        hidden_act="gelu",
    )


def build_processor() -> LlavaNextProcessor:
    """Return the processor: one token per word, pictures in 32-pixel tiles, a one-question chat template."""
    vocabulary = make_vocabulary()
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return LlavaNextProcessor(
        image_processor=image_processor(TILE, PINPOINTS),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    seed: int, decoder: type[PreTrainedConfig] = LlamaConfig, **changes: int
) -> LlavaNextForConditionalGeneration:
    """Return the untrained model in float32.

    Args:
        seed: Seed of the initial weights; the caller's torch random state is left alone.
        decoder: Configuration class of the language model.
        **changes: To the configuration of the language model.

    Returns:
        A LLaVA-NeXT with eager attention, in training mode.
    """
    vocabulary = make_vocabulary()
    ends = {"bos_token_id": vocabulary["<bos>"], "eos_token_id": vocabulary["<eos>"], "pad_token_id": 0}
    fields = {
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 1024,
        "initializer_range": 0.04,
        # A large base keeps most rotary pairs nearly still over a prompt, so that heads can match by content.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    text = decoder(**fields | ends | changes)
    config = LlavaNextConfig(
        vision_config=vision_config(TILE),
        text_config=text,
        image_token_index=vocabulary["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=False,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextForConditionalGeneration._from_config(config, attn_implementation="eager")
        _start_by_matching(model)
    model.generation_config = GenerationConfig(max_new_tokens=LONGEST_ANSWER, do_sample=False, **ends)
    return model.train()


@torch.no_grad()
def _start_by_matching(model: LlavaNextForConditionalGeneration) -> None:
    """Initialise half of the heads of the first blocks to attend to tokens with a similar embedding.

    A query for "circle" then attends to the visual tokens whose embedding contains "circle". Two of the heads also
    copy the rest of those embeddings. From random heads, training takes far longer to relate questions to pictures.
    All other heads start at random.
    """
    decoder = model.model.language_model
    vocabulary = make_vocabulary()
    # A sum of orthogonal words in one visual token can be separated again.
    words = torch.linalg.qr(torch.randn(HIDDEN, len(vocabulary))).Q.T
    decoder.embed_tokens.weight.copy_(EMBEDDING_SCALE * math.sqrt(HIDDEN) * words)
    model.lm_head.weight.copy_(0.1 * decoder.embed_tokens.weight)
    asked = words[[vocabulary[word] for word in (*COLOURS, *SHAPES, "number", "word")]]
    found = [
        words[[vocabulary[word] for word in (*COLOURS, *SHAPES, *_ROWS, *_COLUMNS)]],
        words[[vocabulary[word] for word in (*_SYMBOLS, "first", "second", "third")]],
    ]
    width = HIDDEN // HEADS
    # Rotary pairs are (i, i + width / 2), the slow ones last: only those match at the distance of a whole picture.
    slow = [place for place in range(width) if place % (width // 2) >= width // 2 - len(asked) // 2]
    for block in decoder.layers[: BLOCKS // 2]:
        attention = block.self_attn
        for head in range(HEADS // 2):
            places = [head * width + place for place in slow]
            turned = MATCH_SCALE * torch.linalg.qr(torch.randn(len(asked), len(asked))).Q @ asked
            attention.q_proj.weight[places] = turned
            attention.k_proj.weight[places] = turned
            if head < len(found):
                places = slice(head * width, head * width + len(found[head]))
                attention.v_proj.weight[places] = found[head]
                attention.o_proj.weight[:, places] = found[head].T
