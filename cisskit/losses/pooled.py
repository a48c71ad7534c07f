"""Local POD: PLOP's distillation of pooled statistics. Conventions as in `cisskit.losses.pixels`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cisskit.errors import KitError
from cisskit.losses.pixels import _full

SCALES = (1, 2, 4)


def pod_embedding(x: Tensor, scales: Sequence[int] = SCALES) -> Tensor:
    """Means over columns and over rows of every window, at several scales.

    Windows of scale m are squares of side floor(WIDTH / m), m x m of them; what does not fill one, at the right and at the
    bottom, is left out, and rows that a low map does not have are missing (as released: the width rules both axes).

    Args:
        x: (B, K, h, w); `local_pod` passes squared maps.
    Returns:
        (B, L): scale by scale, windows row-major, each the (K, rows) means over its columns, then the (K, columns) means over
        its rows.
    Raises:
        KitError: if a scale is larger than the width.
    """
    if x.ndim != 4 or not scales or max(scales) > x.shape[3]:
        raise KitError(
            f"maps {tuple(x.shape)} must be (B, K, h, w), at least as wide as the largest of the scales {tuple(scales)}."
        )
    parts = []
    for m in scales:
        side = x.shape[3] // m
        for top in range(0, min(m * side, x.shape[2]), side):
            band = x[:, :, top : top + side, : m * side].unflatten(3, (m, side))  # (B, K, rows, m, side)
            rows, columns = band.mean(dim=4).permute(0, 3, 1, 2), band.mean(dim=2).transpose(1, 2)
            parts.append(torch.cat([rows.flatten(2), columns.flatten(2)], dim=2).flatten(1))
    return torch.cat(parts, dim=1)


def local_pod(student: Tensor, teacher: Tensor, scales: Sequence[int] = SCALES) -> Tensor:
    """Mean over the batch of the Euclidean distance between the `pod_embedding` of both squared maps.

    student, teacher: (B, K, h, w); no gradient flows into the teacher. Pooling is linear, so the difference of squares is
    pooled once. The gradient where both agree is 0. Raises `KitError` if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise KitError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be the same layer of both models."
        )
    s, t = _full(student), _full(teacher.detach())  # squares of half precision overflow
    return torch.linalg.vector_norm(pod_embedding((s - t) * (s + t), scales), dim=1).mean()


def pod_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_scores: Tensor,
    teacher_scores: Tensor,
    *,
    factor_features: float,
    factor_logits: float,
    scales: Sequence[int] = SCALES,
) -> Tensor:
    """PLOP's distillation term: weighted `local_pod` of all maps, scores included, divided by their number, times sqrt(C / N).

    Args:
        student, teacher: maps of the same layers, each pair (B, K, h, w).
        student_scores: (B, C, h, w) low-resolution; teacher_scores: (B, O, h, w). The N = C - O new channels are added to the
            student's background before squaring. C counts the background.
        factor_features, factor_logits: published 0.01 and 0.0005 on VOC, 0.001 and 0.00001 on ADE20K.
    Raises:
        KitError: if layers are missing or there is no new class.
    """
    n_all, n_old = student_scores.shape[1], teacher_scores.shape[1]
    if len(student) != len(teacher) or n_all <= n_old:
        raise KitError(
            f"{len(student)} and {len(teacher)} maps, {n_all} and {n_old} channels: both models need the same layers, and the "
            "student at least one class more."
        )
    scores = _full(student_scores)
    merged = torch.cat([scores[:, :1] + scores[:, n_old:].sum(dim=1, keepdim=True), scores[:, 1:n_old]], dim=1)
    loss = factor_logits * local_pod(merged, teacher_scores, scales)
    for s, t in zip(student, teacher, strict=True):
        loss = loss + factor_features * local_pod(s, t, scales)
    return (n_all / (n_all - n_old)) ** 0.5 * loss / (len(student) + 1)
