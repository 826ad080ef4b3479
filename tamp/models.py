"""What tamp needs to know about a model: its decoder blocks, their linears, and the modality of every token.

Nothing here is a table of families. The blocks are found through the decoder of the model, the linears by their type, the
modality of a token by the ids that the model's own configuration reserves for images, video and audio.
"""

import hashlib

import torch
from torch import Tensor, nn

from tamp.errors import UserError

VISUAL, AUDIO, TEXT, PADDING = 0, 1, 2, -1
MODALITY_NAMES = {VISUAL: "visual", AUDIO: "audio", TEXT: "text"}
ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last parts of the names of modules that choose experts."""

LEFT_BY_RULE = ("router", "convolution", "embedding")
"""Why a parameter of a block stays dense on purpose."""

PLACEHOLDERS = {"image": VISUAL, "video": VISUAL, "audio": AUDIO}


def name_of(model: nn.Module) -> str:
    """Return what a model is called: its name or path, or else its class."""
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def text_config(model: nn.Module):
    """Return the configuration of the language model inside ``model``."""
    return model.config.get_text_config(decoder=True)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the decoder blocks of the language model, in order.

    Returns:
        ``{name inside the model: block}``.

    Raises:
        UserError: if the model has no list of decoder blocks, or is an encoder-decoder.
    """
    if any(getattr(config, "is_encoder_decoder", False) for config in (model.config, text_config(model))):
        raise UserError(
            f"{type(model).__name__} is an encoder-decoder; tamp prunes decoder-only language models. Use a model whose "
            "language model is a decoder alone."
        )
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    depth = getattr(text_config(model), "num_hidden_layers", None)
    for module in decoder.modules():  # outermost first
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == depth and _has_linears(child[0]):
                names = {id(part): name for name, part in model.named_modules()}
                return {names[id(block)]: block for block in child}
    raise UserError(
        f"{type(model).__name__} has no list of {depth} decoder blocks with linears in them; "
        "tamp prunes transformers language models."
    )


def _has_linears(block: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in block.modules())


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears of a block that pruning concerns, by their name in it, in order of definition.

    Routers are left out: a linear with one output, or a narrowing one with a name of ``ROUTERS``.
    """
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not _routes(name, module.weight.shape)
    }


def _routes(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a matrix (out, in) is a router or a gate with one output, which nobody prunes."""
    return shape[0] == 1 or (name.rsplit(".", 1)[-1] in ROUTERS and shape[0] < shape[-1])


def all_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears of all decoder blocks by their name inside the model, block after block."""
    return {
        f"{prefix}.{name}": linear for prefix, block in blocks(model).items() for name, linear in linears(block).items()
    }


def left_out(model: nn.Module) -> dict[str, tuple[int, str]]:
    """List the parameters of the decoder blocks with two or more axes that are not pruned.

    Returns:
        ``{name inside the model: (weights, reason)}``; the reason is one of ``LEFT_BY_RULE``, or ``"fused experts"`` or
        ``"not a linear"`` for what pruning should reach and does not.
    """
    pruned = {id(linear.weight) for linear in all_linears(model).values()}
    found = {}
    for prefix, block in blocks(model).items():
        for name, parameter in block.named_parameters():
            if parameter.ndim < 2 or id(parameter) in pruned or name.endswith("bias"):
                continue
            owner = block.get_submodule(name.rpartition(".")[0])
            path = name.rpartition(".")[0]
            if _routes(path, parameter.shape):
                reason = "router"
            elif isinstance(owner, nn.modules.conv._ConvNd) or "conv" in type(owner).__name__.lower():
                reason = "convolution"
            elif isinstance(owner, nn.Embedding):
                reason = "embedding"
            else:
                reason = "fused experts" if parameter.ndim == 3 else "not a linear"
            found[f"{prefix}.{name}"] = (parameter.numel(), reason)
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
    found = {}
    for kind, modality in PLACEHOLDERS.items():
        for attribute in (f"{kind}_token_id", f"{kind}_token_index"):
            identifier = getattr(model.config, attribute, None)
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
    mask = batch.get("attention_mask")
    return codes if mask is None else codes.masked_fill(mask == 0, PADDING)


def to_model(model: nn.Module, sample: dict, number: int = 0) -> dict[str, Tensor]:
    """Move a processor's output to the model: its device, and its type for floating point entries.

    Raises:
        UserError: if the sample is not a processor output, or lacks the tokens of its images or the images of its tokens.
    """
    ids = sample.get("input_ids") if hasattr(sample, "get") else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        raise UserError(
            f"Sample {number} is not a processor output: expected a tensor input_ids of shape (batch, tokens) "
            "(call the processor with return_tensors='pt')."
        )
    device, dtype = model.get_input_embeddings().weight.device, model.dtype
    batch = {
        key: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for key, value in sample.items()
    }
    present = {code for identifier, code in placeholder_ids(model).items() if (ids == identifier).any()}
    media = {
        VISUAL: [key for key in batch if key.startswith("pixel_values")],
        AUDIO: [key for key in batch if key.startswith("input_features")],
    }
    for code, keys in media.items():
        name = MODALITY_NAMES[code]
        if keys and code not in present:
            raise UserError(
                f"Sample {number} has {name} input ({keys[0]}) but no {name} token: its prompt lacks the placeholder."
            )
        if code in present and not keys:
            raise UserError(f"Sample {number} has {name} tokens but no {name} input.")
    return batch
