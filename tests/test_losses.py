"""Losses: single pixels worked by hand, plain loops as an oracle, properties, and the edges."""

import math

import pytest
import torch
import torch.nn.functional as F

from cisskit.errors import KitError
from cisskit.losses import (
    auxiliary_background,
    check_pixels,
    cross_entropy,
    masked_bce,
    output_distillation,
    reasoning_scores,
    sigmoid_distillation,
    unbiased_cross_entropy,
    unbiased_distillation,
)

N_OLD, N_NEW = 3, 2  # background + 3 old + 2 new = 6 channels
KNOWN, OLD, NEW = slice(0, 4), slice(1, 4), slice(4, 6)


def pixel(*probabilities):
    """Logits (1, C, 1, 1) of one pixel with these softmax probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log().view(1, -1, 1, 1)


def label(value):
    return torch.full((1, 1, 1), value, dtype=torch.long)


@pytest.fixture
def maps():
    """Student (2, 6, 4, 5), teacher (2, 4, 4, 5), labels with background, old, new and void pixels."""
    g = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(2, 6, 4, 5, generator=g, dtype=torch.float64)
    teacher = 3 * torch.randn(2, 4, 4, 5, generator=g, dtype=torch.float64)
    values = torch.tensor([0, 0, 2, 4, 5, 255])
    return student, teacher, values[torch.randint(6, (2, 4, 5), generator=g)]


LOSSES = {
    "cross_entropy": lambda s, t, y, **k: cross_entropy(s, y, **k),
    "unbiased_cross_entropy": lambda s, t, y, **k: unbiased_cross_entropy(s, y, known=KNOWN, **k),
    "unbiased_distillation": lambda s, t, y, **k: unbiased_distillation(s, t, new=NEW, **k),
    "output_distillation": lambda s, t, y, **k: output_distillation(s, t, **k),
    "masked_bce": lambda s, t, y, **k: masked_bce(s[:, NEW], y, first=4, pos_weight=2.0, **k),
    "sigmoid_distillation": lambda s, t, y, **k: sigmoid_distillation(s[:, OLD], t[:, OLD], **k),
    "auxiliary_background": lambda s, t, y, **k: auxiliary_background(s[:, :1], **k),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
softmax_losses = pytest.mark.parametrize("loss", list(LOSSES.values())[:4], ids=list(LOSSES)[:4])


# --- single pixels, by hand ---


def test_cross_entropy_by_hand():
    assert cross_entropy(pixel(0.5, 0.25, 0.25), label(1)).item() == pytest.approx(-math.log(0.25))


def test_unbiased_cross_entropy_by_hand():
    z = pixel(0.5, 0.25, 0.25)  # classes 0 and 1 are known, so p(background) = .75
    for told in (0, 1):
        assert unbiased_cross_entropy(z, label(told), known=slice(0, 2)).item() == pytest.approx(-math.log(0.75))
    assert unbiased_cross_entropy(z, label(2), known=slice(0, 2)).item() == pytest.approx(-math.log(0.25))


def test_unbiased_distillation_by_hand():
    student, teacher = pixel(0.4, 0.3, 0.2, 0.1), pixel(0.75, 0.25)  # two new classes: p(background) = .7
    by_hand = -(0.75 * math.log(0.7) + 0.25 * math.log(0.3)) / 2
    assert unbiased_distillation(student, teacher, new=slice(2, 4)).item() == pytest.approx(by_hand)
    sharper = -(0.9 * math.log(0.7) + 0.1 * math.log(0.3)) / 2  # .75^2 : .25^2 = 9 : 1
    assert unbiased_distillation(student, teacher, new=slice(2, 4), alpha=2.0).item() == pytest.approx(sharper)


def test_output_distillation_by_hand():
    student, teacher = pixel(0.3, 0.1, 0.6), pixel(0.5, 0.5)  # old channels renormalised: .75, .25
    by_hand = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25)) / 2
    assert output_distillation(student, teacher).item() == pytest.approx(by_hand)
    sharper = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 2
    assert output_distillation(student, pixel(0.75, 0.25), alpha=2.0).item() == pytest.approx(sharper)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (4, [35 * math.log(4), math.log(2)]),  # sigmoid .25 and .5
        (5, [math.log(4 / 3), 35 * math.log(2)]),
        (0, [math.log(4 / 3), math.log(2)]),
        (255, [math.log(4 / 3), math.log(2)]),  # void is a negative
        (3, [math.log(4 / 3), math.log(2)]),  # an old class that was not masked hits no channel
        (6, [math.log(4 / 3), math.log(2)]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masked_bce_by_hand(told, expected, dtype):
    z = torch.tensor([-math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    loss = masked_bce(z, label(told).to(dtype), first=4, pos_weight=35.0)
    assert loss.tolist() == pytest.approx(expected)


def test_masked_bce_takes_one_weight_per_class():
    z, y = torch.zeros(1, 2, 1, 2), torch.tensor([[[1, 2]]])
    loss = masked_bce(z, y, first=1, pos_weight=torch.tensor([3.0, 5.0]))
    assert loss.tolist() == pytest.approx([2 * math.log(2), 3 * math.log(2)])


def test_sigmoid_distillation_by_hand():
    z, t = torch.tensor([-math.log(3)]).view(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert sigmoid_distillation(z, t).item() == pytest.approx(-0.5 * math.log(0.25) - 0.5 * math.log(0.75))


def test_auxiliary_background_by_hand():
    assert auxiliary_background(torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)).item() == pytest.approx(math.log(8) / 2)


def test_reasoning_scores_by_hand():
    features = torch.tensor([2.0, -3.0, 5.0]).view(1, 3, 1, 1)
    positive, negative = reasoning_scores(features, torch.tensor([[1.0, 4.0, -2.0]]))
    assert positive.item() == 2 - 12  # by the sign of the weight, not of the product
    assert negative.item() == -10


# --- plain loops as an oracle ---


def test_masks_and_means_equal_loops_over_pixels(maps):
    student, teacher, labels = maps
    p, q = student.softmax(1), teacher.softmax(1)
    own = p[:, KNOWN] / p[:, KNOWN].sum(1, keepdim=True)
    totals = dict.fromkeys(("ce", "unce", "unkd", "lwf"), 0.0)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        y, pp, qq = int(labels[b, i, j]), p[b, :, i, j], q[b, :, i, j]
        if y != 255:
            totals["ce"] -= math.log(pp[y])
            totals["unce"] -= math.log(pp[y] if y > 3 else pp[:4].sum())
        merged = [float(pp[0] + pp[4:].sum()), *pp[1:4].tolist()]
        totals["unkd"] -= sum(float(qq[c]) * math.log(merged[c]) for c in range(4)) / 4
        totals["lwf"] -= sum(float(qq[c]) * math.log(own[b, c, i, j]) for c in range(4)) / 4
    mean = {name: total / labels.numel() for name, total in totals.items()}  # ignored pixels count in the divisor
    assert cross_entropy(student, labels).item() == pytest.approx(mean["ce"])
    assert unbiased_cross_entropy(student, labels, known=KNOWN).item() == pytest.approx(mean["unce"])
    assert unbiased_distillation(student, teacher, new=NEW).item() == pytest.approx(mean["unkd"])
    assert output_distillation(student, teacher).item() == pytest.approx(mean["lwf"])


def test_masked_bce_equals_one_hot_bce_with_gradient(maps):
    z, labels = maps[0][:, NEW].clone().requires_grad_(), maps[2]
    one_hot = torch.stack([labels == 4, labels == 5], dim=1).double()
    expected = F.binary_cross_entropy_with_logits(z, one_hot, pos_weight=torch.tensor(7.0).double(), reduction="none")
    for reduction, want in (("none", expected), ("classes", expected.mean((0, 2, 3)))):
        got = masked_bce(z, labels, first=4, pos_weight=7.0, reduction=reduction)
        torch.testing.assert_close(got, want)
        weight = torch.rand_like(got)
        grads = [torch.autograd.grad((weight * loss).sum(), z, retain_graph=True)[0] for loss in (got, want)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "masked_bce"])
def test_gradients_equal_finite_differences(name, maps):
    student, teacher, labels = (x[:1, ..., :2, :2] for x in maps)
    student = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher, labels, reduction="none"), student)


def test_reasoning_scores_add_up_to_the_logit_and_are_averaged_nowhere(maps):
    features, weight = maps[0], torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positive, negative = reasoning_scores(features, weight)
    assert positive.shape == negative.shape == (2, 5, 4, 5)
    torch.testing.assert_close(positive + negative, torch.einsum("cd,bdhw->bchw", weight, features))
    positive, negative = reasoning_scores(features.abs(), weight)
    assert (positive >= 0).all() and (negative <= 0).all()


def test_reasoning_scores_send_gradient_by_sign_and_none_to_zero_weights():
    features = torch.ones(1, 3, 2, 2)
    weight = torch.tensor([[2.0, 0.0, -2.0]], requires_grad=True)
    positive, negative = reasoning_scores(features, weight)
    assert torch.autograd.grad(positive.sum(), weight, retain_graph=True)[0].tolist() == [[4, 0, 0]]
    assert torch.autograd.grad(negative.sum(), weight)[0].tolist() == [[0, 0, 4]]


# --- properties ---


def test_with_one_known_channel_unbiased_ce_is_plain_ce(maps):
    student, _, labels = maps
    torch.testing.assert_close(unbiased_cross_entropy(student, labels, known=slice(0, 1)), cross_entropy(student, labels))


def test_with_all_channels_known_unbiased_ce_is_zero(maps):
    student, _, labels = maps
    loss = unbiased_cross_entropy(student, labels, known=slice(0, 6), reduction="none")
    torch.testing.assert_close(loss, torch.zeros_like(loss))


@softmax_losses
def test_softmax_losses_ignore_a_shift_of_all_logits(loss, maps):
    student, teacher, labels = maps
    torch.testing.assert_close(loss(student + 50, teacher - 7, labels), loss(student, teacher, labels))


@every_loss
def test_pixels_may_be_permuted(loss, maps):
    student, teacher, labels = maps
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))

    def move(x):
        return x.flatten(-2)[..., order].view_as(x).flip(0)

    torch.testing.assert_close(loss(move(student), move(teacher), move(labels)), loss(student, teacher, labels))


def test_known_and_new_classes_may_be_permuted(maps):
    student, teacher, labels = maps
    order = [0, 3, 1, 2, 5, 4]  # background stays, old among old, new among new
    renumbered = torch.arange(256)
    renumbered[order] = torch.arange(6)
    shuffled, moved = student[:, order], renumbered[labels]
    for loss in (LOSSES["unbiased_cross_entropy"], LOSSES["cross_entropy"]):
        torch.testing.assert_close(loss(shuffled, teacher, moved), loss(student, teacher, labels))
    for loss in (LOSSES["unbiased_distillation"], LOSSES["output_distillation"]):
        torch.testing.assert_close(loss(shuffled, teacher[:, order[:4]], moved), loss(student, teacher, labels))
    by_class = LOSSES["masked_bce"]
    torch.testing.assert_close(by_class(shuffled, teacher, moved).flip(0), by_class(student, teacher, labels))


def test_distillation_is_least_where_student_and_teacher_agree(maps):
    _, teacher, _ = maps
    for loss in (lambda s: output_distillation(s, teacher), lambda s: sigmoid_distillation(s, teacher).sum()):
        student = teacher.clone().requires_grad_()
        gradient = torch.autograd.grad(loss(student), student)[0]
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))
        assert loss(teacher) < loss(teacher + torch.linspace(0, 1, 4, dtype=teacher.dtype).view(1, 4, 1, 1))


def test_new_channels_get_no_gradient_from_output_distillation(maps):
    student, teacher, _ = maps
    student.requires_grad_()
    gradient = torch.autograd.grad(output_distillation(student, teacher), student)[0]
    assert (gradient[:, NEW] == 0).all() and (gradient[:, KNOWN] != 0).all()


def test_no_loss_sends_gradient_to_the_teacher(maps):
    student, teacher, labels = maps
    student.requires_grad_()
    teacher.requires_grad_()
    for loss in LOSSES.values():
        loss(student, teacher, labels).sum().backward()
    assert student.grad is not None and teacher.grad is None


def test_a_mask_adds_zero_but_stays_in_the_mean(maps):
    student, teacher, _ = maps
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0, 1:3] = True
    pixels = unbiased_distillation(student, teacher, new=NEW, reduction="none")
    loss = unbiased_distillation(student, teacher, new=NEW, mask=mask)
    torch.testing.assert_close(loss, pixels[mask].sum() / 40)


@every_loss
def test_maps_average_to_the_scalar(loss, maps):
    pixels, reduced = loss(*maps, reduction="none"), loss(*maps)
    assert pixels.shape[-2:] == (4, 5)
    torch.testing.assert_close(pixels.mean((0, 2, 3)) if reduced.ndim else pixels.mean(), reduced)


# --- edges ---


@every_loss
def test_a_batch_of_void_is_finite(loss, maps):
    student, teacher, labels = maps
    student.requires_grad_()
    value = loss(student, teacher, torch.full_like(labels, 255)).sum()
    gradient = torch.autograd.grad(value, student)[0]
    assert value.isfinite() and gradient.isfinite().all()
    if loss in (LOSSES["cross_entropy"], LOSSES["unbiased_cross_entropy"]):
        assert value == 0 and (gradient == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_large_logits_stay_finite_and_exact(loss, dtype, maps):
    student, teacher, labels = maps
    student = (120 * student.sign()).to(dtype).requires_grad_()
    teacher = (100 * teacher.sign()).to(dtype)
    value = loss(student, teacher, labels)
    gradient = torch.autograd.grad(value.sum(), student)[0]
    assert value.isfinite().all() and gradient.isfinite().all()
    exact = loss(student.detach().double(), teacher.double(), labels)
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_large_mistake_costs_its_logit(dtype):
    up, down = (torch.full((1, 1, 1, 1), z, dtype=dtype) for z in (120.0, -120.0))
    assert sigmoid_distillation(up, down).item() == 120 == sigmoid_distillation(down, up).item()
    assert masked_bce(up, label(0), first=1).item() == 120 == masked_bce(down, label(1), first=1).item()
    assert auxiliary_background(up).item() == 120
    two = torch.cat([down, up], dim=1)
    assert unbiased_cross_entropy(two, label(0), known=slice(0, 1)).item() == 240 == cross_entropy(two, label(0)).item()
    assert output_distillation(two, two.flip(1)).item() == 120  # 240 nats, divided by two channels
    assert unbiased_distillation(torch.cat([two, down], 1), two.flip(1), new=slice(2, 3)).item() == pytest.approx(
        (240 - math.log(2)) / 2
    )


def test_small_losses_keep_their_digits_in_float32():
    z = torch.linspace(5, 12, 8).view(1, 1, 1, 8)
    for told, sign in ((1, 1), (0, -1)):  # right and sure: the loss is exp(-z) and must not drown in z
        labels = torch.full((1, 1, 8), told)
        exact = torch.log1p(torch.exp(-z.double())).float()
        torch.testing.assert_close(masked_bce(sign * z, labels, first=1, reduction="none"), exact, rtol=1e-6, atol=0)
    two = torch.cat([z, torch.zeros_like(z)], dim=1) + 100
    got = unbiased_cross_entropy(two, torch.zeros(1, 1, 8, dtype=torch.long), known=slice(0, 1), reduction="none")
    torch.testing.assert_close(got, exact[:, 0], rtol=1e-3, atol=2e-7)  # 2e-7: float32 around 1, not around 100


def test_softplus_does_not_turn_linear_at_20():
    z = torch.tensor([20.5], dtype=torch.float64, requires_grad=True)
    loss = auxiliary_background(z)
    assert loss.item() - 20.5 == pytest.approx(math.exp(-20.5), rel=1e-5)
    assert 1 - torch.autograd.grad(loss, z)[0].item() == pytest.approx(math.exp(-20.5), rel=1e-5)


@every_loss
def test_precision_in_is_precision_out_and_half_is_computed_in_float32(loss, maps):
    student, teacher, labels = maps
    assert loss(student, teacher, labels).dtype == torch.float64
    assert loss(student.float(), teacher.float(), labels).dtype == torch.float32
    for dtype in (torch.float16, torch.bfloat16):
        half = student.to(dtype), teacher.to(dtype)
        value = loss(*half, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(half[0].float(), half[1].float(), labels), rtol=1e-6, atol=1e-7)


def test_reasoning_scores_stay_in_float32_under_autocast(maps):
    features, weight = maps[0].half(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    expected = reasoning_scores(features.float(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = reasoning_scores(features, weight)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


@every_loss
def test_byte_labels_are_as_good_as_long_ones(loss, maps):
    student, teacher, labels = maps
    assert torch.equal(loss(student, teacher, labels.byte()), loss(student, teacher, labels))


@every_loss
def test_inputs_are_left_alone(loss, maps):
    before = [x.clone() for x in maps]
    loss(maps[0].requires_grad_(), *maps[1:]).sum().backward()
    assert all(map(torch.equal, before, maps))


@every_loss
def test_channels_last_gives_the_same(loss, maps):
    student, teacher, labels = maps
    last = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
    torch.testing.assert_close(loss(*last, labels), loss(student, teacher, labels))


def test_one_old_channel_and_one_new_class():
    student, teacher = pixel(0.25, 0.75), pixel(1.0)
    loss = unbiased_distillation(student, teacher, new=slice(1, 2))
    assert loss.item() == pytest.approx(0)  # all of the student is background or new: nothing to forget


def test_no_old_classes_gives_an_empty_sum(maps):
    student, _, labels = maps
    assert sigmoid_distillation(student[:, :0], student[:, :0]).sum().item() == 0
    assert masked_bce(student[:, :0], labels, first=6).shape == (0,)


# --- errors ---


def test_shapes_that_do_not_fit_are_explained(maps):
    student, teacher, labels = maps
    with pytest.raises(KitError, match=r"labels have shape \(2, 4, 4\).*need \(2, 4, 5\).*Output\.logits"):
        cross_entropy(student, labels[..., :4])
    with pytest.raises(KitError, match=r"\(B, C, H, W\)"):
        check_pixels(student[0], labels)
    with pytest.raises(KitError, match="whole numbers"):
        check_pixels(student, labels.float())
    with pytest.raises(KitError, match="same pixels"):
        output_distillation(student, teacher[..., :4])
    with pytest.raises(KitError, match="same pixels"):
        sigmoid_distillation(student[:1], student)
    with pytest.raises(KitError, match=r"\(B, D, h, w\) and \(C, D\)"):
        reasoning_scores(student, torch.zeros(3, 5))


def test_channels_that_do_not_fit_are_explained(maps):
    student, teacher, labels = maps
    for known in (slice(1, 4), slice(0, 7), slice(0, 0), slice(0, None)):
        with pytest.raises(KitError, match=r"pass step\.known"):
            unbiased_cross_entropy(student, labels, known=known)
    for new in (slice(3, 6), slice(4, 5), slice(4, None)):
        with pytest.raises(KitError, match=r"Pass step\.new"):
            unbiased_distillation(student, teacher, new=new)
    with pytest.raises(KitError, match=r"Pass step\.new"):
        unbiased_distillation(teacher, teacher, new=slice(4, 4))
    with pytest.raises(KitError, match="swapped"):
        output_distillation(teacher, student)
    with pytest.raises(KitError, match="6 and 4 channels"):
        sigmoid_distillation(student, teacher)


@every_loss
def test_an_unknown_reduction_lists_the_known_ones(loss, maps):
    with pytest.raises(KitError, match="unknown reduction 'sum'"):
        loss(*maps, reduction="sum")
