"""Pascal VOC 2012 with the augmented labels.

DATA gets, or has already:
  VOCtrainval_11-May-2012.tar   2 GB, from the VOC organisers, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ : fetched when
                                it is not there (the images come from flickr: research use, its terms of use apply)
  SegmentationClassAug.zip      SBD's labels (Hariharan et al. 2011) as index PNGs, linked by the README of
                                https://github.com/DrSleep/tensorflow-deeplab-resnet
  train_aug.txt                 the 10582 names, in many repositories, for instance datasets/data/train_aug.txt of
                                https://github.com/VainF/DeepLabV3Plus-Pytorch
The last two you download yourself; without them there are VOC's own 1464 training images. Then
  python -m data_prep voc --root DATA
makes DATA/VOCdevkit/VOC2012. Nothing that exists is overwritten.
"""

import argparse
import shutil
from pathlib import Path, PurePosixPath

from cisskit.data.files import Pair
from cisskit.data.manifest import MANIFEST, write_manifest
from cisskit.data.voc import CODING, IMAGES, LABELS, LISTS, RULE, check_pairs, find_voc, read_list, usual_train_list
from cisskit.errors import KitError
from data_prep.check import Table, count_of, rows_of_pairs
from data_prep.download import Archive, fetch
from data_prep.unpack import FOUND, move, untar, unzip, workplace

TRAINVAL = Archive(
    "VOCtrainval_11-May-2012.tar",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    1999639040,
    "md5:6cd6e144f989b92b3379bac3b3de84fd",  # as torchvision has it
)
AUGMENTED, NAMES = "SegmentationClassAug.zip", "train_aug.txt"
SIZES = {"train_aug": 10582, "train": 1464, "val": 1449}


def options(parser: argparse.ArgumentParser) -> None:
    pass


def assemble(chosen: argparse.Namespace) -> int:
    """Unpack what is not there yet, then `check`."""
    root = chosen.root
    voc = root / "VOCdevkit" / "VOC2012"
    origin, changed = TRAINVAL.name, False
    if voc.exists():
        print(f"{voc} exists; it is kept")
        origin = FOUND
    else:
        try:
            tar = fetch(TRAINVAL, root)
        except KitError as error:
            raise KitError(f"{error}\n\n{__doc__}") from error
        print(f"unpacking {tar}", flush=True)
        with workplace(root, str(voc)) as work:
            untar(tar, work, _wanted)
            if not (work / "VOCdevkit/VOC2012").exists():
                raise KitError(f"{tar} holds no VOCdevkit/VOC2012; it is another archive than the one that is needed.")
            move(work / "VOCdevkit/VOC2012", voc)
        changed = True
    augmented = root / AUGMENTED
    if augmented.is_file() and not (voc / LABELS[0]).exists():
        print(f"unpacking {augmented}", flush=True)
        with workplace(voc, LABELS[0]) as work:
            if not unzip(augmented, work / LABELS[0], _label):
                raise KitError(f"{augmented} holds no {LABELS[0]}/*.png; it is another archive than the one that is needed.")
            move(work / LABELS[0], voc / LABELS[0])
        changed = True
    names, target = root / NAMES, voc / LISTS / NAMES
    if names.is_file() and not target.exists():
        with workplace(voc, NAMES) as work:
            move(Path(shutil.copyfile(names, work / NAMES)), target)
        changed = True
    if changed or not (voc / MANIFEST).exists():
        _record(voc, origin)
    return check(chosen)


def _wanted(path: str) -> bool:
    return path.startswith(tuple(f"VOCdevkit/VOC2012/{part}/" for part in (IMAGES, *LABELS, LISTS)))


def _label(path: PurePosixPath) -> PurePosixPath | None:
    return PurePosixPath(path.name) if path.suffix == ".png" and path.parent.name == LABELS[0] else None


def lists_of(voc: Path) -> tuple[str, tuple[str, str]]:
    """The folder of labels and the two lists that the loader takes by itself."""
    folder = next((name for name in LABELS if (voc / name).is_dir()), LABELS[0])
    return folder, (usual_train_list(voc), "val")


def _record(voc: Path, origin: str) -> None:
    folder, lists = lists_of(voc)
    try:
        splits = {name: read_list(voc, name, folder) for name in lists}
        check_pairs(pair for pairs in splits.values() for pair in pairs)
    except KitError:
        return  # the table says it; what is incomplete gets no manifest
    write_manifest(voc, "voc", {"labels": folder}, splits, origin)


def check(chosen: argparse.Namespace) -> int:
    """Print a table of what should be there and what is; 0 when every row is ok. Writes nothing."""
    voc = find_voc(chosen.root)
    folder, names = lists_of(voc)
    table = Table()
    lists: dict[str, list[Pair]] = {}

    def images_of(name: str) -> str:
        lists[name] = read_list(voc, name, folder)
        return count_of(lists[name])

    for name in names:
        table.row(f"list {name}", f"{SIZES[name]} images", lambda name=name: images_of(name), count=True)  # type: ignore[misc]
    rows_of_pairs(table, voc, lists, CODING, "0..20 and 255", RULE)
    return table.close(f"{voc}, labels in {folder}")
