"""What every network of the kit has in common: named parts, an `Output`, heads that grow, parts that stay frozen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cisskit.errors import unknown
from cisskit.models.heads import linear_head

HeadInit = Callable[[nn.ModuleList, nn.Module], None]
"""Initialises a new head from the existing ones, in place; see `cisskit.models.heads`."""


@dataclass
class Output:
    """What a network says about a batch.

    scores: (B, C, h, w) float32, one channel per learned id, at the decoder's resolution; channel c is label c.
    size: (H, W) of the images. features: named maps (B, D, h, w). Every network has "backbone", the last map of its
    backbone, and "decoder", the map that meets the classes; the docstring of a network lists the others.
    extra: by name; "unknown" is the (B, 1, h, w) score of an unknown class, from networks that have such a head.
    padded: (H', W') that scores cover, of a network that pads images at the bottom and right; None: they cover size.
    """

    scores: Tensor
    size: tuple[int, int]
    features: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    padded: tuple[int, int] | None = None

    @cached_property
    def logits(self) -> Tensor:
        """(B, C, H, W): scores at image size, bilinear, corners not aligned. Formed only when something reads it."""
        logits, covered = self.scores, self.padded or self.size
        if logits.shape[2:] != covered:
            logits = F.interpolate(logits, size=covered, mode="bilinear", align_corners=False)
        return logits[..., : self.size[0], : self.size[1]]

    @cached_property
    def open_logits(self) -> Tensor:
        """(B, 1 + C, H, W): channel 0 unknown, then `logits`: channel k + 1 is label k. The layout of SSUL, IDEC and LAG."""
        return Output(torch.cat([self.extra["unknown"], self.scores], dim=1), self.size).logits


def tapped(taps: nn.ModuleDict, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """``{"context1": taps["context1"](features["layer1"]), ..}``; nothing in inference mode, where only scores are read."""
    if torch.is_inference_mode_enabled():
        return {}
    return {name: tap(features[name.replace("context", "layer")]) for name, tap in taps.items()}


class Add(nn.Module):
    """A sum as a module: where relevance is propagated, each summand gets its share (`cisskit.attribution.lrp`)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Resize(nn.Module):
    """Bilinear, corners not aligned, to a size (h, w); as a module for the same reason as `Add`."""

    def forward(self, x: Tensor, *, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class Kept(nn.Module):
    """Tensors that a method keeps with the network, in `Model.aux`: saved, restored and copied with it, never trained."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def trainable(*parts: nn.Module) -> list[nn.Parameter]:
    """Parameters of these parts that may get gradients."""
    return [p for part in parts for p in part.parameters() if p.requires_grad]


class Model(nn.Module):
    """Backbone, decoder and one head per step; `aux` holds what a method owns beside them.

    ``backbone(image)`` returns named feature maps up to "layer4", ``decoder(features)`` further ones, among them
    "decoder" (B, channels, h, w), which the heads read. ``make_head(channels, classes)`` makes a head. Parts are named so
    that methods can group, freeze and transfer them: "backbone", "decoder", "heads", "aux".
    """

    CONTAINERS = ("backbone", "decoder", "heads", "aux")
    PARTS = (*CONTAINERS, "bn", "dropout")

    def __init__(
        self, backbone: nn.Module, decoder: nn.Module, channels: int, make_head: Callable[[int, int], nn.Module] = linear_head
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.channels, self.make_head = backbone, decoder, channels, make_head
        self.heads = nn.ModuleList()
        self.aux = nn.ModuleDict()
        self.detached: list[bool] = []
        self.unknown: int | None = None  # which head scores the unknown class
        self._frozen: set[str] = set()

    def add_head(self, classes: int, *, init: HeadInit | None = None, detached: bool = False, unknown: bool = False) -> nn.Module:
        """Append a head with ``classes`` channels, born by ``init`` (None: as `make_head` leaves it) on this model's device.

        detached: the head reads features without shaping them (DKD's auxiliary head). unknown: its one channel is no
        class; it goes to ``Output.extra["unknown"]``.
        """
        head = self.make_head(self.channels, classes)
        if len(self.heads):
            head = head.to(next(self.heads.parameters()))
        if init is not None:
            with torch.no_grad():
                init(self.heads, head)
        if unknown:
            self.unknown = len(self.heads)
        self.heads.append(head)
        self.detached.append(detached)
        return head

    def forward(self, image: Tensor) -> Output:
        """image: (B, 3, H, W) float32, normalised."""
        return self.read(self.trunk(image), (image.shape[2], image.shape[3]))

    def trunk(self, image: Tensor) -> dict[str, Tensor]:
        """What the backbone makes of images; `read` makes the rest."""
        return self.backbone(image)

    def read(self, trunk: dict[str, Tensor], size: tuple[int, int]) -> Output:
        """The rest of the way: decoder and heads on the maps of `trunk`, for images of this size."""
        features = {**trunk, "backbone": trunk["layer4"]}
        features |= self.decoder(features)
        decoded = features["decoder"]
        # float32 from here on: under autocast the losses are computed in full precision on the small map
        maps = [
            head(decoded.detach() if alone else decoded).float() for head, alone in zip(self.heads, self.detached, strict=True)
        ]
        extra = {} if self.unknown is None else {"unknown": maps.pop(self.unknown)}
        return Output(torch.cat(maps, dim=1), size, features, extra)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of all 1x1 heads, stacked in channel order; gradients flow to the heads."""
        weight = torch.cat([head.weight.flatten(1) for head in self._convs()])
        return weight, torch.cat([head.bias for head in self._convs() if head.bias is not None])

    def class_rows(self) -> Tensor:
        """(C, D): what stands for each class in the classifier, here the weight rows of the 1x1 heads."""
        return self.classifier()[0]

    def freeze(self, *parts: str) -> None:
        """Keep parts as they are, also after `train()`.

        "backbone", "decoder", "heads", "aux": no gradients, and their batch norms use running statistics; their dropout
        goes on, as in the released SSUL and IDEC code. "bn": every batch norm uses its running statistics and its scale
        and shift get no gradients. "dropout": switched off. Raises `KitError` for an unknown part.
        """
        for part in parts:
            if part not in self.PARTS:
                raise unknown("part of a model", part, self.PARTS)
            self._frozen.add(part)
            if part in self.CONTAINERS:
                getattr(self, part).requires_grad_(False)
        for module in self._still():
            if not isinstance(module, nn.Dropout):
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        for module in self._still():
            module.eval()
        return self

    def _still(self) -> Iterator[nn.Module]:
        """The batch norms and dropouts that `freeze` was asked to keep still."""
        norm = nn.modules.batchnorm._BatchNorm
        kinds = {"bn": norm, "dropout": nn.Dropout}
        wanted = tuple(kind for part, kind in kinds.items() if part in self._frozen)
        yield from (module for module in self.modules() if isinstance(module, wanted))
        for part in self._frozen.intersection(self.CONTAINERS):
            yield from (module for module in getattr(self, part).modules() if isinstance(module, norm))

    def _convs(self) -> Iterator[nn.Conv2d]:
        for head in self.heads:
            if not isinstance(head, nn.Conv2d):
                raise TypeError(f"{type(head).__name__} is no 1x1 head: this network has no single weight row per class.")
            yield head
