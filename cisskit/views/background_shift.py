"""The background shift: what "background" really is at a step, and how much probability a step moves into it.

Numbers are about test pixels, whose truth is known, and about the first seed of each method. Probabilities are those that the
method itself decides by, see `log_probabilities`; "before" a step is the model after the step before it.
"""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from cisskit.data import Data, Toy
from cisskit.data.base import Sees, step_table
from cisskit.data.transforms import normalise
from cisskit.errors import KitError, unknown
from cisskit.method import Context, Method
from cisskit.metrics import class_range
from cisskit.models import Output
from cisskit.pseudo import predict_open
from cisskit.runs import Run
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.views.masks import HIDDEN, Picture, aspect, hatch, outline, show_image, test_pictures
from cisskit.views.report import Restore
from cisskit.views.style import (
    ERRORS,
    HIDES,
    RIGHT,
    figure,
    following,
    grid,
    legend_below,
    method_colour,
    method_title,
    note,
    rgb,
    row_label,
    spread,
)
from cisskit.views.tables import Chain, by_method

Floats = NDArray[np.float64]

KINDS = {
    "background": (HIDES["nothing"][0], "really background"),
    "old": (HIDES["old"][0], "a class of an earlier step"),
    "future": (HIDES["future"][0], "a class of a later step"),
    "void": ("#ffffff", "not labelled by anybody (void)"),
}
"""What a pixel that a step labels background can be -> colour, words. Hatched as in `masks.HIDDEN`."""

TOLD = "#4d4d4d"
"""Colour of pixels whose class the step tells."""

MOVES = "RdBu_r"
"""Colour map of differences, centred on 0: red is more."""

EDGES = np.linspace(-20, 20, 81)
"""Bins of the margin in nats; what lies beyond is counted in the last ones."""

GOES = {
    "right": (RIGHT, "to the right class"),
    "forgotten": (ERRORS["forgotten"][0], "to the background"),
    "taken over": (ERRORS["taken over"][0], "to classes of this step"),
    "mixed up": (ERRORS["mixed up"][0], "to other old classes"),
}
"""Where the probability of an old pixel goes -> colour, words."""


# --- runs that can be looked into ---


class Opened(NamedTuple):
    """Runs whose models and images are there. groups: method -> its first seed's chain. ctx: of the run that went furthest.
    about: what they are, and a line for each that is left out."""

    groups: dict[str, Chain]
    ctx: Context
    about: str


def open_models(runs: Sequence[Run], restore: Restore, methods: Sequence[str] = ()) -> Opened:
    """The first seed of every method, or of the ``methods`` asked for; a chain ends before the first step that cannot be opened.

    Raises `KitError` for a method that was not run, and when nothing can be opened.
    """
    groups = by_method(runs)
    for method in methods:
        if method not in groups:
            raise unknown("method of these runs", method, groups)
    found: dict[str, Chain] = {}
    faults, furthest = [], None
    for method in methods or groups:
        usable = []
        for run in groups[method][0].runs:
            try:
                ctx = restore(run)
            except KitError as error:
                faults.append(f"{method_title(method)} is left out from step {run.step} on: {error}")
                break
            usable.append(run)
            if furthest is None or ctx.step.index > furthest.step.index:
                furthest = ctx
        if usable:
            found[method] = Chain(tuple(usable))
    if furthest is None:
        raise KitError("none of these runs can be opened. " + " ".join(faults))
    title = f"{furthest.scenario.name}, {furthest.scenario.setting}: {', '.join(map(method_title, found))}"
    return Opened(found, furthest, "\n".join([title, *faults]))


# --- what the labels call background ---


def composition(data: Data, step: int, sees: Sees = "step") -> NDArray[np.int64]:
    """(n, 4) pixels that the labels of a step call background, per training image, by what they really are: `KINDS`.

    Counted on whole images: random crops see the same on average. Needs the truth of all classes: for reports only.
    """
    scenario, now = data.scenario, data.scenario.step(step)
    told = step_table(scenario, step, "train" if sees == "step" else "train_seen", data.protocol.void_in_training).numpy()
    truth = step_table(scenario, step, "truth").numpy()
    untold = told == BACKGROUND
    kinds = (
        truth == BACKGROUND,
        (truth >= 1) & (truth <= now.n_old),
        (truth > now.n_seen) & (truth != IGNORE),
        truth == IGNORE,
    )
    pixels = data.source.pixels("train")[data.members(step, sees)]
    return np.stack([pixels[:, untold & kind].sum(axis=1) for kind in kinds], axis=1)


def shares(counts: NDArray[np.int64]) -> Floats:
    """Fractions of each row, NaN for a row without pixels."""
    total = counts.sum(axis=-1, keepdims=True).astype(np.float64)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def plot_composition(by_step: Mapping[int, Floats], ax: Axes) -> Axes:
    """Stacked bars (%), one per step: what the pixels labelled background really are. by_step: step -> (4,) fractions."""
    for y, parts in enumerate(by_step.values()):
        left = 0.0
        for kind, share in zip(KINDS, np.nan_to_num(100 * parts), strict=True):
            ax.barh(y, share, left=left, height=0.7, **_look(kind))
            if share > 6:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if kind in HIDDEN else None
                ax.text(left + share / 2, y, f"{share:.0f}", ha="center", va="center", fontsize=8, bbox=box)
            left += share
    ax.set(xlim=(0, 100), xlabel="pixels labelled background (%)", ylabel="step", yticks=range(len(by_step)))
    ax.set(ylim=(len(by_step) - 0.4, -0.6))
    ax.set_yticklabels(list(map(str, by_step)))
    return ax


def plot_images(parts: Floats, ax: Axes, *, columns: int = 40) -> Axes:
    """Training images from left to right, those whose background hides most first: what that background really is (%, stacked).

    parts: (n, 4) fractions; rows of NaN (nothing labelled background) are left out. columns: at most so many groups of images,
    each shown by its mean.
    """
    parts = 100 * parts[~np.isnan(parts).any(axis=1)]
    parts = parts[np.argsort(-parts[:, 1:3].sum(axis=1), kind="stable")]
    ax.set(xlim=(0, 100), ylim=(0, 100), xlabel="training images (%)")
    if not len(parts):
        ax.text(50, 50, "nothing is labelled\nbackground", ha="center", va="center", color="#777777", fontsize=8)
        return ax
    means = np.array([group.mean(axis=0) for group in np.array_split(parts, min(columns, len(parts)))])
    edges, low = np.linspace(0, 100, len(means) + 1), np.zeros(len(means))
    for kind in ("old", "future", "void", "background"):
        high = low + means[:, list(KINDS).index(kind)]
        ax.stairs(high, edges, baseline=low, fill=True, **_look(kind))
        low = high
    return ax


def _look(kind: str) -> dict[str, Any]:
    """Fill of one of the `KINDS`."""
    edge = {"edgecolor": "white", "linewidth": 0, "hatch": HIDDEN[kind]} if kind in HIDDEN else {"linewidth": 0}
    return {"facecolor": KINDS[kind][0], **edge}


def figure_composition(data: Data, sees: Sees = "step") -> Figure:
    """`plot_composition` of all steps, and below it `plot_images` for up to five of them."""
    counts = {step.index: composition(data, step.index, sees) for step in data.scenario.steps}
    some = [step.index for step in spread(data.scenario.steps)]
    fig = figure(max(7.4, 0.9 + 2.2 * len(some)), 3.6 + 0.3 * len(counts))
    parts = fig.subfigures(2, 1, squeeze=False, height_ratios=[0.9 + 0.3 * len(counts), 2.4])[:, 0]
    plot_composition({step: shares(part.sum(axis=0)) for step, part in counts.items()}, parts[0].subplots())
    axes = parts[1].subplots(1, len(some), squeeze=False, sharey=True)[0]
    for ax, step in zip(axes, some, strict=True):
        plot_images(shares(counts[step]), ax).set_title(f"step {step}: {len(counts[step])} images")
    axes[0].set_ylabel("of its background (%)")
    there = {kind for kind, n in zip(KINDS, sum(part.sum(axis=0) for part in counts.values()), strict=True) if n}
    legend_below(fig, kind_patches(there))
    return fig


def kind_patches(kinds: Collection[str]) -> list[Patch]:
    """Legend entries for these `KINDS`."""
    edge = {kind: "white" if kind in HIDDEN else "#777777" for kind in KINDS}
    return [
        Patch(facecolor=colour, hatch=HIDDEN.get(kind), edgecolor=edge[kind], label=words)
        for kind, (colour, words) in KINDS.items()
        if kind in kinds
    ]


def show_background(picture: Picture, step: Step, ax: Axes) -> set[str]:
    """One image as a step sees it: told classes dark, and of what is labelled background the hidden classes coloured and hatched.

    Returns the `KINDS` on show.
    """
    truth = picture.truth
    told = (truth >= step.new.start) & (truth < step.new.stop)
    hidden = {
        "old": (truth >= 1) & (truth <= step.n_old),
        "future": (truth > step.n_seen) & (truth != IGNORE),
    }
    grey = picture.image.float().mean(0).numpy()[..., None] / 255
    colours = np.repeat(0.78 + 0.2 * grey, 3, axis=2)
    for where, colour in ((told, TOLD), (truth == IGNORE, KINDS["void"][0]), *((w, KINDS[k][0]) for k, w in hidden.items())):
        colours[where] = np.array(rgb(colour)) / 255
    ax.imshow(colours, vmin=0, vmax=1, interpolation="nearest")
    for kind, where in hidden.items():
        hatch(where, ax, HIDDEN[kind], "white")
    return {kind for kind, where in hidden.items() if where.any()} | ({"void"} if (truth == IGNORE).any() else set())


def figure_background(pictures: Sequence[Picture], scenario: Scenario) -> Figure:
    """Images (rows) at up to five steps (columns): what each step tells, and what hides in its background."""
    steps = spread(scenario.steps)
    fig, axes = grid(len(pictures), 1 + len(steps), cell=1.5, aspect=aspect(pictures[0].image), margin=0.8)
    kinds: set[str] = set()
    for row, picture in zip(axes, pictures, strict=True):
        show_image(picture.image, row[0])
        for ax, step in zip(row[1:], steps, strict=True):
            kinds |= show_background(picture, step, ax)
    axes[0, 0].set_title("image")
    for ax, step in zip(axes[0, 1:], steps, strict=True):
        ax.set_title(f"step {step.index}")
    legend_below(fig, [Patch(facecolor=TOLD, label="told: a class of this step"), *kind_patches({"background", *kinds})])
    return fig


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """`figure_background` of two embedded scenes. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=40))
    return figure_background(test_pictures(data, data.scenario.steps[-1], 2), data.scenario)


# --- what models say ---


def log_probabilities(output: Output, method: Method) -> Tensor:
    """(B, C, H, W) log-probabilities, adding up to 1, whose largest is what the method predicts.

    Softmax of the logits for a method that predicts the largest one. With an unknown class: its sigmoids, unknown counted as
    background, divided by their sum. With another ``predict`` of its own: the background wins where no class is above 0, so 0
    stands for its logit. Raises `KitError` when that is background elsewhere than the method says: then this view cannot read it.
    """
    if "unknown" in output.extra:
        p = predict_open(output.open_logits)[0]
        log_p = (p / p.sum(dim=1, keepdim=True)).clamp(min=torch.finfo(p.dtype).tiny).log()
    else:
        logits = output.logits.detach().float()
        if type(method).predict is not Method.predict:
            logits = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, 1:]], dim=1)
        log_p = logits.log_softmax(dim=1)
    background = log_p.argmax(dim=1) == BACKGROUND  # among classes whose sigmoids are all 1, a tie may fall either way
    differ = float((background != (method.predict(output) == BACKGROUND)).float().mean())
    if differ > 0.01:
        raise KitError(
            f"{type(method).__name__}.predict() and its largest probability do not agree where background is: on "
            f"{100 * differ:.0f} % of the pixels. So mass has no meaning for it here; teach log_probabilities() how it decides."
        )
    return log_p


@dataclass(frozen=True)
class Said:
    """What the model after one step says of the test pixels.

    mass: (1 + K, C) probability, summed over the pixels of each true class (rows, all K classes of the scenario), by the class
    that it went to; a row adds up to the pixels of its class. margins: where from -> (80,) pixels by background-logit margin,
    log p(background) - log max p(old class), in the bins `EDGES`; "old": pixels and classes that were old at this step, "seen":
    those that are old at the next one.
    """

    run: Run
    mass: Floats
    margins: dict[str, NDArray[np.int64]]

    @property
    def step(self) -> Step:
        return self.run.scenario.step(self.run.step)


Found = Mapping[str, Mapping[int, Said]]
"""Method -> step -> what its model says."""


def listen(ctx: Context, images: int = 250) -> Said:
    """`Said` by the model of a finished run, on the first test images (all, if there are fewer)."""
    n_all, step = len(ctx.scenario.classes), ctx.step
    mass = torch.zeros(n_all + 1, step.n_seen + 1, dtype=torch.float64, device=ctx.device)
    counts = {name: torch.zeros(len(EDGES) - 1, dtype=torch.int64, device=ctx.device) for name in ("old", "seen")}
    ctx.model.eval()
    left = images
    with torch.inference_mode():
        for batch in ctx.data.test(step.index, device=ctx.device):
            log_p = log_probabilities(ctx.model(batch.image[:left]), ctx.method)
            for truth, one in zip(batch.label[:left].long(), log_p, strict=True):  # an image at a time: little memory
                rows = truth.clamp(max=n_all).flatten()  # void has a row of its own, left out below
                sums = torch.zeros(n_all + 1, len(one), device=ctx.device)
                mass += sums.index_add_(0, rows, one.exp().flatten(1).T)
                for name, last in (("old", step.n_old), ("seen", step.n_seen)):
                    if last:
                        margin = (one[BACKGROUND] - one[1 : last + 1].amax(dim=0))[(truth >= 1) & (truth <= last)]
                        counts[name] += torch.bincount(_bin(margin), minlength=len(EDGES) - 1)
            left -= len(batch.image[:left])
            if left <= 0:
                break
    return Said(ctx.run, mass[:-1].cpu().numpy(), {name: n.cpu().numpy() for name, n in counts.items()})


def _bin(margin: Tensor) -> Tensor:
    """Index into the bins `EDGES`."""
    width = EDGES[1] - EDGES[0]
    return ((margin - EDGES[0]) / width).floor().clamp(0, len(EDGES) - 2).long()


def listen_all(groups: Mapping[str, Chain], restore: Restore, images: int = 250) -> dict[str, dict[int, Said]]:
    """`listen` to every step of every method."""
    return {method: {run.step: listen(restore(run), images) for run in chain.runs} for method, chain in groups.items()}


def pairs(said: Mapping[int, Said]) -> dict[int, tuple[Said, Said]]:
    """Step -> (before, after) for the steps from 1 on whose step before is there, too."""
    return {step: (said[step - 1], after) for step, after in sorted(said.items()) if step - 1 in said}


def old_mass(said: Said, step: Step) -> dict[str, float]:
    """Where the probability of pixels goes whose class is old at ``step``: fractions by `GOES`, NaN without such pixels."""
    rows = said.mass[step.old]
    total, own = rows.sum(), np.diag(said.mass)[step.old].sum()
    parts = {
        "right": own,
        "forgotten": rows[:, BACKGROUND].sum(),
        "taken over": rows[:, step.new].sum(),
        "mixed up": rows[:, step.old].sum() - own,
    }
    return {kind: float(part / total) if total else float("nan") for kind, part in parts.items()}


def flow(before: Said, after: Said, step: Step) -> Floats:
    """(4, 3) change of the mean probability from before to after, -1..1.

    Rows: pixels that truly are background, old, of this step, of a later step (NaN without pixels); columns: what went to the
    background, to old classes, to classes of this step. Each row adds up to 0.
    """
    truth = (slice(0, 1), step.old, step.new, slice(step.n_seen + 1, None))
    tables = []
    for said in (before, after):
        sums = np.array([[said.mass[rows, columns].sum() for columns in (slice(0, 1), step.old, step.new)] for rows in truth])
        total = sums.sum(axis=1, keepdims=True)
        tables.append(np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0))
    return tables[1] - tables[0]


def gained(said: Mapping[int, Said]) -> Floats:
    """(1 + K,) by how much the background's share of the probability on each class's pixels grew between the step that taught the
    class and the last one, -1..1; NaN for background, for the last step's classes, and for classes without pixels."""
    last = said[max(said)]
    change = np.full(len(last.mass), np.nan)
    for step in last.run.scenario.steps[: max(said)]:
        if step.index in said:
            rows = step.new
            then, now = (s.mass[rows, BACKGROUND] for s in (said[step.index], last))
            pixels = last.mass[rows].sum(axis=1)
            change[rows] = np.divide(now - then, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
    return change


def gained_mean(said: Mapping[int, Said]) -> float:
    """`gained` over all pixels of the classes that have a value, each pixel counted once; NaN without any."""
    change, pixels = gained(said), said[max(said)].mass.sum(axis=1)
    there = ~np.isnan(change)
    return float((change * pixels)[there].sum() / pixels[there].sum()) if there.any() else float("nan")


# --- probability mass ---


def plot_mass(parts: Mapping[str, Sequence[Mapping[str, float]]], ax: Axes) -> Axes:
    """Per method two stacked bars (%): where the probability of old pixels went before and after a step.

    parts: method -> (before, after), as from `old_mass`; nothing for a step that was not run.
    """
    ticks: dict[float, str] = {}
    for k, (method, both) in enumerate(parts.items()):
        places = (2.3 * k, 2.3 * k + 0.9)
        ticks |= dict(zip(places, (f"{method_title(method)}  before", "after"), strict=True))
        for y, mass in zip(places, both, strict=False):
            _bar(mass, y, ax)
        if not both or any(np.isnan(list(mass.values())).any() for mass in both):
            words = "no such pixels" if both else "not run"
            ax.text(50, 2.3 * k + 0.45, words, ha="center", va="center", color="#777777", fontsize=8)
    ax.set(xlim=(0, 100), xlabel="mean probability (%)", yticks=list(ticks), ylim=(max(ticks, default=0) + 0.6, -0.6))
    ax.set_yticklabels(list(ticks.values()))
    return ax


def _bar(mass: Mapping[str, float], y: float, ax: Axes) -> None:
    left = 0.0
    for kind, (colour, _) in GOES.items():
        width = 100 * np.nan_to_num(mass[kind])
        ax.barh(y, width, left=left, height=0.8, color=colour)
        if width > 8:
            ink = "white" if kind in ("forgotten", "taken over") else "black"
            ax.text(left + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=7, color=ink)
        left += width


def figure_mass(found: Found) -> Figure:
    """`plot_mass` for up to five steps, side by side: on test pixels of the classes that are old at each step."""
    both, steps = _both(found)
    if not steps:
        return note("Only one step has been run: no probability can have moved yet.")
    fig = figure(1.9 + 2.9 * len(steps), 1.3 + 0.44 * len(found))
    axes = fig.subplots(1, len(steps), squeeze=False, sharey=True)[0]
    for ax, t in zip(axes, steps, strict=True):
        step = _scenario(found).step(t)
        parts = {method: [old_mass(said, step) for said in couples.get(t, ())] for method, couples in both.items()}
        plot_mass(parts, ax).set_title(f"step {t}: pixels of classes {class_range(range(1, step.n_old + 1))}")
    legend_below(fig, [Patch(facecolor=colour, label=words) for colour, words in GOES.values()])
    return fig


def plot_flow(change: Floats, ax: Axes) -> Axes:
    """Heat map of `flow` in points, centred on 0: rows what pixels truly are, columns where probability went."""
    sns.heatmap(
        100 * change, vmin=-100, vmax=100, cmap=MOVES, annot=_signed(100 * change), fmt="", annot_kws={"size": 7}, linewidths=0.5,
        ax=ax, cbar=False, xticklabels=["background", "old", "new"], yticklabels=["background", "old", "new", "future"],
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")  # no such pixels
    ax.tick_params(axis="x", rotation=90, length=0)
    ax.tick_params(axis="y", rotation=0, length=0)
    return ax


def _signed(points: Floats) -> NDArray[np.str_]:
    """Whole points with a sign; 0 has none."""
    return np.array([[f"{value:+.0f}" if abs(value) >= 0.5 else "0" for value in row] for row in points])


def figure_flow(found: Found) -> Figure:
    """`plot_flow`, a row per step (up to five) and a column per method."""
    both, steps = _both(found)
    both = {method: couples for method, couples in both.items() if couples}
    if not steps:
        return note("Only one step has been run: no probability can have moved yet.")
    fig = figure(2.0 + (1.2 if len(both) <= 6 else 1.05) * len(both), 1.4 + 0.95 * len(steps))
    axes = fig.subplots(len(steps), len(both), squeeze=False, sharex=True, sharey=True)
    for row, t in zip(axes, steps, strict=True):
        for ax, couples in zip(row, both.values(), strict=True):
            if t in couples:
                plot_flow(flow(*couples[t], _scenario(found).step(t)), ax)
            else:
                ax.text(0.5, 0.5, "not run", ha="center", va="center", transform=ax.transAxes, color="#777777", fontsize=8)
                ax.tick_params(length=0)
        row[0].set_ylabel(f"step {t}\npixels that are")
    for ax, method in zip(axes[0], both, strict=True):
        ax.set_title(method_title(method).replace(" ", "\n"))
    shown = next(ax.collections[0] for ax in axes.flat if ax.collections)
    fig.colorbar(shown, ax=list(axes.flat), label="probability gained by\nthe column (points)", shrink=0.8, pad=0.02)
    return fig


# --- two methods against each other ---


def choose_two(found: Found, wanted: Sequence[str] = ()) -> tuple[str, str] | None:
    """(plain, other): the two methods asked for; else FT against MBS, or against the one that moves least, the joint bound last.

    None when no two methods have two steps. Raises `KitError` when a method that was asked for is not there.
    """
    if wanted:
        if len(wanted) != 2 or not set(wanted) <= set(found):
            raise KitError(f"two methods of these runs can be compared ({', '.join(found)}), not {', '.join(wanted)}.")
        return wanted[0], wanted[1]
    moved = {method: gained_mean(said) for method, said in found.items() if len(said) > 1}
    moved = {method: value for method, value in moved.items() if not np.isnan(value)}
    if len(moved) < 2:
        return None
    plain = "ft" if "ft" in moved else max(moved, key=moved.__getitem__)
    others = sorted(set(moved) - {plain}, key=lambda method: (method != "mbs", method == "joint", moved[method]))
    return plain, others[0]


def comparison(found: Found, plain: str, other: str) -> str:
    """By how much less probability ``other`` moves into the background than ``plain``, in a sentence; numbers are computed."""
    last = min(max(found[plain]), max(found[other]))
    a, b = ({t: s for t, s in found[method].items() if t <= last} for method in (plain, other))
    x, y = 100 * gained_mean(a), 100 * gained_mean(b)
    if np.isnan(x + y):
        return "No pixel of an old class in these test images: nothing can be compared."
    one, two = method_title(plain), method_title(other)
    verdict = (
        f"{two} keeps {x - y:.1f} points out of the background that {one} moves there: the expected direction"
        if y < x
        else f"{two} moves {y - x:.1f} points more than {one}: against the expected direction"
    )
    arch = [said[max(said)].run.settings["arch"] for said in (a, b)]
    networks = f" The networks differ, too: {arch[0]} and {arch[1]}." if arch[0] != arch[1] else ""
    return (
        f"From the step that taught a class to step {last}, the background's share of the probability on that class's test "
        f"pixels {_grew(x)} under {one} and {_grew(y)} under {two}. {verdict}.{networks}"
    )


def _grew(points: float) -> str:
    return f"{'grew' if points >= 0 else 'fell'} by {abs(points):.1f} points"


def plot_gained(change: Mapping[str, Floats], names: Sequence[str], ax: Axes) -> Axes:
    """Bars per class: growth of the background's probability on its pixels (points), one colour per method.

    change: method -> (1 + K,) as from `gained`; classes that no method has a value for are left out.
    """
    there = np.flatnonzero(~np.isnan(np.array(list(change.values()))).all(axis=0))
    height = 0.8 / max(len(change), 1)
    for k, (method, values) in enumerate(change.items()):
        y = np.arange(len(there)) + (k - (len(change) - 1) / 2) * height
        ax.barh(
            y, np.nan_to_num(100 * values[there]), height=0.9 * height, color=method_colour(method), label=method_title(method)
        )
    ax.axvline(0, color="#444444", linewidth=0.8)
    ax.set(yticks=range(len(there)), ylim=(max(len(there), 1) - 0.4, -0.6))
    ax.set_xlabel("gained by the background since the class was learnt (points of probability)")
    ax.set_yticklabels([f"{c} {names[c]}" for c in there.tolist()])
    return ax


def figure_comparison(found: Found, wanted: Sequence[str] = ()) -> Figure:
    """`plot_gained` of the two methods that `choose_two` takes, with `comparison` as its caption."""
    two = choose_two(found, wanted)
    if two is None:
        return note("A comparison needs two methods with two steps each.")
    last = min(max(found[method]) for method in two)
    change = {method: gained({t: s for t, s in found[method].items() if t <= last}) for method in two}
    n = int((~np.isnan(np.array(list(change.values()))).all(axis=0)).sum())
    fig = figure(7.4, 1.9 + 0.32 * n)
    ax = fig.subplots()
    plot_gained(change, _scenario(found).classes, ax)
    legend_below(fig, ax.get_legend_handles_labels()[0])
    fig.suptitle(textwrap.fill(comparison(found, *two), 108), x=0.01, ha="left", fontsize=9)
    return fig


def figure_gained(found: Found) -> Figure:
    """Heat map, methods by classes: growth of the background's probability on each class's pixels (points), centred on 0."""
    change = {method: gained(said) for method, said in found.items() if len(said) > 1}
    change = {method: values for method, values in change.items() if not np.isnan(values).all()}
    if not change:
        return note("Only one step has been run: no probability can have moved yet.")
    names = _scenario(found).classes
    table = 100 * np.array(list(change.values()))
    there = np.flatnonzero(~np.isnan(table).all(axis=0))
    fig = figure(2.8 + 0.42 * len(there), 1.7 + 0.3 * len(change))
    ax = fig.subplots()
    sns.heatmap(
        table[:, there], vmin=-100, vmax=100, cmap=MOVES, annot=_signed(table[:, there]) if len(there) <= 30 else False, fmt="",
        annot_kws={"size": 7}, linewidths=0.5, ax=ax, xticklabels=[names[c] for c in there],
        yticklabels=[method_title(m) for m in change], cbar_kws={"label": "points gained"},
    )  # fmt: skip
    ax.set_facecolor("#eeeeee")
    ax.set(xlabel="class, in order of arrival")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    return fig


# --- margins ---


def plot_margins(before: NDArray[np.int64], after: NDArray[np.int64], ax: Axes, *, colour: str) -> Axes:
    """Histograms (% of old pixels) of background against the best old class: before as an outline, after filled.

    before, after: (80,) pixels in the bins `EDGES`. Right of 0 the background is the likelier one.
    """
    texts: list[str] = []
    for counts, words in ((after, "after"), (before, "before")):
        height = 100 * counts / max(counts.sum(), 1)
        if words == "after":
            ax.stairs(height, EDGES, fill=True, color=colour, alpha=0.75)
        else:
            ax.stairs(height, EDGES, color="black", linewidth=1.1)
        texts.insert(0, f"{words} {height[EDGES[:-1] >= 0].sum():.0f} %" if counts.sum() else f"{words}: no pixel")
    ax.axvline(0, color="#444444", linestyle="--", linewidth=0.8)
    ax.text(0.98, 0.95, "right of 0:\n" + "\n".join(texts), ha="right", va="top", transform=ax.transAxes, fontsize=7)
    ax.set(xlim=(EDGES[0], EDGES[-1]))
    return ax


def figure_margins(found: Found) -> Figure:
    """`plot_margins`, a row per method and a column per step (up to five)."""
    both, steps = _both(found)
    both = {method: couples for method, couples in both.items() if couples}
    if not steps:
        return note("Only one step has been run: there is no margin of an old class yet.")
    fig = figure(1.3 + 2.9 * len(steps), 1.1 + 0.95 * len(both))
    axes = fig.subplots(len(both), len(steps), squeeze=False, sharex=True, sharey="row")
    for row, (method, couples) in zip(axes, both.items(), strict=True):
        for ax, t in zip(row, steps, strict=True):
            if t in couples:
                before, after = couples[t]
                plot_margins(before.margins["seen"], after.margins["old"], ax, colour=method_colour(method))
            else:
                ax.text(0.5, 0.5, "not run", ha="center", va="center", transform=ax.transAxes, color="#777777", fontsize=8)
        row_label(row[0], method_title(method).replace(" ", "\n"))
    for ax, below, t in zip(axes[0], axes[-1], steps, strict=True):
        ax.set_title(f"step {t}: % of pixels of old classes")
        below.set_xlabel("background − best old class (nats)")
    handles = [
        Line2D([], [], color="black", linewidth=1.1, label="before the step"),
        Patch(facecolor="#888888", alpha=0.75, label="after it, in the method's colour"),
        Line2D([], [], linestyle="", label=f"(beyond ±{EDGES[-1]:.0f} nats: in the last bins)"),
    ]
    legend_below(fig, handles)
    return fig


# --- where ---


Maps = Mapping[str, Mapping[int, Sequence[Floats]]]
"""Method -> step -> per picture the background's probability (H, W), 0..1, after that step."""


def background_maps(
    groups: Mapping[str, Chain], restore: Restore, pictures: Sequence[Picture]
) -> dict[str, dict[int, list[Floats]]]:
    """The background's probability in each picture after every step of every method."""
    found: dict[str, dict[int, list[Floats]]] = {}
    for method, chain in groups.items():
        contexts = {run.step: restore(run) for run in chain.runs}
        found[method] = {t: [_background(ctx, picture) for picture in pictures] for t, ctx in contexts.items()}
    return found


def _background(ctx: Context, picture: Picture) -> Floats:
    ctx.model.eval()
    source = ctx.data.source
    with torch.inference_mode():
        image = normalise(picture.image, source.mean, source.std)[None].to(ctx.device)
        return log_probabilities(ctx.model(image), ctx.method)[0, BACKGROUND].exp().double().cpu().numpy()


def plot_where(before: Floats, after: Floats, picture: Picture, step: Step, ax: Axes) -> Any:
    """Where the background's probability grew (red) or shrank (blue), in points; outlined: old classes solid, new ones dotted.

    before, after: (H, W) probabilities. Returns the image, for a colour bar.
    """
    shown = ax.imshow(100 * (after - before), cmap=MOVES, vmin=-100, vmax=100, interpolation="nearest")
    truth = picture.truth
    outline((truth >= 1) & (truth <= step.n_old), ax, "black")
    outline((truth > step.n_old) & (truth <= step.n_seen), ax, "black", ":")
    ax.set(xticks=[], yticks=[])
    return shown


def figure_where(i: int, picture: Picture, maps: Maps, scenario: Scenario) -> Figure:
    """One picture, a row per step (up to five) and a column per method: `plot_where`. i: its place in ``maps``."""
    steps = spread(sorted({t for found in maps.values() for t in found if t - 1 in found}))
    methods = [method for method, found in maps.items() if any(t in found and t - 1 in found for t in steps)]
    if not methods:
        return note("Only one step has been run: nothing can have moved yet.")
    cell = min(1.5, 9.5 / (1 + len(methods)))
    fig, axes = grid(len(steps), 1 + len(methods), cell=cell, aspect=aspect(picture.image), margin=0.8, legend=1.0)
    shown: Any = None
    for row, t in zip(axes, steps, strict=True):
        show_image(picture.image, row[0])
        row[0].set_ylabel(f"step {t}")
        for ax, method in zip(row[1:], methods, strict=True):
            found = maps[method]
            if t in found and t - 1 in found:
                shown = plot_where(found[t - 1][i], found[t][i], picture, scenario.step(t), ax)
            else:
                ax.text(0.5, 0.5, "not run", ha="center", va="center", transform=ax.transAxes, color="#777777", fontsize=8)
    for ax, title in zip(axes[0], ("image", *(method_title(m).replace(" ", "\n") for m in methods)), strict=True):
        ax.set_title(title)
    fig.colorbar(shown, ax=list(axes.flat), label="background's probability,\nafter − before (points)", shrink=0.8, pad=0.02)
    handles = [
        Line2D([], [], color="black", linewidth=1.5, label="outline of old classes"),
        Line2D([], [], color="black", linewidth=1.5, linestyle=":", label="outline of this step's classes"),
    ]
    legend_below(fig, handles)
    return fig


def explore_where(pictures: Sequence[Picture], maps: Maps, scenario: Scenario) -> Any:
    """Choose image and methods; `figure_where` of the first picture once as a static one. Returns the widget."""
    import ipywidgets as widgets

    which = widgets.IntSlider(min=0, max=len(pictures) - 1, description="image", continuous_update=False)
    chosen = widgets.SelectMultiple(
        options=[(method_title(m), m) for m in maps], value=list(maps), description="methods", rows=min(len(maps), 6)
    )

    def draw() -> list[Figure]:
        return [figure_where(which.value, pictures[which.value], {m: maps[m] for m in chosen.value or maps}, scenario)]

    return widgets.VBox([widgets.HBox([which, chosen]), following(draw, (which, chosen))])


def _both(found: Found) -> tuple[dict[str, dict[int, tuple[Said, Said]]], list[int]]:
    """`pairs` of every method, and up to five of the steps that any of them has."""
    both = {method: pairs(said) for method, said in found.items()}
    return both, spread(sorted({step for couples in both.values() for step in couples}))


def _scenario(found: Found) -> Scenario:
    return next(iter(next(iter(found.values())).values())).run.scenario
