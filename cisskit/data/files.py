"""Data sets that lie in files: images, and label maps with one class id per pixel.

A data set derives from `FileSource` and says three things: which files belong together (`Pair`), what the values in its
label files mean (`coding`), and what to do when something is missing. Which image shows which class comes from one pass
over the label files. The result is kept in the cache folder under a fingerprint of those files, so the second start reads
no label.
"""

import hashlib
import io
import os
import warnings
import zipfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor

from cisskit.data.base import Source
from cisskit.data.cache import InMemory, OnDisk, Sample, cache_folder
from cisskit.errors import KitError, first_ten, unknown
from cisskit.files import written_whole

Cache = Literal["memory", "disk"]
"""Where decoded images are kept: by this process, or in files of the cache folder that processes and runs share."""
Coding = NDArray[np.int16]
"""(256,): original id (or 255) of each value in a label file, -1 for values that are refused."""
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a truncated or broken file."""
PHOTOS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
SALIENCY = "saliency_map"
"""Folder of saliency maps, beside the images."""
SALIENCY_REMEDY = "`python -m data_prep saliency --help` says how."
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_INDEX_FORMAT = 2


class Pair(NamedTuple):
    """One image of a data set."""

    name: str
    image: Path
    label: Path
    saliency: Path | None = None


class Folders(NamedTuple):
    """Where the files of a split lie; maps have the names of the images."""

    images: Path
    labels: Path
    saliency: Path


class Index(NamedTuple):
    """What one pass over label files finds."""

    pixels: NDArray[np.int64]  # (n, 256) pixels of each file value
    sizes: NDArray[np.int64]  # (n, 2) height, width
    digest: str  # of the label files' names and bytes


def coding(ids: Mapping[int, int]) -> Coding:
    """The `Coding` of file value -> original id; all other values are refused."""
    table = np.full(256, -1, dtype=np.int16)
    for value, original in ids.items():
        table[value] = original
    return table


class FileSource(Source):
    """Pairs of files. Derive, and call this with the pairs of each split.

    missing: split -> why it has no images; asking for it raises a `KitError` with these words.
    cache_mb: room for decoded images; cache: where it is, see `Cache`. check: whether every image and label must be there.
    Raises `KitError` for images without label and labels without image. Label values are checked by the first `pixels`.
    """

    label_rule: str
    """What a label file of this data set must be, and how to make it: the end of an error message."""

    def __init__(
        self, pairs: Mapping[str, list[Pair]], missing: Mapping[str, str] | None = None, *,
        cache_mb: int, cache: Cache = "memory", check: bool = True,
    ) -> None:  # fmt: skip
        if cache not in get_args(Cache):
            raise unknown("place for decoded images:", cache, get_args(Cache))
        if check:
            check_pairs(p for listed in pairs.values() for p in listed)
        self.pairs, self.missing = pairs, missing or {}
        self._names = {split: tuple(p.name for p in listed) for split, listed in pairs.items()}
        for split, names in self._names.items():
            if len(set(names)) < len(names):
                raise KitError(f"{self.dataset} {split} has images of one name: {first_ten(repeated(names))}. Rename them.")
        self._indices: dict[str, Index] = {}
        self._pixels: dict[str, NDArray[np.int64]] = {}
        room = cache_mb * 2**20
        self.cache: InMemory | OnDisk = OnDisk(room, self._stored) if cache == "disk" else InMemory(room)

    @abstractmethod
    def coding(self, split: str) -> Coding:
        """What the values in the label files of a split mean."""

    def _pairs(self, split: str) -> list[Pair]:
        if split in self.missing and split not in self.pairs:
            raise KitError(self.missing[split])
        if split not in self.pairs:
            raise unknown("split", split, self.splits)
        return self.pairs[split]

    def names(self, split: str) -> tuple[str, ...]:
        self._pairs(split)
        return self._names[split]

    def image(self, split: str, i: int) -> Tensor:
        if (kept := self.cache.get(split, i)) is not None:
            return kept[0]
        return torch.from_numpy(read_image(self._pairs(split)[i].image)).permute(2, 0, 1)

    def label(self, split: str, i: int) -> Tensor:
        if (kept := self.cache.get(split, i)) is not None:
            return kept[1]
        return torch.from_numpy(read_label(self._pairs(split)[i].label, self.coding(split), self.label_rule))

    def pair(self, split: str, i: int) -> Sample:
        if (kept := self.cache.get(split, i)) is not None:
            return kept
        sample = super().pair(split, i)
        self.cache.put(split, i, sample)
        return sample

    def where(self, split: str, i: int) -> str:
        pair = self._pairs(split)[i]
        return f"{pair.image} and {pair.label}"

    def warm(self, split: str, indices: NDArray[np.int64]) -> None:
        if isinstance(self.cache, OnDisk):
            self.cache.open(split)  # the processes fill it
            return
        todo = [i for i in dict.fromkeys(map(int, indices)) if self.cache.get(split, i) is None]
        used = np.cumsum(4 * self.sizes(split)[todo].prod(axis=1)) if todo else np.zeros(0)
        fits = todo[: int(np.searchsorted(used, self.cache.room, side="right"))]
        with ThreadPoolExecutor(_threads()) as pool:
            list(pool.map(lambda i: self.pair(split, i), fits))

    def pixels(self, split: str) -> NDArray[np.int64]:
        if split not in self._pixels:
            values, table = self._index(split).pixels, self.coding(split)
            counts = np.zeros_like(values)
            for value in np.flatnonzero(table >= 0):
                counts[:, table[value]] += values[:, value]
            self._pixels[split] = counts
        return self._pixels[split]

    def sizes(self, split: str) -> NDArray[np.int64]:
        return self._index(split).sizes

    def fingerprint(self, split: str) -> str:
        return self._index(split).digest

    def saliency(self, split: str, i: int) -> Tensor:
        pair, size = self._pairs(split)[i], tuple(self.sizes(split)[i].tolist())
        if pair.saliency is None:
            return super().saliency(split, i)
        salient = read_saliency(pair.saliency)
        if salient.shape != size:
            raise KitError(
                f"the saliency map {pair.saliency} has {salient.shape[1]} x {salient.shape[0]} pixels, its label {size[1]} x "
                f"{size[0]}. Remove the map and make it again. {SALIENCY_REMEDY}"
            )
        return torch.from_numpy(salient)

    def without_saliency(self, split: str) -> list[str]:
        exists = _Listing()
        return [p.name for p in self._pairs(split) if p.saliency is None or not exists(p.saliency)]

    def saliency_origin(self) -> str:
        from cisskit.data.manifest import read_manifest  # which is about the pairs of this file

        above = {p.saliency.parent for p in self._pairs("train") if p.saliency}
        folders = sorted({folder for one in above for folder in (one, one.parent) if folder.name == SALIENCY})
        found = []
        for made in map(read_manifest, folders):
            options = {k: v for k, v in made.options.items() if k != "data"} if made else {}
            origin = made.origin if made else "unknown, no manifest"
            found.append(", ".join([origin, *(f"{key} {value}" for key, value in options.items())]))
        return "; ".join(dict.fromkeys(found))

    def _index(self, split: str) -> Index:
        if split not in self._indices:
            labels = [p.label for p in self._pairs(split)]
            file = cache_folder() / f"{self.dataset}-{_stat_key(labels)}.npz"
            index = _load_index(file, len(labels))
            if index is None:
                index = index_labels(labels, self.coding(split), self.label_rule)
                _save_index(file, index)
            else:
                _check_values(labels, index.pixels, self.coding(split), self.label_rule)
            self._indices[split] = index
        return self._indices[split]

    def _stored(self, split: str) -> tuple[Path, NDArray[np.int64]]:
        """File of decoded samples and their sizes, for `OnDisk`."""
        key = hashlib.sha256(self.coding(split).tobytes())
        key.update(f"{self.fingerprint(split)} {_stat_key([p.image for p in self._pairs(split)])}".encode())
        return cache_folder() / f"{self.dataset}-{split}-{key.hexdigest()[:24]}.pixels", self.sizes(split)


# --- which files belong together ---


def found_pairs(folders: Folders) -> list[Pair]:
    """A pair for each image or label in the folders, by name; `check_pairs` finds those that lack the other half.

    Images end in one of `PHOTOS`, in any case; labels are PNGs. Raises `KitError` when two images differ only in that.
    """
    images, labels, saliency = folders
    photos: dict[str, list[str]] = {}
    for file in sorted(os.listdir(images)):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in PHOTOS and not file.startswith("."):
            photos.setdefault(stem, []).append(file)
    twice = [", ".join(files) for files in photos.values() if len(files) > 1]
    if twice:
        raise KitError(
            f"{images} holds several images of one name: {first_ten(twice)}. A label is found by the name of its image: remove "
            "or rename all but one of each."
        )
    names = photos.keys() | {file[:-4] for file in os.listdir(labels) if file.endswith(".png") and not file.startswith(".")}
    if not names:
        raise KitError(f"{images} holds no image ({', '.join(PHOTOS)}), {labels} no label (.png).")
    return [
        Pair(name, images / photos.get(name, [f"{name}{PHOTOS[0]}"])[0], labels / f"{name}.png", saliency / f"{name}.png")
        for name in sorted(names)
    ]


def split_folders(dataset: str, folders: Mapping[str, Folders], remedy: str) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """Pairs of the splits whose folders are there, and why there are none of the others, as `FileSource` takes them.

    Raises `KitError` when the split ``train`` is not there.
    """
    pairs, missing = {}, {}
    for split, those in folders.items():
        gone = [str(folder) for folder in (those.images, those.labels) if not folder.is_dir() or not any(folder.iterdir())]
        if gone:
            missing[split] = f"{dataset} has no {split} images: there is nothing in {' and '.join(gone)}. {remedy}"
        else:
            pairs[split] = found_pairs(those)
    if "train" in missing:
        raise KitError(missing["train"])
    return pairs, missing


class _Listing:
    """Does a file exist? One listing of each folder instead of a look at each file."""

    def __init__(self) -> None:
        self.present: dict[Path, set[str]] = {}

    def __call__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self.present:
            self.present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        return path.name in self.present[folder]


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raises `KitError` for images without label and labels without image: the first ten of each, and the counts."""
    exists = _Listing()
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


def shared_names(one: Iterable[Pair], other: Iterable[Pair]) -> list[str]:
    """Names of images that two lists have in common."""
    return sorted({p.name for p in one} & {p.name for p in other})


def repeated(names: Iterable[str]) -> list[str]:
    """The names that come more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


# --- files ---


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8. Raises `KitError` for a damaged file, and for one of 16 bits or of fractions."""
    try:
        with Image.open(path) as image:
            bits = max(image.tag_v2.get(BITSPERSAMPLE, (8,))) if isinstance(image, TiffImageFile) else 8
            if image.mode in _EIGHT_BIT and bits <= 8:
                return np.array(image.convert("RGB"))
            mode = f"mode {image.mode}" if image.mode not in _EIGHT_BIT else f"{bits} bits"
    except DAMAGED as error:
        raise KitError(f"cannot read the image {path}: {_short(error)}. It is damaged or incomplete; fetch it again.") from error
    raise KitError(
        f"the image {path} is of {mode}; images have 8 bits per channel, values 0..255. Convert it, and choose yourself which "
        "range of values becomes 0..255: it must be the same for all images."
    )


def read_label(path: Path, coding: Coding, rule: str) -> NDArray[np.uint8]:
    """(H, W) uint8 of original ids. Raises `KitError` for a damaged file, a colour or 16-bit image, and other values.

    rule: end of the message, see `FileSource`.
    """
    image, fault = _open_index(path)
    fault = fault or _wrong_values(np.array(image.histogram()), coding)
    if fault:
        raise KitError(f"label {path} {fault}. {rule}")
    return coding.astype(np.uint8)[np.array(image)]


def read_saliency(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8, 255 where some object is, else 0. Raises `KitError` for anything else."""
    image, fault = _open_index(path)
    fault = fault or _wrong_values(np.array(image.histogram()), coding({0: 0, 255: 255}))
    if fault:
        raise KitError(f"the saliency map {path} {fault}; it must be an 8-bit grey PNG of 0 and 255. {SALIENCY_REMEDY}")
    return np.array(image)


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _open_index(file: Path | io.BytesIO) -> tuple[Image.Image, str]:
    """The decoded image and "", or any image and what is wrong with the file."""
    try:
        with Image.open(file) as image:
            image.load()
    except DAMAGED as error:
        return Image.new("L", (0, 0)), f"cannot be read ({_short(error)})"
    return image, "" if image.mode in ("P", "L") else f"is an image of mode {image.mode}"


def _wrong_values(pixels: NDArray[Any], coding: Coding) -> str:
    """What is wrong with a label of this histogram (256,), or ""."""
    wrong = np.flatnonzero((pixels > 0) & (coding < 0))
    return f"holds the values {first_ten(map(str, wrong))}" if len(wrong) else ""


# --- the pass over all labels, and its cache ---


def index_labels(labels: Sequence[Path], coding: Coding, rule: str) -> Index:
    """Pixels of each value, size and digest of every label file, read in parallel.

    Raises `KitError` for unreadable files, other modes and values that ``coding`` refuses: the first ten files and the count.
    rule: end of the message, see `FileSource`.
    """

    def one(path: Path) -> tuple[list[int], tuple[int, int], bytes, str]:
        try:
            data = path.read_bytes()
        except OSError as error:
            return [0] * 256, (0, 0), b"", f"cannot be read ({_short(error)})"
        image, fault = _open_index(io.BytesIO(data))
        pixels = [0] * 256 if fault else image.histogram()
        return pixels, (image.height, image.width), hashlib.sha256(data).digest(), fault

    with ThreadPoolExecutor(_threads()) as pool:
        found = list(pool.map(one, labels))
    pixels = np.array([f[0] for f in found], dtype=np.int64).reshape(-1, 256)
    _check_values(labels, pixels, coding, rule, {path: fault for path, (*_, fault) in zip(labels, found, strict=True) if fault})
    digest = hashlib.sha256()
    for path, (_, _, content, _) in zip(labels, found, strict=True):
        digest.update(path.name.encode() + b"\0" + content)
    return Index(pixels, np.array([f[1] for f in found], dtype=np.int64), digest.hexdigest()[:16])


def _check_values(
    labels: Sequence[Path], pixels: NDArray[np.int64], coding: Coding, rule: str, unread: Mapping[Path, str] | None = None
) -> None:
    """Raises `KitError` for files that could not be read and for values that ``coding`` refuses. pixels: (n, 256)."""
    faults = dict(unread or {})
    for i in np.flatnonzero((pixels[:, coding < 0] > 0).any(axis=1)).tolist():
        faults[labels[i]] = _wrong_values(pixels[i], coding)
    if faults:
        told = first_ten(f"{path.name} {faults[path]}" for path in labels if path in faults)
        raise KitError(f"labels in {next(iter(faults)).parent} cannot be used: {told}. {rule}")


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def _stat_key(files: Sequence[Path]) -> str:
    """Digest of names, sizes and times: changes whenever a file may have changed."""
    digest = hashlib.sha256(str(_INDEX_FORMAT).encode())
    for path in files:
        try:
            state = path.stat()
        except OSError as error:
            raise KitError(f"there is no file {path}. Add it, or remove the name from the list.") from error
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _load_index(file: Path, n: int) -> Index | None:
    """The index in a cache file, or None when there is none or it is damaged."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            index = Index(stored["pixels"], stored["sizes"], str(stored["digest"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return index if index.pixels.shape == (n, 256) and index.sizes.shape == (n, 2) else None


def _save_index(file: Path, index: Index) -> None:
    try:
        with written_whole(file) as beside, beside.open("wb") as out:
            np.savez_compressed(out, pixels=index.pixels, sizes=index.sizes, digest=index.digest)
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
