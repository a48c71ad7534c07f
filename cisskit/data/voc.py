"""Pascal VOC 2012 in its official layout.

VOCdevkit/VOC2012/JPEGImages/x.jpg
                  SegmentationClassAug/x.png     VOC's labels and SBD's, 8-bit index PNGs; else SegmentationClass
                  ImageSets/Segmentation/*.txt   ids, or "/JPEGImages/x.jpg /SegmentationClassAug/x.png" pairs
                  saliency_map/x.png             optional, 0 and 255
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cisskit.data import files
from cisskit.data.files import (
    SALIENCY,
    Cache,
    Coding,
    FileSource,
    Index,
    Pair,
    check_pairs,
    coding,
    read_image,
    shared_names,
    voc_palette,
)
from cisskit.data.manifest import check_manifest
from cisskit.errors import KitError, first_ten, unknown
from cisskit.scenario import DATASETS, IGNORE

LISTS = "ImageSets/Segmentation"
IMAGES = "JPEGImages"
LABELS = ("SegmentationClassAug", "SegmentationClass")
"""Label folders, the better one first."""
CODING = coding({v: v for v in (*range(len(DATASETS["voc"].names) + 1), IGNORE)})
RULE = (
    f"VOC labels are 8-bit index PNGs (mode P or L) with one class id per pixel, 0..{len(DATASETS['voc'].names)} or {IGNORE}. "
    "Fetch the file again, or convert it (colours to ids by the VOC palette)."
)
__all__ = ["IMAGES", "LABELS", "LISTS", "Pair", "Voc", "check_pairs", "find_voc", "index_labels", "read_image", "read_list"]


class Voc(FileSource):
    """Pascal VOC 2012; splits ``train`` and ``test``.

    root: the folder that holds ``VOCdevkit/VOC2012``, or ``VOC2012`` itself.
    train_list, test_list: file names in ``ImageSets/Segmentation`` without ``.txt``; None is ``train_aug`` if there is
    one, else ``train``. cache_mb, cache: see `FileSource`. labels_only: open without ``JPEGImages``, for counting.

    Raises `KitError` for a missing root, another layout, an unknown or faulty list, images without label and labels
    without image. Label values are checked by the first `pixels`.
    """

    dataset = "voc"
    label_rule = RULE

    def __init__(
        self,
        root: str | Path,
        *,
        train_list: str | None = None,
        test_list: str = "val",
        cache_mb: int = 2000,
        cache: Cache = "memory",
        labels_only: bool = False,
    ) -> None:
        self.root = find_voc(root)
        folders = [name for name in LABELS if (self.root / name).is_dir()]
        missing = [] if folders else [" or ".join(LABELS)]
        if not labels_only and not (self.root / IMAGES).is_dir():
            missing.append(IMAGES)
        if missing:
            raise KitError(f"{self.root} has no folder {' and none named '.join(missing)}. {_remedy(root)}")
        self.label_folder = folders[0]
        if train_list is None:
            train_list = usual_train_list(self.root)
        self.lists = {"train": train_list, "test": test_list}
        pairs = {split: read_list(self.root, name, self.label_folder) for split, name in self.lists.items()}
        shared = shared_names(pairs["train"], pairs["test"])
        if shared:
            raise KitError(
                f"the lists {train_list!r} and {test_list!r} share images: {first_ten(shared)}. A score on "
                "training images means nothing; choose lists without common names."
            )
        super().__init__(pairs, cache_mb=cache_mb, cache=cache, check=not labels_only)
        if not labels_only:
            check_manifest(self.root, {self.lists[split]: listed for split, listed in pairs.items()})
        self.palette = voc_palette()

    def coding(self, split: str) -> Coding:
        return CODING

    def describe(self) -> dict[str, Any]:
        return {"train_list": self.lists["train"], "test_list": self.lists["test"], "labels": self.label_folder}


def find_voc(root: str | Path) -> Path:
    """The folder ``VOC2012`` at or under ``root``. Raises `KitError` naming what was looked for."""
    root = Path(root).expanduser().absolute()
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / LISTS).is_dir():
            return folder
    state = "has another layout" if root.is_dir() else "does not exist"
    raise KitError(
        f"no Pascal VOC 2012: {root} {state}; looked for {root / 'VOCdevkit' / 'VOC2012' / LISTS} "
        f"and {root / LISTS}. {_remedy(root)}"
    )


def usual_train_list(root: Path) -> str:
    """The list that is trained on unless another one is asked for: the augmented one, if it is there."""
    return "train_aug" if (root / LISTS / "train_aug.txt").is_file() else "train"


def _remedy(root: str | Path) -> str:
    return f"`python -m data_prep voc --root {root}` makes it, and with --check says what is missing."


def read_list(root: Path, name: str, label_folder: str) -> list[Pair]:
    """The images of ``ImageSets/Segmentation/<name>.txt``. Raises `KitError`: unknown, empty, malformed, a name twice."""
    file = root / LISTS / f"{name}.txt"
    if not file.is_file():
        raise unknown(f"list in {root / LISTS}:", name, sorted(p.stem for p in (root / LISTS).glob("*.txt")))
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if len(words) == 1 and "/" not in words[0]:
            image, label = root / IMAGES / f"{words[0]}.jpg", root / label_folder / f"{words[0]}.png"
        elif len(words) == 2:
            image, label = (root / word.lstrip("/") for word in words)
        elif words:
            raise KitError(
                f"{file}, line {number}: {line.strip()!r} is neither an image id nor a pair "
                f"'/{IMAGES}/x.jpg /{label_folder}/x.png'."
            )
        else:
            continue
        name_of = words[0] if len(words) == 1 else image.stem  # an id may hold dots
        pairs.append(Pair(name_of, image, label, root / SALIENCY / f"{name_of}.png"))
    if not pairs:
        raise KitError(f"{file} lists no image. {_remedy(root)}")
    names = [p.name for p in pairs]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise KitError(f"{file} lists images twice: {first_ten(twice)}. Remove the repeated lines.")
    return pairs


def index_labels(labels: Sequence[Path]) -> Index:
    """`files.index_labels` for VOC's values."""
    return files.index_labels(labels, CODING, RULE)
