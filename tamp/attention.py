"""The attention of the last token, read beside a block's own attention."""

import contextlib
import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class AttentionRow:
    """The attention of the last valid token, filled while a block runs inside :func:`attention_row`.

    Attributes:
        last: (B,) position of each row's last valid token, to be set before the block runs.
        value: (B, T) float32, mean over heads, after the block ran; None if it has no attention that can be read.
    """

    last: Tensor
    value: Tensor | None = None


@contextlib.contextmanager
def attention_row(block: nn.Module) -> Iterator[AttentionRow]:
    """Compute the last valid token's softmax row beside a block's attention: one query, O(heads T d_head).

    transformers looks its attention function up by name. Inside this context the name leads to a function that calls the
    original one and computes one row beside it, from queries and keys that are already rotated.

    Blocks that compute their attention by themselves, or have none, leave the row without a value.
    """
    row = AttentionRow()
    name = f"tamp_attention_row_{id(row)}"  # other threads may look at other models
    configs = {
        id(module.config): module.config
        for module in block.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}

    def attend(module, query, key, value, attention_mask, *args, scaling=None, **kwargs):
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        original = ALL_ATTENTION_FUNCTIONS.get_interface(before[id(module.config)], eager)
        batch = torch.arange(len(query), device=query.device)
        last = query[batch, :, row.last].float()  # (B, H, d_head)
        last = last.unflatten(1, (key.shape[1], -1))  # (B, key heads, group, d_head)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        logits = (last @ key.float().mT).flatten(1, 2) * scale  # (B, H, T)
        if kwargs.get("softcap") is not None:
            logits = torch.tanh(logits / kwargs["softcap"]) * kwargs["softcap"]
        places = torch.arange(key.shape[2], device=query.device)
        seen = places <= row.last[:, None]  # (B, T)
        flat = attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2)
        if flat and kwargs.get("sliding_window") is not None:
            seen &= places > row.last[:, None] - kwargs["sliding_window"]
        logits = logits.masked_fill(~seen[:, None], -math.inf)
        if attention_mask is not None:
            logits = logits + _masked(attention_mask, row.last, places)
        if kwargs.get("s_aux") is not None:  # sinks: a logit per head that no token gets
            sinks = kwargs["s_aux"].float().reshape(1, -1, 1).expand(len(logits), -1, 1)
            logits = torch.cat([logits, sinks], -1)
        row.value = logits.softmax(-1)[..., : len(places)].mean(1)  # (B, T)
        return original(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield row
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        del ALL_ATTENTION_FUNCTIONS[name]


def _masked(mask, last: Tensor, places: Tensor) -> Tensor:
    """Return what a mask adds to the logits of the last token, (B, 1 or H, T) or (1, 1 or H, T), of any kind of mask.

    Args:
        mask: (B or 1, 1 or H, T, T), bool or added; (B, T), true where there is a token; or flex attention's block mask.
        last: (B,) position of the last token.
        places: (T,) 0, 1, ...
    """
    batch = torch.arange(len(last), device=last.device)
    if not isinstance(mask, Tensor):
        row = mask.mask_mod(batch[:, None], batch.new_zeros(()), last[:, None], places)[:, None]
    elif mask.ndim == 2:
        row = mask[:, None, -len(places) :].bool()
    else:
        row = mask[batch if len(mask) > 1 else batch[:1] * 0, :, last]  # (B, 1 or H, T)
    if row.dtype != torch.bool:
        return row.float()
    return torch.zeros(row.shape, device=row.device).masked_fill(~row, -math.inf)


def last_valid(modality: Tensor) -> Tensor:
    """Return the position of each row's last token that is not padding, (B, T) to (B,)."""
    positions = torch.arange(modality.shape[1], device=modality.device)
    return torch.where(modality >= 0, positions, -1).amax(1).clamp(min=0)
