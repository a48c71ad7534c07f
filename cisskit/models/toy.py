"""A small convolutional network for the embedded scenes: 0.2 M parameters, trained in seconds on one CPU core.

    image ─ stem /2 ─ layer1 /2 ─ layer2 /4 ─ layer3 /8 ─ layer4 /8 (dilated)
                                     │                        │
                                     │                   context: 1x1, 3x3 dilated, global mean
                                     └──── skip ── 3x3 ───────┘
                                                    └── 48 features at /4, for the 1x1 heads

The stages stand in for those of a ResNet and the context for the ASPP, at a size that a laptop likes. Batch norm and
ReLU everywhere, no bias in any convolution. The heads belong to `cisskit.models.base`. Sums, ReLUs, means and resizing are
modules, each used once and none in place, so that relevance can be propagated (`cisskit.attribution.lrp`).
"""

import torch
from torch import Tensor, nn

from cisskit.models.base import Add, Resize, tapped

STEM_CHANNELS = 16
STAGE_CHANNELS = {"layer1": 16, "layer2": 32, "layer3": 64, "layer4": 64}
STAGE_STRIDES = {"layer1": 2, "layer2": 4, "layer3": 8, "layer4": 8}
CONTEXT_CHANNELS = 32
SKIP_CHANNELS = 32
CHANNELS = 48
STRIDE = 4


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


def _kaiming(module: nn.Module) -> None:
    """Kaiming-normal (fan in, gain sqrt 2) for convolutions; batch norm keeps scale 1 and shift 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")


class Block(nn.Module):
    """The basic residual block: two 3x3 convolutions beside the identity (a 1x1 convolution where the shape changes).

    ``relu2`` is the ReLU after the sum; whoever uses the block applies it.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride=stride, dilation=dilation)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs, 3, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.add = Add()
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum, BEFORE its ReLU: PLOP distils that."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.add(self.bn2(self.conv2(y)), x if self.shortcut is None else self.shortcut(x))


class ToyBackbone(nn.Module):
    """Image (B, 3, H, W), normalised float -> ``{"layer1", .., "layer4"}``, each after its ReLU; "layer1_sum" .. before it.

    Channels are `STAGE_CHANNELS`, sizes H and W over `STAGE_STRIDES` (rounded up). Any H, W from 8 up will do.
    """

    channels = STAGE_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        c = STAGE_CHANNELS
        self.stem = nn.Sequential(_conv(3, STEM_CHANNELS, 3, stride=2), nn.BatchNorm2d(STEM_CHANNELS), nn.ReLU())
        self.layer1 = Block(STEM_CHANNELS, c["layer1"])
        self.layer2 = Block(c["layer1"], c["layer2"], stride=2)
        self.layer3 = Block(c["layer2"], c["layer3"], stride=2)
        self.layer4 = Block(c["layer3"], c["layer4"], dilation=2)
        _kaiming(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = {}
        x = self.stem(image)
        for name in STAGE_CHANNELS:
            block = getattr(self, name)
            features[f"{name}_sum"] = block(x)
            x = features[name] = block.relu2(features[f"{name}_sum"])
        return features


class ToyDecoder(nn.Module):
    """Backbone features -> "decoder" (B, `CHANNELS`, H/4, W/4), never negative because it ends in ReLU.

    taps: also "context1" .. "context3" (B, `CHANNELS`, h, w) from "layer1" .. "layer3", the small stand-ins of IDEC's auxiliary
    ASPPs; a 3x3 convolution of dilation 2 each.

    The three context branches share one batch norm over their concatenation. On its own the branch of global means
    would have a single value per channel and image, and batch norm cannot train on a single image of that.
    """

    channels = CHANNELS

    def __init__(self, *, taps: bool = False) -> None:
        super().__init__()
        deep, middle = STAGE_CHANNELS["layer4"], STAGE_CHANNELS["layer2"]
        self.near = _conv(deep, CONTEXT_CHANNELS, 1)
        self.wide = _conv(deep, CONTEXT_CHANNELS, 3, dilation=2)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.whole = _conv(deep, CONTEXT_CHANNELS, 1)
        self.context_bn = nn.BatchNorm2d(3 * CONTEXT_CHANNELS)
        self.context_relu = nn.ReLU()
        self.project = nn.Sequential(_conv(3 * CONTEXT_CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.resize = Resize()
        self.skip = nn.Sequential(_conv(middle, SKIP_CHANNELS, 1), nn.BatchNorm2d(SKIP_CHANNELS), nn.ReLU())
        self.fuse = nn.Sequential(_conv(CHANNELS + SKIP_CHANNELS, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.taps = nn.ModuleDict()
        for k, channels in enumerate(list(STAGE_CHANNELS.values())[:3] if taps else [], start=1):
            self.taps[f"context{k}"] = nn.Sequential(
                _conv(channels, CHANNELS, 3, dilation=2), nn.BatchNorm2d(CHANNELS), nn.ReLU()
            )
        _kaiming(self)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        deep, middle = features["layer4"], features["layer2"]
        whole = self.whole(self.mean(deep)).expand(-1, -1, *deep.shape[2:])
        context = torch.cat([self.near(deep), self.wide(deep), whole], dim=1)
        context = self.resize(self.project(self.context_relu(self.context_bn(context))), size=middle.shape[2:])
        return tapped(self.taps, features) | {"decoder": self.fuse(torch.cat([context, self.skip(middle)], dim=1))}
