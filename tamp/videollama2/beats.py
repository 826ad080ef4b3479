"""BEATs, the audio tower: a transformer over patches of a filter bank (Chen et al. 2022, arXiv 2212.09058)."""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tamp.videollama2.configuration import BeatsConfig

WEIGHT_NORM_EPS = 1e-6


def position_buckets(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Number the rows of the relative position table, as in T5: half for tokens ahead, half of each logarithmic.

    Args:
        distance: whole numbers, key position minus query position; on the CPU, whose logarithm decides where buckets
            end.
        buckets: rows of the table.
        max_distance: from here on every distance has the last bucket.

    Returns:
        int64 in [0, buckets), of the same shape.
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs().clamp(min=exact).float() / exact
    far = exact + (far.log() / math.log(max_distance / exact) * (half - exact)).long()
    near = distance.abs()
    return half * (distance > 0) + torch.where(near < exact, near, far.clamp(max=half - 1))


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attend with plain matrix products; (B, H, T, d) each to ((B, T, H, d), weights (B, H, T, T))."""
    logits = query * scaling @ key.mT + attention_mask
    weights = logits.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class BeatsPositionalConv(nn.Module):
    """A grouped convolution over time whose weight is normalised for every place of its kernel."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width, kernel = config.hidden_size, config.conv_pos_kernel
        self.groups = config.conv_pos_groups
        self.gain = nn.Parameter(torch.empty(1, 1, kernel))
        self.direction = nn.Parameter(torch.empty(width, width // self.groups, kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def weight(self) -> Tensor:
        """Scale the direction to the gain, in float32; (hidden, hidden / groups, kernel)."""
        direction = self.direction.float()
        return self.gain.float() * direction / (direction.square().sum((0, 1)) + WEIGHT_NORM_EPS).sqrt()

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what to add to the tokens, (B, T, hidden) to (B, T, hidden)."""
        kernel = self.gain.shape[-1]
        moved = nn.functional.conv1d(
            hidden.mT, self.weight().to(hidden.dtype), self.bias, padding=kernel // 2, groups=self.groups
        )
        return nn.functional.gelu(moved[..., : hidden.shape[1]].mT)  # an even kernel makes one column too many


class BeatsAttention(nn.Module):
    """Self-attention with relative positions, weighed by a gate that every query computes for itself."""

    is_causal = False

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        width, heads = config.hidden_size, config.num_attention_heads
        self.head_width = width // heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gate_proj = nn.Linear(self.head_width, 8)
        self.gate_scale = nn.Parameter(torch.empty(1, heads, 1, 1))

    def forward(self, hidden: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            hidden: (B, T, hidden).
            bias: (1, heads, T, T), what relative positions add to the logits before the gate.
            padding: (B, T) bool, True for tokens nobody attends to.

        Returns:
            (B, T, hidden).
        """
        query, key, value = (
            proj(hidden).unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # (B, heads, T, width)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        gates = self.gate_proj(query).unflatten(-1, (2, 4)).sum(-1).sigmoid()  # (B, heads, T, 2)
        first, second = gates.split(1, dim=-1)
        gate = first * (second * self.gate_scale - 1) + 2  # (B, heads, T, 1)
        gated = (gate * bias).to(query.dtype)  # (B, heads, T, T)
        if padding is not None:
            gated = gated.masked_fill(padding[:, None, None], torch.finfo(gated.dtype).min)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, _ = attend(self, query, key, value, gated, scaling=self.head_width**-0.5)
        return self.out_proj(output.flatten(2))


class BeatsLayer(GradientCheckpointingLayer):
    """A transformer layer that normalises after adding, with the input scaled up (DeepNorm)."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width = config.hidden_size
        self.scale = (2 * config.num_hidden_layers) ** 0.25
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
        """Run the layer, (B, T, hidden) to (B, T, hidden); the rest as in :meth:`BeatsAttention.forward`."""
        hidden = self.self_attn_layer_norm(self.scale * hidden + self.self_attn(hidden, bias, padding))
        widened = nn.functional.gelu(self.fc1(hidden))
        return self.final_layer_norm(self.scale * hidden + self.fc2(widened))


class BeatsModel(PreTrainedModel):
    """BEATs up to its last layer: the classifier over sound events is left out."""

    config: BeatsConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsLayer"]
    _supports_sdpa = True

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, config.patch_size, stride=config.patch_size, bias=False)
        self.patch_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.patch_proj = nn.Linear(config.embed_dim, width)
        self.pos_conv = BeatsPositionalConv(config)
        self.embed_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BeatsPositionalConv):
            init.ones_(module.gain)
            init.normal_(module.direction, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.gate_scale)

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        """Encode filter banks.

        Args:
            input_features: (B, frames, mel bins), log filter bank energies at a hundred frames a second; frames that do
                not fill a patch are dropped.
            attention_mask: (B, frames) bool, False for the padding of shorter sounds; it leaves their tokens as they
                would be without padding. Silence is not padding.

        Returns:
            ``last_hidden_state`` (B, T, hidden), tokens ordered by time, then mel bin.
        """
        config = self.config
        scaled = (input_features.float() - config.fbank_mean) / (2 * config.fbank_std)
        patches = self.patch_embedding(scaled.to(self.dtype)[:, None])  # (B, embed, time, mel)
        hidden = self.patch_proj(self.patch_norm(patches.flatten(2).mT))  # (B, T, hidden)
        padding = None
        if attention_mask is not None:
            padding = ~token_mask(attention_mask, config)  # (B, T)
            hidden = hidden.masked_fill(padding[..., None], 0)  # what the convolution sees beyond an end
        hidden = self.embed_norm(hidden + self.pos_conv(hidden))
        bias = self._position_bias(hidden.shape[1])  # (1, heads, T, T)
        for layer in self.layers:
            hidden = layer(hidden, bias, padding)
        return BaseModelOutput(last_hidden_state=hidden)

    def _position_bias(self, length: int) -> Tensor:
        """Return what relative positions add to the logits, (1, heads, T, T)."""
        config, table = self.config, self.relative_attention_bias
        steps = torch.arange(length, device="cpu")
        buckets = position_buckets(steps - steps[:, None], config.num_buckets, config.max_distance)  # (T, T)
        return table(buckets.to(table.weight.device)).permute(2, 0, 1)[None]


def token_mask(frame_mask: Tensor, config: BeatsConfig) -> Tensor:
    """Return which tokens come from frames that are not padding, (B, frames) to (B, T) bool."""
    size = config.patch_size
    rows = frame_mask.bool().unfold(1, size, size).all(-1)  # (B, frames // patch)
    return rows.repeat_interleave(config.num_mel_bins // size, dim=1)
