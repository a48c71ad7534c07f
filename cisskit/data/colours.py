"""Label images in colour and the numbers they stand for."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cisskit.scenario import IGNORE

Colour = tuple[int, int, int]


def colours_to_ids(rgb: NDArray[np.uint8], colours: Mapping[Colour, int]) -> tuple[NDArray[np.uint8], Counter[Colour]]:
    """Replace each colour of a label image by its number.

    Args:
        rgb: (H, W, 3) uint8.
        colours: number (0..255) of each colour; at least one.

    Returns:
        ids (H, W) uint8, and how many pixels had which other colour. Those pixels are 255 in ``ids``: whoever does not
        refuse them must mean void.
    """
    table = np.array([(r << 16 | g << 8 | b, number) for (r, g, b), number in colours.items()], dtype=np.int32)
    table = table[table[:, 0].argsort()]
    codes, numbers = table[:, 0], table[:, 1].astype(np.uint8)
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    packed = red << 16 | green << 8 | blue
    place = np.searchsorted(codes, packed).clip(max=len(codes) - 1)
    known = codes[place] == packed
    others, counts = np.unique(packed[~known], return_counts=True)
    unknown = {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): int(n) for c, n in zip(others, counts, strict=True)}
    return np.where(known, numbers[place], np.uint8(IGNORE)), Counter(unknown)


def tell_colours(unknown: Counter[Colour]) -> str:
    """``"1200 pixels of 2 unknown colours: (252, 255, 0) 1100, (1, 2, 3) 100"``, the most frequent ones first."""
    told = ", ".join(f"{colour} {count}" for colour, count in unknown.most_common(5))
    return f"{unknown.total()} pixels of {len(unknown)} unknown colours: {told}{', ...' if len(unknown) > 5 else ''}"
