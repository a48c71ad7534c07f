"""Files that appear complete or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cisskit.errors import KitError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well; on any error the old file stays.

    Raises `KitError` when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except Exception as error:  # each library reports a full disk in its own way; all else passes through
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise KitError(
                f"the disk is full: {path} was not written ({free:.0f} MB free). What was complete is still there; "
                "free some space and run the same command again, it continues from the last checkpoint."
            ) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
