"""Losses of MBS and AMIS on patches, class embeddings and class tokens, and MBS's labels; worked by hand where it is short."""

import math

import pytest
import torch
from torch import Tensor

from cisskit.errors import KitError
from cisskit.losses.pixels import output_distillation
from cisskit.losses.tokens import (
    class_embeddings,
    label_guided_distillation,
    orthogonality,
    pooled_embeddings,
    pooled_patches,
    pooled_statistics,
    reliability,
    reliable_patches,
    token_cosine,
)
from cisskit.pseudo import selective


def random(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(grad)


def logits_of(*probabilities: float) -> Tensor:
    """(1, C, 1, 1)."""
    return torch.tensor(probabilities, dtype=torch.float64).log().view(1, -1, 1, 1)


# --- labels ---


@pytest.mark.parametrize(
    ("label", "p", "softmax"),
    [
        (0, (0.1, 0.8, 0.1), 1),  # sure of an old class
        (0, (0.4, 0.5, 0.1), 255),  # an object, but which?
        (0, (0.6, 0.3, 0.1), 0),  # background, though not surely
        (0, (0.8, 0.1, 0.1), 0),
        (3, (0.1, 0.8, 0.1), 3),  # what is told stays
        (255, (0.1, 0.8, 0.1), 255),
    ],
)
def test_selective_labels_by_hand(label, p, softmax):
    told = torch.full((1, 1, 1), label)
    assert selective(told, logits_of(*p)).item() == softmax
    plain = selective(told, logits_of(*p), ignore_objects=False).item()
    assert plain == (label if softmax == 255 else softmax)


def test_selective_labels_under_sigmoid():
    scores = torch.tensor([0.6, 0.35, 0.35]).logit().view(1, 3, 1, 1)
    untold = torch.zeros(1, 1, 1, dtype=torch.uint8)
    found = selective(untold, scores, activation="sigmoid")
    assert found.item() == 255 and found.dtype == torch.uint8  # 0.6 < 0.35 + 0.35, although background is the best
    assert selective(untold, scores).item() == 0
    assert untold.item() == 0


def test_the_threshold_belongs_to_the_sure():
    scores = torch.tensor([-3.0, 0, -3]).view(1, 3, 1, 1)  # sigmoid(0) is 1/2 exactly
    untold = torch.zeros(1, 1, 1, dtype=torch.long)
    assert selective(untold, scores, activation="sigmoid", threshold=0.5).item() == 1
    assert selective(untold, scores, activation="sigmoid", threshold=0.51).item() == 255


# --- reliability ---


def test_reliability_by_hand():
    scores = torch.log(torch.tensor([[0.2, 0.6, 0.2]])).view(1, 3, 1, 1).expand(-1, -1, 2, 2)
    labels = torch.tensor([[0, 2], [3, 255]]).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    labels[0, 1:4, 1:4] = 1  # only a patch's top-left pixel is asked
    r = reliability(scores, labels)
    assert torch.allclose(r, torch.tensor([[[0.2, 1.0], [0.0, 0.0]]]))
    assert torch.equal(r, reliability(scores, labels.byte()))


def test_patches_are_divided_by_the_number_of_trusted_ones():
    student, teacher = torch.zeros(1, 2, 1, 3, requires_grad=True), torch.tensor([[[[1.0, 2, 9]], [[1, 0, 9]]]])
    weights = torch.tensor([[[0.5, 0.25, 0.0]]])
    loss = reliable_patches(student, teacher, weights)
    assert loss.item() == pytest.approx((0.5 * 2 + 0.25 * 4) / (2 * 2))
    loss.backward()
    assert not student.grad[..., 2].any()


def test_patches_without_a_trusted_one_give_zero_and_a_gradient():
    student = random(1, 2, 2, 2, grad=True)
    loss = reliable_patches(student, random(1, 2, 2, 2, seed=1), torch.zeros(1, 2, 2))
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


def test_patches_without_weights_are_a_plain_mean():
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    plain = torch.nn.functional.mse_loss(student, teacher)
    assert torch.allclose(reliable_patches(student, teacher), plain)
    assert torch.allclose(reliable_patches(student, teacher, torch.ones(2, 4, 5)), plain)


def test_class_embeddings_leave_new_rows_alone():
    student, teacher = random(2, 5, 4, grad=True), random(2, 3, 4, seed=1)
    loss = class_embeddings(student, teacher)
    assert loss.item() == pytest.approx((student[:, :3] - teacher).square().mean().item())
    loss.backward()
    assert not student.grad[:, 3:].any() and student.grad[:, :3].all()


# --- label-guided output distillation ---


def test_label_guided_distillation_by_hand():
    student, teacher = logits_of(0.5, 0.2, 0.3), logits_of(0.6, 0.4)
    log_p = [math.log(p) for p in (0.5, 0.2, 0.3)]
    for label, target in ((0, 0), (255, 0), (1, 0), (2, 2)):
        loss = label_guided_distillation(student, teacher, torch.full((1, 1, 1), label))
        assert loss.item() == pytest.approx(-(0.6 * log_p[target] + 0.4 * log_p[1]) / 3)


def test_label_guided_distillation_without_new_channels_is_output_distillation():
    student, teacher = random(2, 4, 3, 3, grad=True), random(2, 4, 3, 3, seed=1)
    labels = torch.tensor([0, 1, 255]).repeat(2, 3, 1)
    options = {"alpha": 0.7, "reduction": "none"}
    ours = label_guided_distillation(student, teacher, labels, **options)
    assert torch.allclose(ours, output_distillation(student, teacher, **options))
    assert torch.equal(labels, torch.tensor([0, 1, 255]).repeat(2, 3, 1))


def test_label_guided_distillation_against_a_written_out_target():
    student, teacher = random(2, 6, 4, 5, grad=True), random(2, 3, 4, 5, seed=1)
    labels = torch.randint(0, 6, (2, 4, 5), generator=torch.Generator().manual_seed(2))
    labels[labels == 1] = 255
    q = (0.5 * teacher).softmax(1)
    target = torch.zeros(2, 6, 4, 5, dtype=torch.float64)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        y = int(labels[b, i, j])
        target[b, :3, i, j] = q[b, :, i, j]
        if y in (3, 4, 5):
            target[b, 0, i, j], target[b, y, i, j] = 0, q[b, 0, i, j]
    want = -(target * student.log_softmax(1)).sum() / (2 * 4 * 5 * 6)
    got = label_guided_distillation(student, teacher, labels, alpha=0.5)
    assert torch.allclose(got, want)
    assert torch.allclose(torch.autograd.grad(got, student)[0], torch.autograd.grad(want, student)[0])


# --- orthogonality ---


def test_orthogonality_by_hand():
    tokens = torch.tensor([[1.0, 0], [3, 4], [0, 2]], requires_grad=True)  # the last is new
    loss = orthogonality(tokens, new=slice(2, 3))
    assert loss.item() == pytest.approx(1 / 3 * (0 + 0.8) / 2)
    loss.backward()
    assert not tokens.grad[:2].any() and tokens.grad[2].any()


def test_new_classes_turn_away_from_each_other_both_ways():
    tokens = random(5, 3, grad=True)
    loss = orthogonality(tokens, new=slice(3, 5))
    unit = torch.nn.functional.normalize(tokens, dim=1)
    pairs = [(unit[i] @ unit[j].detach()).abs() for i in (3, 4) for j in range(5) if i != j]
    want = 2 / 5 * torch.stack(pairs).mean()
    assert torch.allclose(loss, want)
    assert torch.allclose(torch.autograd.grad(loss, tokens)[0], torch.autograd.grad(want, tokens)[0])


def test_orthogonality_has_nothing_to_do_at_the_edges():
    for tokens, new in ((random(3, 2, grad=True), slice(3, 3)), (random(1, 2, grad=True), slice(0, 1))):
        loss = orthogonality(tokens, new=new)
        loss.backward()
        assert loss.item() == 0 and not tokens.grad.any()
    assert orthogonality(random(1, 4).expand(3, -1), new=slice(1, 3)).item() == pytest.approx(2 / 3)  # all alike: n / C


# --- AMIS ---


def test_pooled_statistics_by_hand():
    x = torch.tensor([1.0, 2, 3, 4, 100])  # the fifth fits no half and no quarter
    found = pooled_statistics(x[:4])
    a, b, c = (1 + 4 + 9 + 16) / 4, [(1 + 4) / 2 / 4, (9 + 16) / 2 / 4], [k / 16 for k in (1, 4, 9, 16)]
    assert torch.allclose(found, torch.tensor([a, *b, *c]).repeat_interleave(2))
    assert torch.allclose(pooled_statistics(x)[2:], found[2:])


def test_pooled_embeddings_by_hand():
    teacher, student = torch.zeros(3, 2, 4), torch.zeros(3, 3, 4)
    student[:, 0, 0] = 1  # row 0 differs by (1/4, 1/8, 0, 1/16, 0, 0, 0), each twice
    distance = math.sqrt(2 * (1 / 16 + 1 / 64 + 1 / 256))
    want = math.sqrt(3 / 1) * (0.01 + 0.01 + 0.0001) / 3 * distance / 2
    assert pooled_embeddings(student, teacher).item() == pytest.approx(want)
    equal = pooled_embeddings(student, teacher, last_factor=0.01)
    assert equal.item() == pytest.approx(math.sqrt(3) * 0.01 * distance / 2)


def test_equal_embeddings_have_no_gradient_instead_of_nan():
    student = random(2, 4, 8, grad=True)
    loss = pooled_embeddings(student, student[:, :3].detach())
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()
    patches = random(1, 4, 3, 3, grad=True)
    pooled_patches(patches, patches.detach(), n_classes=4, n_new=1).backward()
    assert not patches.grad.any()


def test_pooled_patches_against_loops():
    student, teacher, weights = random(2, 6, 3, 4, grad=True), random(2, 6, 3, 4, seed=1), random(2, 3, 4, seed=2).relu()
    total = 0
    for b in range(2):
        found = []
        for f in (student, teacher):
            matrix, parts = f[b].flatten(1).T, []  # 12 patches, 6 channels
            for s in (1, 2, 4):
                k = 6 // s
                for i in range(s):
                    for j in range(s):
                        cell = matrix[i * k : (i + 1) * k, j * k : (j + 1) * k].square()
                        parts += [cell.mean(0) / s**2] * 2
            found.append(torch.cat(parts))
        total = total + (0.01, 0.0001)[b] * (found[0] - found[1]).norm()
    want = math.sqrt(5 / 2) * total / 2 * weights.sum() / (weights > 0).sum()
    got = pooled_patches(student, teacher, weights, n_classes=5, n_new=2)
    assert torch.allclose(got, want)
    assert torch.allclose(torch.autograd.grad(got, student)[0], torch.autograd.grad(want, student)[0])


def test_pooled_patches_with_fewer_patches_than_channels():
    student = torch.zeros(1, 8, 1, 3)
    student[:, :, 0, 2] = 1  # blocks of side 8: one with 3 patches; side 4: 3; side 2: patches 0, 1 and patch 2
    want = math.sqrt(2 * (8 / 9 + 8 / 9 / 16 + 8 / 16**2)) * 0.0001
    assert pooled_patches(student, torch.zeros(1, 8, 1, 3), n_classes=1, n_new=1).item() == pytest.approx(want)


def test_token_cosine_by_hand():
    student, teacher = torch.tensor([[2.0, 0], [0, 1], [5, 5]], requires_grad=True), torch.tensor([[1.0, 0], [3, 4]])
    loss = token_cosine(student, teacher)
    assert loss.item() == pytest.approx((0 + 0.2) / 2)
    loss.backward()
    assert not student.grad[2].any() and student.grad[1].any()


# --- all ---


def test_half_precision_is_computed_in_float32():
    half = torch.bfloat16
    patches, rows = random(1, 8, 2, 2).to(half), random(2, 3, 8).to(half)
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    found = [
        reliability(patches, labels),
        reliable_patches(patches, patches + 1),
        class_embeddings(rows, rows[:, :2] + 1),
        label_guided_distillation(patches, patches[:, :3], labels),
        orthogonality(rows[0], new=slice(2, 3)),
        pooled_embeddings(rows, rows[:, :2] + 1),
        pooled_patches(patches, patches + 1, n_classes=3, n_new=1),
        token_cosine(rows[0], rows[1, :2]),
    ]
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in found)


def test_teachers_get_no_gradient():
    teacher, rows = random(1, 4, 2, 2, seed=1, grad=True), random(2, 3, 4, seed=2, grad=True)
    student, grown = random(1, 4, 2, 2, grad=True), random(2, 4, 4, grad=True)
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    losses = [
        reliable_patches(student, teacher, reliability(teacher, labels)),
        class_embeddings(grown, rows),
        label_guided_distillation(student, teacher[:, :3], labels),
        pooled_embeddings(grown, rows),
        pooled_patches(student, teacher, n_classes=4, n_new=1),
        token_cosine(grown[0], rows[0]),
    ]
    for loss in losses:
        assert torch.autograd.grad(loss, (teacher, rows), allow_unused=True, retain_graph=True) == (None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability(random(1, 2, 2, 2), torch.zeros(2, 4, 4)), "do not fit"),
        (lambda: reliable_patches(random(1, 2, 2, 2), random(1, 3, 2, 2)), "must be equal"),
        (lambda: reliable_patches(random(1, 2, 2, 2), random(1, 2, 2, 2), torch.ones(1, 4)), "need one each"),
        (lambda: class_embeddings(random(1, 2, 4), random(1, 3, 4)), "C at least O"),
        (lambda: token_cosine(random(2, 4), random(2, 5)), "C at least O"),
        (lambda: label_guided_distillation(random(1, 2, 1, 1), random(1, 3, 1, 1), torch.zeros(1, 1, 1).long()), "swapped"),
        (lambda: orthogonality(random(1, 2, 4), new=slice(1, 2)), "one row per class"),
        (lambda: pooled_embeddings(random(1, 2, 4), random(1, 2, 4)), "0 of 2 classes are new"),
        (lambda: pooled_embeddings(random(1, 3, 3), random(1, 2, 3)), "cannot be cut into 4 parts"),
        (lambda: pooled_patches(random(1, 3, 2, 2), random(1, 3, 2, 2), n_classes=2, n_new=1), "cannot be cut into 4 parts"),
    ],
)
def test_what_does_not_fit_is_told(call, message):
    with pytest.raises(KitError, match=message):
        call()
