"""Your own images: two folders and a list of class names.

    images/x.jpg     also .jpeg .png .tif .tiff .bmp, 8 bits per channel
    labels/x.png     8-bit index PNGs, one class number per pixel, 255 void; or labels_ids/, which is preferred
    classes.txt      one name per line: line k, counted from 0, names the value k. A line may end in its colour,
                     "road 128 64 128"; a line "void 0 0 0" counts for no value: pixels of that colour are void
    saliency_map/x.png   optional, 0 and 255

When the first class is called ``background``, the value 0 is the background; otherwise every pixel belongs to a class.
Which images are for tests: sub-folders ``images/{train,test}``, ``labels/{train,test}``; or lists ``train.txt``, ``test.txt``
of names without extension; or else a share of them, drawn by a hash of the name, so that an image that is added moves no
other.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cisskit.data.files import (
    SALIENCY,
    Cache,
    Coding,
    FileSource,
    Folders,
    Pair,
    coding,
    found_pairs,
    repeated,
    shared_names,
    split_folders,
    voc_palette,
)
from cisskit.data.manifest import check_manifest
from cisskit.errors import KitError, first_ten
from cisskit.scenario import IGNORE, Labels

IMAGES = "images"
LABELS = ("labels_ids", "labels")
"""Label folders, the better one first."""
CLASSES = "classes.txt"
SHARE = 0.2
BACKGROUND_NAME, VOID = "background", "void"


class Folder(FileSource):
    """A person's own data; splits ``train`` and ``test``.

    root: the folder of ``images``, ``labels`` and ``classes.txt``. test_share: share of the images that are for tests where
    neither sub-folders nor lists say so; None is 0.2. cache_mb, cache: see `FileSource`.
    Raises `KitError` for missing folders, faulty class names, faulty lists, an empty split, and what `FileSource` finds.
    """

    dataset = "folder"

    def __init__(
        self, root: str | Path, *, test_share: float | None = None, cache_mb: int = 2000, cache: Cache = "memory"
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self._labels, self.palette, colours = read_classes(self.root / CLASSES)
        self.label_rule = (
            f"Labels are 8-bit index PNGs with one class number per pixel, 0..{self._n_values - 1} for the names in "
            f"{CLASSES}, or {IGNORE} for void. `python -m data_prep folder --root {self.root}` converts coloured labels."
        )
        kinds = Folders(self.root / IMAGES, label_folder(self.root), self.root / SALIENCY)
        remedy = f"`python -m data_prep folder --root {self.root} --check` says what is missing."
        for folder in (kinds.images, kinds.labels):
            if not folder.is_dir():
                raise KitError(f"there is no folder {folder}. {remedy}")
        missing: dict[str, str] = {}
        lists = {split: self.root / f"{split}.txt" for split in self.splits}
        self.test_share = SHARE if test_share is None else test_share
        if (kinds.images / "train").is_dir():
            self.split_by = "folders"
            pairs, missing = split_folders(
                "folder", {split: Folders(*(kind / split for kind in kinds)) for split in self.splits}, remedy
            )
        elif any(file.is_file() for file in lists.values()):
            self.split_by = "lists"
            found = {pair.name: pair for pair in found_pairs(kinds)}
            pairs = {split: _listed(file, found) for split, file in lists.items()}
            shared = shared_names(pairs["train"], pairs["test"])
            if shared:
                raise KitError(f"{lists['train']} and {lists['test']} share images: {first_ten(shared)}. Take them out of one.")
        else:
            self.split_by = "hash"
            pairs = _drawn(found_pairs(kinds), self.test_share)
        if self.split_by != "hash" and test_share is not None:
            raise KitError(f"test_share has no effect: the {self.split_by} in {self.root} say which images are for tests.")
        super().__init__(pairs, missing, cache_mb=cache_mb, cache=cache)
        everything = [pair for listed in pairs.values() for pair in listed]
        made = check_manifest(kinds.labels, {} if self.split_by == "lists" else {"all": everything})  # lists may name a part
        if made and made.options.get("colours") != {" ".join(map(str, colour)): value for colour, value in colours.items()}:
            raise KitError(
                f"{self.root / CLASSES} has changed since {kinds.labels} was made of coloured labels by it: the numbers there "
                f"may stand for other classes. Move {kinds.labels} away and run `python -m data_prep folder --root {self.root}`."
            )

    @classmethod
    def own_labels(cls, root: str | Path | None) -> Labels:
        if not root:
            raise KitError("the classes of the data set 'folder' are read from its classes.txt; name its folder, the root.")
        return read_classes(Path(root).expanduser().absolute() / CLASSES).labels

    @property
    def labels(self) -> Labels:
        return self._labels

    @property
    def _n_values(self) -> int:
        return len(self._labels.names) + bool(self._labels.background)

    def coding(self, split: str) -> Coding:
        first = 0 if self._labels.background else 1
        return coding({**{v: v + first for v in range(self._n_values)}, IGNORE: IGNORE})

    def describe(self) -> dict[str, Any]:
        return {"split": self.split_by} | ({"test_share": self.test_share} if self.split_by == "hash" else {})


def label_folder(root: Path) -> Path:
    """The folder of labels that is read."""
    return next((root / name for name in LABELS if (root / name).is_dir()), root / LABELS[-1])


class Classes(NamedTuple):
    """What a list of classes says."""

    labels: Labels
    palette: NDArray[np.uint8]
    """(256, 3) colour of each original id."""
    colours: dict[tuple[int, int, int], int]
    """Label value of each colour that the list names, 255 for void."""


def read_classes(file: Path) -> Classes:
    """The classes of a data set. Raises `KitError` for a missing file, and for names and colours that cannot be used."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = "is not a text file in UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
        raise KitError(
            f"{file} {why}. Write the names of the classes there, one a line: line k, counted from 0, names the label value k."
        ) from error
    names: list[str] = []
    colours: dict[tuple[int, int, int], int] = {}
    for number, line in enumerate(lines, start=1):
        match = re.fullmatch(r"(?:(.*?)\s+)?(\d+)\s+(\d+)\s+(\d+)", line)
        name = (match[1] or "") if match else line
        colour = (int(match[2]), int(match[3]), int(match[4])) if match else None
        fault = (
            "there is no name" if not name
            else "a name must not hold , / or :, which separate names in scenarios" if re.search("[,/:]", name)
            else "a number would be read as a class id" if name.isdigit()
            else "this name is there twice" if name in names
            else "only the first class may be the background" if name == BACKGROUND_NAME and names
            else "void is a colour, as in 'void 0 0 0', and no class" if name == VOID and not colour
            else "a colour is three numbers 0..255" if colour and max(colour) > 255
            else "this colour is there twice" if colour in colours
            else ""
        )  # fmt: skip
        if fault:
            raise KitError(f"{file}, line {number}: {line!r}: {fault}. Change the line.")
        if colour:
            colours[colour] = IGNORE if name == VOID else len(names)
        if name != VOID:
            names.append(name)
    first = 0 if names[:1] == [BACKGROUND_NAME] else 1
    classes = tuple(names[1 - first :])
    if not 1 <= len(classes) < IGNORE:
        raise KitError(f"{file} names {len(classes)} classes; there must be 1 to {IGNORE - 1}, one a line.")
    palette = voc_palette()
    for one, value in colours.items():
        palette[IGNORE if value == IGNORE else value + first] = one
    return Classes(Labels(classes, "" if first else BACKGROUND_NAME), palette, colours)


def _listed(file: Path, found: Mapping[str, Pair]) -> list[Pair]:
    """The pairs that a list names. Raises `KitError`: no such list, nothing in it, a name twice, a name without files."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"cannot read {file}. Where images are chosen by lists there are two, train.txt and test.txt.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise KitError(f"{file} lists no image.")
    if twice := repeated(names):
        raise KitError(f"{file} lists images twice: {first_ten(twice)}. Remove the repeated lines.")
    if gone := [name for name in names if name not in found]:
        raise KitError(
            f"{file} names images that are not there: {first_ten(gone)}. It holds one name a line, without folder and extension, "
            f"such as {next(iter(found))}."
        )
    return [found[name] for name in names]


def _drawn(pairs: list[Pair], share: float) -> dict[str, list[Pair]]:
    """Training and test images by a hash of the name."""
    if not 0 < share < 1:
        raise KitError(f"test_share={share!r} is the share of the images that are for tests: choose a number between 0 and 1.")

    def draw(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32

    split = {"train": [p for p in pairs if draw(p.name) >= share], "test": [p for p in pairs if draw(p.name) < share]}
    for name, chosen in split.items():
        if not chosen:
            raise KitError(
                f"of {len(pairs)} images none was drawn for the {name} split. Add images, choose another test_share, or say "
                "which they are in train.txt and test.txt."
            )
    return split
