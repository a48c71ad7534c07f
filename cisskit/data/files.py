"""Data sets that lie in files: images, and label maps with one class id per pixel.

A data set derives from `FileSource` and says three things: which files belong together (`Pair`), what the values in its
label files mean (`coding`), and what to do when something is missing. Which image shows which class comes from one pass
over the label files. The result is kept in the cache folder under a fingerprint of those files, so the second start reads
no label.
"""

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cisskit.data.base import Source
from cisskit.data.cache import InMemory, OnDisk, Sample, cache_folder
from cisskit.errors import KitError, first_ten, unknown
from cisskit.files import written_whole
from cisskit.scenario import IGNORE

Cache = Literal["memory", "disk"]
"""Where decoded images are kept: by this process, or in files of the cache folder that processes and runs share."""
Coding = NDArray[np.int16]
"""(256,): original id (or 255) of each value in a label file, -1 for values that are refused."""
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a truncated or broken file."""
PHOTOS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
SALIENCY = "saliency_map"
"""Folder of saliency maps, beside the images."""
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_INDEX_FORMAT = 2


class Pair(NamedTuple):
    """One image of a data set."""

    name: str
    image: Path
    label: Path
    saliency: Path | None = None


class Index(NamedTuple):
    """What one pass over label files finds."""

    pixels: NDArray[np.int64]  # (n, 256) pixels of each file value
    sizes: NDArray[np.int64]  # (n, 2) height, width
    digest: str  # of the label files' names and bytes


def coding(ids: Mapping[int, int]) -> Coding:
    """The `Coding` of file value -> original id; all other values are refused."""
    table = np.full(256, -1, dtype=np.int16)
    for value, original in ids.items():
        table[value] = original
    return table


class FileSource(Source):
    """Pairs of files. Derive, and call this with the pairs of each split.

    missing: split -> why it has no images; asking for it raises a `KitError` with these words.
    cache_mb: room for decoded images; cache: where it is, see `Cache`. check: whether every image and label must be there.
    Raises `KitError` for images without label and labels without image. Label values are checked by the first `pixels`.
    """

    label_rule: ClassVar[str]
    """What a label file of this data set must be, and how to make it: the end of an error message."""

    def __init__(
        self, pairs: Mapping[str, list[Pair]], missing: Mapping[str, str] | None = None, *,
        cache_mb: int, cache: Cache = "memory", check: bool = True,
    ) -> None:  # fmt: skip
        if cache not in get_args(Cache):
            raise unknown("place for decoded images:", cache, get_args(Cache))
        if check:
            check_pairs(p for listed in pairs.values() for p in listed)
        self.pairs, self.missing = pairs, missing or {}
        self._names = {split: tuple(p.name for p in listed) for split, listed in pairs.items()}
        for split, names in self._names.items():
            if len(set(names)) < len(names):
                raise KitError(f"{self.dataset} {split} has images of one name: {first_ten(_twice(names))}. Rename them.")
        self._indices: dict[str, Index] = {}
        self._pixels: dict[str, NDArray[np.int64]] = {}
        room = cache_mb * 2**20
        self.cache: InMemory | OnDisk = OnDisk(room, self._stored) if cache == "disk" else InMemory(room)

    def coding(self, split: str) -> Coding:
        """What the values in the label files of a split mean."""
        raise NotImplementedError

    def _pairs(self, split: str) -> list[Pair]:
        if split in self.missing and split not in self.pairs:
            raise KitError(self.missing[split])
        if split not in self.pairs:
            raise unknown("split", split, self.splits)
        return self.pairs[split]

    def names(self, split: str) -> tuple[str, ...]:
        self._pairs(split)
        return self._names[split]

    def image(self, split: str, i: int) -> Tensor:
        if (kept := self.cache.get(split, i)) is not None:
            return kept[0]
        return torch.from_numpy(read_image(self._pairs(split)[i].image)).permute(2, 0, 1)

    def label(self, split: str, i: int) -> Tensor:
        if (kept := self.cache.get(split, i)) is not None:
            return kept[1]
        return torch.from_numpy(read_label(self._pairs(split)[i].label, self.coding(split), self.label_rule))

    def pair(self, split: str, i: int) -> Sample:
        if (kept := self.cache.get(split, i)) is not None:
            return kept
        sample = super().pair(split, i)
        self.cache.put(split, i, sample)
        return sample

    def where(self, split: str, i: int) -> str:
        pair = self._pairs(split)[i]
        return f"{pair.image} and {pair.label}"

    def warm(self, split: str, indices: NDArray[np.int64]) -> None:
        if isinstance(self.cache, OnDisk):
            self.cache.open(split)  # the processes fill it
            return
        todo = [i for i in dict.fromkeys(map(int, indices)) if self.cache.get(split, i) is None]
        used = np.cumsum(4 * self.sizes(split)[todo].prod(axis=1)) if todo else np.zeros(0)
        fits = todo[: int(np.searchsorted(used, self.cache.room, side="right"))]
        with ThreadPoolExecutor(_threads()) as pool:
            list(pool.map(lambda i: self.pair(split, i), fits))

    def pixels(self, split: str) -> NDArray[np.int64]:
        if split not in self._pixels:
            values, table = self._index(split).pixels, self.coding(split)
            counts = np.zeros_like(values)
            for value in np.flatnonzero(table >= 0):
                counts[:, table[value]] += values[:, value]
            self._pixels[split] = counts
        return self._pixels[split]

    def sizes(self, split: str) -> NDArray[np.int64]:
        return self._index(split).sizes

    def fingerprint(self, split: str) -> str:
        return self._index(split).digest

    def saliency(self, split: str, i: int) -> Tensor:
        path = self._pairs(split)[i].saliency
        if path is None:
            return super().saliency(split, i)
        salient = read_saliency(path)
        if (height, width) := tuple(self.sizes(split)[i].tolist()):  # type: ignore[misc]
            pass
        return salient

    def _index(self, split: str) -> Index:
        if split not in self._indices:
            labels = [p.label for p in self._pairs(split)]
            file = cache_folder() / f"{self.dataset}-{_stat_key(labels)}.npz"
            index = _load_index(file, len(labels))
            if index is None:
                index = index_labels(labels, self.coding(split), self.label_rule)
                _save_index(file, index)
            else:
                _check_values(labels, index.pixels, self.coding(split), self.label_rule)
            self._indices[split] = index
        return self._indices[split]

    def _stored(self, split: str) -> tuple[Path, NDArray[np.int64]]:
        """File of decoded samples and their sizes, for `OnDisk`."""
        key = hashlib.sha256(self.coding(split).tobytes())
        key.update(f"{self.fingerprint(split)} {_stat_key([p.image for p in self._pairs(split)])}".encode())
        return cache_folder() / f"{self.dataset}-{split}-{key.hexdigest()[:24]}.pixels", self.sizes(split)
