"""Which classes arrive when. Plain facts, no tensors.

A scenario is a data set, an order of arrival (groups of class ids) and a setting. Labels are *original ids* in
the files (VOC: 1 aeroplane .. 20 tvmonitor) and *learned ids* in the network (1, 2, 3, .. in order of arrival);
`cisskit.data` is the only place that translates.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cisskit.errors import KitError, unknown

BACKGROUND = 0
"""Learned id of "none of the classes seen so far"; while training also of every class that is not told."""
IGNORE = 255
"""Label of pixels that no loss and no metric counts (the exceptions say so)."""

SETTINGS = ("overlap", "disjoint", "sequential", "partitioned", "joint")
"""How images belong to steps and what they tell, see `Scenario`."""


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set mean. The class at position k of ``names`` has original id k + 1.

    background: what original id 0 truly is, or "" in data where every pixel belongs to a class: then channel 0 still means
    "not told at this step", but no pixel has it at the end, and means leave it out.
    sizes_count_background: whether the sizes in a task's name count id 0 as a class of step 0 (published ISPRS tasks).
    """

    names: tuple[str, ...]
    background: str = "background"
    sizes_count_background: bool = False


DATASETS: dict[str, Labels] = {
    "toy": Labels((
        "striped square", "dotted disc", "checked triangle", "striped ring", "dotted star",
        "checked square", "striped cross", "checked disc", "dotted crescent",
    )),
    "voc": Labels((
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
        "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )),
    "ade": Labels((
        "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
        "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
        "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
        "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
        "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
        "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
        "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm tree",
        "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade", "hovel", "bus", "towel", "light", "truck",
        "tower", "chandelier", "awning", "streetlight", "booth", "television", "airplane", "dirt", "apparel", "pole",
        "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
        "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall",
        "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot",
        "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase",
        "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower",
        "radiator", "glass", "clock", "flag",
    )),
    "isprs": Labels(("impervious", "building", "low vegetation", "tree", "car"), background=""),
    "isprs_compat": Labels(("building", "low vegetation", "tree", "car"), "impervious", sizes_count_background=True),
    "camvid": Labels(
        ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"), background=""
    ),
}  # fmt: skip
"""Data sets whose classes are known. ADE20K: the first name of each class of SceneParse150. ``isprs_compat`` is ISPRS as
published for IDEC and LAG: impervious surface takes channel 0. Others (``folder``) bring their `Labels` along."""


ORDERS: dict[str, tuple[int, ...]] = {
    name: tuple(map(int, ids.split()))
    for name, ids in {
        "b": "12 9 20 7 15 8 14 16 5 19 4 1 13 2 11 17 3 6 18 10",
        "c": "13 19 15 17 9 8 5 20 4 3 10 11 18 16 7 12 14 6 1 2",
        "d": "15 3 2 12 14 18 20 16 11 1 19 8 10 7 17 6 5 13 9 4",
        "e": "7 5 3 9 13 12 14 19 10 2 1 4 16 8 17 15 18 6 11 20",
        "f": "7 13 5 11 9 2 15 12 14 3 20 1 16 4 18 8 6 10 19 17",
        "g": "7 5 9 1 15 18 14 3 20 10 4 19 11 17 16 12 8 6 2 13",
        "h": "12 9 19 6 4 10 5 18 14 15 16 3 8 7 11 13 2 20 17 1",
        "i": "13 10 15 8 7 19 4 3 16 12 14 11 5 20 6 2 18 9 17 1",
        "j": "1 14 9 5 2 15 8 20 6 16 18 7 11 10 19 3 4 17 12 13",
        "k": "16 13 1 11 12 18 6 14 5 3 7 9 20 19 15 4 2 10 8 17",
        "l": "10 7 6 19 16 8 17 1 14 4 9 3 15 11 12 2 18 20 13 5",
        "m": "18 4 14 17 12 10 7 3 9 1 8 15 6 13 2 5 11 20 16 19",
        "n": "5 4 13 18 14 10 19 15 7 9 3 2 8 16 20 1 12 11 6 17",
        "o": "9 12 13 18 7 1 15 17 10 8 4 5 20 16 6 14 19 11 2 3",
        "p": "9 12 13 18 2 11 15 17 10 8 4 5 20 16 6 14 19 1 7 3",
        "q": "3 14 13 18 2 11 15 17 10 8 4 5 20 16 6 12 19 1 7 9",
        "r": "3 14 13 1 2 11 15 17 7 8 4 5 9 16 19 12 6 18 10 20",
        "s": "3 14 6 1 2 11 12 17 7 20 4 5 9 16 19 15 13 18 10 8",
        "t": "3 15 13 1 2 11 18 17 7 20 8 5 9 16 19 14 6 12 10 4",
        "u": "3 15 13 14 6 11 18 17 7 20 8 4 9 16 10 1 2 12 19 5",
        "v": "1 2 12 14 6 19 18 17 5 20 8 4 9 16 10 3 15 13 11 7",
        "w": "1 2 12 14 13 19 18 7 11 20 8 4 9 16 10 3 15 6 5 17",
    }.items()
}
"""Orders of VOC's classes that PLOP, IDEC, LAG and MBS publish for 15-1 (``voc-15-1_b``); any sizes may use them. "a", the
alphabetical one, is the default and not named."""


@dataclass(frozen=True)
class Step:
    """One step of a scenario, as named channel slices: most faults in this field are off by one.

    Channel 0 is the background, then the classes in order of arrival.
    """

    index: int
    n_old: int  # foreground classes of earlier steps
    n_new: int  # foreground classes of this step

    @property
    def known(self) -> slice:
        """Background and old classes: channels 0..n_old, the teacher's channels."""
        return slice(0, self.n_old + 1)

    @property
    def old(self) -> slice:
        """Old classes without the background: channels 1..n_old. Empty at step 0."""
        return slice(1, self.n_old + 1)

    @property
    def new(self) -> slice:
        """Classes of this step."""
        return slice(self.n_old + 1, self.n_old + self.n_new + 1)

    @property
    def n_seen(self) -> int:
        """Foreground classes seen up to and including this step."""
        return self.n_old + self.n_new


@dataclass(frozen=True)
class Scenario:
    """A data set, groups of original class ids in order of arrival, and a setting.

    Build one with `Scenario.named`. Raises `KitError` for ids that the data set does not have, that come twice,
    for an empty group, for an unknown setting, and for a data set that is unknown and brings no ``labels``.

    setting: ``overlap`` (an image belongs to every step whose classes it shows), ``disjoint`` (and shows no future
    class), ``sequential`` (as disjoint, with the old classes still labelled), ``partitioned`` (every image belongs to one
    of the steps whose classes it shows, drawn with a fixed seed), ``joint`` (one step, everything).
    labels: what the ids mean; known for `DATASETS`.
    """

    dataset: str
    groups: tuple[tuple[int, ...], ...]
    setting: str = "overlap"
    labels: Labels = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.labels is None:
            object.__setattr__(self, "labels", known_labels(self.dataset))
        if self.setting not in SETTINGS:
            raise unknown("setting", self.setting, SETTINGS)
        total = len(self.labels.names)
        ids = [c for group in self.groups for c in group]
        wrong = sorted({c for c in ids if not 1 <= c <= total})
        if wrong:
            raise KitError(f"class ids {wrong} are not among the {total} classes of {self.dataset!r} (ids 1..{total}).")
        twice = sorted({c for c in ids if ids.count(c) > 1})
        if twice:
            raise KitError(f"classes {[self.labels.names[c - 1] for c in twice]} arrive twice; a class arrives once.")
        if not self.groups or not all(self.groups):
            raise KitError("every step needs at least one class; remove the empty group.")

    @classmethod
    def named(cls, text: str, *, setting: str = "overlap", labels: Labels | None = None) -> "Scenario":
        """Read a scenario from its name.

        ``"voc-15-1"``: 15 classes, then one per step until all have arrived. ``"isprs-2-2-1"``: three or more
        numbers are the sizes of all groups. ``"voc-15-1_b"``: in a published order, see `ORDERS`.
        ``"voc:person,chair/horse,cow"``: explicit groups of class names (or ids) separated by ``/``, any subset in any
        order; classes left out are background everywhere.
        labels: of a data set that is not among `DATASETS`.
        """
        dataset, colon, rest = text.partition(":")
        if colon:
            labels = labels or known_labels(dataset)
            return cls(dataset, _explicit(dataset, labels, [group.split(",") for group in rest.split("/")]), setting, labels)
        match = re.fullmatch(r"([a-z0-9_]+?)((?:-\d+)+)(?:_([a-z]))?", text)
        if not match:
            raise KitError(
                f"cannot read the scenario {text!r}. Write data set and sizes, as in 'toy-5-2', 'voc-15-1', "
                f"'isprs-2-2-1', or groups of classes, as in 'voc:person,chair/horse,cow'. Data sets: {', '.join(DATASETS)}."
            )
        dataset, sizes = match[1], [int(n) for n in match[2][1:].split("-")]
        labels = labels or known_labels(dataset)
        if 0 in sizes:
            raise KitError(f"scenario {text!r} has a step without classes; sizes must be at least 1.")
        total = len(labels.names) + labels.sizes_count_background
        if len(sizes) == 2 and sizes[0] < total:  # "a-b": a base classes, then b per step
            base, each = sizes
            sizes = [base] + [each] * ((total - base) // each)
        if sum(sizes) != total:
            raise KitError(
                f"scenario {text!r} places {sum(sizes)} of the {total} classes of {dataset!r}. Choose sizes that add up, or "
                "name the classes of a subset, as in 'voc:person,chair/horse,cow'."
            )
        sizes[0] -= labels.sizes_count_background
        if match[3] and (dataset != "voc" or match[3] not in ORDERS):
            raise unknown("order of VOC's classes", match[3], ORDERS)
        ids = iter(ORDERS[match[3]] if match[3] else range(1, total + 1))
        return cls(dataset, tuple(tuple(next(ids) for _ in range(n)) for n in sizes), setting, labels)

    @cached_property
    def name(self) -> str:
        """Short and fit for a folder: ``voc-15-1``; other orders and subsets carry a digest of their groups."""
        sizes = [len(group) for group in self.groups]
        sizes[0] += self.labels.sizes_count_background
        if len(sizes) > 2 and len(set(sizes[1:])) == 1 and len(self.order) == len(self.labels.names):
            sizes = sizes[:2]
        name = "-".join([self.dataset, *map(str, sizes)])
        if self._natural:
            return name
        if self.dataset == "voc" and self.order in ORDERS.values():
            return f"{name}_{next(letter for letter, order in ORDERS.items() if order == self.order)}"
        return f"{name}-{hashlib.sha256(repr(self.groups).encode()).hexdigest()[:6]}"

    @property
    def text(self) -> str:
        """A text that `named` reads back to this scenario (setting and labels apart)."""
        if self._natural or (self.dataset == "voc" and self.order in ORDERS.values()):
            return self.name
        return f"{self.dataset}:" + "/".join(",".join(self.labels.names[c - 1] for c in group) for group in self.groups)

    @property
    def _natural(self) -> bool:
        """All classes in the order of their ids."""
        return self.order == tuple(range(1, len(self.labels.names) + 1))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Original ids in order of arrival; position k holds the class with learned id k + 1."""
        return tuple(c for group in self.groups for c in group)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by learned id, background first."""
        return (self.labels.background or "background", *(self.labels.names[c - 1] for c in self.order))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps; in the setting ``joint`` there is one, with all classes."""
        if self.setting == "joint":
            return (Step(0, 0, len(self.order)),)
        starts = [sum(len(g) for g in self.groups[:t]) for t in range(len(self.groups))]
        return tuple(Step(t, start, len(group)) for t, (start, group) in enumerate(zip(starts, self.groups, strict=True)))

    def step(self, index: int) -> Step:
        """Step ``index``. Raises `KitError` when the scenario has no such step."""
        if not 0 <= index < len(self.steps):
            raise KitError(
                f"scenario {self.name!r} ({self.setting}) has steps 0..{len(self.steps) - 1}; step {index} was asked for."
            )
        return self.steps[index]

    @property
    def base(self) -> range:
        """Learned ids of the base classes (first group), the papers' "old"; later ids are their "new"."""
        return range(1, len(self.groups[0]) + 1)


def known_labels(dataset: str) -> Labels:
    """The labels of a data set of `DATASETS`. Raises `KitError` for another one."""
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    return DATASETS[dataset]


def _explicit(dataset: str, labels: Labels, groups: Iterable[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Original ids of groups of class names or ids."""

    def class_id(word: str) -> int:
        word = word.strip()
        if word.isdigit():
            return int(word)
        if word not in labels.names:
            raise unknown(f"class of {dataset}", word, labels.names)
        return labels.names.index(word) + 1

    return tuple(tuple(class_id(w) for w in group if w.strip()) for group in groups)
