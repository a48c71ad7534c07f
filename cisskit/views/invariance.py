"""LAG: which channels a step left alone, what rules about uncertainty accept, products over the batch, prototypes of classes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor, nn

from cisskit.data import Batch, Data, Toy
from cisskit.data.transforms import normalise
from cisskit.errors import KitError, unknown
from cisskit.losses import class_means
from cisskit.method import Context
from cisskit.models import Model
from cisskit.openset import grey_entropy
from cisskit.pseudo import activate, closed_labels, confident, open_labels
from cisskit.scenario import BACKGROUND, IGNORE, Scenario
from cisskit.semantics import Change, Maps, channel_change, semantic_maps, semantic_split
from cisskit.views.masks import Picture, aspect, photo, show_image, show_labels, test_pictures
from cisskit.views.report import Restore
from cisskit.views.style import (
    class_patches,
    figure,
    following,
    grid,
    legend_below,
    method_colour,
    method_title,
    note,
    row_label,
    spread,
)
from cisskit.views.tables import Chain

SI, SS = "#0072b2", "#d55e00"
"""Semantic-invariant and sample-specific channels."""

SIZE, ALIKE = "magma", "cividis"
"""Colour maps: size of features, likeness."""

HALF = 65504
"""The largest number of half precision."""

Pair = tuple[Tensor, Tensor]
"""Features of the student and of the teacher, (B, D, h, w) each."""


# --- the problem ---


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """LAG's idea in one picture: two channels made by hand on embedded scenes, and by how much each moves. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=40))
    pictures = test_pictures(data, data.scenario.steps[-1], 40)
    c = int(np.bincount(np.concatenate([p.truth.ravel() for p in pictures[:3]]), minlength=256)[1:IGNORE].argmax()) + 1
    pictures = sorted(pictures, key=lambda p: -int((p.truth == c).sum()))[:2]
    channels = [by_hand(p.image, torch.from_numpy(p.truth == c)) for p in pictures]
    fig, axes = grid(len(pictures), 5, cell=1.55, aspect=aspect(pictures[0].image), margin=0.6, legend=0.8)
    shown: Any = None
    for row, picture, (old, new) in zip(axes, pictures, channels, strict=True):
        show_image(picture.image, row[0])
        for k, ax in enumerate(row[1:]):
            part = (old, new)[k % 2][k // 2]
            shown = ax.imshow(part.numpy(), cmap=SIZE, vmin=0, vmax=4, interpolation="nearest")
    before, after = (torch.stack(each) for each in zip(*channels, strict=True))
    moved = channel_change(after, before).divergence
    axes[0, 0].set_title("image")
    for k, (word, colour) in enumerate((("semantic-invariant", SI), ("sample-specific", SS))):
        axes[0, 1 + 2 * k].set_title(f"{word}\nold model", color=colour)
        axes[0, 2 + 2 * k].set_title(f"KL = {moved[k]:.2f} nats\nnew model", color=colour)
    fig.colorbar(shown, ax=axes, label="value of the channel", shrink=0.8, pad=0.02)
    return fig


def by_hand(image: Tensor, where: Tensor) -> Pair:
    """Two channels in an old and in a new model, (2, 16, 16) each, 0 to 4: where a class is, which stays, and where the image is
    bright, which turns into where it is dark. image: (3, H, W) uint8; where: (H, W) bool."""
    grey = F.adaptive_avg_pool2d(image.float().mean(0)[None] / 255, 16)
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    region = F.adaptive_avg_pool2d(where.float()[None], 16)
    soft = F.avg_pool2d(region[None], 3, stride=1, padding=1)[0]
    return 4 * torch.cat([region, grey]), 4 * torch.cat([0.7 * region + 0.3 * soft, 1 - grey])


# --- channels ---


def features_of(model: Model, batch: Batch) -> Tensor:
    """(B, D, h, w) features that the heads read, float32 on the CPU. The model is left in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(batch.image).features["decoder"].float().cpu()


def inside_head(model: Model, batch: Batch, head: int = 0) -> Tensor:
    """(B, D, h, w) activations of a head after its 3x3 convolution, float32 on the CPU; head 0 is the unknown class.

    Raises `KitError` for a network whose heads are a single 1x1 convolution.
    """
    part = model.heads[head]
    if not isinstance(part, nn.Sequential):
        raise KitError(f"head {head} is a {type(part).__name__} without layers inside; take the networks of SSUL, IDEC or LAG.")
    model.eval()
    with torch.no_grad():
        return part[:-1](model(batch.image).features["decoder"]).float().cpu()


def plot_divergence(change: Change, si: Tensor, ax: Axes, *, bins: int = 24) -> Axes:
    """Histogram of how far channels moved (nats), SI and SS channels in their colours, the split between them dashed.

    si: the semantic-invariant channels, from `semantic_split`. Channels that did not move at all stand at 0.
    """
    moved = change.divergence.double().cpu().numpy()
    invariant = np.zeros(len(moved), dtype=bool)
    invariant[si.cpu().numpy()] = True
    top = float(moved.max()) if len(moved) else 0.0
    still = top < 1e-9  # rounding
    edges = np.linspace(0, 1.0 if still else 1.0001 * top, bins + 1)
    heights = [np.histogram(np.zeros(int(m.sum())) if still else moved[m], edges)[0] for m in (invariant, ~invariant)]
    ax.bar(edges[:-1], heights[0], width=np.diff(edges), align="edge", color=SI, edgecolor="white", linewidth=0.4)
    ax.bar(
        edges[:-1], heights[1], bottom=heights[0], width=np.diff(edges), align="edge", color=SS, edgecolor="white", linewidth=0.4
    )
    if not still and invariant.any() and not invariant.all():
        ax.axvline((moved[invariant].max() + moved[~invariant].min()) / 2, color="black", linestyle="--", linewidth=1.2)
    if still:
        ax.text(0.5, 0.6, "no channel moved", ha="center", transform=ax.transAxes, color="#555555")
        ax.set_xticks([0])
    ax.set(xlabel="divergence KL(old || new) (nats)", ylabel="channels", xlim=(0, edges[-1]))
    return ax


def plot_entropies(change: Change, si: Tensor, ax: Axes) -> Axes:
    """Entropy of each channel (nats, mean over images) in the old and in the new model; on the diagonal nothing changed."""
    old, new = (h.double().mean(dim=0).cpu().numpy() for h in (change.old_entropy, change.new_entropy))
    invariant = np.zeros(len(old), dtype=bool)
    invariant[si.cpu().numpy()] = True
    low, high = min(old.min(), new.min()), max(old.max(), new.max())
    room = 0.05 * (high - low) or 0.1
    ax.plot([low - room, high + room], [low - room, high + room], color="#999999", linewidth=0.8, zorder=1)
    for where, colour, marker in ((invariant, SI, "o"), (~invariant, SS, "^")):
        ax.scatter(old[where], new[where], s=18, color=colour, marker=marker, edgecolor="white", linewidth=0.4, zorder=2)
    ax.set(xlabel="entropy in the old model (nats)", ylabel="in the new model (nats)")
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
    return ax


def figure_channels(pairs: Mapping[str, Pair], rho: float) -> Figure:
    """Per pair of features a row: `plot_divergence`, `plot_entropies`. pairs: words -> (student, teacher). rho: share of SI."""
    fig = figure(7.6, 2.3 * len(pairs) + 0.5)
    axes = fig.subplots(len(pairs), 2, squeeze=False, width_ratios=[1.5, 1])
    for row, (words, (student, teacher)) in zip(axes, pairs.items(), strict=True):
        change, (si, _) = channel_change(student, teacher), semantic_split(student, teacher, rho)
        plot_divergence(change, si, row[0]).set_title(words, loc="left")
        plot_entropies(change, si, row[1])
    legend_below(fig, channel_handles(rho))
    return fig


def channel_handles(rho: float) -> list[Any]:
    """Legend entries for the two kinds of channels."""
    grey: dict[str, Any] = {"linestyle": "", "markersize": 7}
    return [
        Line2D([], [], marker="o", color=SI, label=f"semantic-invariant: the {100 * rho:.0f} % that moved least", **grey),
        Line2D([], [], marker="^", color=SS, label="sample-specific: the others", **grey),
        Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="the split"),
    ]


# --- maps ---


def figure_maps(batch: Batch, pair: Pair, ctx: Context, rho: float) -> Figure:
    """Images, the size of the student's SI and SS channels (scaled per image), and how alike old and new SI channels are.

    pair: (student, teacher) features of this batch. rho: share of SI channels.
    """
    student, teacher = pair
    si, ss = semantic_split(student, teacher, rho)
    maps = semantic_maps(student, teacher, si, ss)
    images = [photo(image, ctx.data.source) for image in batch.image]
    rows = (
        "image",
        f"{len(si)} SI channels\nof the student",
        f"{len(ss)} SS channels\nof the student",
        "old and new SI\nchannels alike",
    )
    fig, axes = grid(4, len(images), cell=1.45, aspect=aspect(images[0]), margin=0.4, legend=1.6)
    lowest = 0.0 if float(maps.consistency.min()) >= -1e-6 else -1.0
    shown: dict[int, Any] = {}
    for i, column in enumerate(axes.T):
        show_image(images[i], column[0])
        for k, (part, colours, low) in enumerate(
            ((maps.si, SIZE, 0.0), (maps.ss, SIZE, 0.0), (maps.consistency, ALIKE, lowest)), 1
        ):
            shown[k] = column[k].imshow(part[i].cpu().numpy(), cmap=colours, vmin=low, vmax=1, interpolation="nearest")
    for ax, text in zip(axes[:, 0], rows, strict=True):
        row_label(ax, text)
    fig.colorbar(shown[1], ax=list(axes[1:3].flat), label="mean size, per image (0 to 1)", shrink=0.8, pad=0.02)
    fig.colorbar(shown[3], ax=list(axes[3]), label="cosine", shrink=0.9, pad=0.02)
    return fig


def explore_maps(batch: Batch, pair: Pair, ctx: Context) -> Any:
    """A slider for rho; `figure_maps` once as a static picture, so that the page reads without a kernel. Returns the widget."""
    import ipywidgets as widgets
    from IPython.display import display

    start = float(getattr(ctx.method, "rho", 0.5))
    rho = widgets.FloatSlider(min=0, max=1, step=0.05, value=start, description="ρ", continuous_update=False)
    out = widgets.Output()

    def redraw(_: Any) -> None:
        with out:
            out.clear_output(wait=True)
            display(figure_channels({"features that the heads read": pair}, rho.value))
            display(figure_maps(batch, pair, ctx, rho.value))

    display(figure_maps(batch, pair, ctx, start))
    rho.observe(redraw, names="value")
    return widgets.VBox([rho, out])


# --- over the steps, any method ---


ByStep = Mapping[int, Tensor]
"""Step -> features (B, D, h, w) of the same images after that step."""


def same_size(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures, cut at their centres to the smallest height and width, so that they fit into one batch."""
    h, w = (min(p.image.shape[k] for p in pictures) for k in (1, 2))
    found = []
    for p in pictures:
        top, left = (p.image.shape[1] - h) // 2, (p.image.shape[2] - w) // 2
        cut = (slice(top, top + h), slice(left, left + w))
        found.append(Picture(p.name, p.image[:, *cut], p.truth[cut]))
    return found


def features_by_step(chain: Chain, restore: Restore, pictures: Sequence[Picture]) -> dict[int, Tensor]:
    """Features that the heads read, of the same pictures (of one size, see `same_size`) after every step of a chain."""
    found = {}
    for run in chain.runs:
        ctx = restore(run)
        ctx.model.eval()
        source = ctx.data.source
        with torch.no_grad():  # one at a time: hundreds of pictures need no more memory than one
            maps = [
                ctx.model(normalise(p.image, source.mean, source.std)[None].to(ctx.device)).features["decoder"] for p in pictures
            ]
        found[run.step] = torch.cat(maps).float().cpu()
    return found


REFERENCES = {"first": "the first step", "before": "the step before"}


def changes(features: ByStep, reference: str = "first") -> dict[int, Pair]:
    """Step -> (features after it, features of the reference) for all later steps.

    reference: "first", what all steps together did since the first one that is there; or "before", what each step did.
    """
    if reference not in REFERENCES:
        raise unknown("reference", reference, REFERENCES)
    steps = sorted(features)
    old = {t: steps[0] if reference == "first" else t - 1 for t in steps[1:]}
    return {t: (features[t], features[k]) for t, k in old.items() if k in features}


def divergences(features: ByStep, reference: str = "first") -> dict[int, NDArray[np.float64]]:
    """Step -> (D,) KL(reference || after the step) of every channel in nats; exactly 0 where nothing moved."""
    return {
        t: np.zeros(new.shape[1]) if torch.equal(new, old) else channel_change(new, old).divergence.double().numpy()
        for t, (new, old) in changes(features, reference).items()
    }


def moved_sentence(found: Mapping[str, ByStep], reference: str = "first") -> str:
    """Which channels moved by the last step, a line per method. Says so where not a single one did."""
    lines = []
    for method, features in found.items():
        by_step = divergences(features, reference)
        if not by_step:
            lines.append(f"{method_title(method)}: only one step was run, so nothing can have moved.")
            continue
        step, moved = max(by_step.items())
        title, since = method_title(method), f"after step {step}, since {REFERENCES[reference]}"
        if not moved.any():
            lines.append(
                f"{title}: the divergence of all {len(moved)} channels is exactly 0 {since}. The features are frozen, so there "
                "is no invariance to discover: every channel stays because none may move."
            )
        else:
            lines.append(
                f"{title}: {(moved > 0).sum()} of {len(moved)} channels moved {since}; the median divergence is "
                f"{np.median(moved):.3f} nats, the largest {moved.max():.3f}."
            )
    return "\n".join(lines)


def choose_one(found: Mapping[str, ByStep], wanted: str = "", *, first: str = "lag-described") -> str:
    """The method to look into: the one asked for; else ``first`` if it was run; else the one whose channels moved least and yet
    did; else any. Raises `KitError` for one that was not run."""
    if wanted:
        if wanted not in found:
            raise unknown("method of these runs", wanted, found)
        return wanted
    if first in found:
        return first
    median = {m: float(np.median(max(by_step.items())[1])) for m, f in found.items() if (by_step := divergences(f))}
    moving = {method: value for method, value in median.items() if value > 0}
    return min(moving, key=moving.__getitem__) if moving else next(iter(found))


def plot_stay(by_method: Mapping[str, NDArray[np.float64]], ax: Axes) -> Axes:
    """How many channels (%) moved at most so far (nats), one rising line per method in its colour; linear below 0.001.

    by_method: method -> (D,) divergences. A line at the left edge: no channel moved.
    """
    top = max((float(v.max()) for v in by_method.values() if len(v)), default=0.0) or 1.0
    for k, (method, values) in enumerate(by_method.items()):
        x = np.concatenate([[0.0], np.sort(values), [2 * top]])
        y = 100 * np.concatenate([[0.0], np.arange(1, len(values) + 1) / max(len(values), 1), [1.0]])
        style = ("-", "--", ":", "-.")[k % 4]
        ax.step(x, y, where="post", color=method_colour(method), linestyle=style, linewidth=1.6, label=method_title(method))
    ax.set_xscale("symlog", linthresh=1e-3)
    ax.set(xlim=(-5e-4, 2 * top), ylim=(-2, 102), xlabel="moved at most: divergence (nats)")
    ax.grid(color="#e5e5e5", linewidth=0.6)
    return ax


def figure_stay(found: Mapping[str, ByStep], reference: str = "first") -> Figure:
    """`plot_stay` for up to five later steps, side by side."""
    moved = {method: divergences(features, reference) for method, features in found.items()}
    steps = spread(sorted({t for by_step in moved.values() for t in by_step}))
    if not steps:
        return note("Only one step has been run: no channel can have moved yet.")
    fig = figure(1.0 + 3.0 * len(steps), 3.4)
    axes = fig.subplots(1, len(steps), squeeze=False, sharey=True)[0]
    for ax, t in zip(axes, steps, strict=True):
        plot_stay({method: by_step[t] for method, by_step in moved.items() if t in by_step}, ax)
        ax.set_title(f"step {t}, since {REFERENCES[reference]}")
    axes[0].set_ylabel("channels (%)")
    handles = {h.get_label(): h for ax in axes for h in ax.get_legend_handles_labels()[0]}
    legend_below(fig, list(handles.values()))
    return fig


def figure_split(method: str, features: ByStep, rho: float, *, reference: str = "first") -> Figure:
    """`figure_channels` of one method, a row for each of up to five later steps."""
    later = changes(features, reference)
    if not later:
        return note("Only one step has been run: there is no split yet.")
    since = REFERENCES[reference]
    return figure_channels({f"{method_title(method)}, step {t}, since {since}": later[t] for t in spread(sorted(later))}, rho)


def figure_maps_by_step(
    pictures: Sequence[Picture], features: ByStep, rho: float, *, reference: str = "first", shown: int = 2
) -> Figure:
    """SI map, SS map and consistency (rows) after up to five later steps (columns), for the first ``shown`` pictures.

    The split into SI and SS is made over all pictures, for each step anew.
    """
    later = changes(features, reference)
    steps = spread(sorted(later))
    if not steps:
        return note("Only one step has been run: there is no split yet.")
    pictures = pictures[:shown]
    found = {}
    for t in steps:
        student, teacher = later[t]
        found[t] = semantic_maps(student[: len(pictures)], teacher[: len(pictures)], *semantic_split(student, teacher, rho))
    fig, axes = grid(3 * len(pictures), 1 + len(steps), cell=1.35, aspect=aspect(pictures[0].image), margin=0.5, legend=1.8)
    lowest = 0.0 if min(float(maps.consistency.min()) for maps in found.values()) >= -1e-6 else -1.0
    size: Any = None
    alike: Any = None
    for i, picture in enumerate(pictures):
        rows = axes[3 * i : 3 * i + 3]
        for ax, text in zip(rows[:, 0], ("SI", "SS", "SI channels\nalike"), strict=True):
            row_label(show_image(picture.image, ax), text)
        for t, column in zip(steps, rows[:, 1:].T, strict=True):
            size = column[0].imshow(found[t].si[i].numpy(), cmap=SIZE, vmin=0, vmax=1, interpolation="nearest")
            column[1].imshow(found[t].ss[i].numpy(), cmap=SIZE, vmin=0, vmax=1, interpolation="nearest")
            alike = column[2].imshow(found[t].consistency[i].numpy(), cmap=ALIKE, vmin=lowest, vmax=1, interpolation="nearest")
    axes[0, 0].set_title("image")
    for ax, t in zip(axes[0, 1:], steps, strict=True):
        ax.set_title(f"step {t}")
    fig.colorbar(size, ax=list(axes.flat), label="mean size of SI or SS, per image (0 to 1)", shrink=0.6, pad=0.02)
    fig.colorbar(alike, ax=list(axes.flat), label=f"cosine with {REFERENCES[reference]}", shrink=0.6, pad=0.02)
    return fig


def explore_split(
    pictures: Sequence[Picture], found: Mapping[str, ByStep], *, method: str = "", reference: str = "first", rho: float = 0.5
) -> Any:
    """Choose method, step, picture and rho; first both figures of ``method`` (or of any) as static ones. Returns the widget."""
    import ipywidgets as widgets
    from IPython.display import display

    usable = {method: features for method, features in found.items() if changes(features, reference)}
    if not usable:
        display(note("Only one step has been run: there is no split yet."))
        return widgets.VBox()
    first = method if method in usable else next(iter(usable))
    which_method = widgets.Dropdown(options=[(method_title(m), m) for m in usable], value=first, description="method")
    steps = sorted({t for features in usable.values() for t in changes(features, reference)})
    step = widgets.Dropdown(options=steps, value=max(changes(usable[first], reference)), description="step")
    which = widgets.IntSlider(min=0, max=len(pictures) - 1, description="image", continuous_update=False)
    share = widgets.FloatSlider(min=0, max=1, step=0.05, value=rho, description="ρ", continuous_update=False)

    def draw() -> list[Figure]:
        later = changes(usable[which_method.value], reference)
        t = step.value if step.value in later else max(later)
        i = which.value
        order = [i, *(k for k in range(len(pictures)) if k != i)]  # the chosen one first; the split is that of all pictures
        features = {k: usable[which_method.value][k][order] for k in usable[which_method.value]}
        words = f"{method_title(which_method.value)}, step {t}, since {REFERENCES[reference]}"
        return [
            figure_channels({words: later[t]}, share.value),
            figure_maps_by_step([pictures[i]], features, share.value, reference=reference, shown=1),
        ]

    out = following(draw, (which_method, step, which, share))
    return widgets.VBox([widgets.HBox([which_method, step]), widgets.HBox([which, share]), out])


def busy_channels(pictures: Sequence[Picture], pair: Pair, rho: float) -> tuple[Tensor, Maps, list[tuple[float, float]]]:
    """Local grey-level entropy (B, H, W) of the pictures in bits, the `Maps` of a split, and per picture the correlation of the
    entropy with the SI and with the SS map, -1..1 (NaN for a map without contrast)."""
    maps = semantic_maps(*pair, *semantic_split(*pair, rho))
    grey = torch.stack([p.image.float().mean(0).round().to(torch.uint8) for p in pictures])
    entropy = grey_entropy(grey)
    small = F.adaptive_avg_pool2d(entropy, (maps.si.shape[1], maps.si.shape[2]))
    return entropy, maps, [(_correlation(e, a), _correlation(e, b)) for e, a, b in zip(small, maps.si, maps.ss, strict=True)]


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 1e-9 else float("nan")


def figure_busy(pictures: Sequence[Picture], features: ByStep, rho: float, *, reference: str = "first", shown: int = 3) -> Figure:
    """Do SS channels fire where an image is busy? Image, local grey-level entropy, SI map, SS map, with their correlations, after
    the last step. The split and the means in the titles are over all pictures."""
    later = changes(features, reference)
    if not later:
        return note("Only one step has been run: there is no split yet.")
    entropy, maps, correlations = busy_channels(pictures, later[max(later)], rho)
    n = min(shown, len(pictures))
    fig, axes = grid(n, 4, cell=1.7, aspect=aspect(pictures[0].image), margin=0.6, legend=1.6)
    bits: Any = None
    size: Any = None
    low, high = float(entropy.min()), max(float(entropy.max()), 1e-3)
    for i, row in enumerate(axes):
        show_image(pictures[i].image, row[0])
        bits = row[1].imshow(entropy[i].numpy(), cmap=ALIKE, vmin=low, vmax=high, interpolation="nearest")
        for ax, part, r in zip(row[2:], (maps.si[i], maps.ss[i]), correlations[i], strict=True):
            size = ax.imshow(part.numpy(), cmap=SIZE, vmin=0, vmax=1, interpolation="nearest")
            ax.set_xlabel("no contrast" if np.isnan(r) else f"r = {r:+.2f}")
    means = [float(np.nanmean(column)) if not np.isnan(column).all() else float("nan") for column in np.array(correlations).T]
    titles = [f"{kind}, mean r = {r:+.2f}" for kind, r in zip(("SI", "SS"), means, strict=True)]
    for ax, text in zip(axes[0], ("image", "grey entropy", *titles), strict=True):
        ax.set_title(text)
    fig.colorbar(bits, ax=list(axes.flat), label="entropy of grey values (bits)", shrink=0.8, pad=0.02)
    fig.colorbar(size, ax=list(axes.flat), label="mean size, per image (0 to 1)", shrink=0.8, pad=0.02)
    return fig


# --- what a rule accepts ---


class Rules(NamedTuple):
    """Pixels without a label that the teacher gives to an old class: winning score, lead over the second best, class id, whether
    it is the true one, each (N,), and by the words of a rule which of them it accepts (N,)."""

    scores: NDArray[np.float64]
    margins: NDArray[np.float64]
    ids: NDArray[np.int64]
    right: NDArray[np.bool_]
    accepted: dict[str, NDArray[np.bool_]]


PLAIN, RELEASED, MARGIN = "threshold alone", "released ranking", "margin"
RULES = (PLAIN, RELEASED, MARGIN)

RIGHT, WRONG = "#4d4d4d", "#d7191c"
"""Pixels whose pseudo-label would be right and wrong."""


def pseudo_labels(batch: Batch, teacher: Tensor, ctx: Context) -> dict[str, Tensor]:
    """Words of a rule -> (B, H, W) learned ids that it makes of the labels. teacher: (B, 1 + C, H, W) open scores."""
    method: Any = ctx.method
    y = open_labels(batch.label, batch.extra.get("saliency"))
    more: dict[str, dict[str, Any]] = {PLAIN: {}, RELEASED: {"ranking": method.ranking}, MARGIN: {"margin": method.margin}}
    return {words: closed_labels(confident(y, teacher, threshold=method.threshold, **more[words])) for words in RULES}


def rules(batch: Batch, teacher: Tensor, ctx: Context) -> Rules:
    """`Rules` on a batch that brings ``extra["truth"]``. teacher: (B, 1 + C, H, W) open scores."""
    p = activate(teacher, "sigmoid")
    (score, second), channel = p.topk(2, dim=1).values.unbind(dim=1), p.argmax(dim=1)
    where = (batch.label == BACKGROUND) & (channel >= 2)
    ids = (channel - 1)[where]
    found = {words: (labels[where] != BACKGROUND).cpu().numpy() for words, labels in pseudo_labels(batch, teacher, ctx).items()}
    right = (ids == batch.extra["truth"][where]).cpu().numpy()
    scores, margins = (x[where].double().cpu().numpy() for x in (score, score - second))
    return Rules(scores, margins, ids.cpu().numpy(), right, found)


def plot_rule(found: Rules, words: str, ax: Axes, ctx: Context, *, most: int = 3000) -> Axes:
    """Pixels by the teacher's lead (x) and winning score (y): right ones as dots, wrong ones as crosses, on the area that the
    rule accepts (green). That of the released ranking depends on the class: borders are drawn for the first and last one."""
    method: Any = ctx.method
    ax.axhspan(method.threshold, 1.02, color="#cfe8d5", zorder=0)
    if words == RELEASED:  # (1 - lead) * channel > ranking
        first, last = 1, max(ctx.step.n_old, 1)
        borders = {c: 1 - method.ranking / (c + 1) for c in (first, last)}
        ax.axvspan(borders[last], 1.02, color="white", zorder=0.1)
        ax.axvspan(borders[first], borders[last], color="#e7f4ea", zorder=0.1, ymin=(method.threshold + 0.02) / 1.04)
        ax.axvspan(borders[first], borders[last], color="white", zorder=0.1, ymax=(method.threshold + 0.02) / 1.04)
        for c, line in ((first, "-"), (last, ":")):
            ax.axvline(borders[c], color="black", linestyle=line, linewidth=1.0, label=f"border for class {c}")
        ax.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    if words == MARGIN:
        ax.axvspan(-0.02, method.margin, color="white", zorder=0.1)
    keep = np.random.default_rng(0).permutation(len(found.scores))[:most]
    for chosen, colour, marker, size in ((found.right, RIGHT, "o", 4), (~found.right, WRONG, "x", 12)):
        at = keep[chosen[keep]]
        edge = {"linewidth": 0} if marker == "o" else {"linewidth": 0.8}
        ax.scatter(found.margins[at], found.scores[at], s=size, color=colour, marker=marker, alpha=0.5, zorder=2, **edge)
    taken = found.accepted[words]
    share = 100 * taken.mean() if len(taken) else 0.0
    right = f", {100 * found.right[taken].mean():.0f} % of them right" if taken.any() else ""
    ax.set_title(f"{words}\naccepts {share:.0f} %{right}")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="lead over the second best score")
    return ax


def figure_rules(found: Rules, ctx: Context) -> Figure:
    """`plot_rule` for the threshold alone, the released ranking, and the margin, side by side."""
    fig = figure(8.8, 3.6)
    axes = fig.subplots(1, len(RULES), sharey=True)
    for ax, words in zip(axes, RULES, strict=True):
        plot_rule(found, words, ax, ctx)
    axes[0].set_ylabel("winning score σ of an old class")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=RIGHT, markersize=4, label="pixel, class is right"),
        Line2D([], [], marker="x", linestyle="", color=WRONG, markersize=5, label="pixel, class is wrong"),
        Patch(facecolor="#cfe8d5", label="accepted"),
        Patch(facecolor="#e7f4ea", label="accepted for late classes only"),
    ]
    legend_below(fig, handles)
    return fig


def figure_accepted(batch: Batch, teacher: Tensor, ctx: Context) -> Figure:
    """Images, the pseudo-labels of each rule, and what is really there. teacher: (B, 1 + C, H, W) open scores."""
    rows = {words: labels.cpu().numpy() for words, labels in pseudo_labels(batch, teacher, ctx).items()}
    rows["really there"] = batch.extra["truth"].cpu().numpy()
    images = [photo(image, ctx.data.source) for image in batch.image]
    fig, axes = grid(1 + len(rows), len(images), cell=1.4, aspect=aspect(images[0]), margin=0.9, legend=0.6)
    for i, image in enumerate(images):
        show_image(image, axes[0, i])
        for ax, labels in zip(axes[1:, i], rows.values(), strict=True):
            show_labels(labels[i], ctx.data.palette, ax)
    for ax, text in zip(axes[:, 0], ("image", *rows), strict=True):
        row_label(ax, text.replace(" ", "\n"))
    shown = {c for labels in rows.values() for c in np.unique(labels).tolist()}
    legend_below(fig, class_patches(shown, ctx.scenario.classes, ctx.data.palette))
    return fig


# --- over the batch ---


def products(pair: Pair, *, normalise: bool) -> Tensor:
    """(B, B) inner products of whole maps, student rows and teacher columns; normalise: of maps divided by their norm."""
    new, old = (x.flatten(1).double() for x in pair)
    if normalise:
        new, old = F.normalize(new, dim=1), F.normalize(old, dim=1)
    return new @ old.T


def figure_products(pair: Pair, rho: float) -> Figure:
    """What LAG's contrast compares: inner products between the student's and the teacher's maps of a batch, as released (whole
    maps) and as in the described mode (SS channels, divided by their norm). On the diagonal stands an image with itself."""
    student, teacher = pair
    _, ss = semantic_split(student, teacher, rho)
    tables = {
        "released: whole maps": (products(pair, normalise=False), "inner product"),
        "described: SS channels, normalised": (products((student[:, ss], teacher[:, ss]), normalise=True), "cosine"),
    }
    fig = figure(8.0, 3.3)
    for ax, (words, (table, unit)) in zip(fig.subplots(1, 2), tables.items(), strict=True):
        top = 1.0 if unit == "cosine" else float(table.max())
        shown = ax.imshow(table.numpy(), cmap=ALIKE, vmin=0, vmax=top, interpolation="nearest")
        ax.set(title=words, xlabel="image in the old model", ylabel="image in the new model")
        ax.set(xticks=range(len(table)), yticks=range(len(table)))
        fig.colorbar(shown, ax=ax, label=unit, shrink=0.85)
    return fig


# --- prototypes ---


def prototype_distances(features: Tensor, labels: Tensor, prototypes: Tensor, channels: Tensor) -> NDArray[np.float64]:
    """(n, n) distances 1 - cos, rows: mean feature of class c in a batch, columns: prototypes; NaN for a class that is missing.

    features: (B, D, h, w). labels: (B, H, W) learned ids, brought to the grid of the features, nearest. prototypes: (n, D), row 0
    the background; rows of zeros are missing. channels: those that count.
    """
    grid_labels = F.interpolate(labels.unsqueeze(1).float(), size=features.shape[2:], mode="nearest").squeeze(1).long()
    means, count = class_means(features.double(), grid_labels, len(prototypes))
    prototypes = prototypes.to(means)
    near = 1 - F.normalize(means[:, channels], dim=1) @ F.normalize(prototypes[:, channels], dim=1).T
    missing = (count == 0).unsqueeze(1) | (prototypes.abs().sum(dim=1) == 0).unsqueeze(0)
    return near.masked_fill(missing, torch.nan).numpy()


STAGES = ("o", "s", "D")
"""Markers of stages, in order; the last one is filled."""


def _stage(colour: str, *, last: bool) -> dict[str, Any]:
    look = {"markerfacecolor": colour, "markeredgecolor": "#333333", "markeredgewidth": 0.6}
    return {
        "markersize": 7,
        **(look if last else {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.8}),
    }


def plot_prototypes(
    stages: Mapping[str, NDArray[np.float64]], names: Sequence[str], palette: NDArray[np.uint8], ax: Axes
) -> Axes:
    """Per old class: how far its mean feature lies from its own prototype, at each stage, and from the nearest other prototype
    at the last one (a bar). stages: words -> (n, n) from `prototype_distances`, in order; row and column 0 are left out."""
    n = len(next(iter(stages.values())))
    y = np.arange(1, n)
    last = list(stages.values())[-1].copy()
    np.fill_diagonal(last, np.nan)
    others = np.where(np.isnan(last), np.inf, last)[1:, 1:].min(axis=1, initial=np.inf)
    ax.scatter(np.where(np.isfinite(others), others, np.nan), y, marker="|", s=160, color="#555555", linewidth=2, zorder=2)
    own = [np.diag(stage)[1:] for stage in stages.values()]
    for a, b in pairwise(own):
        ax.hlines(y, a, b, color="#999999", linewidth=1.2, zorder=1)
    for k, values in enumerate(own):
        for c, value in zip(range(1, n), values, strict=True):
            colour = to_hex(palette[c] / 255)
            ax.plot(value, c, STAGES[k % len(STAGES)], zorder=3 + k, **_stage(colour, last=k == len(own) - 1))
    ax.set(yticks=y, ylim=(n - 0.4, 0.4), xlabel="distance 1 - cos on SI channels (0 to 2)")
    ax.set_yticklabels([f"{c} {names[c]}" for c in range(1, n)])
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]))
    return ax


def figure_prototypes(stages: Mapping[str, NDArray[np.float64]], ctx: Context) -> Figure:
    """`plot_prototypes` on a figure of its own."""
    n = len(next(iter(stages.values())))
    fig = figure(7.2, 0.3 * n + 1.0)
    plot_prototypes(stages, ctx.scenario.classes, ctx.data.palette, fig.subplots())
    handles = [
        Line2D([], [], marker=STAGES[k % len(STAGES)], linestyle="", label=words, **_stage("#555555", last=k == len(stages) - 1))
        for k, words in enumerate(stages)
    ]
    bar = Line2D(
        [], [], marker="|", linestyle="", color="#555555", markersize=10, markeredgewidth=2, label="nearest other prototype"
    )
    legend_below(fig, [*handles, bar])
    return fig
