"""Losses: pure functions of tensors.

Shapes: logits (B, C, H, W), labels (B, H, W) of uint8 or int64. Channel c belongs to learned id c unless a docstring says
otherwise. float64 stays float64, half precision is computed (and returned) in float32. No input is modified.

``reduction="mean"`` divides by ALL pixels of the batch: ignored ones add 0 but count, as MiB, PLOP and RCIL train.
``"valid"`` divides by the pixels that are not ignored, and is 0 when there are none. ``"none"`` returns the map before any
mean. Nothing here waits for the device: label values are not checked, so each docstring says what an unexpected one does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cisskit.errors import KitError, unknown
from cisskit.scenario import BACKGROUND, IGNORE


def check_pixels(logits: Tensor, labels: Tensor) -> None:
    """Raise `KitError` unless logits are (B, C, H, W) and labels the (B, H, W) class ids of the same pixels."""
    if logits.ndim != 4:
        raise KitError(f"logits have shape {tuple(logits.shape)}, but (B, C, H, W) is needed: batch, class, height, width.")
    want = (logits.shape[0], *logits.shape[2:])
    if labels.shape != want:
        raise KitError(
            f"labels have shape {tuple(labels.shape)}, but logits {tuple(logits.shape)} need {want}. Labels are one class id "
            "per pixel; compare Output.logits, not the smaller Output.scores."
        )
    if labels.dtype.is_floating_point:
        raise KitError(f"labels are {labels.dtype}, but class ids are whole numbers: pass uint8 or int64.")


def labels_on_grid(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) labels at the size (h, w) of a feature map, int64: nearest neighbour, the top-left pixel of whole cells."""
    return F.interpolate(labels.unsqueeze(1).float(), size=size, mode="nearest").squeeze(1).long()


def cross_entropy(logits: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Softmax cross-entropy, in nats.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W), values 0..C-1 or 255 (ignored). Any other value is an index error.
    Returns:
        "mean": scalar over all pixels, ignored ones included in the divisor. "valid": scalar over the pixels that are not
        ignored, 0 when there are none (MBS). "none": (B, H, W), exactly 0 where ignored.
    Raises:
        KitError: if labels are not the (B, H, W) of these logits.
    """
    check_pixels(logits, labels)
    loss = F.cross_entropy(_full(logits), labels.long(), ignore_index=IGNORE, reduction="none")
    return _mean_valid(loss, labels) if reduction == "valid" else _reduce(loss, reduction)


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, reduction: str = "valid") -> Tensor:
    """One sigmoid per channel against the one-hot label (SSUL; IDEC, LAG and MBS took it over).

    The value grows with the number of channels: it is their sum, and positives are not balanced against negatives.

    Args:
        logits: (B, C, H, W); SSUL, IDEC and LAG pass the open layout: 0 unknown, 1 background, k + 1 class k.
        labels: (B, H, W) of the same numbering, values 0..C-1 or 255 (ignored). Any other value is an index error.
        weight: (B, H, W), multiplies the sum over channels of a pixel; it does not change what the mean divides by.
    Returns:
        "valid": scalar, SUM over channels, mean over the pixels that are not 255; 0, with gradient 0, when there are none
        (the released codes return NaN). "sum": over those pixels. "none": (B, H, W), exactly 0 where ignored.
    Raises:
        KitError: if labels are not the (B, H, W) of these logits.
    """
    check_pixels(logits, labels)
    if reduction not in ("valid", "sum", "none"):
        raise unknown("reduction", reduction, ("valid", "sum", "none"))
    logits, ignored = _full(logits), labels == IGNORE
    channel = labels.long().masked_fill(ignored, BACKGROUND).unsqueeze(1)
    loss = _softplus(logits)  # as if no channel were labelled, then the labelled one is replaced, as in `masked_bce`
    loss.scatter_(1, channel, _softplus(-logits.gather(1, channel)))
    loss = loss.sum(dim=1).masked_fill(ignored, 0)
    if weight is not None:
        loss = loss * weight
    return _mean_valid(loss, labels) if reduction == "valid" else loss.sum() if reduction == "sum" else loss


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 1.0, gamma: float = 0.0, reduction: str = "mean") -> Tensor:
    """alpha * (1 - p)^gamma * cross-entropy, p the softmax of the labelled class (an option of the released IDEC code).

    Args, errors: as `cross_entropy`, which it is for alpha 1 and gamma 0.
    Returns:
        "mean": scalar over ALL pixels, ignored ones included in the divisor. "sum": scalar. "none": (B, H, W), exactly 0
        where ignored.
    """
    loss = cross_entropy(logits, labels, reduction="none")
    if gamma:  # kept off 0, where the slope of x^gamma is infinite for gamma < 1
        loss = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny) ** gamma * loss
    loss = alpha * loss
    return loss.sum() if reduction == "sum" else _reduce(loss, reduction)


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, *, known: slice, reduction: str = "mean") -> Tensor:
    """Cross-entropy in which every known class counts as background (MiB, CVPR 2020).

    A pixel labelled background now may hold a class learnt earlier, so p(0) becomes the sum of p(c) over c in ``known``.

    Args:
        logits: (B, C, H, W), C = background + seen classes, in arrival order.
        labels: (B, H, W), values 0..C-1 or 255 (ignored). Ids inside ``known`` are read as background, on a copy.
        known: channels 0..n_old, that is ``step.known``. ``slice(0, 1)`` gives plain cross-entropy.
    Returns:
        As `cross_entropy`. Channels 1..n_old are never a target; they receive gradient through the sum.
    Raises:
        KitError: if labels are not the (B, H, W) of these logits, or ``known`` is not ``slice(0, n)`` with 1 <= n <= C.
    """
    check_pixels(logits, labels)
    channels = logits.shape[1]
    if known.start not in (0, None) or known.stop is None or not 1 <= known.stop <= channels:
        raise KitError(f"known = {known} must be slice(0, n) with n in 1..{channels} for {channels} channels; pass step.known.")
    labels = labels.long()
    log_p = _full(logits).log_softmax(dim=1)
    told_background, ignored = labels < known.stop, labels == IGNORE
    own = log_p.gather(1, labels.masked_fill(ignored, BACKGROUND).unsqueeze(1)).squeeze(1)
    loss = -torch.where(told_background, log_p[:, known].logsumexp(dim=1), own)
    return _reduce(loss.masked_fill(ignored, 0), reduction)


def unbiased_distillation(
    student: Tensor, teacher: Tensor, *, new: slice, alpha: float = 1.0, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Distillation in which the teacher's background covers the new classes (MiB, CVPR 2020).

    What the teacher calls background may be a class that the student has just learnt, so the student's background
    probability is compared as the sum of p(0) and p(c) over c in ``new``.

    Args:
        student: logits (B, C, H, W), C = O + N.
        teacher: logits (B, O, H, W) of the previous model; no gradient flows into it.
        new: channels O..C-1, that is ``step.new``; at least one.
        alpha: factor on the teacher's logits before its softmax.
        mask: (B, H, W), True where a pixel counts; the others add 0 and stay in the mean.
    Returns:
        "mean": scalar, mean over all pixels AND over the O old channels, in nats. "none": (B, H, W), already divided by O.
        Labels play no role: ignored pixels are distilled like the rest.
    Raises:
        KitError: if the channels are not O + N and O, or the maps differ in size.
    """
    _check_pair(student, teacher)
    n_old, n_all = teacher.shape[1], student.shape[1]
    if (new.start, new.stop) != (n_old, n_all) or n_old == n_all:
        raise KitError(
            f"new = {new} must be slice({n_old}, {n_all}) with at least one class: the teacher has {n_old} channels and the "
            f"student {n_all}. Pass step.new, and the model of the step before as teacher."
        )
    log_p = _full(student).log_softmax(dim=1)
    q = (alpha * _full(teacher.detach())).softmax(dim=1)
    background = torch.logaddexp(log_p[:, 0], log_p[:, new].logsumexp(dim=1))
    loss = -(q[:, 0] * background + (q[:, 1:] * log_p[:, 1:n_old]).sum(dim=1)) / n_old
    return _reduce(loss if mask is None else loss * mask, reduction)


def output_distillation(student: Tensor, teacher: Tensor, *, alpha: float = 1.0, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the student's old channels, renormalised among themselves, with the teacher (LwF, as in MiB's code).

    Args:
        student: logits (B, C, H, W) with C >= O; the new channels receive no gradient.
        teacher: logits (B, O, H, W); no gradient flows into it.
        alpha: factor on the teacher's logits before its softmax (no temperature on the student).
    Returns:
        "mean": scalar, mean over all pixels AND over the O channels, in nats. "none": (B, H, W), already divided by O.
    Raises:
        KitError: if the student has fewer channels than the teacher, or the maps differ in size.
    """
    _check_pair(student, teacher)
    n_old = teacher.shape[1]
    if student.shape[1] < n_old:
        raise KitError(f"the student has {student.shape[1]} channels, fewer than the teacher's {n_old}; are they swapped?")
    log_p = _full(student[:, :n_old]).log_softmax(dim=1)
    q = (alpha * _full(teacher.detach())).softmax(dim=1)
    return _reduce(-(q * log_p).sum(dim=1) / n_old, reduction)


def masked_bce(
    logits: Tensor, labels: Tensor, *, first: int, pos_weight: float | Tensor = 1.0, reduction: str = "classes"
) -> Tensor:
    """Binary cross-entropy of the new classes, one sigmoid each (DKD, NeurIPS 2022).

    A pixel is positive for the one channel its label names and negative for all others. Pixels labelled 0 AND pixels
    labelled 255 are negatives of every channel: void is not ignored here, as in the released code.

    Args:
        logits: (B, n, H, W), channels of the NEW classes only.
        labels: (B, H, W); ``first + j`` makes channel j positive. Any other value, so also an old class that was not
            masked, hits no channel and is a negative.
        first: label of channel 0, that is ``step.new.start``.
        pos_weight: gamma, the weight of positives; a number, or a tensor with one element or with n.
    Returns:
        "classes": (n,), mean per class over all pixels; the paper's loss is its sum. "none": (B, n, H, W).
    Raises:
        KitError: if labels are not the (B, H, W) of these logits.
    """
    check_pixels(logits, labels)
    logits = _full(logits)
    n = logits.shape[1]
    channel = (labels.long() - first).unsqueeze(1)
    hit = (channel >= 0) & (channel < n)
    channel = channel.clamp(0, max(n - 1, 0))
    loss = _softplus(logits)  # as if every pixel were a negative of every class ...
    if n:  # ... then each labelled pixel's own channel is replaced: no one-hot tensor, and exact for large logits
        own = logits.gather(1, channel)
        value = _softplus(torch.where(hit, -own, own))
        gamma = torch.as_tensor(pos_weight, dtype=logits.dtype, device=logits.device)
        gamma = gamma[channel] if gamma.numel() > 1 else gamma
        loss.scatter_(1, channel, torch.where(hit, gamma * value, value))
    return _by_class(loss, reduction)


def sigmoid_distillation(student: Tensor, teacher: Tensor, *, reduction: str = "classes") -> Tensor:
    """Binary cross-entropy with the teacher's sigmoid as target: DKD's KD on logits and L+, L- on scores.

    Args:
        student: (B, n, H, W), before the sigmoid.
        teacher: the same shape, also BEFORE its sigmoid; no gradient flows into it.
    Returns:
        "classes": (n,), mean per class over all pixels; not 0 when both agree (the teacher's entropy stays).
        "none": (B, n, H, W).
    Raises:
        KitError: if the shapes differ.
    """
    _check_pair(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise KitError(
            f"student and teacher have {student.shape[1]} and {teacher.shape[1]} channels; both need the old classes only "
            "(step.old), without the auxiliary and the new ones."
        )
    target = _full(teacher.detach()).sigmoid()
    student = _full(student)
    return _by_class(F.binary_cross_entropy_with_logits(student, target.to(student.dtype), reduction="none"), reduction)


def reasoning_scores(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Evidence for and against each class: the two parts of w . f by the SIGN OF THE WEIGHT (DKD).

    positive + negative + bias is the class score. A weight that is exactly 0 belongs to neither part and gets no gradient.

    Args:
        features: (B, D, h, w), the decoder's map.
        weight: (C, D), rows of the classes only (no auxiliary row); the bias is left out on purpose.
    Returns:
        (positive, negative), each (B, C, h, w). With features >= 0 positive is >= 0 and negative <= 0.
    Raises:
        KitError: if D differs.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise KitError(
            f"features {tuple(features.shape)} and weight {tuple(weight.shape)} do not fit: (B, D, h, w) and (C, D) are needed."
        )
    with torch.autocast(features.device.type, enabled=False):  # else mixed precision rounds both factors to half
        features, weight = _full(features), _full(weight)
        parts = torch.cat([weight.relu(), -(-weight).relu()])  # relu: its gradient at exactly 0 is 0
        scores = F.conv2d(features, parts[:, :, None, None])
    positive, negative = scores.split(len(weight), dim=1)
    return positive, negative


def auxiliary_background(aux_logit: Tensor, *, reduction: str = "mean") -> Tensor:
    """Teach the auxiliary classifier to say no everywhere: mean of softplus(z) (DKD's L_ac).

    aux_logit: (B, 1, H, W), or any shape. Returns a scalar over ALL pixels, foreground and void too; "none": that shape.
    """
    return _reduce(_softplus(_full(aux_logit)), reduction)


def _full(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _softplus(x: Tensor) -> Tensor:
    # torch turns linear at 20, where log(1 + exp x) - x is still 2e-9; at 40 it is below float64's rounding
    return F.softplus(x, threshold=40)


def _check_pair(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[2:] != teacher.shape[2:] or len(student) != len(teacher):
        raise KitError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (B, C, H, W) maps of the same pixels; "
            "compare logits with logits, or scores with scores."
        )


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "none"):
        raise unknown("reduction", reduction, ("mean", "none"))
    return loss.mean() if reduction == "mean" else loss


def _mean_valid(loss: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pixels that are not ignored, where ``loss`` is 0; 0 when there are none."""
    return loss.sum() / (labels != IGNORE).sum().clamp(min=1)


def _by_class(loss: Tensor, reduction: str) -> Tensor:
    if reduction not in ("classes", "none"):
        raise unknown("reduction", reduction, ("classes", "none"))
    return loss.mean(dim=(0, 2, 3)) if reduction == "classes" else loss
