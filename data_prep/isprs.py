"""ISPRS Potsdam and Vaihingen: index PNG crops from the official tiles.

The tiles need a registration with the ISPRS: https://www.isprs.org/education/benchmarks/UrbanSemLab/ (research use). Put the
archives, or what is in them, anywhere under DATA/isprs_source:
  Potsdam     2_Ortho_RGB.zip, and 5_Labels_all.zip (with --eroded: 5_Labels_all_noBoundary.zip)
  Vaihingen   ISPRS_semantic_labeling_Vaihingen.zip, and ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip
              (with --eroded: ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE.zip)
Vaihingen's images and full labels have the same names: labels are those below a folder whose name holds gts, ground_truth
or labels. One of the two sites alone is fine. Then
  python -m data_prep isprs --root DATA
makes DATA/isprs/{potsdam,vaihingen}/{images,labels}/{train,test}/<tile>_x0_y0_x1_y1.png: a grid of crops, the last row and
column aligned to the border of the tile. Labels: 0 boundary (eroded labels only), 1 impervious surface, 2 building, 3 low
vegetation, 4 tree, 5 car, 6 clutter. Two official Potsdam labels (4_12, 6_7) hold other colours than these and need
--round-colours. Nothing that exists is overwritten.
"""

import argparse
import filecmp
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from cisskit.data import transforms
from cisskit.data.colours import Colour, colours_to_ids, tell_colours
from cisskit.data.files import DAMAGED, SALIENCY, Folders, Pair, coding, found_pairs
from cisskit.data.isprs import BOUNDARY, CLUTTER, COLOURS
from cisskit.data.manifest import read_manifest, write_manifest
from cisskit.errors import KitError, first_ten
from data_prep.check import Table, each, rows_of_pairs
from data_prep.unpack import PREFIX, move, unzip, workplace

SOURCE = "isprs_source"
INNER = re.compile(r"(Ortho_RGB|Labels_\w+|labeling_Vaihingen\w*)\.zip$", re.IGNORECASE)
"""Archives in an archive of a whole site; those of heights and other channels are left alone."""
TABLE: dict[Colour, int] = {colour: value for value, colour in enumerate(COLOURS, start=1)} | {(255, 0, 0): CLUTTER}
ERODED: dict[Colour, int] = TABLE | {(0, 0, 0): BOUNDARY}
PALETTE = [channel for colour in sorted(ERODED, key=ERODED.__getitem__) for channel in colour]
STRIP = 500
"""Rows of a label that are looked up at a time, so that a tile of 6000 x 6000 needs little memory."""
FAR = 88
"""Rounding moves a channel by less than this: the known faults are within it, and a colour in the middle has no class."""


class Site(NamedTuple):
    image: re.Pattern[str]
    label: re.Pattern[str]
    eroded: re.Pattern[str]
    splits: dict[str, tuple[str, ...]]
    """Tiles by split."""


def _areas(*numbers: int) -> tuple[str, ...]:
    return tuple(f"area{number}" for number in numbers)


def _tif(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"{pattern}\.tif", re.IGNORECASE)


SITES = {
    "potsdam": Site(
        _tif(r"top_potsdam_(\d+_\d+)_RGB"), _tif(r"top_potsdam_(\d+_\d+)_label"), _tif(r"top_potsdam_(\d+_\d+)_label_noBoundary"),
        {
            "train": (
                "2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12",
                "6_7", "6_8", "6_9", "6_10", "6_11", "6_12", "7_7", "7_8", "7_9", "7_10", "7_11", "7_12",
            ),
            "test": (
                "2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13",
            ),
        },
    ),
    "vaihingen": Site(
        _tif(r"top_mosaic_09cm_(area\d+)"), _tif(r"top_mosaic_09cm_(area\d+)"), _tif(r"top_mosaic_09cm_(area\d+)_noBoundary"),
        {
            "train": _areas(1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37),
            "test": _areas(2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38),
        },
    ),
}  # fmt: skip


class Tile(NamedTuple):
    name: str
    split: str
    image: Path
    label: Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tile", type=int, default=512, metavar="PIXELS", help="side of a crop (512; 600 as IDEC and LAG)")
    parser.add_argument("--overlap", type=int, default=0, metavar="PIXELS", help="overlap of neighbouring crops (0)")
    parser.add_argument("--eroded", action="store_true", help="labels whose object borders are left out, as the benchmark scores")
    parser.add_argument(
        "--round-colours", action="store_true", help="take the nearest class colour where each channel is near to 0 or 255"
    )


def assemble(chosen: argparse.Namespace) -> int:
    """Unpack archives and cut the tiles of each site that is not there yet, then `check`."""
    root, wanted = chosen.root, _options(chosen)
    if not 0 <= chosen.overlap < chosen.tile:
        raise KitError(
            f"--overlap {chosen.overlap} with --tile {chosen.tile}: the overlap must be 0 or more and less than a crop."
        )
    todo = [site for site in SITES if not (root / "isprs" / site).exists()]
    for site in [site for site in SITES if site not in todo]:
        made = read_manifest(root / "isprs" / site)
        if made is not None and made.options != wanted:
            raise KitError(
                f"{root / 'isprs' / site} was made with {made.options}, not with {wanted}. Move it away, or use another --root "
                "with the same isprs_source."
            )
        print(f"{root / 'isprs' / site} exists; it is kept")
    if todo and (root / SOURCE).is_dir():
        _unpack(root / SOURCE)
    made_some = False
    for site in todo:
        tiles = _tiles(root / SOURCE, site, chosen.eroded)
        if tiles:
            _make(root / "isprs", site, tiles, wanted)
            made_some = True
    if not made_some and len(todo) == len(SITES):
        raise KitError(f"no tile under {root / SOURCE}.\n\n{__doc__}")
    return check(chosen)


def _options(chosen: argparse.Namespace) -> dict[str, Any]:
    return {"tile": chosen.tile, "overlap": chosen.overlap, "eroded": chosen.eroded, "round_colours": chosen.round_colours}


# --- the tiles ---


def _unpack(source: Path) -> None:
    """Unpack every archive that holds tiles or such archives, beside it, until there is none left."""
    seen: set[Path] = set()
    while todo := [zipped for zipped in _files(source, ".zip") if zipped not in seen]:
        for archive in todo:
            seen.add(archive)
            target = archive.with_suffix("")
            if target.exists():
                continue
            with workplace(archive.parent, target.name) as work:
                if unzip(archive, work / target.name, _wanted):
                    print(f"unpacked {archive}", flush=True)
                    move(work / target.name, target)


def _wanted(path: PurePosixPath) -> PurePosixPath | None:
    tile = any(pattern.fullmatch(path.name) for site in SITES.values() for pattern in site[:3])
    return path if tile or INNER.search(path.name) else None


def _files(source: Path, suffix: str) -> list[Path]:
    """Sorted; without what a killed run left unpacked in halves."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() == suffix)
    return [path for path in found if not any(part.startswith(PREFIX) for part in path.relative_to(source).parts)]


def _tiles(source: Path, site: str, eroded: bool) -> list[Tile]:
    """The tiles of a site, in their official order. Raises `KitError` for unknown tiles, for a tile without label or a label
    without tile, and for files of one name and other contents."""
    patterns = SITES[site]
    files = _files(source, ".tif") if source.is_dir() else []
    below_labels = {
        path: re.search("gts|ground_truth|labels", path.parent.relative_to(source).as_posix().lower()) for path in files
    }
    same_names = patterns.image == patterns.label
    images = _by_tile(patterns.image, [p for p in files if not (same_names and below_labels[p])])
    pattern = patterns.eroded if eroded else patterns.label
    labels = _by_tile(pattern, [p for p in files if eroded or not same_names or below_labels[p]])
    if not images and not labels:
        return []
    split_of = {tile: split for split, tiles in patterns.splits.items() for tile in tiles}
    if strange := (images.keys() | labels.keys()) - split_of.keys():
        raise KitError(f"{site} has no tiles {first_ten(sorted(strange))}; they are under {source}. Move them elsewhere.")
    kind = "eroded labels" if eroded else "labels"
    faults = {
        f"tiles without {kind}": [tile for tile in split_of if tile in images and tile not in labels],
        f"{kind} without tile": [tile for tile in split_of if tile in labels and tile not in images],
    }
    if told := "; ".join(f"{what}: {first_ten(names)}" for what, names in faults.items() if names):
        raise KitError(f"{site}: {told}. Nothing was written. Add the files under {source}.\n\n{__doc__}")
    return [Tile(tile, split, images[tile], labels[tile]) for tile, split in split_of.items() if tile in images]


def _by_tile(pattern: re.Pattern[str], files: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        if not (match := pattern.fullmatch(file.name)):
            continue
        first = found.setdefault(match[1], file)
        if first != file and not filecmp.cmp(first, file, shallow=False):
            raise KitError(f"{first} and {file} are the same tile with other contents. Nothing was written. Keep one of them.")
    return found


# --- the crops ---


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the crops of a side begin; the last one ends at the border, even if it overlaps more."""
    return transforms.starts(length, tile, tile - overlap)


def _boxes(width: int, height: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    for y in starts(height, tile, overlap):
        for x in starts(width, tile, overlap):
            yield x, y, min(x + tile, width), min(y + tile, height)


def _make(isprs: Path, site: str, tiles: list[Tile], wanted: dict[str, Any]) -> None:
    if faults := [fault for tile in tiles if (fault := _unfit(tile))]:
        raise KitError(f"{site}: {first_ten(faults)}. Nothing was written; get these files again.")
    with workplace(isprs if isprs.is_dir() else isprs.parent, site) as work:
        for kind in ("images", "labels"):
            for split in SITES[site].splits:
                (work / site / kind / split).mkdir(parents=True)
        print(f"cutting {len(tiles)} tiles of {site}", flush=True)
        found = each(partial(_cut, folder=work / site, wanted=wanted), tiles, site, most=8)  # 0.5 GB each
        unknown = {tile.name: colours for tile, (colours, _) in zip(tiles, found, strict=True) if colours}
        if unknown:
            told = "; ".join(f"{tile}: {tell_colours(colours)}" for tile, colours in list(unknown.items())[:10])
            raise KitError(
                f"{site}: labels of {len(unknown)} tiles hold colours without a class. {told}. Nothing was written. "
                + ("Correct these labels." if wanted["round_colours"] else
                   "For labels that were saved with losses, --round-colours takes the nearest colour and counts such pixels. "
                   "Black is the border in eroded labels (--eroded).")
            )  # fmt: skip
        rounded = {tile.name: n for tile, (_, n) in zip(tiles, found, strict=True) if n}
        origin = f"tiles of ISPRS {site}"
        if rounded:
            origin += "; rounded colours: " + ", ".join(f"{name} {n} pixels" for name, n in rounded.items())
            print(origin)
        write_manifest(work / site, "isprs", wanted, {s: p for s, p in pairs_of(work / site).items() if p}, origin)
        move(work / site, isprs / site)


def _open(path: Path) -> TiffImageFile:
    image = Image.open(path)
    bits = image.tag_v2.get(BITSPERSAMPLE) if isinstance(image, TiffImageFile) else None
    if not isinstance(image, TiffImageFile) or image.mode != "RGB" or bits != (8, 8, 8):
        image.close()
        raise KitError(f"{path} has mode {image.mode} and {bits} bits; a tile is a TIFF of three channels with 8 bits")
    return image


def _unfit(tile: Tile) -> str:
    """What the headers of the two files say against the tile."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            _open(tile.image) as image,
            _open(tile.label) as label,
        ):  # told by what follows
            same = image.size == label.size
            return "" if same else f"{tile.name}: {tile.image} is {image.size}, {tile.label} is {label.size} pixels"
    except KitError as error:
        return str(error)
    except DAMAGED as error:
        return f"{tile.image} or {tile.label} cannot be read ({error})"


def _cut(tile: Tile, folder: Path, wanted: Mapping[str, Any]) -> tuple[Counter[Colour], int]:
    """Write the crops of one tile. Returns the unknown colours, and how many pixels were rounded."""
    try:
        with _open(tile.image) as image, _open(tile.label) as label:
            ids, unknown, rounded = _ids(label, ERODED if wanted["eroded"] else TABLE, wanted["round_colours"])
            if not unknown:
                for box in _boxes(*image.size, wanted["tile"], wanted["overlap"]):
                    name = f"{tile.name}_{'_'.join(map(str, box))}.png"
                    image.crop(box).save(folder / "images" / tile.split / name)
                    crop = Image.fromarray(ids[box[1] : box[3], box[0] : box[2]])
                    crop.putpalette(PALETTE)
                    crop.save(folder / "labels" / tile.split / name)
    except KitError:
        raise
    except DAMAGED as error:
        if getattr(error, "errno", None):  # the disk, not the tile
            raise
        raise KitError(f"{tile.image} or {tile.label} cannot be read ({error}). Nothing was written; get them again.") from error
    return unknown, rounded


def _ids(label: Image.Image, table: Mapping[Colour, int], rounding: bool) -> tuple[NDArray[np.uint8], Counter[Colour], int]:
    ids = np.empty((label.height, label.width), dtype=np.uint8)
    unknown: Counter[Colour] = Counter()
    rounded = 0
    for y in range(0, label.height, STRIP):
        rgb = np.asarray(label.crop((0, y, label.width, min(y + STRIP, label.height))))
        if rounding:
            nearest = np.where(rgb < FAR, 0, np.where(rgb > 255 - FAR, 255, rgb)).astype(np.uint8)
            rounded += int((nearest != rgb).any(axis=2).sum())
            rgb = nearest
        ids[y : y + STRIP], others = colours_to_ids(rgb, table)
        unknown += others
    return ids, unknown, rounded


# --- check ---


def pairs_of(site: Path) -> dict[str, list[Pair]]:
    """By split; none where a split has no crops."""
    found = {}
    for split in ("train", "test"):
        folders = Folders(*(site / kind / split for kind in ("images", "labels", SALIENCY)))
        for folder in folders[:2]:
            if not folder.is_dir():
                raise KitError(f"there is no folder {folder}. Move {site} away and run `python -m data_prep isprs` again.")
        found[split] = found_pairs(folders) if any(folders.images.iterdir()) else []
    return found


def _grids(names: list[str], wanted: Mapping[str, Any]) -> tuple[int, str]:
    """How many tiles the crops are from, and whether their grids are complete."""
    boxes: dict[str, set[tuple[int, ...]]] = {}
    for name in names:
        tile, *box = name.rsplit("_", 4)
        if len(box) != 4 or not all(word.isdigit() for word in box):
            return len(boxes), f"{name}.png is not named <tile>_x0_y0_x1_y1"
        boxes.setdefault(tile, set()).add(tuple(map(int, box)))
    holes = [
        tile
        for tile, there in boxes.items()
        if there != set(_boxes(max(b[2] for b in there), max(b[3] for b in there), wanted["tile"], wanted["overlap"]))
    ]
    return len(boxes), f"tiles with other grids: {first_ten(holes)}" if holes else "complete"


def check(chosen: argparse.Namespace) -> int:
    """Print a table for each site that is there; 0 when every row is ok. Writes nothing."""
    isprs = chosen.root.expanduser().absolute() / "isprs"
    there = [site for site in SITES if (isprs / site).is_dir()]
    if not there:
        raise KitError(f"there are no crops: looked for {' and '.join(str(isprs / site) for site in SITES)}.\n\n{__doc__}")
    failed = 0
    for site in there:
        made = read_manifest(isprs / site)
        wanted = made.options if made is not None else _options(chosen)
        table, splits = Table(), pairs_of(isprs / site)
        for split, tiles in SITES[site].splits.items():
            names = [pair.name for pair in splits[split]]
            n_tiles, grids = _grids(names, wanted)
            table.row(split, f"{len(tiles)} tiles", f"{n_tiles} tiles", count=True)
            table.row(f"{split} grids", "complete", grids)
            table.note(f"{split} crops", "", str(len(names)))
        values = coding({value: value for value in (ERODED if wanted["eroded"] else TABLE).values()})
        told = "0..6" if wanted["eroded"] else "1..6"
        rows_of_pairs(table, isprs / site, splits, values, told, "Make the crops again.")
        failed |= table.close(f"{isprs / site}, {wanted}")
    return failed
