"""Metrics: small matrices worked by hand, torchmetrics as an oracle, every convention for absent classes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from cisskit.errors import KitError
from cisskit.metrics import (
    ConfusionMatrix,
    PseudoLabelQuality,
    backward_transfer,
    class_accuracy,
    class_iou,
    forgetting,
    frequency_weighted_iou,
    group_iou,
    harmonic_mean,
    mean_iou,
    pixel_accuracy,
    plasticity,
    settle_future,
    share_predicted,
    stolen_by,
    summarise,
)
from cisskit.protocols import protocol
from cisskit.scenario import Scenario

NAN = float("nan")
TWO = [[3, 1], [2, 4]]
# class 2 is predicted but never true, class 3 occurs nowhere
ABSENT = [[5, 0, 1, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def equal(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-12)


# --- counting ---


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_counting_by_hand_over_two_calls(dtype):
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[0, 0, 1], [1, 255, 0]], dtype=dtype), torch.tensor([[0, 1, 1], [0, 1, 0]]))
    matrix.update(torch.tensor([[1]], dtype=dtype), torch.tensor([[0]]))
    assert matrix.numpy().dtype == np.int64
    assert matrix.numpy().tolist() == [[2, 1], [2, 1]]


def test_labels_without_a_row_are_dropped():
    matrix = ConfusionMatrix(2, 3)
    matrix.update(torch.tensor([0, 1, 2, 254, 255, -1]), torch.tensor([0, 2, 1, 1, 1, 1]))
    assert matrix.numpy().tolist() == [[1, 0, 0], [0, 0, 1]]


def test_255_is_dropped_even_where_there_are_that_many_rows():
    matrix = ConfusionMatrix(256, 2)
    matrix.update(torch.tensor([255]), torch.tensor([1]))
    assert matrix.numpy().sum() == 0


def test_impossible_predictions_are_an_error_only_where_they_count():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([255, 0]), torch.tensor([7, 0]))
    assert matrix.numpy().sum() == 1
    matrix.update(torch.tensor([1, 1]), torch.tensor([2, -1]))
    with pytest.raises(KitError, match=r"2 predictions are not class ids 0\.\.1"):
        matrix.numpy()


def test_counting_leaves_its_inputs_alone_and_wants_equal_shapes():
    labels, predictions = torch.tensor([0, 255, 1]), torch.tensor([1, 0, 1])
    before = labels.clone(), predictions.clone()
    matrix = ConfusionMatrix(2)
    matrix.update(labels, predictions)
    assert torch.equal(labels, before[0]) and torch.equal(predictions, before[1])
    with pytest.raises(KitError, match="same shape"):
        matrix.update(labels, predictions[:2])


def test_the_result_is_a_copy():
    matrix = ConfusionMatrix(2)
    matrix.numpy()[:] = 9
    assert matrix.numpy().sum() == 0


def test_torchmetrics_agrees():
    g = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(6, (4, 20, 30), generator=g) for _ in range(2))
    labels[torch.rand(labels.shape, generator=g) < 0.1] = 255
    options = {"num_classes": 6, "ignore_index": 255}
    matrix = ConfusionMatrix(6)
    for k in range(4):
        matrix.update(labels[k].byte(), predictions[k])
    confusion = matrix.numpy()
    assert confusion.tolist() == multiclass_confusion_matrix(predictions, labels, **options).tolist()
    equal_single = {"rtol": 1e-6}
    np.testing.assert_allclose(
        class_iou(confusion), multiclass_jaccard_index(predictions, labels, average=None, **options), **equal_single
    )
    np.testing.assert_allclose(
        class_accuracy(confusion), multiclass_accuracy(predictions, labels, average=None, **options), **equal_single
    )
    accuracy = multiclass_accuracy(predictions, labels, average="micro", **options)
    assert pixel_accuracy(confusion) == pytest.approx(accuracy.item(), rel=1e-6)
    weighted = multiclass_jaccard_index(predictions, labels, average="weighted", **options)
    assert frequency_weighted_iou(confusion) == pytest.approx(weighted.item(), rel=1e-6)


# --- from the matrix ---


def test_two_classes_by_hand():
    equal(class_iou(TWO), [3 / 6, 4 / 7])
    equal(class_accuracy(TWO), [3 / 4, 4 / 6])
    assert pixel_accuracy(TWO) == 0.7
    assert pixel_accuracy(TWO, [1]) == pytest.approx(4 / 6)
    assert frequency_weighted_iou(TWO) == pytest.approx(0.4 * 3 / 6 + 0.6 * 4 / 7)
    equal(class_iou(TWO, epsilon=1), [3 / 7, 4 / 8])
    equal(class_accuracy(TWO, epsilon=1), [3 / 5, 4 / 7])
    assert frequency_weighted_iou(TWO, epsilon=1) == pytest.approx(0.4 * 3 / 7 + 0.6 * 4 / 8)


@pytest.mark.parametrize(
    ("absent", "iou", "accuracy"),
    [
        ("nan", [5 / 8, 2 / 4, 0, NAN], [5 / 6, 2 / 4, NAN, NAN]),
        ("skip", [5 / 8, 2 / 4, NAN, NAN], [5 / 6, 2 / 4, NAN, NAN]),
        ("zero", [5 / 8, 2 / 4, 0, 0], [5 / 6, 2 / 4, 0, 0]),
    ],
)
@pytest.mark.parametrize("epsilon", [0, 1e-6, -1e-6])
def test_absent_classes(absent, iou, accuracy, epsilon):
    np.testing.assert_allclose(class_iou(ABSENT, absent, epsilon), iou, atol=1e-6)
    np.testing.assert_allclose(class_accuracy(ABSENT, absent, epsilon), accuracy, atol=1e-6)


def test_means_follow_the_convention():
    assert mean_iou(class_iou(ABSENT)) == pytest.approx((5 / 8 + 1 / 2 + 0) / 3)
    assert mean_iou(class_iou(ABSENT, "skip")) == pytest.approx((5 / 8 + 1 / 2) / 2)
    assert mean_iou(class_iou(ABSENT, "zero")) == pytest.approx((5 / 8 + 1 / 2) / 4)
    assert mean_iou(class_iou(ABSENT, "zero"), drop_zero=True) == pytest.approx((5 / 8 + 1 / 2) / 2)
    assert mean_iou(class_iou(ABSENT), drop_zero=True) == pytest.approx((5 / 8 + 1 / 2) / 2)


def test_means_over_sets_of_classes():
    iou = [0.1, 0.2, NAN, 0.6]
    for classes in (slice(1, 4), range(1, 4), [1, 2, 3], np.array([3, 1])):
        assert mean_iou(iou, classes) == pytest.approx(0.4)
    assert mean_iou(iou, 3) == pytest.approx(0.6)
    assert math.isnan(mean_iou(iou, 2)) and math.isnan(mean_iou(iou, [])) and math.isnan(mean_iou(iou, range(0)))


def test_nothing_counted_is_nan_everywhere_without_a_warning():
    nothing = np.zeros((3, 3))
    assert np.isnan(class_iou(nothing)).all() and np.isnan(class_accuracy(nothing)).all()
    assert (class_iou(nothing, "zero", -1e-6) == 0).all()
    for value in (pixel_accuracy(nothing), frequency_weighted_iou(nothing), share_predicted(nothing, 1)):
        assert math.isnan(value)


def test_harmonic_mean():
    assert harmonic_mean(0.3, 0.6) == pytest.approx(0.4)
    assert harmonic_mean(0.0, 0.6) == 0
    assert math.isnan(harmonic_mean(0.0, 0.0)) and math.isnan(harmonic_mean(NAN, 0.5))


def test_shares_predicted():
    n = [[8, 1, 1], [3, 6, 1], [5, 2, 3]]
    assert share_predicted(n, slice(1, 2)) == 0.3
    assert share_predicted(n, [1, 2]) == 8 / 20
    assert share_predicted(n, 0, slice(1, 3)) == 0.2
    assert share_predicted(n, [2], [1]) == 0.2
    assert math.isnan(share_predicted(n, slice(1, 1)))


def test_stolen_by():
    n = np.array([[8, 1, 0, 0], [3, 6, 0, 1], [0, 2, 3, 0], [0, 7, 0, 0]])
    before = n.copy()
    assert stolen_by(n, 1) == {"row": [(0, 3), (3, 1)], "column": [(3, 7), (2, 2), (0, 1)]}
    assert stolen_by(n, 1, top=1) == {"row": [(0, 3)], "column": [(3, 7)]}
    assert (n == before).all()


def test_unknown_conventions_and_shapes_are_explained():
    with pytest.raises(KitError, match=r"unknown treatment of absent classes 'zeros'\. Did you mean 'zero'"):
        class_iou(TWO, "zeros")
    with pytest.raises(KitError, match="square"):
        class_iou(np.ones((3, 2)))
    with pytest.raises(KitError, match="Did you mean 'ignore'"):
        settle_future(np.ones((3, 3)), 2, "ignored")


# --- future classes ---

FULL = np.array([[5, 1, 0], [2, 3, 0], [4, 6, 0]])  # class 2 has not arrived


def test_future_classes_are_dropped_or_background():
    assert settle_future(FULL, 1).tolist() == [[5, 1], [2, 3]]
    assert settle_future(FULL, 1, "background").tolist() == [[9, 7], [2, 3]]
    assert settle_future(FULL[:, :2], 1, "background").tolist() == [[9, 7], [2, 3]]
    assert FULL.tolist() == [[5, 1, 0], [2, 3, 0], [4, 6, 0]]


def test_at_the_last_step_both_agree():
    assert settle_future(FULL, 2).tolist() == settle_future(FULL, 2, "background").tolist() == FULL.tolist()


def test_predicting_the_future_is_a_fault():
    with pytest.raises(KitError, match="before they arrived"):
        settle_future([[1, 0, 1], [0, 1, 0], [0, 0, 1]], 1)
    with pytest.raises(KitError, match="does not hold"):
        settle_future(TWO, 2)


# --- over steps ---

BY_STEP = [[0.9, 0.8, NAN], [0.8, 0.9, 0.5], [0.85, 0.3, 0.7]]


def test_forgetting_is_best_minus_last():
    equal(forgetting(BY_STEP), [0.9 - 0.85, 0.9 - 0.3, 0.5 - 0.7])
    equal(forgetting(BY_STEP[:2]), [0.9 - 0.8, 0.8 - 0.9, NAN])
    equal(forgetting(BY_STEP[:1]), [NAN, NAN, NAN])


def test_groups_over_steps():
    table = [[0.8, 0.6, NAN, NAN], [0.4, 0.2, 0.5, NAN], [0.2, 0.2, 0.3, 0.9]]
    a = group_iou(table, [range(0, 2), [2], 3])
    equal(a, [[0.7, NAN, NAN], [0.3, 0.5, NAN], [0.2, 0.3, 0.9]])
    assert backward_transfer(a) == pytest.approx((0.2 - 0.7 + 0.3 - 0.5) / 2)
    assert plasticity(a) == pytest.approx((0.5 + 0.9) / 2)
    assert math.isnan(backward_transfer(a[:1, :1])) and math.isnan(plasticity(a[:1, :1]))


# --- pseudo-labels ---


def test_pseudo_label_quality_by_hand():
    scenario = Scenario.named("voc-2-1")  # at step 1: old 1, 2; new 3; future 4..
    quality = PseudoLabelQuality(scenario, scenario.step(1))
    truth = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 5, 5, 255, 3, 1]])
    told = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 255]])
    targets = torch.tensor([[0, 1, 255, 1, 1, 0, 255, 1, 1, 0, 1, 3, 255]])
    quality.update(truth[:, :6].byte(), told[:, :6].byte(), targets[:, :6].byte())
    quality.update(truth[:, 6:], told[:, 6:], targets[:, 6:])
    result = quality.result()
    assert result["pixels"] == 10  # neither the told pixels nor the one whose truth is void
    assert result["coverage"] == 0.8
    assert result["precision"] == {"background": 1 / 3, "aeroplane": 2 / 5, "bicycle": None}
    assert result["recall"] == {"background": 1 / 3, "aeroplane": 2 / 4, "bicycle": 0}
    assert result["contamination"] == 0.5
    assert result["background_truth"] == {"background": 0.3, "old": 0.5, "new": 0, "future": 0.2}
    json.dumps(result, allow_nan=False)


def test_pseudo_label_quality_of_nothing():
    scenario = Scenario.named("voc-2-1")
    result = PseudoLabelQuality(scenario, scenario.step(18)).result()
    assert result["pixels"] == 0 and result["coverage"] is None and result["contamination"] is None


# --- metrics.json ---


@pytest.fixture
def scenario():
    return Scenario.named("voc:aeroplane,bicycle/bird/boat")


STEP1 = np.array([
    [90, 5, 0, 0, 0],
    [6, 4, 0, 0, 0],
    [0, 0, 0, 0, 0],  # class 2 is neither in the truth nor predicted
    [2, 0, 0, 8, 0],
    [7, 0, 0, 3, 0],  # future
])  # fmt: skip


def test_summary_by_hand(scenario):
    out = summarise(STEP1, scenario, scenario.step(1), protocol("clean", scenario), earlier=[[0.9, 0.75, None]])
    iou = [90 / 103, 4 / 15, None, 8 / 10]
    assert list(out["iou"]) == ["background", "aeroplane", "bicycle", "bird"]
    assert list(out["iou"].values()) == pytest.approx(iou)
    assert out["absent_classes"] == ["bicycle"]
    assert out["pixels"] == 115
    assert {name: mean["classes"] for name, mean in out["miou"].items()} == {
        "old": "1-2", "new": "3", "all": "0-3", "old_with_background": "0-2", "old_without_background": "1-2",
        "all_with_background": "0-3", "all_without_background": "1-3",
    }  # fmt: skip
    values = {name: mean["value"] for name, mean in out["miou"].items()}
    assert values["old"] == pytest.approx(4 / 15)
    assert values["old_with_background"] == pytest.approx((90 / 103 + 4 / 15) / 2)
    assert values["new"] == pytest.approx(0.8)
    assert values["all"] == pytest.approx((90 / 103 + 4 / 15 + 0.8) / 3)
    assert values["all_without_background"] == pytest.approx((4 / 15 + 0.8) / 2)
    assert out["hiou"] == {"classes": "1-2 and 3", "value": pytest.approx(2 * 0.8 * 4 / 15 / (0.8 + 4 / 15))}
    assert out["pixel_accuracy"] == pytest.approx(102 / 115)
    assert out["forgetting"] == {"aeroplane": pytest.approx(0.75 - 4 / 15), "bicycle": None}
    assert out["forgetting_mean"] == pytest.approx(0.75 - 4 / 15)
    assert out["forgetting_background"] == pytest.approx(0.9 - 90 / 103)
    assert out["old_to_background"] == 0.6 and out["new_to_background"] == 0.2
    json.dumps(out, allow_nan=False)


def test_summary_with_other_conventions(scenario):
    out = summarise(
        STEP1, scenario, scenario.step(1), replace(protocol("clean", scenario), future_as="background", absent="zero")
    )
    assert out["pixels"] == 125
    assert out["iou"]["background"] == pytest.approx(97 / 113)
    assert out["iou"]["bicycle"] == 0 and out["absent_classes"] == []
    assert out["miou"]["old"]["value"] == pytest.approx(4 / 15 / 2)


def test_summary_of_step_0_has_no_new_classes(scenario):
    confusion = np.diag([5, 4, 3, 0, 0])
    confusion[3, 1] = 9  # a future object taken for class 1: not scored
    out = summarise(confusion, scenario, scenario.step(0), protocol("clean", scenario))
    assert out["miou"]["new"] == {"classes": None, "value": None} == out["hiou"]
    assert out["miou"]["all"] == {"classes": "0-2", "value": 1}
    assert out["forgetting"] == {} and out["forgetting_mean"] is None and out["forgetting_background"] is None
    assert out["old_to_background"] is None and out["new_to_background"] == 0


def test_summary_of_joint_training_has_old_and_new(scenario):
    joint = Scenario(scenario.dataset, scenario.groups, "joint")
    out = summarise(np.diag([5, 4, 3, 2, 1]), joint, joint.step(0), protocol("clean", joint))
    assert out["miou"]["old"]["classes"] == "1-2" and out["miou"]["new"] == {"classes": "3-4", "value": 1}
    assert out["hiou"]["classes"] == "1-2 and 3-4" and out["forgetting"] == {}


def test_summary_compares_with_the_best_earlier_step(scenario):
    earlier = [[0.9, 0.5, 0.6], np.array([0.9, 0.7, 0.4, 0.3])]
    out = summarise(np.diag([1, 1, 1, 1, 1]), scenario, scenario.step(2), protocol("clean", scenario), earlier=earlier)
    assert out["forgetting"] == pytest.approx({"aeroplane": -0.3, "bicycle": -0.4, "bird": -0.7})
