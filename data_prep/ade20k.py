"""ADE20K as released for scene parsing (SceneParse150).

  python -m data_prep ade20k --root DATA
fetches ADEChallengeData2016.zip (0.97 GB, from MIT; unless DATA has it) and makes
  DATA/ADEChallengeData2016/{images,annotations}/{training,validation}
The images are for research and education; see https://groups.csail.mit.edu/vision/datasets/ADE20K/ for the terms.
Nothing that exists is overwritten.
"""

import argparse
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cisskit.data.ade import CODING, FOLDER, FOLDERS, IMAGES, LABELS
from cisskit.data.base import select
from cisskit.data.files import SALIENCY, Folders, Index, Pair, check_pairs, found_pairs
from cisskit.data.manifest import MANIFEST, write_manifest
from cisskit.errors import KitError
from cisskit.scenario import Scenario
from data_prep.check import Table, count_of, rows_of_pairs
from data_prep.download import Archive, fetch
from data_prep.unpack import FOUND, move, unzip, workplace

ARCHIVE = Archive(
    "ADEChallengeData2016.zip",
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    967382037,
    "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",  # as gluon-cv has it
)
SIZES = {"train": 20210, "test": 2000}
STEPS = {  # task, setting: training images per step, as published
    ("100-50", "overlap"): (20192, 9390),
    ("100-50", "disjoint"): (10806, 9390),
    ("100-10", "overlap"): (20192, 1710, 2294, 2747, 4279, 2844),
    ("100-10", "disjoint"): (10806, 861, 1009, 1445, 3231, 2844),
    ("100-5", "overlap"): (20192, 1142, 600, 1234, 1204, 1151, 1874, 1807, 2943, 1238, 1898),
    ("100-5", "disjoint"): (10806, 597, 264, 499, 510, 493, 952, 1040, 2191, 946, 1898),
    ("50-50", "overlap"): (20177, 13186, 9390),
    ("50-50", "disjoint"): (4838, 5968, 9390),
    ("50-20", "overlap"): (20177, 7508, 7905, 4713, 4469, 6075),
}


def options(parser: argparse.ArgumentParser) -> None:
    pass


def assemble(chosen: argparse.Namespace) -> int:
    """Fetch and unpack what is not there yet, then `check`."""
    root = chosen.root
    ade, origin = root / FOLDER, ARCHIVE.name
    if ade.exists():
        print(f"{ade} exists; it is kept")
        origin = FOUND
    else:
        archive = fetch(ARCHIVE, root)
        print(f"unpacking {archive}", flush=True)
        with workplace(root, str(ade)) as work:
            if not unzip(archive, work, _wanted):
                raise KitError(f"{archive} holds no {FOLDER}; it is another archive than the one that is needed.")
            move(work / FOLDER, ade)
    if not (ade / MANIFEST).exists():
        try:
            splits = pairs_of(ade)
            check_pairs(pair for pairs in splits.values() for pair in pairs)
        except KitError:
            pass  # the table says it; what is incomplete gets no manifest
        else:
            write_manifest(ade, "ade20k", {}, splits, origin)
    return check(chosen)


def _wanted(path: PurePosixPath) -> PurePosixPath | None:
    kind = {IMAGES: ".jpg", LABELS: ".png"}
    parts = path.parts
    fits = len(parts) == 4 and parts[0] == FOLDER and parts[2] in FOLDERS.values() and kind.get(parts[1]) == path.suffix
    return path if fits else None


def pairs_of(ade: Path) -> dict[str, list[Pair]]:
    splits = {}
    for split, name in FOLDERS.items():
        folders = Folders(*(ade / kind / name for kind in (IMAGES, LABELS, SALIENCY)))
        for folder in folders[:2]:
            if not folder.is_dir():
                raise KitError(f"there is no folder {folder}. Move {ade} away and run `python -m data_prep ade20k` again.")
        splits[split] = found_pairs(folders)
    return splits


def check(chosen: argparse.Namespace) -> int:
    """Print a table of what should be there and what is; 0 when every row is ok. Writes nothing."""
    root = chosen.root.expanduser().absolute()
    ade = root if (root / LABELS).is_dir() else root / FOLDER
    if not ade.is_dir():
        raise KitError(f"there is no ADE20K: looked for {ade}. `python -m data_prep ade20k --root {root}` makes it.")
    table, splits = Table(), pairs_of(ade)
    for split, name in FOLDERS.items():
        table.row(name, f"{SIZES[split]} images", count_of(splits[split]), count=True)
    rule = "Labels are 8-bit index PNGs; those of the full ADE20K have other values."
    indices = rows_of_pairs(table, ade, splits, CODING, "0..150", rule)
    _rows_of_steps(table, indices.get("train"))
    return table.close(str(ade))


def _rows_of_steps(table: Table, index: Index | None) -> None:
    """Images per step of the published tasks. They say something about a full set only."""
    n = 0 if index is None else len(index.pixels)
    for (task, setting), counts in STEPS.items():
        what, expected = f"{task} {setting}", ", ".join(map(str, counts))
        if index is None or n != SIZES["train"]:
            table.note(what, expected, f"not compared: {n} of {SIZES['train']} training images")
            continue
        scenario = Scenario.named(f"ade-{task}", setting=setting)
        table.row(what, expected, partial(_counts, index.pixels > 0, scenario))


def _counts(presence: NDArray[np.bool_], scenario: Scenario) -> str:
    return ", ".join(str(int(select(presence, scenario, step.index).sum())) for step in scenario.steps)
