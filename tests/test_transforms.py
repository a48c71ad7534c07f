"""Crops, resizing, mirroring and normalising, by hand; the released code's arrays are run by tests/golden.py."""

import random

import pytest
import torch

from cisskit.data.transforms import (
    crop_box,
    crop_resize,
    evaluation_crop,
    evaluation_side,
    flip,
    merge_windows,
    normalise,
    padded_crop,
    scale_crop,
    windows,
)
from cisskit.errors import KitError


def picture(height, width):
    """An image whose red is the row and green the column, and a label that says the same about halves."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    return image, (2 * (rows >= height // 2) + (columns >= width // 2)).to(torch.uint8)


def test_boxes_lie_inside_and_have_the_promised_area_and_aspect():
    rng = random.Random(0)
    for _ in range(500):
        top, left, h, w = crop_box(300, 400, rng)
        assert 0 <= top <= 300 - h and 0 <= left <= 400 - w
        assert h * w >= 0.49 * 300 * 400 and 0.74 <= w / h <= 1.35


@pytest.mark.parametrize(
    ("size", "box"),
    [((300, 900), (0, 250, 300, 400)), ((900, 300), (250, 0, 400, 300)), ((30, 40), (0, 0, 30, 40)), ((40, 31), (0, 0, 40, 31))],
)
def test_when_no_try_fits_the_box_is_the_largest_central_one(size, box):
    assert crop_box(*size, random.Random(0), attempts=0) == box


def test_a_crop_of_the_right_size_is_not_touched():
    image, label = picture(20, 30)
    out, out_label = crop_resize(image, label, (3, 5, 8, 8), 8)
    assert torch.equal(out[0, :, 0], torch.arange(3, 11).to(torch.uint8))
    assert torch.equal(out[1, 0], torch.arange(5, 13).to(torch.uint8))
    assert torch.equal(out_label, label[3:11, 5:13])


def test_labels_are_never_mixed():  # 2 x 2 becomes 4 x 4 of equal blocks; bilinear would invent ids between
    label = torch.tensor([[0, 20], [255, 7]], dtype=torch.uint8)
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    _, out = crop_resize(image, label, (0, 0, 2, 2), 4)
    assert torch.equal(out, label.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_images_are_bilinear():  # half-pixel centres: 0 and 100 at twice the width become 0, 25, 75, 100
    image = torch.tensor([0, 100], dtype=torch.uint8).expand(3, 2, 2)
    out, _ = crop_resize(image, torch.zeros(2, 2, dtype=torch.uint8), (0, 0, 2, 2), 4)
    assert out[0].tolist() == [[0, 25, 75, 100]] * 4


def test_padded_crop_cuts_where_the_draws_say():
    image, label = picture(20, 30)
    rng = random.Random(4)
    top, left = rng.randint(0, 20 - 8), rng.randint(0, 30 - 8)  # row first
    out, out_label = padded_crop(image, label, 8, random.Random(4))
    assert out[0, :, 0].tolist() == list(range(top, top + 8)) and out[1, 0].tolist() == list(range(left, left + 8))
    assert torch.equal(out_label, label[top : top + 8, left : left + 8])


def test_padding_goes_all_around_and_is_background():
    image, label = torch.full((3, 6, 5), 9, dtype=torch.uint8), torch.full((6, 5), 7, dtype=torch.uint8)
    rng = random.Random(0)  # 3 columns are missing: 2 on all four sides make 10 x 9, high enough
    top, left = rng.randint(0, 10 - 8), rng.randint(0, 9 - 8)
    out, out_label = padded_crop(image, label, 8, random.Random(0))
    padded = torch.zeros(10, 9, dtype=torch.uint8)
    padded[2:8, 2:7] = 7
    assert torch.equal(out_label, padded[top : top + 8, left : left + 8])
    assert torch.equal(out[1] > 0, out_label > 0) and set(out.unique().tolist()) == {0, 9}


def test_a_low_map_is_padded_after_a_narrow_one():
    label = torch.full((1, 7), 7, dtype=torch.uint8)  # 1 column missing: 3 x 9; then 5 rows: 3 more around, 9 x 15
    rng = random.Random(2)
    top, left = rng.randint(0, 9 - 8), rng.randint(0, 15 - 8)
    _, out = padded_crop(label.expand(3, 1, 7), label, 8, random.Random(2))
    padded = torch.zeros(9, 15, dtype=torch.uint8)
    padded[4, 4:11] = 7
    assert torch.equal(out, padded[top : top + 8, left : left + 8])


def test_nothing_is_drawn_when_there_is_no_choice():
    image, label = picture(8, 8)
    rng = random.Random(0)
    out, out_label = padded_crop(image, label, 8, rng)
    assert torch.equal(out, image) and torch.equal(out_label, label)
    assert rng.random() == random.Random(0).random()


def test_scale_crop_is_one_factor_then_a_cut():
    image, label = picture(20, 30)
    for seed in range(20):
        rng = random.Random(seed)
        factor = rng.uniform(0.5, 2.0)
        height, width = int(20 * factor), int(30 * factor)
        out, out_label = scale_crop(image, label, 16, random.Random(seed))
        assert out.shape == (3, 16, 16) and out_label.shape == (16, 16) and out.dtype == out_label.dtype == torch.uint8
        if height >= 16:  # wide enough, too: no padding, and a ramp whose slope is 1 / factor
            top, left = rng.randint(0, height - 16), rng.randint(0, width - 16)
            rows = [(top + k + 0.5) * 20 / height - 0.5 for k in range(16)]
            columns = [(left + k + 0.5) * 30 / width - 0.5 for k in range(16)]
            assert out[0, :, 0].tolist() == pytest.approx([min(max(r, 0), 19) for r in rows], abs=1.01)
            assert out[1, 0].tolist() == pytest.approx([min(max(c, 0), 29) for c in columns], abs=1.01)


def test_scale_crop_without_scaling_is_the_padded_crop():
    image, label = picture(20, 30)
    rng, plain = random.Random(5), random.Random(5)
    plain.uniform(1, 1)
    for one, two in zip(scale_crop(image, label, 24, rng, scale=(1, 1)), padded_crop(image, label, 24, plain), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("size", "resized"), [((20, 30), (10, 15)), ((30, 20), (15, 10)), ((20, 20), (10, 10)), ((3, 7), (10, 23))]
)
def test_scale_crop_may_resize_the_shorter_side_first(size, resized):
    image, label = picture(*size)
    out, out_label = scale_crop(image, label, 10, random.Random(1), scale=(1, 1), shorter=True)
    rng = random.Random(1)
    rng.uniform(1, 1)
    top = left = 0
    if resized != (10, 10):
        top, left = rng.randint(0, resized[0] - 10), rng.randint(0, resized[1] - 10)
    scale = size[0] / resized[0], size[1] / resized[1]
    rows = [min(max((top + k + 0.5) * scale[0] - 0.5, 0), size[0] - 1) for k in range(10)]
    columns = [min(max((left + k + 0.5) * scale[1] - 0.5, 0), size[1] - 1) for k in range(10)]
    assert out[0, :, 0].tolist() == pytest.approx(rows, abs=1.01) and out[1, 0].tolist() == pytest.approx(columns, abs=1.01)
    assert out_label.shape == (10, 10) and set(out_label.unique().tolist()) <= {0, 1, 2, 3}


def test_a_side_that_scales_to_a_whole_number_is_not_cut_down():  # 49 / 11 * 22 = 97.99..
    asked = []

    class Draws(random.Random):
        def randint(self, low, high):
            asked.append(high)
            return super().randint(low, high)

    for least in range(3, 60):
        scale_crop(*picture(least, 2 * least), 49, Draws(0), scale=(1, 1), shorter=True)
    assert asked[::2] == [0] * 57 and asked[1::2] == [2 * 49 - 49] * 57


def test_labels_of_a_scale_crop_are_never_mixed():
    label = (20 * torch.randint(0, 2, (30, 40), generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    label[label == 0] = 255
    for seed in range(10):
        _, out = scale_crop(label.expand(3, 30, 40), label, 32, random.Random(seed))
        assert set(out.unique().tolist()) <= {0, 20, 255}


def test_windows_by_hand():
    assert windows(5, 9, 4, 3) == [(0, 0), (0, 3), (0, 5), (1, 0), (1, 3), (1, 5)]
    assert windows(4, 8, 4, 4) == [(0, 0), (0, 4)] and windows(4, 4, 4, 1) == [(0, 0)]
    for size, stride in ((6, 1), (4, 0)):
        with pytest.raises(KitError, match="9 x 5 pixels holds no window"):
            windows(5, 9, size, stride)


def test_merged_windows_are_means_where_they_overlap():
    at = windows(2, 3, 2, 1)  # columns 0-1 and 1-2
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 0], logits[1, 0] = 1.0, 3.0
    out = merge_windows(logits, at, (2, 3), (2, 3))
    assert out[0, 0].tolist() == pytest.approx(torch.tensor([1.0, 2.0, 3.0]).sigmoid().tolist())
    assert torch.allclose(out.sum(dim=0), torch.ones(2, 3))
    wide = merge_windows(logits, at, (2, 3), (4, 6))  # logits are bilinear, not probabilities: 1, 1.25, 1.75, ..
    assert wide[0, 0].tolist() == pytest.approx(torch.tensor([1.0, 1.25, 1.75, 2.25, 2.75, 3.0]).sigmoid().tolist())


def test_windows_of_a_whole_prediction_give_it_back():
    z = torch.randn(1, 3, 11, 14, generator=torch.Generator().manual_seed(0))
    at = windows(11, 14, 5, 3)
    parts = torch.cat([z[:, :, top : top + 5, left : left + 5] for top, left in at])
    torch.testing.assert_close(merge_windows(parts, at, (11, 14), (11, 14)), z[0].softmax(dim=0))


def test_evaluation_crop_is_the_centre():
    image, label = picture(16, 40)
    out, out_label = evaluation_crop(image, label, 16)  # no resizing: columns 12..27
    assert out[1, 0].tolist() == list(range(12, 28)) and torch.equal(out_label, label[:, 12:28])
    tall, _ = evaluation_crop(*picture(40, 16), 16)
    assert tall[0, :, 0].tolist() == list(range(12, 28))


def test_evaluation_crop_resizes_the_shorter_side():
    out, label = evaluation_crop(*picture(20, 30), 10)  # 10 x 15, then columns 2..11
    assert out.shape == (3, 10, 10) and label.shape == (10, 10)
    assert out[0, :, 0].tolist() == pytest.approx([0.5 + 2 * k for k in range(10)], abs=0.6)
    assert label[:5].unique().tolist() == [0, 1] and label[5:].unique().tolist() == [2, 3]


def test_flip_mirrors_the_marked_ones_only():
    maps = torch.arange(12).view(2, 2, 3)
    out = flip(maps, torch.tensor([False, True]))
    assert out.tolist() == [[[0, 1, 2], [3, 4, 5]], [[8, 7, 6], [11, 10, 9]]]
    assert maps.flatten().tolist() == list(range(12))


def test_normalise_by_hand():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    out = normalise(image, (0.5, 0.5, 0.4), (0.25, 0.5, 0.1))
    assert out.dtype == torch.float32 and out.flatten().tolist() == pytest.approx([-2, 1, -2], abs=1e-6)


def test_evaluation_side():
    assert evaluation_side("full") is None and evaluation_side("crop513") == 513
    for wrong in ("512", "crop", "crop0", "crop-1", "whole"):
        with pytest.raises(KitError, match="crop512"):
            evaluation_side(wrong)
