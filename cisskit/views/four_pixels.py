"""Four pixels by hand: every loss of the kit on a strip so small that the arithmetic fits on a line.

The story. A new model has just met dogs. It looks at sky, at a car in a remembered image (so its label is still there), at a
dog, and at a car that this step labels background. Each pixel has two features, "wheels" and "fur"; one classifier makes logits
of them, for the old model (background, car) and for the new one (background, car, dog).

Losses on logits are in `LOSSES`, losses on directions in `CIRCLES`; what is written out is computed by the library and checked
against its arithmetic by a test. ``explore_x`` adds sliders to ``figure_x``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas.io.formats.style import Styler
from torch import Tensor

from cisskit import losses as L
from cisskit.data.scenes import PALETTE
from cisskit.errors import KitError, unknown
from cisskit.pseudo import confident, entropy_labels, scaled_entropy, selective
from cisskit.scenario import IGNORE
from cisskit.views.reasoning import AGAINST, FOR
from cisskit.views.style import (
    ERRORS,
    figure,
    following,
    legend_below,
)

PIXELS = ("sky", "car", "dog", "hidden car")
CLASSES = ("background", "car", "dog")
SHORT = ("bg", "car", "dog")
CHANNELS = ("wheels", "fur")
KNOWN, OLD, NEW = slice(0, 2), slice(1, 2), slice(2, 3)
"""Channels of the step, as `Step.known`, `Step.old` and `Step.new` name them."""
TRUTH = (0, 1, 2, 1)
LABELS = (0, 1, 2, 0)
"""What this step tells: the last car is labelled background."""
FEATURES = ((0.2, 0.2), (2.0, 0.2), (0.2, 1.6), (0.9, 0.2))
OLD_FEATURES = ((0.2, 0.0), (1.8, 0.2), (0.6, 0.8), (1.0, 0.2))
WEIGHT = ((-1.0, -1.0), (2.0, -1.0), (-1.0, 1.5))
BIAS = (1.5, -1.0, -0.5)
"""Of the classifier: a row per class. The old model has the first two rows."""

CLASS_COLOURS = tuple(to_hex(PALETTE[c] / 255) for c in (0, 1, 6))
CHANNEL_COLOURS = tuple(to_hex(PALETTE[c] / 255) for c in (2, 4))
PHOTO = ("#a8d3f0", "#d2452d", "#9a6a3c", "#b03a26")
"""What a camera would see in the four pixels."""
GREY = "#777777"
HOLLOW: dict[str, Any] = {"facecolor": "none", "edgecolor": "#555555", "linewidth": 1.3}
"""How the old model's bars look."""
ARROWS: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.045, "minlength": 0.5}


@dataclass(frozen=True)
class Story:
    """student: logits (1, 3, 1, 4). teacher: (1, 2, 1, 4). labels: (1, 1, 4) int64. features, old_features: (1, 2, 1, 4)."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    features: Tensor
    old_features: Tensor


def tell(
    features: Sequence[Sequence[float]] = FEATURES,
    old_features: Sequence[Sequence[float]] = OLD_FEATURES,
    labels: Sequence[int] = LABELS,
) -> Story:
    """The story with these features, a pair (wheels, fur) per pixel, and labels (0, 1, 2 or 255).

    Raises `KitError` unless there are four pixels.
    """
    maps = [torch.tensor(given, dtype=torch.float64) for given in (features, old_features)]
    if any(f.shape != (4, 2) for f in maps) or len(labels) != 4 or not set(labels) <= {0, 1, 2, IGNORE}:
        raise KitError(
            f"the story has four pixels ({', '.join(PIXELS)}): pass a pair (wheels, fur) for each and a label of 0, 1, 2 or 255, "
            f"not {features}, {old_features} and {labels}."
        )
    f, f_old = (values.T.reshape(1, 2, 1, 4) for values in maps)
    weight, bias = torch.tensor(WEIGHT, dtype=torch.float64), torch.tensor(BIAS, dtype=torch.float64)
    z, z_old = F.conv2d(f, weight[:, :, None, None], bias), F.conv2d(f_old, weight[KNOWN, :, None, None], bias[KNOWN])
    return Story(z, z_old, torch.tensor(labels).view(1, 1, 4), f, f_old)


# --- the losses on logits ---


class Pixel(NamedTuple):
    """One pixel as text: its label, the new model's probability of each class, and the teacher's answer."""

    y: int
    p: list[str]
    q: list[str]


@dataclass(frozen=True)
class Loss:
    """How a loss on logits is called, and how its arithmetic is written.

    call: (logits, story, **options) -> (1, 1, 4), the library's value at each pixel. written: (pixel, **options) -> text.
    target: (story, **options) -> (1, C, 1, 4), the answer that is aimed at. options: name -> value, least, most.
    """

    call: Callable[..., Tensor]
    written: Callable[..., str]
    target: Callable[..., Tensor] | None = None
    target_words: str = "old model"
    sigmoid: bool = False
    options: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


def _taught(story: Story, alpha: float = 1.0) -> Tensor:
    return (alpha * story.teacher).softmax(dim=1)


def _moved(story: Story) -> Tensor:
    """The teacher's answer with its background handed to the new class where the label names one."""
    q = torch.cat([_taught(story), torch.zeros_like(story.teacher[:, :1])], dim=1)
    dog = (story.labels == NEW.start).unsqueeze(1)
    return torch.where(dog, q[:, [2, 1, 0]], q)


def _log_own(pixel: Pixel) -> str:
    return "0" if pixel.y == IGNORE else f"−log {pixel.p[pixel.y]}"


def _focal(pixel: Pixel, gamma: float) -> str:
    return "0" if pixel.y == IGNORE else f"(1 − {pixel.p[pixel.y]})^{gamma:g} · (−log {pixel.p[pixel.y]})"


def _unbiased(pixel: Pixel) -> str:
    return f"−log({pixel.p[0]} + {pixel.p[1]})" if pixel.y < KNOWN.stop else _log_own(pixel)


def _renormalised(pixel: Pixel, alpha: float = 1.0) -> str:
    p, q = pixel.p, pixel.q
    among = f"({p[0]} + {p[1]})"
    return f"−({q[0]}·log({p[0]} / {among}) + {q[1]}·log({p[1]} / {among})) / 2"


def _unbiased_kd(pixel: Pixel) -> str:
    p, q = pixel.p, pixel.q
    return f"−({q[0]}·log({p[0]} + {p[2]}) + {q[1]}·log {p[1]}) / 2"


def _label_guided(pixel: Pixel) -> str:
    terms = [f"{q}·log {p}" for p, q in zip(pixel.p, pixel.q, strict=True) if float(q)]
    return f"−({' + '.join(terms)}) / 3"


def _each_class(pixel: Pixel) -> str:
    if pixel.y == IGNORE:
        return "0"
    terms = [f"log {s}" if c == pixel.y else f"log(1 − {s})" for c, s in enumerate(pixel.p)]
    return f"−{' − '.join(terms)}"


def _new_class(pixel: Pixel, gamma: float) -> str:
    s = pixel.p[NEW.start]
    return f"{gamma:g} · (−log {s})" if pixel.y == NEW.start else f"−log(1 − {s})"


def _old_class(pixel: Pixel) -> str:
    s, q = pixel.p[OLD.start], pixel.q[OLD.start]
    return f"−({q}·log {s} + (1 − {q})·log(1 − {s}))"


LOSSES: dict[str, Loss] = {
    "cross-entropy": Loss(lambda z, s: L.cross_entropy(z, s.labels, reduction="none"), _log_own),
    "focal loss": Loss(
        lambda z, s, gamma: L.focal_loss(z, s.labels, gamma=gamma, reduction="none"), _focal, options={"gamma": (2.0, 0.0, 5.0)}
    ),
    "unbiased cross-entropy": Loss(
        lambda z, s: L.unbiased_cross_entropy(z, s.labels, known=KNOWN, reduction="none"), _unbiased
    ),
    "distillation": Loss(lambda z, s: L.output_distillation(z, s.teacher, reduction="none"), _renormalised, _taught),
    "unbiased distillation": Loss(
        lambda z, s: L.unbiased_distillation(z, s.teacher, new=NEW, reduction="none"), _unbiased_kd, _taught
    ),
    "label-guided distillation": Loss(
        lambda z, s: L.label_guided_distillation(z, s.teacher, s.labels, reduction="none"), _label_guided, _moved,
        "old model, background moved to the label",
    ),
    "sharpened distillation": Loss(
        lambda z, s, alpha: L.soft_cross_entropy(z, s.teacher, alpha=alpha, reduction="none"), _renormalised, _taught,
        "old model, sharpened", options={"alpha": (2.0, 0.5, 4.0)},
    ),
    "binary cross-entropy": Loss(
        lambda z, s: L.binary_cross_entropy(z, s.labels, reduction="none"), _each_class, sigmoid=True
    ),
    "binary cross-entropy, new classes": Loss(
        lambda z, s, gamma: L.masked_bce(z[:, NEW], s.labels, first=NEW.start, pos_weight=gamma, reduction="none")[:, 0],
        _new_class, sigmoid=True, options={"gamma": (1.0, 1.0, 35.0)},
    ),
    "binary distillation, old classes": Loss(
        lambda z, s: L.sigmoid_distillation(z[:, OLD], s.teacher[:, OLD], reduction="none")[:, 0], _old_class,
        lambda s: s.teacher.sigmoid(), sigmoid=True,
    ),
}  # fmt: skip
"""Every loss on logits, by name. All are shown per pixel; a batch takes their mean."""


def _loss(name: str) -> Loss:
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def _settings(loss: Loss, options: Mapping[str, float]) -> dict[str, float]:
    return {key: options.get(key, start) for key, (start, _, _) in loss.options.items()}


def values(name: str, story: Story, **options: float) -> Tensor:
    """(4,) the library's loss at each pixel, in nats."""
    loss = _loss(name)
    return loss.call(story.student, story, **_settings(loss, options)).flatten()


def push(name: str, story: Story, **options: float) -> Tensor:
    """(4, 3): where each pixel's own loss moves its logits, minus the gradient."""
    loss = _loss(name)
    z = story.student.clone().requires_grad_()
    loss.call(z, story, **_settings(loss, options)).sum().backward()
    assert z.grad is not None
    return -z.grad[0, :, 0].T


def probabilities(name: str, story: Story) -> Tensor:
    """(4, 3) of the new model, as this loss reads its logits: softmax, or a sigmoid each."""
    z = story.student.detach()
    return (z.sigmoid() if _loss(name).sigmoid else z.softmax(dim=1))[0, :, 0].T


def aims(name: str, story: Story, **options: float) -> Tensor | None:
    """(4, C) the answer that a distillation aims at, None for a loss on labels."""
    loss = _loss(name)
    return None if loss.target is None else loss.target(story, **_settings(loss, options))[0, :, 0].T


def written(name: str, story: Story, **options: float) -> list[str]:
    """The arithmetic of each pixel, e.g. "−log 0.691"."""
    loss, p, q = _loss(name), probabilities(name, story).tolist(), aims(name, story, **options)
    targets = [[] for _ in PIXELS] if q is None else q.tolist()
    rows = zip(story.labels.flatten().tolist(), p, targets, strict=True)
    return [loss.written(Pixel(y, _texts(a), _texts(b)), **_settings(loss, options)) for y, a, b in rows]


def table(name: str, story: Story, **options: float) -> Styler:
    """One row per pixel: label, logits, probabilities, what is aimed at, the arithmetic, the loss; then the mean."""
    p, q, each = probabilities(name, story), aims(name, story, **options), values(name, story, **options)
    columns = {
        "pixel": list(PIXELS),
        "label": [word_of(y) for y in story.labels.flatten().tolist()],
        "logits z": [_listed(row, 1) for row in story.student[0, :, 0].T.tolist()],
        "sigmoid(z)" if _loss(name).sigmoid else "softmax(z)": [_listed(row) for row in p.tolist()],
    }
    if q is not None:
        columns[_loss(name).target_words] = [_listed(row) for row in q.tolist()]
    columns |= {"arithmetic": written(name, story, **options), "loss": [f"{value:.3f}" for value in each.tolist()]}
    frame = pd.DataFrame(columns)
    mean = {"pixel": "mean", "arithmetic": f"({' + '.join(columns['loss'])}) / 4", "loss": f"{each.mean():.3f}"}
    return styled(pd.concat([frame, pd.DataFrame([mean])], ignore_index=True).fillna(""))


def styled(frame: pd.DataFrame) -> Styler:
    """A table of short texts, left-aligned, nothing cut off."""
    left = [{"selector": "th, td", "props": "text-align: left"}]
    return frame.style.hide(axis="index").set_table_styles(left)


def word_of(label: int) -> str:
    """Class of a label; 255 is void."""
    return "void" if label == IGNORE else CLASSES[label]


def _texts(numbers: Sequence[float]) -> list[str]:
    """Probabilities with three decimals, or as many as keep two digits of p and of 1 − p: a logarithm follows."""
    room = [min(p, 1 - p) for p in numbers]
    return [
        f"{p:.{min(12, max(3, 2 + int(-math.log10(m))))}f}" if m > 0 else f"{p:g}" for p, m in zip(numbers, room, strict=True)
    ]


def _listed(numbers: Sequence[float], digits: int = 3) -> str:
    return ", ".join(f"{number:.{digits}f}" for number in numbers)


# --- drawing blocks ---


def plot_bars(
    top: NDArray[Any], ax: Axes, *, names: Sequence[str], colours: Sequence[str], frames: NDArray[Any] | None = None,
    words: str = "old model",
) -> Axes:  # fmt: skip
    """Groups of bars. top: (G, S), group by series. frames: (G, S') hollow bars around the first S' series, NaN for none."""
    where, width = _places(top.shape)
    for s, name in enumerate(names):
        ax.bar(where[:, s], top[:, s], 0.62 * width, color=colours[s], label=name)
    if frames is not None:
        there = where[:, : frames.shape[1]]
        ax.bar(there.ravel(), frames.ravel(), 0.92 * width, label=words, zorder=3, **HOLLOW)
    ax.axhline(0, color=GREY, linewidth=0.6)
    return ax


def plot_push(moves: NDArray[Any], ax: Axes, *, colours: Sequence[str]) -> Axes:
    """An arrow per group and series. moves: (G, S), minus the gradient; a dot where nothing is moved."""
    where, _ = _places(moves.shape)
    hue = np.tile(np.array(colours), len(moves))
    still = np.zeros(moves.size)
    ax.quiver(where.ravel(), still, still, moves.ravel(), color=hue, **ARROWS)
    reach = 1.2 * max(float(np.abs(moves).max()), 0.05)
    ax.set_ylim(-reach, reach)
    ax.axhline(0, color=GREY, linewidth=0.6)
    return ax


def plot_losses(each: NDArray[Any], ax: Axes) -> Axes:
    """A grey bar per group with its number."""
    bars = ax.bar(range(len(each)), each, 0.4, color="#9a9a9a")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    ax.bar_label(bars, [f"{value:.2f}" for value in each], padding=2, fontsize=8, bbox=box)
    low, high = min(0.0, float(each.min())), max(0.0, float(each.max()), 0.05)
    ax.set_ylim(1.3 * low, 1.3 * high)
    return ax


def _places(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], float]:
    """(G, S) x positions of bars, and the room of one."""
    groups, series = shape
    width = 0.8 / series
    return np.arange(groups)[:, None] + width * (np.arange(series) - (series - 1) / 2)[None], width


def _three(
    top: Tensor, each: Tensor, moves: Tensor, *, names: Sequence[str], colours: Sequence[str], frames: Tensor | None, words: str,
    ylabels: tuple[str, str, str], ticks: Sequence[str], title: str,
) -> Figure:  # fmt: skip
    """Bars with frames, losses and arrows below each other; columns are pixels."""
    fig = figure(6.8, 4.7)
    axes = fig.subplots(3, 1, sharex=True, height_ratios=(3, 1.6, 2.4))
    hollow = None if frames is None else frames.numpy()
    plot_bars(top.numpy(), axes[0], names=names, colours=colours, frames=hollow, words=words)
    plot_losses(each.numpy(), axes[1])
    plot_push(moves.numpy(), axes[2], colours=colours)
    axes[2].set_xticks(range(len(ticks)), ticks)
    for ax, words_of in zip(axes, ylabels, strict=True):
        ax.set_ylabel(words_of)
    fig.align_ylabels(list(axes))
    axes[0].set_title(title)
    legend_below(fig, axes[0].get_legend_handles_labels()[0])
    return fig


def _ticks(story: Story) -> list[str]:
    return [f"{pixel}\nlabel: {word_of(y)}" for pixel, y in zip(PIXELS, story.labels.flatten().tolist(), strict=True)]


def plot_tiles(labels: Sequence[Sequence[int]], rows: Sequence[str], ax: Axes) -> Axes:
    """Labels as coloured tiles with their words: one row per rule, one column per pixel."""
    colours = {c: colour for c, colour in enumerate(CLASS_COLOURS)} | {IGNORE: "#ffffff"}
    for y, row in enumerate(labels):
        for x, label in enumerate(row):
            hatch = "////" if label == IGNORE else None
            ax.bar(x, 0.86, 0.94, y - 0.43, facecolor=colours[label], edgecolor="#999999", linewidth=0.6, hatch=hatch)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if label == IGNORE else None
            ax.text(x, y, word_of(label), ha="center", va="center", color="black" if box else "white", fontsize=8, bbox=box)
    ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5), xlim=(-0.55, len(PIXELS) - 0.45))
    ax.set_yticklabels(rows)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    return ax


# --- figures ---


def figure_story(story: Story | None = None) -> Figure:
    """The four pixels: what the camera sees, what is really there, what this step tells, what both models say."""
    story = tell() if story is None else story
    fig = figure(6.8, 4.0)
    tiles, bars = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2.4))
    labels = [TRUTH, tuple(story.labels.flatten().tolist())]
    plot_tiles(labels, ["really there", "label at this step"], tiles)
    for x, colour in enumerate(PHOTO):
        tiles.bar(x, 0.86, 0.94, -1.43, facecolor=colour, edgecolor="#999999", linewidth=0.6)
        tiles.text(x, -1, PIXELS[x], ha="center", va="center", fontsize=9, color="black" if x == 0 else "white")
    tiles.set(ylim=(1.5, -1.5), yticks=(-1, 0, 1))
    tiles.set_yticklabels(["in the image", "really there", "label at this step"])
    lies = [x for x in range(4) if labels[1][x] not in (labels[0][x], IGNORE)]
    for x in lies:
        tiles.bar(x, 0.9, 0.97, 0.55, facecolor="none", edgecolor=ERRORS["forgotten"][0], linewidth=2.2)
    p, q = probabilities("cross-entropy", story).numpy(), _taught(story)[0, :, 0].T.numpy()
    plot_bars(p, bars, names=[f"new: {c}" for c in CLASSES], colours=CLASS_COLOURS, frames=q)
    bars.set(ylabel="probability", ylim=(0, 1.05), xticks=range(4))
    bars.set_xticklabels(PIXELS)
    legend_below(fig, bars.get_legend_handles_labels()[0])
    return fig


def figure_loss(name: str, story: Story, **options: float) -> Figure:
    """A loss on logits: probabilities and what is aimed at, the loss of each pixel, and where it moves each logit."""
    loss = _loss(name)
    shown = ", ".join(f"{_GREEK[key]} = {value:g}" for key, value in _settings(loss, options).items())
    fig = _three(
        probabilities(name, story), values(name, story, **options).detach(), push(name, story, **options),
        names=[f"new: {c}" for c in CLASSES], colours=CLASS_COLOURS, frames=aims(name, story, **options),
        words=loss.target_words, ylabels=("sigmoid" if loss.sigmoid else "probability", "loss (nats)", "push on logit"),
        ticks=_ticks(story), title=f"{name}, {shown}" if shown else name,
    )  # fmt: skip
    fig.axes[0].set_ylim(0, 1.05)
    return fig


_GREEK = {"alpha": "α", "gamma": "γ"}


def figure_pushes(story: Story, names: Sequence[str] | None = None) -> Figure:
    """All losses on logits at once: rows are losses, columns the logits of each pixel; blue raises a logit, red lowers it."""
    names = list(LOSSES) if names is None else list(names)
    moves = torch.stack([push(name, story) for name in names]).numpy()  # (losses, 4, 3)
    fig = figure(8.2, 0.6 + 0.33 * len(names))
    axes = fig.subplots(1, 4, sharey=True)
    reach = float(np.abs(moves).max())
    written_out = moves.round(2) + 0.0  # no "-0.00"
    for i, (ax, tick) in enumerate(zip(axes, _ticks(story), strict=True)):
        sns.heatmap(
            moves[:, i], ax=ax, vmin=-reach, vmax=reach, cmap="RdBu", annot=written_out[:, i], fmt="+.2f",
            annot_kws={"size": 7}, cbar=False, xticklabels=SHORT, yticklabels=names, linewidths=1,
        )  # fmt: skip
        ax.set_title(tick)
        ax.tick_params(length=0)
    fig.colorbar(axes[-1].collections[0], ax=list(axes), label="push on the logit", shrink=0.8, pad=0.01)
    return fig


# --- DKD's reasons ---


def reasons(story: Story) -> tuple[Tensor, Tensor]:
    """(1, 2, 1, 4) each: evidence for and against "car", of the new and of the old model."""
    weight = torch.tensor(WEIGHT, dtype=torch.float64)[OLD]
    new, old = (torch.cat(L.reasoning_scores(f, weight), dim=1) for f in (story.features, story.old_features))
    return new, old


def figure_reasons(story: Story) -> Figure:
    """DKD's L+ and L-: evidence for and against "car" at each pixel, what keeping both costs, and where it moves them."""
    new, old = reasons(story)
    new = new.requires_grad_()
    each = L.sigmoid_distillation(new, old, reduction="none").sum(dim=1)
    each.sum().backward()
    assert new.grad is not None
    return _three(
        new.detach()[0, :, 0].T, each.detach().flatten(), -new.grad[0, :, 0].T,
        names=["new: for car", "new: against car"], colours=(FOR, AGAINST), frames=old[0, :, 0].T, words="old model",
        ylabels=("evidence", "L₊ + L₋ (nats)", "push"), ticks=PIXELS, title="evidence for and against car",
    )  # fmt: skip


# --- pseudo-label rules ---


def rules(story: Story, *, threshold: float = 0.7, margin: float = 0.5, uncertainty: float = 0.35) -> dict[str, list[int]]:
    """Words of a rule -> labels of the four pixels. margin: best minus second best; uncertainty: PLOP's threshold, 0..0.46."""
    y, t = story.labels, story.teacher
    found = {
        "as told": y,
        "threshold (SSUL, IDEC, LAG)": confident(y, t, threshold=threshold, first=1, activation="softmax"),
        "threshold and margin (LAG)": confident(y, t, threshold=threshold, first=1, activation="softmax", margin=margin),
        "threshold, else void (MBS, AMIS)": selective(y, t, threshold=threshold),
        "low entropy, else void (PLOP)": entropy_labels(y, t, torch.full((3,), uncertainty, dtype=torch.float64), 3)[0],
        "really there": torch.tensor(TRUTH),
    }
    return {words: labels.flatten().tolist() for words, labels in found.items()}


def uncertainties(story: Story) -> Tensor:
    """(4,) PLOP's uncertainty of the old model, 0..0.46 here: mean over its 2 classes of -q log q, over log 2 and log 3."""
    return scaled_entropy(_taught(story)).flatten() / np.log(3)


def figure_rules(story: Story, *, threshold: float = 0.7, margin: float = 0.5, uncertainty: float = 0.35) -> Figure:
    """What the old model says, how uncertain it is, and what every rule makes of the labels."""
    fig = figure(7.6, 5.0)
    axes = fig.subplots(3, 1, sharex=True, height_ratios=(2, 1.4, 3))
    names = [f"old: {c}" for c in CLASSES[KNOWN]]
    plot_bars(_taught(story)[0, :, 0].T.numpy(), axes[0], names=names, colours=CLASS_COLOURS)
    axes[0].axhline(threshold, color=ERRORS["forgotten"][0], linestyle="--", linewidth=1.2, label=f"threshold τ = {threshold:g}")
    axes[0].set(ylabel="probability", ylim=(0, 1.05))
    plot_losses(uncertainties(story).numpy(), axes[1])
    axes[1].axhline(uncertainty, color=ERRORS["taken over"][0], linestyle=":", linewidth=1.4, label=f"PLOP's τ = {uncertainty:g}")
    axes[1].set(ylabel="uncertainty", ylim=(0, 0.6))
    found = rules(story, threshold=threshold, margin=margin, uncertainty=uncertainty)
    plot_tiles(list(found.values()), list(found), axes[2])
    axes[2].set_xticks(range(4), _ticks(story))
    fig.align_ylabels(list(axes[:2]))
    legend_below(fig, [handle for ax in axes[:2] for handle in ax.get_legend_handles_labels()[0]])
    return fig


# --- losses on features ---


def trust(story: Story, *, threshold: float = 0.7) -> Tensor:
    """(1, 1, 4) MBS's reliability of the old model's features, after its own pseudo-labels."""
    return L.reliability(story.teacher, selective(story.labels, story.teacher, threshold=threshold))


def figure_patches(story: Story, *, threshold: float = 0.7) -> Figure:
    """MBS: the four pixels in the plane of their features, what holds each of them, and how much."""
    r = trust(story, threshold=threshold)
    s = story.features.clone().requires_grad_()
    loss = L.reliable_patches(s, story.old_features, r)
    loss.backward()
    assert s.grad is not None
    new, old, moves = (x[0, :, 0].T.numpy() for x in (story.features, story.old_features, -s.grad))
    terms = (r * (story.features - story.old_features).square().mean(dim=1)).flatten().numpy()
    fig = figure(7.6, 3.2)
    plane, bars = fig.subplots(1, 2, width_ratios=(1.25, 1))
    for i, pixel in enumerate(PIXELS):
        colour = CLASS_COLOURS[TRUTH[i]]
        plane.plot(*old[i], "o", markersize=9, markerfacecolor="white", markeredgecolor=colour)
        plane.plot(*new[i], "o", markersize=9, color=colour)
        plane.annotate(pixel, new[i], (0, 9), textcoords="offset points", ha="center", fontsize=8)
    size = float(np.abs(moves).max()) or 1.0
    plane.quiver(*new.T, *(0.5 * moves / size).T, zorder=3, **ARROWS)
    plane.set(xlabel="feature: wheels", ylabel="feature: fur", xlim=(-0.4, 2.7), ylim=(-0.4, 2.7))
    plane.set_title("filled: new model, hollow: old, arrow: push")
    bars.bar(np.arange(4) - 0.2, r.flatten().numpy(), 0.36, color="#56b4e9", label="trust r")
    held = bars.bar(np.arange(4) + 0.2, terms, 0.36, color="#9a9a9a", label="r · mean squared difference")
    bars.bar_label(held, [f"{term:.3f}" for term in terms], fontsize=7, padding=2)
    bars.set(xticks=range(4), ylim=(0, 1.15), title=f"loss {loss.item():.4f}")
    bars.set_xticklabels(PIXELS)
    legend_below(fig, bars.get_legend_handles_labels()[0])
    return fig


def figure_pod(story: Story) -> Figure:
    """PLOP's pooled statistics of the squared strip at scale 1: the mean of its row and of each column, per channel."""
    s = story.features.clone().requires_grad_()
    loss = L.local_pod(s, story.old_features, scales=(1,))
    loss.backward()
    assert s.grad is not None
    new, old = (L.pod_embedding(x.square(), (1,)).flatten().numpy() for x in (story.features, story.old_features))
    order = [0, 2, 3, 4, 5, 1, 6, 7, 8, 9]  # wheels: row, columns; fur: row, columns
    fig = figure(8.2, 3.1)
    pooled, arrows = fig.subplots(1, 2, width_ratios=(1.6, 1))
    for c, (name, colour) in enumerate(zip(CHANNELS, CHANNEL_COLOURS, strict=True)):
        pooled.bar(range(5 * c, 5 * c + 5), new[order][5 * c : 5 * c + 5], 0.5, color=colour, label=name)
    pooled.bar(range(10), old[order], 0.74, **HOLLOW)
    pooled.set_xticks(range(10), ["row mean", *PIXELS] * 2, rotation=45, ha="right")
    pooled.set(ylabel="mean of squares", title=f"filled: new model, frame: old; distance {loss.item():.3f}")
    plot_push(-s.grad[0, :, 0].T.numpy(), arrows, colours=CHANNEL_COLOURS)
    arrows.set_xticks(range(4), PIXELS)
    arrows.set(ylabel="push on feature", title="wheels left, fur right")
    legend_below(fig, pooled.get_legend_handles_labels()[0])
    return fig


def figure_column(story: Story, *, alpha: float = 2.0) -> Figure:
    """LAG's channel-wise decoupling with the strip set upright: every channel as a distribution over the four pixels."""
    s, t = (x.transpose(2, 3) for x in (story.features, story.old_features))  # (1, 2, 4, 1): four rows
    s = s.clone().requires_grad_()
    loss = L.channel_decoupling(s, t, alpha=alpha)
    loss.backward()
    assert s.grad is not None
    target, log_old = (alpha * s.detach()).softmax(dim=2), t.log_softmax(dim=2)
    each = -(target * log_old).mean(dim=1).flatten()
    return _three(
        target[0, :, :, 0].T, each, -s.grad[0, :, :, 0].T, names=[f"new, sharpened: {c}" for c in CHANNELS],
        colours=CHANNEL_COLOURS, frames=log_old.exp()[0, :, :, 0].T, words="old model",
        ylabels=("share of the channel", "term (nats)", "push on feature"), ticks=PIXELS,
        title=f"two channels over four rows, α = {alpha:g}; loss {loss.item():.3f}",
    )  # fmt: skip


# --- losses on directions ---


@dataclass(frozen=True)
class Circle:
    """A loss that sees directions only. arrows: name -> degrees at the start, colour. old: those that stand still and are drawn
    hollow. call: (n, 2) unit vectors in this order -> scalar."""

    arrows: Mapping[str, tuple[float, str]]
    old: tuple[str, ...]
    call: Callable[[Tensor], Tensor]


def _triplets(v: Tensor) -> Tensor:
    """One cell each of car, sky and dog; the old model's car is the anchor."""
    student = v[1:].T.reshape(1, 2, 1, 3)
    teacher = torch.stack([v[0], v[2].detach(), v[3].detach()]).T.reshape(1, 2, 1, 3)
    was, now = torch.tensor([1, 0, 0]).view(1, 1, 3), torch.tensor([1, 0, 2]).view(1, 1, 3)
    return L.region_triplets(student, teacher, was, now, n_old=1, n_ids=3, min_cells=1)


_BG, _CAR, _DOG = CLASS_COLOURS
CIRCLES: dict[str, Circle] = {
    "contrast over the batch": Circle(
        {"street, old": (20, _CAR), "park, old": (80, _DOG), "street, new": (40, _CAR), "park, new": (60, _DOG)},
        ("street, old", "park, old"),
        lambda v: L.decoupled_contrast(v[2:], v[:2], temperature=0.5, normalise=True),
    ),
    "contrast of regions": Circle(
        {"car, old": (8, _CAR), "car, new": (7, _CAR), "sky, new": (45, _BG), "dog, new": (76, _DOG)}, ("car, old",), _triplets
    ),
    "orthogonality": Circle(
        {"background": (90, _BG), "car": (20, _CAR), "dog": (70, _DOG)}, (), lambda v: L.orthogonality(v, new=NEW)
    ),
    "token cosine": Circle(
        {"background, old": (90, _BG), "car, old": (20, _CAR), "background, new": (100, _BG), "car, new": (50, _CAR)},
        ("background, old", "car, old"),
        lambda v: L.token_cosine(v[2:], v[:2]),
    ),
}
"""Losses on directions, by name: LAG's contrast, IDEC's as its figure shows it, MBS's orthogonality, AMIS's token cosine."""


def turned(name: str, degrees: Mapping[str, float] | None = None) -> tuple[float, Tensor, Tensor]:
    """Loss, unit vectors (n, 2) and where they are pushed (n, 2), minus the gradient. degrees: name -> angle, for some or all."""
    if name not in CIRCLES:
        raise unknown("loss on directions", name, CIRCLES)
    circle, degrees = CIRCLES[name], degrees or {}
    for arrow in degrees:
        if arrow not in circle.arrows:
            raise unknown(f"arrow of {name}", arrow, circle.arrows)
    angles = torch.tensor([degrees.get(a, start) for a, (start, _) in circle.arrows.items()], dtype=torch.float64).deg2rad()
    v = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    loss = circle.call(v)
    loss.backward()
    assert v.grad is not None
    return float(loss.detach()), v.detach(), -v.grad


def figure_circle(name: str, degrees: Mapping[str, float] | None = None) -> Figure:
    """A loss on directions: arrows on a circle, old ones dashed, and which way each is turned."""
    loss, v, moves = turned(name, degrees)
    circle = CIRCLES[name]
    fig = figure(5.4, 3.7)
    ax = fig.subplots()
    ax.plot(*np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 200)]).T, color="#cccccc", linewidth=0.8)
    size = max(float(moves.norm(dim=1).max()), 1e-9)
    for (arrow, (_, colour)), tip, move in zip(circle.arrows.items(), v.numpy(), moves.numpy(), strict=True):
        length, line = (0.8, "--") if arrow in circle.old else (1.0, "-")
        look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "linestyle": line, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", length * tip, (0, 0), arrowprops=look)
        ax.plot([], [], color=colour, linestyle=line, label=arrow)
        if np.linalg.norm(move) > 1e-3 * size:
            ax.quiver(*tip, *(0.45 * move / size), color=GREY, zorder=3, **ARROWS)
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.35, 1.35), aspect="equal", title=f"{name}: {loss:.3f}\ngrey: which way it is turned")
    ax.set_axis_off()
    fig.legend(loc="outside right center")
    return fig


# --- AMIS's pooled statistics ---

EMBEDDING, OLD_EMBEDDING = (1.0, 2.0, 0.5, 1.0), (1.0, 1.0, 0.5, 2.0)
"""A class embedding of four numbers, new and old: two of them have changed places."""


def figure_pooled(embedding: Sequence[float] = EMBEDDING, old: Sequence[float] = OLD_EMBEDDING) -> Figure:
    """The same class embedding compared number by number (MBS) and by pooled statistics (AMIS)."""
    new, was = (torch.tensor(x, dtype=torch.float64) for x in (embedding, old))
    phi, phi_old = (L.pooled_statistics(x)[::2] for x in (new, was))  # every entry is written twice
    element = float((new - was).square().mean())
    pooled = float(torch.linalg.vector_norm(L.pooled_statistics(new) - L.pooled_statistics(was)))
    fig = figure(7.6, 2.9)
    axes = fig.subplots(1, 2, width_ratios=(1, 1.6))
    titles = (f"MBS: number by number, {element:.3f}", f"AMIS: pooled, distance {pooled:.3f}")
    ticks = (["1", "2", "3", "4"], ["all four", "1-2", "3-4", "1", "2", "3", "4"])
    for ax, a, b, title, tick in zip(axes, (new, phi), (was, phi_old), titles, ticks, strict=True):
        plot_bars(a.numpy()[:, None], ax, names=["new model"], colours=CHANNEL_COLOURS[1:], frames=b.numpy()[:, None])
        ax.set_xticks(range(len(tick)), tick)
        ax.set_title(title)
    axes[0].set(xlabel="channel", ylabel="class embedding")
    axes[1].set(xlabel="channels pooled", ylabel="mean of squares / scale²")
    legend_below(fig, axes[0].get_legend_handles_labels()[0])
    return fig


# --- between background and an old class ---


def plot_lead(story: Story, ax: Axes, *, margin: float = 2.0, pixel: int = 3) -> Axes:
    """Losses at one pixel against how far the logit of car leads that of background; the other logit stands still."""
    z = story.student[0, :, 0, pixel]
    lead = torch.linspace(-4, 6, 201, dtype=torch.float64)
    middle = (z[0] + z[1]) / 2
    logits = torch.stack([middle - lead / 2, middle + lead / 2, z[2].expand_as(lead)]).view(1, 3, 1, -1)
    label, told = torch.zeros(1, 1, len(lead), dtype=torch.long), story.teacher[0, :, 0, pixel]
    teacher = told.view(1, 2, 1, 1).expand(-1, -1, -1, len(lead))
    kd = L.unbiased_distillation(logits, teacher, new=NEW, reduction="none")
    curves = {
        "cross-entropy, label background": (L.cross_entropy(logits, label, reduction="none"), ERRORS["forgotten"][0], "-"),
        "unbiased cross-entropy": (L.unbiased_cross_entropy(logits, label, known=KNOWN, reduction="none"), "#4393c3", "-"),
        "unbiased distillation, less its least value": (kd - kd.min(), "#332288", "--"),
        f"hinge: max(0, {margin:g} − lead)": ((margin - lead).relu().view(1, 1, -1), "#009988", "-"),
    }
    for words, (curve, colour, style) in curves.items():
        ax.plot(lead, curve.flatten(), color=colour, linestyle=style, label=words)
    ax.axvline(float(z[1] - z[0]), color=GREY, linestyle=":", label="the new model now")
    ax.axvline(float(told[1] - told[0]), color="black", linestyle=":", label="the old model")
    ax.set(xlabel="lead of car over background (difference of logits)", ylabel="loss", xlim=(-4, 6), ylim=(-0.1, 4))
    ax.set_title(f"{PIXELS[pixel]}: what each loss wants")
    return ax


def figure_lead(story: Story | None = None, *, margin: float = 2.0) -> Figure:
    """`plot_lead` on a figure of its own."""
    fig = figure(7.2, 3.1)
    ax = plot_lead(tell() if story is None else story, fig.subplots(), margin=margin)
    fig.legend(handles=ax.get_legend_handles_labels()[0], loc="outside right center")
    return fig


# --- sliders ---


def _explore(columns: Sequence[Sequence[Any]], draw: Callable[[], Sequence[Any]]) -> Any:
    """Columns of controls over a picture that follows them; one static picture first, so that the page reads without a kernel."""
    import ipywidgets as widgets

    out = following(draw, (control for column in columns for control in column))
    return widgets.VBox([widgets.HBox([widgets.VBox(list(column)) for column in columns]), out])


def _slider(value: float, low: float, high: float, words: str, step: float = 0.1, width: int = 52) -> Any:
    import ipywidgets as widgets

    return widgets.FloatSlider(
        value=value, min=low, max=high, step=step, description=words, readout_format=".2f" if step < 0.1 else ".1f",
        layout=widgets.Layout(width=f"{width + 148}px"), style={"description_width": f"{width}px"},
    )  # fmt: skip


def _columns(given: Tensor, words: Sequence[str], low: float, high: float) -> list[list[Any]]:
    """A column of sliders per pixel under its name. given: (1, C, 1, 4)."""
    import ipywidgets as widgets

    return [
        [
            widgets.HTML(f"<b>{pixel}</b>"),
            *(_slider(float(v), low, high, w) for v, w in zip(given[0, :, 0, i], words, strict=True)),
        ]
        for i, pixel in enumerate(PIXELS)
    ]


def _read(columns: Sequence[Sequence[Any]], first: int, last: int) -> Tensor:
    """(1, C, 1, 4) from the controls first..last-1 of each pixel's column."""
    rows = [[control.value for control in column[first:last]] for column in columns]
    return torch.tensor(rows, dtype=torch.float64).T[None, :, None]


def explore_loss(name: str, story: Story) -> Any:
    """Sliders for every logit, and labels to choose, per pixel; `figure_loss` and `table` follow. Returns the widget."""
    import ipywidgets as widgets

    loss = _loss(name)
    both = torch.cat([story.student, story.teacher], dim=1) if loss.target else story.student
    columns = _columns(both, [*(f"z {c}" for c in SHORT), *(f"old {c}" for c in SHORT[KNOWN])][: both.shape[1]], -6, 6)
    options: Any = [(word_of(c), c) for c in (0, 1, 2, IGNORE)]
    for column, y in zip(columns, story.labels.flatten().tolist(), strict=True):
        look = {"layout": widgets.Layout(width="190px"), "style": {"description_width": "52px"}}
        column.insert(1, widgets.Dropdown(options=options, value=y, description="label", **look))
    extra = {key: _slider(*bounds, _GREEK[key], 0.5) for key, bounds in loss.options.items()}

    def draw() -> list[Any]:
        told = _read(columns, 1, 2)[0].long()
        teacher = _read(columns, 5, 7) if loss.target else story.teacher
        now = replace(story, labels=told, student=_read(columns, 2, 5), teacher=teacher)
        values = {key: control.value for key, control in extra.items()}
        return [figure_loss(name, now, **values), table(name, now, **values)]

    return _explore([*columns, list(extra.values())], draw)


def explore_features(draw: Callable[..., Figure], story: Story, **options: tuple[float, float, float]) -> Any:
    """Sliders for the new model's features; ``draw(story, **options)`` follows, and so do sliders for its options.

    draw: `figure_patches`, `figure_pod`, `figure_column` or `figure_reasons`. options: name -> value, least, most.
    """
    columns = _columns(story.features, CHANNELS, 0, 2.5)
    extra = {key: _slider(*bounds, key, 0.05, 65) for key, bounds in options.items()}

    def redraw() -> list[Any]:
        now = replace(story, features=_read(columns, 1, 3))
        return [draw(now, **{key: control.value for key, control in extra.items()})]

    return _explore([*columns, list(extra.values())], redraw)


def explore_rules(story: Story, *, threshold: float = 0.7) -> Any:
    """Sliders for the old model's logits and for the thresholds; `figure_rules` follows. Returns the widget."""
    columns = _columns(story.teacher, [f"old {c}" for c in SHORT[KNOWN]], -6, 6)
    bounds: dict[str, tuple[float, float, float]] = {"τ": (threshold, 0, 1), "margin": (0.5, 0, 1), "PLOP's τ": (0.35, 0, 0.46)}
    limits = [_slider(*given, words, 0.01, 65) for words, given in bounds.items()]

    def draw() -> list[Any]:
        tau, margin, uncertainty = (control.value for control in limits)
        now = replace(story, teacher=_read(columns, 1, 3))
        return [figure_rules(now, threshold=tau, margin=margin, uncertainty=uncertainty)]

    return _explore([*columns, limits], draw)


def explore_circle(name: str) -> Any:
    """A slider of degrees for every arrow; `figure_circle` follows. Returns the widget."""
    _, start, _ = turned(name)
    degrees = torch.rad2deg(torch.atan2(start[:, 1], start[:, 0])).tolist()
    controls = {a: _slider(d, -180, 180, f"{a} (°)", 1, 130) for a, d in zip(CIRCLES[name].arrows, degrees, strict=True)}
    return _explore([list(controls.values())], lambda: [figure_circle(name, {k: c.value for k, c in controls.items()})])


def explore_pooled() -> Any:
    """Four sliders for the new embedding; `figure_pooled` follows. Returns the widget."""
    controls = [_slider(value, -3, 3, f"channel {i}", width=65) for i, value in enumerate(EMBEDDING, start=1)]
    return _explore([controls[:2], controls[2:]], lambda: [figure_pooled([control.value for control in controls])])


def explore_lead(story: Story) -> Any:
    """A slider for the margin; `figure_lead` follows. Returns the widget."""
    margin = _slider(2.0, 0, 4, "margin")
    return _explore([[margin]], lambda: [figure_lead(story, margin=margin.value)])
