"""Small helpers of LAG's release that stand beside the method: how busy an image is, and OpenMax's "none of these classes".

Neither is part of any training. Nothing here needs a library for extreme values: `openmax` takes the fitted distribution.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cisskit.errors import KitError, unknown

DISTANCES = ("eucos", "cosine", "euclidean")


def grey_entropy(grey: Tensor, *, reach: int = 3) -> Tensor:
    """Shannon entropy of the grey values around every pixel, in bits: 0 where all are equal, at most log2 of the window.

    grey: (.., H, W) uint8. reach: rows r - reach .. r + reach - 1 count, and columns likewise, cut off at the border (the
    released window, one short at its end). Returns (.., H, W) float64.
    """
    if grey.dtype != torch.uint8 or grey.ndim < 2:
        raise KitError(f"grey values are (.., H, W) uint8, not {tuple(grey.shape)} {grey.dtype}; take an image's mean over RGB.")
    if reach < 1:
        raise KitError(f"reach={reach} leaves no window around a pixel; choose 1 or more.")
    size = _window_sums(torch.ones(grey.shape[-2:], dtype=torch.float64, device=grey.device), reach)
    entropy = torch.zeros(grey.shape, dtype=torch.float64, device=grey.device)
    for value in grey.unique():  # 256 at most; each term is 0 where the value is absent
        share = _window_sums((grey == value).double(), reach) / size
        entropy += torch.where(share > 0, share * share.reciprocal().log2(), 0.0)
    return entropy


def grey_entropy_released(grey: Tensor, *, reach: int = 3) -> Tensor:
    """`grey_entropy` as the released script stores it: in an 8-bit image, so without its fraction. (.., H, W) uint8."""
    return grey_entropy(grey, reach=reach).to(torch.uint8)


def _window_sums(x: Tensor, reach: int) -> Tensor:
    """Sums over rows and columns - reach .. + reach - 1 of (.., H, W) whole numbers, exact in float64."""
    for axis in (-2, -1):
        n = x.shape[axis]
        at = torch.arange(n, device=x.device)
        total = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.cumsum(axis)], dim=axis)
        ends, starts = (at + reach).clamp(max=n), (at - reach).clamp(min=0)
        x = total.index_select(axis, ends) - total.index_select(axis, starts)
    return x


class Open(NamedTuple):
    """openmax: (C + 1,) probabilities of the classes and, last, of none of them. softmax: those of the raw scores, flat."""

    openmax: Tensor
    softmax: Tensor


def class_distances(features: Tensor, mean: Tensor, *, kind: str = "eucos", weight: float = 0.5) -> Tensor:
    """Distances of activation vectors from a class mean, channel by channel: (channels, n).

    features: (n, channels, D). mean: (channels, D), of correctly classified samples. kind: "euclidean", "cosine" (1 - cos, 0 to
    2), or "eucos": weight times the first plus the second.
    """
    if kind not in DISTANCES:
        raise unknown("distance", kind, DISTANCES)
    rows = features.transpose(0, 1)
    euclidean = (rows - mean.unsqueeze(1)).norm(dim=2)
    cosine = 1 - F.cosine_similarity(rows, mean.unsqueeze(1), dim=2)
    return {"euclidean": euclidean, "cosine": cosine, "eucos": weight * euclidean + cosine}[kind]


def openmax(
    scores: Tensor, means: Tensor, scale: Tensor, shape: Tensor, *, alpha: int = 10, kind: str = "eucos", weight: float = 0.5
) -> Open:
    """OpenMax: take from each likely class the share that its own samples would hardly have left it, and give it to "unknown".

        w_c = 1 - exp(-(d_c / scale_c)^shape_c)   how far out the sample lies among class c's own
        v'_c = v_c (1 - ω_c w_c)                  ω: (α + 1 - i) / α for the i-th largest score, i = 1..α; else 0
        softmax over v'_1 .. v'_C and Σ (v - v'), then the mean over channels

    scores: (channels, C) of one sample; several channels are ranked by the last one, as released. means: (C, channels, C) mean
    activation vectors. scale, shape: (C,) of a Weibull distribution fitted to the largest distances of each class's own samples.
    alpha: how many classes are corrected, at most C. kind, weight: see `class_distances`.
    """
    channels, classes = scores.shape
    if means.shape != (classes, channels, classes) or scale.shape != (classes,) or shape.shape != (classes,):
        raise KitError(
            f"scores {tuple(scores.shape)} need means {(classes, channels, classes)} and {classes} scales and shapes, not "
            f"{tuple(means.shape)}, {tuple(scale.shape)} and {tuple(shape.shape)}."
        )
    if not 1 <= alpha <= classes:
        raise KitError(f"alpha={alpha} classes cannot be corrected: there are {classes}. Choose 1 to {classes}.")
    omega = torch.zeros_like(scores[0])
    falling = torch.arange(alpha, 0, -1, dtype=omega.dtype, device=omega.device) / alpha
    omega[scores[-1].argsort(stable=True).flip(0)[:alpha]] = falling
    d = torch.stack([class_distances(scores.unsqueeze(0), mean, kind=kind, weight=weight)[:, 0] for mean in means], dim=1)
    kept = scores * (1 - omega * (1 - torch.exp(-((d / scale) ** shape))))
    opened = torch.cat([kept, (scores - kept).sum(dim=1, keepdim=True)], dim=1)
    return Open(opened.softmax(dim=1).mean(dim=0), scores.flatten().softmax(dim=0))
