"""Your own images: labels in colour become index PNGs.

  DATA/images/x.jpg   (or .png, .tif ..; sub-folders train and test, or none)
  DATA/labels/x.png   index PNGs, which need no conversion, or RGB
  DATA/classes.txt    one name per line; line k, counted from 0, is label value k. For labels in colour a line ends in its
                      colour, road 128 64 128, and a line void 0 0 0 names the colour of pixels that are not scored
When the first name is background, value 0 is background; else every pixel is a class. 255 is void.
  python -m data_prep folder --root DATA
writes DATA/labels_ids, which is read instead of labels. Nothing that exists is overwritten.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cisskit.data.colours import Colour, colours_to_ids, tell_colours
from cisskit.data.files import DAMAGED, SALIENCY, Folders, Pair, coding, found_pairs
from cisskit.data.folder import CLASSES, IMAGES, LABELS, label_folder, read_classes
from cisskit.data.manifest import read_manifest, write_manifest
from cisskit.errors import KitError, first_ten
from cisskit.scenario import IGNORE
from data_prep.check import Table, count_of, each, rows_of_pairs
from data_prep.unpack import move, workplace

CONVERTED, GIVEN = LABELS


def options(parser: argparse.ArgumentParser) -> None:
    pass


def assemble(chosen: argparse.Namespace) -> int:
    """Convert labels in colour unless that has been done, then `check`."""
    root = chosen.root
    colours = read_classes(root / CLASSES).colours
    wanted = {"colours": {f"{r} {g} {b}": value for (r, g, b), value in colours.items()}}
    if (root / CONVERTED).exists():
        made = read_manifest(root / CONVERTED)
        if made is not None and made.options != wanted:
            raise KitError(
                f"{root / CONVERTED} was made with other classes or colours than {root / CLASSES} has now. Move it away and run "
                "again."
            )
        print(f"{root / CONVERTED} exists; it is kept")
        return check(chosen)
    labels = _labels(root)
    modes = each(_mode, labels, "labels")
    in_colour = [label for label, mode in zip(labels, modes, strict=True) if mode == "RGB"]
    others = [f"{label.name} ({mode})" for label, mode in zip(labels, modes, strict=True) if mode not in ("RGB", "P", "L")]
    if others:
        raise KitError(
            f"{root / GIVEN} holds labels that are neither RGB nor 8-bit index PNGs: {first_ten(others)}. Nothing was written. "
            "Save them as one of the two."
        )
    if not in_colour:
        print(f"{root / GIVEN} holds index PNGs; there is nothing to convert")
        return check(chosen)
    if len(in_colour) < len(labels):
        index = [label.name for label in labels if label not in set(in_colour)]
        raise KitError(f"{root / GIVEN} mixes RGB and index PNGs: {first_ten(index)} are index PNGs. Nothing was written.")
    if not colours:
        raise KitError(
            f"{root / GIVEN} holds labels in colour, {root / CLASSES} names no colours. End each line in the colour of its "
            "class, for instance `road 128 64 128`."
        )
    with workplace(root, CONVERTED) as work:
        folder = work / CONVERTED

        def convert(label: Path) -> Counter[Colour]:
            try:
                with Image.open(label) as image:
                    ids, unknown = colours_to_ids(np.asarray(image), colours)
            except DAMAGED as error:
                raise KitError(f"cannot read {label}: {error}. Nothing was written.") from error
            target = folder / label.relative_to(root / GIVEN)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(target)
            return unknown

        unknown = {label.name: found for label, found in zip(labels, each(convert, labels, CONVERTED), strict=True) if found}
        if unknown:
            total: Counter[Colour] = sum(unknown.values(), Counter())
            raise KitError(
                f"{root / GIVEN}: {tell_colours(total)}, in {first_ten(unknown)}. Nothing was written. Give each colour a line "
                f"in {CLASSES}, `void` and its colour for one that is not scored."
            )
        write_manifest(folder, "folder", wanted, {"all": pairs_of(root, folder)}, f"{GIVEN}, by the colours of {CLASSES}")
        move(folder, root / CONVERTED)
    return check(chosen)


def _mode(label: Path) -> str:
    try:
        with Image.open(label) as image:
            return str(image.mode)
    except DAMAGED as error:
        return f"cannot be read: {error}"


def _labels(root: Path) -> list[Path]:
    if not (root / GIVEN).is_dir():
        raise KitError(f"there is no folder {root / GIVEN}.\n\n{__doc__}")
    labels = sorted(path for path in (root / GIVEN).rglob("*.png") if not path.name.startswith("."))
    if not labels:
        raise KitError(f"{root / GIVEN} holds no label (.png).\n\n{__doc__}")
    return labels


def pairs_of(root: Path, labels: Path) -> list[Pair]:
    """All images and labels; of the sub-folders train and test where there are such."""
    names = [name for name in ("train", "test") if (root / IMAGES / name).is_dir()] or [""]
    found = []
    for name in names:
        folders = Folders(root / IMAGES / name, labels / name, root / SALIENCY / name)
        for folder in folders[:2]:
            if not folder.is_dir():
                raise KitError(f"there is no folder {folder}.\n\n{__doc__}")
        found += found_pairs(folders)
    return found


def check(chosen: argparse.Namespace) -> int:
    """Print a table of what should be there and what is; 0 when every row is ok. Writes nothing."""
    root = chosen.root.expanduser().absolute()
    classes = read_classes(root / CLASSES).labels
    n, folder = len(classes.names) + bool(classes.background), label_folder(root)
    table, pairs = Table(), pairs_of(root, folder)
    table.note("images", "", count_of(pairs))
    rule = f"Labels are 8-bit index PNGs; `python -m data_prep folder --root {root}` converts labels in colour."
    rows_of_pairs(table, folder, {"all": pairs}, coding({v: v for v in (*range(n), IGNORE)}), f"0..{n - 1} and 255", rule)
    return table.close(f"{root}, labels in {folder.name}")
