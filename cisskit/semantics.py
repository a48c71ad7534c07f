"""What a step left alone in the features: LAG's semantic-invariant (SI) and sample-specific (SS) channels, and maps of them.

The released helper for this does not run. What follows is the kit's own reading of its intent: a channel is a distribution
over the positions of a map, and it is semantic-invariant if that distribution hardly moved from the old to the new model.

Features are (B, D, h, w); half precision is computed in float32. No gradient flows; nothing waits for the device.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from cisskit.errors import KitError
from cisskit.losses.pixels import _full


class Change(NamedTuple):
    """How the channels moved. divergence: (D,), KL(old || new) in nats, mean over images. old_entropy, new_entropy: (B, D),
    in nats, 0..log(h * w)."""

    divergence: Tensor
    old_entropy: Tensor
    new_entropy: Tensor


class Maps(NamedTuple):
    """Pictures, each (B, h, w). si, ss: mean size of the new model's features over these channels, scaled per image to 0..1.
    consistency: cosine of old and new features over the SI channels, -1..1. All 0 for an empty set of channels."""

    si: Tensor
    ss: Tensor
    consistency: Tensor


def channel_change(student: Tensor, teacher: Tensor) -> Change:
    """Compare every channel as a distribution over positions. student: features of the new model, teacher: of the old one."""
    if student.ndim != 4 or student.shape != teacher.shape:
        raise KitError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal (B, D, h, w) maps.")
    log_q, log_p = (_full(x.detach()).flatten(2).log_softmax(dim=2) for x in (student, teacher))
    p, q = log_p.exp(), log_q.exp()
    return Change((p * (log_p - log_q)).sum(dim=2).mean(dim=0), -(p * log_p).sum(dim=2), -(q * log_q).sum(dim=2))


def semantic_split(student: Tensor, teacher: Tensor, rho: float = 0.5) -> tuple[Tensor, Tensor]:
    """(SI, SS) channels, int64, each in ascending order: SI are the round(rho * D) that moved least, ties to the lower one.

    rho: share of SI channels, 0..1 (half to even, as Python rounds). The two places of the released code contradict each
    other about what it is a share of.
    """
    if not 0 <= rho <= 1:
        raise KitError(f"rho = {rho} is the share of semantic-invariant channels: pass a number in 0..1.")
    order = channel_change(student, teacher).divergence.argsort(stable=True)
    n = round(rho * len(order))
    return order[:n].sort().values, order[n:].sort().values


def semantic_maps(student: Tensor, teacher: Tensor, si: Tensor, ss: Tensor) -> Maps:
    """Maps of the channels that `semantic_split` found, at the resolution of the features."""
    new, old = _full(student.detach()), _full(teacher.detach())
    return Maps(_size_map(new[:, si]), _size_map(new[:, ss]), F.cosine_similarity(new[:, si], old[:, si], dim=1))


def _size_map(features: Tensor) -> Tensor:
    size = features.abs().sum(dim=1) / max(features.shape[1], 1)
    low, high = size.amin(dim=(1, 2), keepdim=True), size.amax(dim=(1, 2), keepdim=True)
    return (size - low) / (high - low + 1e-6)
