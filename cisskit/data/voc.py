"""Pascal VOC 2012 in its official layout.

    VOCdevkit/VOC2012/JPEGImages/x.jpg
                      SegmentationClassAug/x.png     VOC's labels and SBD's, 8-bit index PNGs; else SegmentationClass
                      ImageSets/Segmentation/*.txt   ids, or "/JPEGImages/x.jpg /SegmentationClassAug/x.png" pairs

Which image shows which class comes from one pass over the label files. The result is kept in the cache folder under a
fingerprint of those files, so the second start reads no label.
"""

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from cisskit.data.base import Source
from cisskit.errors import KitError, first_ten, unknown
from cisskit.files import written_whole
from cisskit.scenario import DATASETS, IGNORE

LISTS = "ImageSets/Segmentation"
IMAGES = "JPEGImages"
LABELS = ("SegmentationClassAug", "SegmentationClass")
"""Label folders, the better one first."""
VALUES = frozenset(range(len(DATASETS["voc"].names) + 1)) | {IGNORE}
DAMAGED = (OSError, SyntaxError, ValueError)
"""What Pillow raises for a truncated or broken file."""
_INDEX_FORMAT = 1


class Pair(NamedTuple):
    """One line of a list."""

    name: str
    image: Path
    label: Path


class _Index(NamedTuple):
    presence: NDArray[np.bool_]  # (n, 256)
    sizes: NDArray[np.int64]  # (n, 2) height, width
    digest: str  # of the label files' names and bytes


class Voc(Source):
    """Pascal VOC 2012; splits ``train`` and ``test``.

    root: the folder that holds ``VOCdevkit/VOC2012``, or ``VOC2012`` itself.
    train_list, test_list: file names in ``ImageSets/Segmentation`` without ``.txt``; None is ``train_aug`` if there is
    one, else ``train``. cache_mb: memory for decoded images. labels_only: open without ``JPEGImages``, for counting.

    Raises `KitError` for a missing root, another layout, an unknown or faulty list, images without label and labels
    without image. Label values are checked by the first `presence`.
    """

    dataset = "voc"

    def __init__(
        self,
        root: str | Path,
        *,
        train_list: str | None = None,
        test_list: str = "val",
        cache_mb: int = 2000,
        labels_only: bool = False,
    ) -> None:
        self.root = find_voc(root)
        folders = [name for name in LABELS if (self.root / name).is_dir()]
        missing = [] if folders else [" or ".join(LABELS)]
        if not labels_only and not (self.root / IMAGES).is_dir():
            missing.append(IMAGES)
        if missing:
            raise KitError(f"{self.root} has no folder {' and none named '.join(missing)}. {_remedy(root)}")
        self.label_folder = folders[0]
        if train_list is None:
            train_list = "train_aug" if (self.root / LISTS / "train_aug.txt").is_file() else "train"
        self.lists = {"train": train_list, "test": test_list}
        self.pairs = {split: read_list(self.root, name, self.label_folder) for split, name in self.lists.items()}
        shared = {p.name for p in self.pairs["train"]} & {p.name for p in self.pairs["test"]}
        if shared:
            raise KitError(
                f"the lists {train_list!r} and {test_list!r} share images: {first_ten(sorted(shared))}. A score on "
                "training images means nothing; choose lists without common names."
            )
        if not labels_only:
            check_pairs(p for pairs in self.pairs.values() for p in pairs)
        self.palette = voc_palette()
        self._names = {split: tuple(p.name for p in pairs) for split, pairs in self.pairs.items()}
        self._indices: dict[str, _Index] = {}
        self._kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._room = cache_mb * 2**20

    def _pairs(self, split: str) -> list[Pair]:
        if split not in self.pairs:
            raise unknown("split", split, self.splits)
        return self.pairs[split]

    def names(self, split: str) -> tuple[str, ...]:
        self._pairs(split)
        return self._names[split]

    def image(self, split: str, i: int) -> Tensor:
        if (split, i) in self._kept:
            return self._kept[split, i][0]
        return torch.from_numpy(read_image(self._pairs(split)[i].image)).permute(2, 0, 1)

    def label(self, split: str, i: int) -> Tensor:
        if (split, i) in self._kept:
            return self._kept[split, i][1]
        return torch.from_numpy(read_label(self._pairs(split)[i].label))

    def where(self, split: str, i: int) -> str:
        pair = self._pairs(split)[i]
        return f"{pair.image} and {pair.label}"

    def pair(self, split: str, i: int) -> tuple[Tensor, Tensor]:
        if (split, i) in self._kept:
            return self._kept[split, i]
        image, label = super().pair(split, i)
        used = image.numel() + label.numel()
        if used <= self._room and get_worker_info() is None:  # a loader process would keep a copy of its own
            self._room -= used
            self._kept[split, i] = image, label
        return image, label

    def warm(self, split: str, indices: NDArray[np.int64]) -> None:
        todo = [i for i in dict.fromkeys(map(int, indices)) if (split, i) not in self._kept]
        used = np.cumsum(4 * self.sizes(split)[todo].prod(axis=1)) if todo else np.zeros(0)
        fits = todo[: int(np.searchsorted(used, self._room, side="right"))]
        with ThreadPoolExecutor(_threads()) as pool:
            list(pool.map(lambda i: self.pair(split, i), fits))

    def presence(self, split: str) -> NDArray[np.bool_]:
        return self._index(split).presence

    def sizes(self, split: str) -> NDArray[np.int64]:
        return self._index(split).sizes

    def fingerprint(self, split: str) -> str:
        return self._index(split).digest

    def describe(self) -> dict[str, Any]:
        return {"train_list": self.lists["train"], "test_list": self.lists["test"], "labels": self.label_folder}

    def _index(self, split: str) -> _Index:
        if split not in self._indices:
            labels = [p.label for p in self._pairs(split)]
            file = cache_folder() / f"voc-{_stat_key(labels)}.npz"
            index = _load_index(file, len(labels))
            if index is None:
                index = index_labels(labels)
                _save_index(file, index)
            self._indices[split] = index
        return self._indices[split]


# --- the folder ---


def find_voc(root: str | Path) -> Path:
    """The folder ``VOC2012`` at or under ``root``. Raises `KitError` naming what was looked for."""
    root = Path(root).expanduser().absolute()
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / LISTS).is_dir():
            return folder
    state = "has another layout" if root.is_dir() else "does not exist"
    raise KitError(
        f"no Pascal VOC 2012: {root} {state}; looked for {root / 'VOCdevkit' / 'VOC2012' / LISTS} "
        f"and {root / LISTS}. {_remedy(root)}"
    )


def _remedy(root: str | Path) -> str:
    return f"`python -m data_prep voc --root {root}` makes it, and with --check says what is missing."


def read_list(root: Path, name: str, label_folder: str) -> list[Pair]:
    """The images of ``ImageSets/Segmentation/<name>.txt``. Raises `KitError`: unknown, empty, malformed, a name twice."""
    file = root / LISTS / f"{name}.txt"
    if not file.is_file():
        raise unknown(f"list in {root / LISTS}:", name, sorted(p.stem for p in (root / LISTS).glob("*.txt")))
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if len(words) == 1 and "/" not in words[0]:
            pairs.append(Pair(words[0], root / IMAGES / f"{words[0]}.jpg", root / label_folder / f"{words[0]}.png"))
        elif len(words) == 2:
            image, label = (root / word.lstrip("/") for word in words)
            pairs.append(Pair(image.stem, image, label))
        elif words:
            raise KitError(
                f"{file}, line {number}: {line.strip()!r} is neither an image id nor a pair "
                f"'/{IMAGES}/x.jpg /{label_folder}/x.png'."
            )
    if not pairs:
        raise KitError(f"{file} lists no image. {_remedy(root)}")
    names = [p.name for p in pairs]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise KitError(f"{file} lists images twice: {first_ten(twice)}. Remove the repeated lines.")
    return pairs


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raises `KitError` for images without label and labels without image: the first ten of each, and the counts."""
    present: dict[Path, set[str]] = {}

    def exists(path: Path) -> bool:  # one directory listing instead of a stat per file
        folder = path.parent
        if folder not in present:
            present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        return path.name in present[folder]

    faults: dict[str, list[str]] = {
        "image without label": [],
        "label without image": [],
        "listed, but neither image nor label": [],
    }
    example = None
    for pair in pairs:
        has_image, has_label = exists(pair.image), exists(pair.label)
        if has_image and has_label:
            continue
        kind = (
            "image without label" if has_image else "label without image" if has_label else "listed, but neither image nor label"
        )
        faults[kind].append(pair.name)
        example = example or (pair.image if not has_image else pair.label)
    if example:
        told = "; ".join(f"{kind}: {first_ten(names)}" for kind, names in faults.items() if names)
        raise KitError(f"{told}. Looked for files such as {example}. Add them, or remove the names from the list.")


# --- files ---


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8. Raises `KitError` for a damaged file."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except DAMAGED as error:
        raise KitError(f"cannot read the image {path}: {_short(error)}. It is damaged or incomplete; fetch it again.") from error


def read_label(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8 of original ids. Raises `KitError` for a damaged file, a colour or 16-bit image, and other values."""
    try:
        image, fault = _open_label(io.BytesIO(path.read_bytes()))
    except OSError as error:
        image, fault = None, f"cannot be read ({_short(error)})"
    if image is None or fault:
        raise KitError(f"label {path} {fault}. {_LABEL_RULE}")
    return np.array(image)


_LABEL_RULE = (
    f"VOC labels are 8-bit index PNGs (mode P or L) with one class id per pixel, 0..{max(VALUES - {IGNORE})} or {IGNORE}. "
    "Fetch the file again, or convert it (colours to ids by the VOC palette)."
)


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _open_label(data: io.BytesIO) -> tuple[Image.Image | None, str]:
    """The decoded image and "", or what is wrong with it."""
    try:
        image = Image.open(data)
        image.load()
    except DAMAGED as error:
        return None, f"cannot be read ({_short(error)})"
    if image.mode not in ("P", "L"):
        return None, f"is an image of mode {image.mode}"
    wrong = [value for value, count in enumerate(image.histogram()) if count and value not in VALUES]
    return image, f"holds the values {first_ten(map(str, wrong))}" if wrong else ""


# --- the pass over all labels, and its cache ---


def index_labels(labels: list[Path]) -> _Index:
    """Classes, size and digest of every label file, read in parallel.

    Raises `KitError` for unreadable files, other modes and other values: the first ten files and the count.
    """

    def one(path: Path) -> tuple[NDArray[np.bool_], tuple[int, int], bytes, str]:
        try:
            data = path.read_bytes()
        except OSError as error:
            return np.zeros(256, dtype=bool), (0, 0), b"", f"cannot be read ({_short(error)})"
        image, fault = _open_label(io.BytesIO(data))
        if image is None:
            return np.zeros(256, dtype=bool), (0, 0), b"", fault
        return np.array(image.histogram()) > 0, (image.height, image.width), hashlib.sha256(data).digest(), fault

    with ThreadPoolExecutor(_threads()) as pool:
        found = list(pool.map(one, labels))
    faults = [f"{path.name} {fault}" for path, (*_, fault) in zip(labels, found, strict=True) if fault]
    if faults:
        raise KitError(f"labels in {labels[0].parent} cannot be used: {first_ten(faults)}. {_LABEL_RULE}")
    digest = hashlib.sha256()
    for path, (_, _, content, _) in zip(labels, found, strict=True):
        digest.update(path.name.encode() + b"\0" + content)
    presence, sizes = np.stack([f[0] for f in found]), np.array([f[1] for f in found], dtype=np.int64)
    return _Index(presence, sizes, digest.hexdigest()[:16])


def cache_folder() -> Path:
    """Where the kit keeps what it can compute again: ``CISSKIT_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("CISSKIT_CACHE") or platformdirs.user_cache_dir("cisskit"))


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def _stat_key(labels: list[Path]) -> str:
    """Digest of names, sizes and times: changes whenever a label file may have changed."""
    digest = hashlib.sha256(str(_INDEX_FORMAT).encode())
    for path in labels:
        try:
            state = path.stat()
        except OSError as error:
            raise KitError(f"no label {path}. Add it, or remove the name from the list.") from error
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _load_index(file: Path, n: int) -> _Index | None:
    """The index in a cache file, or None when there is none or it is damaged."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            index = _Index(stored["presence"], stored["sizes"], str(stored["digest"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if index.presence.shape == (n, 256) and index.sizes.shape == (n, 2) else None


def _save_index(file: Path, index: _Index) -> None:
    try:
        with written_whole(file) as beside, beside.open("wb") as out:
            np.savez_compressed(out, presence=index.presence, sizes=index.sizes, digest=index.digest)
    except (OSError, KitError) as error:  # the index itself is fine: the next start only has to read the labels again
        warnings.warn(
            f"could not keep the label index in {file} ({_short(error)}); set CISSKIT_CACHE to a writable folder.", stacklevel=2
        )


def voc_palette() -> NDArray[np.uint8]:
    """(256, 3): VOC's colours; the bits of an id are dealt to red, green and blue, the highest bit of each first."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> channel & 1) << (7 - bit)).astype(np.uint8)
        ids >>= 3
    return colours
