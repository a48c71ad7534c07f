"""Metrics: arithmetic on one confusion matrix per evaluation, rows = truth, columns = prediction.

All values are fractions in [0, 1]. The matrix is summed over all pixels of all images first: IoUs are never averaged over
images. A quantity without any pixel behind it is NaN, and means skip NaN; the papers' other habits are named options.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cisskit.errors import KitError, unknown
from cisskit.protocols import Protocol
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step

Floats = npt.NDArray[np.float64]
Classes = slice | Sequence[int] | range | npt.NDArray[np.int64] | int

ABSENT = ("nan", "skip", "zero")
FUTURE_AS = ("ignore", "background")


class ConfusionMatrix:
    """Counts (truth, prediction) pairs on the device, without waiting for it until `numpy`.

    Pixels labelled 255, and labels that have no row, are dropped. Predictions without a column are a fault of the model's
    ``predict``: they are kept apart, and `numpy` raises.
    """

    def __init__(self, n_truth: int, n_pred: int | None = None, device: torch.device | str = "cpu") -> None:
        self.n_truth, self.n_pred = n_truth, n_pred if n_pred is not None else n_truth
        # two bins behind the matrix: dropped pixels, impossible predictions
        self._counts = torch.zeros(self.n_truth * self.n_pred + 2, dtype=torch.int64, device=device)

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Add pixels: two integer tensors of one shape, in any layout. Raises `KitError` if the shapes differ."""
        if labels.shape != predictions.shape:
            raise KitError(f"labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} must have the same shape.")
        labels, predictions = labels.to(self._counts.device).long(), predictions.to(self._counts.device).long()
        size = self.n_truth * self.n_pred
        counted = (labels >= 0) & (labels < self.n_truth) & (labels != IGNORE)
        possible = (predictions >= 0) & (predictions < self.n_pred)
        cell = torch.where(possible, labels * self.n_pred + predictions, size + 1)
        cell = torch.where(counted, cell, size)
        self._counts += torch.bincount(cell.flatten(), minlength=size + 2)

    def numpy(self) -> npt.NDArray[np.int64]:
        """int64 (n_truth, n_pred). Raises `KitError` if a counted pixel was predicted as a class without a column."""
        counts = self._counts.cpu().numpy()
        if counts[-1]:
            raise KitError(f"{counts[-1]} predictions are not class ids 0..{self.n_pred - 1}; check the method's predict().")
        return counts[:-2].reshape(self.n_truth, self.n_pred).copy()


def settle_future(confusion: npt.ArrayLike, n_seen: int, future_as: str = "ignore") -> npt.NDArray[np.int64]:
    """The matrix over background and seen classes, (n_seen + 1, n_seen + 1), from one over all classes of the scenario.

    future_as: "ignore" drops pixels of classes that have not arrived; "background" counts them as background, so that
    predicting background there is right. They agree at the last step.
    Raises `KitError` if a future class was predicted, or for an unknown ``future_as``.
    """
    if future_as not in FUTURE_AS:
        raise unknown("treatment of future classes", future_as, FUTURE_AS)
    full = np.asarray(confusion)
    if full.ndim != 2 or min(full.shape) <= n_seen:
        raise KitError(f"a confusion matrix of shape {full.shape} does not hold background and {n_seen} seen classes.")
    if full[:, n_seen + 1 :].any():
        raise KitError(f"classes above {n_seen} were predicted before they arrived; check the method's predict().")
    seen = full[: n_seen + 1, : n_seen + 1].copy()
    if future_as == "background":
        seen[BACKGROUND] += full[n_seen + 1 :, : n_seen + 1].sum(axis=0)
    return seen


def class_iou(confusion: npt.ArrayLike, absent: str = "nan", epsilon: float = 0.0) -> Floats:
    """IoU per class (C,): hits / (truth + predicted - hits), from a square confusion matrix.

    absent: which classes have no IoU.
        "nan" (the kit): NaN where a class occurs neither in truth nor in prediction; predicted only is 0.
        "skip" (MiB, PLOP, RCIL): NaN wherever there is no truth.
        "zero" (SSUL, IDEC, LAG, DKD): 0 in both cases, so that means count them.
    epsilon: added to the divisor. The released MiB and SSUL code adds 1e-6, DKD's -1e-6; the kit 0.
    """
    hits, truth, predicted = _margins(confusion)
    return _ratio(hits, truth + predicted - hits, truth, absent, epsilon)


def class_accuracy(confusion: npt.ArrayLike, absent: str = "nan", epsilon: float = 0.0) -> Floats:
    """Share of each class's pixels that were found (C,), that is recall. Without truth: NaN, or 0 if absent="zero"."""
    hits, truth, _ = _margins(confusion)
    return _ratio(hits, truth, truth, absent, epsilon)


def pixel_accuracy(confusion: npt.ArrayLike, classes: Classes = slice(None)) -> float:
    """Share of pixels that were found, of all or of the pixels whose truth is among ``classes``. NaN without pixels."""
    hits, truth, _ = _margins(confusion)
    return _share(hits[_index(classes)].sum(), truth[_index(classes)].sum())


def frequency_weighted_iou(confusion: npt.ArrayLike, epsilon: float = 0.0) -> float:
    """IoU weighted by each class's share of the true pixels. NaN without pixels."""
    _, truth, _ = _margins(confusion)
    return _share(float((truth * np.nan_to_num(class_iou(confusion, epsilon=epsilon))).sum()), truth.sum())


def mean_iou(iou: npt.ArrayLike, classes: Classes = slice(None), drop_zero: bool = False) -> float:
    """Plain mean of the IoUs of ``classes``, NaN skipped; NaN when none is left. Always print which classes were meant.

    drop_zero: also skip classes whose IoU is exactly 0, as MBS and AMIS do for "all". It hides classes never got right.
    """
    values = np.asarray(iou, dtype=np.float64)[_index(classes)]
    values = values[~np.isnan(values)]
    if drop_zero:
        values = values[values != 0]
    return float(values.mean()) if values.size else float("nan")


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b): the papers' hIoU of old and new. NaN when both are 0 or one is NaN."""
    return _share(2 * a * b, a + b)


def share_predicted(confusion: npt.ArrayLike, rows: Classes, columns: Classes = BACKGROUND) -> float:
    """Share of the pixels whose truth is among ``rows`` that were predicted as ``columns``. NaN without such pixels.

    ``share_predicted(n, step.old)`` is the share "old -> background", ``share_predicted(n, 0, step.new)`` "background -> new".
    """
    chosen = np.asarray(confusion, dtype=np.float64)[_index(rows)]
    return _share(chosen[:, _index(columns)].sum(), chosen.sum())


def stolen_by(confusion: npt.ArrayLike, c: int, top: int = 3) -> dict[str, list[tuple[int, int]]]:
    """Where class c loses pixels: the largest off-diagonal entries as (class, pixels), zeros left out.

    "row": what its pixels were taken for. "column": what was taken for it.
    """
    counts = np.array(confusion, dtype=np.int64)
    counts[c, c] = 0
    largest = {}
    for name, line in (("row", counts[c]), ("column", counts[:, c])):
        order = np.argsort(-line, kind="stable")[:top]
        largest[name] = [(int(k), int(line[k])) for k in order if line[k]]
    return largest


def forgetting(iou_by_step: npt.ArrayLike) -> Floats:
    """Best IoU at an earlier step minus the IoU at the last one, per class; negative if it improved.

    iou_by_step: (T, C), NaN where a class was not seen yet. Returns (C,), NaN for classes without an earlier step.
    """
    table = np.asarray(iou_by_step, dtype=np.float64)
    best = np.fmax.reduce(table[:-1], axis=0, initial=np.nan)  # fmax passes over NaN without a warning
    return best - table[-1]


def group_iou(iou_by_step: npt.ArrayLike, groups: Sequence[Classes]) -> Floats:
    """A[t, k] = mean IoU of class group k after step t: (T, len(groups)) from (T, C), NaN where the group was not seen."""
    return np.array([[mean_iou(row, group) for group in groups] for row in np.asarray(iou_by_step, dtype=np.float64)])


def backward_transfer(by_group: npt.ArrayLike) -> float:
    """Mean over k < T-1 of A[T-1, k] - A[k, k]: below 0 when groups were forgotten. NaN for a single step.

    by_group: (T, T) as from `group_iou`, group k taught at step k (background apart).
    """
    a = _square(by_group)
    return mean_iou((a[-1] - np.diag(a))[:-1])


def plasticity(by_group: npt.ArrayLike) -> float:
    """Mean over t >= 1 of A[t, t]: how well new groups were learnt at their own step. NaN for a single step."""
    return mean_iou(np.diag(_square(by_group))[1:])


class PseudoLabelQuality:
    """How good a method's training targets are where the label said background.

    Compares with the full truth, which training never sees: for reports only. Counts accumulate over batches.
    """

    def __init__(self, scenario: Scenario, step: Step, device: torch.device | str = "cpu") -> None:
        self.scenario, self.step = scenario, step
        # one column more than classes: targets that were left open (255)
        self._matrix = ConfusionMatrix(len(scenario.classes), step.n_seen + 2, device)

    def update(self, truth: Tensor, told: Tensor, targets: Tensor) -> None:
        """Add a batch of label maps of one shape.

        truth: learned ids of ALL classes of the scenario, 255 unknown. told: the labels of this step as the data gives
        them. targets: what the method made of them. Only pixels told background whose truth is known count.
        """
        told = told.to(truth.device)
        truth = torch.where(told == BACKGROUND, truth.long(), IGNORE)
        unsure = self.step.n_seen + 1
        self._matrix.update(truth, torch.where(targets == IGNORE, unsure, targets.long()))

    def result(self) -> dict[str, Any]:
        """JSON-ready shares, None where nothing was counted.

        "pixels": counted. "coverage": share with a target other than 255. "precision", "recall": {class name: value} for
        background and old classes; correct means target = truth, so a future object left background is not "correct".
        "contamination": share of future-class pixels that got an old label. "background_truth": what the pixels told
        background truly are: {"background", "old", "new", "future"} (the size of the background shift).
        """
        counts, step = self._matrix.numpy().astype(np.float64), self.step
        future, given = slice(step.n_seen + 1, None), counts[:, : step.n_seen + 1]
        total, names = counts.sum(), self.scenario.classes
        ids = range(step.n_old + 1)
        return {
            "pixels": int(total),
            "coverage": _json(_share(given.sum(), total)),
            "precision": {names[c]: _json(_share(given[c, c], given[:, c].sum())) for c in ids},
            "recall": {names[c]: _json(_share(given[c, c], counts[c].sum())) for c in ids},
            "contamination": _json(_share(counts[future, step.old].sum(), counts[future].sum())),
            "background_truth": {
                name: _json(_share(counts[rows].sum(), total))
                for name, rows in (("background", slice(0, 1)), ("old", step.old), ("new", step.new), ("future", future))
            },
        }


def summarise(
    confusion: npt.ArrayLike,
    scenario: Scenario,
    step: Step,
    protocol: Protocol,
    *,
    earlier: Sequence[Sequence[float | None] | Floats] = (),
) -> dict[str, Any]:
    """Everything metrics.json says about one evaluation, JSON-ready (NaN as None).

    Args:
        confusion: over ALL classes of the scenario, (n_all + 1, n_all + 1), or with at least n_seen + 1 columns.
        step: the step that was just trained.
        protocol: future, absent and unlabelled pixels, and what the means cover.
        earlier: class IoUs after each earlier step, in order, background first; each as long as that step had classes.
    Returns:
        "iou": {class name: value}. "absent_classes": names without an IoU. "miou" and "hiou": each mean with the range of
        learned ids it covers; "old" are the base classes and "new" all later ones, as in the papers, with "classes" None
        where there are none. "old", "new", "all" and "hiou" cover what the protocol says, the longer names what they say;
        a protocol's drop_zero concerns "all" alone. "forgetting": per class of earlier steps, "forgetting_mean" over them,
        and the background on its own, since it belongs to no step. "old_to_background", "new_to_background": relative to
        this step.
    """
    seen = settle_future(confusion, step.n_seen, protocol.future_as)
    if not protocol.zero_at_test:
        seen[BACKGROUND] = 0
    iou, names = class_iou(seen, protocol.absent, protocol.epsilon), scenario.classes
    base, later = scenario.base, range(scenario.base.stop, step.n_seen + 1)
    wide, narrow = range(base.stop), range(step.n_seen + 1)
    old, all_ = wide if protocol.old_with_background else base, narrow[0 if protocol.all_with_background else 1 :]
    ranges = {
        "old": old,
        "new": later,
        "all": all_,
        "old_with_background": wide,
        "old_without_background": base,
        "all_with_background": narrow,
        "all_without_background": narrow[1:],
    }
    means = {name: {"classes": class_range(ids), "value": _json(mean_iou(iou, ids))} for name, ids in ranges.items()}
    means["all"]["value"] = _json(mean_iou(iou, all_, drop_zero=protocol.drop_zero))
    table = np.full((len(earlier) + 1, step.n_seen + 1), np.nan)
    for row, values in zip(table, [*earlier, iou], strict=True):
        row[: len(values)] = np.asarray(values, dtype=np.float64)  # None becomes NaN
    drop = forgetting(table)
    earlier_classes = range(1, step.n_old + 1)
    return {
        "absent_classes": [names[c] for c in range(step.n_seen + 1) if np.isnan(iou[c])],
        "pixels": int(seen.sum()),
        "iou": {names[c]: _json(iou[c]) for c in range(step.n_seen + 1)},
        "miou": means,
        "hiou": {
            "classes": f"{class_range(old)} and {class_range(later)}" if later else None,
            "value": _json(harmonic_mean(mean_iou(iou, old), mean_iou(iou, later))),
        },
        "pixel_accuracy": _json(pixel_accuracy(seen)),
        "forgetting": {names[c]: _json(drop[c]) for c in earlier_classes},
        "forgetting_mean": _json(mean_iou(drop, earlier_classes)),
        "forgetting_background": _json(drop[BACKGROUND]),
        "old_to_background": _json(share_predicted(seen, step.old)),
        "new_to_background": _json(share_predicted(seen, step.new)),
    }


def _margins(confusion: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Diagonal, row sums and column sums."""
    counts = _square(confusion)
    return np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)


def _square(matrix: npt.ArrayLike) -> Floats:
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise KitError(f"a square matrix is needed, this one has shape {counts.shape}; settle_future() makes one.")
    return counts


def _ratio(hits: Floats, whole: Floats, truth: Floats, absent: str, epsilon: float) -> Floats:
    if absent not in ABSENT:
        raise unknown("treatment of absent classes", absent, ABSENT)
    ratio = np.divide(hits, whole + epsilon, out=np.full_like(hits, 0.0 if absent == "zero" else np.nan), where=whole > 0)
    return np.where(truth > 0, ratio, np.nan) if absent == "skip" else ratio


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _index(classes: Classes) -> slice | npt.NDArray[np.int64]:
    """Class ids for indexing; one id keeps its axis."""
    return classes if isinstance(classes, slice) else np.atleast_1d(np.asarray(classes, dtype=np.int64))


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def class_range(ids: range) -> str | None:
    """How tables and metrics.json name classes: ``"1-5"``, ``"6"``, or None for no class."""
    if not ids:
        return None
    return f"{ids[0]}-{ids[-1]}" if len(ids) > 1 else f"{ids[0]}"
