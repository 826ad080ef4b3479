"""The attention of the last token, read beside a block's own attention."""

import contextlib
import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tamp.errors import UserError


class AttentionRow:
    """The attention of the last valid token, filled while a block runs inside :func:`attention_row`.

    Attributes:
        last: (B,) position of each row's last valid token, to be set before the block runs.
        value: (B, T) float32, mean over heads, after the block ran.
    """

    last: Tensor
    value: Tensor


@contextlib.contextmanager
def attention_row(block: nn.Module) -> Iterator[AttentionRow]:
    """Compute the last valid token's softmax row beside a block's attention: one query, O(heads T d_head).

    transformers looks its attention function up by name. Inside this context the name leads to a function that calls the
    original one and computes one row beside it, from queries and keys that are already rotated.

    Raises:
        UserError: if the block has no attention that looks its function up.
    """
    name = "tamp_attention_row"
    configs = {
        id(module.config): module.config
        for module in block.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    if not configs:
        raise UserError(
            f"{type(block).__name__} does not look its attention function up by name, so AMIA cannot see its "
            "attention; choose tokens='all' or 'text'."
        )
    row = AttentionRow()

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
        future = torch.arange(key.shape[2], device=query.device) > row.last[:, None]  # (B, T)
        logits = logits.masked_fill(future[:, None], -math.inf)
        if attention_mask is not None:
            mask = attention_mask[batch if len(attention_mask) > 1 else 0, :, row.last]  # (B, 1 or H, T)
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
        row.value = logits.softmax(-1).mean(1)  # (B, T)
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


def last_valid(modality: Tensor) -> Tensor:
    """Return the position of each row's last token that is not padding, (B, T) to (B,)."""
    positions = torch.arange(modality.shape[1], device=modality.device)
    return torch.where(modality >= 0, positions, -1).amax(1).clamp(min=0)
