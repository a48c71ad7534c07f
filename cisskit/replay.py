"""Exemplar memory: which few images of earlier steps are kept (DKD-M; SSUL-M draws alike).

An exemplar is remembered by file name and by the classes it was seen to show. Three pure steps: `presence_of` lists the
classes of the images of the step that ends, `shuffled` fixes both orders, `draw` picks. How the exemplars are then trained
with is the method's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cisskit.errors import KitError
from cisskit.scenario import BACKGROUND, IGNORE


@dataclass(frozen=True)
class Exemplar:
    """An image by name, and the learned ids (no background, no 255) it shows."""

    name: str
    classes: tuple[int, ...]


def shuffled(
    candidates: Sequence[Exemplar], classes: Sequence[int], rng: np.random.RandomState
) -> tuple[list[Exemplar], list[int]]:
    """Both orders at random, candidates first, then classes: the order in which the released code uses up its generator.

    A `numpy.random.RandomState` (the legacy generator) with the same seed reproduces its draw.
    """
    # permutation(n) draws the same numbers as the in-place shuffle of n items
    candidates = [candidates[i] for i in rng.permutation(len(candidates))]
    return candidates, [classes[i] for i in rng.permutation(len(classes))]


def draw(candidates: Sequence[Exemplar], classes: Sequence[int], size: int) -> list[Exemplar]:
    """Go round the classes, taking for each the first remaining candidate that shows it, until ``size`` are taken.

    Args:
        candidates: in the order they are scanned; an image that comes twice can be drawn twice, as in the released code.
        classes: in the order they take turns. A class without remaining candidates is skipped.
        size: exemplars in all.
    Returns:
        The exemplars, grouped by the class they were drawn for (ascending ids), inside a class in order of drawing: the
        released code keeps them so, and the next step's shuffle starts from this order. Fewer than ``size`` when a whole
        round finds nothing; the released code loops for ever there.
    Raises:
        KitError: for a negative size.
    """
    if size < 0:
        raise KitError(f"the memory cannot hold {size} exemplars; choose 0 (no memory) or more.")
    shows = [frozenset(candidate.classes) for candidate in candidates]
    taken = [False] * len(candidates)
    drawn: dict[int, list[Exemplar]] = {c: [] for c in classes}
    reached = dict.fromkeys(drawn, 0)  # a candidate passed over for a class never comes back: each class reads the list once
    turns, left = list(drawn), size
    while turns and left:
        c = turns.pop(0)
        i = reached[c]
        while i < len(shows) and (taken[i] or c not in shows[i]):
            i += 1
        if i == len(shows):
            continue  # nothing left for this class: it takes no more turns
        drawn[c].append(candidates[i])
        taken[i], reached[c], left = True, i + 1, left - 1
        turns.append(c)
    return [exemplar for c in sorted(drawn) for exemplar in drawn[c]]


@torch.no_grad()
def presence_of(labels: Tensor, logits: Tensor | None = None, *, threshold: float = 0.9) -> list[tuple[int, ...]]:
    """Classes that each image shows: those in its labels, completed by what a model is sure of.

    Args:
        labels: (B, ...) uint8 or int64, masked to the classes of the step that ends; 0 and 255 are not listed.
        logits: (B, 1 + n_old, ...) of the same pixels, channel 0 auxiliary and ignored. At pixels labelled exactly 0 the
            most likely class is added where its sigmoid is >= ``threshold``. None (the first memory): labels alone.
    Returns:
        One ascending tuple of learned ids per image.
    """
    labels = labels.long()
    if logits is not None:
        want = (labels.shape[0], *labels.shape[1:])
        if (logits.shape[0], *logits.shape[2:]) != want or logits.shape[1] < 2:
            raise KitError(
                f"logits {tuple(logits.shape)} do not cover labels {tuple(labels.shape)}: (B, 1 + n_old, ...) is needed."
            )
        best, channel = logits[:, 1:].sigmoid().max(dim=1)
        labels = torch.where((labels == BACKGROUND) & (best >= threshold), channel + 1, labels)
    present = torch.zeros(len(labels), 256, dtype=torch.bool, device=labels.device)
    present.scatter_(1, labels.flatten(1), True)
    present[:, [BACKGROUND, IGNORE]] = False
    return [tuple(row.nonzero().flatten().tolist()) for row in present.cpu()]
