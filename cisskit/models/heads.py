"""Heads: how one is made, and how a new one is born from those that exist.

The births fill ``new`` in place. Rows are the parameters that stand for single classes: of a 1x1 convolution, of the last one
of a `conv_head`, of a Segmenter's class tokens.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def linear_head(channels: int, classes: int) -> nn.Conv2d:
    """A 1x1 convolution with bias, at PyTorch's initialisation."""
    return nn.Conv2d(channels, classes, kernel_size=1)


def conv_head(channels: int, classes: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, 1x1 convolution with bias; Kaiming-normal weights (SSUL, IDEC, LAG: released code)."""
    head = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, classes, 1),
    )
    for module in (head[0], head[3]):
        assert isinstance(module, nn.Conv2d)
        nn.init.kaiming_normal_(module.weight)
    return head


def rows(head: nn.Module) -> dict[str, Tensor]:
    """The parameters of a head that have one row per class; their first axis is the class."""
    last: Any = head[-1] if isinstance(head, nn.Sequential) else head
    found = {"weight": last.weight, "bias": last.bias}
    return {"token": last.token[0], **found} if hasattr(last, "token") else found


def share_background(heads: nn.ModuleList, new: nn.Module) -> None:
    """MiB: every new class starts as an equal share of the background (released code).

    Rows of ``new`` become the background row (row 0 of the step-0 head); all their biases, and the background's own,
    become b - log(N + 1), so that background and new classes together are as likely as the background was (on a Segmenter
    only roughly: its mask norm looks at all classes).
    Must run exactly once per step: the background bias shrinks with every call.
    """
    copy_background(heads, new)
    background, born = rows(heads[0])["bias"], rows(new)["bias"]
    with torch.no_grad():
        share = background[0] - math.log(len(born) + 1)
        born.copy_(share.expand_as(born))
        background[0] = share


def copy_background(heads: nn.ModuleList, new: nn.Module) -> None:
    """MBS, AMIS: every new class starts as the background, row 0 of the first head (released code).

    Of a Segmenter's head the class token alone is copied; its mask norm starts at 1 and 0.
    """
    background, born = rows(heads[0]), rows(new)
    with torch.no_grad():
        for name in ["token"] if "token" in born else born:
            born[name].copy_(background[name][:1].expand_as(born[name]))


def copy_first(heads: nn.ModuleList, new: nn.Module) -> None:
    """Every new class starts as the one class of head 0: DKD's auxiliary head, the unknown head of SSUL, IDEC and LAG.

    Layers in front of the last one, batch norm and its statistics included, are copied too.
    """
    with torch.no_grad():
        for name, value in new.state_dict().items():
            value.copy_(heads[0].state_dict()[name].expand_as(value))


def kaiming(heads: nn.ModuleList, new: nn.Module) -> None:
    """Kaiming-normal weights (fan-in, gain sqrt 2), PyTorch's default bias (DKD's heads, released code)."""
    nn.init.kaiming_normal_(rows(new)["weight"])
