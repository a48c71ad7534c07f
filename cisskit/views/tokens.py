"""MBS and AMIS: what a teacher misses, where it is trusted, where class tokens point, what is pooled, what all tokens read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.path import Path
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from cisskit.data import Batch, Data, Toy
from cisskit.errors import KitError
from cisskit.losses import pooled_statistics
from cisskit.method import Context
from cisskit.models import Model, Output
from cisskit.models.segmenter import Segmenter
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.views.masks import (
    Labels,
    Palette,
    aspect,
    hatch,
    outline,
    photo,
    show_image,
    show_labels,
    show_on_photo,
    test_pictures,
)  # fmt: skip
from cisskit.views.style import (
    ERRORS,
    class_patches,
    figure,
    grid,
    legend_below,
    note,
    row_label,
)

MISSES = {
    "caught": ("#2c7bb6", "ignored: an old object"),
    "later": ("#7b3294", "ignored: a class to come"),
    "needless": ("#fdae61", "ignored: background"),
    "kept": (ERRORS["forgotten"][0], "old object, trained as background"),
}
"""What ignoring does to a pixel -> colour, words. Drawn on a pale photograph, like `style.ERRORS`."""

TRUST = "cividis"
READS = "viridis"
TURN: Colormap = LinearSegmentedColormap.from_list("turn", ["#b35806", "#f7f7f7", "#542788"])
"""Angles: orange the same direction, white at right angles, violet opposite."""

GLOBAL = "#ee7733"
ROUNDING = 1e-6
ANGLE_TICKS = (0, 45, 90, 135, 180)


# --- MBS: the two causes ---


def figure_two_shifts(scenario: str = "toy-5-2") -> Figure:
    """MBS's problem in one picture, on an embedded scene with an imagined teacher that misses one old object. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=40))
    step = data.scenario.step(1)
    missed, picture = _largest_old(test_pictures(data, step, 40), step)
    truth = picture.truth
    told = np.where((truth >= step.new.start) & (truth < step.new.stop), truth, BACKGROUND)
    found = np.where((truth >= 1) & (truth <= step.n_old) & (truth != missed), truth, told)
    fig, axes = grid(1, 5, cell=1.65, aspect=aspect(picture.image), margin=1.3)
    show_image(picture.image, axes[0, 0]).set_title("image")
    for ax, labels, title in zip(
        axes[0, 1:4], (truth, told, found), ("really there", "told at step 1", "told, and found\nby a teacher"), strict=True
    ):
        show_labels(labels, data.palette, ax).set_title(title)
    causes: tuple[tuple[Any, str, Any, str], ...] = (
        (truth == missed, "#d7191c", "--", "cause 1: an old object that the teacher misses is trained as background"),
        (
            told > 0,
            "#56b4e9",
            "-",
            "cause 2: the teacher calls new classes background, and their tokens are born as copies of it",
        ),
    )
    for where, colour, style, _ in causes:
        outline(where, axes[0, 3], colour, style)
    _sketch_birth(axes[0, 4], data.palette, step)
    handles = [Line2D([], [], color=colour, linestyle=style, linewidth=1.8, label=text) for _, colour, style, text in causes]
    shown = np.unique(np.concatenate([truth.ravel(), told.ravel()])).tolist()
    fig.legend(handles=handles, loc="outside upper left", ncols=1)
    legend_below(fig, class_patches(shown, data.scenario.classes, data.palette))
    return fig


def _largest_old(pictures: Sequence[Any], step: Step) -> tuple[int, Any]:
    """Of the pictures with several old classes and one of this step: the old class with the most pixels, and its picture."""
    best = (-1, 0, pictures[0])
    for picture in pictures:
        counts = np.bincount(picture.truth.ravel(), minlength=256)
        old, new = counts[1 : step.n_old + 1], counts[step.new]
        if (old > 0).sum() > 1 and new.any() and not counts[step.n_seen + 1 : IGNORE].any():
            best = max(best, (int(min(old.max(), new.max())), 1 + int(old.argmax()), picture), key=lambda item: item[0])
    return best[1], best[2]


def _sketch_birth(ax: Axes, palette: Palette, step: Step) -> None:
    """Arrows for class tokens: old ones here and there, a new one exactly on the background's."""
    turns = {BACKGROUND: 90, 1: 20, 2: 160, 3: 215, 4: 320}
    for c, degrees in turns.items():
        _arrow(ax, degrees, 1.0, to_hex(palette[c] / 255), 2.6)
    _arrow(ax, turns[BACKGROUND], 0.66, to_hex(palette[step.new.start] / 255), 1.5)
    ax.text(0.1, 0.98, "0°", fontsize=9, va="center")
    ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", title="class tokens\nat birth (sketch)")


def _arrow(ax: Axes, degrees: float, length: float, colour: str, width: float) -> None:
    x, y = length * np.cos(np.radians(degrees)), length * np.sin(np.radians(degrees))
    ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0})


# --- MBS: what the teacher misses ---


def ignoring(plain: Labels, selective: Labels, truth: Labels, step: Step) -> NDArray[np.uint8]:
    """What ignoring does, per pixel: 0 nothing, else 1 + position in `MISSES`.

    plain: pseudo-labels without ignoring, selective: with it; truth: learned ids of all classes, 255 void. All one shape.
    "kept" are old objects that neither the teacher nor the rule found.
    """
    plain, selective, truth = np.asarray(plain), np.asarray(selective), np.asarray(truth)
    ignored = (selective == IGNORE) & (plain != IGNORE)
    old, later = (truth >= 1) & (truth <= step.n_old), (truth > step.n_seen) & (truth != IGNORE)
    kinds = {
        "caught": ignored & old,
        "later": ignored & later,
        "needless": ignored & ~old & ~later,
        "kept": old & (selective == BACKGROUND),
    }
    numbers = np.zeros(truth.shape, dtype=np.uint8)
    for number, kind in enumerate(MISSES, start=1):
        numbers[kinds[kind]] = number
    return numbers


def ignoring_scores(kinds: Labels) -> dict[str, float]:
    """Shares of pixels, from `ignoring`, NaN where they are of nothing.

    "precision": of the ignored pixels, those that are old objects. "recall": of the old objects that would be trained as
    background, those ignored.
    """
    caught, later, needless, kept = (float((np.asarray(kinds) == 1 + k).sum()) for k in range(len(MISSES)))

    def share(of: float) -> float:
        return caught / of if of else float("nan")

    return {"precision": share(caught + later + needless), "recall": share(caught + kept)}


def figure_misses(batch: Batch, plain: Tensor, selective: Tensor, ctx: Context) -> Figure:
    """Images, what is there, pseudo-labels without and with ignoring (hatched), and what the ignored pixels really are.

    plain, selective: (B, H, W) targets; the batch brings ``extra["truth"]``.
    """
    images = [photo(image, ctx.data.source) for image in batch.image]
    truth, without, kept = (t.cpu().numpy() for t in (batch.extra["truth"], plain, selective))
    rows = ("image", "really there", "sure ones are\nlabelled: ỹ", "doubtful ones\nignored: y⁻", "what the\nignored are")
    fig, axes = grid(len(rows), len(images), cell=1.55, aspect=aspect(images[0]), margin=1.2)
    kinds = ignoring(without, kept, truth, ctx.step)
    for i, column in enumerate(axes.T):
        show_image(images[i], column[0])
        show_labels(truth[i], ctx.data.palette, column[1])
        show_labels(without[i], ctx.data.palette, column[2])
        _show_ignored(kept[i], ctx.data.palette, column[3])
        show_on_photo(kinds[i], [colour for colour, _ in MISSES.values()], images[i], column[4])
    for ax, text in zip(axes[:, 0], rows, strict=True):
        row_label(ax, text)
    shown = {c for labels in (truth, without) for c in np.unique(labels).tolist()}
    counted = [(kinds == number).sum() for number in range(1, 1 + len(MISSES))]
    misses = [Patch(facecolor=colour, label=words) for (colour, words), n in zip(MISSES.values(), counted, strict=True) if n]
    ignored = Patch(facecolor="white", edgecolor="#777777", hatch="////", linewidth=0.5, label="ignored")
    legend_below(fig, [*class_patches(shown, ctx.scenario.classes, ctx.data.palette), ignored, *misses])
    return fig


def _show_ignored(labels: Labels, palette: Palette, ax: Axes) -> None:
    show_labels(labels, palette, ax)
    hatch(labels == IGNORE, ax, "////", "#777777")


# --- MBS: trust ---


def figure_reliability(batch: Batch, targets: Tensor, r: Tensor, ctx: Context) -> Figure:
    """Images, the targets, and how far the teacher is trusted at each patch, with the outlines of hidden old objects.

    targets: (B, H, W). r: (B, h, w) in [0, 1], see `cisskit.losses.reliability`.
    """
    images = [photo(image, ctx.data.source) for image in batch.image]
    labels, trust, truth = (t.cpu().numpy() for t in (targets, r.float(), batch.extra["truth"]))
    fig, axes = grid(3, len(images), cell=1.55, aspect=aspect(images[0]), margin=0.9)
    height, width = labels.shape[1:]
    shown: Any = None
    for i, column in enumerate(axes.T):
        show_image(images[i], column[0])
        _show_ignored(labels[i], ctx.data.palette, column[1])
        shown = column[2].imshow(
            trust[i], cmap=TRUST, vmin=0, vmax=1, interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5)
        )
        outline((truth[i] >= 1) & (truth[i] <= ctx.step.n_old), column[2], "#d7191c")
    for ax, text in zip(
        axes[:, 0], ("image", "targets y⁻", f"trust r\n{trust.shape[1]} x {trust.shape[2]}\npatches"), strict=True
    ):
        row_label(ax, text)
    fig.colorbar(shown, ax=axes, label="trust r (0 to 1)", shrink=0.3, anchor=(0.0, 0.03), pad=0.02)
    old = Line2D([], [], color="#d7191c", linewidth=1.8, label="outline: a hidden old object")
    ignored = Patch(facecolor="white", edgecolor="#777777", hatch="////", linewidth=0.5, label="ignored")
    seen = set(np.unique(labels).tolist()) - {IGNORE}
    legend_below(fig, [*class_patches(seen, ctx.scenario.classes, ctx.data.palette), ignored, old])
    return fig


# --- MBS: directions of class tokens ---


def angles(rows: Tensor) -> NDArray[np.float64]:
    """(C, C) degrees between the rows of (C, D), 0 to 180; 90 for a row of zeros."""
    unit = torch.nn.functional.normalize(rows.detach().double().cpu(), dim=1)
    return (unit @ unit.T).clamp(-1, 1).arccos().rad2deg().numpy()


def plot_angles(rows: Tensor, names: Sequence[str], ax: Axes, *, n_old: int = 0, bar: bool = True) -> Axes:
    """Heat map of the angles (degrees) between class tokens, or between classifier rows: white where they are at right angles.

    rows: (C, D). names: of these classes, and of further ones, which stay empty. n_old: a line is drawn after the old ones, if
    there are any and others follow.
    """
    count = len(names)
    table = np.full((count, count), np.nan)
    table[: len(rows), : len(rows)] = angles(rows)
    sns.heatmap(
        table, vmin=0, vmax=180, cmap=TURN, annot=count <= 12, fmt=".0f", annot_kws={"size": 7}, linewidths=0.5, ax=ax,
        square=True, cbar=bar, cbar_kws={"label": "angle (degrees)", "ticks": ANGLE_TICKS} if bar else None,
        xticklabels=list(names), yticklabels=list(names),
    )  # fmt: skip
    if 0 < n_old < count - 1:
        ax.axhline(1 + n_old, color="black", linewidth=1.2)
        ax.axvline(1 + n_old, color="black", linewidth=1.2)
    ax.set_facecolor("#eeeeee")  # not born yet
    ax.tick_params(axis="x", rotation=90, length=0)
    ax.tick_params(axis="y", rotation=0, length=0)
    return ax


def figure_angles(stages: Mapping[str, Tensor], ctx: Context) -> Figure:
    """`plot_angles` side by side, one for each stage, e.g. ``{"teacher": .., "student at birth": .., "after fit": ..}``.

    stages: words -> (C, D) class tokens or classifier rows. A line separates the new classes from the others.
    """
    names = [f"{c} {ctx.scenario.classes[c]}" for c in range(max(len(rows) for rows in stages.values()))]
    longest, side = 0.09 * max(map(len, names)), (0.3 if len(names) <= 12 else 0.17) * len(names)
    fig = figure(longest + 0.8 + len(stages) * (0.15 + side), longest + 0.55 + side)
    axes = fig.subplots(1, len(stages), squeeze=False)[0]
    for k, (ax, (words, rows)) in enumerate(zip(axes, stages.items(), strict=True)):
        plot_angles(rows, names, ax, n_old=ctx.step.n_old, bar=False)
        ax.set_title(words)
        if k:
            ax.set_yticks([])
    fig.colorbar(axes[-1].collections[0], ax=list(axes), label="angle (degrees)", ticks=ANGLE_TICKS, shrink=0.6, pad=0.02)
    return fig


# --- MBS: what is distilled at a new class ---


def new_pixel(batch: Batch, teacher: Output, step: Step) -> tuple[int, int, int] | None:
    """(image, row, column) of the pixel labelled with a new class at which the teacher hesitates most: its probability of
    background is nearest to 1/2. None when no pixel of the batch is labelled so."""
    labels = batch.label.cpu()
    where = ((labels >= step.new.start) & (labels < step.new.stop)).nonzero()
    if not len(where):
        return None
    background = teacher.logits.detach().float().softmax(dim=1)[:, 0].cpu()[where[:, 0], where[:, 1], where[:, 2]]
    image, row, column = where[(background - 0.5).abs().argmin()].tolist()
    return image, row, column


def guided(q: NDArray[np.floating[Any]], label: int, n_all: int) -> NDArray[np.float64]:
    """MBS's target at one pixel: the teacher's (O,) probabilities over n_all channels, its background moved to a new label."""
    target = np.zeros(n_all)
    target[: len(q)] = q
    if len(q) <= label < n_all:
        target[[label, BACKGROUND]] = target[[BACKGROUND, label]]
    return target


def plot_guidance(
    q: NDArray[np.floating[Any]], p: NDArray[np.floating[Any]], label: int, names: Sequence[str], palette: Palette, ax: Axes
) -> Axes:
    """One pixel: the teacher's probabilities (open bars), what the student is asked for (filled), what it says now (diamonds).

    q: (O,), p: (C,) probabilities; label: the pixel's, a new class; names: of the C classes.
    """
    target, x = guided(q, label, len(p)), np.arange(len(p))
    colours = [to_hex(palette[c] / 255) for c in x]
    ax.bar(x[: len(q)] - 0.2, q, width=0.36, color="white", edgecolor="#555555", hatch="////", linewidth=0.8)
    ax.bar(x + 0.2, target, width=0.36, color=colours, edgecolor="#555555", linewidth=0.8)
    ax.plot(x, p, "D", color="black", markerfacecolor="white", markersize=5, zorder=4)
    start, end = np.array([-0.2, q[BACKGROUND] + 0.03]), np.array([label + 0.2, target[label] + 0.03])
    control = np.array([(start[0] + end[0]) / 2, 2 * 1.12 - (start[1] + end[1]) / 2])  # the top of the arc is at 1.12
    way = Path(np.array([start, control, end]), [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    ax.add_patch(FancyArrowPatch(path=way, arrowstyle="-|>", mutation_scale=10, color="black", linewidth=1.2, fill=False))
    ax.text(control[0], 1.15, "the label takes it", ha="center", va="bottom", fontsize=8)
    ax.set(xticks=x, ylim=(0, 1.35), xlim=(-0.7, len(p) - 0.3), ylabel="probability at the pixel", yticks=[0, 0.25, 0.5, 0.75, 1])
    ax.set_xticklabels([f"{c} {names[c]}" for c in range(len(p))], rotation=35, ha="right", rotation_mode="anchor")
    return ax


def figure_guidance(batch: Batch, student: Output, teacher: Output, ctx: Context, *, alpha: float = 1.0) -> Figure:
    """The pixel of `new_pixel` in its image, and `plot_guidance` there. alpha: factor on the teacher's logits."""
    at = new_pixel(batch, teacher, ctx.step)
    if at is None:
        return note("no pixel of these images is labelled with a new class; take other ones")
    i, row, column = at
    q = (alpha * teacher.logits[i, :, row, column].detach().float()).softmax(dim=0).cpu().numpy()
    p = student.logits[i, :, row, column].detach().float().softmax(dim=0).cpu().numpy()
    image = photo(batch.image[i], ctx.data.source)
    fig = figure(8.2, 3.0)
    left, right = fig.subplots(1, 2, width_ratios=[1, 2.6])
    show_image(image, left)
    for width, colour in ((4.5, "white"), (1.8, "black")):
        left.plot(column, row, "+", color=colour, markersize=15, markeredgewidth=width)
    label = int(batch.label[i, row, column])
    left.set(xticks=[], yticks=[], title=f"labelled {label} {ctx.scenario.classes[label]}")
    plot_guidance(q, p, label, ctx.scenario.classes, ctx.data.palette, right)
    handles = [
        Patch(facecolor="white", edgecolor="#555555", hatch="////", label="q: the teacher"),
        Patch(facecolor="#999999", edgecolor="#555555", label="q̃: asked of the student"),
        Line2D([], [], color="black", marker="D", markerfacecolor="white", linestyle="", label="the student now"),
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=3)
    return fig


# --- AMIS: the global token ---


def figure_ideas() -> Figure:
    """AMIS in one picture, drawn by hand: who reads whom in a decoder block, and what pooled statistics do not see."""
    fig = figure(8.4, 3.2)
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.5])
    _sketch_readers(left)
    plot_same_pool(right)
    return fig


def _sketch_readers(ax: Axes, patches: int = 6, classes: int = 3) -> None:
    """Rows look at columns; the global token is a column without a row."""
    n = patches + classes
    table = np.zeros((n, n + 1))
    table[:, patches:n] = 1
    table[:, n] = 2
    palette = LinearSegmentedColormap.from_list("readers", ["#dddddd", "#a6bddb", GLOBAL])
    ax.imshow(table, cmap=palette, vmin=0, vmax=2)
    for line in range(n + 1):
        ax.axvline(line - 0.5, color="white", linewidth=1)
        ax.axhline(line - 0.5, color="white", linewidth=1)
    middle = [(patches - 1) / 2, patches + (classes - 1) / 2]
    ax.set(xticks=[*middle, n], yticks=middle, xlabel="what is read (keys, values)", ylabel="who reads (queries)")
    ax.set_xticklabels(["patches", "classes", "global"])
    ax.set_yticklabels(["patches", "classes"])
    ax.tick_params(length=0)
    ax.set_title("one token for all images and steps")
    for spine in ax.spines.values():
        spine.set_visible(False)


TEACHER_ROW = (1.0, -0.4, 0.2, 0.9, -0.7, 0.1, 0.5, -0.8)
STUDENT_ROW = (-0.4, 1.0, -0.9, 0.2, 0.1, -0.7, 0.8, 0.5)


def plot_same_pool(ax: Axes) -> Axes:
    """An embedding of eight channels whose student swaps and flips values inside the smallest parts: every pooled statistic
    stays, the squared error does not."""
    teacher, student = torch.tensor(TEACHER_ROW), torch.tensor(STUDENT_ROW)
    error = (teacher - student).square().mean().item()
    gap = (pooled_statistics(teacher) - pooled_statistics(student)).norm().item()
    x = np.arange(len(teacher))
    ax.bar(x - 0.2, teacher.numpy(), width=0.36, color="white", edgecolor="#555555", hatch="////", label="teacher")
    ax.bar(x + 0.2, student.numpy(), width=0.36, color=GLOBAL, edgecolor="#555555", label="student")
    ax.axhline(0, color="#777777", linewidth=0.8)
    for edge in (1.5, 3.5, 5.5):
        ax.axvline(edge, color="#777777", linewidth=0.8, linestyle=":")
    ax.set(xticks=x, xlabel="channel of one class embedding (dotted: the parts of scale 4)", ylabel="value", ylim=(-1.15, 1.6))
    ax.set_title(f"element by element: {error:.2f}   pooled means of squares: {gap:.2f}")
    ax.legend(loc="upper center", ncols=2)
    return ax


def reads_global(model: Model, image: Tensor) -> tuple[Tensor, Tensor]:
    """How much of its attention each token spends on the global token, in each decoder block; mean over heads, on the CPU.

    image: (B, 3, H, W) normalised, on the model's device. Returns patches (blocks, B, h, w) on the backbone's grid and class
    tokens (blocks, B, C), fractions of 1. The model is left in evaluation mode. Raises `KitError` for a network without one.
    """
    if not isinstance(model, Segmenter) or model.decoder.global_token is None:
        raise KitError("this network has no global token: gab = false, or it is not AMIS's. Choose gab = true.")
    model.eval()
    with torch.no_grad():
        rows, columns = model(image).features["backbone"].shape[2:]
        maps = torch.stack([part[..., -1].float().mean(dim=1) for part in model.attention_maps(image)]).cpu()
    patches, classes = maps.split([rows * columns, maps.shape[2] - rows * columns], dim=2)
    return patches.unflatten(2, (rows, columns)), classes


def figure_global(batch: Batch, i: int, model: Model, ctx: Context) -> Figure:
    """One image: what patches (maps) and class tokens (bars) spend on the global token, block by block, in percent.

    Dashed: an even share over all tokens. Without a global token the figure says so.
    """
    if getattr(model.decoder, "global_token", None) is None:
        return note("this network has no global token (gab = false)")
    patches, classes = (100 * part[:, 0].numpy() for part in reads_global(model, batch.image[i : i + 1]))
    even = 100 / (patches[0].size + classes.shape[1] + 1)
    image = photo(batch.image[i], ctx.data.source)
    blocks, n_classes = classes.shape
    ratio = aspect(image)
    fig = figure(1.75 * (blocks + 1) + 0.8, 1.65 * ratio + 0.22 * n_classes + 1.2)
    axes = fig.subplots(2, blocks + 1, height_ratios=[1.65 * ratio, 0.22 * n_classes + 0.3])
    show_image(image, axes[0, 0]).set_title("image")
    top = max(float(patches.max()), float(classes.max()), 1.25 * even)
    colours = [to_hex(ctx.data.palette[c] / 255) for c in range(n_classes)]
    shown: Any = None
    for block, (above, below) in enumerate(zip(axes[0, 1:], axes[1, 1:], strict=True)):
        shown = above.imshow(
            patches[block], cmap=READS, vmin=0, vmax=float(patches.max()), interpolation="nearest",
            extent=(-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5),
        )  # fmt: skip
        above.set_title(f"block {block + 1}")
        below.barh(range(n_classes), classes[block], color=colours, edgecolor="#555555", linewidth=0.5)
        below.axvline(even, color="black", linestyle="--", linewidth=1)
        below.set(xlim=(0, 1.05 * top), ylim=(n_classes - 0.4, -0.6), yticks=[], xlabel="attention (%)")
    for ax in axes[0]:
        ax.set(xticks=[], yticks=[])
    axes[1, 0].set_visible(False)
    axes[1, 1].set_yticks(range(n_classes), [f"{c} {ctx.scenario.classes[c]}" for c in range(n_classes)])
    fig.colorbar(shown, ax=list(axes[0]), label="attention of a\npatch (%)", pad=0.02)
    handles = [Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"an even share over all tokens: {even:.2f} %")]
    fig.legend(handles=handles, loc="outside lower right")
    return fig


# --- AMIS: pooled statistics ---


def figure_pooled(stages: Mapping[str, Tensor], teacher: Tensor, ctx: Context, scales: Sequence[int] = (1, 2, 4)) -> Figure:
    """Pooled statistics of the old class embeddings, a column per scale and a row per stage: teacher rings, student diamonds.

    stages: words -> (B, C, D) of the student; teacher: (B, O, D). Means over the images of the batch. One mark per part of the
    channels; a line joins the two.
    """
    n_old = teacher.shape[1]
    theirs = _by_scale(teacher, scales)
    fig = figure(2.9 + 1.9 * len(scales), 1.0 + len(stages) * (0.7 + 0.25 * n_old))
    axes = fig.subplots(len(stages), len(scales), squeeze=False, sharey=True, sharex="col")
    for row, (words, embeddings) in zip(axes, stages.items(), strict=True):
        for ax, s, theirs_s, ours_s in zip(row, scales, theirs, _by_scale(embeddings[:, :n_old], scales), strict=True):
            y = np.arange(n_old)[:, None] + (np.arange(s) - (s - 1) / 2) * 0.8 / s
            for c in range(n_old):
                colour = to_hex(ctx.data.palette[c] / 255)
                ax.hlines(y[c], theirs_s[c], ours_s[c], color="#777777", linewidth=1)
                ax.plot(theirs_s[c], y[c], "o", color="black", markerfacecolor="none", markersize=6)
                ax.plot(ours_s[c], y[c], "D", color="#555555", markerfacecolor=colour, markersize=4, markeredgewidth=0.5)
            ax.grid(axis="y", color="#eeeeee")
            ax.set(ylim=(n_old - 0.4, -0.6), title=f"{words}, {s} part{'s' if s > 1 else ''}")
        row[0].set_yticks(range(n_old), [f"{c} {ctx.scenario.classes[c]}" for c in range(n_old)])
    for ax, s in zip(axes[-1], scales, strict=True):
        ax.set_xlabel("mean of squares" + (f" / {s * s}" if s > 1 else ""))
    rings = Line2D([], [], color="black", marker="o", markerfacecolor="none", linestyle="", label="teacher")
    diamonds = Line2D([], [], color="#555555", marker="D", markerfacecolor="#bbbbbb", linestyle="", label="student")
    legend_below(fig, [rings, diamonds])
    return fig


def _by_scale(embeddings: Tensor, scales: Sequence[int]) -> list[NDArray[np.float64]]:
    """Per scale s, (O, s): means over the batch; each statistic once, though the method counts it twice."""
    once = pooled_statistics(embeddings.detach().float(), scales)[..., ::2].mean(dim=0).double().cpu()
    return [part.numpy() for part in once.split(list(scales), dim=1)]


# --- sizes of terms ---


def plot_term_sizes(stages: Mapping[str, Mapping[str, float]], ax: Axes, *, xlabel: str = "weighted term") -> Axes:
    """Loss terms as bars on a logarithmic axis, one bar per stage; a term of 0 has no bar, and says so.

    stages: words -> term -> weighted value, >= 0. What is below 1e-6 of the largest is rounding, and counts as 0.
    """
    names = list(dict.fromkeys(name for terms in stages.values() for name in terms))
    positive = [value for terms in stages.values() for value in terms.values() if value > 0] or [1.0]
    positive = [value for value in positive if value > ROUNDING * max(positive)]
    least, most = 10 ** np.floor(np.log10(min(positive)) - 0.3), max(positive)
    fills = [("white", "////"), ("#0077bb", ""), ("#999999", "....")]
    height = 0.8 / len(stages)
    for k, (words, terms) in enumerate(stages.items()):
        face, hatch = fills[k % len(fills)]
        for y, name in enumerate(names):
            at, value = y + (k - (len(stages) - 1) / 2) * height, float(terms.get(name, float("nan")))
            text = "" if np.isnan(value) else f"{value:.2g}" if value >= least else "0"
            bar = value - least if value >= least else 0.0
            ax.barh(
                at, bar, left=least, height=0.85 * height, color=face, hatch=hatch, edgecolor="#444444", linewidth=0.6,
                label=words if y == 0 else None,
            )  # fmt: skip
            ax.text(1.15 * (value if value >= least else least), at, text, va="center", fontsize=7)
    ax.set(xscale="log", xlim=(least, 8 * most), ylim=(len(names) - 0.5, -0.5), xlabel=f"{xlabel} (logarithmic)")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(names)), names)
    return ax


def figure_term_sizes(stages: Mapping[str, Mapping[str, Any]], *, xlabel: str = "weighted term") -> Figure:
    """`plot_term_sizes` on a figure of its own. stages: words -> term -> number or scalar tensor without gradient."""
    numbers = {words: {name: float(value) for name, value in terms.items()} for words, terms in stages.items()}
    fig = figure(7.4, 0.9 + 0.24 * sum(map(len, numbers.values())))
    ax = fig.subplots()
    plot_term_sizes(numbers, ax, xlabel=xlabel)
    legend_below(fig, ax.get_legend_handles_labels()[0])
    return fig


def now(ctx: Context) -> str:
    """Words for the network as it stands before `fit`: new, born from the teacher, or found finished."""
    if (ctx.run.folder / "model.safetensors").exists():
        return "found trained"
    return "untrained" if ctx.old_model is None else "student at birth"
