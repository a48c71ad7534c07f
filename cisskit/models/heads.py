"""How a new 1x1 head is born. Each function fills ``new`` in place from the heads that exist already."""

import math

import torch
from torch import nn


def share_background(heads: nn.ModuleList, new: nn.Conv2d) -> None:
    """MiB: every new class starts as an equal share of the background (released code).

    Rows of ``new`` become the background row (row 0 of the step-0 head); all their biases, and the background's own,
    become b - log(N + 1), so that background and new classes together are as likely as the background was.
    Must run exactly once per step: the background bias shrinks with every call.
    """
    base = heads[0]
    assert isinstance(base, nn.Conv2d) and base.bias is not None and new.bias is not None
    with torch.no_grad():
        bias = base.bias[0] - math.log(new.out_channels + 1)
        new.weight.copy_(base.weight[:1].expand_as(new.weight))
        new.bias.copy_(bias.expand_as(new.bias))
        base.bias[0] = bias


def copy_auxiliary(heads: nn.ModuleList, new: nn.Conv2d) -> None:
    """DKD: every new class starts as the auxiliary head, head 0."""
    auxiliary = heads[0]
    assert isinstance(auxiliary, nn.Conv2d) and auxiliary.bias is not None and new.bias is not None
    with torch.no_grad():
        new.weight.copy_(auxiliary.weight[:1].expand_as(new.weight))
        new.bias.copy_(auxiliary.bias[:1].expand_as(new.bias))


def kaiming(heads: nn.ModuleList, new: nn.Conv2d) -> None:
    """Kaiming-normal weights (fan-in, gain sqrt 2), PyTorch's default bias (DKD's heads, released code)."""
    nn.init.kaiming_normal_(new.weight)
