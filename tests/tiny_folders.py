"""Folders of tiny random models with processors, in the shape of those on the hub, for tests in other environments.

Run as a script, ``python tests/tiny_folders.py FOLDER``, it writes all of them.
"""

import json
import string
import sys
from pathlib import Path

import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

TEMPLATE = """
{%- for message in messages -%}
  {{- message['role'] + ': ' -}}
  {%- for part in message['content'] -%}
    {{- part['text'] if part['type'] == 'text' else MARKS[part['type']] -}}
  {%- endfor -%}
  {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}
"""
VIDEO = {"size": {"height": 16, "width": 16}, "do_sample_frames": False}
FAMILIES = {
    "llava_onevision": {
        "processor_class": "LlavaOnevisionProcessor",
        "marks": {"image": "<image>", "video": "<video>"},
        "specials": ["<image>", "<video>"],
        "image_processor": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 16, "width": 16},
            "image_grid_pinpoints": [[16, 16], [32, 32]],
        },
        "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor", **VIDEO},
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
    },
    "qwen2_5_vl": {
        "processor_class": "Qwen2_5_VLProcessor",
        "marks": {"image": "<|vision_start|><|image_pad|><|vision_end|>"},
        "specials": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
        "image_processor": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32},
            "patch_size": 4,
        },
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 4},
    },
    "smolvlm": {
        "processor_class": "SmolVLMProcessor",
        "marks": {"image": "<image>"},
        "specials": ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"],
        "image_processor": {
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 16},
            "max_image_size": {"longest_edge": 16},
            "do_image_splitting": False,
        },
        "video_processor": {"video_processor_type": "SmolVLMVideoProcessor", "max_image_size": {"longest_edge": 16}},
        "image_seq_len": 4,
    },
}


def tokenizer(specials: list[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer of single characters, whose special tokens have the ids of the tiny models' placeholders."""
    characters = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"][: tiny.IMAGE - 3]
    words = ["<pad>", "<bos>", "<eos>", *characters]
    words += [f"<unused{number}>" for number in range(tiny.IMAGE - len(words))]
    core = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<pad>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(word, special=True) for word in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def write(family: str, folder: Path) -> Path:
    """Write a family's tiny model, tokenizer and processor files, without the packages that its processor needs."""
    model, _ = tiny.build(family)
    model.save_pretrained(folder)
    settings = dict(FAMILIES[family])
    marks, specials = settings.pop("marks"), settings.pop("specials")
    tokenizer(specials).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{%- set MARKS = " + json.dumps(marks) + " -%}" + TEMPLATE.strip())
    return folder


if __name__ == "__main__":
    for family in FAMILIES:
        write(family, Path(sys.argv[1]) / family)
