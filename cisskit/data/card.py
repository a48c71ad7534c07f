"""What a data set holds, in numbers: the data card."""

from typing import Any

import numpy as np

from cisskit.data.base import Source
from cisskit.scenario import IGNORE


def card(source: Source) -> dict[str, Any]:
    """The numbers of a data set, ready for JSON: no paths, nothing of this machine.

    ``classes``: names by original id; 0 is "" where every pixel belongs to a class. ``splits``: of each that is there
        images: how many; sizes: [width, height, images] of each distinct size, most frequent first;
        images_per_class, pixels_per_class: by original id, 0 included; void_share: of all pixels;
        together: (C, C) images that show both of two classes, from id 1 on; the diagonal is images_per_class again.
    """
    labels = source.labels
    classes = [labels.background, *labels.names]
    splits = {}
    for split in source.splits:
        if split in source.missing:
            continue
        pixels = source.pixels(split)
        counts = pixels[:, : len(classes)]
        shown = (counts > 0).astype(np.int64)
        sizes, of_size = np.unique(source.sizes(split)[:, ::-1], axis=0, return_counts=True)
        order = np.argsort(-of_size, kind="stable")
        splits[split] = {
            "images": len(pixels),
            "fingerprint": source.fingerprint(split),
            "sizes": np.column_stack([sizes, of_size])[order].tolist(),
            "images_per_class": shown.sum(axis=0).tolist(),
            "pixels_per_class": counts.sum(axis=0).tolist(),
            "void_share": float(pixels[:, IGNORE].sum() / pixels.sum()),
            "together": (shown[:, 1:].T @ shown[:, 1:]).tolist(),
        }
    return {"dataset": source.dataset, "source": source.describe(), "classes": classes, "splits": splits}
