"""Losses, label rules and channel splits of SSUL, IDEC and LAG: by hand, against slow references, properties, edges."""

import math
import random
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from cisskit.errors import KitError
from cisskit.losses.contrast import (
    LEFT_OUT,
    arcl_released,
    batch_contrast,
    decoupled_contrast,
    draw_classes,
    merged,
    region_contrast,
    region_triplets,
    unknown_added,
)
from cisskit.losses.features import channel_decoupling, class_means, class_sums, layer_distillation, soft_cross_entropy
from cisskit.losses.pixels import binary_cross_entropy, cross_entropy, focal_loss
from cisskit.pseudo import class_medians, closed_labels, confident, margins, open_labels, predict_open
from cisskit.semantics import channel_change, semantic_maps, semantic_split

HALVES = (torch.float16, torch.bfloat16)


def normal(*shape, seed=0, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn_labels(*shape, values, seed=0):
    return torch.tensor(values)[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(seed))]


def pixels(*columns):
    """Scores (1, C, 1, n): one column of C scores per pixel."""
    return torch.tensor(columns, dtype=torch.float64).T.reshape(1, len(columns[0]), 1, len(columns))


def row(*values):
    return torch.tensor(values).view(1, 1, -1)


# --- binary cross-entropy, focal loss, cross-entropy over valid pixels ---


def test_binary_cross_entropy_by_hand():
    z = pixels([0.0, math.log(3), 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0])
    labels = row(1, 0, 255)
    first, second = 2 * math.log(2) + math.log(4 / 3), 3 * math.log(2)  # sigmoid .5, .75, .5 and three times .5
    assert binary_cross_entropy(z, labels, reduction="none").flatten().tolist() == pytest.approx([first, second, 0])
    assert binary_cross_entropy(z, labels).item() == pytest.approx((first + second) / 2)  # the void pixel does not count
    assert binary_cross_entropy(z, labels, reduction="sum").item() == pytest.approx(first + second)
    weighted = binary_cross_entropy(z, labels, weight=torch.tensor([2.0, 0.5, 9.0]).view(1, 1, 3))
    assert weighted.item() == pytest.approx((2 * first + second / 2) / 2)


def test_binary_cross_entropy_equals_one_hot_with_gradient():
    z, labels = normal(2, 5, 6, 7, scale=4).requires_grad_(), drawn_labels(2, 6, 7, values=[0, 1, 2, 4, 255])
    one_hot = torch.stack([labels == c for c in range(5)], dim=1).double()
    dense = F.binary_cross_entropy_with_logits(z, one_hot, reduction="none").sum(dim=1) * (labels != 255)
    for reduction, want in (("none", dense), ("sum", dense.sum()), ("valid", dense.sum() / (labels != 255).sum())):
        got = binary_cross_entropy(z, labels, reduction=reduction)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in (got, want)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("loss", [binary_cross_entropy, lambda z, y: cross_entropy(z, y, reduction="valid")])
def test_means_over_valid_pixels_are_zero_without_any(loss):
    z = normal(2, 3, 4, 4).requires_grad_()
    value = loss(z, torch.full((2, 4, 4), 255))
    assert value.item() == 0 and value.requires_grad
    assert (torch.autograd.grad(value, z)[0] == 0).all()


def test_cross_entropy_over_valid_pixels_divides_by_them():
    z, labels = normal(2, 3, 4, 4), drawn_labels(2, 4, 4, values=[0, 1, 2, 255])
    expected = F.cross_entropy(z, labels, ignore_index=255)
    torch.testing.assert_close(cross_entropy(z, labels, reduction="valid"), expected)


def test_binary_cross_entropy_keeps_small_losses_and_large_mistakes():
    z = torch.linspace(5, 12, 8).view(1, 1, 1, 8)
    loss = binary_cross_entropy(z, torch.zeros(1, 1, 8, dtype=torch.uint8), reduction="none")
    torch.testing.assert_close(loss[0, 0], torch.log1p(torch.exp(-z.double())).float().flatten(), rtol=1e-6, atol=0)
    for dtype in (torch.float32, *HALVES):
        far = torch.tensor([-120.0, 120.0], dtype=dtype).view(1, 2, 1, 1)
        assert binary_cross_entropy(far, row(0)).item() == 240


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_by_hand(gamma):
    z = pixels([math.log(3), 0.0], [0.0, 0.0], [0.0, 0.0])
    loss = focal_loss(z, row(0, 1, 255), alpha=0.25, gamma=gamma, reduction="none").flatten()
    by_hand = [0.25 * 0.25**gamma * math.log(4 / 3), 0.25 * 0.5**gamma * math.log(2), 0]
    assert loss.tolist() == pytest.approx(by_hand)
    assert focal_loss(z, row(0, 1, 255), alpha=0.25, gamma=gamma).item() == pytest.approx(sum(by_hand) / 3)
    assert focal_loss(z, row(0, 1, 255), alpha=0.25, gamma=gamma, reduction="sum").item() == pytest.approx(sum(by_hand))


def test_focal_loss_without_gamma_is_cross_entropy_and_its_slope_is_finite_at_certainty():
    z, labels = normal(2, 3, 4, 4), drawn_labels(2, 4, 4, values=[0, 1, 2, 255])
    torch.testing.assert_close(focal_loss(z, labels), cross_entropy(z, labels))
    sure = torch.tensor([900.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    for gamma in (0.0, 0.5, 2.0):
        assert torch.autograd.grad(focal_loss(sure, row(0), gamma=gamma), sure)[0].isfinite().all()


# --- feature distillation ---


def test_soft_cross_entropy_by_hand():
    student, teacher = pixels([0.0, 0.0, 7.0], [0.0, 0.0, 7.0]), pixels([math.log(3) / 2, 0.0], [0.0, 0.0])
    first, second = math.log(2) / 2, math.log(2) / 2  # targets .75/.25 and .5/.5 against .5/.5, divided by two channels
    assert soft_cross_entropy(student, teacher, reduction="none").flatten().tolist() == pytest.approx([first, second])
    sharp = pixels([math.log(3), 0.0])  # student .75 .25, target .9 .1
    expected = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 2
    assert soft_cross_entropy(sharp, sharp).item() == pytest.approx(expected)
    assert soft_cross_entropy(student, teacher, mask=row(1, 0)).item() == pytest.approx(first / 2)  # stays in the mean
    assert soft_cross_entropy(student, teacher, mask=row(1, 0), reduction="sum").item() == pytest.approx(first)


def test_soft_cross_entropy_is_least_at_the_sharpened_teacher():
    teacher = normal(2, 5, 3, 3)
    for factor, flat in ((2.0, True), (1.0, False)):
        student = (factor * teacher + 4).requires_grad_()
        gradient = torch.autograd.grad(soft_cross_entropy(student, teacher), student)[0]
        assert (gradient.abs().max() < 1e-12) == flat
    student = normal(2, 7, 3, 3, seed=1).requires_grad_()
    gradient = torch.autograd.grad(soft_cross_entropy(student, teacher), student)[0]
    assert (gradient[:, 5:] == 0).all() and (gradient[:, :5] != 0).all()


def test_layers_are_weighted_and_decay_reaches_out_only_where_asked():
    names, weights = ("l1", "l3", "out"), {"l1": 0.5, "l3": 2.0, "out": 1.0}
    student = {name: normal(2, 4, 3 + k, 3, seed=k) for k, name in enumerate(names)}
    teacher = {name: normal(2, 4, 3 + k, 3, seed=9 + k) for k, name in enumerate(names)}
    unit = {name: soft_cross_entropy(student[name], teacher[name]).item() for name in names}
    for decayed_out, factor in ((False, 1.0), (True, 0.7)):
        terms = layer_distillation(student, teacher, weights, decay=0.7, decayed_out=decayed_out)
        expected = {"l1": 0.35 * unit["l1"], "l3": 1.4 * unit["l3"], "out": factor * unit["out"]}
        assert list(terms) == list(names)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    with pytest.raises(KitError, match="the teacher has no map l2, but l1, l3, out"):
        layer_distillation({**student, "l2": student["l1"]}, teacher, {"l2": 1.0}, decayed_out=False)


def test_channel_decoupling_by_hand():
    student = torch.tensor([math.log(3) / 2, 0.0], dtype=torch.float64).view(1, 1, 2, 1)  # squared: 3 to 1 over the rows
    teacher = torch.zeros_like(student)
    assert channel_decoupling(student, teacher).item() == pytest.approx(math.log(2) / 2)
    teacher[0, 0, 0, 0] = math.log(9)  # .9 and .1
    expected = -(0.75 * math.log(0.9) + 0.25 * math.log(0.1)) / 2
    assert channel_decoupling(student, teacher).item() == pytest.approx(expected)


def test_channel_decoupling_counts_the_channels_it_is_told():
    student, teacher = normal(2, 5, 3, 4).requires_grad_(), normal(2, 5, 3, 4, seed=1)
    each = channel_decoupling(student, teacher, reduction="none")
    assert each.shape == (5,)
    few = channel_decoupling(student, teacher, channels=student.shape[2])
    torch.testing.assert_close(few, each[:3].mean())
    gradient = torch.autograd.grad(few, student)[0]
    assert (gradient[:, 3:] == 0).all() and (gradient[:, :3] != 0).all()
    with pytest.raises(KitError, match="channels = 6, but the maps have 5"):
        channel_decoupling(normal(1, 5, 6, 2), normal(1, 5, 6, 2), channels=6)


def test_class_sums_add_up_over_batches_and_leave_void_out():
    features, labels = normal(3, 4, 5, 6), drawn_labels(3, 5, 6, values=[0, 1, 3, 255])
    means, count = class_means(features, labels, 5)
    for c in range(5):
        here = features.movedim(1, 3)[labels == c]
        assert count[c] == len(here)
        torch.testing.assert_close(means[c], here.mean(dim=0) if len(here) else torch.zeros(4).double())
    whole = class_sums(features, labels, 5)
    torch.testing.assert_close(whole, sum(class_sums(f[None], y[None], 5) for f, y in zip(features, labels, strict=True)))
    assert whole[:, -1].sum() == (labels != 255).sum()


# --- ARCL as released ---


def slow_arcl(student, teacher, old_scores, drawn, values=256):
    """Lists and loops, as the procedure is told."""
    size = old_scores.shape[2:]
    z = torch.cat([old_scores[:, :1] + old_scores[:, 1:2], old_scores[:, 2:]], dim=1)
    shown = z.sigmoid().argmax(dim=1)
    new, old = (F.interpolate(x[:, :256], size=size, mode="bilinear", align_corners=False) for x in (student, teacher))
    mask, found = torch.zeros(size, dtype=torch.bool), []
    for d in drawn:
        for image in shown:
            mask = mask | (image == d)
        lists = []
        for features, where in ((old, mask), (new, mask), (new, ~mask)):
            kept = [v for channel in features[0] for v in channel[where] if v > 0][:values]
            lists.append(torch.stack(kept) if kept else features.new_zeros(0))
        a, p, n = lists
        same = len(a) == len(p) == len(n)
        found.append(
            F.triplet_margin_loss(a, p, n, margin=1.0) if same and len(a) else None if not same else student.sum() * 0 + 1
        )
    return found, sum((f for f in found if f is not None), student.sum() * 0) / len(drawn)


@pytest.mark.parametrize("case", range(12))
def test_arcl_equals_lists_and_loops(case):
    rng = random.Random(case)
    batch, size, sparse = rng.choice([1, 3]), (rng.randint(4, 9), rng.randint(4, 9)), rng.choice([-1.0, 0.0, 1.0])
    small, channels, values = (rng.randint(2, 4), rng.randint(2, 4)), rng.randint(1, 6), rng.choice([4, 16, 256])
    student = (normal(batch, channels, *small, seed=case) + sparse).requires_grad_()
    teacher = normal(batch, channels, *small, seed=case + 50) + sparse
    if case % 2:  # so that all three lists are short, and now and then equally so
        student, teacher = student.detach().abs().requires_grad_(), teacher.abs()
    scores = normal(batch, 6, *size, seed=case + 100, scale=3)
    drawn = [rng.randint(0, 5) for _ in range(rng.randint(1, 6))]
    triplets, loss = slow_arcl(student, teacher, scores, drawn, values)
    got = arcl_released(student, teacher, scores, drawn, values=values)
    torch.testing.assert_close(got, loss)
    each = arcl_released(student, teacher, scores, drawn, values=values, reduction="none")
    assert each.tolist() == pytest.approx([math.nan if t is None else t.item() for t in triplets], nan_ok=True)
    torch.testing.assert_close(*(torch.autograd.grad(x, student, retain_graph=True)[0] for x in (got, loss)))


def test_arcl_by_hand():
    student, teacher = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)
    student[0, 0, 0] = torch.tensor([1.0, 4.0, 9.0, 2.0])
    teacher[0, 0, 0] = torch.tensor([3.0, -1.0, 5.0, 7.0])
    scores = torch.zeros(1, 4, 1, 4)  # unknown, background, two classes
    scores[0, :, 0] = torch.tensor([[0, 0, 0, 0], [0, 0, 5, 5], [9, 9, 0, 0], [0, 0, 0, 0]])
    one = {"values": 1, "reduction": "none"}
    assert arcl_released(student, teacher, scores, [1], **one).item() == 0  # |3 - 1| - |3 - 9| + 1 < 0
    assert arcl_released(student, teacher, scores, [0], **one).item() == pytest.approx(1, abs=1e-5)  # |5 - 9| - |5 - 1| + 1
    assert arcl_released(student, teacher, scores, [2], **one).isnan().all()  # no such region: nothing inside
    assert arcl_released(student, teacher, scores, [2, 1, 0], **one).isnan().tolist() == [
        True,
        False,
        True,
    ]  # then nothing outside
    scores[0, 0, 0] = 99  # unknown counts as background before the best channel is taken
    assert arcl_released(student, teacher, scores, [1], **one).isnan().all()
    assert arcl_released(student, teacher, scores, [2], **one, unknown_class=False).isnan().all()
    assert arcl_released(student, teacher, scores[:, 1:], [1], **one, unknown_class=False).item() == 0


def test_arcl_without_a_region_is_zero_with_gradient_zero():
    student, scores = normal(2, 3, 4, 4).requires_grad_(), normal(2, 5, 8, 8)
    for drawn in ([40, 41], []):
        loss = arcl_released(student, normal(2, 3, 4, 4, seed=1), scores, drawn)
        assert loss.item() == 0 and (torch.autograd.grad(loss, student)[0] == 0).all()


def test_arcl_reads_masks_of_all_images_and_features_of_the_first():
    student, teacher = normal(3, 2, 4, 4).abs().requires_grad_(), normal(3, 2, 4, 4, seed=1).abs()
    scores = torch.zeros(3, 5, 8, 8, dtype=torch.float64)
    scores[0, 1] = 1.0
    scores[1:, 3, :4] = 1.0  # class 2 only in the others
    loss = arcl_released(student, teacher, scores, [2], values=8)
    gradient = torch.autograd.grad(loss, student)[0]
    assert (gradient[0] != 0).any() and (gradient[1:] == 0).all()


def test_arcl_reads_256_channels():
    student, teacher = normal(1, 300, 3, 3), normal(1, 300, 3, 3, seed=1)
    student[:, 2:256], teacher[:, 2:256] = -1.0, -1.0  # all three lists run on to the last channels
    scores = normal(1, 3, 6, 6)
    few = [x[:, :256] for x in (student, teacher)]
    assert torch.equal(arcl_released(student, teacher, scores, [1], values=64), arcl_released(*few, scores, [1], values=64))
    more = torch.cat([student[:, :2], student[:, 256:]], dim=1), torch.cat([teacher[:, :2], teacher[:, 256:]], dim=1)
    assert arcl_released(*more, scores, [1], values=64) != arcl_released(*few, scores, [1], values=64)


def test_arcl_of_no_positive_value_is_the_margin():
    student = (-normal(1, 2, 3, 3).abs()).requires_grad_()
    loss = arcl_released(student, student.detach(), normal(1, 3, 6, 6), [1, 0])
    assert loss.item() == 1 and (torch.autograd.grad(loss, student)[0] == 0).all()


def test_drawn_classes_are_the_released_draws():
    rng, again = random.Random(3), random.Random(3)
    drawn = draw_classes(20, 10, rng)
    assert drawn == [i + again.randint(1, 19 - i) for i in range(10)]
    many = [draw_classes(20, 10, rng) for _ in range(400)]
    for i in range(10):
        assert {d[i] for d in many} == set(range(i + 1, 20))  # bounds included; class 20 never
    assert draw_classes(1, 0, rng) == [] and draw_classes(2, 1, rng) == [1]
    for n, rounds in ((5, 10), (5, 5), (1, 1)):
        with pytest.raises(KitError, match=f"round {n - 1} would draw from an empty range"):
            draw_classes(n, rounds, rng)


def test_unknown_is_added_to_the_background_on_a_copy():
    z = normal(2, 4, 3, 3)
    before = z.clone()
    assert torch.equal(unknown_added(z)[:, 1], z[:, 0] + z[:, 1]) and torch.equal(unknown_added(z)[:, [0, 2, 3]], z[:, [0, 2, 3]])
    assert torch.equal(merged(z), unknown_added(z)[:, 1:]) and torch.equal(z, before)


# --- regions ---


def unit(*values):
    return torch.tensor(values, dtype=torch.float64) / math.hypot(*values)


def test_region_triplets_by_hand():
    old = torch.tensor([[[1, 1, 2, 0]]])
    teacher = torch.tensor([[[[1.0, 3.0, 0.0, 0.0]], [[0.0, 0.0, 2.0, 0.0]]]], dtype=torch.float64)  # means: x and y axis
    student = torch.tensor([[[[3.0, 5.0, 1.0, 2.0]], [[2.0, 4.0, 1.0, 0.0]]]], dtype=torch.float64).requires_grad_()
    x, y, one, two, background = unit(1, 0), unit(0, 1), unit(4, 3), unit(1, 1), unit(1, 0)

    def triplet(anchor, positive, negatives):
        return (anchor - positive).norm() - min((anchor - n).norm() for n in negatives) + 1

    first, second = triplet(x, one, [two, background]), triplet(y, two, [one, background])
    loss = region_triplets(student, teacher, old, old, n_old=2, min_cells=1)
    assert loss.item() == pytest.approx((first + second).item() / 2)
    assert region_triplets(student, teacher, old, old, n_old=2, min_cells=2).item() == pytest.approx(first.item())
    assert region_triplets(student, teacher, old, old, n_old=1, min_cells=1).item() == pytest.approx(first.item())
    newer = torch.tensor([[[1, 1, 7, 0]]])  # the label names a new class where the old model sees class 2
    with_new = region_triplets(student, teacher, old, newer, n_old=2, min_cells=1)
    second = triplet(y, two, [one, background, two])  # the positive keeps the old region; the same cells are a negative, too
    assert with_new.item() == pytest.approx((first + second).item() / 2)
    assert torch.autograd.gradcheck(lambda s: region_triplets(s, teacher, old, newer, n_old=2, min_cells=1, margin=2.0), student)


def slow_regions(student, teacher, old, now, n_old, min_cells, margin):
    found = []
    for s, t, before, after in zip(student, teacher, old, now, strict=True):
        for c in range(1, n_old + 1):
            cells = before == c
            others = [k for k in range(255) if k != c and (after == k).any()]
            if cells.sum() >= min_cells and others:
                a, p = (F.normalize(f[:, cells].mean(dim=1), dim=0) for f in (t, s))
                far = min((a - F.normalize(s[:, after == k].mean(dim=1), dim=0)).norm() for k in others)
                found.append(((a - p).norm() - far + margin).relu())
    return torch.stack(found).mean() if found else student.sum() * 0


@pytest.mark.parametrize("case", range(6))
def test_region_contrast_equals_loops_with_gradient(case):
    student, teacher = normal(3, 4, 6, 5, seed=case).requires_grad_(), normal(3, 4, 6, 5, seed=case + 9)
    scores, labels = normal(3, 4, 12, 10, seed=case), drawn_labels(3, 12, 10, values=[0, 0, 0, 4, 6, 255], seed=case)
    old = F.interpolate(scores, size=(6, 5), mode="bilinear", align_corners=False).argmax(dim=1)
    told = labels[:, ::2, ::2]
    now = torch.where((told > 3) & (told < 255), told, old)
    least = (1, 6, 8)[case % 3]
    loss = region_contrast(student, teacher, labels, scores, n_old=3, min_cells=least)
    slow = slow_regions(student, teacher, old, now, 3, least, 1.0)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(*(torch.autograd.grad(x, student, retain_graph=True)[0] for x in (loss, slow)))


def test_region_contrast_is_zero_where_there_is_nothing_to_compare():
    student, teacher = normal(2, 4, 5, 5).requires_grad_(), normal(2, 4, 5, 5, seed=1)
    everything = torch.ones(2, 5, 5, dtype=torch.long)
    for old, least in ((everything, 1), (0 * everything, 1), (drawn_labels(2, 5, 5, values=[0, 1]), 26)):
        loss = region_triplets(student, teacher, old, old, n_old=1, min_cells=least)  # no negative; no old class; too small
        assert loss.item() == 0 and (torch.autograd.grad(loss, student)[0] == 0).all()
    with pytest.raises(KitError, match="old scores have 5 channels, but background and 3 old classes are 4"):
        region_contrast(student, teacher, everything, normal(2, 5, 5, 5), n_old=3)


def test_region_contrast_has_a_gradient_where_both_models_agree():
    features = normal(1, 4, 8, 8)
    student, old = features.clone().requires_grad_(), drawn_labels(1, 8, 8, values=[0, 1, 2])
    loss = region_triplets(student, features, old, old, n_old=2)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()  # the norm of 0 has slope 0


# --- contrast over the batch ---


def slow_contrast(new, old, temperature, sigma=None):
    n = len(new)
    rows = []
    weight = torch.softmax(torch.stack([new[i] @ old[i] for i in range(n)]) / sigma, dim=0) if sigma else None
    for i in range(n):
        left_out = [LEFT_OUT if j == i else 0.0 for j in range(n)]
        values = [new[i] @ new[j] / temperature + left_out[j] for j in range(n)]
        values += [new[i] @ old[j] / temperature + left_out[j] for j in range(n)]
        positive = -(new[i] @ old[i]) / temperature
        rows.append((positive if weight is None else positive * (2 - n * weight[i])) + torch.stack(values).logsumexp(dim=0))
    return torch.stack(rows).mean()


def test_contrast_by_hand():
    a = torch.eye(2, dtype=torch.float64)  # positives have product 1; the one negative of each half has product 0
    assert decoupled_contrast(a, a).item() == pytest.approx(-2 + math.log(2))
    assert decoupled_contrast(3 * a, a, normalise=True).item() == pytest.approx(-2 + math.log(2))
    assert decoupled_contrast(a, a.flip(0), temperature=1.0).item() == pytest.approx(math.log(1 + math.e))
    assert decoupled_contrast(a, a, sigma=0.5).item() == pytest.approx(-2 + math.log(2))  # equal products: weight 1


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_contrast_equals_loops_with_gradient(sigma):
    new, old = normal(4, 6, scale=0.5).requires_grad_(), normal(4, 6, seed=1, scale=0.5)
    loss, slow = decoupled_contrast(new.view(4, 3, 2, 1), old.view(4, 3, 2, 1), sigma=sigma), slow_contrast(new, old, 0.5, sigma)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(*(torch.autograd.grad(x, new, retain_graph=True)[0] for x in (loss, slow)))
    assert torch.autograd.gradcheck(lambda a, b: batch_contrast(a, b, temperature=0.5, sigma=sigma), (new, old.requires_grad_()))


def test_contrast_of_one_image():
    x = normal(1, 3, 2, 2).requires_grad_()
    loss = decoupled_contrast(x, x.detach(), normalise=True)
    assert loss.item() == 0 and (torch.autograd.grad(loss, x)[0] == 0).all()  # no negatives
    assert decoupled_contrast(x, x.detach()).item() == pytest.approx(LEFT_OUT + math.log(2))  # as released


@pytest.mark.parametrize("dtype", HALVES)
def test_contrast_of_half_precision_maps_does_not_overflow(dtype):
    new, old = ((20 * normal(3, 64, 9, 9, seed=k).abs()).to(dtype).requires_grad_() for k in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):  # products near 10^6 are no float16; autocast would round them
        loss = decoupled_contrast(new, old)
    assert loss.dtype == torch.float32 and loss.isfinite() and torch.autograd.grad(loss, new)[0].isfinite().all()
    torch.testing.assert_close(loss.double(), decoupled_contrast(new.double(), old.double()), rtol=1e-5, atol=1e-2)


# --- label rules ---


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_open_labels_by_hand(dtype):
    labels = row(0, 0, 3, 255, 254 - 1).to(dtype)
    salient = row(0, 7, 7, 7, 0)
    before = labels.clone()
    assert open_labels(labels).flatten().tolist() == [0, 0, 4, 255, 254]
    assert open_labels(labels, salient).flatten().tolist() == [1, 0, 4, 255, 254]
    assert open_labels(labels, salient != 0).dtype == dtype
    for opened in (open_labels(labels), open_labels(labels, salient)):
        assert torch.equal(closed_labels(opened), labels) and opened.dtype == dtype
    assert torch.equal(labels, before)
    with pytest.raises(KitError, match="maps of the same pixels"):
        open_labels(labels, salient[..., :2])


def logit(p):
    return math.log(p / (1 - p))


def seen(*columns):
    return pixels(*([logit(p) for p in column] for column in columns))


# unknown, background, two classes; the best of each pixel: channel 2, channel 3, background, unknown
SEEN = seen((0.2, 0.1, 0.8, 0.6), (0.2, 0.1, 0.5, 0.6), (0.2, 0.9, 0.8, 0.1), (0.9, 0.1, 0.8, 0.1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ((0, 0, 0, 0), {"threshold": 0.7}, (2, 0, 0, 0)),
        ((1, 1, 1, 1), {"threshold": 0.6 - 1e-9}, (2, 3, 1, 1)),
        ((4, 255, 4, 255), {"threshold": 0.0}, (4, 255, 4, 255)),
        ((0, 0, 0, 0), {"threshold": torch.tensor([9.0, 9.0, 0.9, 0.5])}, (0, 3, 0, 0)),
        ((0, 0, 0, 0), {"threshold": torch.tensor(0.7)}, (2, 0, 0, 0)),
        ((0, 0, 0, 0), {"threshold": 0.5, "margin": 0.15}, (2, 0, 0, 0)),  # margins .2 and .1
        ((0, 0, 0, 0), {"threshold": 0.5, "ranking": 2.0}, (0, 3, 0, 0)),  # (1 - .2) * 2 = 1.6, (1 - .1) * 3 = 2.7
        ((0, 1, 2, 0), {"threshold": 0.5, "first": 1}, (2, 1, 2, 0)),  # no unknown class: 1 is a class
    ],
)
def test_confident_by_hand(labels, options, expected, dtype):
    labels = row(*labels).to(dtype)
    before = labels.clone()
    got = confident(labels, SEEN, **options)
    assert got.flatten().tolist() == list(expected) and got.dtype == dtype and torch.equal(labels, before)


def test_confident_takes_the_threshold_itself_and_softmax():
    tie = torch.zeros(1, 4, 1, 1)
    tie[0, :2] = -1
    assert confident(row(0), tie, threshold=0.5).item() == 2  # equal scores: the lower channel; .5 >= .5
    assert confident(row(0), tie, threshold=0.5, activation="softmax").item() == 0  # .37 each
    assert confident(row(0), tie, threshold=0.36, activation="softmax").item() == 2
    with pytest.raises(KitError, match="unknown activation 'relu'"):
        confident(row(0), tie, threshold=0.5, activation="relu")
    with pytest.raises(KitError, match="shape \\(3,\\), but the teacher has 4 channels"):
        confident(row(0), tie, threshold=torch.zeros(3))


def test_margins_by_hand():
    assert margins(SEEN).flatten().tolist() == pytest.approx([0.2, 0.1, 0.1, 0.1])


def test_class_medians_equal_a_loop():
    scores, labels = normal(3, 6, 7, 5, scale=2), drawn_labels(3, 7, 5, values=[0, 1, 4, 255])
    scores[:, 4] = -50  # a class that never wins
    got = class_medians(labels, scores)
    best, channel = scores.sigmoid().max(dim=1)
    for c in range(6):
        here = best[(labels < 2) & (channel == c)]
        assert got[c].isnan() if c == 4 else got[c] == here.median()
    assert class_medians(torch.full_like(labels, 255), scores).isnan().all()
    sure = torch.full((1, 3, 1, 4), -82.0)
    sure[0, 2, 0] = torch.tensor([90.0, 3.0, 2.0, -80.0])  # 1, and nearly 0: the groups stay apart
    assert class_medians(row(0, 0, 0, 0), sure)[2].item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_predict_open_by_hand():
    z = seen((0.4, 0.3, 0.6), (0.4, 0.1, 0.6), (0.9, 0.9, 0.95))
    p, best = predict_open(z)
    torch.testing.assert_close(p[0, :, 0], torch.tensor([[0.7, 0.5, 1.8], [0.6, 0.6, 0.95]]).double())
    assert best.tolist() == [[[0, 1, 0]]]
    p, _ = predict_open(z, activation="softmax")
    torch.testing.assert_close(p.sum(dim=1), torch.ones(1, 1, 3).double())


# --- semantic-invariant channels ---


def test_a_channel_that_did_not_move_is_semantic_invariant():
    old = normal(2, 6, 4, 5)
    new = old.clone()
    for channel, shift in ((1, 0.5), (3, 2.0), (4, 1.0)):
        new[:, channel] += shift * normal(2, 4, 5, seed=channel)
    new[:, 5] += 7  # a constant moves no distribution
    si, ss = semantic_split(new, old, 0.5)
    assert si.tolist() == [0, 2, 5] and ss.tolist() == [1, 3, 4]
    assert channel_change(new, old).divergence[[0, 2, 5]].abs().max() < 1e-12
    si, ss = semantic_split(new, old, 2 / 3)
    assert si.tolist() == [0, 1, 2, 5] and ss.tolist() == [3, 4]
    assert [len(x) for x in semantic_split(new, old, 0.0)] == [0, 6] and len(semantic_split(new, old, 1.0)[1]) == 0
    assert len(semantic_split(new[:, :5], old[:, :5], 0.5)[0]) == 2  # 2.5, half to even
    with pytest.raises(KitError, match="rho = 1.5"):
        semantic_split(new, old, 1.5)


def test_channel_change_by_hand():
    old = torch.tensor([[[[math.log(3), 0.0]]]], dtype=torch.float64)  # .75, .25
    change = channel_change(torch.zeros_like(old), old)
    assert change.divergence.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert change.old_entropy.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert change.new_entropy.item() == pytest.approx(math.log(2))


def test_semantic_maps_by_hand_and_of_no_channel():
    new = torch.tensor([[[[1.0, -3.0]], [[3.0, 1.0]], [[0.0, 8.0]]]], dtype=torch.float64)
    old = torch.tensor([[[[2.0, 3.0]], [[6.0, -1.0]], [[5.0, 5.0]]]], dtype=torch.float64)
    maps = semantic_maps(new, old, torch.tensor([0, 1]), torch.tensor([2]))
    assert maps.si.flatten().tolist() == pytest.approx([0, 0]) and maps.ss.flatten().tolist() == pytest.approx([0, 1])
    assert maps.consistency.flatten().tolist() == pytest.approx([1, -1])
    none = semantic_maps(new, old, torch.tensor([], dtype=torch.long), torch.arange(3))
    assert (none.si == 0).all() and (none.consistency == 0).all()


# --- what all of them keep ---

STUDENT, TEACHER = normal(2, 6, 4, 5), normal(2, 6, 4, 5, seed=1)
LABELS, SCORES = drawn_labels(2, 4, 5, values=[0, 0, 1, 4, 5, 255]), normal(2, 5, 4, 5, seed=2)
LOSSES = {
    "bce": lambda s, t, y, z: binary_cross_entropy(s, y),
    "focal": lambda s, t, y, z: focal_loss(s, y, gamma=2.0),
    "valid": lambda s, t, y, z: cross_entropy(s, y, reduction="valid"),
    "kd": lambda s, t, y, z: soft_cross_entropy(s, t),
    "decouple": lambda s, t, y, z: channel_decoupling(s, t),
    "means": lambda s, t, y, z: class_means(s, y, 6)[0].square().sum(),
    "arcl": lambda s, t, y, z: arcl_released(s, t, z, [1, 2, 1], values=3),
    "region": lambda s, t, y, z: region_contrast(s, t, y, merged(z), n_old=3, min_cells=1),
    "contrast": lambda s, t, y, z: decoupled_contrast(s, t, sigma=0.5),
    "normalised": lambda s, t, y, z: decoupled_contrast(s, t, normalise=True),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@every_loss
def test_the_gradient_is_alive_stops_at_the_teacher_and_inputs_are_left_alone(loss):
    inputs = [STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_(), LABELS.clone(), SCORES.clone().requires_grad_()]
    before = [x.detach().clone() for x in inputs]
    loss(*inputs).backward()
    assert (inputs[0].grad != 0).any() and inputs[1].grad is None and inputs[3].grad is None
    assert all(map(torch.equal, before, inputs))


@every_loss
def test_precision_in_is_precision_out_and_half_is_computed_in_float32(loss):
    assert loss(STUDENT, TEACHER, LABELS, SCORES).dtype == torch.float64
    for dtype in HALVES:
        half = [x.to(dtype) for x in (STUDENT, TEACHER, SCORES)]
        with torch.autocast("cpu", torch.bfloat16):
            got = loss(*half[:2], LABELS.byte(), half[2])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, loss(*(x.float() for x in half[:2]), LABELS, half[2].float()), rtol=1e-5, atol=1e-6)


@every_loss
def test_gradients_equal_finite_differences(loss):
    inputs = STUDENT[..., :3, :3], TEACHER[..., :3, :3], LABELS[..., :3, :3], SCORES[..., :3, :3]
    assert torch.autograd.gradcheck(lambda s: loss(s, *inputs[1:]), inputs[0].clone().requires_grad_())


@every_loss
def test_a_batch_of_void_is_finite(loss):
    student = STUDENT.clone().requires_grad_()
    value = loss(student, TEACHER, torch.full_like(LABELS, 255), SCORES)
    assert value.isfinite() and torch.autograd.grad(value, student)[0].isfinite().all()


RULES = {
    "open": lambda s, t, y, z: open_labels(y, y),
    "closed": lambda s, t, y, z: closed_labels(y),
    "confident": lambda s, t, y, z: confident(y, z, threshold=z.new_zeros(5), ranking=0.5, margin=0.1),
    "medians": lambda s, t, y, z: class_medians(y, z),
    "predict": lambda s, t, y, z: predict_open(z),
    "split": lambda s, t, y, z: s[:, semantic_split(s, t, 0.5)[0]],
}


@pytest.mark.parametrize("function", (LOSSES | RULES).values(), ids=(LOSSES | RULES).keys())
def test_nothing_waits_for_the_device(function, monkeypatch):
    """On a device that holds no values, whatever needs one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # it does not know this device
    student, teacher, labels, scores = (x.to("meta") for x in (STUDENT, TEACHER, LABELS, SCORES))
    student.requires_grad_()
    result = function(student, teacher, labels, scores)
    if isinstance(result, torch.Tensor) and result.ndim == 0:
        result.backward()


def test_shapes_that_do_not_fit_are_explained():
    with pytest.raises(KitError, match=r"\(B, C, H, W\)"):
        binary_cross_entropy(STUDENT[0], LABELS)
    with pytest.raises(KitError, match="swapped"):
        soft_cross_entropy(STUDENT[:, :4], TEACHER)
    with pytest.raises(KitError, match="same positions"):
        soft_cross_entropy(STUDENT, TEACHER[..., 1:])
    for loss in (channel_decoupling, decoupled_contrast, semantic_split):
        with pytest.raises(KitError, match="must be equal"):
            loss(STUDENT, TEACHER[:, 1:])
    with pytest.raises(KitError, match="of the same images"):
        arcl_released(STUDENT, TEACHER, SCORES[:1], [1])
    for loss in (binary_cross_entropy, focal_loss):
        with pytest.raises(KitError, match="unknown reduction 'median'"):
            loss(STUDENT, LABELS, reduction="median")
    for loss in (soft_cross_entropy, channel_decoupling):
        with pytest.raises(KitError, match="unknown reduction 'median'"):
            loss(STUDENT, TEACHER, reduction="median")
