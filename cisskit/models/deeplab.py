"""DeepLabV3 on torchvision's backbones, in the two forms of the released code; output stride 16.

The ASPP is torchvision's, with a dropout of 0.1 instead of 0.5. DKD's form follows it with the 3x3 convolution that
torchvision has in front of its classifier, and reads 1x1 heads from there; SSUL, IDEC and LAG put such a convolution into
every head. IDEC and LAG have three more ASPPs, on layer1 .. layer3, whose maps are only distilled. Batch norms of the
backbone move slowly (momentum 0.01), as in all of these code bases.

torchvision's residual blocks are taken apart: here their sums are modules, and every ReLU is used once and not in place, so
that relevance can be propagated (`cisskit.attribution.lrp`). Names of weights are torchvision's.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet, get_model, get_model_weights
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP

from cisskit.errors import KitError, unknown
from cisskit.models.base import Add, Model, tapped
from cisskit.models.heads import conv_head, linear_head

BACKBONES = {"resnet101": (256, 512, 1024, 2048), "resnet50": (256, 512, 1024, 2048), "mobilenet_v2": (24, 32, 96, 320)}
"""torchvision name -> channels of "layer1" .. "layer4"."""


def context(in_channels: int, rates: tuple[int, ...] = (6, 12, 18)) -> ASPP:
    """An ASPP: five parallel branches, projection, dropout 0.1: (B, in_channels, h, w) -> (B, 256, h, w), non-negative.

    Kaiming-normal convolutions (fan-in), batch norm at 1 and 0.
    """
    aspp = ASPP(in_channels, list(rates), 256)
    dropout = aspp.project[3]
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.1
    _kaiming(aspp)
    return aspp


def aspp_decoder(in_channels: int, rates: tuple[int, ...] = (6, 12, 18)) -> nn.Sequential:
    """`context`, then 3x3 convolution, batch norm, ReLU: (B, in_channels, h, w) -> (B, 256, h, w), non-negative."""
    decoder = nn.Sequential(
        context(in_channels, rates), nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()
    )
    _kaiming(decoder[1])
    return decoder


def _kaiming(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


class _Decoder(nn.Module):
    """ "decoder" from "layer4", and "context1" .. from "layer1" .. where there are taps."""

    def __init__(self, decoder: nn.Module, taps: dict[str, nn.Module]) -> None:
        super().__init__()
        self.decoder, self.taps = decoder, nn.ModuleDict(taps)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return tapped(self.taps, features) | {"decoder": self.decoder(features["layer4"])}


class _ResNet(nn.Module):
    """The residual stages of a torchvision ResNet: "layer1" (stride 4) .. "layer4" (stride 16), after their ReLU.

    "layer1_sum" .. are the sums before that ReLU, which PLOP distils.
    """

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.maxpool)
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Sequential(*map(_Bottleneck, stage)) for stage in stages)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features, x = {}, self.stem(image)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self, name):
                features[f"{name}_sum"] = block(x)
                features[name] = x = block.relu3(features[f"{name}_sum"])
        return features


class _Bottleneck(nn.Module):
    """torchvision's block up to its sum; ``relu3`` is the ReLU after that, which whoever uses the block applies."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = block.conv1, block.bn1, nn.ReLU()
        self.conv2, self.bn2, self.relu2 = block.conv2, block.bn2, nn.ReLU()
        self.conv3, self.bn3, self.relu3 = block.conv3, block.bn3, nn.ReLU()
        self.downsample, self.add = block.downsample, Add()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(y)))))
        return self.add(y, x if self.downsample is None else self.downsample(x))


class _MobileNetV2(nn.Module):
    """A torchvision MobileNetV2 cut into stages: "layer1" (stride 4), "layer2" (8), "layer3" (16), "layer4" (16, 320 channels).

    The last strided block keeps stride 1 and the blocks after it are dilated by 2, as torchvision does for ResNets.
    The 1280-channel expansion in front of ImageNet's classifier is dropped. Its blocks end without an activation, so
    "layer1_sum" .. are the same maps.
    """

    def __init__(self, net: MobileNetV2) -> None:
        super().__init__()
        blocks = list(net.features)[:18]
        for index, block in enumerate(blocks[14:], start=14):
            for conv in block.modules():
                if isinstance(conv, nn.Conv2d) and conv.groups > 1:
                    conv.stride = (1, 1)
                    if index > 14:
                        conv.dilation, conv.padding = (2, 2), (2, 2)
        for block in blocks:
            for relu in block.modules():
                if isinstance(relu, nn.ReLU6):
                    relu.inplace = False
        parts = [_Inverted(b) if isinstance(b, InvertedResidual) and b.use_res_connect else b for b in blocks]
        self.layer1, self.layer2 = nn.Sequential(*parts[:4]), nn.Sequential(*parts[4:7])
        self.layer3, self.layer4 = nn.Sequential(*parts[7:14]), nn.Sequential(*parts[14:])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features, x = {}, image
        for name in ("layer1", "layer2", "layer3", "layer4"):
            features[name] = features[f"{name}_sum"] = x = getattr(self, name)(x)
        return features


class _Inverted(nn.Module):
    """torchvision's inverted block with a skip."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.conv, self.add = block.conv, Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.conv(x))


def deeplab(backbone: str, weights: str | None = "imagenet", *, conv_heads: bool = False, taps: bool = False) -> Model:
    """DeepLabV3 without heads.

    backbone: "resnet101", "resnet50" or "mobilenet_v2". conv_heads: a 3x3 convolution in every head instead of one in the
    decoder (SSUL, IDEC, LAG). taps: three more ASPPs give "context1" .. "context3" (IDEC, LAG). weights: "imagenet"
    (torchvision downloads IMAGENET1K_V1), a path to a state dict of the whole torchvision network (.pth read with
    ``weights_only=True``, or .safetensors), or None (random). Raises `KitError` when the weights cannot be had or do not fit.
    """
    if backbone not in BACKBONES:
        raise unknown("backbone", backbone, BACKBONES)
    dilate = {} if backbone == "mobilenet_v2" else {"replace_stride_with_dilation": [False, False, True]}
    net = get_model(backbone, weights=None, **dilate)
    if weights:
        try:
            net.load_state_dict(imagenet_state(backbone) if weights == "imagenet" else read_state(Path(weights)))
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise KitError(f"{weights}: these are not the weights of torchvision's {backbone}: {' '.join(lines[:3])}") from error
    trunk = _MobileNetV2(net) if isinstance(net, MobileNetV2) else _ResNet(net)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    *inner, last = BACKBONES[backbone]
    decoder = _Decoder(
        context(last) if conv_heads else aspp_decoder(last),
        {f"context{k}": context(channels) for k, channels in enumerate(inner if taps else [], start=1)},
    )
    return Model(trunk, decoder, 256, conv_head if conv_heads else linear_head)


def imagenet_state(backbone: str) -> dict[str, Tensor]:
    """torchvision's first ImageNet weights of a network, downloaded. Raises `KitError` with the file to fetch by hand."""
    enum = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        return enum.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        file = enum.url.rsplit("/", 1)[-1]
        raise KitError(
            f"the ImageNet weights of {backbone} could not be downloaded ({error}). On a machine with a network fetch "
            f"{file} (torchvision's {enum}), then either put it into {Path(torch.hub.get_dir()) / 'checkpoints'} or pass its "
            "path as weights."
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, no pickled code. Raises `KitError` when it is missing or damaged."""
    if not path.is_file():
        raise KitError(f"no weights at {path}. Pass the path of a state-dict file, 'imagenet', or 'none' for random weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file; all mean the same here
        raise KitError(
            f"{path} cannot be read as a state dict ({type(error).__name__}: {error}). Fetch the file again."
        ) from error
