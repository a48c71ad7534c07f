"""Geometry and normalisation of image and label together, as in DKD.

Images are bilinear, labels nearest, both through Pillow: its antialiased uint8 filter is what the released code uses,
and the tensor version of it differs by one grey level. Label ids are never mixed, so a resized label holds only values
that the original had.

A label is (H, W), or (P, H, W): planes that go the same way, such as a saliency map under the label.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cisskit.errors import KitError

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


def crop_box(
    height: int,
    width: int,
    rng: random.Random,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
) -> Box:
    """A random box inside an image: area = U(scale) * H * W, aspect = exp U(log ratio), up to ``attempts`` tries.

    A scale above 1 never zooms out: it only makes tries fail. When all fail the box is the whole image, or the largest
    central one inside ``ratio`` if the image is narrower or wider than that. Draws from ``rng`` in the order of the
    released code: area, aspect, then top and left of an accepted box.
    """
    for _ in range(attempts):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = rng.randint(0, height - h)
            return top, rng.randint(0, width - w), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_resize(image: Tensor, label: Tensor, box: Box, size: int) -> tuple[Tensor, Tensor]:
    """Cut ``box`` out and resize it to ``size`` x ``size``.

    Args:
        image: (3, H, W) uint8.
        label: (H, W) or (P, H, W) uint8.
        box: inside the image.
    Returns:
        uint8 (3, size, size) and (size, size), or (P, size, size).
    """
    top, left, h, w = box
    image, label = (x[..., top : top + h, left : left + w] for x in (image, label))
    return _resize_image(image, size, size), _resize_label(label, size, size)


def scale_crop(
    image: Tensor, label: Tensor, size: int, rng: random.Random, *, scale: tuple[float, float] = (0.5, 2.0), shorter: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale by one random factor, then cut a random ``size`` x ``size``: the training crop of SSUL, IDEC, LAG, MBS and AMIS.

    Where the scaled image is too small it is padded with 0, the label too: padding is background, not void, as released.

    Args:
        image: (3, H, W) uint8. label: (H, W) or (P, H, W) uint8.
        scale: range of the factor, drawn uniformly; sizes are cut down to whole pixels.
        shorter: resize the shorter side to ``size`` first (MBS, AMIS).
    Returns:
        uint8 (3, size, size) and (size, size), or (P, size, size).
    """
    if shorter:
        least = min(label.shape[-2:])
        height, width = (int(size * side / least) for side in label.shape[-2:])  # divided last: whole sides stay whole
        image, label = _resize_image(image, height, width), _resize_label(label, height, width)
    factor = rng.uniform(*scale)
    height, width = (max(1, int(factor * side)) for side in label.shape[-2:])
    return padded_crop(_resize_image(image, height, width), _resize_label(label, height, width), size, rng)


def padded_crop(image: Tensor, label: Tensor, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """A random ``size`` x ``size`` cut; a map that is too narrow is padded on all FOUR sides first, then one that is too low.

    Draws row and column from ``rng``, neither when nothing is left to choose. Shapes as in `scale_crop`.
    """
    for axis in (-1, -2):
        missing = size - label.shape[axis]
        if missing > 0:
            border = (1 + missing) // 2
            image, label = (F.pad(x, (border,) * 4) for x in (image, label))
    height, width = label.shape[-2:]
    top = left = 0
    if (height, width) != (size, size):
        top, left = rng.randint(0, height - size), rng.randint(0, width - size)
    return image[:, top : top + size, left : left + size], label[..., top : top + size, left : left + size]


def evaluation_crop(image: Tensor, label: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Shorter side to ``size``, then the central ``size`` x ``size``: the published test transform.

    Label and image are cut alike, so a quarter of a 4:3 photograph is never scored. Shapes as in `crop_resize`.
    """
    height, width = label.shape[-2:]
    if height <= width:
        height, width = size, int(size * width / height)
    else:
        height, width = int(size * height / width), size
    top, left = round((height - size) / 2), round((width - size) / 2)
    image, label = _resize_image(image, height, width), _resize_label(label, height, width)
    return image[:, top : top + size, left : left + size], label[..., top : top + size, left : left + size]


def starts(side: int, size: int, stride: int) -> list[int]:
    """Where pieces of ``size`` begin along a side: every ``stride`` pixels, the last one flush with the border. A side that is
    shorter than a piece holds one, at 0."""
    last = max(side - size, 0)
    return [*range(0, last, stride), last]


def windows(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """(top, left) of square windows every ``stride`` pixels, row by row; the last ones lie flush with the border.

    A helper for predicting large images piece by piece; the kit's evaluation runs on whole images.
    Raises `KitError` if the image is smaller than a window.
    """
    if min(height, width) < size or stride < 1:
        raise KitError(f"an image of {width} x {height} pixels holds no window of side {size} (stride {stride}): pad it first.")
    tops, lefts = (starts(side, size, stride) for side in (height, width))
    return [(top, left) for top in tops for left in lefts]


def merge_windows(logits: Tensor, at: Sequence[tuple[int, int]], shape: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Probabilities (C, *original) from logits (n, C, s, s) of `windows` of an image of this shape.

    Where windows overlap their logits are averaged; then bilinear to the original size, then softmax.
    """
    size = logits.shape[2]
    total, count = logits.new_zeros(logits.shape[1], *shape), logits.new_zeros(shape)
    for (top, left), part in zip(at, logits, strict=True):
        total[:, top : top + size, left : left + size] += part
        count[top : top + size, left : left + size] += 1
    mean = (total / count).unsqueeze(0)
    return F.interpolate(mean, size=original, mode="bilinear", align_corners=False)[0].softmax(dim=0)


def flip(maps: Tensor, flips: Tensor) -> Tensor:
    """Mirror left to right where ``flips`` (B,) bool is set. maps: (B, ..., W), any type; returns a new tensor."""
    return torch.where(flips.view(-1, *[1] * (maps.dim() - 1)), maps.flip(-1), maps)


def normalise(image: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """(x / 255 - mean) / std. image: (..., 3, H, W) uint8; returns float32 of the same shape, on the same device."""
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=image.device).view(3, 1, 1) for v in (mean, std))
    return torch.sub(image, 255 * mean).mul_(1 / (255 * std))  # two passes over the pixels


def evaluation_side(eval_size: str) -> int | None:
    """``"full"`` -> None, ``"crop512"`` -> 512. Raises `KitError` for anything else."""
    if eval_size == "full":
        return None
    if eval_size.startswith("crop") and eval_size[4:].isdigit() and int(eval_size[4:]) > 0:
        return int(eval_size[4:])
    raise KitError(f"eval_size {eval_size!r} is neither 'full' nor 'crop' with a side in pixels, as in 'crop512'.")


def _resize_image(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _resize_label(label: Tensor, height: int, width: int) -> Tensor:
    if label.shape[-2:] == (height, width):
        return label
    if label.dim() == 3:
        return torch.stack([_resize_label(plane, height, width) for plane in label])
    resized = Image.fromarray(np.ascontiguousarray(label.numpy())).resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(resized))
