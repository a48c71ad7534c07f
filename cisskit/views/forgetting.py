"""What happens to classes over the steps. Arguments are fractions, axes are in percent."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cisskit import metrics
from cisskit.scenario import Step
from cisskit.views.style import ERRORS, RIGHT, figure, legend_below, method_colour, method_title
from cisskit.views.tables import Chain

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
    names = {"all": "all seen classes [0-…]", "old": f"old [{last.metrics['miou']['old']['classes']}]"}
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


def figure_iou(groups: Mapping[str, Sequence[Chain]]) -> Figure:
    """One heat map per method: IoU of every class after every step (mean over seeds)."""
    tables = {method: mean_iou_table(chains) for method, chains in groups.items()}
    classes = next(iter(groups.values()))[0].last.scenario.classes
    rows = [len(table) for table in tables.values()]
    fig = figure(2.4 + 0.42 * len(classes), 1.5 + sum(0.3 * n + 0.45 for n in rows))
    axes = fig.subplots(len(tables), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    for ax, (method, table) in zip(axes, tables.items(), strict=True):
        plot_iou_by_step(table, classes=classes, ax=ax, bar=False)
        ax.set(xlabel="", title=method_title(method))
        ax.tick_params(axis="x", length=0)
    axes[-1].set_xlabel("class, in order of arrival")
    fig.colorbar(axes[0].collections[0], ax=list(axes), label="IoU (%)", shrink=0.7, pad=0.02)
    return fig


def figure_forgetting(groups: Mapping[str, Sequence[Chain]]) -> Figure | None:
    """Heat map of what each method lost of each earlier class (mean over seeds). None where no method ran two steps."""
    tables = {method: mean_iou_table(chains) for method, chains in groups.items()}
    tables = {method: table for method, table in tables.items() if len(table) > 1}
    if not tables:
        return None
    classes = next(iter(groups.values()))[0].last.scenario.classes
    lost = {method: metrics.forgetting(table) for method, table in tables.items()}
    there = np.flatnonzero(~np.isnan(np.array(list(lost.values()))).all(axis=0))
    fig = figure(2.8 + 0.42 * len(there), 1.7 + 0.34 * len(lost))
    plot_forgetting({m: line[there] for m, line in lost.items()}, classes=[classes[c] for c in there], ax=fig.subplots())
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
