"""Does a score of 0.8 mean "right in 80 of 100 cases"? Arithmetic on scores in [0, 1] and whether each was right.

A `Curve` groups cases by their score; everything else is computed from its counts, so that a curve of many narrow bins can be
kept and grouped again (`Curve.narrowed`, `Curve.grouped`) without looking at the cases.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cisskit.errors import KitError

Floats = npt.NDArray[np.float64]

WIDTH_BINS = 15
"""Bins of equal width behind an expected calibration error."""


@dataclass(frozen=True)
class Curve:
    """Cases grouped by score, lowest first. Per group (K,): how many cases, the sum of their scores, how many were right."""

    count: Floats
    score_sum: Floats
    right: Floats

    @property
    def score(self) -> Floats:
        """Mean score f_k; NaN for an empty group."""
        return ratio(self.score_sum, self.count)

    @property
    def accuracy(self) -> Floats:
        """Share that was right o_k; NaN for an empty group."""
        return ratio(self.right, self.count)

    @property
    def total(self) -> float:
        return float(self.count.sum())

    def grouped(self, bins: int) -> "Curve":
        """At most ``bins`` groups of about equal count, of neighbouring groups; one that holds more cases stays whole."""
        there = self.count > 0
        middle = (np.cumsum(self.count) - self.count / 2)[there] / max(self.total, 1)
        _, group = np.unique(np.minimum((middle * bins).astype(np.int64), bins - 1), return_inverse=True)
        n = int(group.max(initial=-1)) + 1
        parts = self.count, self.score_sum, self.right
        return Curve(*(np.bincount(group, part[there], n).astype(np.float64) for part in parts))

    def widened(self, bins: int) -> "Curve":
        """``bins`` groups, each of the same number of neighbours. Raises `KitError` where K is no multiple of it."""
        if len(self.count) % bins:
            raise KitError(f"a curve of {len(self.count)} groups cannot be put into {bins} of equal width; choose a divisor.")
        return Curve(*(part.reshape(bins, -1).sum(axis=1) for part in (self.count, self.score_sum, self.right)))

    def narrowed(self, keep: slice) -> "Curve":
        """The groups ``keep`` alone, e.g. those above a threshold."""
        return Curve(self.count[keep], self.score_sum[keep], self.right[keep])


class Brier(NamedTuple):
    """Parts of a Brier score. calibration: mean squared gap of score and share of right ones, 0 is best. resolution: how far the
    groups' shares of right ones spread, more is better. uncertainty: o (1 - o) for the share o of right ones over all cases: what
    a constant score of o would get. score: calibration - resolution + uncertainty, 0 is best."""

    calibration: float
    resolution: float
    uncertainty: float
    score: float


def equal_count_edges(scores: npt.ArrayLike, bins: int = 10) -> Floats:
    """(K + 1,) quantiles, linear between cases, as `pandas.qcut` cuts. K is ``bins``, or less where more than a bin's share of
    the scores are equal.

    Raises `KitError` without a score.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not values.size:
        raise KitError("no score to make bins of equal count from; check the selection of cases.")
    return np.asarray(pd.qcut(values, bins, labels=False, retbins=True, duplicates="drop")[1], dtype=np.float64)


def equal_width_edges(bins: int = WIDTH_BINS) -> Floats:
    """(bins + 1,) from 0 to 1."""
    return np.linspace(0, 1, bins + 1)


def reliability(scores: npt.ArrayLike, right: npt.ArrayLike, edges: npt.ArrayLike) -> Curve:
    """The reliability curve of cases: bins closed at the right, the lowest edge included.

    scores: of any shape, in [0, 1]. right: same shape, true (1) where the prediction was right. edges: (K + 1,), ascending, from
    the lowest score or below to the highest or above; edges that coincide count once.
    Raises `KitError` if shapes differ, a score is NaN, or one lies outside the edges.
    """
    values, hits = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    bounds = np.unique(np.asarray(edges, dtype=np.float64))
    if values.shape != hits.shape:
        raise KitError(f"scores {values.shape} and right {hits.shape} must have the same shape: one truth value per score.")
    values, hits = values.ravel(), hits.ravel()
    if values.size and not (bounds[0] <= values.min() and values.max() <= bounds[-1]):  # NaN is in no range
        raise KitError(f"scores run from {values.min():g} to {values.max():g}, the edges from {bounds[0]:g} to {bounds[-1]:g}.")
    n = max(len(bounds) - 1, 1)
    at = np.clip(np.searchsorted(bounds, values, side="left") - 1, 0, n - 1)
    return Curve(*(np.bincount(at, weights=w, minlength=n).astype(np.float64) for w in (None, values, hits)))


def brier(curve: Curve) -> Brier:
    """Brier score of a curve: CAL - RES + UNC with CAL = Σ n_k (f_k - o_k)² / N, RES = Σ n_k (o_k - o)² / N, UNC = o (1 - o).

    n_k, f_k, o_k: `Curve.count`, `Curve.score`, `Curve.accuracy`; o the share of right ones of all N. All cases of a bin count as
    its mean score, so that this is the mean squared error but for the spread of scores inside the bins. All NaN without a case.
    """
    if not curve.total:
        return Brier(*[float("nan")] * 4)
    there = curve.count > 0
    weight = curve.count[there] / curve.total
    f, o_k, o = curve.score[there], curve.accuracy[there], float(curve.right.sum()) / curve.total
    calibration = float((weight * (f - o_k) ** 2).sum())
    resolution = float((weight * (o_k - o) ** 2).sum())
    uncertainty = o * (1 - o)
    return Brier(calibration, resolution, uncertainty, calibration - resolution + uncertainty)


def expected_calibration_error(curve: Curve) -> float:
    """Σ n_k / N |o_k - f_k|: how far scores are from shares on average. NaN without a case.

    As published with 15 bins of equal width: ``reliability(scores, right, equal_width_edges())``.
    """
    if not curve.total:
        return float("nan")
    there = curve.count > 0
    return float((curve.count[there] * np.abs(curve.accuracy - curve.score)[there]).sum() / curve.total)


def ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """(n,) part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
