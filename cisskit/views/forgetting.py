"""What happens to classes over the steps. Arguments are fractions, axes are in percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cisskit import metrics
from cisskit.data import Data, Toy
from cisskit.runs import Run
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.views import masks
from cisskit.views.style import (
    ERRORS,
    RIGHT,
    class_patches,
    error_patches,
    figure,
    following,
    grid,
    legend_below,
    legend_right,
    method_colour,
    method_title,
    row_label,
)
from cisskit.views.tables import MISSING, Chain, value

Floats = npt.NDArray[np.float64]

MOST_CLASSES = 30
"""Classes in one picture; of more, those that tell most are shown, and the picture says so."""

Lines = Mapping[str, Sequence[npt.NDArray[np.float64]]]
"""Method -> one line (T,) per seed."""


def plot_iou_by_step(iou: npt.ArrayLike, *, classes: Sequence[str], ax: Axes, bar: bool = True) -> Axes:
    """Heat map of IoU (%): rows are steps, columns classes in order of arrival. iou: (T, C), NaN where unseen."""
    table = 100 * np.asarray(iou, dtype=np.float64)
    sns.heatmap(
        table, vmin=0, vmax=100, cmap="viridis", annot=True, fmt=".0f", annot_kws={"size": 7}, linewidths=0.5, ax=ax, cbar=bar,
        cbar_kws={"label": "IoU (%)"} if bar else None, xticklabels=list(classes), yticklabels=range(len(table)),
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")  # unseen
    ax.set(xlabel="class, in order of arrival", ylabel="after step")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_by_step(lines: Lines, *, ylabel: str, ax: Axes) -> Axes:
    """Percent after every step, one colour per method: mean over seeds, with a band from the lowest to the highest seed.

    lines: method -> one (T,) array of fractions per seed; NaN where there is no value.
    """
    longest = 1
    for method, seeds in lines.items():
        table = np.full((len(seeds), max(map(len, seeds))), np.nan)
        for row, line in zip(table, seeds, strict=True):
            row[: len(line)] = 100 * np.asarray(line)
        there = ~np.isnan(table).all(axis=0)
        at = np.flatnonzero(there)
        longest = max(longest, table.shape[1])
        if not len(at):
            continue
        table = table[:, there]
        colour = method_colour(method)
        ax.plot(at, np.nanmean(table, axis=0), "o-", color=colour, label=method_title(method), markersize=4)
        if len(seeds) > 1:
            ax.fill_between(at, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=colour, alpha=0.2, linewidth=0)
    ax.set(xlabel="after step", ylabel=ylabel, ylim=(-2, 102), xticks=range(longest), xlim=(-0.2, longest - 0.8))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    return ax


def plot_forgetting(lost: Mapping[str, npt.ArrayLike], *, classes: Sequence[str], ax: Axes) -> Axes:
    """Heat map of forgetting (percentage points), centred on 0: best IoU at an earlier step minus the IoU at the last.

    lost: method -> (C,) fractions, NaN where a class has no earlier step. classes: their C names.
    """
    table = 100 * np.array([np.asarray(line, dtype=np.float64) for line in lost.values()])
    sns.heatmap(
        table, vmin=-100, vmax=100, cmap="RdBu_r", annot=True, fmt=".0f", annot_kws={"size": 7}, linewidths=0.5, ax=ax,
        xticklabels=list(classes), yticklabels=[method_title(m) for m in lost], cbar_kws={"label": "points lost"},
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")
    ax.set(xlabel="class, in order of arrival")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    return ax


def old_pixels(confusion: npt.ArrayLike, step: Step) -> dict[str, float]:
    """Where the pixels of old classes end after a step: shares by kind, which add up to 1 (all NaN without such pixels).

    confusion: rows truth, columns prediction, learned ids of seen classes or more.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    right = metrics.share_predicted(counts, step.old, step.old)
    own = np.diag(counts)[step.old].sum() / counts[step.old].sum() if counts[step.old].sum() else float("nan")
    return {
        "right": own,
        "forgotten": metrics.share_predicted(counts, step.old, 0),
        "taken over": metrics.share_predicted(counts, step.old, step.new),
        "mixed up": right - own,
    }


def plot_old_pixels(shares: Mapping[str, Mapping[str, float]], *, ax: Axes) -> Axes:
    """One bar per method: what became of the old classes' pixels (%). shares: method -> `old_pixels`."""
    colours = {"right": RIGHT, **{kind: colour for kind, (colour, _) in ERRORS.items()}}
    words = {
        "right": "still right",
        "forgotten": "→ background",
        "taken over": "→ a new class",
        "mixed up": "→ another old class",
    }
    for y, parts in enumerate(shares.values()):
        left = 0.0
        for kind, share in parts.items():
            width = 100 * (0.0 if np.isnan(share) else share)
            ax.barh(y, width, left=left, color=colours[kind], height=0.7)
            if width > 8:
                dark = kind in ("forgotten", "taken over")
                ax.text(
                    left + width / 2, y, f"{width:.0f}", ha="center", va="center", color="white" if dark else "black", fontsize=8
                )
            left += width
    kinds = [kind for kind in words if any(kind in parts for parts in shares.values())]
    ax.set(xlabel="pixels of old classes (%)", xlim=(0, 100), yticks=range(len(shares)), ylim=(len(shares) - 0.4, -0.6))
    ax.set_yticklabels([method_title(m) for m in shares])
    handles = [Patch(facecolor=colours[kind], label=words[kind]) for kind in kinds]
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(kinds))
    return ax


def mean_iou_table(chains: Sequence[Chain]) -> npt.NDArray[np.float64]:
    """(T, C) IoU after every step, averaged over seeds; NaN where no seed has a value."""
    longest = max(chain.last.step for chain in chains) + 1
    tables = np.full((len(chains), longest, len(chains[0].last.scenario.classes)), np.nan)
    for table, chain in zip(tables, chains, strict=True):
        table[: chain.last.step + 1] = chain.iou()
    there = ~np.isnan(tables)
    total = np.where(there, tables, 0.0).sum(axis=0)
    return np.divide(total, there.sum(axis=0), out=np.full_like(total, np.nan), where=there.any(axis=0))


def figure_by_step(groups: Mapping[str, Sequence[Chain]]) -> Figure:
    """mIoU of all, base and later classes after every step, side by side, one colour per method."""
    last = max((chain.last for chains in groups.values() for chain in chains), key=lambda run: run.step)
    first = last.metrics["miou"]["all"]["classes"].split("-")[0]
    names = {"all": f"all seen classes [{first}-…]", "old": f"old [{last.metrics['miou']['old']['classes']}]"}
    later = last.metrics["miou"]["new"]["classes"]
    if later:
        names["new"] = f"new [{later.split('-')[0]}-…]" if last.step > 1 else f"new [{later}]"
    fig = figure(3.2 * len(names), 3.1)
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    for ax, (key, name) in zip(axes, names.items(), strict=True):
        plot_by_step(
            {m: [c.values("miou", key, "value") for c in chains] for m, chains in groups.items()}, ylabel="mIoU (%)", ax=ax
        )
        ax.set_title(name)
    legend_below(fig, axes[0].get_legend_handles_labels()[0])
    return fig


def figure_shift(groups: Mapping[str, Sequence[Chain]]) -> Figure:
    """Share of pixels predicted as background after every step: of all earlier classes, and of the step's own."""
    parts = {
        "old_to_background": "classes of earlier steps → background",
        "new_to_background": "classes of the step itself → background",
    }
    fig = figure(7.4, 3.1)
    axes = fig.subplots(1, 2)
    for ax, (key, name) in zip(axes, parts.items(), strict=True):
        plot_by_step({m: [c.values(key) for c in chains] for m, chains in groups.items()}, ylabel="pixels (%)", ax=ax)
        ax.set_title(name)
    legend_below(fig, axes[1].get_legend_handles_labels()[0])
    return fig


def figure_iou(groups: Mapping[str, Sequence[Chain]], *, most: int = MOST_CLASSES) -> Figure:
    """One heat map per method: IoU of every class after every step (mean over seeds).

    most: classes shown beside the background; of more, those with the largest forgetting of any method.
    """
    tables = {method: mean_iou_table(chains) for method, chains in groups.items()}
    classes = next(iter(groups.values()))[0].last.scenario.classes
    ids, left_out = list(range(len(classes))), ""
    if len(ids) > most + 1:
        shown, left_out = _telling({m: metrics.forgetting(table) for m, table in tables.items()}, _best(tables), most)
        ids = [BACKGROUND, *shown]
    rows = [len(table) for table in tables.values()]
    fig = figure(2.4 + 0.42 * len(ids), 1.5 + sum(0.3 * n + 0.45 for n in rows))
    axes = fig.subplots(len(tables), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    for ax, (method, table) in zip(axes, tables.items(), strict=True):
        plot_iou_by_step(table[:, ids], classes=[classes[c] for c in ids], ax=ax, bar=False)
        ax.set(xlabel="", title=method_title(method))
        ax.tick_params(axis="x", length=0)
    axes[-1].set_xlabel(f"class, in order of arrival{left_out}")
    fig.colorbar(axes[0].collections[0], ax=list(axes), label="IoU (%)", shrink=0.7, pad=0.02)
    return fig


def figure_forgetting(groups: Mapping[str, Sequence[Chain]], *, most: int = MOST_CLASSES) -> Figure | None:
    """Heat map of what each method lost of each earlier class (mean over seeds). None where no method ran two steps.

    most: classes shown, the background included; of more, those that any method forgot most.
    """
    tables = {method: mean_iou_table(chains) for method, chains in groups.items()}
    tables = {method: table for method, table in tables.items() if len(table) > 1}
    if not tables:
        return None
    classes = next(iter(groups.values()))[0].last.scenario.classes
    lost = {method: metrics.forgetting(table) for method, table in tables.items()}
    there, left_out = np.flatnonzero(~np.isnan(np.array(list(lost.values()))).all(axis=0)).tolist(), ""
    if len(there) > most:
        there, left_out = _telling(lost, lost, most)
    fig = figure(2.8 + 0.42 * len(there), 1.7 + 0.34 * len(lost))
    ax = plot_forgetting({m: line[there] for m, line in lost.items()}, classes=[classes[c] for c in there], ax=fig.subplots())
    ax.set_xlabel(f"class, in order of arrival{left_out}")
    return fig


def figure_old_pixels(groups: Mapping[str, Sequence[Chain]]) -> Figure | None:
    """Where the pixels of old classes went, after the last step of each method (all seeds counted together)."""
    shares = {}
    for method, chains in groups.items():
        runs = [chain.last for chain in chains if chain.last.scenario.step(chain.last.step).n_old]
        if runs:
            shares[method] = old_pixels(sum(run.confusion for run in runs), runs[0].scenario.step(runs[0].step))
    if not shares:
        return None
    fig = figure(7.4, 1.2 + 0.36 * len(shares))
    plot_old_pixels(shares, ax=fig.subplots())
    return fig


# --- class by class ---


def taught_at(scenario: Scenario) -> npt.NDArray[np.int64]:
    """(1 + K,) the step that taught each learned id; -1 for the background, which belongs to no step."""
    return np.array([-1, *(step.index for step in scenario.steps for _ in range(step.n_new))])


def measures(iou: npt.ArrayLike, scenario: Scenario, joint: npt.ArrayLike | None = None) -> dict[str, Floats]:
    """What became of each class, as fractions (1 + K,); NaN where a class has no value, as the background has none.

    iou: (T, 1 + K) after every step, NaN where unseen. joint: the same of the joint bound, for "intransigence".
    "forgetting": best IoU at an earlier step minus the last one. "transfer" (backward): last IoU minus the one right after the
    step that taught the class. "plasticity": IoU right after that step. "intransigence": joint's IoU after that step minus it.
    """
    table = np.asarray(iou, dtype=np.float64)
    last, at, ids = len(table) - 1, taught_at(scenario), np.arange(table.shape[1])
    arrived = (at >= 0) & (at <= last)
    own = np.where(arrived, table[at.clip(0, last), ids], np.nan)
    bound = np.full(len(ids), np.nan)
    if joint is not None:
        other = np.asarray(joint, dtype=np.float64)
        bound = np.where((at >= 0) & (at < len(other)), other[at.clip(0, len(other) - 1), ids], np.nan)
    return {
        "forgetting": np.where(at >= 0, metrics.forgetting(table), np.nan),
        "transfer": np.where(arrived & (at < last), table[-1] - own, np.nan),
        "plasticity": own,
        "intransigence": bound - own,
    }


MEASURES = {
    "forgetting": ("Forgetting: best earlier IoU − IoU at the end", "RdBu_r", -100),
    "transfer": ("Backward transfer: IoU at the end − right after its own step", "RdBu", -100),
    "plasticity": ("Plasticity: IoU right after its own step", "viridis", 0),
    "intransigence": ("Intransigence: joint − plasticity", "RdBu_r", -100),
}
"""Of `measures`: heading, colours, lowest value of the scale; red is bad, blue is good."""


def plot_measure(name: str, lines: Mapping[str, npt.ArrayLike], *, classes: Sequence[str], ax: Axes) -> Axes:
    """Heat map of one of `MEASURES` (points): rows methods, columns classes. lines: method -> (C,) fractions, NaN: none."""
    heading, colours, low = MEASURES[name]
    table = np.round(100 * np.array([np.asarray(line, dtype=np.float64) for line in lines.values()])) + 0.0  # no -0
    sns.heatmap(
        table, vmin=low, vmax=100, cmap=colours, annot=True, fmt=".0f", annot_kws={"size": 7}, linewidths=0.5, ax=ax,
        xticklabels=list(classes), yticklabels=[method_title(m) for m in lines], cbar_kws={"label": "points", "pad": 0.02},
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")
    ax.set_title(heading, loc="left")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    return ax


def figure_measures(groups: Mapping[str, Sequence[Chain]], *, most: int = MOST_CLASSES) -> Figure | None:
    """The four `MEASURES` of every class and method (mean over seeds), one above the other. None for runs of a single step.

    Intransigence needs the joint bound among the runs. most: classes shown, those with the largest forgetting of any method.
    """
    found = _measured(groups)
    if all(np.isnan(each["forgetting"]).all() for each in found.values()):
        return None
    scenario = next(iter(groups.values()))[0].last.scenario
    lines = {name: {m: each[name] for m, each in found.items()} for name in MEASURES}
    lines["intransigence"].pop("joint", None)  # it is its own bound
    lines = {name: rows for name, rows in lines.items() if not all(np.isnan(row).all() for row in rows.values())}
    ids, left_out = _telling({m: each["forgetting"] for m, each in found.items()}, lines["plasticity"], most)
    heights = [len(rows) for rows in lines.values()]
    fig = figure(3.6 + 0.36 * len(ids), 1.4 + sum(0.24 * n + 0.45 for n in heights))
    axes = fig.subplots(len(lines), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for ax, (name, rows) in zip(axes, lines.items(), strict=True):
        plot_measure(name, {m: row[ids] for m, row in rows.items()}, classes=[scenario.classes[c] for c in ids], ax=ax)
        ax.tick_params(axis="x", length=0)
    axes[-1].set_xlabel(f"class, in order of arrival{left_out}")
    return fig


def measures_table(groups: Mapping[str, Sequence[Chain]]) -> pd.DataFrame:
    """The four measures in percentage points, one row per method (mean over seeds).

    Forgetting: mean over all classes of earlier steps. Backward transfer, plasticity and intransigence: means over steps of the
    mean over the classes of a step, the last two over steps from 1 on. "to joint": joint's mIoU of all seen classes minus the
    method's, after its last step. A dash: no value, for want of a second step or of the joint bound.
    """
    scenario = next(iter(groups.values()))[0].last.scenario
    bound = mean_iou_table(groups["joint"]) if "joint" in groups else None
    rows = []
    for method, chains in groups.items():
        table, found = mean_iou_table(chains), measures(mean_iou_table(chains), scenario, bound)
        steps = scenario.steps[: len(table)]
        by_group = metrics.group_iou(table, [step.new for step in steps])
        later = [metrics.mean_iou(found["intransigence"], step.new) for step in steps[1:]]
        seen = range(steps[-1].n_seen + 1)
        gap = metrics.mean_iou(bound[len(table) - 1], seen) if bound is not None and len(bound) >= len(table) else np.nan
        numbers = {
            "forgetting": metrics.mean_iou(found["forgetting"]),
            "backward transfer": metrics.backward_transfer(by_group),
            "plasticity": metrics.plasticity(by_group),
            "intransigence": metrics.mean_iou(later),
            "to joint": gap - metrics.mean_iou(table[-1], seen),
        }
        own = ("intransigence", "to joint") if method == "joint" else ()  # it is its own bound
        cells = {name: MISSING if np.isnan(v) or name in own else f"{100 * v:.1f}" for name, v in numbers.items()}
        rows.append({"method": method_title(method), "after step": len(table) - 1, **cells})
    return pd.DataFrame(rows)


def figure_classes(groups: Mapping[str, Sequence[Chain]], *, most: int = MOST_CLASSES, columns: int = 5) -> Figure:
    """Curves of single classes: IoU after every step, one panel per class and one colour per method, a band over seeds.

    most: classes shown, those with the largest forgetting of any method. The title names the step that taught the class.
    """
    scenario = next(iter(groups.values()))[0].last.scenario
    tables = {method: [chain.iou() for chain in chains] for method, chains in groups.items()}
    lost = {m: each["forgetting"] for m, each in _measured(groups).items()}
    ids, left_out = _telling(lost, _best({m: mean_iou_table(chains) for m, chains in groups.items()}), most)
    rows, columns = -(-len(ids) // columns), min(columns, len(ids))
    fig = figure(max(4.0, 2.1 * columns + 0.4), 1.55 * rows + 1.0)
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    at = taught_at(scenario)
    for k, (ax, c) in enumerate(zip(axes.flat, ids, strict=False)):
        plot_by_step({m: [table[:, c] for table in each] for m, each in tables.items()}, ylabel="", ax=ax)
        ax.set_title(f"{c} {scenario.classes[c]}\n(step {at[c]})")
        lowest = k + columns >= len(ids)
        ax.set_xlabel("after step" if lowest else "")
        ax.tick_params(axis="x", labelbottom=lowest)
    for ax in axes.flat[len(ids) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("IoU (%)")
    longest = max(len(table) for each in tables.values() for table in each)
    axes[0, 0].set(xticks=range(longest), xlim=(-0.2, longest - 0.8))
    if left_out:
        fig.suptitle(left_out.strip(" ()"), fontsize=9, x=0.02, ha="left")
    legend_below(fig, [Patch(facecolor=method_colour(m), label=method_title(m)) for m in groups])
    return fig


def _measured(groups: Mapping[str, Sequence[Chain]]) -> dict[str, dict[str, Floats]]:
    """`measures` per method, of the mean over its seeds."""
    bound = mean_iou_table(groups["joint"]) if "joint" in groups else None
    scenario = next(iter(groups.values()))[0].last.scenario
    return {method: measures(mean_iou_table(chains), scenario, bound) for method, chains in groups.items()}


def _best(tables: Mapping[str, Floats]) -> dict[str, Floats]:
    """Per method the best IoU of each class at any step, NaN where it has none. tables: (T, C)."""
    return {method: np.fmax.reduce(table, axis=0) for method, table in tables.items()}


def _telling(lost: Mapping[str, Floats], there: Mapping[str, Floats], most: int) -> tuple[list[int], str]:
    """Learned ids to show: classes with a value ``there``, at most ``most`` of them, those that lost most. And words for it."""
    any_there = ~np.isnan(np.array(list(there.values()))).all(axis=0)
    ids = [c for c in np.flatnonzero(any_there).tolist() if c != BACKGROUND]
    if len(ids) <= most:
        return ids, ""
    worst = np.nan_to_num(np.array(list(lost.values())), nan=-1.0).max(axis=0)
    chosen = sorted(sorted(ids, key=lambda c: -worst[c])[:most])
    return chosen, f" ({most} of {len(ids)} classes, those that any method forgot most)"


# --- where the pixels go ---

FATES = {
    "to come": ("#e4e4e4", "not taught yet"),
    "kept": (RIGHT, "right"),
    "mixed up": (ERRORS["mixed up"][0], "→ a class taught before or with it"),
    "taken over": (ERRORS["taken over"][0], "→ a class taught later"),
    "forgotten": (ERRORS["forgotten"][0], "→ background"),
}
"""What the model after a step makes of a pixel, relative to the step that taught its class -> colour, words; bottom to top."""


def fates(confusion: npt.ArrayLike, scenario: Scenario, step: Step) -> npt.NDArray[np.int64]:
    """(1 + K, 5) test pixels of each true class by `FATES` after a step. confusion: (1 + K, 1 + K), learned ids.

    Relative to the pixel's own class, so that what took it over keeps its name at later steps; `old_pixels` and `masks.errors`
    are relative to the step instead. The background's row is 0.
    """
    counts, at = np.asarray(confusion, dtype=np.int64), taught_at(scenario)
    found = np.zeros((len(at), len(FATES)), dtype=np.int64)
    later = at[None, :] > at[:, None]  # column taught after row
    own = np.diag(counts)
    parts = {
        "kept": own,
        "taken over": np.where(later, counts, 0).sum(axis=1),
        "forgotten": counts[:, BACKGROUND],
    }
    for name, column in parts.items():
        found[:, list(FATES).index(name)] = column
    found[:, list(FATES).index("mixed up")] = counts.sum(axis=1) - found.sum(axis=1)
    found[step.n_seen + 1 :] = 0
    found[step.n_seen + 1 :, 0] = counts[step.n_seen + 1 :].sum(axis=1)
    found[BACKGROUND] = 0
    return found


def least_moves(before: npt.ArrayLike, after: npt.ArrayLike) -> Floats:
    """(n, F, F) the least that must have moved between F kinds, per row, for shares ``before`` to become ``after``, both (n, F).

    Whatever can stay stays; what a kind has too much is spread over those that have too little, in proportion. A confusion matrix
    does not say which pixel is which: pixels that changed places do not show.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    stay, more, less = np.minimum(a, b), np.maximum(a - b, 0), np.maximum(b - a, 0)
    total = less.sum(axis=1, keepdims=True)
    part = np.divide(less, total, out=np.zeros_like(less), where=total > 0)
    return stay[:, :, None] * np.eye(a.shape[1]) + more[:, :, None] * part[:, None, :]


@dataclass(frozen=True)
class Stream:
    """Pixels of the classes taught before the last step, followed from step to step, as fractions of all of them.

    steps: (T,). levels: (T, 5) by `FATES`. moves: (T - 1, 5, 5) from (rows) to (columns), see `least_moves`.
    """

    steps: list[int]
    levels: Floats
    moves: Floats


def stream(chains: Sequence[Chain]) -> Stream | None:
    """The `Stream` of a method, mean over the seeds that went furthest; None without a second step or a pixel to follow."""
    furthest = max(chain.last.step for chain in chains)
    found = []
    for chain in (c for c in chains if c.last.step == furthest):
        scenario, last = chain.last.scenario, chain.last.scenario.step(chain.last.step)
        counts = np.array([fates(run.confusion, scenario, scenario.step(run.step)) for run in chain.runs], dtype=np.float64)
        counts = counts[:, last.old]
        pixels = counts[-1].sum(axis=1)
        own = counts.sum(axis=2, keepdims=True)
        shares = np.divide(counts, own, out=np.zeros_like(counts), where=own > 0)  # protocols may test other images at each step
        shares[:, :, 0] += (own == 0)[:, :, 0]
        weight = pixels[:, None] / max(pixels.sum(), 1)
        if len(chain.runs) > 1 and pixels.sum():
            moves = [(least_moves(a, b) * weight[:, :, None]).sum(axis=0) for a, b in pairwise(shares)]
            found.append(Stream(chain.steps, (shares * weight).sum(axis=1), np.array(moves)))
    found = [each for each in found if each.steps == found[0].steps]
    if not found:
        return None
    return Stream(found[0].steps, *(np.mean([getattr(f, part) for f in found], axis=0) for part in ("levels", "moves")))


def plot_alluvial(flow: Stream, ax: Axes, *, width: float = 0.2) -> Axes:
    """Where pixels of old classes go, step by step (%): a column of `FATES` per step, ribbons in the colour of where they lead.

    width: of the columns, in steps.
    """
    kinds, colours = list(FATES), [colour for colour, _ in FATES.values()]
    levels, moves = 100 * flow.levels, 100 * flow.moves
    floor = np.cumsum(levels, axis=1) - levels
    x = np.linspace(0, 1, 40)
    bend = x**2 * (3 - 2 * x)
    for t, move in enumerate(moves):
        leaves, enters = floor[t].copy(), floor[t + 1].copy()
        for i in range(len(FATES)):
            for j in range(len(FATES)):
                if move[i, j] > 0.05:
                    low = leaves[i] + (enters[j] - leaves[i]) * bend
                    at = t + width / 2 + x * (1 - width)
                    ax.fill_between(
                        at, low, low + move[i, j], color=colours[j], alpha=0.5, linewidth=0, label=f"{kinds[i]} to {kinds[j]}"
                    )
                leaves[i] += move[i, j]
                enters[j] += move[i, j]
    for t, level in enumerate(levels):
        for kind, height, start, colour in zip(FATES, level, floor[t], colours, strict=True):
            if height > 0:
                ax.bar(t, height, width=width, bottom=start, color=colour, edgecolor="#444444", linewidth=0.5, label=kind)
            if height > 5:
                ink = "black" if kind in ("kept", "to come") else "white"
                ax.text(t, start + height / 2, f"{height:.0f}", ha="center", va="center", fontsize=7, color=ink)
    ax.set(xlim=(-0.2, len(levels) - 0.8), ylim=(0, 100), xticks=range(len(levels)), xlabel="after step")
    ax.set_xticklabels(list(map(str, flow.steps)))
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(axis="x", length=0)
    return ax


def figure_alluvial(groups: Mapping[str, Sequence[Chain]]) -> Figure | None:
    """`plot_alluvial` of every method that ran two steps, side by side, up to four in a row. None where there is none."""
    flows = {method: stream(chains) for method, chains in groups.items()}
    there = {method: flow for method, flow in flows.items() if flow is not None}
    if not there:
        return None
    rows = -(-len(there) // 4)
    columns = -(-len(there) // rows)
    longest = max(len(flow.steps) for flow in there.values())
    fig = figure(max(4.5, min(14.0, (0.6 * longest + 0.7) * columns + 0.8)), 2.5 * rows + 0.7)
    axes = fig.subplots(rows, columns, squeeze=False, sharey=True)
    for ax, (method, flow) in zip(axes.flat, there.items(), strict=False):
        plot_alluvial(flow, ax).set_title(method_title(method))
    for ax in axes.flat[len(there) :]:
        ax.set_visible(False)
    for k, ax in enumerate(axes.flat):
        ax.tick_params(axis="y", left=k % columns == 0)
        if k + columns < len(there):
            ax.set_xlabel("")
    for ax in axes[:, 0]:
        ax.set_ylabel("pixels of classes taught\nbefore the last step (%)")
    shown = [kind for k, kind in enumerate(FATES) if any((flow.levels[:, k] > 0).any() for flow in there.values())]
    legend_below(fig, [Patch(facecolor=FATES[k][0], edgecolor="#444444", linewidth=0.5, label=FATES[k][1]) for k in shown])
    return fig


def forgets_most(groups: Mapping[str, Sequence[Chain]]) -> str:
    """The method with the largest mean forgetting at the end (first seed), of those between the bounds FT and joint, if any."""
    between = [method for method in groups if method not in ("ft", "joint")]
    lost = {method: value(groups[method][0].last, "forgetting_mean") for method in between or groups}
    return max(lost, key=lambda method: -1.0 if np.isnan(lost[method]) else lost[method])


def thieves(run: Run, *, top: int = 2) -> pd.DataFrame:
    """One row per old class after this step: pixels still right, and what most of the others were taken for, in percent of its
    pixels; and what it is taken for most itself, in percent of what is predicted as it. A class without pixels has dashes."""
    step, names = run.scenario.step(run.step), run.scenario.classes
    counts = np.asarray(run.confusion)[: step.n_seen + 1, : step.n_seen + 1]

    def listed(pairs: Sequence[tuple[int, int]], whole: int) -> str:
        return ", ".join(f"{c} {names[c]} {100 * n / whole:.1f}" for c, n in pairs[:top]) or MISSING

    rows = []
    for c in range(1, step.n_old + 1):
        own, given = int(counts[c].sum()), int(counts[:, c].sum())
        most = metrics.stolen_by(counts, c, top)
        right = f"{100 * counts[c, c] / own:.1f}" if own else MISSING
        rows.append({
            "class": f"{c} {names[c]}", "still right %": right, "lost to %": listed(most["row"], own),
            "takes from %": listed(most["column"], given),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["class", "still right %", "lost to %", "takes from %"])


# --- pictures ---


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """`figure_story` of an imagined model that knows nothing but what its last step taught. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=40))
    picture = masks.test_pictures(data, data.scenario.steps[-1], 1)[0]
    found = {
        step.index: np.where((picture.truth >= step.new.start) & (picture.truth < step.new.stop), picture.truth, BACKGROUND)
        for step in data.scenario.steps
    }
    words = "an imagined model that knows nothing but its last step"
    return figure_story(picture, found, data.scenario, data.palette, title=words)


def figure_story(
    picture: masks.Picture, found: Mapping[int, masks.Labels], scenario: Scenario, palette: masks.Palette, *, title: str = ""
) -> Figure:
    """One test image through the steps of one method: what a perfect model would say, what it says, and what is wrong.

    found: step -> (H, W) learned ids, as in `report.predictions`. Errors are relative to each step, see `masks.errors`.
    """
    steps = sorted(found)
    fig, axes = grid(3, len(steps) + 1, cell=1.5, aspect=masks.aspect(picture.image), margin=0.7, legend=2.6)
    masks.show_image(picture.image, axes[0, 0]).set_title("image")
    for ax in axes[1:, 0]:
        ax.set_visible(False)
    shown: set[int] = set()
    wrong: set[int] = set()
    for t, column in zip(steps, axes[:, 1:].T, strict=True):
        step = scenario.step(t)
        told = np.where((picture.truth > step.n_seen) & (picture.truth != IGNORE), BACKGROUND, picture.truth)
        kinds = masks.errors(picture.truth, found[t], step)
        masks.show_labels(told, palette, column[0]).set_title(f"after step {t}")
        masks.show_labels(found[t], palette, column[1])
        masks.show_errors(kinds, picture.image, column[2])
        column[2].set_xlabel(_lost(picture.truth, kinds, step), fontsize=7)
        shown |= {*np.unique(told).tolist(), *np.unique(found[t]).tolist()}
        wrong |= set(np.unique(kinds).tolist())
    for ax, text in zip(axes[:, 1], ("truth\nso far", "predicted", "errors"), strict=True):
        row_label(ax, text)
    fig.suptitle(title or f"test image {picture.name}", fontsize=9, x=0.02, ha="left")
    present = [kind for number, kind in enumerate(ERRORS, start=1) if number in wrong]
    legend_right(fig, class_patches(shown, scenario.classes, palette) + error_patches(present))
    return fig


def _lost(truth: masks.Labels, kinds: masks.Labels, step: Step) -> str:
    """How much of the old and new pixels of an image is wrong, in words."""
    parts = {"old": (truth >= 1) & (truth <= step.n_old), "new": (truth > step.n_old) & (truth <= step.n_seen)}
    return "\n".join(f"{name}: {100 * (kinds[where] > 0).mean():.0f} % wrong" for name, where in parts.items() if where.any())


def explore_story(
    pictures: Sequence[masks.Picture], predictions: Sequence[masks.ByStep], scenario: Scenario, palette: masks.Palette
) -> Any:
    """Choose image and method; `figure_story` of the first ones once as a static picture. Returns the widget.

    predictions: one per picture, see `report.predictions`.
    """
    import ipywidgets as widgets

    method = widgets.Dropdown(options=[(method_title(m), m) for m in predictions[0]], description="method")
    which = widgets.IntSlider(min=0, max=len(pictures) - 1, description="image", continuous_update=False)

    def draw() -> list[Figure]:
        picture = pictures[which.value]
        words = f"{method_title(method.value)}, test image {picture.name}"
        return [figure_story(picture, predictions[which.value][method.value], scenario, palette, title=words)]

    return widgets.VBox([widgets.HBox([method, which]), following(draw, (method, which))])
