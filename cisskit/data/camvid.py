"""CamVid with eleven classes, in the layout of the SegNet tutorial.

CamVid/{train,val,test}/x.png
       {trainannot,valannot,testannot}/x.png    8-bit index PNGs: 0..10, 11 and 255 void
"""

from pathlib import Path
from typing import Any

import numpy as np

from cisskit.data.files import SALIENCY, Cache, Coding, FileSource, Folders, coding, split_folders
from cisskit.scenario import DATASETS, IGNORE

FOLDER = "CamVid"
FOLDERS = {"train": "train", "heldout": "val", "test": "test"}
N = len(DATASETS["camvid"].names)
CODING = coding({v: v + 1 for v in range(N)} | {N: IGNORE, IGNORE: IGNORE})
COLOURS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128),
    (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
"""Of the classes in the order of their file values, as the data set draws them."""


class CamVid(FileSource):
    """CamVid; splits ``train``, ``heldout`` (val) and ``test``. Every pixel belongs to a class or is void.

    root: the folder that holds ``CamVid``, or that folder. cache_mb, cache: see `FileSource`.
    Raises `KitError` for a missing root, another layout, and what `FileSource` finds.
    """

    dataset = "camvid"
    splits = tuple(FOLDERS)

    def __init__(self, root: str | Path, *, cache_mb: int = 2000, cache: Cache = "memory") -> None:
        root = Path(root).expanduser().absolute()
        self.root = root if (root / "trainannot").is_dir() else root / FOLDER
        remedy = f"`python -m data_prep camvid --root {root}` says where to get it and how to lay it out."
        self.label_rule = (
            f"CamVid labels are 8-bit index PNGs with one class number per pixel, 0..{N - 1}, or {N} or {IGNORE} for void; the "
            f"coloured labels of the original release have other values. {remedy}"
        )
        folders = {
            split: Folders(self.root / name, self.root / f"{name}annot", self.root / SALIENCY / name)
            for split, name in FOLDERS.items()
        }
        super().__init__(*split_folders("camvid", folders, remedy), cache_mb=cache_mb, cache=cache)
        self.palette = np.zeros((256, 3), dtype=np.uint8)
        self.palette[1 : N + 1] = COLOURS
        self.palette[IGNORE] = 255

    def coding(self, split: str) -> Coding:
        return CODING

    def describe(self) -> dict[str, Any]:
        return {}
