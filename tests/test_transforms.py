"""Crops, resizing, mirroring and normalising, by hand; the released code's arrays are run by tests/golden.py."""

import random

import pytest
import torch

from cisskit.data.transforms import crop_box, crop_resize, evaluation_crop, evaluation_side, flip, normalise
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
