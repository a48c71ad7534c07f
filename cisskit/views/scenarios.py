"""Scenarios: which images belong to a step, what its labels hide, and how many numbers one confusion matrix holds."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from cisskit.data import SOURCES, Data, Source, Toy, arrivals, open_source, select, select_test, shows
from cisskit.errors import KitError
from cisskit.metrics import summarise
from cisskit.protocols import PROTOCOLS, Protocol, protocol
from cisskit.scenario import BACKGROUND, DATASETS, SETTINGS, Scenario, Step
from cisskit.views.masks import HIDDEN, Labels, aspect, hatch, hidden_by, show_image, show_labels
from cisskit.views.style import (
    HIDES,
    class_patches,
    figure,
    grid,
    legend_below,
    legend_right,
    row_label,
    spread,
)

Presence = NDArray[np.bool_]
"""(n, 256): which original ids an image shows."""
Kinds = NDArray[np.int8]
"""(n, T): 0 where an image is not in a step, else 1 + the position in `HIDES` of what its background hides there."""

TASKS: dict[str, tuple[str, ...]] = {
    "toy": ("5-2", "5-1", "3-3", "3-1", "7-2"),
    "voc": ("19-1", "15-5", "15-1", "10-10", "10-5", "10-1", "5-5", "5-3", "5-1", "4-2", "2-2", "2-1"),
    "ade": ("100-50", "100-10", "100-5", "50-50", "50-20"),
    "isprs": ("4-1", "2-3", "2-2-1", "2-1"),
    "isprs_compat": ("4-1", "2-3", "2-2-1", "2-1"),
    "camvid": ("7-2", "5-3", "5-2"),
}
"""Published tasks of each data set (the scenes and CamVid: the kit's own)."""

MOST_STEPS = 8
"""Columns of labelled images; longer scenarios show steps in which the image takes part."""
ROOM = 1.2
"""Height of an axis over that of its highest bar: room for the counts."""
MOST_NAMES = 25
"""Classes that a heat map names at its sides."""


# --- which images, which labels ---


def in_settings(scenario: Scenario, settings: Sequence[str] = SETTINGS) -> dict[str, Scenario]:
    """The same classes and order in other settings, by name."""
    return {setting: replace(scenario, setting=setting) for setting in settings}


def reordered(scenario: Scenario, how: str = "natural", seed: int = 0) -> Scenario:
    """The same group sizes with the classes in another order. how: "natural" (by id), "reversed", "random" (with ``seed``).

    Raises `KitError` for another word.
    """
    ids = np.sort(scenario.order)
    orders = {"natural": ids, "reversed": ids[::-1], "random": np.random.RandomState(seed).permutation(ids)}
    if how not in orders:
        raise KitError(f"unknown order {how!r}; choose one of {', '.join(orders)}.")
    rest = iter(orders[how].tolist())
    return replace(scenario, groups=tuple(tuple(next(rest) for _ in group) for group in scenario.groups))


def members(source: Source, scenario: Scenario, step: int) -> NDArray[np.bool_]:
    """(n,): which training images belong to a step; nowhere True for a step without images."""
    presence = source.presence("train")
    try:
        return select(presence, scenario, step, allowed=source.allowed(scenario))
    except KitError:  # none shows its classes: a picture can say so
        return np.zeros(len(presence), dtype=bool)


def hidden_kinds(source: Source, scenario: Scenario) -> Kinds:
    """What the background of every image's labels hides at every step, see `Kinds`."""
    visible = source.pixels("train") > 0  # not presence: the published ISPRS lists choose images by other classes than they show
    kinds = np.zeros((len(visible), len(scenario.steps)), dtype=np.int8)
    for step in scenario.steps:
        old, _, future = arrivals(scenario, step.index)
        hides_old = shows(visible, old) & (scenario.setting != "sequential")
        kind = 1 + hides_old + 2 * shows(visible, future)  # in the order of HIDES
        kinds[:, step.index] = np.where(members(source, scenario, step.index), kind, 0)
    return kinds


def telling_images(source: Source, scenario: Scenario, n: int = 1) -> list[int]:
    """The training images that take part in most steps of an overlap scenario, and among them show most classes; best first."""
    steps = (hidden_kinds(source, replace(scenario, setting="overlap")) > 0).sum(axis=1)
    shown = (source.pixels("train")[:, list(scenario.order)] > 0).sum(axis=1)
    return np.argsort(-(1000 * steps + shown), kind="stable")[:n].tolist()


def counts(source: Source, scenarios: Mapping[str, Scenario]) -> pd.DataFrame:
    """Training images per step, one row per scenario; the last columns say how many images are used at all, and how often."""
    rows = []
    for name, scenario in scenarios.items():
        taken = hidden_kinds(source, scenario) > 0
        row: dict[str, Any] = {"scenario": name, **{f"step {t}": int(n) for t, n in enumerate(taken.sum(axis=0))}}
        rows.append(
            row | {"different images": int(taken.any(axis=1).sum()), "in two steps or more": int((taken.sum(axis=1) > 1).sum())}
        )
    table = pd.DataFrame(rows).set_index("scenario")
    first = [c for c in table.columns if c.startswith("step ")]
    return table[[*first, "different images", "in two steps or more"]].astype("Int64").astype(object).fillna("")


def published_tasks(source: Source, settings: Sequence[str] = ("overlap", "disjoint")) -> pd.DataFrame:
    """Images per step of the published tasks of a data set (`TASKS`), computed from its label maps.

    Columns: task, setting, steps, training images of each step, test images that show a class seen so far.
    """
    rows = []
    for sizes in TASKS.get(source.dataset, ()):
        for name, scenario in in_settings(Scenario.named(f"{source.dataset}-{sizes}"), settings).items():
            steps = range(len(scenario.steps))
            seen = [int(select_test(source.presence("test"), scenario, t, "seen").sum()) for t in steps]
            train = [int(members(source, scenario, t).sum()) for t in steps]
            rows.append({
                "task": sizes, "setting": name, "steps": len(steps), "training images": ", ".join(map(str, train)),
                "test images with a seen class": ", ".join(map(str, seen)),
            })  # fmt: skip
    return pd.DataFrame(rows)


# --- axes ---


def plot_hidden(kinds: Kinds, ax: Axes, *, most: int = 60, like: Kinds | None = None) -> Axes:
    """Images (rows) and steps (columns), coloured by what the labels hide; white: not in the step.

    most: rows on show, evenly from all images of the scenario, sorted by the steps of ``like`` (default: of ``kinds``), so that
    several pictures have the same images in the same rows.
    """
    like = kinds if like is None else like
    among = np.flatnonzero((like > 0).any(axis=1))
    order = among[np.lexsort([*like[among].T[::-1], (like[among] > 0).argmax(axis=1)])]
    chosen = order[np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)] if len(order) else order
    colours = ListedColormap(["white", *(colour for colour, _ in HIDES.values())])
    ax.pcolormesh(kinds[chosen], cmap=colours, vmin=0, vmax=len(HIDES))
    for t in range(1, kinds.shape[1]):
        ax.axvline(t, color="white", linewidth=2)
    steps = range(0, kinds.shape[1], max(1, kinds.shape[1] // MOST_STEPS))
    ax.set(xlabel="step", ylabel=f"{len(chosen)} of {len(among)} images", yticks=[])
    ax.set_xticks([t + 0.5 for t in steps], [str(t) for t in steps])
    ax.invert_yaxis()
    return ax


def plot_counts(kinds: Kinds, ax: Axes) -> Axes:
    """Images per step as bars, stacked by what their labels hide, with the count on top."""
    steps = np.arange(kinds.shape[1])
    start = np.zeros(len(steps), dtype=np.int64)
    for number, (colour, _) in enumerate(HIDES.values(), start=1):
        height = (kinds == number).sum(axis=0)
        ax.bar(steps, height, bottom=start, color=colour, width=0.8)
        start += height
    look: dict[str, Any] = {"fontsize": 8} if len(steps) <= MOST_STEPS else {"fontsize": 7, "rotation": 90}
    for t, total in zip(steps.tolist(), start.tolist(), strict=True):
        ax.annotate(f"{total}", (t, total), (0, 3), textcoords="offset points", ha="center", **look)
    ax.set(xlabel="step", ylabel="training images", xticks=steps[:: max(1, len(steps) // MOST_STEPS)])
    ax.set_ylim(0, ROOM * max(1, start.max()))
    return ax


def show_told(told: Labels, truth: Labels, step: Step, palette: NDArray[np.uint8], ax: Axes) -> Axes:
    """A label map of a step, with the classes that it hides hatched: old ones striped, later ones dotted."""
    show_labels(told, palette, ax)
    for kind, where in hidden_by(truth, told, step).items():
        hatch(where, ax, HIDDEN[kind], "white")
    return ax


def not_in_step(ax: Axes, words: str = "not in\nthis step") -> Axes:
    """An empty cell that says why."""
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes, color="#777777", fontsize=8)
    return ax


def plot_cooccurrence(share: NDArray[np.float64], scenario: Scenario, ax: Axes) -> Axes:
    """Heat map (percent): of the images that show the class of a row, how many show the class of a column.

    share: (C, C) as from `cooccurrence`. Classes stand in order of arrival, lines separate the steps. Above the diagonal blocks
    stand classes that are still to come, below them old ones.
    """
    n = len(scenario.order)
    ax.set_facecolor("#eeeeee")  # a class without images
    mesh = ax.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    for group in np.cumsum([len(group) for group in scenario.groups])[:-1]:
        ax.axhline(group - 0.5, color="black", linewidth=1)
        ax.axvline(group - 0.5, color="black", linewidth=1)
    if n <= MOST_NAMES:
        ax.set_xticks(range(n), scenario.classes[1:], rotation=90)
        ax.set_yticks(range(n), scenario.classes[1:])
    if n <= 12:
        for row, column in np.ndindex(n, n):
            if row != column and np.isfinite(share[row, column]):
                value = 100 * share[row, column]
                ax.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 60 else "black"
                )
    ax.figure.colorbar(mesh, ax=ax, label="% of the row's images", shrink=0.8)
    return ax


def cooccurrence(presence: Presence, scenario: Scenario) -> NDArray[np.float64]:
    """(C, C): share of the images with the class of row i that also show that of column j, in order of arrival.

    NaN in the row of a class without images.
    """
    shown = presence[:, list(scenario.order)].astype(np.float64)
    together, each = shown.T @ shown, shown.sum(axis=0)
    share = np.full_like(together, np.nan)
    return np.divide(together, each[:, None], out=share, where=each[:, None] > 0)


# --- figures ---


def figure_hidden(source: Source, scenarios: Mapping[str, Scenario], *, most: int = 60) -> Figure:
    """What the labels of every image hide at every step, one panel per scenario, the same images in the same rows."""
    kinds = {name: hidden_kinds(source, scenario) for name, scenario in scenarios.items()}
    widths = _widths(kinds.values())
    fig = figure(1.2 + sum(widths), 4.2)
    axes = fig.subplots(1, len(kinds), squeeze=False, width_ratios=widths)[0]
    like = next(iter(kinds.values()))
    for ax, (name, found) in zip(axes, kinds.items(), strict=True):
        plot_hidden(found, ax, most=most, like=like).set_title(name)
    for ax in axes[1:]:
        ax.set_ylabel("")
    legend_below(fig, hides_patches(kinds.values()))
    return fig


def figure_counts(source: Source, scenarios: Mapping[str, Scenario]) -> Figure:
    """Training images per step, one panel per scenario, stacked by what their labels hide."""
    kinds = {name: hidden_kinds(source, scenario) for name, scenario in scenarios.items()}
    widths = _widths(kinds.values())
    fig = figure(1.0 + sum(widths), 2.9)
    axes = fig.subplots(1, len(kinds), squeeze=False, sharey=True, width_ratios=widths)[0]
    for ax, (name, found) in zip(axes, kinds.items(), strict=True):
        plot_counts(found, ax).set_title(name)
    for ax in axes[1:]:
        ax.set_ylabel("")
    axes[0].set_ylim(0, ROOM * max(1, *((found > 0).sum(axis=0).max() for found in kinds.values())))
    legend_below(fig, hides_patches(kinds.values(), blank=False))
    return fig


def figure_told(source: Source, scenarios: Mapping[str, Scenario], image: int) -> Figure:
    """One training image as labelled at every step (columns) of every scenario (rows); hidden classes are hatched.

    Above them the image and what is really there. image: its position in the split "train".
    """
    first = next(iter(scenarios.values()))
    steps = list(range(max(len(scenario.steps) for scenario in scenarios.values())))
    if len(steps) > MOST_STEPS:  # those in which it takes part
        taking = np.any([(hidden_kinds(source, s)[image] > 0) for s in scenarios.values() if len(s.steps) == len(steps)], axis=0)
        steps = some(np.flatnonzero(taking).tolist() or steps)
    photo, truth = Data(first, source).sample("train", image, 0, use="truth")
    beside = len(steps) <= 5
    margin, legend = (0.5, 2.4) if beside else (1.2, 0.0)
    fig, axes = grid(1 + len(scenarios), max(2, len(steps)), cell=1.3, aspect=aspect(photo), margin=margin, legend=legend)
    palette, shown, hidden = Data(first, source).palette, set(np.unique(truth).tolist()), set()
    show_image(photo, axes[0, 0]).set_title("image")
    show_labels(truth.numpy(), palette, axes[0, 1]).set_title("really there")
    for row, (name, scenario) in zip(axes[1:], scenarios.items(), strict=True):
        row_label(row[0], name)
        if scenario.setting == "joint" and len(steps) > 1:
            not_in_step(row[1], "one step,\nall classes")
        for ax, t in zip(row, steps, strict=False):
            if t >= len(scenario.steps):
                break
            step = scenario.step(t)
            if not members(source, scenario, t)[image]:
                not_in_step(ax)
                continue
            told = Data(scenario, source).sample("train", image, t)[1].numpy()
            show_told(told, truth.numpy(), step, palette, ax)
            hidden |= {kind for kind, where in hidden_by(truth.numpy(), told, step).items() if where.any()}
            shown |= set(np.unique(told).tolist())
    for ax, t in zip(axes[1], steps, strict=False):
        ax.set_title(f"step {t}\n{_range(first.step(t).new)}")
    handles = class_patches(shown, first.classes, palette) + hatch_patches(hidden)
    legend_right(fig, handles) if beside else legend_below(fig, handles)
    return fig


def figure_problem(task: str = "toy-5-2") -> Figure:
    """One embedded scene as each step of each setting labels it. Needs no files."""
    source = Toy(train=60, heldout=1, test=1)
    scenario = Scenario.named(task)
    return figure_told(source, in_settings(scenario), telling_images(source, scenario)[0])


def figure_cooccurrence(source: Source, scenarios: Mapping[str, Scenario]) -> Figure:
    """Which classes share images, one heat map per scenario: its order decides which of them are old, which to come."""
    side = 4.2 if max(len(s.order) for s in scenarios.values()) <= 12 else 5.2
    fig = figure(0.4 + side * len(scenarios), side)
    for ax, (name, scenario) in zip(fig.subplots(1, len(scenarios), squeeze=False)[0], scenarios.items(), strict=True):
        plot_cooccurrence(cooccurrence(source.pixels("train") > 0, scenario), scenario, ax).set_title(name)
    return fig


def hides_patches(kinds: Iterable[Kinds], *, blank: bool = True) -> list[Patch]:
    """Legend entries of `HIDES`, those that occur. blank: also for white, "not in this step"."""
    present = {int(v) for found in kinds for v in np.unique(found)}
    patches = [
        Patch(facecolor=colour, label=f"hides {words}")
        for number, (colour, words) in enumerate(HIDES.values(), start=1)
        if number in present
    ]
    return patches + [Patch(facecolor="white", edgecolor="#999999", label="not in this step")] * (blank and 0 in present)


def hatch_patches(kinds: Iterable[str]) -> list[Patch]:
    """Legend entries for hatched pixels: "old" and "future" classes, labelled background."""
    kinds = set(kinds)
    return [
        Patch(facecolor="#444444", hatch=HIDDEN[kind], edgecolor="white", linewidth=0, label=f"{kind} class, labelled background")
        for kind in HIDDEN
        if kind in kinds
    ]


def some(steps: Sequence[int], most: int = MOST_STEPS) -> list[int]:
    """These steps, or ``most`` of them, evenly, with the first and the last."""
    return spread(steps, most)


# --- one matrix, many numbers ---


def made_up(scenario: Scenario, step: Step) -> NDArray[np.int64]:
    """A confusion matrix over all classes that nobody measured, with every case on which protocols differ.

    Base classes are partly forgotten; the first of them is never found (with three or more), the last has no test pixel (with
    two or more); of the pixels of classes to come a quarter is taken for the newest class.
    """
    n, seen, base = len(scenario.classes), step.n_seen, scenario.base
    matrix = np.zeros((n, n), dtype=np.int64)
    for c in range(1, seen + 1):
        found = 2200 if c in base else 3000
        matrix[c, c], matrix[c, BACKGROUND] = found, 4000 - found
    matrix[BACKGROUND, : seen + 1] = 400
    matrix[BACKGROUND, BACKGROUND] = 40000
    for c in range(seen + 1, n):
        matrix[c, BACKGROUND], matrix[c, seen] = 3000, 1000
    if len(base) >= 3:
        matrix[base[0], BACKGROUND], matrix[base[0], base[0]] = 4000, 0
    if len(base) >= 2:
        matrix[base[-1]] = 0
        matrix[:, base[-1]] = 0
    return matrix


def protocol_table(confusion: npt.ArrayLike, scenario: Scenario, step: Step) -> pd.DataFrame:
    """Old, new and all (percent) of one matrix by every protocol, with the classes of each mean and the rules behind it."""
    rows = []
    for name in PROTOCOLS:
        rules = protocol(name, scenario)
        row: dict[str, Any] = {"protocol": name}
        for part, (value, classes) in _means(confusion, scenario, step, rules).items():
            row[part] = f"{value:.1f} [{classes}]" if classes else "–"
        rows.append(row | {
            "future pixels": "background" if rules.future_as == "background" else "not scored",
            "classes without a test pixel": {"nan": "left out", "skip": "left out", "zero": "count 0"}[rules.absent],
            "IoU of 0": 'left out of "all"' if rules.drop_zero else "counted",
            "pixels labelled 0": "scored" if rules.zero_at_test else "not scored",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("protocol")


CHANGES: dict[str, dict[str, Any]] = {
    "pixels of future classes count as background": {"future_as": "background"},
    "classes without a test pixel count 0": {"absent": "zero"},
    'classes with an IoU of 0 are left out of "all"': {"drop_zero": True},
    'background counts in "old"': {"old_with_background": True},
    'background does not count in "all"': {"all_with_background": False},
}
"""Conventions that differ from the protocol "clean", one at a time."""
CHANGE = "clean with one change"


def change_table(confusion: npt.ArrayLike, scenario: Scenario, step: Step) -> pd.DataFrame:
    """What one convention alone moves, in points, starting from the protocol "clean"."""
    clean = protocol("clean", scenario)
    start = _means(confusion, scenario, step, clean)
    rows = [{CHANGE: "none", **{part: f"{value:.1f}" if classes else "–" for part, (value, classes) in start.items()}}]
    for words, change in CHANGES.items():
        moved = _means(confusion, scenario, step, replace(clean, **change))
        points = {part: moved[part][0] - value for part, (value, _) in start.items()}
        rows.append({CHANGE: words, **{part: f"{d:+.1f}" if abs(d) >= 0.05 else "" for part, d in points.items()}})
    return pd.DataFrame(rows).set_index(CHANGE)


def figure_protocols(confusion: npt.ArrayLike, scenario: Scenario, step: Step, *, title: str = "") -> Figure:
    """One matrix by every protocol: a dot per number, filled where the mean counts the background; brackets name its classes."""
    fig = figure(8.6, 0.9 + 0.3 * len(PROTOCOLS))
    axes = fig.subplots(1, 3, sharey=True)
    for y, name in enumerate(PROTOCOLS):
        for ax, (value, classes) in zip(axes, _means(confusion, scenario, step, protocol(name, scenario)).values(), strict=True):
            if not classes:
                continue
            counts_0 = classes.startswith("0")
            ax.plot([value], [y], "o", markersize=7, color="#333333", markerfacecolor="#333333" if counts_0 else "white")
            look: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the dotted line
            ax.annotate(
                f"{value:.1f}  [{classes}]", (value, y), (8, 0), textcoords="offset points", va="center", fontsize=8, bbox=look
            )
    for ax, part in zip(axes, ("old", "new", "all"), strict=True):
        values = [line.get_xdata()[0] for line in ax.get_lines()]
        if values:
            room = max(4.0, max(values) - min(values))
            ax.set_xlim(min(values) - 0.15 * room, max(values) + 0.75 * room)
            ax.axvline(values[0], color="#999999", linestyle=":", linewidth=1)
        ax.set(title=f"{part}, mIoU (%)", ylim=(len(PROTOCOLS) - 0.5, -0.5))
        ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes[0].set_yticks(range(len(PROTOCOLS)), list(PROTOCOLS))
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#333333"}
    legend_below(fig, [
        Line2D([], [], **dot, label="background is one of the classes"),
        Line2D([], [], **dot, markerfacecolor="white", label="it is not"),
        Line2D([], [], color="#999999", linestyle=":", label="the kit's own protocol"),
    ])  # fmt: skip
    if title:
        fig.suptitle(title, fontsize=9)
    return fig


def _means(confusion: npt.ArrayLike, scenario: Scenario, step: Step, rules: Protocol) -> dict[str, tuple[float, str]]:
    """ "old", "new", "all" -> percent and classes; NaN and "" where there are none."""
    miou = summarise(confusion, scenario, step, rules)["miou"]
    return {
        part: (float("nan") if miou[part]["value"] is None else 100 * miou[part]["value"], miou[part]["classes"] or "")
        for part in ("old", "new", "all")
    }


def _widths(kinds: Iterable[Kinds]) -> list[float]:
    """Inches of each panel, by its number of steps."""
    return [min(2.8, max(1.5, 0.4 * found.shape[1])) for found in kinds]


def _range(ids: slice) -> str:
    return f"class {ids.start}" if ids.stop - ids.start == 1 else f"classes {ids.start}-{ids.stop - 1}"


# --- looking around ---


def openable(source: Source, data_root: str = "") -> dict[str, Source]:
    """Data sets to choose from, by name: ``source``, the scenes, and whatever else lies in ``data_root``."""
    found = {source.dataset: source}
    for name in SOURCES if data_root else ():
        if name not in (*found, "toy"):
            try:
                found[name] = open_source(name, data_root)
            except KitError:  # not there
                continue
    if "toy" not in found:
        found["toy"] = Toy()
    return found


def figure_scenario(source: Source, scenario: Scenario, t: int) -> Figure:
    """One scenario at one step: what the labels of its images hide, how many images a step has, and one image as it is labelled.

    The step is framed in the first two pictures.
    """
    kinds = hidden_kinds(source, scenario)
    image, data = telling_images(source, scenario)[0], Data(scenario, source)
    photo, truth = data.sample("train", image, t, use="truth")
    fig = figure(11.5, 3.5)
    axes = fig.subplots(1, 4, width_ratios=[1.2, 1.5, 1.3, 1.3])
    plot_hidden(kinds, axes[0]).add_patch(Rectangle((t, 0), 1, axes[0].get_ylim()[0], fill=False, linewidth=1.5, zorder=3))
    axes[0].set_title("what the labels hide")
    plot_counts(kinds, axes[1]).set_title("images of each step")
    axes[1].add_patch(Rectangle((t - 0.47, 0), 0.94, (kinds[:, t] > 0).sum(), fill=False, linewidth=1.5))
    show_image(photo, axes[2]).set_title("one of the images")
    axes[3].set_title(f"as labelled at step {t}: {_range(scenario.step(t).new)}")
    shown, hidden = set(), {}
    if members(source, scenario, t)[image]:
        told = data.sample("train", image, t)[1].numpy()
        hidden = hidden_by(truth.numpy(), told, scenario.step(t))
        show_told(told, truth.numpy(), scenario.step(t), data.palette, axes[3])
        shown = set(np.unique(told).tolist())
    else:
        not_in_step(axes[3])
    for ax in axes[2:]:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    handles = class_patches(shown, scenario.classes, data.palette)
    handles += hatch_patches(kind for kind, where in hidden.items() if where.any())
    legend_below(fig, hides_patches([kinds]) + handles)
    fig.suptitle(f"{scenario.text}, {scenario.setting}", fontsize=9)
    return fig


AS_NAMED = "as named"
ORDERS_TO_CHOOSE = (AS_NAMED, "natural", "reversed", "random")


def chosen(source: Source, task: str, setting: str, order: str = AS_NAMED, seed: int = 0) -> Scenario:
    """The scenario behind the controls of `explore_scenario`. order: of `ORDERS_TO_CHOOSE`.

    task: sizes ("5-2"), groups of ids or names ("9,8/7,1"), or a whole name ("toy-5-2"). Raises `KitError` as `Scenario.named`.
    """
    task = task.strip()
    name = source.dataset
    if not re.match(rf"{name}[-:]", task):
        task = f"{name}{':' if re.search('[,/]', task) else '-'}{task}"
    scenario = Scenario.named(task, setting=setting, labels=None if name in DATASETS else source.labels)
    return scenario if order == AS_NAMED else reordered(scenario, order, seed)


def explore_scenario(sources: Mapping[str, Source], scenario: Scenario, step: int = 0) -> Any:
    """Choose data set, task, setting, order and step; every change redraws `figure_scenario`. Draws one static picture first.

    sources: by name, as from `openable`, that of ``scenario`` among them. A task of one's own goes into the text field; what is
    wrong with it is said below the controls. Returns the widget.
    """
    import ipywidgets as widgets
    from IPython.display import display

    def tasks(name: str) -> list[str]:
        half = len(sources[name].labels.names) // 2
        known = [*TASKS.get(name, (f"{half}-{len(sources[name].labels.names) - half}",))]
        here = scenario.text.removeprefix(f"{name}-") if name == scenario.dataset else ""
        return known if here in (*known, "") else [here, *known]

    wide = {"width": "230px"}
    dataset = widgets.Dropdown(options=list(sources), value=scenario.dataset, description="data set", layout=wide)
    here = scenario.text.removeprefix(f"{scenario.dataset}-")
    task = widgets.Dropdown(options=tasks(scenario.dataset), value=here, description="task", layout=wide)
    own = widgets.Text(placeholder="own: 4-1 or 9,8/7,1", description="or", continuous_update=False, layout=wide)
    setting = widgets.Dropdown(options=SETTINGS, value=scenario.setting, description="setting", layout=wide)
    order = widgets.Dropdown(options=ORDERS_TO_CHOOSE, description="order", layout=wide)
    seed = widgets.BoundedIntText(max=9999, description="seed", layout=wide)
    at = widgets.IntSlider(value=step, max=len(scenario.steps) - 1, description="step", continuous_update=False)
    said, out = widgets.HTML(), widgets.Output()
    at_work = False

    def redraw() -> None:
        source = sources[dataset.value]
        try:
            asked = chosen(source, own.value or task.value, setting.value, order.value, seed.value)
            at.max = len(asked.steps) - 1  # moves the slider back when there are fewer
            fig = figure_scenario(source, asked, at.value)
        except KitError as error:
            said.value = f"<span style='color: #b00020'>{html.escape(str(error))}</span>"
            return
        said.value = ""
        with out:
            out.clear_output(wait=True)
            display(fig)

    def changed(change: Any) -> None:
        nonlocal at_work
        if at_work:  # one control moves another: draw once
            return
        at_work = True
        try:
            if change["owner"] is dataset:
                task.options, own.value = tasks(dataset.value), ""
            redraw()
        finally:
            at_work = False

    display(figure_scenario(sources[scenario.dataset], scenario, step))
    for control in (dataset, task, own, setting, order, seed, at):
        control.observe(changed, names="value")
    rows = ([dataset, task, own], [setting, order, seed], [at])
    return widgets.VBox([*(widgets.HBox(row) for row in rows), said, out])
