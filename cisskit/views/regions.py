"""IDEC: what becomes of pixels without a label, thresholds per class, regions in the space of features. And, for its frozen mode
and LAG's, what acts: the weights that learn and the gradient that each term of the loss gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from cisskit.data import Batch, Data, Toy
from cisskit.losses import class_means, merged
from cisskit.method import Context, trainable
from cisskit.models import Output
from cisskit.pseudo import activate, class_medians, open_labels
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.train import train_loader
from cisskit.views.masks import Labels, Palette, Picture, aspect, hatch, outline, photo, show_image, show_labels, test_pictures
from cisskit.views.style import class_patches, figure, grid, legend_below, rgb, row_label
from cisskit.views.training import gradient_shares, over_parts

UNKNOWN = "#9b9b9b"
"""The unknown class, which is no class of a scenario: grey, between the dark background and the colours of classes."""

SCORE = "cividis"
"""Scores and probabilities from 0 to 1."""

KINDS = ("told", "accepted", "rejected", "unknown", "background", "void")
"""What becomes of a pixel: a label names it; the teacher does, and is believed; it does, and is not; nobody does, and something
is there; nobody does, and nothing is there; it is not used."""

TOLD, REJECTED, VOID = "black", "xxxx", "#d5d5d5"


# --- the problem ---


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """IDEC in one picture, on an embedded scene with an imagined, perfect teacher; features drawn by hand. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=60))
    step = data.scenario.step(1)
    picture = _mixed(test_pictures(data, step, 60), step)
    truth = picture.truth
    told = np.where((truth >= step.new.start) & (truth < step.new.stop) | (truth == IGNORE), truth, BACKGROUND)
    kinds = np.full(truth.shape, KINDS.index("background"), dtype=np.uint8)
    kinds[(truth > step.n_seen) & (truth != IGNORE)] = KINDS.index("unknown")
    kinds[(truth >= 1) & (truth <= step.n_old)] = KINDS.index("accepted")
    kinds[told != BACKGROUND] = KINDS.index("told")

    fig, axes = grid(1, 4, cell=1.75, aspect=aspect(picture.image), margin=1.5)
    fig.set_figwidth(8.6)
    axes[0, 3].get_gridspec().set_width_ratios([1, 1, 1, 1.55])
    show_image(picture.image, axes[0, 0]).set_title("image")
    show_labels(told, data.palette, axes[0, 1]).set_title(f"told at step {step.index}")
    show_kinds(kinds, np.where(kinds == KINDS.index("unknown"), BACKGROUND, truth), data.palette, axes[0, 2])
    axes[0, 2].set_title("targets, were the\nteacher perfect")
    ids = [c for c in np.unique(truth[(truth >= 1) & (truth <= step.n_old)]).tolist()]
    ids += [c for c in np.unique(told).tolist() if c not in (BACKGROUND, IGNORE)]
    handles = _sketch_space(axes[0, 3], [to_hex(data.palette[c] / 255) for c in (ids[0], ids[-1], BACKGROUND)])
    shown = np.unique(np.where(kinds == KINDS.index("unknown"), BACKGROUND, truth)).tolist()
    fig.legend(handles=handles, loc="outside upper right", ncols=2)
    legend_below(fig, class_patches(shown, data.scenario.classes, data.palette) + kind_patches(("told", "unknown")))
    return fig


def _mixed(pictures: Sequence[Picture], step: Step) -> Picture:
    """The picture in which the smallest of its old, new and later objects is largest."""

    def smallest(picture: Picture) -> int:
        counts = np.bincount(picture.truth.ravel(), minlength=256)
        return min(counts[1 : step.n_old + 1].sum(), counts[step.new].sum(), counts[step.n_seen + 1 : IGNORE].sum())

    return max(pictures, key=smallest)


def _sketch_space(ax: Axes, colours: Sequence[str]) -> list[Line2D]:
    """One old region (first colour) that drifts towards another one, and what pulls it back and pushes it away."""
    anchor, drifted, other, background = (0.25, 0.72), (0.6, 0.42), (0.88, 0.22), (0.14, 0.14)
    for place, colour, marker in ((other, colours[1], "s"), (background, colours[2], "s"), (drifted, colours[0], "o")):
        ax.plot(*place, marker, color=colour, markersize=13, markeredgecolor="#333333", zorder=3)
    ax.plot(*anchor, "o", color="white", markersize=13, markeredgecolor=colours[0], markeredgewidth=3, zorder=3)

    def arrow(start: tuple[float, float], end: tuple[float, float], style: str, colour: str, bend: float) -> None:
        arrow = {"arrowstyle": "-|>", "linestyle": style, "color": colour, "linewidth": 1.6, "shrinkA": 9, "shrinkB": 9}
        ax.annotate("", end, start, arrowprops={**arrow, "connectionstyle": f"arc3,rad={bend}"})

    arrow(anchor, drifted, "--", "#777777", -0.35)
    arrow(drifted, anchor, "-", "#0072b2", -0.35)
    arrow(drifted, (0.62, 0.86), "-", "#d55e00", 0.0)
    words = {"drift": (0.49, 0.76, "#777777"), "inherit": (0.2, 0.42, "#0072b2"), "evolve": (0.66, 0.72, "#d55e00")}
    for text, (x, y, colour) in words.items():
        ax.text(x, y, text, color=colour, fontsize=9, ha="left")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_title("features of regions (sketch)")
    for spine in ax.spines.values():
        spine.set_visible(True)
    grey: dict[str, Any] = {"color": "#777777", "linestyle": "", "markersize": 8}
    return [
        Line2D([], [], marker="o", markerfacecolor="white", markeredgewidth=2, label="a region in the old model", **grey),
        Line2D([], [], marker="o", label="the same region in the new model", **grey),
        Line2D([], [], marker="s", label="other regions in the new model", **grey),
    ]


# --- what acts ---


def mode_sentence(ctx: Context) -> str:
    """One sentence: which mode the numbers of this run come from, which weights learn, and which terms do not touch them."""
    method: Any = ctx.method
    total = sum(p.numel() for p in ctx.model.parameters())
    learning = sum(p.numel() for p in trainable(ctx.model))
    start = f'These numbers come from {method.title} with mode = "{method.mode}", step {ctx.step.index}: '
    if ctx.step.index == 0:
        return f"{start}both modes are the same here, all {total:,} weights may learn, and the only term is seg."
    weights = f"{learning:,} of {total:,} weights learn ({_learning(ctx)})"
    if not method.inert:
        return f"{start}{weights}, and every term of the loss acts on them."
    return (
        f"{start}{weights}, taught by seg on pseudo-labels alone; logged without effect where they are on: "
        f"{', '.join(sorted(method.inert))}."
    )


def _learning(ctx: Context) -> str:
    """Names of the parts that learn."""
    model, scenario = ctx.model, ctx.scenario
    parts = [name for name in ("backbone", "decoder") if trainable(getattr(model, name))]
    heads = [i for i, head in enumerate(model.heads) if trainable(head)]
    if len(heads) == len(model.heads):
        return ", ".join([*parts, "all heads"])
    steps = {2 + step.index: f"classes {step.new.start}-{step.new.stop - 1}" for step in scenario.steps}
    steps[2] = f"classes 1-{scenario.steps[0].new.stop - 1}"
    names = {0: "unknown", 1: "background, 10,000 times slower", **steps}
    return ", ".join([*parts, *(f"head {i}: {names[i]}" for i in heads)])


def gradient_table(ctx: Context, batch: Batch) -> pd.DataFrame:
    """For each term of the loss on this batch: value, L2 norm of its gradient to the weights that learn, its share of the sum of
    these norms in percent, and how many of the weight tensors it reaches.

    A term that reads frozen features only is told apart from a small one: it reaches none. The network is left in evaluation mode
    and is not changed, nor is what its method keeps beside it.
    """
    found = over_parts(gradient_shares(ctx, batch))
    return pd.DataFrame({
        "term": found["term"], "value": found["value"].round(4),
        "gradient norm": [float(f"{n:.3g}") for n in found["norm"]],
        "share of the gradient %": (100 * found["share"]).round(1),
        "weight tensors reached": [f"{a} of {b}" for a, b in zip(found["reached"], found["weights"], strict=True)],
    })  # fmt: skip


# --- what becomes of pixels ---


def winner(teacher: Output) -> tuple[Tensor, Tensor]:
    """Winning sigmoid score (B, H, W) of a model with an unknown class, and its learned id; 0 for background and unknown."""
    score, channel = activate(teacher.open_logits, "sigmoid").max(dim=1)
    return score, (channel - 1).clamp(min=BACKGROUND)


def kinds_of(label: Tensor, targets: Tensor, salient: Tensor | None, won: Tensor | None) -> NDArray[np.uint8]:
    """What becomes of each pixel: (B, H, W), positions in `KINDS`.

    label: (B, H, W) of the step; targets: what the method makes of it, learned ids. salient: anything but 0 where some object is;
    None: everywhere. won: the teacher's winning id; None: there is no teacher. Rejected pixels are trained as unknown or
    background, like those that the teacher calls so.
    """
    label, targets = label.cpu(), targets.cpu()
    untold = label == BACKGROUND
    object_ = torch.ones_like(untold) if salient is None else salient.cpu() != 0
    old = torch.zeros_like(untold) if won is None else won.cpu() != BACKGROUND
    kinds = torch.where(object_, KINDS.index("unknown"), KINDS.index("background"))
    kinds = kinds.masked_fill(old, KINDS.index("rejected"))
    kinds = kinds.masked_fill(untold & (targets != BACKGROUND), KINDS.index("accepted"))
    kinds = kinds.masked_fill(~untold, KINDS.index("told"))
    return kinds.masked_fill(label == IGNORE, KINDS.index("void")).numpy().astype(np.uint8)


def show_kinds(kinds: Labels, labels: Labels, palette: Palette, ax: Axes) -> Axes:
    """Kinds of pixels on (H, W): told (outlined) and accepted ones in the colour of ``labels``, rejected ones white and hatched,
    unknown grey, void light grey."""
    colours = palette[np.asarray(labels)].astype(np.float64)
    rejected = kinds == KINDS.index("rejected")
    colours[rejected] = 255
    colours[kinds == KINDS.index("unknown")] = rgb(UNKNOWN)
    colours[kinds == KINDS.index("void")] = rgb(VOID)
    colours[kinds == KINDS.index("background")] = palette[BACKGROUND]
    ax.imshow(colours.astype(np.uint8), interpolation="nearest")
    hatch(rejected, ax, REJECTED, "#333333")
    outline(kinds == KINDS.index("told"), ax, TOLD)
    return ax


def kind_patches(kinds: Sequence[str]) -> list[Any]:
    """Legend entries for kinds of pixels that are not simply a class."""
    entries = {
        "told": Line2D([], [], color=TOLD, linewidth=1.3, label="outlined: told"),
        "rejected": Patch(facecolor="white", edgecolor="#333333", hatch=REJECTED, linewidth=0.5, label="rejected"),
        "unknown": Patch(facecolor=UNKNOWN, edgecolor="#555555", linewidth=0.5, label="unknown"),
        "void": Patch(facecolor=VOID, edgecolor="#555555", linewidth=0.5, label="void"),
    }
    return [entries[kind] for kind in KINDS if kind in kinds and kind in entries]


def _looked_at(batch: Batch, targets: Tensor, teacher: Output | None) -> tuple[NDArray[np.uint8], Tensor | None]:
    """Kinds and the winning score, None without a teacher."""
    score, won = winner(teacher) if teacher is not None else (None, None)
    return kinds_of(batch.label, targets, batch.extra.get("saliency"), won), score


def figure_regions(batch: Batch, targets: Tensor, teacher: Output | None, ctx: Context) -> Figure:
    """Images, the teacher's winning score, what becomes of each pixel, and what is really there.

    targets: (B, H, W) from ``ctx.method.targets``; the batch brings ``extra["truth"]``. Without a teacher the row of scores is
    missing and nothing can be accepted or rejected.
    """
    kinds, score = _looked_at(batch, targets, teacher)
    palette, truth, made = ctx.data.palette, batch.extra["truth"].cpu().numpy(), targets.cpu().numpy()
    images = [photo(image, ctx.data.source) for image in batch.image]
    rows = [
        "image",
        *(["winning score\nof the teacher"] if score is not None else []),
        "what becomes\nof each pixel",
        "really there",
    ]
    fig, axes = grid(len(rows), len(images), cell=1.5, aspect=aspect(images[0]), margin=1.0, legend=1.6)
    shown: Any = None
    for i, column in enumerate(axes.T):
        show_image(images[i], column[0])
        if score is not None:
            shown = column[1].imshow(score[i].cpu().numpy(), cmap=SCORE, vmin=0, vmax=1, interpolation="nearest")
        show_kinds(kinds[i], made[i], palette, column[-2])
        show_labels(truth[i], palette, column[-1])
    for ax, text in zip(axes[:, 0], rows, strict=True):
        row_label(ax, text)
    if shown is not None:
        fig.colorbar(shown, ax=list(axes[1]), label="σ (0 to 1)", shrink=0.9, pad=0.02)
    seen = {*np.unique(truth).tolist(), *np.unique(made).tolist()} - {IGNORE}
    present = [kind for number, kind in enumerate(KINDS) if (kinds == number).any()]
    legend_below(fig, class_patches(seen, ctx.scenario.classes, palette) + kind_patches(present))
    return fig


def region_table(batch: Batch, targets: Tensor, teacher: Output | None, ctx: Context) -> pd.DataFrame:
    """What becomes of the pixels of a batch and what is really there, in percent. The method cannot know the last five columns.

    Of the pixels of a kind: how many show an old class, one of this step, one to come, nothing; and how often the class in the
    target is the true one.
    """
    kinds, _ = _looked_at(batch, targets, teacher)
    truth, made, step = batch.extra["truth"].cpu().numpy(), targets.cpu().numpy(), ctx.step
    really = {
        "really old %": (truth >= 1) & (truth <= step.n_old),
        "really of this step %": (truth > step.n_old) & (truth <= step.n_seen),
        "really to come %": (truth > step.n_seen) & (truth != IGNORE),
        "really background %": truth == BACKGROUND,
    }
    rows = []
    for number, kind in enumerate(KINDS):
        where = kinds == number
        if where.any():
            parts = {name: round(100 * float(there[where].mean()), 1) for name, there in really.items()}
            right = f"{100 * float((made == truth)[where].mean()):.1f}" if kind in ("told", "accepted") else "–"
            rows.append({"pixels": kind, "% of all": round(100 * float(where.mean()), 1), **parts, "class is right %": right})
    return pd.DataFrame(rows)


# --- thresholds ---


class Winning(NamedTuple):
    """Pixels that no label names and the teacher gives to an old class: class and winning score of each (N,), whether it is that
    class, and the median score per old class (n_old,), NaN where it wins none."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    medians: NDArray[np.float64]


def winning(ctx: Context, batches: int = 8) -> Winning | None:
    """Where the teacher sees old classes in the first training batches of this step; None without a teacher."""
    if ctx.old_model is None:
        return None
    parts, medians = [], []
    loader = train_loader(ctx, truth=True)
    for k, batch in enumerate(loader.epoch(0, ctx.device)):
        if k == batches:
            break
        with torch.no_grad():
            teacher = ctx.old_model(batch.image)
        score, won = winner(teacher)
        where = (batch.label == BACKGROUND) & (won != BACKGROUND)
        parts.append(torch.stack([won[where].double(), score[where].double(), (won == batch.extra["truth"])[where].double()]))
        medians.append(class_medians(open_labels(batch.label), teacher.open_logits)[2:].double())
    loader.close()
    ids, scores, right = torch.cat(parts, dim=1).cpu().numpy()
    return Winning(ids.astype(np.int64), scores, right > 0, torch.stack(medians).nanmean(dim=0).cpu().numpy())


def plot_scores(scores: NDArray[np.floating[Any]], right: NDArray[np.bool_], ax: Axes, *, colour: str, bins: int = 25) -> Axes:
    """Histogram of winning scores in percent of all, logarithmic: right ones in ``colour``, wrong ones hatched over it."""
    edges, share = np.linspace(0, 1, bins + 1), 100 / max(len(scores), 1)
    wrong: dict[str, Any] = {"facecolor": "none", "hatch": "//////"}
    for chosen, look in ((right, {"facecolor": colour}), (~right, wrong)):
        height = np.histogram(scores[chosen], edges)[0] * share
        ax.bar(edges[:-1], height, width=np.diff(edges), align="edge", edgecolor="#444444", linewidth=0.4, **look)
    ax.set(yscale="log", ylim=(0.008, 130), yticks=[0.01, 0.1, 1, 10, 100])
    ax.set_yticklabels(["0.01", "0.1", "1", "10", "100"])
    ax.minorticks_off()
    return ax


FIXED: dict[str, Any] = {"color": "#000000", "linestyle": "-"}
DYNAMIC: dict[str, Any] = {"color": "#d55e00", "linestyle": "--"}
"""Lines of the two thresholds."""


def figure_thresholds(found: Winning, ctx: Context, *, most: int = 10) -> Figure:
    """The teacher's winning scores, one panel per old class, with the fixed threshold and the one that follows the class.

    The class-dynamic one is the median score between `least_threshold` and `threshold`: where the running median of
    ``pseudo = "class_dynamic"`` goes. most: panels at most, those of the classes with most pixels.
    """
    method: Any = ctx.method
    dynamic = np.clip(found.medians, method.least_threshold, method.threshold)
    counts = np.bincount(found.ids, minlength=1 + len(dynamic))[1:]
    chosen = np.sort(np.argsort(-counts, kind="stable")[:most])
    chosen = chosen[counts[chosen] > 0]
    columns = min(5, max(1, len(chosen)))
    lines = -(-len(chosen) // columns) if len(chosen) else 1
    fig = figure(max(4.0, 1.95 * columns + 0.4), 1.85 * lines + 0.75)
    axes = fig.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(chosen) :]:
        ax.set_visible(False)
    for ax, at in zip(axes.flat, chosen, strict=False):
        mine = found.ids == at + 1
        plot_scores(found.scores[mine], found.right[mine], ax, colour=to_hex(ctx.data.palette[at + 1] / 255))
        for value, line in ((method.threshold, FIXED), (dynamic[at], DYNAMIC)):
            ax.axvline(value, linewidth=1.6, **line)
        ax.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        ax.set_title(f"{at + 1} {ctx.scenario.classes[at + 1]}\n{counts[at]:,} pixels", fontsize=8)
    for at, ax in enumerate(axes.flat[: len(chosen)]):
        if at + columns >= len(chosen):
            ax.set_xlabel("winning score σ")
            ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("pixels (%)")
    lowered = int((dynamic[chosen] < method.threshold).sum())
    handles = [
        Patch(facecolor="#bbbbbb", edgecolor="#555555", linewidth=0.5, label="right, in its colour"),
        Patch(facecolor="white", edgecolor="#555555", hatch="//////", linewidth=0.5, label="wrong"),
        Line2D([], [], **FIXED, label=f"fixed τ = {method.threshold:g}"),
        Line2D([], [], **DYNAMIC, label=f"class-dynamic (lower for {lowered} of {len(chosen)})"),
    ]
    legend_below(fig, handles)
    return fig


# --- regions as features ---


@dataclass(frozen=True)
class RegionFeatures:
    """L2-normalised mean features of regions, on the CPU, as the kit's region contrast compares them.

    anchors, positives: (N, D), an old class in an image in the old model and in the new one; ids, images: (N,). others: (M, D)
    all regions in the new model, with other_ids and other_images; `nearest` (N,): the row of ``others`` that is the negative of
    each anchor, -1 where its image has no other region.
    """

    anchors: NDArray[np.float64]
    positives: NDArray[np.float64]
    ids: NDArray[np.int64]
    images: NDArray[np.int64]
    others: NDArray[np.float64]
    other_ids: NDArray[np.int64]
    other_images: NDArray[np.int64]
    nearest: NDArray[np.int64]

    @property
    def distances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distance of each anchor from its positive and from its negative (NaN without one), 0 to 2."""
        gap = np.full(len(self.ids), np.nan)
        has = self.nearest >= 0
        gap[has] = np.linalg.norm(self.anchors[has] - self.others[self.nearest[has]], axis=1)
        return np.linalg.norm(self.anchors - self.positives, axis=1), gap


def region_features(student: Output, teacher: Output, batch: Batch, step: Step, *, min_cells: int = 16) -> RegionFeatures:
    """Regions of a batch as `cisskit.losses.region_contrast` reads them: the old model draws the regions of background and old
    classes, the labels those of this step; an old class counts in an image if it has ``min_cells`` cells of the feature map."""
    new, old = (output.features["decoder"].detach().float().cpu() for output in (student, teacher))
    size = new.shape[2:]
    drawn = F.interpolate(merged(teacher.open_logits.detach()).cpu(), size=size, mode="bilinear", align_corners=False).argmax(
        dim=1
    )
    told = F.interpolate(batch.label.unsqueeze(1).float().cpu(), size=size, mode="nearest").squeeze(1).long()
    now = torch.where((told > step.n_old) & (told != IGNORE), told, drawn)
    n = 1 + step.n_seen
    anchor, cells = _means(old, drawn, n)
    positive, _ = _means(new, drawn, n)
    other, there = _means(new, now, n)
    image, c = ((cells >= min_cells) & (torch.arange(n) >= 1) & (torch.arange(n) <= step.n_old)).nonzero().T
    other_image, other_c = (there > 0).nonzero().T
    a, p, o = anchor[image, c], positive[image, c], other[other_image, other_c]
    allowed = (image[:, None] == other_image) & (c[:, None] != other_c)
    alike = (a @ o.T).masked_fill(~allowed, -torch.inf)
    nearest = torch.where(allowed.any(dim=1), alike.argmax(dim=1), -1) if len(o) else torch.full((len(a),), -1)
    return RegionFeatures(*(x.numpy() for x in (a, p, c, image, o, other_c, other_image, nearest)))


def _means(features: Tensor, regions: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Per image: normalised mean features (B, n, D) of the regions 0..n-1, and their cells (B, n)."""
    image = torch.arange(len(features)).view(-1, 1, 1)
    means, cells = class_means(features.double(), regions + n * image, n * len(features))
    return F.normalize(means, dim=1).view(len(features), n, -1), cells.view(len(features), n)


def region_distances(found: RegionFeatures, names: Sequence[str], *, margin: float = 1.0) -> pd.DataFrame:
    """One row per pair (image, old class): distances of its anchor from the positive and from the nearest negative, and the
    triplet max(near - far + margin, 0), whose mean is the term. names: of the classes."""
    near, far = found.distances
    rows = [
        {
            "image": int(image), "old class": f"{c} {names[c]}", "moved by": round(float(near[i]), 3),
            "nearest other": f"{found.other_ids[k]} {names[found.other_ids[k]]}", "away from it": round(float(far[i]), 3),
            "triplet": round(max(float(near[i] - far[i]) + margin, 0.0), 3),
        }
        for i, (image, c, k) in enumerate(zip(found.images, found.ids, found.nearest, strict=True)) if k >= 0
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["image", "old class", "moved by", "nearest other", "away from it", "triplet"])


def components(rows: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Principal components by SVD: centre (D,), the first two directions (2, D), their shares of the variance (2,), 0..1."""
    centre = rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(rows - centre, full_matrices=False)
    first = np.zeros((2, rows.shape[1]))
    first[: len(directions[:2])] = directions[:2]
    shares = np.zeros(2)
    shares[: len(sizes[:2])] = sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-12)
    return centre, first, shares


def plot_space(found: RegionFeatures, place: Any, palette: Palette, ax: Axes) -> Axes:
    """Regions as points in class colours: rings are anchors in the old model, discs the same regions in the new one, squares
    the other regions of the new one; an arrow leads from a ring to a disc that has moved.

    place: (N, D) -> (N, 2).
    """
    a, p, o = (place(rows) for rows in (found.anchors, found.positives, found.others))
    pairs = set(zip(found.images.tolist(), found.ids.tolist(), strict=True))
    for k, (image, c) in enumerate(zip(found.other_images.tolist(), found.other_ids.tolist(), strict=True)):
        if (image, c) not in pairs:
            ax.plot(
                *o[k], "s", color=to_hex(palette[c] / 255), markersize=5, markeredgecolor="#555555", markeredgewidth=0.5, zorder=2
            )
    for i, c in enumerate(found.ids):
        colour = to_hex(palette[c] / 255)
        arrow = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        if np.linalg.norm(a[i] - p[i]) > 1e-6:
            ax.annotate("", p[i], a[i], arrowprops=arrow, zorder=3)
        ax.plot(*p[i], "o", color=colour, markersize=6, markeredgecolor="#333333", markeredgewidth=0.5, zorder=4)
        ax.plot(*a[i], "o", color="none", markersize=10, markeredgecolor="#333333", markeredgewidth=2.6, zorder=5)
        ax.plot(*a[i], "o", color="none", markersize=10, markeredgecolor=colour, markeredgewidth=1.6, zorder=6)
    return ax


def figure_space(stages: Mapping[str, RegionFeatures], ctx: Context) -> Figure:
    """`plot_space` side by side, one panel per stage, e.g. ``{"before training": .., "after training": ..}``, all in the plane
    that shows most of the variance of all regions together."""
    everything = np.concatenate([rows for s in stages.values() for rows in (s.anchors, s.positives, s.others)])
    centre, directions, shares = components(everything)
    flat = (everything - centre) @ directions.T
    middle, reach = (flat.max(axis=0) + flat.min(axis=0)) / 2, 0.57 * max(float(np.ptp(flat, axis=0).max()), 1e-3)
    fig = figure(0.7 + 3.6 * len(stages), 5.6)
    axes = fig.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    for ax, (words, found) in zip(axes, stages.items(), strict=True):
        plot_space(found, lambda rows: (rows - centre) @ directions.T, ctx.data.palette, ax)
        near, far = found.distances
        moved = f"to the disc {near.mean():.3f}, to the nearest other {np.nanmean(far):.3f}" if len(near) else ""
        ax.set_title(f"{words}\n{moved}")
        ax.set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)")
        ax.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")
    axes[0].set_ylabel(f"second component ({100 * shares[1]:.0f} %)")
    grey: dict[str, Any] = {"color": "#777777", "linestyle": "", "markersize": 8}
    handles = [
        Line2D(
            [], [], marker="o", markerfacecolor="none", markeredgewidth=2, label="anchor: a class in one image, old model", **grey
        ),
        Line2D([], [], marker="o", label="positive: the same cells, new model", **grey),
        Line2D([], [], marker="s", label="other regions, new model", **grey),
    ]
    shown = {int(c) for found in stages.values() for c in (*found.ids, *found.other_ids)}
    legend_below(fig, [*handles, *class_patches(shown, ctx.scenario.classes, ctx.data.palette)], columns=3)
    return fig
