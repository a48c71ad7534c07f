"""Distillation of feature maps (IDEC, LAG), and what a class looks like in them.

Conventions as in `cisskit.losses.pixels`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from cisskit.errors import KitError, unknown
from cisskit.losses.pixels import _full, check_pixels


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, *, alpha: float = 2.0, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """- softmax(alpha * teacher) . log softmax(student) over channels (the KD of the released IDEC and LAG code).

    Only the teacher is sharpened, so the least value is at student = alpha * teacher + constant, not where both agree; and it
    is a cross-entropy, so the least value is not 0.

    Args:
        student: (B, C, ..), C >= O; cut to its first O channels, the others get no gradient.
        teacher: (B, O, ..), the same positions; no gradient flows into it.
        alpha: factor on the teacher before its softmax.
        mask: (B, ..), 0 or 1; the others add 0 and stay in the mean.
    Returns:
        "mean": scalar, mean over all positions AND over the O channels, in nats. "sum": over positions, still the mean over
        channels. "none": (B, ..), already divided by O.
    Raises:
        KitError: if the student has fewer channels than the teacher, or the positions differ.
    """
    _check(student, teacher)
    n = teacher.shape[1]
    if student.shape[1] < n:
        raise KitError(f"the student has {student.shape[1]} channels, fewer than the teacher's {n}; are they swapped?")
    target = (alpha * _full(teacher.detach())).softmax(dim=1)
    loss = -(target * _full(student[:, :n]).log_softmax(dim=1)).mean(dim=1)
    return _reduce(loss if mask is None else loss * mask, reduction)


def layer_distillation(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    alpha: float = 2.0,
    decay: float = 1.0,
    decayed_out: bool,
) -> dict[str, Tensor]:
    """Weighted `soft_cross_entropy` of named feature maps (IDEC's DADA; LAG's layer distillation).

    Args:
        student, teacher: maps (B, D, h, w) by name; each layer at its own size.
        weights: by name, in the order of the result. Published: l1 0.5, l2 1, l3 2, out 1.
        alpha: see `soft_cross_entropy`.
        decay: factor on every layer but "out": rate ** (epoch / epochs), epochs counted from 1.
        decayed_out: whether it acts on "out" too: not in IDEC, but in LAG.
    Returns:
        One weighted scalar per name of ``weights``; the loss is their sum.
    Raises:
        KitError: if a map is missing, or two do not fit.
    """
    for whose, maps in (("student", student), ("teacher", teacher)):
        missing = [name for name in weights if name not in maps]
        if missing:
            raise KitError(f"the {whose} has no map {', '.join(missing)}, but {', '.join(maps)}; weigh only maps that both have.")
    factor = {name: weight * (1.0 if name == "out" and not decayed_out else decay) for name, weight in weights.items()}
    return {name: factor[name] * soft_cross_entropy(student[name], teacher[name], alpha=alpha) for name in weights}


def channel_decoupling(
    student: Tensor, teacher: Tensor, *, channels: int | None = None, alpha: float = 2.0, reduction: str = "mean"
) -> Tensor:
    """LAG's channel-wise decoupling: every channel as a distribution over the ROWS of a column.

    As released, the teacher is the estimate and the STUDENT the sharpened target: - softmax(alpha * student) . log
    softmax(teacher), both over rows. The gradient reaches the student through its softmax.

    Args:
        student, teacher: (B, D, h, w); no gradient flows into the teacher.
        channels: how many channels count, from the first; None: all. The released code reads this number from the wrong
            axis: pass ``student.shape[2]``, the height, to follow it.
        alpha: factor on the student before its softmax.
    Returns:
        "mean": scalar, mean over images, positions (rows and columns) and channels. "none": (channels,).
    Raises:
        KitError: if the shapes differ, or there are fewer channels (where the released code fails, too).
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise KitError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal (B, D, h, w) maps.")
    n = student.shape[1] if channels is None else channels
    if not 1 <= n <= student.shape[1]:
        raise KitError(
            f"channels = {n}, but the maps have {student.shape[1]}. The released code counts rows instead and fails for maps "
            "higher than they have channels; channels=None takes all."
        )
    target = (alpha * _full(student[:, :n])).softmax(dim=2)
    by_channel = -(target * _full(teacher[:, :n].detach()).log_softmax(dim=2)).mean(dim=(0, 2, 3))
    if reduction not in ("mean", "none"):
        raise unknown("reduction", reduction, ("mean", "none"))
    return by_channel.mean() if reduction == "mean" else by_channel


def class_sums(features: Tensor, labels: Tensor, n: int) -> Tensor:
    """Sums of features over the cells of each id: adds up over batches.

    Args:
        features: (B, D, h, w).
        labels: (B, h, w), on the grid of the features; ids outside 0..n-1, so also void, are left out.
        n: ids to look at.
    Returns:
        (n, D + 1); the last column counts cells. Divided by it, the others are `class_means`.
    """
    check_pixels(features, labels)
    values = _full(features).movedim(1, 3).flatten(0, 2)
    ids = labels.flatten().long()
    group = torch.where((ids >= 0) & (ids < n), ids, n)
    counted = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
    return counted.new_zeros(n + 1, counted.shape[1]).index_add(0, group, counted)[:n]


def class_means(features: Tensor, labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean feature (n, D) over the cells of each id, 0 where there are none, and their number (n,). Args as `class_sums`."""
    sums = class_sums(features, labels, n)
    return sums[:, :-1] / sums[:, -1:].clamp(min=1), sums[:, -1].detach()


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.ndim < 3 or len(student) != len(teacher) or student.shape[2:] != teacher.shape[2:]:
        raise KitError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (B, D, ..) maps of the same positions; "
            "compare a layer with the same layer."
        )


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise unknown("reduction", reduction, ("mean", "sum", "none"))
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss
