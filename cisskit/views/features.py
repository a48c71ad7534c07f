"""Feature space: pixels and classes in a plane that stays put over the steps, and the rows of the classifier that read it.

The same test pixels are followed through all steps. Only test images are looked at, and the first seed of each method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from cisskit.errors import KitError, unknown
from cisskit.losses import labels_on_grid
from cisskit.models import Model
from cisskit.models.heads import rows as head_rows
from cisskit.scenario import Scenario
from cisskit.views.regions import components
from cisskit.views.report import Restore
from cisskit.views.style import (
    class_patches,
    figure,
    legend_below,
    method_title,
    note,
    spread,
)
from cisskit.views.tables import Chain
from cisskit.views.tokens import angles

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

PROJECTIONS = ("pca", "tsne")
FITS = ("first", "all")

DOT: dict[str, Any] = {"marker": "o", "markersize": 4, "markeredgecolor": "#444444", "markeredgewidth": 0.4}


# --- the same pixels after every step ---


@dataclass(frozen=True)
class Pixels:
    """Features of the same test pixels after every step. labels: (N,) true learned ids. by_step: step -> (N, D)."""

    scenario: Scenario
    labels: Ids
    by_step: dict[int, Floats]

    @property
    def classes(self) -> list[int]:
        """Learned ids of the classes that have pixels here."""
        return [int(c) for c in np.unique(self.labels)]

    def centroids(self, step: int) -> Floats:
        """(len(classes), D) mean feature of each class."""
        return np.array([self.by_step[step][self.labels == c].mean(axis=0) for c in self.classes])


def follow(chain: Chain, restore: Restore, *, images: int = 80, per_class: int = 60, classes: int = 12) -> Pixels:
    """Features that the classes are read from ("decoder"), at up to ``per_class`` pixels of each class, after every step.

    images: of the test set, the first ones. classes: background and at most so many others less one, spread over the arrivals.
    Pixels are cells of the feature map, labelled by the nearest pixel of the image; which ones is always the same.
    """
    scenario = chain.last.scenario
    wanted = [0, *_some_classes(scenario, classes - 1)]
    by_step: dict[int, list[Tensor]] = {}
    labels: list[Tensor] = []
    chosen: list[Tensor] = []
    for run in chain.runs:
        ctx, left = restore(run), images
        parts: list[Tensor] = []
        ctx.model.eval()
        with torch.inference_mode():
            for batch in ctx.data.test(run.step, device=ctx.device):
                features = ctx.model(batch.image[:left]).features["decoder"].float()
                if len(chosen) == len(parts):  # the first model decides which pixels are followed
                    size = (features.shape[2], features.shape[3])
                    truth = labels_on_grid(batch.label[:left], size).flatten().cpu()
                    chosen.append(torch.arange(len(truth))[torch.isin(truth, torch.tensor(wanted))])
                    labels.append(truth[chosen[-1]])
                parts.append(features.permute(0, 2, 3, 1).flatten(0, 2).cpu()[chosen[len(parts)]])
                left -= len(batch.image[:left])
                if left <= 0:
                    break
        by_step[run.step] = parts
    ids = torch.cat(labels).numpy()
    keep = _balanced(ids, per_class)
    return Pixels(scenario, ids[keep], {t: torch.cat(parts).double().numpy()[keep] for t, parts in by_step.items()})


def _some_classes(scenario: Scenario, most: int) -> list[int]:
    """At most ``most`` learned ids, evenly from the first to the last to arrive."""
    n = len(scenario.order)
    return np.unique(np.linspace(1, n, min(most, n)).round().astype(int)).tolist() if most > 0 else []


def _balanced(ids: Ids, per_class: int) -> Ids:
    """Positions of at most ``per_class`` entries of each id, drawn without favour, always the same, in ascending order."""
    order = np.random.default_rng(0).permutation(len(ids))
    kept = [order[ids[order] == c][:per_class] for c in np.unique(ids)]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def drift(pixels: Pixels) -> tuple[list[int], Floats]:
    """Steps from the second on, and (steps, len(classes)) mean cosine distance of features from the step before, 0..2."""
    steps = [t for t in sorted(pixels.by_step) if t - 1 in pixels.by_step]
    table = np.full((len(steps), len(pixels.classes)), np.nan)
    for row, t in zip(table, steps, strict=True):
        now, before = (torch.from_numpy(pixels.by_step[k]) for k in (t, t - 1))
        far = (1 - F.cosine_similarity(now, before, dim=1)).clamp(min=0).numpy()  # rounding: a copy has not moved
        row[:] = [far[pixels.labels == c].mean() for c in pixels.classes]
    return steps, table


# --- a plane ---


@dataclass(frozen=True)
class Plane:
    """Pixels in a plane that is the same for all steps. by_step: step -> (N, 2). axes: words for both axes. fitted: on what."""

    pixels: Pixels
    by_step: dict[int, Floats]
    axes: tuple[str, str]
    fitted: str

    def centroids(self, step: int) -> Floats:
        """(len(classes), 2): the mean place of each class; under PCA the place of its mean feature."""
        return np.array([self.by_step[step][self.pixels.labels == c].mean(axis=0) for c in self.pixels.classes])


def project(pixels: Pixels, kind: str = "pca", *, fit: str = "first") -> Plane:
    """Lay the pixels of all steps into one plane.

    kind: "pca", a linear map, so that distances shrink but never grow; or "tsne", which keeps neighbours and no distances, and
    needs scikit-learn. fit: what decides the plane: the "first" step or "all" steps; t-SNE has no map for further points and is
    always fitted on all.
    """
    if kind not in PROJECTIONS:
        raise unknown("projection", kind, PROJECTIONS)
    if fit not in FITS:
        raise unknown("choice of what a plane is fitted on", fit, FITS)
    steps = sorted(pixels.by_step)
    everything = np.concatenate([pixels.by_step[t] for t in steps])
    if len(pixels.labels) < 2:
        raise KitError("fewer than two pixels: nothing can be laid into a plane. Look at more test images.")
    if kind == "tsne":
        flat = _tsne(everything)
        words, fitted = ("t-SNE 1", "t-SNE 2"), "fitted on all steps together"
    else:
        centre, directions, shares = components(pixels.by_step[steps[0]] if fit == "first" else everything)
        flat = (everything - centre) @ directions.T
        words = (f"component 1 ({100 * shares[0]:.0f} % of the variance)", f"component 2 ({100 * shares[1]:.0f} %)")
        fitted = f"fitted on step {steps[0]}" if fit == "first" else "fitted on all steps together"
    return Plane(pixels, dict(zip(steps, np.split(flat, len(steps)), strict=True)), words, fitted)


def _tsne(rows: Floats) -> Floats:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise KitError("t-SNE needs scikit-learn: pip install scikit-learn. Without it, choose kind='pca'.") from error
    perplexity = min(30.0, (len(rows) - 1) / 3)  # below the number of points, or it refuses
    return np.asarray(
        TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=0).fit_transform(rows), dtype=np.float64
    )


def plot_plane(plane: Plane, step: int, palette: NDArray[np.uint8], ax: Axes) -> Axes:
    """Pixels (dots) and class means (discs with the class id) after a step, in class colours.

    Classes that have not arrived are grey crosses, without a mean. A line leads to a mean from where it was a step before.
    """
    labels, n_seen = plane.pixels.labels, plane.pixels.scenario.step(step).n_seen
    at = plane.by_step[step]
    future = labels > n_seen
    ax.scatter(at[future, 0], at[future, 1], s=9, marker="x", color="#9a9a9a", linewidth=0.6, alpha=0.7, zorder=1)
    colours = [to_hex(palette[c] / 255) for c in labels[~future]]
    ax.scatter(at[~future, 0], at[~future, 1], s=7, color=colours, alpha=0.55, linewidth=0, zorder=2)
    now = plane.centroids(step)
    before = plane.centroids(step - 1) if step - 1 in plane.by_step else now
    rim = [patheffects.withStroke(linewidth=2, foreground="white")]
    for c, place, was in zip(plane.pixels.classes, now, before, strict=True):
        if c <= n_seen:
            ax.plot(*np.stack([was, place]).T, color="black", linewidth=1.1, zorder=3)
            ax.plot(
                *place, "o", color=to_hex(palette[c] / 255), markersize=9, markeredgecolor="black", markeredgewidth=0.8, zorder=4
            )
            ax.text(place[0], place[1], f"{c}", ha="center", va="center", fontsize=7, zorder=5, path_effects=rim)
    return ax


def figure_planes(planes: Mapping[str, Plane], palette: NDArray[np.uint8]) -> Figure:
    """`plot_plane`, a row per method with a plane of its own, a column per step (up to five); ranges are those of the row."""
    steps = spread(sorted({t for plane in planes.values() for t in plane.by_step}))
    fig = figure(1.4 + 2.35 * len(steps), 1.0 + 2.1 * len(planes))
    axes = fig.subplots(len(planes), len(steps), squeeze=False)
    for row, (method, plane) in zip(axes, planes.items(), strict=True):
        low, high = np.percentile(np.concatenate(list(plane.by_step.values())), (0.5, 99.5), axis=0)
        room = 0.06 * (high - low) + 1e-6
        for ax, t in zip(row, steps, strict=True):
            ax.set(xticks=[], yticks=[])
            if t in plane.by_step:
                plot_plane(plane, t, palette, ax)
            else:
                ax.text(0.5, 0.5, "not run", ha="center", va="center", transform=ax.transAxes, color="#777777", fontsize=8)
            ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
        row[0].set_xlabel(plane.axes[0], fontsize=7)
        row[0].set_ylabel(f"{method_title(method)}\n{plane.fitted}\n{plane.axes[1]}", fontsize=7)
    for ax, t in zip(axes[0], steps, strict=True):
        ax.set_title(f"after step {t}")
    first = next(iter(planes.values())).pixels
    cross = Line2D([], [], marker="x", linestyle="", color="#9a9a9a", markersize=5, label="pixels of classes to come")
    path = Line2D([], [], color="black", linewidth=1.1, label="way of a mean since the step before")
    legend_below(fig, [*class_patches(first.classes, first.scenario.classes, palette), cross, path])
    return fig


def figure_drift(followed: Mapping[str, Pixels]) -> Figure:
    """Heat map: mean cosine distance of each class's features from the step before; a row per method and step."""
    found = {method: drift(pixels) for method, pixels in followed.items()}
    rows = [
        (f"{method_title(m)}, step {t}", m, values)
        for m, (steps, table) in found.items()
        for t, values in zip(steps, table, strict=True)
    ]
    if not rows:
        return note("Only one step has been run: no feature can have moved yet.")
    classes = sorted({c for pixels in followed.values() for c in pixels.classes})
    table = np.full((len(rows), len(classes)), np.nan)
    for line, (_, method, values) in zip(table, rows, strict=True):
        line[[classes.index(c) for c in followed[method].classes]] = values
    names = next(iter(followed.values())).scenario.classes
    fig = figure(3.0 + 0.45 * len(classes), 1.8 + 0.26 * len(rows))
    ax = fig.subplots()
    sns.heatmap(
        table, vmin=0, cmap="viridis", annot=True, fmt=".2f", annot_kws={"size": 7}, linewidths=0.5, ax=ax,
        xticklabels=[f"{c} {names[c]}" for c in classes], yticklabels=[words for words, _, _ in rows],
        cbar_kws={"label": "1 − cos, from the step before"},
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    return fig


# --- rows of the classifier ---


class Rows(NamedTuple):
    """What stands for each class, background first: weight (C, D), bias (C,), and layer (C,): rows with the same number read the
    same features. words: "weight row" or "class token"."""

    weight: Tensor
    bias: Tensor
    layer: Tensor
    words: str


def rows_of(model: Model) -> Rows:
    """The classifier's rows, detached, on the CPU; of a Segmenter the class tokens and the shifts of its mask norm.

    Heads with layers inside read features of their own. The unknown head is left out: it is no class.
    """
    weights, biases, layers, words = [], [], [], "weight row"
    for k, head in enumerate(model.heads):
        if k == model.unknown:
            continue
        found = head_rows(head)
        weights.append((found["token"] if "token" in found else found["weight"].flatten(1)).detach().cpu().double())
        biases.append(found["bias"].detach().cpu().double())
        layers.append(torch.full((len(biases[-1]),), k if isinstance(head, torch.nn.Sequential) else 0))
        words = "class token" if "token" in found else words
    return Rows(torch.cat(weights), torch.cat(biases), torch.cat(layers), words)


def rows_by_step(chain: Chain, restore: Restore) -> dict[int, Rows]:
    """`rows_of` the model after every step."""
    return {run.step: rows_of(restore(run).model) for run in chain.runs}


def cosines(rows: Rows) -> Floats:
    """(C, C) cosines between rows; NaN where the two read different features, and so cannot be compared."""
    table = np.cos(np.deg2rad(angles(rows.weight)))
    return np.where(rows.layer[:, None] == rows.layer[None, :], table, np.nan)


def plot_cosines(rows: Rows, names: Sequence[str], ax: Axes, *, n_old: int = 0) -> Axes:
    """Heat map of `cosines`, centred on 0. names: of these classes, and of further ones, which stay empty.

    n_old: lines are drawn after the old classes. From 13 classes on there are no numbers, and few names.
    """
    count = len(names)
    table = np.full((count, count), np.nan)
    table[: len(rows.weight), : len(rows.weight)] = cosines(rows)
    every = max(1, count // 20)
    ticks: Any = list(names) if every == 1 else every
    numbers = np.array([["" if np.isnan(v) else f"{v + 0.0:.1f}" for v in row] for row in table.round(1)])
    sns.heatmap(
        table, vmin=-1, vmax=1, cmap="RdBu_r", annot=numbers if count <= 12 else False, fmt="", annot_kws={"size": 6}, ax=ax,
        linewidths=0.5 if count <= 30 else 0, square=True, cbar=False, xticklabels=ticks, yticklabels=ticks,
    )  # fmt: skip
    if 0 < n_old < count - 1:
        ax.axhline(1 + n_old, color="black", linewidth=1.2)
        ax.axvline(1 + n_old, color="black", linewidth=1.2)
    ax.set_facecolor("#eeeeee")
    ax.tick_params(axis="x", rotation=90, length=0)
    ax.tick_params(axis="y", rotation=0, length=0)
    return ax


def figure_cosines(stages: Mapping[str, Rows], scenario: Scenario, *, n_old: int = 0) -> Figure:
    """`plot_cosines` side by side, four in a line, e.g. ``{"FT, step 1": .., "FT, step 2": ..}``."""
    names = [f"{c} {scenario.classes[c]}" for c in range(max(len(rows.weight) for rows in stages.values()))]
    columns = min(4, len(stages))
    lines = -(-len(stages) // columns)
    side, longest = (0.25 if len(names) <= 12 else 0.12) * min(len(names), 25), 0.09 * max(map(len, names))
    named = longest if len(stages) % columns == 0 else 2 * longest  # an incomplete line: two rows of names
    fig = figure(longest + 0.9 + columns * (0.15 + side), named + 0.4 + lines * (0.45 + side))
    axes = fig.subplots(lines, columns, squeeze=False)
    for k, ax in enumerate(axes.flat):
        if k >= len(stages):
            ax.set_axis_off()
            continue
        words, rows = list(stages.items())[k]
        plot_cosines(rows, names, ax, n_old=n_old)
        ax.set_title(words)
        if k % columns:
            ax.set_yticks([])
        if k + columns < len(stages):
            ax.set_xticks([])
    fig.colorbar(
        axes[0, 0].collections[0], ax=list(axes.flat), label="cosine (grey: not comparable, or not born)", shrink=0.5, pad=0.02
    )
    return fig


def plot_rows(by_step: Mapping[int, Rows], what: str, palette: NDArray[np.uint8], ax: Axes) -> Axes:
    """A line per class over the steps, from its birth on: "norm" of its row or its "bias". The background is dashed."""
    if what not in ("norm", "bias"):
        raise unknown("property of a classifier's row", what, ("norm", "bias"))
    steps = sorted(by_step)
    values = [by_step[t].weight.norm(dim=1) if what == "norm" else by_step[t].bias for t in steps]
    for c in range(max(map(len, values))):
        line = [(t, float(v[c])) for t, v in zip(steps, values, strict=True) if c < len(v)]
        style, width = ("--", 2.0) if c == 0 else ("-", 1.3)
        x, y = zip(*line, strict=True)
        ax.plot(x, y, linestyle=style, linewidth=width, color=to_hex(palette[c] / 255), **DOT)
    ax.set(xticks=steps, xlim=(steps[0] - 0.3, steps[-1] + 0.3))
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    return ax


def figure_rows(found: Mapping[str, Mapping[int, Rows]], scenario: Scenario, palette: NDArray[np.uint8]) -> Figure:
    """`plot_rows`: norms above, biases below, a column per method. Vertical ranges differ between methods."""
    fig = figure(0.9 + min(1.75, 11 / len(found)) * len(found), 5.0)
    axes = fig.subplots(2, len(found), squeeze=False, sharex=True)
    for (above, below), (method, by_step) in zip(axes.T, found.items(), strict=True):
        title = method_title(method).replace(" ", "\n")
        plot_rows(by_step, "norm", palette, above).set_title(f"{title}\n{next(iter(by_step.values())).words}")
        plot_rows(by_step, "bias", palette, below).set_xlabel("after step")
    axes[0, 0].set_ylabel("norm")
    axes[1, 0].set_ylabel("bias")
    n = max(len(rows.bias) for by_step in found.values() for rows in by_step.values())
    shown = [0, *[c for c in _some_classes(scenario, 15) if c < n]]
    dashed = Line2D([], [], color="black", linestyle="--", linewidth=2.0, label="dashed: the background")
    legend_below(fig, [*class_patches(shown, scenario.classes, palette), dashed])
    return fig
