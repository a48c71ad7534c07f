"""Pictures with labels: what a step is told, what is really there, what a teacher says, what a model makes of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from cisskit.data import Batch, Data, Source, Toy
from cisskit.data.transforms import evaluation_crop, evaluation_side, normalise
from cisskit.method import Context
from cisskit.models import Model
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.views.style import (
    ERRORS,
    class_patches,
    error_patches,
    following,
    grid,
    legend_below,
    legend_right,
    method_title,
    rgb,
    row_label,
)

Labels = NDArray[np.integer[Any]]
Palette = NDArray[np.uint8]
ByStep = Mapping[str, Mapping[int, Labels]]
"""Method -> step -> what it says of one image, (H, W) learned ids."""

HIDDEN = {"old": "////", "future": "...."}
"""Hatching of classes that a step does not tell."""


@dataclass(frozen=True)
class Picture:
    """An image to show. image: (3, H, W) uint8. truth: (H, W) learned ids of all classes of the scenario, 255 unknown."""

    name: str
    image: Tensor
    truth: Labels


# --- axes ---


def show_image(image: Tensor, ax: Axes) -> Axes:
    """image: (3, H, W) uint8."""
    ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    return ax


def show_labels(labels: Labels, palette: Palette, ax: Axes, *, hidden: Mapping[str, NDArray[np.bool_]] | None = None) -> Axes:
    """A label map in class colours. hidden: kind ("old", "future") -> (H, W) pixels to dim and hatch."""
    colours = palette[np.asarray(labels)].astype(np.float64)
    for where in (hidden or {}).values():
        colours[where] = 0.6 * colours[where] + 0.4 * palette[BACKGROUND]
    ax.imshow(colours.astype(np.uint8), interpolation="nearest")
    for kind, where in (hidden or {}).items():
        hatch(where, ax, HIDDEN[kind], "white")
    return ax


def show_errors(kinds: Labels, image: Tensor, ax: Axes) -> Axes:
    """Kinds of error, as from `errors`, on a pale photograph. image: (3, H, W) uint8."""
    return show_on_photo(kinds, [colour for colour, _ in ERRORS.values()], image, ax)


def show_on_photo(kinds: Labels, colours: Sequence[str], image: Tensor, ax: Axes) -> Axes:
    """Pixels of kind 1, 2, .. in these colours on a pale grey photograph; kind 0 shows it. image: (3, H, W) uint8."""
    ax.imshow(on_photo(kinds, colours, image), interpolation="nearest")
    return ax


def on_photo(kinds: Labels, colours: Sequence[str], image: Tensor) -> NDArray[np.uint8]:
    """What `show_on_photo` shows: (H, W, 3) uint8."""
    grey = image.float().mean(0).numpy()
    picture = np.repeat((204 + 0.18 * grey)[..., None], 3, axis=2).astype(np.uint8)
    for number, colour in enumerate(colours, start=1):
        picture[kinds == number] = rgb(colour)
    return picture


def hatch(where: NDArray[np.bool_], ax: Axes, pattern: str, colour: str) -> None:
    """Hatch pixels (H, W), without an outline."""
    if where.any():
        hatching = ax.contourf(where.astype(np.float64), levels=[0.5, 1.5], colors="none", hatches=[pattern])
        hatching.set_edgecolor(colour)
        hatching.set_linewidth(0)


def outline(where: NDArray[np.bool_], ax: Axes, colour: str, style: str = "-") -> None:
    """The border of a region (H, W), on a white rim; a region without a border has none."""
    if where.any() and not where.all():
        ax.contour(where.astype(np.float64), levels=[0.5], colors="white", linewidths=2.8)
        ax.contour(where.astype(np.float64), levels=[0.5], colors=colour, linestyles=style, linewidths=1.5)


def errors(truth: Labels, predicted: Labels, step: Step) -> NDArray[np.uint8]:
    """What is wrong, per pixel: 0 nothing, else 1 + position in `style.ERRORS`.

    truth, predicted: (H, W) learned ids. Void pixels and classes that have not arrived are not judged.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    judged = (truth <= step.n_seen) & (truth != predicted)
    old = (truth >= 1) & (truth <= step.n_old)
    new = (truth > step.n_old) & (truth <= step.n_seen)
    found_new = predicted > step.n_old
    wrong = {
        "forgotten": old & (predicted == BACKGROUND),
        "taken over": old & found_new,
        "missed": new & (predicted == BACKGROUND),
        "false alarm": (truth == BACKGROUND) & (predicted != BACKGROUND),
    }
    kinds = np.where(judged, 1 + list(ERRORS).index("mixed up"), 0).astype(np.uint8)
    for kind, where in wrong.items():
        kinds[judged & where] = 1 + list(ERRORS).index(kind)
    return kinds


def hidden_by(truth: Labels, told: Labels, step: Step) -> dict[str, NDArray[np.bool_]]:
    """Pixels whose class is there but not told at this step: "old" and "future" ones."""
    untold = (np.asarray(truth) != np.asarray(told)) & (truth != BACKGROUND) & (truth != IGNORE)
    return {"old": untold & (truth <= step.n_old), "future": untold & (truth > step.n_seen)}


# --- choosing pictures ---


def telling(batch: Batch, step: Step, n: int = 4) -> Batch:
    """The ``n`` images of a training batch that hide most classes; the batch brings ``extra["truth"]``.

    Get it as ``next(train_loader(ctx, truth=True).epoch(0, ctx.device))``: training images as `fit` sees them.
    """
    told, truth = batch.label.cpu().numpy(), batch.extra["truth"].cpu().numpy()
    scores = []
    for a, b in zip(truth, told, strict=True):
        parts = hidden_by(a, b, step)
        kinds = sum(where.any() for where in parts.values())
        scores.append(4 * kinds + len(np.unique(a[parts["old"] | parts["future"]])) + len(np.unique(b)))
    at = np.argsort(-np.array(scores), kind="stable")[:n].tolist()
    extra = {key: value[at] for key, value in batch.extra.items() if isinstance(value, Tensor)}
    return Batch(batch.image[at], batch.label[at], {"names": [batch.extra["names"][i] for i in at], **extra})


def photo(image: Tensor, source: Source) -> Tensor:
    """(3, H, W) uint8 from a normalised float image, on the CPU."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (source.mean, source.std))
    return ((image.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def test_pictures(data: Data, step: Step, n: int = 4) -> list[Picture]:
    """Test images that show old and new classes together, as evaluation cuts them; most classes first, always the same.

    step: decides what is old and new; at step 0 the classes of the scenario's first group count as old.
    """
    order = data.scenario.order
    n_old = step.n_old or len(data.scenario.base)
    presence = data.source.presence("test")
    old, new = presence[:, list(order[:n_old])].sum(1), presence[:, list(order[n_old:])].sum(1)
    score = 10 * ((old > 0) & (new > 0)) + old + new
    side = evaluation_side(data.protocol.eval_size)
    names = data.source.names("test")
    pictures = []
    for i in np.argsort(-score, kind="stable")[:n].tolist():
        image, truth = data.sample("test", i, step.index, use="truth")
        if side is not None:
            image, truth = evaluation_crop(image, truth, side)
        pictures.append(Picture(names[i], image, truth.numpy()))
    return pictures


test_pictures.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name


def predict(ctx: Context, pictures: Iterable[Picture], model: Model) -> list[Labels]:
    """(H, W) learned ids that ``model`` sees in each picture. It is left in evaluation mode; nothing else changes."""
    model.eval()
    source, found = ctx.data.source, []
    with torch.no_grad():
        for picture in pictures:
            image = normalise(picture.image, source.mean, source.std)[None].to(ctx.device)
            found.append(ctx.method.predict(model(image))[0].cpu().numpy())
    return found


def before(ctx: Context, pictures: Sequence[Picture]) -> tuple[list[Labels], str]:
    """What was seen before this step was trained, and words for it: by the teacher, else by the network as it stands."""
    if ctx.old_model is not None:
        return predict(ctx, pictures, ctx.old_model), "the teacher"
    trained = (ctx.run.folder / "model.safetensors").exists()
    return predict(ctx, pictures, ctx.model), "already trained\n(found finished)" if trained else "untrained"


# --- figures ---


def figure_told(batch: Batch, ctx: Context) -> Figure:
    """Training images, how this step labels them, and what is really there: hidden classes are dimmed and hatched."""
    return _told(
        [photo(image, ctx.data.source) for image in batch.image], batch.label.cpu().numpy(), batch.extra["truth"].cpu().numpy(),
        ctx.step, ctx.scenario, ctx.data.palette, batch.extra["names"], batch.extra["from_memory"].tolist(),
    )  # fmt: skip


def _told(
    images: Sequence[Tensor], told: Labels, truth: Labels, step: Step, scenario: Scenario, palette: Palette,
    names: Sequence[str], from_memory: Sequence[bool],
) -> Figure:  # fmt: skip
    fig, axes = grid(3, len(images), cell=_cell(len(images)), aspect=aspect(images[0]), margin=0.9)
    shown: set[int] = set()
    hidden_kinds: set[str] = set()
    for i, image in enumerate(images):
        hidden = hidden_by(truth[i], told[i], step)
        hidden_kinds |= {kind for kind, where in hidden.items() if where.any()}
        shown |= {*np.unique(told[i]).tolist(), *np.unique(truth[i]).tolist()}
        show_image(image, axes[0, i])
        show_labels(told[i], palette, axes[1, i])
        show_labels(truth[i], palette, axes[2, i], hidden=hidden)
        axes[0, i].set_title(names[i] + (" (memory)" if from_memory[i] else ""), fontsize=7)
    for ax, text in zip(axes[:, 0], ("image", f"as labelled\nat step {step.index}", "really there"), strict=True):
        row_label(ax, text)
    legend_below(fig, class_patches(shown, scenario.classes, palette) + _hatch_patches(hidden_kinds))
    return fig


def figure_teacher(batch: Batch, targets: Tensor, ctx: Context) -> Figure:
    """The labels of this step, what the teacher sees in the same images, and the targets that the method trains on.

    targets: (B, H, W) from ``ctx.method.targets``. At step 0 and for the joint bound there is no teacher: two rows.
    """
    rows = {f"as labelled\nat step {ctx.step.index}": batch.label.cpu().numpy()}
    if ctx.old_model is not None:
        with torch.no_grad():
            rows["the teacher\nsays"] = ctx.method.predict(ctx.old_model(batch.image)).cpu().numpy()
    rows["targets of\nthe method"] = targets.cpu().numpy()
    images = [photo(image, ctx.data.source) for image in batch.image]
    fig, axes = grid(1 + len(rows), len(images), cell=_cell(len(images)), aspect=aspect(images[0]), margin=0.6)
    for i, image in enumerate(images):
        show_image(image, axes[0, i])
        for row, labels in enumerate(rows.values(), start=1):
            show_labels(labels[i], ctx.data.palette, axes[row, i])
    for ax, text in zip(axes[:, 0], ("image", *rows), strict=True):
        row_label(ax, text)
    shown = {c for labels in rows.values() for c in np.unique(labels).tolist()}
    legend_below(fig, class_patches(shown, ctx.scenario.classes, ctx.data.palette))
    if ctx.old_model is None:
        axes[0, 0].set_title("no teacher: this step starts from a fresh network", loc="left")
    return fig


def figure_before_after(
    pictures: Sequence[Picture], before: Sequence[Labels], after: Sequence[Labels], ctx: Context, was: str
) -> Figure:
    """Test images, truth, masks before and after this step, and what is wrong after it. was: words for the row "before"."""
    rows = ("image", "truth", f"before:\n{was}", f"after\nstep {ctx.step.index}", "errors")
    fig, axes = grid(len(rows), len(pictures), cell=_cell(len(pictures)), aspect=aspect(pictures[0].image), margin=1.3)
    palette, kinds_seen, shown = ctx.data.palette, set(), set()
    for i, picture in enumerate(pictures):
        future = (picture.truth > ctx.step.n_seen) & (picture.truth != IGNORE)
        kinds = errors(picture.truth, after[i], ctx.step)
        show_image(picture.image, axes[0, i])
        show_labels(picture.truth, palette, axes[1, i], hidden={"future": future})
        show_labels(before[i], palette, axes[2, i])
        show_labels(after[i], palette, axes[3, i])
        show_errors(kinds, picture.image, axes[4, i])
        axes[0, i].set_title(picture.name, fontsize=7)
        shown |= {c for labels in (picture.truth, before[i], after[i]) for c in np.unique(labels).tolist()}
        kinds_seen |= set(np.unique(kinds).tolist())
    for ax, text in zip(axes[:, 0], rows, strict=True):
        row_label(ax, text)
    present = [kind for number, kind in enumerate(ERRORS, start=1) if number in kinds_seen]
    hatched = any((p.truth > ctx.step.n_seen)[p.truth != IGNORE].any() for p in pictures)
    handles = class_patches(shown, ctx.scenario.classes, palette) + _hatch_patches({"future"} if hatched else set())
    legend_below(fig, handles + error_patches(present))
    return fig


def draw_strip(
    axes: NDArray[Any], picture: Picture, predictions: ByStep, steps: Sequence[int], scenario: Scenario, palette: Palette
) -> tuple[set[int], set[str]]:  # fmt: skip
    """One test image on (1 + methods, len(steps) + 1) axes: rows truth and methods, columns steps, the errors last.

    The row of the truth shows what is known to have arrived: what a perfect model would say after that step. In its last
    column stands the image. predictions: method -> step -> (H, W). Returns the classes and kinds of error on show.
    """
    shown: set[int] = set()
    wrong: set[str] = set()

    def labels(content: Labels, ax: Axes) -> None:
        show_labels(content, palette, ax)
        shown.update(np.unique(content).tolist())

    for ax, t in zip(axes[0], steps, strict=False):
        n_seen = scenario.step(t).n_seen
        labels(np.where((picture.truth > n_seen) & (picture.truth != IGNORE), BACKGROUND, picture.truth), ax)
        ax.set_title(f"after step {t}")
    show_image(picture.image, axes[0, -1]).set_title("image; below it,\nerrors at the end")
    for row, found in zip(axes[1:], predictions.values(), strict=True):
        for ax, t in zip(row, steps, strict=False):
            if t in found:
                labels(found[t], ax)
            else:
                ax.text(0.5, 0.5, "not run", ha="center", va="center", transform=ax.transAxes, color="#777777", fontsize=8)
        last = max(found)
        kinds = errors(picture.truth, found[last], scenario.step(last))
        show_errors(kinds, picture.image, row[-1])
        wrong |= {kind for number, kind in enumerate(ERRORS, start=1) if (kinds == number).any()}
    for ax, text in zip(axes[:, 0], ("truth so far", *map(method_title, predictions)), strict=True):
        row_label(ax, text)
    return shown, wrong


def figure_strip(
    picture: Picture, predictions: ByStep, scenario: Scenario, palette: Palette, *, cell: float = 1.5, title: bool = True
) -> Figure:
    """`draw_strip` on a figure of its own, legends at the right. cell: width of one picture in inches."""
    steps = sorted({t for found in predictions.values() for t in found})
    fig, axes = grid(1 + len(predictions), len(steps) + 1, cell=cell, aspect=aspect(picture.image), margin=0.45, legend=2.7)
    shown, wrong = draw_strip(axes, picture, predictions, steps, scenario, palette)
    if title:
        fig.suptitle(f"test image {picture.name}", fontsize=9, x=0.02, ha="left")
    legend_right(fig, class_patches(shown, scenario.classes, palette) + error_patches([k for k in ERRORS if k in wrong]))
    return fig


def figure_scenes(pictures: Sequence[Picture], scenario: Scenario, palette: Palette, *, columns: int = 8) -> Figure:
    """A contact sheet: images above their labels, with the legend of all classes."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    fig, axes = grid(2 * rows, columns, cell=1.05, aspect=aspect(pictures[0].image), margin=0.8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        show_image(picture.image, axes[2 * row, column])
        show_labels(picture.truth, palette, axes[2 * row + 1, column])
    legend_below(fig, class_patches(range(len(scenario.classes)), scenario.classes, palette), columns=5)
    return fig


def figure_steps(pictures: Sequence[Picture], scenario: Scenario, palette: Palette) -> Figure:
    """The same images as labelled at every step: rows are images, columns image, steps, and what is really there."""
    fig, axes = grid(len(pictures), 2 + len(scenario.steps), cell=1.45, aspect=aspect(pictures[0].image), margin=0.9)
    for row, picture in zip(axes, pictures, strict=True):
        show_image(picture.image, row[0])
        for ax, step in zip(row[1:], scenario.steps, strict=False):
            told = (picture.truth >= step.new.start) & (picture.truth < step.new.stop) | (picture.truth == IGNORE)
            show_labels(np.where(told, picture.truth, BACKGROUND), palette, ax)
        show_labels(picture.truth, palette, row[-1])
    titles = [
        "image",
        *(f"told at step {s.index}\nclasses {s.new.start}-{s.new.stop - 1}" for s in scenario.steps),
        "really there",
    ]
    for ax, text in zip(axes[0], titles, strict=True):
        ax.set_title(text)
    shown = {c for picture in pictures for c in np.unique(picture.truth).tolist()}
    legend_below(fig, class_patches(shown, scenario.classes, palette))
    return fig


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """The problem in one picture: an embedded scene as it is labelled at each step of a scenario. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=40))
    return figure_steps(test_pictures(data, data.scenario.steps[-1], 2), data.scenario, data.palette)


def explore_steps(pictures: Sequence[Picture], predictions: Sequence[ByStep], scenario: Scenario, palette: Palette) -> Any:
    """Sliders over image, method and step; draws one static picture first, so that the page reads without a kernel.

    predictions: one per picture. Returns the widget.
    """
    import ipywidgets as widgets

    method = widgets.Dropdown(options=[(method_title(m), m) for m in predictions[0]], description="method")
    steps = sorted(set.intersection(*(set(found) for found in predictions[0].values())))  # a chain may have ended early
    step = widgets.SelectionSlider(options=steps, value=steps[-1], description="after step", continuous_update=False)
    which = widgets.IntSlider(min=0, max=len(pictures) - 1, description="image", continuous_update=False)

    def draw() -> list[Figure]:
        picture, found = pictures[which.value], predictions[which.value][method.value]
        return [figure_strip(picture, {method.value: {step.value: found[step.value]}}, scenario, palette)]

    controls = [method, step, which]
    return widgets.VBox([widgets.HBox(controls), following(draw, controls)])


def _hatch_patches(kinds: Iterable[str]) -> list[Patch]:
    return [
        Patch(facecolor="#777777", hatch=HIDDEN[kind], edgecolor="white", linewidth=0, label=f"{kind} class, not told")
        for kind in HIDDEN
        if kind in set(kinds)
    ]


def aspect(image: Tensor) -> float:
    """Height over width of an image (3, H, W), for a grid of pictures; very tall ones are cut at 1.6."""
    return min(1.6, image.shape[1] / image.shape[2])


def _cell(columns: int) -> float:
    return 1.55 if columns <= 5 else 1.1
