"""Losses on patch features, class embeddings and class tokens: MBS and AMIS. Conventions as in `cisskit.losses.pixels`.

Patch features are maps (B, D, h, w), class embeddings (B, C, D), class tokens (C, D), the parameters themselves. C counts the
student's classes with the background, O the teacher's, n = C - O the new ones; the first O rows are the teacher's. Formulas
are those of the released code of the two methods.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cisskit.errors import KitError
from cisskit.losses.pixels import _check_pair, _full, _reduce, check_pixels, labels_on_grid

SCALES = (1, 2, 4)


def reliability(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the teacher's patches can be trusted (MBS): the map r for `reliable_patches`.

    The teacher's probability of background where the label is background, 1 where it is an old class, 0 where it is a new
    class or ignored. A patch has the label of its top-left pixel (nearest neighbour).

    Args:
        scores: (B, O, h, w) of the teacher, at the resolution of its patches: `Output.scores`, NOT upsampled logits.
        labels: (B, H, W) after pseudo-labelling, 0..C-1 or 255; they cover the same area as scores, so sides of whole patches.
    Returns:
        (B, h, w) in [0, 1], without gradient.
    Raises:
        KitError: if the batches differ or labels are not (B, H, W).
    """
    if scores.ndim != 4 or labels.ndim != 3 or len(scores) != len(labels):
        raise KitError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} do not fit: (B, O, h, w) and (B, H, W) are needed."
        )
    trusted = _full(scores.detach()).softmax(dim=1)[:, 0]
    nearest = labels_on_grid(labels, (scores.shape[2], scores.shape[3]))
    old = (nearest > 0) & (nearest < scores.shape[1])
    return torch.where(nearest == 0, trusted, old.to(trusted.dtype))


def reliable_patches(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared error of patch features, weighted by how far the teacher is reliable (MBS's L_patch, AMIS's L_amd).

    Args:
        student, teacher: (B, D, h, w) before normalisation; no gradient flows into the teacher.
        weights: (B, h, w), see `reliability`; None: 1 everywhere.
    Returns:
        Scalar: the weighted sum over D times the NUMBER of patches with weight > 0, not over the sum of weights. 0, tied to the
        student, when there is no such patch (the released code then has NaN).
    Raises:
        KitError: if the shapes differ.
    """
    _check_patches(student, teacher, weights)
    error = (_full(student) - _full(teacher.detach())).square().mean(dim=1)
    if weights is None:
        return error.mean()
    return (weights * error).sum() / (weights > 0).sum().clamp(min=1)


def class_embeddings(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the class embeddings that both have, background included (MBS's L_cls).

    student: (B, C, D), rows from O on receive no gradient; teacher: (B, O, D), detached. Returns a scalar, mean over B, O and D.
    Raises `KitError` when the shapes do not fit.
    """
    _check_rows(student, teacher)
    return F.mse_loss(_full(student[:, : teacher.shape[1]]), _full(teacher.detach()))


def label_guided_distillation(
    student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy with the teacher, whose background goes to the new class where the label names one (MBS's L_od, LGKD).

    The student is NOT renormalised: new channels are in its softmax, with target 0 where they are not labelled.

    Args:
        student: logits (B, C, H, W), C = O + n.
        teacher: logits (B, O, H, W) of the previous model; no gradient flows into it.
        labels: (B, H, W) BEFORE pseudo-labelling; O..C-1 moves the background's probability there. All others, old classes and
            255 too, leave it at the background.
        alpha: factor on the teacher's logits before its softmax.
    Returns:
        "mean": scalar, mean over all pixels, ignored ones too, AND over the C channels, in nats. "none": (B, H, W), already
        divided by C.
    Raises:
        KitError: if the student has fewer channels than the teacher, or the maps are not of the same pixels.
    """
    _check_pair(student, teacher)
    check_pixels(student, labels)
    n_old, n_all = teacher.shape[1], student.shape[1]
    if n_all < n_old:
        raise KitError(f"the student has {n_all} channels, fewer than the teacher's {n_old}; are they swapped?")
    log_p = _full(student).log_softmax(dim=1)
    q = (alpha * _full(teacher.detach())).softmax(dim=1)
    labels = labels.long()
    told = labels.masked_fill((labels < n_old) | (labels >= n_all), 0)
    background = q[:, 0] * log_p.gather(1, told.unsqueeze(1)).squeeze(1)
    return _reduce(-(background + (q[:, 1:] * log_p[:, 1:n_old]).sum(dim=1)) / n_all, reduction)


def orthogonality(tokens: Tensor, *, new: slice) -> Tensor:
    """Turn the tokens of new classes away from all others: mean |cos|, times n / C (MBS's L_ort).

    Args:
        tokens: (C, D), one row per class, the parameters; see `Model.class_rows`.
        new: rows of the new classes, ``step.new``. Only they receive gradient: the partner of a pair is detached, and two new
            classes form two pairs.
    Returns:
        Scalar in [0, n / C]: n / C times the mean over the n (C - 1) pairs. 0, tied to the tokens, without a new class or
        without a second class.
    Raises:
        KitError: if tokens are not (C, D).
    """
    if tokens.ndim != 2:
        raise KitError(f"tokens have shape {tuple(tokens.shape)}, but (C, D) is needed: one row per class.")
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(_full(tokens), dim=1)
        cosine = unit[new] @ unit.detach().T
    count = len(tokens)
    own = torch.arange(count, device=tokens.device)
    cosine = cosine.masked_fill(own[new].unsqueeze(1) == own, 0)
    return cosine.abs().sum() / (count * max(count - 1, 1))


def pooled_statistics(x: Tensor, scales: Sequence[int] = SCALES) -> Tensor:
    """Means of squares over parts of the last axis (AMIS's phi): (.., D) -> (.., 2 * sum(scales)).

    For each scale s the axis is cut into s parts of D // s values, trailing ones unused; each mean is divided by s^2 and written
    twice, because the released routine pools in two directions that coincide here. Raises `KitError` when D < max(scales).
    """
    if x.shape[-1] < max(scales):
        raise KitError(f"{x.shape[-1]} values cannot be cut into {max(scales)} parts; choose smaller scales.")
    squares = _full(x).square()
    parts = []
    for s in scales:
        k = x.shape[-1] // s
        parts.append(squares[..., : s * k].unflatten(-1, (s, k)).mean(dim=-1) / s**2)
    return torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1)


def pooled_embeddings(
    student: Tensor, teacher: Tensor, *, scales: Sequence[int] = SCALES, factor: float = 1e-2, last_factor: float = 1e-4
) -> Tensor:
    """Distance of the pooled statistics of old class embeddings (AMIS's L_al).

    sqrt(C / n) times the mean over images of f times the mean over the O classes of |phi(teacher) - phi(student)|_2.

    Args:
        student: (B, C, D), rows from O on receive no gradient; a distance of exactly 0 gives none either.
        teacher: (B, O, D), detached; O < C.
        scales: of `pooled_statistics`.
        factor, last_factor: f of all images but the batch's last, and of the last: the released routine takes the batch for a
            list of layers, of which the last counts less.
    Returns:
        Scalar.
    Raises:
        KitError: if the shapes do not fit or there is no new class.
    """
    _check_rows(student, teacher)
    n_all, n_old = student.shape[1], teacher.shape[1]
    _check_new(n_all, n_all - n_old)
    gap = pooled_statistics(teacher.detach(), scales) - pooled_statistics(student[:, :n_old], scales)
    distance = torch.linalg.vector_norm(gap, dim=-1).mean(dim=1)
    return _schedule(n_all, n_all - n_old) * (_factors(distance, factor, last_factor) * distance).mean()


def pooled_patches(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None = None,
    *,
    n_classes: int,
    n_new: int,
    scales: Sequence[int] = SCALES,
    factor: float = 1e-2,
    last_factor: float = 1e-4,
) -> Tensor:
    """Distance of pooled patch features: the variant of AMIS's L_amd that its release leaves switched off.

    An image is the matrix of its patches, in raster order, by channels. For each scale s it is cut into s x s square blocks of
    side k = D // s; per block and channel the mean of squares over the patches, divided by s^2 and counted twice. Patches and
    channels beyond s * k are unused; a block with fewer than k patches takes the mean of those, one without any is left out.

    Args:
        student, teacher: (B, D, h, w); no gradient flows into the teacher.
        weights: (B, h, w), see `reliability`: their sum over the number of weights > 0 is a factor of the loss. None: 1.
        n_classes, n_new: C with the background, and n, for the factor sqrt(C / n).
        scales, factor, last_factor: as in `pooled_embeddings`.
    Returns:
        Scalar: sqrt(C / n) times the mean over images of f |Phi(teacher) - Phi(student)|_2, times the factor of the weights.
    Raises:
        KitError: if the shapes differ, D < max(scales), or there is no new class.
    """
    _check_patches(student, teacher, weights)
    _check_new(n_classes, n_new)
    gap = _pooled_blocks(teacher.detach(), scales) - _pooled_blocks(student, scales)
    distance = torch.linalg.vector_norm(gap, dim=1)
    loss = _schedule(n_classes, n_new) * (_factors(distance, factor, last_factor) * distance).mean()
    return loss if weights is None else loss * (weights.sum() / (weights > 0).sum().clamp(min=1))


def token_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Keep the direction of the old class tokens: mean over the O classes of 1 - cos (AMIS's L_ocl).

    The released code adds this up over the images of a batch, on which it does not depend; that factor is the caller's.

    Args:
        student: (C, D), the parameters; rows from O on receive no gradient.
        teacher: (O, D), detached.
    Returns:
        Scalar in [0, 2]; norms are taken to be at least 1e-8.
    Raises:
        KitError: if the shapes do not fit.
    """
    _check_rows(student.unsqueeze(0), teacher.unsqueeze(0))
    return (1 - F.cosine_similarity(_full(student[: len(teacher)]), _full(teacher.detach()), dim=1)).mean()


def _pooled_blocks(patches: Tensor, scales: Sequence[int]) -> Tensor:
    """(B, D, h, w) -> (B, values)."""
    squares = _full(patches).flatten(2).square()
    channels, count = squares.shape[1:]
    if channels < max(scales):
        raise KitError(f"{channels} channels cannot be cut into {max(scales)} parts; choose smaller scales.")
    parts = []
    for s in scales:
        k = channels // s
        for first in range(0, min(s * k, count), k):  # a few rows of blocks
            parts.append(squares[:, : s * k, first : first + k].mean(dim=2) / s**2)
    return torch.cat([*parts, *parts], dim=1)


def _factors(distance: Tensor, factor: float, last_factor: float) -> Tensor:
    factors = torch.full_like(distance, factor)
    factors[-1] = last_factor
    return factors


def _schedule(n_classes: int, n_new: int) -> float:
    return (n_classes / n_new) ** 0.5


def _check_new(n_classes: int, n_new: int) -> None:
    if not 1 <= n_new <= n_classes:
        raise KitError(f"{n_new} of {n_classes} classes are new, but this loss needs one or more; step 0 has no such term.")


def _check_rows(student: Tensor, teacher: Tensor) -> None:
    fit = student.ndim == teacher.ndim == 3 and (len(student), student.shape[2]) == (len(teacher), teacher.shape[2])
    if not fit or student.shape[1] < teacher.shape[1]:
        raise KitError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (B, C, D) and (B, O, D), C at least O: "
            "class embeddings of the same images, or class tokens of both models."
        )


def _check_patches(student: Tensor, teacher: Tensor, weights: Tensor | None) -> None:
    if student.ndim != 4 or student.shape != teacher.shape:
        raise KitError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal (B, D, h, w).")
    if weights is not None and weights.shape != (len(student), *student.shape[2:]):
        raise KitError(f"weights have shape {tuple(weights.shape)}, but patches {tuple(student.shape)} need one each: (B, h, w).")
