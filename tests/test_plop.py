"""PLOP: Local POD, thresholds and pseudo-labels: by hand, against slow references, properties, edges."""

import math
from contextlib import nullcontext

import pytest
import torch
from test_open_losses import HALVES, drawn_labels, normal, pixels, row

from cisskit.errors import KitError
from cisskit.losses.pixels import cross_entropy
from cisskit.losses.pooled import local_pod, pod_embedding, pod_loss
from cisskit.pseudo import BINS, entropy_histogram, entropy_labels, entropy_thresholds, scaled_entropy

INF, NAN = math.inf, math.nan

# --- Local POD ---


def slow_embedding(x, scales):
    """Window by window, as the released code cuts them."""
    parts = []
    for m in scales:
        side = x.shape[3] // m
        for i in range(m):
            for j in range(m):
                window = x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
                parts += [window.mean(dim=3).flatten(1), window.mean(dim=2).flatten(1)]
    return torch.cat(parts, dim=1)


def slow_pod(student, teacher, scales=(1, 2, 4)):
    gap = slow_embedding(student**2, scales) - slow_embedding(teacher**2, scales)
    return gap.square().sum(dim=1).sqrt().mean()


def test_embedding_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 8.0]]]])
    whole = [1.5, 5.5, 2.0, 5.0]  # means of the rows, then of the columns
    assert pod_embedding(x, (1,)).tolist() == [whole]
    assert pod_embedding(x, (1, 2)).tolist() == [[*whole, 1, 1, 2, 2, 3, 3, 8, 8]]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 9, 7), (2, 1, 7, 7), (1, 2, 12, 5), (2, 2, 7, 8), (1, 1, 4, 4)])
@pytest.mark.parametrize("scales", [(1, 2, 4), (4, 1), (3,)])
def test_embedding_equals_loops_also_where_sides_differ_or_leave_a_rest(shape, scales):
    x = normal(*shape)
    torch.testing.assert_close(pod_embedding(x, scales), slow_embedding(x, scales))


def test_windows_have_their_side_from_the_width():
    x = normal(1, 1, 9, 6)  # scale 2: squares of side 3 in rows 0..5, columns 0..5
    changed = x.clone()
    changed[:, :, 6:] += 1
    assert torch.equal(pod_embedding(x, (2,)), pod_embedding(changed, (2,)))
    low = pod_embedding(normal(1, 1, 4, 8), (2,))  # side 4: a second row of windows would be empty
    assert low.shape == (1, 2 * (4 + 4)) and low.isfinite().all()


def test_local_pod_by_hand():
    student = torch.tensor([[[[3.0]]], [[[2.0]]]])  # squares 9, 4; both the row's and the column's mean
    teacher = torch.tensor([[[[1.0]]], [[[-2.0]]]])  # squares 1, 4: the sign does not matter
    assert local_pod(student, teacher, (1,)).item() == pytest.approx(math.sqrt(8**2 + 8**2) / 2)


def test_pod_loss_by_hand():  # new channels join the background before squaring: 1 + 2 = 3, 3² - 2² = 5
    student, teacher = torch.tensor([1.0, 7.0, 2.0]).view(1, 3, 1, 1), torch.tensor([2.0, 7.0]).view(1, 2, 1, 1)
    maps = [torch.full((1, 1, 1, 1), 2.0)], [torch.full((1, 1, 1, 1), 1.0)]  # 4 - 1 = 3
    loss = pod_loss(*maps, student, teacher, factor_features=0.1, factor_logits=10.0, scales=(1,))
    distance = math.sqrt(2) * (0.1 * 3 + 10.0 * 5)
    assert loss.item() == pytest.approx(math.sqrt(3 / 1) * distance / 2)


@pytest.mark.parametrize(("n_old", "n_new"), [(1, 1), (1, 4), (6, 1), (6, 3)])
def test_pod_loss_equals_loops_with_gradient(n_old, n_new):
    student = [normal(2, 3, 9, 8, seed=k).requires_grad_() for k in range(3)]
    teacher = [normal(2, 3, 9, 8, seed=10 + k) for k in range(3)]
    scores, old = normal(2, n_old + n_new, 5, 6, seed=20).requires_grad_(), normal(2, n_old, 5, 6, seed=21)
    loss = pod_loss(student, teacher, scores, old, factor_features=0.01, factor_logits=0.0005)
    merged = torch.cat([scores[:, :1] + scores[:, n_old:].sum(dim=1, keepdim=True), scores[:, 1:n_old]], dim=1)
    slow = 0.0005 * slow_pod(merged, old) + 0.01 * sum(map(slow_pod, student, teacher))
    slow = slow * math.sqrt((n_old + n_new) / n_new) / 4
    torch.testing.assert_close(loss, slow)
    for got, want in zip(*(torch.autograd.grad(x, [*student, scores]) for x in (loss, slow)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("scale", [1.0, 0.0, 100.0])
def test_equal_maps_cost_nothing_and_pull_nowhere(scale):
    x = normal(2, 3, 8, 8, scale=scale).requires_grad_()
    loss = local_pod(x, x.detach().clone())
    assert loss == 0 and torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_one_equal_image_does_not_spoil_the_others():
    student = normal(2, 3, 8, 8).requires_grad_()
    teacher = torch.cat([student[:1], 2 * student[1:]]).detach()
    (grad,) = torch.autograd.grad(local_pod(student, teacher), student)
    assert not grad[0].any() and grad[1].any() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_squares_of_half_precision_do_not_overflow(dtype):
    student, teacher = (normal(1, 2, 8, 8, seed=k, scale=400, dtype=torch.float32).to(dtype) for k in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = local_pod(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, local_pod(student.float(), teacher.float()))


def test_gradients_equal_finite_differences_and_stop_at_the_teacher():
    student, teacher = normal(2, 2, 4, 5).requires_grad_(), normal(2, 2, 4, 5, seed=1).requires_grad_()
    before = student.detach().clone(), teacher.detach().clone()
    assert torch.autograd.gradcheck(lambda s: local_pod(s, teacher.detach()), student)
    local_pod(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None
    assert torch.equal(before[0], student) and torch.equal(before[1], teacher)


def test_maps_that_do_not_fit_are_explained():
    with pytest.raises(KitError, match="at least as wide as the largest of the scales"):
        local_pod(normal(1, 1, 8, 3), normal(1, 1, 8, 3))
    with pytest.raises(KitError, match="the same layer of both models"):
        local_pod(normal(1, 2, 8, 8), normal(1, 3, 8, 8))
    scores = normal(1, 3, 4, 4)
    for student, teacher, old in (([], [scores], scores[:, :2]), ([], [], scores)):
        with pytest.raises(KitError, match="both models need the same layers, and the student at least one class more"):
            pod_loss(student, teacher, scores, old, factor_features=1, factor_logits=1)


# --- entropy and thresholds ---


def histogram(**counts):
    """(1, 100): counts by bin, as in ``histogram(_0=3)``."""
    out = torch.zeros(1, BINS, dtype=torch.long)
    for name, n in counts.items():
        out[0, int(name[1:])] = n
    return out


def slow_threshold(counts, base, rule):
    """The search for one class, bin by bin."""
    half, r = counts.sum().item() / 2, 0
    if not half:
        return base
    for b in range(BINS):
        n = int(counts[b])
        if r <= half <= r + n:
            break
        r += b if rule == "released" else n
    gap, n = half - r, int(counts[b])
    if not n and not gap:
        return NAN
    return max(base, b / 100 + (gap / n if n else math.copysign(INF, gap)) / 100)


def test_entropy_by_hand_is_largest_where_all_are_alike():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert scaled_entropy(p).tolist() == pytest.approx([0.5 / 4, 1 / 4, 0], abs=1e-7)


def test_histogram_counts_background_pixels_by_predicted_class_and_adds_up():
    even, sure = [0.1, 0.0, 0.0], [0.0, 0.0, 30.0]
    teacher, labels = pixels(even, sure, sure, sure, sure), row(0, 0, 1, 3, 255)
    n_all = 4
    uncertain = int(BINS * (1 / 3) / math.log(n_all))  # the even pixel, almost as uncertain as can be
    got = entropy_histogram(labels, teacher, n_all)
    assert got.shape == (3, BINS) and got.sum() == 2
    assert got[0, uncertain] == 1 and got[2, 0] == 1
    assert torch.equal(entropy_histogram(labels.repeat(2, 1, 1), teacher.repeat(2, 1, 1, 1), n_all), 2 * got)


@pytest.mark.parametrize(
    ("counts", "released", "median"),
    [
        ({}, 0.001, 0.001),  # never predicted
        ({"_0": 7}, 0.005, 0.005),  # one bin: its middle
        ({"_0": 4, "_1": 2}, 0.0075, 0.0075),  # 3 of 4
        ({"_0": 2, "_1": 6}, 0.01 + 0.04 / 6, 0.01 + 0.02 / 6),  # the released sum is still 0, the true one 2
        ({"_1": 1, "_2": 5}, 0.02 + 0.02 / 5, 0.02 + 0.02 / 5),  # by chance the index is the count
        ({"_99": 4}, 0.001, 0.995),  # from bin 3 on the released sum is above half = 2, no bin stops: far below 0
        ({"_99": 20000}, 0.99 + 0.01 * (10000 - 4851) / 20000, 0.995),  # here the last bin stops
        ({"_5": 6, "_9": 6}, NAN, 0.06),  # at bin 4 the sum is 6 = half, and the bin is empty: 0 / 0
        ({"_50": 20000, "_51": 2}, 0.5 + 0.01 * (10001 - 1225) / 20000, 0.5 + 0.01 * 10001 / 20000),
    ],
)
def test_thresholds_by_hand(counts, released, median):
    for rule, want in (("released", released), ("median", median)):
        got = entropy_thresholds(histogram(**counts), 3, rule=rule)
        assert got.shape == (3,) and got.dtype == torch.float32
        assert got.tolist() == pytest.approx([want, 0.001, 0.001], nan_ok=True), rule


def test_an_empty_last_bin_divides_by_zero():
    counts = torch.zeros(2, BINS, dtype=torch.long)
    counts[0, ::2][:49] = 210  # half = 5145 > 4950 = 0 + 1 + .. + 99, and no single bin holds enough to stop
    counts[1, 5] = counts[1, 7] = 1  # half = 1; the sum at bin 2 is 1: stops there, where nothing is
    got = entropy_thresholds(counts, 2)
    assert got[0] == INF and got[1].isnan()
    new, share = entropy_labels(row(0, 0), pixels([5.0, 0.0], [0.0, 5.0]), got, 2)
    assert new.tolist() == [[[0, 255]]] and share.item() == pytest.approx(0.5)  # infinity lets all pass, NaN none


@pytest.mark.parametrize("rule", ["released", "median"])
@pytest.mark.parametrize("seed", range(6))
def test_thresholds_equal_a_loop(rule, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([0, 1, 2, 3, 7, 12, 30, 56, 200, 5000, 20000])
    counts = torch.zeros(len(sizes), BINS, dtype=torch.long)
    top = [2, 4, 9, 28, 90, 99][seed]
    for c, n in enumerate(sizes.tolist()):
        bins = (top * torch.rand(n, generator=generator) ** (1 + c % 3)).long()
        counts[c] = torch.bincount(bins, minlength=BINS)
    got = entropy_thresholds(counts, len(counts) + 2, base=0.003, rule=rule)
    want = [slow_threshold(row, 0.003, rule) for row in counts] + [0.003] * 2
    assert got.tolist() == pytest.approx(want, rel=1e-5, nan_ok=True)


def test_the_median_halves_the_pixels():
    teacher = normal(4, 3, 32, 32, scale=2)
    labels = torch.zeros(4, 32, 32, dtype=torch.long)
    thresholds = entropy_thresholds(entropy_histogram(labels, teacher, 5), 5, rule="median")
    p = teacher.softmax(dim=1)
    below = scaled_entropy(p) / math.log(5) < thresholds[p.argmax(dim=1)]
    for c in range(3):
        assert below[p.argmax(dim=1) == c].double().mean() == pytest.approx(0.5, abs=0.03)


# --- pseudo-labels ---

SURE, UNSURE = [0.0, 30.0, 0.0], [0.0, 1.0, 0.0]  # both for class 1
BACKGROUND = [30.0, 0.0, 0.0]
HALFWAY = torch.full((5,), 0.1)  # classes 0..2 are old, 3 and 4 new; UNSURE has 0.19


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_entropy_labels_by_hand(dtype):
    teacher = pixels(SURE, UNSURE, BACKGROUND, SURE, SURE, UNSURE, SURE)
    labels = row(0, 0, 0, 2, 3, 4, 255).to(dtype)  # 2: an old id, looked at like background
    new, share = entropy_labels(labels, teacher, HALFWAY, 5)
    assert new.dtype == dtype and new.tolist() == [[[1, 255, 0, 1, 3, 4, 255]]]
    assert share.dtype == torch.float32 and share.item() == pytest.approx(3 / 4)


def test_the_threshold_itself_is_not_enough():
    teacher = pixels(UNSURE)
    at = (scaled_entropy(teacher.softmax(dim=1)) / math.log(5)).item()
    for threshold, want in ((at, 255), (math.nextafter(at, 1), 1)):
        new, _ = entropy_labels(row(0), teacher, torch.full((5,), threshold, dtype=torch.float64), 5)
        assert new.item() == want


def test_shares_are_per_image():
    nothing_asked, nothing_passes = row(3, 255), row(0, 0)
    labels = torch.cat([nothing_asked, nothing_passes, row(0, 3)])
    teacher = torch.cat([pixels(SURE, SURE), pixels(UNSURE, UNSURE), pixels(SURE, SURE)])
    new, share = entropy_labels(labels, teacher, HALFWAY, 5)
    assert new.tolist() == [[[3, 255]], [[255, 255]], [[1, 3]]]
    assert share.tolist() == pytest.approx([0, 0, 1], abs=1e-5)
    student = normal(3, 5, 1, 2).requires_grad_()
    loss = (share.view(-1, 1, 1) * cross_entropy(student, new, reduction="none")).mean()
    (grad,) = torch.autograd.grad(loss, student)
    assert not grad[:2].any() and grad[2].any()  # an image without background teaches nothing, nor does one of doubt


def test_a_single_old_channel_is_never_in_doubt():
    teacher, labels = normal(2, 1, 3, 3, scale=100, dtype=torch.float32), torch.zeros(2, 3, 3, dtype=torch.long)
    thresholds = entropy_thresholds(entropy_histogram(labels, teacher, 2), 2)
    new, share = entropy_labels(labels, teacher, thresholds, 2)
    assert thresholds.isfinite().all() and not new.any() and share.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("dtype", HALVES)
def test_large_and_half_precision_scores_stay_finite(dtype):
    teacher = normal(2, 4, 6, 6, scale=100, dtype=torch.float32).to(dtype)
    labels = drawn_labels(2, 6, 6, values=[0, 4, 255])
    counts = entropy_histogram(labels, teacher, 6)
    assert counts.sum() == (labels == 0).sum()
    thresholds = entropy_thresholds(counts, 6, rule="median")
    new, share = entropy_labels(labels, teacher, thresholds, 6)
    full, full_share = entropy_labels(labels, teacher.float(), thresholds, 6)
    assert torch.equal(new, full) and torch.equal(share, full_share) and share.isfinite().all()


def test_void_alone_counts_for_nothing():
    teacher, labels = normal(2, 3, 2, 2), torch.full((2, 2, 2), 255)
    assert not entropy_histogram(labels, teacher, 4).any()
    new, share = entropy_labels(labels, teacher, torch.full((4,), 0.1), 4)
    assert torch.equal(new, labels) and not share.any()
    student = normal(2, 4, 2, 2).requires_grad_()
    loss = (share.view(-1, 1, 1) * cross_entropy(student, new, reduction="none")).mean()
    assert loss == 0 and not torch.autograd.grad(loss, student)[0].any()


def test_rules_leave_their_inputs_alone_and_name_mistakes():
    labels, teacher = drawn_labels(2, 3, 3, values=[0, 3, 255]), normal(2, 3, 3, 3).requires_grad_()
    before = labels.clone(), teacher.detach().clone()
    _, share = entropy_labels(labels, teacher, HALFWAY, 5)
    assert torch.equal(labels, before[0]) and torch.equal(teacher, before[1]) and not share.requires_grad
    with pytest.raises(KitError, match="labels have shape"):
        entropy_labels(labels[:1], teacher, HALFWAY, 5)
    with pytest.raises(KitError, match="labels have shape"):
        entropy_histogram(labels[:, 1:], teacher, 5)
    with pytest.raises(KitError, match="unknown threshold rule 'mean'. Did you mean 'median'"):
        entropy_thresholds(histogram(), 3, rule="mean")


def test_nothing_waits_for_the_device(monkeypatch):
    """On a device that holds no values, whatever needs one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # it does not know this device
    student, teacher, scores, old = (normal(2, n, 8, 8).to("meta").requires_grad_() for n in (3, 3, 5, 3))
    labels = torch.zeros(2, 8, 8, dtype=torch.long, device="meta")
    pod_loss([student], [teacher], scores, old, factor_features=1, factor_logits=1).backward()
    entropy_histogram(labels, old, 5)
    new, share = entropy_labels(labels, old, HALFWAY.to("meta"), 5)
    assert new.device.type == share.device.type == "meta"
