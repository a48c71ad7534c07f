"""Images as they are labelled at a step: `open_source` reads a data set, `Data` puts a scenario on it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cisskit.data.base import (
    Batch,
    Data,
    Source,
    TrainLoader,
    arrivals,
    kept,
    label_table,
    renumber,
    select,
    select_test,
    shows,
    step_table,
)
from cisskit.data.toy import Toy
from cisskit.data.voc import Voc
from cisskit.errors import KitError, unknown

SOURCES: dict[str, Callable[..., Source]] = {"toy": Toy, "voc": Voc}

__all__ = [
    "SOURCES", "Batch", "Data", "Source", "Toy", "TrainLoader", "Voc", "arrivals", "kept", "label_table", "open_source",
    "renumber", "select", "select_test", "shows", "step_table",
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
            f"`python -m data_prep {dataset} --root DATA` makes one."
        )
    return kind(root, **options)
