"""DeepLabV3 on torchvision's backbones, as the released DKD code builds it; output stride 16.

The ASPP is torchvision's, with a dropout of 0.1 instead of 0.5, followed by the 3x3 convolution that torchvision has in
front of its classifier. Batch norms of the backbone move slowly (momentum 0.01), as in the released DKD and SSUL code.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet, get_model, get_model_weights
from torchvision.models.segmentation.deeplabv3 import ASPP

from cisskit.errors import KitError, unknown
from cisskit.models.base import Model

BACKBONES = {"resnet101": 2048, "resnet50": 2048, "mobilenet_v2": 320}
"""torchvision name -> channels of its last map."""


def aspp_decoder(in_channels: int, rates: tuple[int, ...] = (6, 12, 18)) -> nn.Sequential:
    """Five parallel branches, projection, dropout, 3x3: (B, in_channels, h, w) -> (B, 256, h, w), non-negative.

    Kaiming-normal convolutions (fan-in), batch norm at 1 and 0.
    """
    aspp = ASPP(in_channels, list(rates), 256)
    dropout = aspp.project[3]
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.1
    decoder = nn.Sequential(aspp, nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return decoder


class _LastMap(nn.Module):
    """A decoder that reads "layer4" alone."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.decoder(features["layer4"])


class _ResNet(nn.Module):
    """The residual stages of a torchvision ResNet: "layer1" (stride 4) .. "layer4" (stride 16), after their ReLU."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features, x = {}, self.stem(image)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            features[name] = x = getattr(self, name)(x)
        return features


class _MobileNetV2(nn.Module):
    """A torchvision MobileNetV2 cut into stages: "layer1" (stride 4), "layer2" (8), "layer3" (16), "layer4" (16, 320 channels).

    The last strided block keeps stride 1 and the blocks after it are dilated by 2, as torchvision does for ResNets.
    The 1280-channel expansion in front of ImageNet's classifier is dropped.
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
        self.layer1, self.layer2 = nn.Sequential(*blocks[:4]), nn.Sequential(*blocks[4:7])
        self.layer3, self.layer4 = nn.Sequential(*blocks[7:14]), nn.Sequential(*blocks[14:])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features, x = {}, image
        for name in ("layer1", "layer2", "layer3", "layer4"):
            features[name] = x = getattr(self, name)(x)
        return features


def deeplab(backbone: str, weights: str | None = "imagenet") -> Model:
    """DeepLabV3 without heads.

    backbone: "resnet101", "resnet50" or "mobilenet_v2". weights: "imagenet" (torchvision downloads IMAGENET1K_V1), a path
    to a state dict of the whole torchvision network (.pth read with ``weights_only=True``, or .safetensors), or None
    (random). Raises `KitError` when the weights cannot be had or do not fit.
    """
    if backbone not in BACKBONES:
        raise unknown("backbone", backbone, BACKBONES)
    dilate = {} if backbone == "mobilenet_v2" else {"replace_stride_with_dilation": [False, False, True]}
    net = get_model(backbone, weights=None, **dilate)
    if weights:
        try:
            net.load_state_dict(_imagenet(backbone) if weights == "imagenet" else _read(Path(weights)))
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise KitError(f"{weights}: these are not the weights of torchvision's {backbone}: {' '.join(lines[:3])}") from error
    trunk = _MobileNetV2(net) if isinstance(net, MobileNetV2) else _ResNet(net)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    return Model(trunk, _LastMap(aspp_decoder(BACKBONES[backbone])), 256)


def _imagenet(backbone: str) -> dict[str, Tensor]:
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


def _read(path: Path) -> dict[str, Tensor]:
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
