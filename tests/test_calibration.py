"""Calibration: by hand, against the mean squared error, against loops over cases."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from cisskit.calibration import (
    Curve,
    brier,
    equal_count_edges,
    equal_width_edges,
    expected_calibration_error,
    reliability,
)
from cisskit.errors import KitError


def cases(n: int = 400, seed: int = 0, digits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scores and whether right: over-confident at random."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n).round(digits)
    return scores, rng.random(n) < scores**2


def test_two_groups_by_hand():
    curve = Curve(np.array([400.0, 100.0]), np.array([380.0, 65.0]), np.array([380.0, 40.0]))
    assert curve.score == pytest.approx([0.95, 0.65]) and curve.accuracy == pytest.approx([0.95, 0.40])
    parts = brier(curve)
    assert parts.calibration == pytest.approx(0.2 * 0.25**2)
    assert parts.resolution == pytest.approx(0.8 * 0.11**2 + 0.2 * 0.44**2)
    assert parts.uncertainty == pytest.approx(0.84 * 0.16)
    assert parts.score == pytest.approx(parts.calibration - parts.resolution + parts.uncertainty)
    assert expected_calibration_error(curve) == pytest.approx(0.2 * 0.25)


def test_bins_are_closed_at_the_right_and_hold_the_lowest_edge():
    curve = reliability([0.0, 0.5, 0.50001, 1.0], [1, 0, 1, 1], [0.0, 0.5, 1.0])
    assert curve.count.tolist() == [2, 2] and curve.right.tolist() == [1, 2]
    assert curve.score == pytest.approx([0.25, 0.750005])


def test_one_score_per_bin_is_the_mean_squared_error():
    scores, right = cases(digits=1)
    parts = brier(reliability(scores, right, np.linspace(-0.05, 1.05, 12)))
    assert parts.score == pytest.approx(((scores - right) ** 2).mean(), abs=1e-12)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_expected_calibration_error_equals_a_loop(bins):
    scores, right = cases(seed=bins)
    edges, total = equal_width_edges(bins), 0.0
    for low, high in pairwise(edges):
        inside = (scores > low) & (scores <= high)
        total += abs(right[inside].mean() - scores[inside].mean()) * inside.mean() if inside.any() else 0.0
    assert expected_calibration_error(reliability(scores, right, edges)) == pytest.approx(total, abs=1e-12)


def test_a_teacher_that_means_what_it_says_has_no_error():
    scores = np.repeat([0.25, 0.75], 8)
    right = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    curve = reliability(scores, right, equal_width_edges())
    assert expected_calibration_error(curve) == pytest.approx(0) and brier(curve).calibration == pytest.approx(0)
    assert len(equal_width_edges()) == 16


def test_edges_of_equal_count():
    scores, right = cases()
    edges = equal_count_edges(scores, 8)
    assert reliability(scores, right, edges).count.tolist() == [50] * 8
    assert edges[0] == scores.min() and edges[-1] == scores.max()


@pytest.mark.parametrize("seed", range(20))
def test_groups_of_equal_count_are_those_of_pandas(seed):
    """Also where scores are equal, or lie on an edge."""
    scores, right = cases(37 + 11 * seed, seed, digits=1 + seed % 3)
    table = pd.DataFrame({"x": scores, "y": right, "at": pd.qcut(scores, 7, labels=False, duplicates="drop")}).groupby("at")
    curve = reliability(scores, right, equal_count_edges(scores, 7))
    there = curve.count > 0
    assert curve.count[there].tolist() == table.size().tolist()
    assert curve.score[there] == pytest.approx(table["x"].mean().to_numpy()), "means of groups"
    assert curve.accuracy[there] == pytest.approx(table["y"].mean().to_numpy())


def test_equal_scores_stay_in_one_group():
    scores, right = np.array([0.2, 0.4] + [1.0] * 8), np.array([0, 1] + [1] * 8)
    edges = equal_count_edges(scores, 5)
    assert len(edges) < 6, "edges that coincide count once"
    curve = reliability(scores, right, edges)
    assert curve.count.max() == 8 and curve.total == 10
    assert reliability(scores, right, [0, 0.3, 0.3, 1]).count.tolist() == [1, 9]
    same = reliability([0.5] * 3, [1, 1, 0], equal_count_edges([0.5] * 3))
    assert same.count.tolist() == [3] and same.accuracy == pytest.approx([2 / 3])


def test_narrow_groups_can_be_put_together():
    scores, right = cases()
    narrow = reliability(scores, right, np.linspace(0, 1, 1501))
    wide = narrow.widened(15)
    exact = reliability(scores, right, equal_width_edges())
    for part in ("count", "score_sum", "right"):
        assert getattr(wide, part) == pytest.approx(getattr(exact, part))
    grouped = narrow.grouped(10)
    assert len(grouped.count) == 10 and grouped.count == pytest.approx([40] * 10, abs=1) and grouped.total == 400
    assert brier(grouped).score == pytest.approx(brier(reliability(scores, right, equal_count_edges(scores))).score, abs=2e-3)
    assert narrow.narrowed(slice(750, None)).total == (scores > 0.5).sum()
    with pytest.raises(KitError, match="1500 groups cannot be put into 7"):
        narrow.widened(7)


def test_a_large_group_stays_whole():
    curve = Curve(np.array([1.0, 0, 9, 1]), np.array([0.1, 0, 8.1, 0.95]), np.array([0.0, 0, 9, 1]))
    assert curve.grouped(4).count.tolist() == [1, 9, 1]
    assert len(Curve(np.zeros(3), np.zeros(3), np.zeros(3)).grouped(4).count) == 0


def test_without_a_case_there_is_no_number():
    empty = reliability([], [], equal_width_edges())
    assert np.isnan(brier(empty)).all() and np.isnan(expected_calibration_error(empty)) and np.isnan(empty.score).all()
    with pytest.raises(KitError, match="no score to make bins"):
        equal_count_edges([])


def test_what_does_not_fit_is_said():
    with pytest.raises(KitError, match="must have the same shape"):
        reliability([0.1, 0.2], [1], equal_width_edges())
    for wrong in (1.2, -0.1, float("nan")):
        with pytest.raises(KitError, match="scores run from"):
            reliability([0.5, wrong], [1, 0], equal_width_edges())
