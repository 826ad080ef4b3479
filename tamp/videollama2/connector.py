"""The spatial-temporal convolution connector between frames and decoder (Cheng et al. 2024, arXiv 2406.07476).

Its stages are those of RegNet (Radosavovic et al. 2020) with squeeze-and-excitation and depthwise kernels. Modules are
named as in the checkpoint.
"""

import math

from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise every place, (B, C, H, W) to (B, C, H, W)."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """A convolution without bias that keeps height and width, then a normalisation over channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = ChannelLayerNorm(outputs, eps=1e-5)

    def forward(self, maps: Tensor) -> Tensor:
        """Run both, (B, inputs, H, W) to (B, outputs, H, W)."""
        return self.bn(self.conv(maps))


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate that the means of all channels decide."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Gate the channels, (B, C, H, W) to (B, C, H, W)."""
        mean = maps.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return maps * self.fc2(nn.functional.silu(self.fc1(mean))).sigmoid()


class Bottleneck(nn.Module):
    """A residual block: 1 x 1, depthwise 3 x 3, squeeze-and-excitation, 1 x 1."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, kernel=3, groups=outputs)
        self.se = SqueezeExcite(outputs, round(inputs / 4))  # a quarter of what enters the block, not of what it sees
        self.conv3 = ConvNorm(outputs, outputs)
        self.downsample = ConvNorm(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Run the block, (B, inputs, H, W) to (B, outputs, H, W)."""
        inner = nn.functional.silu(self.conv1(maps))
        inner = nn.functional.silu(self.conv2(inner))
        inner = self.conv3(self.se(inner))
        return nn.functional.silu(inner + self.downsample(maps))


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Chain bottlenecks named b1, b2, ..., the first of which changes the width."""
    blocks = nn.Sequential()
    for number in range(depth):
        blocks.add_module(f"b{number + 1}", Bottleneck(outputs if number else inputs, outputs))
    return blocks


class STCConnector(nn.Module):
    """Convert the patches of a video's frames into decoder tokens, fewer in time, height and width.

    Args:
        inputs: width of the vision tower.
        outputs: width of the decoder.
        depth: bottlenecks before and after the downsampling.
        downsample: kernel and stride in time, height and width; what does not fill a kernel is dropped.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, downsample: tuple[int, int, int]):
        super().__init__()
        downsample = tuple(downsample)
        self.s1 = stage(inputs, outputs, depth)
        self.sampler = nn.Sequential(nn.Conv3d(outputs, outputs, downsample, stride=downsample), nn.SiLU())
        self.s2 = stage(outputs, outputs, depth)
        self.readout = nn.Sequential(nn.Linear(outputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))

    def forward(self, patches: Tensor) -> Tensor:
        """Connect.

        Args:
            patches: (B, frames, H * W, inputs), of a square grid.

        Returns:
            (B, tokens, outputs), ordered by time, height, width.
        """
        return self.readout(self.features(patches))

    def features(self, patches: Tensor) -> Tensor:
        """Run everything before the readout, (B, frames, H * W, inputs) to (B, tokens, outputs)."""
        videos, side = len(patches), math.isqrt(patches.shape[2])
        maps = patches.flatten(0, 1).mT.unflatten(-1, (side, side))  # (B * frames, inputs, H, W)
        maps = self.s1(maps).unflatten(0, (videos, -1))  # (B, frames, outputs, H, W)
        maps = self.sampler(maps.transpose(1, 2)).transpose(1, 2)  # (B, frames / 2, outputs, H / 2, W / 2)
        maps = self.s2(maps.flatten(0, 1)).unflatten(0, (videos, -1))
        return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)
