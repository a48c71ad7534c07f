"""Decoded samples, kept within a budget: in memory, or in files that processes and runs share. Both give the same pixels."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from cisskit.errors import KitError

Sample = tuple[Tensor, Tensor]
"""Image (3, H, W) and label (H, W), uint8."""


def cache_folder() -> Path:
    """Where the kit keeps what it can compute again: ``CISSKIT_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("CISSKIT_CACHE") or platformdirs.user_cache_dir("cisskit"))


class InMemory:
    """Samples of this process. room: bytes that are left."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.kept: dict[tuple[str, int], Sample] = {}

    def get(self, split: str, i: int) -> Sample | None:
        return self.kept.get((split, i))

    def put(self, split: str, i: int, sample: Sample) -> None:
        used = sum(part.numel() for part in sample)
        if used <= self.room and get_worker_info() is None:  # a loader process would keep a copy of its own
            self.room -= used
            self.kept[split, i] = sample


class _File(NamedTuple):
    path: Path
    sizes: NDArray[np.int64]  # (n, 2)
    starts: NDArray[np.int64]  # (n + 1,) where the pixels of each sample begin
    bytes: NDArray[np.uint8]  # the whole file, mapped: n flags, then the pixels


class OnDisk:
    """Samples in one file per split. room: bytes for pixels. layout: split -> file and sizes (n, 2) of its images.

    A flag is set after its pixels are written: of a process that is killed a sample is whole or not there. The file names
    everything that decides its pixels, so nothing in it is ever changed. Its length is that of the whole split, but only
    what is written takes room on the disk.
    """

    def __init__(self, room: int, layout: Callable[[str], tuple[Path, NDArray[np.int64]]]) -> None:
        self.room, self.layout = room, layout
        self.files: dict[str, _File] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": {}}  # a spawned process opens its own: a map travels as a copy of all pixels

    def open(self, split: str) -> _File:
        if split not in self.files:
            path, sizes = self.layout(split)
            starts = len(sizes) + np.concatenate([[0], np.cumsum(4 * sizes.prod(axis=1))])
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.truncate(int(starts[-1]))  # no more than its length is set; one that is there keeps its pixels
            except OSError as error:
                raise KitError(
                    f"cannot keep decoded images in {path}: {error.strerror or error}. Set CISSKIT_CACHE to a folder that can be "
                    "written, or keep them in memory (cache='memory')."
                ) from error
            self.files[split] = _File(path, sizes, starts, np.memmap(path, np.uint8, "r"))
        return self.files[split]

    def get(self, split: str, i: int) -> Sample | None:
        file = self.open(split)
        if not file.bytes[i]:
            return None
        pixels = torch.from_numpy(np.array(file.bytes[file.starts[i] : file.starts[i + 1]]))  # a copy: nobody may write the map
        height, width = file.sizes[i].tolist()
        image, label = pixels.split([3 * height * width, height * width])
        return image.view(height, width, 3).permute(2, 0, 1), label.view(height, width)

    def put(self, split: str, i: int, sample: Sample) -> None:
        file = self.open(split)
        if self.used() + file.starts[i + 1] - file.starts[i] > self.room:
            return
        image, label = sample
        try:
            with file.path.open("r+b") as out:  # not through the map: a full disk would end the process
                out.seek(int(file.starts[i]))
                out.write(image.permute(1, 2, 0).contiguous().numpy().tobytes() + label.contiguous().numpy().tobytes())
                out.flush()
                out.seek(i)
                out.write(b"\1")
        except OSError as error:
            self.room = 0
            warnings.warn(f"no further decoded images are kept in {file.path}: {error.strerror or error}.", stacklevel=2)

    def used(self) -> int:
        """Bytes of pixels in the files that are open, whoever wrote them."""
        return sum(int(np.diff(file.starts)[file.bytes[: len(file.sizes)] > 0].sum()) for file in self.files.values())
