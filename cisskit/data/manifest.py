"""What `data_prep` made: a ``manifest.json`` beside the files, so that a folder that has changed is noticed.

    {"format": 1, "kit": "0.1.0", "dataset": "isprs", "options": {"tile": 512, ...}, "origin": "...",
     "splits": {"train": {"images": 3456, "names": "...", "labels": "..."}}}

``names`` is a digest of names and sizes, quick enough for every start; ``labels`` one of the label files' contents.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cisskit import __version__
from cisskit.data.files import Pair
from cisskit.errors import KitError, first_ten
from cisskit.files import write_json

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Split:
    images: int
    names: str
    """SHA-256 of the lines "image x.jpg 1234" and "label x.png 567", name and bytes, sorted."""
    labels: str
    """SHA-256 of the label files' names and contents."""


@dataclass(frozen=True)
class Manifest:
    format: int
    kit: str
    """Version that wrote it."""
    dataset: str
    """What ``python -m data_prep`` was called with."""
    options: dict[str, Any]
    splits: dict[str, Split]
    origin: str
    """Where the files come from, in words."""


def write_manifest(
    folder: Path, dataset: str, options: Mapping[str, Any], splits: Mapping[str, Sequence[Pair]], origin: str
) -> Manifest:
    """Record the files of each split in ``folder/manifest.json``: the last thing that is written, before the folder gets its
    name. Raises `KitError` for a file that is not there."""
    found = {}
    for split, pairs in splits.items():
        names, missing = _names_digest(pairs)
        if missing:
            raise KitError(f"{split} lacks files: {first_ten(missing)}; {folder / MANIFEST} was not written.")
        found[split] = Split(len(pairs), names, _labels_digest(pairs))
    manifest = Manifest(FORMAT, __version__, dataset, dict(options), found, origin)
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None when it has none. Raises `KitError` when it is damaged or of a newer kit."""
    file = folder / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
        newer = isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > FORMAT
        if not newer:
            return TypeAdapter(Manifest).validate_python(value)
    except (ValueError, ValidationError) as error:
        raise KitError(
            f"{file} is damaged ({str(error).splitlines()[0]}). Delete it and run `python -m data_prep` for this data set again."
        ) from error
    raise KitError(
        f"{file} has format {value['format']}, made by cisskit {value.get('kit')}; this is cisskit {__version__}, which reads "
        f"format {FORMAT}. Update cisskit."
    )


def check_manifest(folder: Path, splits: Mapping[str, Sequence[Pair]], *, contents: bool = False) -> Manifest | None:
    """Compare the files of each split with the manifest of ``folder``, if it has one. Splits that it does not know are skipped.

    contents: read all labels, too; else names and sizes alone are compared. Raises `KitError` for any difference.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    for split, pairs in splits.items():
        if split in manifest.splits and (fault := _difference(pairs, manifest.splits[split], contents)):
            raise KitError(
                f"{folder} is not as `python -m data_prep {manifest.dataset}` left it: {split} {fault}. Restore the files, or "
                f"move the folder away and run `python -m data_prep {manifest.dataset} --root DATA` again. If the change is "
                f"meant, delete {folder / MANIFEST}."
            )
    return manifest


def _difference(pairs: Sequence[Pair], expected: Split, contents: bool) -> str:
    names, missing = _names_digest(pairs)
    if missing:
        return f"lacks files: {first_ten(missing)}"
    if more := len(pairs) - expected.images:
        return (
            f"has {len(pairs)} images, {abs(more)} {'more' if more > 0 else 'fewer'} than the {expected.images} of the manifest"
        )
    if names != expected.names:
        return f"has {len(pairs)} images as the manifest says, but names or sizes of files have changed"
    if contents and _labels_digest(pairs) != expected.labels:
        return "has labels of other contents"
    return ""


def _names_digest(pairs: Sequence[Pair]) -> tuple[str, list[str]]:
    """The digest, and the files that are not there."""
    lines, missing = [], []
    for pair in pairs:
        for kind, file in (("image", pair.image), ("label", pair.label)):
            try:
                lines.append(f"{kind} {file.name} {file.stat().st_size}\n")
            except FileNotFoundError:
                missing.append(str(file))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(), missing


def _labels_digest(pairs: Sequence[Pair]) -> str:
    def content(pair: Pair) -> bytes:
        return pair.label.name.encode() + b"\0" + hashlib.sha256(pair.label.read_bytes()).digest()

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(sorted(pool.map(content, pairs)))).hexdigest()
