"""ADE20K as released for scene parsing (SceneParse150).

ADEChallengeData2016/images/{training,validation}/x.jpg
                     annotations/{training,validation}/x.png   8-bit index PNGs: 0 other, 1..150
                     saliency_map/{training,validation}/x.png  optional, 0 and 255
"""

from pathlib import Path
from typing import Any

from cisskit.data.files import SALIENCY, Cache, Coding, FileSource, Folders, coding, split_folders, voc_palette
from cisskit.data.manifest import check_manifest
from cisskit.scenario import DATASETS

FOLDER = "ADEChallengeData2016"
IMAGES, LABELS = "images", "annotations"
FOLDERS = {"train": "training", "test": "validation"}
CODING = coding({v: v for v in range(len(DATASETS["ade"].names) + 1)})


class Ade(FileSource):
    """ADE20K; splits ``train`` (training) and ``test`` (validation). Original id 0, "other", is unlabelled; nothing is void.

    root: the folder that holds ``ADEChallengeData2016``, or that folder. cache_mb, cache: see `FileSource`.
    Raises `KitError` for a missing root, another layout, and what `FileSource` finds.
    """

    dataset = "ade"

    def __init__(self, root: str | Path, *, cache_mb: int = 2000, cache: Cache = "memory") -> None:
        root = Path(root).expanduser().absolute()
        self.root = root if (root / LABELS).is_dir() else root / FOLDER
        remedy = f"`python -m data_prep ade20k --root {root}` makes it, and with --check says what is missing."
        self.label_rule = (
            f"ADE20K labels are 8-bit index PNGs with one class id per pixel, 0..{len(DATASETS['ade'].names)}: those of the "
            f"scene parsing release, {FOLDER}, not of the full data set. {remedy}"
        )
        folders = {
            split: Folders(*(self.root / kind / name for kind in (IMAGES, LABELS, SALIENCY))) for split, name in FOLDERS.items()
        }
        super().__init__(*split_folders("ade", folders, remedy), cache_mb=cache_mb, cache=cache)
        check_manifest(self.root, self.pairs)
        self.palette = voc_palette()

    def coding(self, split: str) -> Coding:
        return CODING

    def describe(self) -> dict[str, Any]:
        return {}
