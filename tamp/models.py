"""What tamp needs to know about a model: its decoder blocks, their matrices, and the modality of every token.

Nothing here is a table of families. The blocks are found through the decoder of the model, the matrices by their type
(:mod:`tamp.matrices`), the modality of a token by the ids that the model's own configuration reserves for images, video and
audio, or by the masks that its processor writes.
"""

import hashlib

import torch
from torch import Tensor, nn

from tamp import matrices
from tamp.errors import UserError
from tamp.matrices import Matrix

VISUAL, AUDIO, TEXT, PADDING = 0, 1, 2, -1
MODALITY_NAMES = {VISUAL: "visual", AUDIO: "audio", TEXT: "text"}

PLACEHOLDERS = {"image": VISUAL, "video": VISUAL, "audio": AUDIO}
MASKS = {"image_embeds_position_mask": VISUAL, "image_patches_indices": VISUAL}
"""Inputs that mark the tokens of pictures where no id is reserved: true, or a number from 0 on."""

ELSEWHERE = ("cross_attention_mask", "image_attention_mask")
"""Inputs of models whose pictures enter by cross-attention and take no place in the sequence."""


def name_of(model: nn.Module) -> str:
    """Return what a model is called: its name or path, or else its class."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def speaker(model: nn.Module) -> nn.Module:
    """Return the part of a model that takes a processor's output and gives logits: a model that also talks has a thinker.

    Raises:
        UserError: if it is not a transformers model.
    """
    if not hasattr(model, "config"):
        raise UserError(
            f"{type(model).__name__} is not a transformers model, since it has no config. If it wraps one, as DataParallel "
            "does, give the model inside: model.module."
        )
    return getattr(model, "thinker", model)


def text_config(model: nn.Module):
    """Return the configuration of the language model inside ``model``."""
    return speaker(model).config.get_text_config(decoder=True)


def decoder(model: nn.Module) -> nn.Module:
    """Find the module that calls the decoder blocks one after the other.

    Raises:
        UserError: if the model has no list of decoder blocks, or is an encoder or an encoder-decoder.
    """
    return _decoder(model)[0]


def _decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """Find the module that calls the decoder blocks, and the list of them."""
    part = speaker(model)
    if any(getattr(config, "is_encoder_decoder", False) for config in (part.config, text_config(model))):
        raise UserError(
            f"{type(model).__name__} is an encoder-decoder; tamp prunes decoder-only language models. Use a model whose "
            "language model is a decoder alone."
        )
    depths = {getattr(text_config(model), name, None) for name in ("num_hidden_layers", "num_layers")} - {None}
    start = part.get_decoder() if hasattr(part, "get_decoder") else part
    lists = (
        (module, child)
        for module in start.modules()  # outermost first
        for child in module.children()
        if isinstance(child, nn.ModuleList) and len(child) in depths and matrices.of(child[0])
    )
    for module, stack in lists:
        causal = [each.is_causal for each in stack.modules() if isinstance(getattr(each, "is_causal", None), bool)]
        if causal and not any(causal) and not (hasattr(part, "can_generate") and part.can_generate()):
            raise UserError(f"{type(model).__name__} is an encoder; tamp prunes language models that generate text.")
        return module, stack
    raise UserError(
        f"{type(model).__name__} has no list of {' or '.join(map(str, depths))} decoder blocks with linears in them; "
        "tamp prunes transformers language models."
    )


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the decoder blocks of the language model, in order.

    Returns:
        ``{name inside the model: block}``.

    Raises:
        UserError: see :func:`decoder`.
    """
    stack = _decoder(model)[1]
    names = {id(part): name for name, part in model.named_modules()}
    return {names[id(block)]: block for block in stack}


def linears(block: nn.Module) -> dict[str, Matrix]:
    """Return the matrices of a block that pruning concerns, by their name in it; see :func:`tamp.matrices.of`."""
    return matrices.of(block)


def all_linears(model: nn.Module) -> dict[str, Matrix]:
    """Return the matrices of all decoder blocks by their name inside the model, block after block."""
    return {
        f"{prefix}.{name}": linear for prefix, block in blocks(model).items() for name, linear in linears(block).items()
    }


def left_out(model: nn.Module) -> dict[str, tuple[int, str]]:
    """List the parameters of the decoder with two or more axes that are not pruned.

    Returns:
        ``{name inside the model: (weights, reason)}``; the reason is one of ``matrices.BY_RULE``, or says why pruning does
        not reach what it should. Outside the blocks only a list of other layers counts.
    """
    found = {}
    for prefix, block in blocks(model).items():
        found |= {f"{prefix}.{name}": (size, reason) for name, size, reason in matrices.dense(block)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owner, stack = _decoder(model)
    for child in owner.children():  # other layers that the decoder calls in between
        if isinstance(child, nn.ModuleList) and child is not stack and not any(isinstance(e, nn.Linear) for e in child):
            for parameter in child.parameters():
                if parameter.ndim >= 2:
                    found[names[id(parameter)]] = (parameter.numel(), "layer outside the blocks")
    return found


def fingerprint(model: nn.Module) -> str:
    """Condense names, shapes and the first weights of the decoder's linears, to tell models apart in no time.

    Returns:
        SHA-256, in hexadecimal; the same for every device, and for a model that was widened from half precision.
    """
    condensed = hashlib.sha256()
    for name, linear in all_linears(model).items():
        condensed.update(f"{name} {tuple(linear.weight.shape)}".encode())
        condensed.update(linear.weight.detach()[0, :16].float().cpu().numpy().tobytes())
    return condensed.hexdigest()


def placeholder_ids(model: nn.Module) -> dict[int, int]:
    """Read from the model's configuration which token ids stand for images, video and audio: ``{id: modality}``."""
    config = speaker(model).config
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    found = {}
    for part in reversed([part for part in parts if part is not None]):  # the whole model's word counts most
        for kind, modality in PLACEHOLDERS.items():
            for attribute in (f"{kind}_token_id", f"{kind}_token_index"):
                identifier = getattr(part, attribute, None)
                if isinstance(identifier, int) and identifier >= 0:
                    found[identifier] = modality
    return found


def modality(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the modality of every token of a processor's output.

    Args:
        model: the model whose configuration names the placeholder ids.
        batch: at least ``input_ids`` (B, T), and ``attention_mask`` (B, T) if padded.

    Returns:
        (B, T) int8 of VISUAL, AUDIO, TEXT and PADDING.
    """
    ids = batch["input_ids"]
    codes = torch.full_like(ids, TEXT, dtype=torch.int8)
    for identifier, code in placeholder_ids(model).items():
        codes[ids == identifier] = code
    for name, code in MASKS.items():
        mark = batch.get(name)
        if isinstance(mark, Tensor) and mark.shape == ids.shape:
            codes[mark > 0 if name.endswith("mask") else mark >= 0] = code
    mask = batch.get("attention_mask")
    return codes if mask is None else codes.masked_fill(mask == 0, PADDING)


def media_inputs(batch: dict) -> dict[int, list[str]]:
    """Return the names of the inputs that hold pictures, video or sound, by modality."""
    sound = ("audio", "input_features", "input_values", "speech")
    found: dict[int, list[str]] = {VISUAL: [], AUDIO: []}
    for name, value in batch.items():
        media = isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
        if (media and not name.endswith(("_mask", "inputs_embeds"))) or name.startswith("pixel_values"):
            found[AUDIO if any(part in name for part in sound) else VISUAL].append(name)
    return found


def to_model(model: nn.Module, sample: dict, number: int = 0) -> dict[str, Tensor]:
    """Move a processor's output to the model: its device, and its type for floating point entries.

    Raises:
        UserError: if the sample is not a processor output, or lacks the tokens of its images or the images of its tokens.
    """
    ids = sample.get("input_ids") if hasattr(sample, "get") else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise UserError(
            f"Sample {number} is not a processor output: expected a tensor input_ids of whole numbers, (batch, tokens) "
            "(call the processor with return_tensors='pt')."
        )
    mask = sample.get("attention_mask")
    if mask is not None and getattr(mask, "shape", None) != ids.shape:
        raise UserError(
            f"Sample {number} has an attention_mask that is not a tensor of input_ids' shape {tuple(ids.shape)}."
        )
    device, dtype = speaker(model).get_input_embeddings().weight.device, model.dtype
    batch = {
        key: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for key, value in sample.items()
        if key != "labels"  # of training: a model would compute a loss
    }
    codes = set(modality(model, batch).unique().tolist())
    media = media_inputs(batch)
    for code, keys in media.items():
        name = MODALITY_NAMES[code]
        if keys and code not in codes and not any(key in batch for key in ELSEWHERE):
            raise UserError(
                f"Sample {number} has {name} input ({keys[0]}) but no {name} token: its prompt lacks the placeholder, or "
                "the model's configuration reserves no token id for it."
            )
        if code in codes and not any(media.values()):
            raise UserError(f"Sample {number} has {name} tokens but no {name} input.")
    return batch
