"""Contrast between old and new features: IDEC's ARCL as released, a region contrast of our own, LAG's contrast over the batch.

Conventions as in `cisskit.losses.pixels`; besides, everything is computed in float32 (or float64) also under autocast, where
inner products of whole maps would overflow. Scores in the "open" layout: 0 unknown, 1 background, k + 1 class k.
"""

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cisskit.errors import KitError, unknown
from cisskit.losses.features import class_means
from cisskit.losses.pixels import _full, labels_on_grid
from cisskit.scenario import IGNORE

LEFT_OUT = math.log(1e-45)  # -103.6, added to what the released contrast leaves out: the self pair and the positive pair
EPSILON = 1e-6  # added to every difference before its norm, as torch's triplet loss does


# --- unknown and background as one ---


def merged(scores: Tensor) -> Tensor:
    """(B, C, ..) from open (B, 1 + C, ..): unknown added to the background, then left out. Channel k is class k."""
    scores = _full(scores)
    return torch.cat([scores[:, :1] + scores[:, 1:2], scores[:, 2:]], dim=1)


def unknown_added(scores: Tensor) -> Tensor:
    """Open scores as the released ARCL leaves them: the unknown score added to the background, and kept. A copy.

    The release adds in place, so that the segmentation loss behind it sees these: pass them to it to follow.
    """
    return torch.cat([_full(scores[:, :1]), merged(scores)], dim=1)


# --- ARCL as released ---


def draw_classes(n_classes: int, rounds: int, rng: random.Random) -> list[int]:
    """The classes that the released ARCL looks for, one per round: round i draws i + U{1, .., n_classes - i - 1}.

    n_classes: the setting N of the release (20), not the classes of the step: class N itself is never drawn, and neither is
    background. min(rounds, N) classes, which may repeat.

    Raises:
        KitError: if rounds >= n_classes: the last draw has nothing to draw from, and the released code stops there, as with
            its own setting N = 5 for ISPRS.
    """
    rounds = min(rounds, n_classes)
    if rounds and rounds >= n_classes:
        raise KitError(
            f"{rounds} rounds of {n_classes} classes: round {n_classes - 1} would draw from an empty range, where the released "
            f"code fails. Pass at most {n_classes - 1} rounds."
        )
    return [i + rng.randint(1, n_classes - i - 1) for i in range(rounds)]


def arcl_released(
    student: Tensor,
    teacher: Tensor,
    old_scores: Tensor,
    drawn: Sequence[int] | Tensor,
    *,
    unknown_class: bool = True,
    activation: str = "sigmoid",
    values: int = 256,
    reduction: str = "mean",
) -> Tensor:
    """IDEC's asymmetric region-wise contrast exactly as the released code computes it.

    Per round, a mask grows by the pixels where ANY image of the batch shows the drawn class in the old model. Then, of the
    FIRST image only: anchor a, the first 256 positive values of the old features inside the mask; p, the same of the new
    features; n, of the new features outside. "First" counts channels, then rows, then columns, so these are activations,
    usually of channel 0, not embeddings. max(|a - p| - |a - n| + 1, 0) is added if the three lengths agree (1 if all are 0).

    Args:
        student: (B, D, h, w) new features, of which 256 channels are read. teacher: the old ones; no gradient.
        old_scores: (B, C, H, W) of the old model, open layout; the features are looked at in this size, bilinear.
        drawn: one class per round, 0 is background; see `draw_classes`.
        unknown_class: whether channel 0 of ``old_scores`` is unknown and to be merged into the background.
        activation: "sigmoid" or "softmax", before the best channel is taken.
        values: how many values are compared.
    Returns:
        "mean": scalar, sum over the rounds that found equal lengths, divided by ALL rounds; 0, with gradient 0, when none did.
        "none": (rounds,), NaN where a round was skipped.
    """
    if student.ndim != 4 or student.shape != teacher.shape or old_scores.ndim != 4 or len(old_scores) != len(student):
        raise KitError(
            f"features {tuple(student.shape)}, old features {tuple(teacher.shape)} and old scores {tuple(old_scores.shape)} must "
            "be (B, D, h, w), the same, and (B, C, H, W) of the same images."
        )
    if reduction not in ("mean", "none"):
        raise unknown("reduction", reduction, ("mean", "none"))
    if activation not in ("sigmoid", "softmax"):
        raise unknown("activation", activation, ("sigmoid", "softmax"))
    if not len(drawn):
        return _nothing(student) if reduction == "mean" else _full(student).new_empty(0)
    with torch.autocast(student.device.type, enabled=False):
        scores = _full(old_scores.detach())
        scores = merged(scores) if unknown_class else scores
        shown = (scores.sigmoid() if activation == "sigmoid" else scores.softmax(dim=1)).argmax(dim=1)
        found = torch.stack([(shown == d).any(dim=0) for d in drawn])
        inside = found.long().cumsum(dim=0) > 0  # (R, H, W): never reset

        size, first = old_scores.shape[2:], slice(0, 256)
        new = F.interpolate(_full(student[:1, first]), size=size, mode="bilinear", align_corners=False)[0]
        old = F.interpolate(_full(teacher[:1, first].detach()), size=size, mode="bilinear", align_corners=False)[0]
        a, n_a = _first_positive(old, inside, values)
        p, n_p = _first_positive(new, inside, values)
        n, n_n = _first_positive(new, ~inside, values)
        counts = torch.arange(values, device=a.device) < n_a.unsqueeze(1)
        near, far = (torch.where(counts, a - x + EPSILON, 0).norm(dim=1) for x in (p, n))
        triplets = (near - far + 1).relu()
        equal = (n_a == n_p) & (n_a == n_n)
    if reduction == "none":
        return torch.where(equal, triplets, torch.nan)
    return torch.where(equal, triplets, 0).sum() / len(drawn)


def _first_positive(features: Tensor, masks: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first n positive values of (D, H, W) features inside each of (R, H, W) masks: (R, n), and how many there are.

    Values beyond that number are any. The row of each is found in running counts per row, its column within that row: no
    list whose length depends on the data, so the device is never waited for.
    """
    width = features.shape[2]
    positive = (features > 0).to(features.dtype)
    per_row = torch.einsum("dhw,rhw->rdh", positive, masks.to(features.dtype)).flatten(1).long()
    upto = per_row.cumsum(dim=1)
    rank = torch.arange(1, n + 1, device=features.device).expand(len(masks), n).contiguous()
    row = torch.searchsorted(upto, rank).clamp(max=upto.shape[1] - 1)  # (R, n): channel * H + line
    before = (upto - per_row).gather(1, row)
    line = row % features.shape[1]
    here = (features.detach().flatten(0, 1)[row] > 0) & masks[torch.arange(len(masks), device=row.device).unsqueeze(1), line]
    column = torch.searchsorted(here.long().cumsum(dim=2), (rank - before).unsqueeze(2)).squeeze(2).clamp(max=width - 1)
    return features.flatten()[row * width + column], upto[:, -1].clamp(max=n)


# --- regions (kit's own reading) ---


def region_contrast(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    old_scores: Tensor,
    *,
    n_old: int,
    min_cells: int = 16,
    margin: float = 1.0,
) -> Tensor:
    """Region-wise contrast as IDEC's figure shows it: kit's own reading, the paper's equation was not available.

    Anchor: mean old feature over the region of an old class in an image; positive: mean new feature over the same cells;
    negatives: mean new feature of every other region of that image. Triplet loss on the L2-normalised means with the
    negative nearest to the anchor.

    Args:
        student, teacher: (B, D, h, w) features; no gradient flows into the teacher.
        labels: (B, H, W) of this step: 0, ids of the new classes, 255. Read on the feature grid, nearest.
        old_scores: (B, 1 + n_old, H, W) of the old model; its best channel tells the regions of background and old classes.
            With an unknown class pass them `merged`.
        n_old: old classes, without background.
        min_cells: an old class counts in an image if it has this many cells of the grid.
        margin: of the triplet.
    Returns:
        Scalar, mean over the pairs (image, old class) that count and have a negative; 0, with gradient 0, when there are none.
    Raises:
        KitError: if the shapes do not fit.
    """
    if old_scores.shape[1] != 1 + n_old:
        raise KitError(
            f"old scores have {old_scores.shape[1]} channels, but background and {n_old} old classes are {1 + n_old}; pass "
            "merged(open scores) of the old model."
        )
    size = (student.shape[2], student.shape[3])
    old = F.interpolate(_full(old_scores.detach()), size=size, mode="bilinear", align_corners=False).argmax(dim=1)
    told = labels_on_grid(labels, size)
    now = torch.where((told > n_old) & (told != IGNORE), told, old)
    return region_triplets(student, teacher, old, now, n_old=n_old, min_cells=min_cells, margin=margin)


def region_triplets(
    student: Tensor,
    teacher: Tensor,
    old_regions: Tensor,
    regions: Tensor,
    *,
    n_old: int,
    n_ids: int = IGNORE,
    min_cells: int = 16,
    margin: float = 1.0,
) -> Tensor:
    """`region_contrast` for given regions.

    student, teacher: (B, D, h, w). old_regions: (B, h, w), ids 1..n_old are the classes that are anchors and positives.
    regions: (B, h, w), ids 0..n_ids-1 are what negatives are taken from; others are no region.
    """
    if student.ndim != 4 or student.shape != teacher.shape:
        raise KitError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal (B, D, h, w) maps.")
    with torch.autocast(student.device.type, enabled=False):
        anchor, cells = _region_means(teacher.detach(), old_regions, 1 + n_old)
        positive, _ = _region_means(student, old_regions, 1 + n_old)
        others, there = _region_means(student, regions, n_ids)
        anchor, positive = anchor[:, 1:], positive[:, 1:]
        own = torch.arange(1, 1 + n_old, device=anchor.device).unsqueeze(1) == torch.arange(n_ids, device=anchor.device)
        allowed = (there > 0).unsqueeze(1) & ~own  # (B, n_old, n_ids)
        alike = (anchor @ others.detach().mT).masked_fill(~allowed, -math.inf)  # of unit vectors: the nearest is the most alike
        negative = others.take_along_dim(alike.argmax(dim=2, keepdim=True), dim=1)
        triplets = ((anchor - positive).norm(dim=2) - (anchor - negative).norm(dim=2) + margin).relu()
        counts = (cells[:, 1:] >= min_cells) & allowed.any(dim=2)
        return torch.where(counts, triplets, 0).sum() / counts.sum().clamp(min=1)


def _region_means(features: Tensor, regions: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Per image: L2-normalised mean features (B, n, D) of the regions 0..n-1, 0 where there are none, and cells (B, n)."""
    batch = len(features)
    known = (regions >= 0) & (regions < n)
    image = torch.arange(batch, device=regions.device).view(-1, 1, 1)
    means, cells = class_means(features, torch.where(known, regions + n * image, -1), batch * n)
    return F.normalize(means, dim=1).view(batch, n, -1), cells.view(batch, n)


# --- LAG: over the batch ---


def decoupled_contrast(
    student: Tensor, teacher: Tensor, *, temperature: float = 0.5, sigma: float | None = None, normalise: bool = False
) -> Tensor:
    """LAG's decoupled contrast: image i in the new model against i in the old one; all other images of both are negatives.

    Args:
        student, teacher: (B, ..) features, flattened per image; no gradient flows into the teacher.
        temperature: divides every inner product.
        sigma: weighs the positives by 2 - B * softmax over the batch of (inner product / sigma), with gradient through the
            weight (an option of the released code that no run used). None: not.
        normalise: divide each image's features by their L2 norm (kit's own reading). False, as released, the products of
            whole maps are huge: self and positive pair are left out by adding -103.6, which is not enough then.
    Returns:
        Scalar, mean over the batch. One image has no negatives: normalised 0, with gradient 0; as released a finite number
        without meaning.
    Raises:
        KitError: if the shapes differ.
    """
    if student.ndim < 2 or student.shape != teacher.shape:
        raise KitError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal (B, ..) features.")
    if normalise and len(student) == 1:
        return _nothing(student)
    new, old = (_full(x).flatten(1) for x in (student, teacher.detach()))
    if normalise:
        new, old = F.normalize(new, dim=1), F.normalize(old, dim=1)
    return batch_contrast(new, old, temperature=temperature, sigma=sigma)


def batch_contrast(new: Tensor, old: Tensor, *, temperature: float, sigma: float | None = None) -> Tensor:
    """`decoupled_contrast` of (B, D) rows; here the gradient flows into both."""
    with torch.autocast(new.device.type, enabled=False):
        new, old = _full(new), _full(old)
        across, within = new @ old.T, new @ new.T
        left_out = torch.diag(across.new_full((len(new),), LEFT_OUT))
        negatives = torch.cat([within / temperature + left_out, across / temperature + left_out], dim=1).logsumexp(dim=1)
        positive = -across.diagonal() / temperature
        if sigma is not None:
            positive = positive * (2 - len(new) * (across.diagonal() / sigma).softmax(dim=0))
        return (positive + negatives).mean()


def _nothing(x: Tensor) -> Tensor:
    """0 with gradient 0, whatever x holds."""
    return _full(x).flatten()[:0].sum()
