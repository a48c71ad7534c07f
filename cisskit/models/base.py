"""What every network of the kit has in common: named parts, an `Output`, heads that grow, parts that stay frozen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cisskit.errors import unknown

HeadInit = Callable[[nn.ModuleList, nn.Conv2d], None]
"""Initialises a new 1x1 head from the existing ones, in place; see `cisskit.models.heads`."""


@dataclass
class Output:
    """What a network says about a batch.

    scores: (B, C, h, w) float32, one channel per learned id, at the decoder's resolution; channel c is label c.
    size: (H, W) of the images. features: named maps, "layer1" .. "layer4" and "decoder" (B, D, h, w).
    extra: what a method adds, by name.
    """

    scores: Tensor
    size: tuple[int, int]
    features: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def logits(self) -> Tensor:
        """(B, C, H, W): scores at image size, bilinear, corners not aligned. Formed only when something reads it."""
        if self.scores.shape[2:] == self.size:
            return self.scores
        return F.interpolate(self.scores, size=self.size, mode="bilinear", align_corners=False)


class Model(nn.Module):
    """Backbone, decoder and one 1x1 head per step; `aux` holds what a method owns beside them.

    ``backbone(image)`` returns named feature maps, ``decoder(features)`` one map (B, D, h, w). Parts are named so that
    methods can group, freeze and transfer them: "backbone", "decoder", "heads", "aux".
    """

    PARTS = ("backbone", "decoder", "heads", "aux", "bn", "dropout")

    def __init__(self, backbone: nn.Module, decoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.decoder, self.channels = backbone, decoder, channels
        self.heads = nn.ModuleList()
        self.aux = nn.ModuleDict()
        self.detached: list[bool] = []
        self._frozen: set[str] = set()

    def add_head(self, classes: int, *, init: HeadInit | None = None, detached: bool = False) -> nn.Conv2d:
        """Append a 1x1 head with ``classes`` channels, born by ``init`` (None: PyTorch's default) on this model's device.

        detached: the head reads features without shaping them (DKD's auxiliary head).
        """
        head = nn.Conv2d(self.channels, classes, kernel_size=1)
        if len(self.heads):
            head = head.to(next(self.heads.parameters()))
        if init is not None:
            with torch.no_grad():
                init(self.heads, head)
        self.heads.append(head)
        self.detached.append(detached)
        return head

    def forward(self, image: Tensor) -> Output:
        """image: (B, 3, H, W) float32, normalised."""
        features = self.backbone(image)
        decoded = features["decoder"] = self.decoder(features)
        scores = [head(decoded.detach() if alone else decoded) for head, alone in zip(self.heads, self.detached, strict=True)]
        # float32 from here on: under autocast the losses are computed in full precision on the small map
        return Output(torch.cat(scores, dim=1).float(), (image.shape[2], image.shape[3]), features)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of all heads, stacked in channel order; gradients flow to the heads."""
        weight = torch.cat([head.weight.flatten(1) for head in self._convs()])
        return weight, torch.cat([head.bias for head in self._convs() if head.bias is not None])

    def freeze(self, *parts: str) -> None:
        """Keep parts as they are, also after `train()`.

        "backbone", "decoder", "heads", "aux": no gradients, evaluation mode. "bn": every batch norm uses its running
        statistics and its scale and shift get no gradients. "dropout": switched off.
        Raises `KitError` for an unknown part.
        """
        for part in parts:
            if part not in self.PARTS:
                raise unknown("part of a model", part, self.PARTS)
            self._frozen.add(part)
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
        """The modules that `freeze` was asked to keep still."""
        for part in self._frozen & {"backbone", "decoder", "heads", "aux"}:
            yield getattr(self, part)
        kinds = {"bn": nn.modules.batchnorm._BatchNorm, "dropout": nn.Dropout}
        wanted = tuple(kind for part, kind in kinds.items() if part in self._frozen)
        yield from (module for module in self.modules() if isinstance(module, wanted))

    def _convs(self) -> Iterator[nn.Conv2d]:
        for head in self.heads:
            assert isinstance(head, nn.Conv2d)
            yield head
