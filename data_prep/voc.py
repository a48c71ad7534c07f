"""Pascal VOC 2012 with the augmented labels, from archives that you have downloaded.

Put these into DATA (VOC's images come from flickr: research use, its terms of use apply):
  VOCtrainval_11-May-2012.tar   2 GB, from the VOC organisers: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
  SegmentationClassAug.zip      SBD's labels (Hariharan et al. 2011) as index PNGs, linked by the README of
                                https://github.com/DrSleep/tensorflow-deeplab-resnet
  train_aug.txt                 the 10582 names, in many repositories, for instance datasets/data/train_aug.txt of
                                https://github.com/VainF/DeepLabV3Plus-Pytorch
The last two are optional; without them there are VOC's own 1464 training images. Then
  python -m data_prep voc --root DATA
makes DATA/VOCdevkit/VOC2012. Nothing that exists is overwritten.
"""

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from cisskit.data.voc import IMAGES, LABELS, LISTS, Pair, check_pairs, find_voc, index_labels, read_image, read_list
from cisskit.errors import KitError, first_ten

TRAINVAL, AUGMENTED, NAMES = "VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip", "train_aug.txt"
SIZES = {"train_aug": 10582, "train": 1464, "val": 1449}


def assemble(root: Path) -> int:
    """Unpack what is not there yet. Raises `KitError` for an archive that is damaged or reaches outside its folder."""
    voc = root / "VOCdevkit" / "VOC2012"
    tar, augmented, names = (root / name for name in (TRAINVAL, AUGMENTED, NAMES))
    if not voc.exists():
        if not tar.is_file():
            there = "" if root.is_dir() else f" ({root} does not exist)"
            raise KitError(f"nothing to unpack: {tar} is not there{there}.\n\n{__doc__}")
        print(f"unpacking {tar}", flush=True)
        with _beside(root, tar) as folder:
            _untar(tar, folder)
            _move(folder / "VOCdevkit" / "VOC2012", voc, tar)
    else:
        print(f"{voc} exists; it is kept")
    if augmented.is_file() and not (voc / LABELS[0]).exists():
        print(f"unpacking {augmented}", flush=True)
        with _beside(voc, augmented) as folder:
            _unzip(augmented, folder / LABELS[0])
            _move(folder / LABELS[0], voc / LABELS[0], augmented)
    target = voc / LISTS / NAMES
    if names.is_file() and not target.exists():
        with _beside(target.parent, names) as folder:
            shutil.copyfile(names, folder / NAMES)
            _move(folder / NAMES, target, names)
    return check(root)


@contextmanager
def _beside(place: Path, archive: Path) -> Iterator[Path]:
    """A temporary folder inside ``place``; gone afterwards, whatever happens."""
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".unpacking-") as folder:
            yield Path(folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise KitError(
            f"cannot unpack {archive}: {error}. Nothing was changed; fetch it again, or make room on the disk."
        ) from error


def _move(made: Path, target: Path, archive: Path) -> None:
    if not made.exists():
        raise KitError(f"{archive} holds no {'/'.join(made.parts[-2:])}; it is another archive than the one that is needed.")
    if target.exists():
        raise KitError(f"{target} has appeared while {archive} was unpacked; it is kept. Run again.")
    target.parent.mkdir(exist_ok=True)
    os.rename(made, target)


def _untar(archive: Path, folder: Path) -> None:
    wanted = tuple(f"VOCdevkit/VOC2012/{part}/" for part in (IMAGES, *LABELS, LISTS))
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:  # all of them: an archive that reaches outside is not trusted for the rest either
            tarfile.data_filter(member, str(folder))
        tar.extractall(
            folder, members=[m for m in members if m.isfile() and m.name.removeprefix("./").startswith(wanted)], filter="data"
        )


def _unzip(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise KitError(f"{archive} holds {member.filename!r}, which reaches outside its folder. It was not unpacked.")
            if path.suffix == ".png" and path.parent.name == LABELS[0] and "__MACOSX" not in path.parts:
                with packed.open(member) as data, open(folder / path.name, "xb") as out:
                    shutil.copyfileobj(data, out)


def check(root: Path) -> int:
    """Print a table of what should be there and what is; 0 when every row is ok. Writes nothing."""
    voc = find_voc(root)
    folder = next((name for name in LABELS if (voc / name).is_dir()), LABELS[0])
    names = "train_aug" if (voc / LISTS / NAMES).is_file() else "train"
    rows: list[tuple[bool, str, str, str]] = []
    lists: dict[str, list[Pair]] = {}

    def row(what: str, expected: str, look: Callable[[], str]) -> None:
        try:
            found = look()
        except KitError as error:
            found = str(error)
        rows.append((found == expected, what, expected, found))

    def images_of(name: str) -> str:
        lists[name] = read_list(voc, name, folder)
        return f"{len(lists[name])} images"

    for name in (names, "val"):
        row(f"list {name}", f"{SIZES[name]} images", lambda name=name: images_of(name))  # type: ignore[misc]
    pairs = [pair for listed in lists.values() for pair in listed]
    sizes: dict[str, tuple[int, int]] = {}

    def complete() -> str:
        check_pairs(pairs)
        return "image and label for each"

    def values() -> str:
        index = index_labels([pair.label for pair in pairs])
        sizes.update({pair.name: (int(h), int(w)) for pair, (h, w) in zip(pairs, index.sizes, strict=True)})
        return "0..20 and 255"

    def decoded() -> str:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = [fault for fault in pool.map(fault_of, pairs) if fault]
        return f"faulty: {first_ten(faults)}" if faults else "each as large as its label"

    def fault_of(pair: Pair) -> str:
        if not pair.image.is_file():
            return ""  # told by the row above
        try:
            shape = np.shape(read_image(pair.image))[:2]
        except KitError as error:
            return str(error)
        lh, lw = sizes.get(pair.name, shape)
        return "" if shape == (lh, lw) else f"{pair.name}: image {shape[1]} x {shape[0]}, label {lw} x {lh}"

    if pairs:
        row("pairs", "image and label for each", complete)
        row("label values", "0..20 and 255", values)
        row("images", "each as large as its label", decoded)
    print(f"{voc}, labels in {folder}")
    for ok, what, expected, found in [(True, "what", "expected", "found"), *rows]:
        state = "state" if what == "what" else "ok" if ok else "DIFFERS"
        print(f"  {state:8} {what:15} {expected:28} {found}")
    bad = [what for ok, what, *_ in rows if not ok]
    print(f"not as expected: {', '.join(bad)}" if bad else "complete")
    if bad and all(what.startswith("list") for what in bad):
        print("Only the number of images differs: fine for a subset of VOC, not for comparing with published numbers.")
    return 1 if bad else 0
