"""Rules that rewrite labels: pure functions of tensors.

Labels are (B, H, W), uint8 or int64; a rule returns a new tensor of the same type and leaves void (255) alone unless its
docstring says otherwise. Teachers are read without gradient. Nothing here waits for the device.

"Open" labels and scores have an unknown class, in the layout of the released SSUL, IDEC and LAG code: 0 unknown, 1 background,
k + 1 class k. Everywhere else channel c is learned id c.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cisskit.errors import KitError, unknown
from cisskit.losses.contrast import merged
from cisskit.losses.pixels import _full, check_pixels
from cisskit.scenario import BACKGROUND, IGNORE

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": lambda z: z.softmax(dim=1)}


def activate(scores: Tensor, activation: str) -> Tensor:
    """Probabilities (B, C, ..) of raw scores: "sigmoid" per channel or "softmax" over them, in float32 at least."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation](_full(scores.detach()))


def open_labels(labels: Tensor, salient: Tensor | None = None) -> Tensor:
    """Labels with an unknown class (SSUL; IDEC and LAG took it over). For training only; evaluation keeps its labels.

    Args:
        labels: (B, H, W), 0 where nothing is told, learned ids, 255 void.
        salient: (B, H, W), anything but 0 where some object is: there, untold pixels are unknown, elsewhere background.
            None: every untold pixel is unknown, and nothing is labelled background (the released rule without saliency
            maps).
    Returns:
        Ids + 1, with 0 unknown and 1 background; 255 stays.
    """
    if salient is not None and salient.shape != labels.shape:
        raise KitError(f"saliency {tuple(salient.shape)} and labels {tuple(labels.shape)} must be maps of the same pixels.")
    untold = labels == BACKGROUND
    shifted = torch.where(labels == IGNORE, labels, labels + 1)
    return shifted.masked_fill(untold if salient is None else untold & (salient != 0), 0)


def closed_labels(labels: Tensor) -> Tensor:
    """Open labels as learned ids: unknown and background are 0, class k + 1 is k, 255 stays. Undoes `open_labels`."""
    return torch.where((labels == IGNORE) | (labels == 0), labels, labels - 1)


def margins(scores: Tensor, *, activation: str = "sigmoid") -> Tensor:
    """(B, H, W): best minus second best probability, 0..1. scores: (B, C, H, W) raw, C >= 2."""
    return _lead(activate(scores, activation))


def confident(
    labels: Tensor,
    teacher: Tensor,
    *,
    threshold: float | Tensor,
    first: int = 2,
    activation: str = "sigmoid",
    ranking: float | None = None,
    margin: float | None = None,
) -> Tensor:
    """Old classes where the old model is sure and no label names a class (SSUL; IDEC and LAG took it over).

    A pixel with y < first becomes k, the best channel of the old model, if k >= first and its probability is >= the
    threshold. Void, labelled classes, and what the old model calls unknown or background are never changed.

    Args:
        labels: (B, H, W), numbered like the channels of ``teacher``; 255 void.
        teacher: (B, C, H, W) raw scores of the old model.
        threshold: least probability; or (C,), one per channel (IDEC's class-specific thresholds, kit's own reading).
        first: first channel that is a class: 2 in the open layout, 1 without an unknown class.
        activation: "sigmoid" or "softmax".
        ranking: LAG's option, released code: besides, (1 - margin) * k must exceed this, with margin the best minus the
            second best probability and k the channel INDEX. It prefers uncertain pixels and late classes, as released.
        margin: kit's own reading of "uncertainty-aware": besides, best minus second best must be at least this.
    Raises:
        KitError: if labels are not the (B, H, W) of these scores, or the thresholds are not C.
    """
    check_pixels(teacher, labels)
    if isinstance(threshold, Tensor) and threshold.ndim and threshold.shape != (teacher.shape[1],):
        raise KitError(
            f"thresholds have shape {tuple(threshold.shape)}, but the teacher has {teacher.shape[1]} channels: pass one per "
            "channel, unknown and background included (what they hold is never used)."
        )
    p = activate(teacher, activation)
    score, channel = p.max(dim=1)
    if isinstance(threshold, Tensor) and threshold.ndim:
        threshold = threshold.to(score)[channel]
    accepted = (labels < first) & (channel >= first) & (score >= threshold)
    if ranking is not None:
        accepted = accepted & ((1 - _lead(p)) * channel > ranking)
    if margin is not None:
        accepted = accepted & (_lead(p) >= margin)
    return torch.where(accepted, channel.to(labels.dtype), labels)


def class_medians(labels: Tensor, teacher: Tensor, *, first: int = 2, activation: str = "sigmoid") -> Tensor:
    """(C,): per channel, the median winning probability of the old model over the pixels where no label names a class and
    this channel wins; NaN where it wins none. For IDEC's class-specific thresholds (kit's own reading).

    labels, teacher, first: as in `confident`. Of an even number of pixels the lower middle one, as `torch.median`. One
    sort over all pixels; the number of classes does not matter.
    """
    check_pixels(teacher, labels)
    n = teacher.shape[1]
    score, channel = activate(teacher, activation).max(dim=1)
    score = score.flatten()
    group = torch.where(labels < first, channel, n).flatten()  # group n: not asked
    order = (2.0 * group.double() + score).argsort()  # by channel, then by score: 0 <= score <= 1 < 2
    count = torch.zeros(n + 1, dtype=torch.long, device=score.device).index_add_(0, group, torch.ones_like(group))
    start = count.cumsum(0) - count
    middle = (start + (count - 1).clamp(min=0) // 2)[:n].clamp(max=len(score) - 1)
    return torch.where(count[:n] > 0, score[order[middle]], torch.nan)


def predict_open(scores: Tensor, *, activation: str = "sigmoid") -> tuple[Tensor, Tensor]:
    """Probabilities and decision with the unknown class counted as background (SSUL, IDEC, LAG).

    scores: (B, 1 + C, H, W) raw, open layout. Returns (B, C, H, W) probabilities in which background is its own plus
    unknown's, so up to 2, and (B, H, W) int64 learned ids, the lowest of equals. On probabilities; the contrastive term of
    IDEC adds raw scores instead.
    """
    p = merged(activate(scores, activation))
    return p, p.argmax(dim=1)


def selective(
    labels: Tensor, teacher: Tensor, *, threshold: float = 0.7, activation: str = "softmax", ignore_objects: bool = True
) -> Tensor:
    """Old classes where the old model is sure, void where it sees some object but is not sure which (MBS, AMIS: released code).

    An untold pixel (y = 0) becomes the best channel of the old model if that is a class and its probability reaches the
    threshold; one still untold becomes 255 if the background is less likely than all classes together (under softmax: than
    1/2). Labelled classes and 255 are never changed.

    Args:
        labels: (B, H, W), learned ids, 0 where nothing is told, 255 void.
        teacher: (B, C, H, W) raw scores of the old model, channel 0 the background.
        threshold: least probability.
        activation: "softmax", or "sigmoid" with the binary base loss.
        ignore_objects: False stops after the first rule: plain pseudo-labels.
    Raises:
        KitError: if labels are not the (B, H, W) of these scores.
    """
    check_pixels(teacher, labels)
    p = activate(teacher, activation)
    score, channel = p.max(dim=1)
    untold = labels == BACKGROUND
    sure = (channel != BACKGROUND) & (score >= threshold)
    found = torch.where(untold & sure, channel.to(labels.dtype), labels)
    if not ignore_objects:
        return found
    missed = untold & ~sure & (p[:, 0] < p[:, 1:].sum(dim=1))
    return found.masked_fill(missed, IGNORE)


def _lead(p: Tensor) -> Tensor:
    best, second = p.topk(2, dim=1).values.unbind(dim=1)
    return best - second


# --- PLOP ---

BINS = 100


def scaled_entropy(probabilities: Tensor) -> Tensor:
    """(B, ..) entropy of (B, O, ..) probabilities, averaged over the O classes and divided by log O, as released: in [0, 1/O]."""
    n = probabilities.shape[1]
    return -(probabilities * (probabilities + 1e-8).log()).mean(dim=1) / math.log(n + 1e-8)


def entropy_histogram(labels: Tensor, teacher: Tensor, n_all: int) -> Tensor:
    """(O, 100) counts: for each class that the old model predicts, how its uncertainty is spread over the background pixels.

    labels: (B, H, W); only pixels labelled exactly 0 count. teacher: (B, O, H, W) raw scores. n_all: classes of this step,
    background included. The uncertainty is `scaled_entropy` divided by log n_all. Adds up over batches.
    """
    check_pixels(teacher, labels)
    uncertainty, channel = _uncertainty(teacher, n_all)
    n = teacher.shape[1]
    bin_ = (BINS * uncertainty).long().clamp(0, BINS - 1)
    cell = torch.where(labels == 0, channel * BINS + bin_, n * BINS).flatten()
    counts = torch.zeros(n * BINS + 1, dtype=torch.long, device=cell.device).index_add_(0, cell, torch.ones_like(cell))
    return counts[:-1].view(n, BINS)


def entropy_thresholds(histogram: Tensor, n_all: int, *, base: float = 0.001, rule: str = "released") -> Tensor:
    """(n_all,) float32: below which uncertainty a class of the old model is believed.

    Args:
        histogram: (O, 100), see `entropy_histogram`.
        base: least threshold, and that of classes that were never predicted.
        rule: "released": the code's search for the median, whose running sum grows by the bin's INDEX instead of its count.
            Where it ends at an empty bin it divides by zero, as released: infinity lets every pixel of the class pass, NaN
            none. "median": of the histogram, linear inside a bin.
    """
    if rule not in ("released", "median"):
        raise unknown("threshold rule", rule, ("released", "median"))
    counts = histogram.double()
    half, index = counts.sum(dim=1, keepdim=True) / 2, torch.arange(BINS, device=counts.device)
    by_index, by_count = (index * (index - 1) / 2).expand_as(counts).double(), counts.cumsum(dim=1) - counts
    before = by_index if rule == "released" else by_count
    stops = (before <= half) & (half <= before + counts)
    found = stops.any(dim=1)
    at = torch.where(found, stops.long().argmax(dim=1), BINS - 1).unsqueeze(1)
    passed = torch.where(found, before.gather(1, at).squeeze(1), BINS * (BINS - 1) / 2)  # no bin stops: the last was passed, too
    median = at.squeeze(1) / BINS + (half.squeeze(1) - passed) / counts.gather(1, at).squeeze(1) / BINS
    thresholds = torch.full((n_all,), base, device=counts.device)
    thresholds[: len(counts)] = torch.where(half.squeeze(1) > 0, median, base).clamp(min=base).float()  # NaN stays NaN
    return thresholds


def entropy_labels(labels: Tensor, teacher: Tensor, thresholds: Tensor, n_all: int) -> tuple[Tensor, Tensor]:
    """PLOP's pseudo-labels, and per image the share of the background that they settle.

    Args:
        labels: (B, H, W); pixels below O (background, or old ids) are looked at, new classes and 255 stay.
        teacher: (B, O, H, W) raw scores of the old model. thresholds, n_all: see `entropy_thresholds`.
    Returns:
        Labels: the old model's class (which may be background) where its uncertainty is strictly below the threshold of that
        class, else 255. (B,) float32: settled pixels over pixels looked at; 0 for an image without any.
    """
    check_pixels(teacher, labels)
    uncertainty, channel = _uncertainty(teacher, n_all)
    asked = labels < teacher.shape[1]
    settled = asked & (uncertainty < thresholds.to(uncertainty)[channel])
    new = torch.where(settled, channel.to(labels.dtype), torch.where(asked, IGNORE, labels))
    return new, settled.sum(dim=(1, 2)).float() / (asked.sum(dim=(1, 2)).float() + 1e-6)


def _uncertainty(teacher: Tensor, n_all: int) -> tuple[Tensor, Tensor]:
    p = _full(teacher.detach()).softmax(dim=1)
    return scaled_entropy(p) / math.log(n_all), p.argmax(dim=1)
