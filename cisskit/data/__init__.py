"""Images as they are labelled at a step: `open_source` reads a data set, `Data` puts a scenario on it."""

import inspect
from pathlib import Path
from typing import Any

from cisskit.data.ade import Ade
from cisskit.data.base import (
    Batch,
    Data,
    Source,
    TrainLoader,
    arrivals,
    kept,
    label_table,
    partition,
    renumber,
    select,
    select_test,
    shows,
    step_table,
)
from cisskit.data.camvid import CamVid
from cisskit.data.files import FileSource
from cisskit.data.folder import Folder
from cisskit.data.isprs import Isprs, IsprsCompat
from cisskit.data.toy import Toy
from cisskit.data.voc import Voc
from cisskit.errors import KitError, unknown
from cisskit.scenario import Scenario

SOURCES: dict[str, Any] = {
    "toy": Toy, "voc": Voc, "ade": Ade, "isprs": Isprs, "isprs_compat": IsprsCompat, "camvid": CamVid, "folder": Folder,
}  # fmt: skip
"""Subclasses of `Source`, each with its own arguments."""

__all__ = [
    "SOURCES", "Ade", "Batch", "CamVid", "Data", "FileSource", "Folder", "Isprs", "IsprsCompat", "Source", "Toy", "TrainLoader",
    "Voc", "arrivals", "kept", "label_table", "open_source", "partition", "read_scenario", "renumber", "select", "select_test",
    "shows", "step_table",
]  # fmt: skip


def open_source(dataset: str, root: str | Path | None = None, **options: Any) -> Source:
    """Open a data set by name: ``open_source("toy")``, ``open_source("voc", "data", train_list="train")``.

    root: folder of the files; the scenes have none. options: arguments of the source class. Raises `KitError` for an
    unknown data set or option, a missing root, and whatever the source finds wrong with its files.
    """
    if dataset not in SOURCES:
        raise unknown("data set", dataset, SOURCES)
    kind = SOURCES[dataset]
    allowed = [name for name in inspect.signature(kind).parameters if name != "root"]
    for name in options:
        if name not in allowed:
            raise unknown(f"option of the data set {dataset!r}:", name, allowed)
    if "root" not in inspect.signature(kind).parameters:
        if root is not None:
            raise KitError(f"the data set {dataset!r} is made in the process and has no files; leave out the root {str(root)!r}.")
        return kind(**options)
    if root is None:
        raise KitError(
            f"the data set {dataset!r} needs the folder of its files, the root; "
            f"`python -m data_prep {dataset} --root DATA` makes one, or says what is missing."
        )
    return kind(root, **options)


def read_scenario(text: str, *, setting: str = "overlap", root: str | Path | None = None) -> Scenario:
    """`Scenario.named`, also for data that bring their own classes: those are read from ``root``."""
    dataset = text.partition(":")[0].partition("-")[0]
    if dataset not in SOURCES or (labels := SOURCES[dataset].own_labels(root)) is None:
        return Scenario.named(text, setting=setting)
    return Scenario.named(text, setting=setting, labels=labels)
