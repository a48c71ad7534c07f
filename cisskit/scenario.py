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
        numbers are the sizes of all groups. ``"voc:person,chair/horse,cow"``: explicit groups of class names (or
        ids) separated by ``/``, any subset in any order; classes left out are background everywhere.
        labels: of a data set that is not among `DATASETS`.
        """
        dataset, colon, rest = text.partition(":")
        if colon:
            labels = labels or known_labels(dataset)
            return cls(dataset, _explicit(dataset, labels, [group.split(",") for group in rest.split("/")]), setting, labels)
        match = re.fullmatch(r"([a-z0-9_]+?)((?:-\d+)+)", text)
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
        ids = iter(range(1, total + 1))
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
        return f"{name}-{hashlib.sha256(repr(self.groups).encode()).hexdigest()[:6]}"

    @property
    def text(self) -> str:
        """A text that `named` reads back to this scenario (setting and labels apart)."""
        if self._natural:
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
