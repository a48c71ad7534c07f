"""The table of ``--check``, and the work on many files that all data sets share."""

import os
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cisskit.data.files import Coding, Index, Pair, check_pairs, index_labels, read_image
from cisskit.data.manifest import MANIFEST, check_manifest
from cisskit.errors import KitError, first_ten

T = TypeVar("T")
R = TypeVar("R")
COMPLETE, AS_LARGE, AS_RECORDED = "image and label for each", "each as large as its label", "as recorded"


def each(function: Callable[[T], R], items: Sequence[T], told: str, most: int = 16) -> list[R]:
    """``function`` of all items, on all cores but no more than ``most``: Pillow, zlib and OpenCV let other threads run."""
    with ThreadPoolExecutor(min(most, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=told, disable=None))


class Table:
    """Rows of what should be there and what is."""

    def __init__(self) -> None:
        self.rows: list[tuple[Literal["ok", "DIFFERS", "-"], str, str, str]] = []
        self.only_counts = True

    def row(self, what: str, expected: str, look: str | Callable[[], str], *, count: bool = False) -> None:
        """look: what is found, or says it; a `KitError` of it counts as found. count: says how many there are, no more."""
        try:
            found = look if isinstance(look, str) else look()
        except KitError as error:
            found, count = str(error), False
        self.rows.append(("ok" if found == expected else "DIFFERS", what, expected, found))
        self.only_counts &= count or found == expected

    def note(self, what: str, expected: str, found: str) -> None:
        """A row that is neither right nor wrong."""
        self.rows.append(("-", what, expected, found))

    def close(self, title: str) -> int:
        """Print all rows; 0 when each is as expected."""
        print(title)
        wide = [max(len(row[k]) for row in [("state", "what", "expected", ""), *self.rows]) for k in range(3)]
        for state, what, expected, found in [("state", "what", "expected", "found"), *self.rows]:
            print(f"  {state:{wide[0]}}  {what:{wide[1]}}  {expected:{wide[2]}}  {found}")
        bad = [what for state, what, *_ in self.rows if state == "DIFFERS"]
        print(f"not as expected: {', '.join(bad)}" if bad else "complete")
        if bad and self.only_counts:
            print("Only the number of images differs: fine for a part of the data set, not for comparing with published numbers.")
        return 1 if bad else 0


def rows_of_pairs(
    table: Table, folder: Path, splits: Mapping[str, Sequence[Pair]], values: Coding, told: str, rule: str
) -> dict[str, Index]:
    """Rows about pairs, label values, images and the manifest of ``folder``. Returns the index of each split that was read.

    values, rule: as for `index_labels`; told: these values in words.
    """
    pairs = [pair for listed in splits.values() for pair in listed]
    indices: dict[str, Index] = {}

    def complete() -> str:
        check_pairs(pairs)
        return COMPLETE

    def read_labels() -> str:
        for split, listed in splits.items():
            indices[split] = index_labels([pair.label for pair in listed], values, rule)
        return told

    if not pairs:
        return indices
    table.row("pairs", COMPLETE, complete)
    table.row("label values", told, read_labels)
    sizes = {pair.label: size for split, index in indices.items() for pair, size in zip(splits[split], index.sizes, strict=True)}
    table.row("images", AS_LARGE, lambda: compare_sizes(pairs, sizes))
    row_of_manifest(table, folder, splits)
    return indices


def row_of_manifest(table: Table, folder: Path, splits: Mapping[str, Sequence[Pair]]) -> None:
    """A row that compares all files with the manifest, contents of labels included."""

    def recorded() -> str:
        check_manifest(folder, splits, contents=True)
        return AS_RECORDED

    if (folder / MANIFEST).exists():
        table.row("manifest", AS_RECORDED, recorded)
    else:
        table.note("manifest", AS_RECORDED, "none: the folder was not made by data_prep")


def compare_sizes(pairs: Sequence[Pair], sizes: Mapping[Path, NDArray[np.int64]]) -> str:
    """Decode all images; ``sizes`` (height, width) of the labels that could be read."""

    def fault(pair: Pair) -> str:
        if not pair.image.is_file():
            return ""  # told by another row
        try:
            shape = np.shape(read_image(pair.image))[:2]
        except KitError as error:
            return str(error)
        height, width = sizes.get(pair.label, shape)
        same = shape == (height, width)
        return "" if same else f"{pair.name}: image {shape[1]} x {shape[0]}, label {width} x {height}"

    faults = [told for told in each(fault, pairs, "images") if told]
    return f"faulty: {first_ten(faults)}" if faults else AS_LARGE


def count_of(pairs: Sized) -> str:
    return f"{len(pairs)} images"
