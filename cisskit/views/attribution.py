"""What a model looks at before and after a step: maps of support, support by segment, consistency of the evidence.

A picture explains one score: the mean logit of one class over the pixels of one object (its true pixels), in the model before
the step and in the model after it. Both maps have one scale, their difference is centred on 0. See `cisskit.attribution`.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor, nn

from cisskit.attribution import WORDS, Comparison, Scores, ablation, compare, relevance_consistency
from cisskit.data import Data, Toy
from cisskit.data.transforms import normalise
from cisskit.errors import KitError
from cisskit.method import Context, method_class
from cisskit.models import Segmenter
from cisskit.runs import Run
from cisskit.scenario import BACKGROUND, IGNORE, Scenario
from cisskit.views.masks import Labels, Picture, aspect, on_photo, outline, predict, show_image, show_labels, test_pictures
from cisskit.views.report import Restore
from cisskit.views.style import (
    class_patches,
    figure,
    grid,
    legend_below,
    method_colour,
    method_title,
    note,
    row_label,
)
from cisskit.views.tables import Chain

SUPPORT, CHANGE = "RdBu_r", "PuOr_r"
"""Colour maps: what speaks for the score (red) and against it (blue); more (orange) and less (violet) of that than before."""

OLD, NEW = "#b8b8b8", "#333333"
"""Bars of the model before and after the step."""

OBJECT = "#009e73"
"""Outline of the pixels whose score is explained."""

MOST = 20
"""Classes that a legend names; of more there is no telling by colour."""

SEGMENTS = ("truth", "old model")
"""Where segments come from: the true classes, or what the old model predicts."""


# --- what is looked at ---


@dataclass(frozen=True)
class Pair:
    """The models before and after a step. ctx: of the step."""

    ctx: Context
    old: Scores
    new: Scores

    @property
    def run(self) -> Run:
        return self.ctx.run

    @property
    def method(self) -> str:
        return str(self.run.settings["method"])


@dataclass(frozen=True)
class Case:
    """A class in a test image."""

    picture: Picture
    label: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W), its true pixels."""
        return np.asarray(self.picture.truth) == self.label


def open_pair(run: Run, restore: Restore) -> Pair:
    """Both models of a step. Raises `KitError` for step 0, which has no model before it."""
    if run.previous is None:
        raise KitError("before step 0 there is no model to compare with. Choose a step from 1 on.")
    ctx = restore(run)
    old = ctx.old_model if ctx.old_model is not None else restore(run.previous).model  # the joint bound has no teacher
    return Pair(ctx, Scores(old), Scores(ctx.model))


def open_pairs(groups: Mapping[str, Chain], restore: Restore, step: int) -> dict[str, Pair]:
    """The pair of every method at a step; methods that have not come so far are left out. Raises `KitError` when none has."""
    pairs = {m: open_pair(r, restore) for m, chain in groups.items() for r in chain.runs if r.step == step and step > 0}
    if not pairs:
        raise KitError(f"no method has a finished step {step} with a step before it. Run one first: cisskit run --method ft.")
    return pairs


def cases(pictures: Iterable[Picture], classes: Sequence[int], *, least: float = 0.01) -> list[Case]:
    """All classes of ``classes`` in all pictures that cover at least ``least`` of their picture."""
    found = []
    for picture in pictures:
        share = np.bincount(np.asarray(picture.truth).ravel(), minlength=256) / np.asarray(picture.truth).size
        found += [Case(picture, c) for c in classes if share[c] >= least]
    return found


def old_cases(pair: Pair, pictures: Iterable[Picture], *, least: float = 0.01) -> list[Case]:
    """`cases` of the classes that were known before the step."""
    return cases(pictures, range(1, pair.ctx.step.n_old + 1), least=least)


def lost_share(pair: Pair, found: Sequence[Case]) -> NDArray[np.float64]:
    """(n,) share of each object's pixels that the old model named rightly and the new one calls background."""
    pictures = {case.picture.name: case.picture for case in found}
    before, after = (dict(zip(pictures, says(pair, list(pictures.values()), new), strict=True)) for new in (False, True))
    return np.array([
        ((before[c.picture.name] == c.label) & (after[c.picture.name] == BACKGROUND))[c.mask].mean() for c in found
    ])  # fmt: skip


def most_lost(pair: Pair, pictures: Iterable[Picture], n: int = 2, *, least: float = 0.03) -> list[Case]:
    """The ``n`` objects of old classes that lost the largest share of their pixels to the background, one per picture.

    least: their least share of the picture. Raises `KitError` when no picture shows such an object.
    """
    found = old_cases(pair, pictures, least=least)
    if not found:
        raise KitError(
            f"in no test image a class from before step {pair.ctx.step.index} covers {100 * least:.0f} %. Take more images."
        )
    chosen: dict[str, Case] = {}
    for i in np.argsort(-lost_share(pair, found), kind="stable").tolist():
        chosen.setdefault(found[i].picture.name, found[i])
    return list(chosen.values())[:n]


def victim(pairs: Mapping[str, Pair], pictures: Sequence[Picture]) -> tuple[str, Case]:
    """The method whose old objects lost the largest share of their pixels to the background, and its `most_lost` object."""
    share = {}
    for name, pair in pairs.items():
        found = old_cases(pair, pictures)
        share[name] = float(lost_share(pair, found).mean()) if found else 0.0
    name = max(share, key=lambda m: share[m])
    return name, most_lost(pairs[name], pictures, 1)[0]


def says(pair: Pair, pictures: Sequence[Picture], new: bool = True) -> list[Labels]:
    """(H, W) learned ids that the new model, or the old one, sees in each picture."""
    return predict(pair.ctx, pictures, (pair.new if new else pair.old).net)  # type: ignore[arg-type]


def explain(
    pair: Pair,
    case: Case,
    method: str,
    target: int,
    *,
    segments: str = "truth",
    bar: bool = False,
    keep: bool = True,
    **settings: Any,
) -> Comparison:
    """`compare` for the pixels of an object. target: the class whose score is explained, 0 for the background.

    segments: one of `SEGMENTS`. keep: in the folder of the step. Others as in `cisskit.attribution.attribute`.
    """
    if segments not in SEGMENTS:
        raise KitError(f"segments come from {' or '.join(map(repr, SEGMENTS))}, not {segments!r}.")
    ids = case.picture.truth if segments == "truth" else says(pair, [case.picture], new=False)[0]
    return compare(
        pair.old, pair.new, method, prepared(pair.ctx, case.picture), torch.from_numpy(case.mask), target,
        segments=torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64)), folder=pair.run.folder if keep else None, bar=bar,
        **settings,
    )  # fmt: skip


def prepared(ctx: Context, picture: Picture) -> Tensor:
    """(3, H, W) normalised, as networks take it."""
    return normalise(picture.image, ctx.data.source.mean, ctx.data.source.std)


# --- axes ---


def plot_map(values: NDArray[Any], picture: Picture, ax: Axes, *, scale: float, colours: str = SUPPORT) -> AxesImage:
    """A signed map, -scale to scale, over the pale photograph. values: (H, W). Returns the coloured image, for a colour bar."""
    ax.imshow(on_photo(np.zeros(values.shape, np.uint8), (), picture.image), interpolation="nearest")
    return ax.imshow(values, cmap=colours, vmin=-scale, vmax=scale, alpha=0.75, interpolation="nearest")


def plot_support(table: pd.DataFrame, names: Mapping[int, str], ax: Axes, *, own: int, most: int = 7) -> Axes:
    """Two bars per segment: its support in the old and in the new model. table: from `Comparison.support`.

    names: segment -> words. own: the object's own segment, printed bold. most: segments shown besides it, those with most of it.
    """
    size = table[["old", "new"]].abs().max(axis=1).where(table["segment"] != own, np.inf)
    table = table.loc[size.sort_values(ascending=False, kind="stable").index[: most + 1].sort_values()]
    y = np.arange(len(table))
    for name, colour, shift in (("old", OLD, -0.2), ("new", NEW, 0.2)):
        ax.barh(y + shift, table[name], height=0.38, color=colour, label=name)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(yticks=y, ylim=(len(table) - 0.4, -0.6))
    ax.set_yticklabels([names[s] for s in table["segment"]])
    for label, segment in zip(ax.get_yticklabels(), table["segment"], strict=True):
        label.set_fontweight("bold" if segment == own else "normal")
    ax.margins(x=0.08)
    ax.locator_params(axis="x", nbins=3)
    return ax


def segment_names(ctx: Context, ids: Iterable[int]) -> dict[int, str]:
    """Words for segments that are classes."""
    return {c: "void" if c == IGNORE else f"{c} {ctx.scenario.classes[c]}" for c in map(int, ids)}


def _row(row: NDArray[Any], bars: Axes, fig: Figure, pair: Pair, case: Case, found: Comparison) -> None:
    """Three maps with their colour bars on ``row``, support on ``bars``."""
    change = float(np.percentile(np.abs(found.difference), 99.5)) or 1.0
    parts = ((found.old, found.scale, SUPPORT), (found.new, found.scale, SUPPORT), (found.difference, change, CHANGE))
    shown = []
    for ax, (values, scale, colours) in zip(row, parts, strict=True):
        shown.append(plot_map(values, case.picture, ax, scale=scale, colours=colours))
        outline(found.mask, ax, OBJECT)
    for ax, image, words in ((row[1], shown[1], "against        for"), (row[2], shown[2], "less        more")):
        bar = fig.colorbar(image, cax=ax.inset_axes((1.04, 0.0, 0.06, 1.0)), extend="both")
        bar.ax.tick_params(labelsize=7)
        bar.set_label(words, size=7)
    plot_support(found.support(), segment_names(pair.ctx, np.unique(found.segments)), bars, own=found.own)
    bars.set_xlabel("support (no unit)" if found.method == "grad_cam" else "support (logits)")
    row[0].set_xlabel(f"score {found.score_old:+.1f}")
    row[1].set_xlabel(f"score {found.score_new:+.1f}")


def _canvas(rows: int, picture: Picture, *, segments: int) -> tuple[Figure, NDArray[Any]]:
    """(rows, 5) axes: four pictures and one for bars."""
    height = max(1.5 * aspect(picture.image), 0.21 * min(segments, 8)) + 0.4
    fig = figure(10.4, rows * height + 0.9)
    axes = fig.subplots(rows, 5, squeeze=False, width_ratios=[1, 1, 1, 1, 0.8])
    for ax in axes[:, :4].flat:
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return fig, axes


def _heads(axes: NDArray[Any], pair: Pair, first: str) -> None:
    t = pair.ctx.step.index
    for ax, words in zip(axes[0], (first, f"model after step {t - 1}", f"model after step {t}", "change"), strict=False):
        ax.set_title(words)
    axes[0, 4].set_title("support by segment", loc="right")


def _legend(fig: Figure, pair: Pair, shown: Iterable[int] = ()) -> None:
    t = pair.ctx.step.index
    handles: list[Any] = [
        Line2D([], [], color=OBJECT, linewidth=1.5, label="the pixels whose score is explained"),
        Patch(facecolor=OLD, label=f"support after step {t - 1}"),
        Patch(facecolor=NEW, label=f"support after step {t}"),
    ]
    legend_below(fig, [*handles, *class_patches(shown, pair.ctx.scenario.classes, pair.ctx.data.palette)])


# --- figures ---


class ByHand(nn.Module):
    """A "network" of one line: how alike a pixel's neighbourhood (15 x 15) is to a colour. logits (B, 1, H, W)."""

    def __init__(self, colour: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(colour.view(1, 3, 1, 1).expand(1, 3, 15, 15) / 225)

    def forward(self, image: Tensor) -> Tensor:
        return F.conv2d(image, self.weight, padding=7)


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """The idea in one picture: a score made by hand on an embedded scene, and what is left of it when segments are blanked.

    Needs no run.
    """
    source = Toy(train=1, heldout=1, test=40)
    data = Data(Scenario.named(scenario), source)
    picture = test_pictures(data, data.scenario.steps[-1], 1)[0]
    ids, counts = np.unique(picture.truth, return_counts=True)
    segments, own = torch.from_numpy(picture.truth).long(), int(ids[1:][counts[1:].argmax()])
    image, mask = normalise(picture.image, source.mean, source.std), segments == own
    scores = Scores(ByHand(image[:, mask].mean(dim=1)))
    falls = ablation(scores, image[None], mask[None], 0, segments)[0, 0] / mask.sum()
    score = float(scores(image[None], mask[None])[0, 0].detach() / mask.sum())
    other = max((int(c) for c in ids if c not in (0, own)), key=lambda c: abs(float(falls[segments == c][0])))
    fig, axes = grid(1, 5, cell=1.75, aspect=aspect(picture.image), margin=1.0, legend=0.6)
    names = data.scenario.classes
    for ax, blank in zip(axes[0], (None, own, other, 0), strict=False):
        seen = picture.image.clone()
        if blank is not None:
            seen[:, segments == blank] = (torch.tensor(source.mean) * 255).to(torch.uint8).view(3, 1)
        show_image(seen, ax)
        outline(mask.numpy(), ax, OBJECT)
        left = score - (0.0 if blank is None else float(falls[segments == blank][0]))
        ax.set_title("the image" if blank is None else f"without {names[blank]}")
        ax.set_xlabel(f"score {round(left, 2) + 0.0:+.2f}")
    top = float(falls.abs().max())
    shown = plot_map(falls.numpy(), picture, axes[0, 4], scale=top)
    outline(mask.numpy(), axes[0, 4], OBJECT)
    axes[0, 4].set_title("support = fall of the score")
    fig.colorbar(shown, cax=axes[0, 4].inset_axes((1.04, 0.0, 0.06, 1.0))).set_label("against        for", size=7)
    legend_below(fig, [Line2D([], [], color=OBJECT, linewidth=1.5, label=f"the pixels whose score is explained: {names[own]}")])
    return fig


def figure_question(pair: Pair, case: Case, method: str = "occlusion", **options: Any) -> Figure:
    """An object, what both models say of it, and what its own score and the background's look at, before and after the step.

    options: as in `explain`.
    """
    found = {target: explain(pair, case, method, target, **options) for target in (case.label, BACKGROUND)}
    fig, axes = _canvas(2, case.picture, segments=len(np.unique(found[BACKGROUND].segments)))
    palette, labels = pair.ctx.data.palette, says(pair, [case.picture])[0]
    show_image(case.picture.image, axes[0, 0])
    show_labels(labels, palette, axes[1, 0])
    for ax in axes[:, 0]:
        outline(case.mask, ax, OBJECT)
    for row, comparison in zip(axes, found.values(), strict=True):
        _row(row[1:4], row[4], fig, pair, case, comparison)
    _heads(axes, pair, "image; below it, what\nthe new model says")
    name = pair.ctx.scenario.classes[case.label]
    row_label(axes[0, 0], f"score of\n{name}\non the\n{name}")
    row_label(axes[1, 0], f"score of\nbackground\non the\n{name}")
    fig.suptitle(f"{method_title(pair.method)}, test image {case.picture.name}: {WORDS[method]}", fontsize=9, x=0.02, ha="left")
    _legend(fig, pair, np.unique(labels).tolist())
    return fig


def figure_methods(
    pairs: Mapping[str, Pair], case: Case, method: str = "occlusion", target: int = BACKGROUND, **options: Any
) -> Figure:
    """The same score of the same object in several methods, one row each: what the new model says, maps, support.

    Each row has a scale of its own, since logits of methods differ in size; both maps of a row share it. options: see `explain`.
    """
    found = {name: explain(pair, case, method, target, **options) for name, pair in pairs.items()}
    fig, axes = _canvas(len(pairs), case.picture, segments=max(len(np.unique(f.segments)) for f in found.values()))
    shown: set[int] = set()
    for row, (name, comparison) in zip(axes, found.items(), strict=True):
        pair = pairs[name]
        labels = says(pair, [case.picture])[0]
        shown |= set(np.unique(labels).tolist())
        show_labels(labels, pair.ctx.data.palette, row[0])
        outline(case.mask, row[0], OBJECT)
        _row(row[1:4], row[4], fig, pair, case, comparison)
        row_label(row[0], method_title(name))
    pair = next(iter(pairs.values()))
    _heads(axes, pair, "what it says")
    classes = pair.ctx.scenario.classes
    fig.suptitle(f"score of {classes[target]} on the {classes[case.label]}: {WORDS[method]}", fontsize=9, x=0.02, ha="left")
    _legend(fig, pair, shown)
    return fig


def figure_kinds(
    pair: Pair, case: Case, target: int = BACKGROUND, methods: Sequence[str] = tuple(WORDS), **options: Any
) -> Figure:
    """The same score explained by several methods of attribution, one row each; LRP is left out on a Segmenter.

    options: as in `explain`.
    """
    usable = [m for m in methods if m != "lrp" or not isinstance(pair.new.net, Segmenter)]
    found = {m: explain(pair, case, m, target, **options) for m in usable}
    fig, axes = _canvas(len(found), case.picture, segments=max(len(np.unique(f.segments)) for f in found.values()))
    for row, (name, comparison) in zip(axes, found.items(), strict=True):
        show_image(case.picture.image, row[0])
        outline(case.mask, row[0], OBJECT)
        _row(row[1:4], row[4], fig, pair, case, comparison)
        row_label(row[0], "\n".join(textwrap.wrap(WORDS[name], 12)))
    _heads(axes, pair, "image")
    classes = pair.ctx.scenario.classes
    title = (
        f"{method_title(pair.method)}: score of {classes[target]} on the {classes[case.label]}, test image {case.picture.name}"
    )
    fig.suptitle(title, fontsize=9, x=0.02, ha="left")
    _legend(fig, pair)
    return fig


# --- many objects ---


def own_support(pairs: Mapping[str, Pair], found: Sequence[Case], *, keep: bool = True, bar: bool = False) -> pd.DataFrame:
    """What blanking an object does to the scores on its own pixels, one row per method, object and score ("class", "background").

    Columns old and new: support of the object's segment (ablation, true segments) in percent, see `Comparison.support`;
    positive: the score falls without the object.
    """
    rows = []
    for name, pair in pairs.items():
        for case in found:
            for score, target in (("class", case.label), ("background", BACKGROUND)):
                comparison = explain(pair, case, "ablation", target, keep=keep, bar=bar)
                own = comparison.support().set_index("segment").loc[comparison.own]
                rows.append((name, case.picture.name, case.label, score, own["old share"], own["new share"]))
    return pd.DataFrame(rows, columns=["method", "image", "class", "score", "old", "new"])


def plot_own_support(table: pd.DataFrame, score: str, ax: Axes) -> Axes:
    """Per method the mean over objects before (ring) and after the step (disc), in percent. table: from `own_support`."""
    means = table[table["score"] == score].groupby("method", sort=False)[["old", "new"]].mean()
    for y, (name, row) in enumerate(means.iterrows()):
        colour = method_colour(str(name))
        ax.plot([row["old"], row["new"]], [y, y], color=colour, linewidth=1.6, zorder=1)
        ax.plot(row["old"], y, "o", markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.6, markersize=7, zorder=2)
        ax.plot(row["new"], y, "o", color=colour, markersize=7, zorder=3)
    ax.axvline(0, color="black", linewidth=0.8, zorder=0)
    ax.set(yticks=range(len(means)), ylim=(len(means) - 0.5, -0.5), xlim=(-105, 105), xlabel="share of all support (%)")
    ax.set_yticklabels([method_title(str(name)) for name in means.index])
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def figure_own_support(table: pd.DataFrame) -> Figure:
    """`plot_own_support` for the score of the class and for that of the background, side by side."""
    fig = figure(8.4, 0.32 * table["method"].nunique() + 1.5)
    axes = fig.subplots(1, 2, sharey=True)
    words = {"class": "does the object speak for its class?", "background": "does the object speak for the background?"}
    for ax, (score, title) in zip(axes, words.items(), strict=True):
        plot_own_support(table, score, ax).set_title(title)
    grey: dict[str, Any] = {"linestyle": "", "markersize": 7, "color": "#555555"}
    handles = [
        Line2D([], [], marker="o", markerfacecolor="white", markeredgewidth=1.6, label="model before the step", **grey),
        Line2D([], [], marker="o", label="model after it", **grey),
    ]
    legend_below(fig, handles)
    return fig


def support_sentence(table: pd.DataFrame) -> str:
    """What `figure_own_support` shows, in numbers, one line per method."""
    n = table.groupby("method")[["image", "class"]].apply(lambda part: len(part.drop_duplicates())).max()
    lines = [f"Mean over {n} objects of old classes; support of the object itself, before -> after the step:"]
    means = table.groupby(["method", "score"], sort=False)[["old", "new"]].mean()
    for name in table["method"].unique():
        parts = [
            f"{score} {means.loc[(name, score), 'old']:+.0f} -> {means.loc[(name, score), 'new']:+.0f} %"
            for score in ("class", "background")
        ]
        lines.append(f"  {method_title(name)}: {', '.join(parts)}")
    return "\n".join(lines)


# --- consistency over steps ---


def consistency_by_step(
    groups: Mapping[str, Chain], restore: Restore, pictures: Sequence[Picture], *, least: float = 0.01, most: int = 4
) -> pd.DataFrame:
    """`relevance_consistency` of every class that was known before a step, between the models before and after it.

    One row per method (of CISS), step, class and kind of relevance: mean over at most ``most`` pictures that show the class, kept
    in the folder of the step. A Segmenter has no LRP.
    """
    rows = []
    for name, chain in groups.items():
        for run in chain.runs:
            if run.step == 0:
                continue
            pair = open_pair(run, restore)
            by_class: dict[int, list[Case]] = {}
            for case in old_cases(pair, pictures, least=least):
                by_class.setdefault(case.label, []).append(case)
            kinds = ("grad_cam",) if isinstance(pair.new.net, Segmenter) else ("grad_cam", "lrp")
            for label, found in sorted(by_class.items()):
                chosen = found[:most]
                given = [prepared(pair.ctx, c.picture) for c in chosen], [torch.from_numpy(c.mask) for c in chosen]
                for kind in kinds:
                    values = relevance_consistency(pair.old, pair.new, *given, label, method=kind, folder=run.folder).numpy()
                    mean = float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
                    rows.append((name, run.step, label, kind, mean, len(chosen)))
    return pd.DataFrame(rows, columns=["method", "step", "class", "kind", "consistency", "images"])


def plot_consistency(table: pd.DataFrame, names: Sequence[str], palette: NDArray[np.uint8], ax: Axes) -> Axes:
    """One curve per class over steps, in its colour; thick black: the mean of the old classes. table: one method and kind."""
    for label, part in table.groupby("class"):
        ax.plot(part["step"], part["consistency"], "o-", color=to_hex(palette[int(label)] / 255), markersize=4, linewidth=1.2,
                markeredgecolor="#555555", markeredgewidth=0.4, label=f"{label} {names[int(label)]}")  # fmt: skip
    mean = table.groupby("step")["consistency"].mean()
    ax.plot(mean.index, mean, "s-", color="black", markersize=5, linewidth=2.2, label="mean")
    steps = sorted(table["step"].unique())
    ax.set(ylim=(-0.03, 1.03), xticks=steps, xlim=(min(steps) - 0.3, max(steps) + 0.3), xlabel="step t")
    return ax


def figure_consistency(table: pd.DataFrame, ctx: Context) -> Figure:
    """`plot_consistency`: a column per method, a row per kind of relevance. table: from `consistency_by_step`."""
    if table.empty:
        return note("Only step 0 has been run: there are no two models to compare.")
    methods = list(table["method"].unique())
    kinds = [kind for kind in WORDS if kind in set(table["kind"])]
    fig = figure(max(4.5, 1.75 * len(methods) + 0.8), 1.75 * len(kinds) + 1.1)
    axes = fig.subplots(len(kinds), len(methods), squeeze=False, sharex=True, sharey=True)
    for row, kind in zip(axes, kinds, strict=True):
        row[0].set_ylabel(f"{WORDS[kind]}\nconsistency t - 1, t")
        for ax, name in zip(row, methods, strict=True):
            part = table[(table["method"] == name) & (table["kind"] == kind)]
            if part.empty:
                ax.text(
                    0.5,
                    0.5,
                    "no rule for\na Segmenter",
                    ha="center",
                    va="center",
                    transform=ax.transAxes,
                    color="#777777",
                    fontsize=8,
                )
            else:
                plot_consistency(part, ctx.scenario.classes, ctx.data.palette, ax)
    for ax, name in zip(axes[0], methods, strict=True):
        ax.set_title(method_title(name) + ("\n(trained anew)" if method_class(name).sees == "seen" else ""))
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    classes = sorted(table["class"].unique())
    words = "mean of the old classes" if len(classes) <= MOST else f"mean of the old classes; thin: {len(classes)} single classes"
    handles: list[Any] = class_patches(classes if len(classes) <= MOST else (), ctx.scenario.classes, ctx.data.palette)
    legend_below(fig, [*handles, Line2D([], [], color="black", marker="s", linewidth=2.2, label=words)])
    return fig


# --- to play with ---


def explore(groups: Mapping[str, Chain], restore: Restore, pictures: Sequence[Picture], *, method: str = "occlusion") -> Any:
    """Choose run, step, class, image and method of attribution: `figure_question`, first as a static picture. Returns the widget.

    Slow methods show a bar and are kept in the folder of the step. Raises `KitError` when no chain has two steps.
    """
    import ipywidgets as widgets
    from IPython.display import display

    steps = {name: [run.step for run in chain.runs if run.step > 0] for name, chain in groups.items()}
    names = [name for name in groups if steps[name]]
    if not names:
        raise KitError(
            "no method has run a second step, so there are no two models to compare. Run one: cisskit run --method ft."
        )

    @cache
    def pair_of(name: str, step: int) -> Pair:
        return open_pair(next(run for run in groups[name].runs if run.step == step), restore)

    def choices(name: str, step: int) -> list[Case]:
        return sorted(old_cases(pair_of(name, step), pictures, least=0.02), key=lambda case: case.label)

    run = widgets.Dropdown(options=[(method_title(n), n) for n in names], description="method")
    step = widgets.Dropdown(description="step")
    label = widgets.Dropdown(description="class")
    image = widgets.Dropdown(description="image")
    kind = widgets.Dropdown(options=[(words, m) for m, words in WORDS.items()], value=method, description="explained by")
    segments = widgets.Dropdown(options=SEGMENTS, description="segments")
    out = widgets.Output()
    busy = False

    def choose(control: Any, options: Mapping[str, Any]) -> None:
        before = control.value
        control.options = list(options.items())
        if options:
            control.value = before if before in options.values() else next(iter(options.values()))

    def fill() -> None:
        """Options that depend on others; what was chosen stays chosen where it can."""
        choose(step, {str(t): t for t in steps[run.value]})
        found = choices(run.value, step.value)
        names_of = segment_names(pair_of(run.value, step.value).ctx, sorted({case.label for case in found}))
        choose(label, {words: c for c, words in names_of.items()})
        shown = [case.picture.name for case in found if case.label == label.value]
        choose(image, dict(zip(shown, shown, strict=True)))

    def draw() -> Figure:
        pair = pair_of(run.value, step.value)
        found = {(c.label, c.picture.name): c for c in choices(run.value, step.value)}
        if not found:
            return note("None of the test images shows a class that was known before this step.")
        case = found[label.value, image.value]
        try:
            return figure_question(pair, case, kind.value, segments=segments.value, bar=True)
        except KitError as error:
            return note("\n".join(textwrap.wrap(str(error), 110)))

    def redraw(_: Any) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            fill()
        finally:
            busy = False
        with out:
            out.clear_output(wait=True)
            display(draw())

    fill()
    display(draw())
    for control in (run, step, label, image, kind, segments):
        control.observe(redraw, names="value")
    return widgets.VBox([widgets.HBox([run, step, label]), widgets.HBox([image, kind, segments]), out])
