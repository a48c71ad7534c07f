"""The embedded scenes as a `Source`: drawn in the process, kept in memory, the same for the same seed."""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cisskit.data.base import Source
from cisskit.data.scenes import PALETTE, scenes
from cisskit.errors import KitError, unknown
from cisskit.scenario import IGNORE


@lru_cache(maxsize=6)  # a chain of steps opens the same scenes again and again
def _drawn(seed: int, split: str, count: int, size: int, domain: str) -> tuple[Tensor, Tensor]:
    images, labels = scenes(seed, split, count, size=size, domain=domain)
    return torch.from_numpy(images), torch.from_numpy(labels)


class Toy(Source):
    """Scenes with nine object classes; splits ``train``, ``heldout`` (for tuning) and ``test``.

    A split is drawn when it is first asked for, in about a second per thousand scenes.
    """

    dataset = "toy"
    splits = ("train", "heldout", "test")
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    perfect_saliency = True

    def __init__(
        self, *, train: int = 1600, heldout: int = 250, test: int = 250, size: int = 64, domain: str = "day", seed: int = 0
    ) -> None:
        self.counts = {"train": train, "heldout": heldout, "test": test}
        for name, count in self.counts.items():
            if count < 1:
                raise KitError(f"the toy split {name!r} needs at least one scene, not {count}.")
        self.size, self.domain, self.seed = size, domain, seed
        self.palette = np.zeros((256, 3), dtype=np.uint8)
        self.palette[: len(PALETTE)] = PALETTE
        self.palette[IGNORE] = 255
        self._pixels: dict[str, NDArray[np.int64]] = {}

    def arrays(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in self.counts:
            raise unknown("split", split, self.splits)
        return _drawn(self.seed, split, self.counts[split], self.size, self.domain)

    def names(self, split: str) -> tuple[str, ...]:
        if split not in self.counts:
            raise unknown("split", split, self.splits)
        return tuple(f"{split}-{i:05d}" for i in range(self.counts[split]))

    def image(self, split: str, i: int) -> Tensor:
        return self.arrays(split)[0][i].permute(2, 0, 1)

    def label(self, split: str, i: int) -> Tensor:
        return self.arrays(split)[1][i]

    def pixels(self, split: str) -> NDArray[np.int64]:
        if split not in self._pixels:
            labels = self.arrays(split)[1].numpy()
            rows = 256 * np.arange(len(labels), dtype=np.int64)[:, None] + labels.reshape(len(labels), -1)
            self._pixels[split] = np.bincount(rows.ravel(), minlength=256 * len(labels)).reshape(-1, 256)
        return self._pixels[split]

    def sizes(self, split: str) -> NDArray[np.int64]:
        return np.full((len(self.names(split)), 2), self.size, dtype=np.int64)

    def fingerprint(self, split: str) -> str:
        digest = hashlib.sha256()
        for array in self.arrays(split):
            digest.update(array.numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "size": self.size, "domain": self.domain, "counts": self.counts}
