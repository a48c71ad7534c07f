"""Saliency maps, for the methods that tell unknown objects from background by them.

  python -m data_prep saliency --root DATA --data voc --maps FOLDER   published maps: grey PNGs with the names of the images
  python -m data_prep saliency --root DATA --data voc --compute       OpenCV's StaticSaliencyFineGrained and Otsu's threshold
writes index PNGs of 0 and 255 into saliency_map: of voc in VOCdevkit/VOC2012, of ade20k in ADEChallengeData2016, of isprs in
each site, of folder in DATA; with the sub-folders of the images. The published methods used a trained detector: maps that
are computed here are a substitute, and their manifest says so. Nothing that exists is overwritten.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cisskit.data.ade import FOLDER
from cisskit.data.files import DAMAGED, SALIENCY, Pair, coding, read_image
from cisskit.data.folder import label_folder
from cisskit.data.manifest import read_manifest, write_manifest
from cisskit.data.voc import find_voc, read_list
from cisskit.errors import KitError, first_ten
from data_prep import ade20k, folder, isprs, voc
from data_prep.check import Table, count_of, each, rows_of_pairs
from data_prep.unpack import move, workplace

COMPUTED = "opencv StaticSaliencyFineGrained, Otsu"


class Target(NamedTuple):
    folder: Path
    """Where saliency_map belongs."""
    splits: dict[str, list[Pair]]
    """Images, and maps in place of the labels."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, choices=("voc", "ade20k", "isprs", "folder"), help="data set of the images")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--maps", type=Path, metavar="FOLDER", help="folder of published maps")
    way.add_argument("--compute", action="store_true", help="compute them; needs opencv-contrib-python-headless")
    parser.add_argument(
        "--threshold", type=int, default=1, metavar="N",
        help="grey values N..255 of published maps are salient (1: everything but black, as SSUL and IDEC read them)",
    )  # fmt: skip


def assemble(chosen: argparse.Namespace) -> int:
    """Make the maps of each folder that has none, then `check`."""
    if not chosen.maps and not chosen.compute:
        raise KitError("say where the maps come from: --maps FOLDER, or --compute.")
    if not 1 <= chosen.threshold <= 255:
        raise KitError(f"--threshold {chosen.threshold} must be 1..255.")
    wanted: dict[str, Any] = {"data": chosen.data} | ({} if chosen.compute else {"threshold": chosen.threshold})
    origin = COMPUTED if chosen.compute else f"published maps from {chosen.maps.name}"
    for target in _targets(chosen):
        if target.folder.joinpath(SALIENCY).exists():
            made = read_manifest(target.folder / SALIENCY)
            if made is not None and (made.options, made.origin) != (wanted, origin):
                raise KitError(
                    f"{target.folder / SALIENCY} holds {made.origin} ({made.options}), not {origin} ({wanted}). Move it away."
                )
            print(f"{target.folder / SALIENCY} exists; it is kept")
            continue
        splits = target.splits if chosen.compute else _published(target, chosen.maps)
        draw = _computed() if chosen.compute else _reader(target, chosen.maps, chosen.threshold)
        with workplace(target.folder, SALIENCY) as work:
            made_pairs = {split: _draw_all(draw, pairs, target, work, split) for split, pairs in splits.items()}
            write_manifest(work / SALIENCY, "saliency", wanted, made_pairs, origin)
            move(work / SALIENCY, target.folder / SALIENCY)
    return check(chosen)


def _targets(chosen: argparse.Namespace) -> list[Target]:
    root = chosen.root.expanduser().absolute()
    if chosen.data == "voc":
        place = find_voc(root)
        labels, names = voc.lists_of(place)
        found = [(place, {name: read_list(place, name, labels) for name in names})]
    elif chosen.data == "ade20k":
        place = root if (root / ade20k.LABELS).is_dir() else root / FOLDER
        found = [(place, ade20k.pairs_of(place))]
    elif chosen.data == "isprs":
        places = [root / "isprs" / site for site in isprs.SITES if (root / "isprs" / site).is_dir()]
        if not places:
            raise KitError(f"there are no crops in {root / 'isprs'}; `python -m data_prep isprs --root {root}` makes them.")
        found = [(place, isprs.pairs_of(place)) for place in places]
    else:
        found = [(root, {"all": folder.pairs_of(root, label_folder(root))})]
    return [
        Target(place, {s: [_of_map(pair) for pair in pairs] for s, pairs in splits.items() if pairs}) for place, splits in found
    ]


def _of_map(pair: Pair) -> Pair:
    assert pair.saliency is not None  # every layout has a place for them
    return pair._replace(label=pair.saliency)


def _source(pair: Pair, target: Target, maps: Path) -> Path:
    """The published map of an image: with its sub-folder, or without."""
    path = maps / pair.label.relative_to(target.folder / SALIENCY)
    return path if path.is_file() else maps / path.name


def _published(target: Target, maps: Path) -> dict[str, list[Pair]]:
    """The splits that have maps. Raises `KitError` when none has, and for a split of which a part has."""
    lacking = {
        split: [pair.name for pair in pairs if not _source(pair, target, maps).is_file()]
        for split, pairs in target.splits.items()
    }
    complete = {split: pairs for split, pairs in target.splits.items() if not lacking[split]}
    partly = {split: names for split, names in lacking.items() if 0 < len(names) < len(target.splits[split])}
    if partly or not complete:
        told = "; ".join(f"{split} lacks {first_ten(names)}" for split, names in (partly or lacking).items())
        raise KitError(f"{maps} has no map for some images: {told}. Maps are named like the images, x.png. Nothing was written.")
    for split in target.splits.keys() - complete:
        print(f"{maps} holds no maps of {split}; they are left out")
    return complete


Draw = Callable[[Pair], NDArray[np.bool_]]


def _reader(target: Target, maps: Path, threshold: int) -> Draw:
    def read(pair: Pair) -> NDArray[np.bool_]:
        path = _source(pair, target, maps)
        try:
            with Image.open(path) as image, Image.open(pair.image) as photo:
                if image.mode not in ("1", "L"):
                    raise KitError(f"{path} has mode {image.mode}; a map is a grey PNG of 8 bits, or black and white.")
                if image.size != photo.size:
                    raise KitError(f"{path} is {image.size} pixels, its image {pair.image} {photo.size}. Nothing was written.")
                return np.asarray(image.convert("L")) >= threshold
        except KitError:
            raise
        except DAMAGED as error:
            raise KitError(f"cannot read {path} or {pair.image}: {error}. Nothing was written.") from error

    return read


def _computed() -> Draw:
    try:
        cv2 = importlib.import_module("cv2")
        create = cv2.saliency.StaticSaliencyFineGrained_create
    except (ImportError, AttributeError) as error:  # the plain opencv packages lack saliency
        raise KitError(
            f"computing maps needs OpenCV with its contributions ({error}): pip install opencv-contrib-python-headless"
        ) from error
    cv2.setNumThreads(1)  # the images are spread over the cores already

    def compute(pair: Pair) -> NDArray[np.bool_]:
        ok, found = create().computeSaliency(np.ascontiguousarray(read_image(pair.image)[..., ::-1]))  # it takes BGR
        if not ok:
            raise KitError(f"OpenCV finds no saliency for {pair.image}.")
        grey = (np.asarray(found) * 255).round().astype(np.uint8)
        _, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        return np.asarray(mask) > 0

    return compute


def _draw_all(draw: Draw, pairs: list[Pair], target: Target, work: Path, split: str) -> list[Pair]:
    """Write the maps of a split below ``work`` instead of the folder where they belong."""

    def save(pair: Pair) -> Pair:
        path = work / pair.label.relative_to(target.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(pair).astype(np.uint8) * 255).save(path)
        return pair._replace(label=path)

    return each(save, pairs, split)


def check(chosen: argparse.Namespace) -> int:
    """Print a table for each folder of maps; 0 when every row is ok. Writes nothing."""
    failed = 0
    for target in _targets(chosen):
        place = target.folder / SALIENCY
        if not place.is_dir():
            raise KitError(f"there is no folder {place}; `python -m data_prep saliency --help` says how to make it.")
        made = read_manifest(place)
        table = Table()
        splits = {split: pairs for split, pairs in target.splits.items() if made is None or split in made.splits}
        for split, pairs in splits.items():
            table.note(split, "", count_of(pairs))
        rows_of_pairs(table, place, splits, coding({0: 0, 255: 255}), "0 and 255", "Maps are 8-bit grey PNGs of 0 and 255.")
        failed |= table.close(f"{place}: {made.origin if made else 'of unknown origin'}")
    return failed
