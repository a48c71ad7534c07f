"""Images as they are labelled at a step.

A `Source` knows files (or scenes) and original ids. `Data` puts a scenario on top: which images belong to a step, which
pixels are told, and batches in a fixed order. Labels are renumbered here and nowhere else, by a table of 256 entries.
"""

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cisskit.data.transforms import (
    crop_box,
    crop_resize,
    evaluation_crop,
    evaluation_side,
    flip,
    normalise,
    scale_crop,
)
from cisskit.errors import KitError, first_ten, unknown
from cisskit.protocols import Protocol
from cisskit.protocols import protocol as choose
from cisskit.scenario import BACKGROUND, IGNORE, Labels, Scenario, known_labels

Sees = Literal["step", "seen"]
"""``step``: images and labels of one step. ``seen``: of all steps so far, for the joint upper bound."""
Augment = Literal["area", "scale", "shorter_scale"]
"""How a training crop is found: `crop_box`, or `scale_crop`, which may resize the shorter side first."""
Replay = Literal["pool", "half"]
"""How exemplars are trained with, see `Data.train`."""
USES = ("train", "train_seen", "val", "truth")
EXTRAS = ("truth", "saliency")
"""What a training batch can bring besides image and label, see `Data.train`."""


@dataclass
class Batch:
    """What a method sees.

    image: (B, 3, H, W) float32, normalised. label: (B, H, W) int64, learned ids, 0 and 255.
    extra: ``names`` list of B str, ``from_memory`` (B,) bool, and what a method's ``needs`` asked for.
    """

    image: Tensor
    label: Tensor
    extra: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on ``device`` (copies do not block the host)."""
        extra = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in self.extra.items()}
        return replace(
            self, image=self.image.to(device, non_blocking=True), label=self.label.to(device, non_blocking=True), extra=extra
        )


class Source(ABC):
    """Images and label maps of one data set, by split and position. Labels hold original ids, 0 and 255."""

    dataset: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    mean: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    perfect_saliency: ClassVar[bool] = False
    """Every object is a class, so that saliency is simply "label > 0" (the scenes)."""
    palette: NDArray[np.uint8]
    """(256, 3) colour of each original id."""
    missing: Mapping[str, str] = MappingProxyType({})
    """Splits that have no images, and why."""

    @classmethod
    def own_labels(cls, root: str | Path | None) -> Labels | None:
        """The classes that the files of a data set bring along; None for one whose classes are known."""
        return None

    def allowed(self, scenario: Scenario) -> NDArray[np.bool_] | None:
        """(n, T): the steps that a training image may belong to, in increments of domain; None when it may to all."""
        return None

    @abstractmethod
    def names(self, split: str) -> tuple[str, ...]:
        """One name per image, unique within the split. Raises `KitError` for an unknown split."""

    @abstractmethod
    def image(self, split: str, i: int) -> Tensor:
        """(3, H, W) uint8, RGB."""

    @abstractmethod
    def label(self, split: str, i: int) -> Tensor:
        """(H, W) uint8, original ids."""

    @abstractmethod
    def pixels(self, split: str) -> NDArray[np.int64]:
        """(n, 256): how many pixels of image i have original id c, or 255."""

    def presence(self, split: str) -> NDArray[np.bool_]:
        """(n, 256): does image i show original id c, in one pixel of the whole map or more? Images are chosen by it."""
        return self.pixels(split) > 0

    @abstractmethod
    def sizes(self, split: str) -> NDArray[np.int64]:
        """(n, 2): height and width of every label map."""

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """Digest of the contents that decide a result; the same on every machine that holds the same data."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The options that decide a result, ready for JSON. No paths."""

    @property
    def labels(self) -> Labels:
        """What its original ids mean."""
        return known_labels(self.dataset)

    def saliency(self, split: str, i: int) -> Tensor:
        """(H, W) uint8: not 0 where some object is, whatever its class. Raises `KitError` where there is no such map."""
        raise KitError(f"{self.where(split, i)}: there is no saliency map.")

    def without_saliency(self, split: str) -> list[str]:
        """Names of the images that lack a saliency map."""
        return list(self.names(split))

    def saliency_origin(self) -> str:
        """Who made the saliency maps, as far as their folder says."""
        return ""

    def where(self, split: str, i: int) -> str:
        """How an error names the image."""
        return f"{self.dataset} {split} image {self.names(split)[i]!r}"

    def pair(self, split: str, i: int) -> tuple[Tensor, Tensor]:
        """Image and label. Raises `KitError` when their sizes differ."""
        image, label = self.image(split, i), self.label(split, i)
        if image.shape[1:] != label.shape:
            (h, w), (lh, lw) = image.shape[1:], label.shape
            raise KitError(
                f"{self.where(split, i)}: the image is {w} x {h} pixels, its label {lw} x {lh}. A label belongs to one image "
                "of the same size; fetch both again from the same release."
            )
        return image, label

    def position(self, split: str, name: str) -> int:
        """Where ``names(split)`` holds ``name``. Raises `KitError` if it does not."""
        tables = self.__dict__.setdefault("_positions", {})
        if split not in tables:
            tables[split] = {n: i for i, n in enumerate(self.names(split))}
        if name not in tables[split]:
            raise KitError(f"{self.dataset} {split} has no image {name!r}; its names look like {first_ten(self.names(split))}.")
        return int(tables[split][name])

    def arrays(self, split: str) -> tuple[Tensor, Tensor] | None:
        """All images (n, H, W, 3) and labels (n, H, W), uint8, of a source that lives in memory; else None."""
        return None

    def warm(self, split: str, indices: NDArray[np.int64]) -> None:  # noqa: B027 (nothing to do is a fair answer)
        """Decode ahead whatever will be kept in memory. Called before loader processes are forked, so they share it."""


# --- label tables and image selection: pure functions of ids ---


def label_table(kept: Mapping[int, int], *, other: int = BACKGROUND, background: int = BACKGROUND, void: int = IGNORE) -> Tensor:
    """A lookup table for labels; `renumber` applies it.

    kept: original id -> learned id. Everything else becomes ``other``, 0 becomes ``background``, 255 ``void``.
    The defaults are the kit's rule; the published code bases are other values of the three. Returns (256,) uint8.
    """
    table = torch.full((256,), other, dtype=torch.uint8)
    table[0], table[IGNORE] = background, void
    for original, learned in kept.items():
        table[original] = learned
    return table


def renumber(label: Tensor, table: Tensor) -> Tensor:
    """Every pixel through a `label_table`. label: uint8, any shape; the result has the table's type and device."""
    return table.index_select(0, label.reshape(-1).int()).view(label.shape)  # 6x faster than table[label.int()]


def arrivals(scenario: Scenario, step: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Original ids of the old, current and future classes at a step. Classes outside the scenario are in none of them."""
    now = scenario.step(step)
    order = scenario.order
    return order[: now.n_old], order[now.n_old : now.n_seen], order[now.n_seen :]


def step_table(scenario: Scenario, step: int, use: str, void: int = IGNORE) -> Tensor:
    """The `label_table` of a step.

    use: ``train`` = current classes are told, the rest is background (the setting ``sequential`` tells old ones too);
    ``train_seen`` and ``val`` = old and current; ``truth`` = all classes of the scenario, for the confusion matrix.
    void: what 255 becomes. Classes outside the scenario are background.
    """
    if use not in USES:
        raise unknown("use of labels", use, USES)
    old, current, future = arrivals(scenario, step)
    told = current
    if use != "train" or scenario.setting == "sequential":
        told = old + current
    if use == "truth":
        told += future
    learned = {original: k + 1 for k, original in enumerate(scenario.order)}
    return label_table({c: learned[c] for c in told}, void=void)


def shows(presence: NDArray[np.bool_], classes: Sequence[int]) -> NDArray[np.bool_]:
    """(n,): which images show one of the classes (original ids) or more. presence: (n, 256)."""
    return np.asarray(presence[:, list(classes)].any(axis=1))


def partition(presence: NDArray[np.bool_], scenario: Scenario) -> NDArray[np.int64]:
    """(n,): the one step of each image in the setting ``partitioned``, -1 for images that show no class of the scenario.

    Each image draws one of the classes it shows, all alike, and belongs to that class's step; the draw depends on its position
    in the list alone. [K] The published lists ("Towards Realistic", and MiB's for ADE20K) cannot be computed, their draws are
    lost; on VOC 15-1 this rule expects 9049, 265, 264, 251, 425 and 327 images, where the former has 9031, 254, 266, 270,
    434 and 327.
    """
    shown = presence[:, list(scenario.order)]  # (n, classes in order of arrival)
    draw = np.random.RandomState(0).random_sample(len(presence))  # its numbers are promised for ever
    nth = (draw * shown.sum(axis=1)).astype(np.int64) + 1
    drawn = (np.cumsum(shown, axis=1) >= nth[:, None]).argmax(axis=1)
    step_of = np.repeat(np.arange(len(scenario.groups)), [len(group) for group in scenario.groups])
    return np.where(shown.any(axis=1), step_of[drawn], -1)


def select(
    presence: NDArray[np.bool_], scenario: Scenario, step: int, sees: Sees = "step", allowed: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """(n,): which training images belong to a step. presence: (n, 256).

    overlap: shows a current class. disjoint, sequential: and no class of a later step (SSUL's and IDEC's released filter takes
    the lower ids for the earlier classes, which goes wrong in other orders; not followed). partitioned: see `partition`. joint:
    every image. ``sees="seen"``: images of this step and all before.
    allowed: (n, T), the steps that an image may belong to at all (increments of domain); None allows all.
    Raises `KitError` when there is none.
    """
    if sees not in ("step", "seen"):
        raise unknown("value of sees", sees, ("step", "seen"))
    _, current, future = arrivals(scenario, step)
    if scenario.setting == "joint":
        chosen = np.ones(len(presence), dtype=bool)
    elif scenario.setting == "partitioned":
        chosen = partition(presence, scenario) == step
    else:
        chosen = shows(presence, current)
        if scenario.setting != "overlap":
            chosen &= ~shows(presence, future)
    if allowed is not None:
        chosen = chosen & (allowed.any(axis=1) if scenario.setting == "joint" else allowed[:, step])
    if not chosen.any():
        names = [f"{scenario.classes[scenario.order.index(c) + 1]} ({c})" for c in current]
        why = {"overlap": "", "joint": "", "partitioned": " and was drawn for this step"}
        raise KitError(
            f"step {step} of {scenario.name!r} ({scenario.setting}) has no training image: none of the {len(presence)} images "
            f"shows {', '.join(names)}{why.get(scenario.setting, ' without a class of a later step')}. "
            "Choose other classes, another order or the setting 'overlap', or add images."
        )
    if sees == "seen":
        for earlier in range(step):
            chosen = chosen | select(presence, scenario, earlier, allowed=allowed)
    return chosen


def select_test(presence: NDArray[np.bool_], scenario: Scenario, step: int, which: str = "all") -> NDArray[np.bool_]:
    """(n,): which images are evaluated after a step.

    which: ``all`` images, those that show a ``seen`` class (MiB, PLOP, DKD), or a ``current`` one (to compare checkpoints).
    """
    if which == "all":
        return np.ones(len(presence), dtype=bool)
    if which not in ("seen", "current"):
        raise unknown("choice of test images", which, ("all", "seen", "current"))
    old, current, _ = arrivals(scenario, step)
    return shows(presence, current if which == "current" else old + current)


def kept(n: int, ratio: float) -> int:
    """How many of n images the data-limited protocol keeps: ratio * n, halves to the even number."""
    return round(ratio * n)


# --- batches ---

Key = tuple[int, int]
"""What a loader process is asked for: position of the image in its split, seed of its crop."""


class _Samples(Dataset[Any]):
    """Reads the images of one batch: uint8 (B, H, W, 3) and (B, H, W). Crop, no flip: that is done on the whole batch.

    saliency: labels are (B, 2, H, W), the saliency map under the label.
    """

    def __init__(
        self, source: Source, split: str, *, crop: int | None = None, augment: Augment = "area", eval_side: int | None = None,
        saliency: bool = False,
    ) -> None:  # fmt: skip
        self.source, self.split, self.crop, self.augment, self.eval_side = source, split, crop, augment, eval_side
        self.saliency = saliency

    def one(self, key: Key) -> tuple[Tensor, Tensor]:
        i, seed = key
        image, label = self.source.pair(self.split, i)
        if self.saliency:
            label = torch.stack([label, self.source.saliency(self.split, i)])
        if self.crop is not None and self.augment != "area":
            shorter = self.augment == "shorter_scale"
            image, label = scale_crop(image, label, self.crop, random.Random(seed), shorter=shorter)
        elif self.crop is not None:
            height, width = label.shape[-2:]
            box = crop_box(height, width, random.Random(seed))
            image, label = crop_resize(image, label, box, self.crop)
        elif self.eval_side is not None:
            image, label = evaluation_crop(image, label, self.eval_side)
        return image.permute(1, 2, 0), label

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor] | str:
        # A KitError travels as its text: raised in a loader process it would arrive wrapped in that process's traceback.
        try:
            images, labels = zip(*map(self.one, keys), strict=True)
        except KitError as error:
            return str(error)
        return torch.stack(images), torch.stack(labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor] | str:
        return self.__getitems__([key])


def _as_read(batch: Any) -> Any:
    return batch  # the data set already returns whole batches


class _Reader:
    """Batches of raw samples, read here or by ``workers`` processes that stay alive from epoch to epoch."""

    def __init__(self, samples: _Samples, indices: NDArray[np.int64], workers: int, *, keep: bool) -> None:
        self.samples, self.indices, self.workers, self.keep = samples, indices, workers, keep
        self.keys: list[list[Key]] = []  # the batches to read; the loader looks here each time it is started
        self.loaders: dict[bool, DataLoader[Any]] = {}

    def close(self) -> None:
        self.loaders.clear()

    def read(self, keys: list[list[Key]], *, pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
        self.keys[:] = keys
        if pin not in self.loaders:
            processes: dict[str, Any] = {}
            if self.workers:
                self.samples.source.warm(self.samples.split, self.indices)
                processes = {"persistent_workers": self.keep, "prefetch_factor": 3}
                if sys.platform == "linux":  # forked processes share what is decoded already
                    processes["multiprocessing_context"] = "fork"
            self.loaders[pin] = DataLoader(
                self.samples, batch_sampler=self.keys, num_workers=self.workers, collate_fn=_as_read, pin_memory=pin, **processes
            )
        fault = ""
        for batch in self.loaders[pin]:
            if isinstance(batch, str):
                fault = batch
                break
            yield batch
        if fault:
            self.close()  # held by the error's traceback the processes would linger
            raise KitError(fault)


def _rows(arrays: tuple[Tensor, Tensor], batches: list[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
    """What `_Reader.read` gives, for a source in memory: plain indexing."""
    images, labels = arrays
    for batch in batches:
        at = torch.from_numpy(batch)
        yield images.index_select(0, at), labels.index_select(0, at)


class _Finish:
    """The part of a batch's making that runs on the device: cast, mirror, normalise, renumber."""

    def __init__(
        self, source: Source, table: Tensor, device: torch.device, extras: Mapping[str, Tensor] | None = None,
        memory_table: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.device = device
        self.table = table.long().to(device)
        self.memory_table = None if memory_table is None else memory_table.long().to(device)
        self.extras = {name: extra.to(device) for name, extra in (extras or {}).items()}
        self.mean, self.std = (torch.tensor(v).to(device) for v in (source.mean, source.std))

    def __call__(self, images: Tensor, labels: Tensor, flips: Tensor | None, extra: dict[str, Any]) -> Batch:
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = labels.to(self.device, non_blocking=True)
        if flips is not None:
            images, labels = flip(images, flips), flip(labels, flips)
        if labels.dim() == 4:
            extra["saliency"] = labels[:, 1] > 0
            labels = labels[:, 0]
        extra |= {name: renumber(labels, table) for name, table in self.extras.items()}
        told = renumber(labels, self.table)
        if self.memory_table is not None:
            told = torch.where(extra["from_memory"].view(-1, 1, 1), renumber(labels, self.memory_table), told)
        return Batch(normalise(images, self.mean, self.std), told, extra)


class Plan(NamedTuple):
    """One epoch, decided before it starts. All arrays are indexed by position in the epoch."""

    order: NDArray[np.int64]  # (n,) which of the step's images; the exemplars are counted on after them
    flips: NDArray[np.bool_]  # (n,)
    seeds: NDArray[np.int64]  # (n,) of the crop box


class TrainLoader:
    """Training batches of one step; made by `Data.train`.

    Order, crop and flip at a position of an epoch are a pure function of (seed, step, epoch, position): they depend
    neither on the number of workers nor on what was read before, so a resumed epoch sees the same batches.

    n_images: images of an epoch: of the step, and with replay "pool" of the memory. batches_per_epoch: whole batches only,
    but at least one. names: in the order of the split, memory last.
    """

    def __init__(
        self, source: Source, indices: NDArray[np.int64], n_memory: int, table: Tensor, *,
        crop: int | None, augment: Augment, batch_size: int, seed: int, step: int, workers: int, replay: Replay,
        memory_table: Tensor | None, extras: Mapping[str, Tensor] | None = None, saliency: bool = False,
    ) -> None:  # fmt: skip
        self.source, self.indices, self.table, self.extras = source, indices, table, extras
        self.replay, self.memory_table = replay, memory_table
        self.n_memory, self.n_step = n_memory, len(indices) - n_memory
        self.n_images = len(indices) if replay == "pool" else self.n_step
        self.batch_size = batch_size
        self.batches_per_epoch = max(1, self.n_images // batch_size)
        self.seed, self.step = seed, step
        names = source.names("train")
        self.names = tuple(names[i] for i in indices)
        self._arrays = source.arrays("train") if crop is None else None
        self._reader = _Reader(
            _Samples(source, "train", crop=crop, augment=augment, saliency=saliency), indices, workers, keep=True
        )
        self._finish: dict[torch.device, _Finish] = {}

    def plan(self, epoch: int) -> Plan:
        # RandomState: numpy promises its numbers for ever, so an old run can be resumed with a new numpy.
        rng = np.random.RandomState([self.seed, self.step, epoch])
        n = self.n_images
        plan = Plan(
            rng.permutation(n).astype(np.int64), rng.random_sample(n) < 0.5, rng.randint(0, 2**31, size=n, dtype=np.int64)
        )
        if self.replay == "half" and self.n_memory:
            self._replace_half(plan.order, rng)
        return plan

    def _replace_half(self, order: NDArray[np.int64], rng: np.random.RandomState) -> None:
        """Put exemplars at a random half of the positions of every batch; a short memory is repeated to fill a batch."""
        memory = self.n_step + np.arange(self.n_memory)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            at = rng.permutation(len(batch))[: len(batch) // 2]
            batch[at] = rng.permutation(np.tile(memory, -(-len(batch) // self.n_memory)))[at]

    def epoch(self, epoch: int, device: torch.device | str = "cpu", *, whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch, on ``device``; pixels travel there as uint8 and are finished there.

        whole: also the last, incomplete batch, which training drops: every image once, for statistics (with replay "half",
        those whose places no exemplar takes).
        Only one epoch of a loader runs at a time: starting another ends the first.
        """
        device = torch.device(device)
        if device not in self._finish:
            self._finish[device] = _Finish(self.source, self.table, device, self.extras, self.memory_table)
        finish = self._finish[device]
        plan = self.plan(epoch)
        ends = [(k * self.batch_size, (k + 1) * self.batch_size) for k in range(self.batches_per_epoch)]
        if whole and ends[-1][1] < self.n_images:
            ends.append((ends[-1][1], self.n_images))
        images_at = self.indices[plan.order]
        flips = torch.from_numpy(plan.flips).to(device)
        from_memory = torch.from_numpy(plan.order >= self.n_step).to(device)
        if self._arrays is not None:
            raw = _rows(self._arrays, [images_at[a:b] for a, b in ends])
        else:
            keys = list(zip(images_at.tolist(), plan.seeds.tolist(), strict=True))
            raw = self._reader.read([keys[a:b] for a, b in ends], pin=device.type == "cuda")
        for (a, b), (images, labels) in zip(ends, raw, strict=True):
            extra = {"names": [self.names[k] for k in plan.order[a:b]], "from_memory": from_memory[a:b]}
            yield finish(images, labels, flips[a:b], extra)

    def close(self) -> None:
        """End the loader processes, if there are any; another epoch starts new ones.

        They also end with the last reference to the loader, but ten seconds late if only the cycle collector finds it.
        """
        self._reader.close()


class Data:
    """A scenario on a source: the images of a step, labelled as that step labels them.

    crop: side of the random training crop; None trains on the images as they are. augment: how it is found, see `Augment`.
    ratio: share of their images that steps after the first keep, the first ones in the order of the split (`kept`): LAG's
    data-limited protocol.
    protocol: what void becomes in training, and the evaluation size: ``"full"``, or ``"crop512"`` (any side): shorter side 512,
    centre crop. None is the kit's own, "clean".
    batch_size: of training, and the largest of evaluation. seed: order, crops and flips.
    workers: loader processes; changes speed, never a batch.
    """

    def __init__(
        self, scenario: Scenario, source: Source, *, crop: int | None = None, augment: Augment = "area", ratio: float = 1.0,
        protocol: Protocol | None = None, batch_size: int = 16, seed: int = 0, workers: int = 0,
    ) -> None:  # fmt: skip
        if scenario.dataset != source.dataset:
            raise KitError(
                f"scenario {scenario.name!r} is about {scenario.dataset!r}, but the images are {source.dataset!r}. "
                f"Open the source with open_source({scenario.dataset!r}, ...) or choose a scenario of {source.dataset!r}."
            )
        for name, value, least in (("crop", crop, 1), ("batch_size", batch_size, 1), ("workers", workers, 0), ("seed", seed, 0)):
            if value is not None and not (isinstance(value, int) and least <= value < 2**32):
                raise KitError(f"{name}={value!r} must be a whole number, {least} or more.")
        if augment not in get_args(Augment):
            raise unknown("way to find a training crop:", augment, get_args(Augment))
        if not 0 < ratio <= 1:
            raise KitError(f"ratio={ratio!r} is the share of a step's images that are kept: choose a number above 0, at most 1.")
        self.scenario, self.source = scenario, source
        self.augment, self.ratio = augment, ratio
        self.protocol = protocol or choose("clean", scenario)
        self.crop, self.batch_size = crop, batch_size
        self.seed, self.workers = seed, workers
        self._eval_side = evaluation_side(self.protocol.eval_size)

    def members(self, step: int, sees: Sees = "step") -> NDArray[np.int64]:
        """Positions of the step's images in the split ``train``. Raises `KitError` when there is none."""
        allowed = self.source.allowed(self.scenario)
        found = np.flatnonzero(select(self.source.presence("train"), self.scenario, step, sees, allowed))
        return found[: max(1, kept(len(found), self.ratio))] if step > 0 and sees == "step" else found

    def train(
        self, step: int, sees: Sees = "step", memory: Sequence[str] = (), *, replay: Replay = "pool", extras: Sequence[str] = ()
    ) -> TrainLoader:
        """Training batches of a step.

        extras: what else a batch brings in ``extra``: "truth", (B, H, W) int64, the learned ids of all classes, for reporting
        and never for training; "saliency", (B, H, W) bool, where some object is, from the maps of `Source.saliency`.
        memory: names of training images that are replayed; they are marked in ``extra["from_memory"]``. replay: "pool": they
        come on top of the step's images and are labelled by the same table, so that an exemplar shows the step's classes only
        (DKD-M). "half": batches keep their number; at a random half of the positions of each an exemplar replaces the image,
        and it shows all classes seen so far (SSUL-M).
        Raises `KitError` for a step without images, an unknown name, and images of several sizes without a crop.
        """
        if replay not in get_args(Replay):
            raise unknown("kind of replay", replay, get_args(Replay))
        replayed = [self.source.position("train", name) for name in memory]
        indices = np.concatenate([self.members(step, sees), np.array(replayed, dtype=np.int64)])
        if self.crop is None:
            sizes = np.unique(self.source.sizes("train")[indices], axis=0)
            if len(sizes) > 1 and self.batch_size > 1:
                raise KitError(
                    f"the {len(indices)} images of step {step} have {len(sizes)} different sizes and cannot share a batch. "
                    "Give a training crop, for instance crop=224 (or batch_size=1)."
                )
        void, tables = self.protocol.void_in_training, self._extra_tables(extras, step)
        table = step_table(self.scenario, step, "train" if sees == "step" else "train_seen", void)
        return TrainLoader(
            self.source, indices, len(replayed), table,
            crop=self.crop, augment=self.augment, batch_size=self.batch_size, seed=self.seed, step=step, workers=self.workers,
            replay=replay, memory_table=step_table(self.scenario, step, "train_seen", void) if replay == "half" else None,
            extras=tables, saliency="saliency" in extras and "saliency" not in tables,
        )  # fmt: skip

    def offers(self, extra: str) -> bool:
        """Whether batches can bring this extra, see `train`. Raises `KitError` when only some images have a saliency map."""
        if extra != "saliency" or self.source.perfect_saliency:
            return extra in EXTRAS
        lacking = self.source.without_saliency("train")
        if lacking and len(lacking) < len(self.source.names("train")):
            raise KitError(
                f"the saliency maps of {self.source.dataset!r} are not complete; there is none for {first_ten(lacking)}. "
                "`python -m data_prep saliency` makes the missing ones; or take all maps away."
            )
        return not lacking

    def _extra_tables(self, extras: Sequence[str], step: int) -> dict[str, Tensor]:
        """Tables of the extras that follow from the label alone; saliency that lies in files does not."""
        tables = {}
        for name in extras:
            if name not in EXTRAS:
                raise unknown("extra of a batch", name, EXTRAS)
            if not self.offers(name):
                raise KitError(
                    f"there are no saliency maps for {self.source.dataset!r}; `python -m data_prep saliency --help` says how to "
                    "make them. The scenes ('toy') need none."
                )
            if name == "truth":
                tables[name] = step_table(self.scenario, step, "truth").long()
            elif self.source.perfect_saliency:
                tables[name] = torch.ones(256, dtype=torch.bool)
                tables[name][[BACKGROUND, IGNORE]] = False
        return tables

    def test(
        self, step: int, split: str = "test", which: str = "all", device: torch.device | str = "cpu", *, use: str = "truth"
    ) -> Iterator[Batch]:  # fmt: skip
        """Evaluation batches after a step; labels hold every class of the scenario, the future ones too (``truth``).

        which: see `select_test`. use: see `step_table`; "train" also treats void as training does. Batches hold images of one
        size; their order means nothing.
        """
        chosen = np.flatnonzero(select_test(self.source.presence(split), self.scenario, step, which))
        if not len(chosen):
            raise KitError(f"no {split} image of {self.source.dataset!r} shows a {which} class at step {step}; use which='all'.")
        device = torch.device(device)
        void = self.protocol.void_in_training if use == "train" else IGNORE
        finish = _Finish(self.source, step_table(self.scenario, step, use, void), device)
        groups = [chosen]
        if self._eval_side is None:
            sizes, group_of = np.unique(self.source.sizes(split)[chosen], axis=0, return_inverse=True)
            groups = [chosen[group_of.ravel() == g] for g in range(len(sizes))]
        batches = [group[a : a + self.batch_size] for group in groups for a in range(0, len(group), self.batch_size)]
        arrays = self.source.arrays(split) if self._eval_side is None else None
        if arrays is not None:
            raw = _rows(arrays, batches)
        else:
            reader = _Reader(_Samples(self.source, split, eval_side=self._eval_side), chosen, self.workers, keep=False)
            raw = reader.read([[(int(i), 0) for i in b] for b in batches], pin=device.type == "cuda")
        names = self.source.names(split)
        for batch, (images, labels) in zip(batches, raw, strict=True):
            extra = {"names": [names[i] for i in batch], "from_memory": torch.zeros(len(batch), dtype=torch.bool, device=device)}
            yield finish(images, labels, None, extra)

    def sample(self, split: str, which: str | int, step: int, use: str = "train") -> tuple[Tensor, Tensor]:
        """One whole image for a picture: (3, H, W) uint8 and its label (H, W) uint8 in learned ids.

        which: name or position. use: see `step_table`.
        """
        i = self.source.position(split, which) if isinstance(which, str) else int(which)
        image, label = self.source.pair(split, i)
        return image, renumber(label, step_table(self.scenario, step, use))

    @property
    def palette(self) -> NDArray[np.uint8]:
        """(256, 3) colour of each learned id."""
        colours = self.source.palette.copy()
        colours[1 : len(self.scenario.order) + 1] = self.source.palette[list(self.scenario.order)]
        return colours

    def describe(self, extras: Sequence[str] = ()) -> dict[str, Any]:
        """Everything about the data that decides a result, ready for JSON; no paths, nothing of this machine.

        extras: of the batches, as in `train`; with "saliency" the origin of the maps is described too.
        Raises `KitError` when a step has no images, so that a chain of steps fails before its first.
        """
        origin = self.source.saliency_origin() if "saliency" in extras else ""
        return {
            "dataset": self.source.dataset,
            "source": self.source.describe(),
            "fingerprint": {split: self.source.fingerprint(split) for split in ("train", "test")},
            "images_per_step": [len(self.members(step.index)) for step in self.scenario.steps],
            "test_images": len(self.source.names("test")),
            "crop": self.crop,
            "augment": self.augment,
            "ratio": self.ratio,
            "batch_size": self.batch_size,
            "seed": self.seed,
            **({"saliency": origin} if origin else {}),
        }
