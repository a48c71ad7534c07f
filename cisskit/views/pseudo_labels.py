"""Can the old model be trusted as a teacher? Its scores and the pseudo-labels made of them, against the hidden truth.

Everything is about training pixels of a step that its labels call background and whose truth is known ("untold"): there a
method may believe the old model. The truth of old classes is hidden from training; it is used here for looking only.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

from cisskit.calibration import WIDTH_BINS, Brier, Curve, brier, expected_calibration_error, ratio
from cisskit.data import Batch, Data, Toy
from cisskit.errors import KitError
from cisskit.method import Context, Method
from cisskit.metrics import PseudoLabelQuality
from cisskit.models import Output
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.train import train_loader
from cisskit.views.forgetting import plot_by_step
from cisskit.views.masks import (
    Labels,
    Palette,
    aspect,
    hatch,
    hidden_by,
    outline,
    photo,
    show_image,
    show_labels,
    show_on_photo,
    telling,
    test_pictures,
)
from cisskit.views.regions import REJECTED, SCORE, TOLD, winner
from cisskit.views.report import Restore
from cisskit.views.style import (
    ERRORS,
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
from cisskit.views.tables import MISSING, Chain
from cisskit.views.training import prepare

Floats = NDArray[np.float64]

BINS = 1500
"""Narrow bins of the score, [0, 1/1500), ..: every hundredth is an edge, and every fifteenth of the axis, too."""

GROUPS = 10
"""Groups of equal count in a reliability diagram and behind a Brier score."""

IGNORED = "////"
"""Hatching of pixels that a method takes out of training."""

JUDGED = {
    "accepted": ("#1b7837", "old class, taught as such"),
    "mixed up": (ERRORS["mixed up"][0], "taught as another old class"),
    "false alarm": (ERRORS["false alarm"][0], "no old class, taught as one"),
    "denied": (ERRORS["forgotten"][0], "old class, taught as background"),
    "spared": ("#80cdc1", "old class, ignored"),
    "needless": ("#fdae61", "no old class, ignored"),
}
"""What the targets make of an untold pixel, given the truth -> colour, words. Drawn on a pale photograph, like `style.ERRORS`."""

REALLY = ("right", "another old class", "background", "a class it cannot know")
"""What an untold pixel is, for whoever believes what the teacher says of it. The last: a class of this step or of a later one."""


# --- the problem ---


def figure_problem(scenario: str = "toy-5-2") -> Figure:
    """An embedded scene at step 1 with an imagined teacher: sure of what it knows, less so at the edges, and fooled by a class
    that it cannot know. Needs no run."""
    data = Data(Scenario.named(scenario), Toy(train=1, heldout=1, test=60))
    step = data.scenario.step(1)

    def parts(truth: Labels) -> list[NDArray[np.bool_]]:
        old, new = (truth >= 1) & (truth <= step.n_old), (truth > step.n_old) & (truth <= step.n_seen)
        return [old, new, (truth > step.n_seen) & (truth != IGNORE)]

    picture = max(test_pictures(data, step, 60), key=lambda p: min(int(where.sum()) for where in parts(p.truth)))
    old, new, later = (torch.from_numpy(where) for where in parts(picture.truth))
    truth = torch.from_numpy(picture.truth).long()
    ids = torch.where(old, truth, 0).masked_fill(later, int(truth[old].min()))
    least, most = (sign * F.max_pool2d(sign * ids[None].float(), 5, 1, 2)[0] for sign in (-1, 1))
    score = torch.where(least == most, 0.95, 0.6).masked_fill(later & (least == most), 0.8)
    told = torch.where(new | (truth == IGNORE), truth, 0)
    told, truth, score, ids = told[None], truth[None], score[None], ids[None]
    targets, about = believed(told, score, ids, 0.7), (False, step, data.scenario, data.palette)
    seen = Look([picture.image], [picture.name], told, truth, score, ids, targets, *about)
    return figure_look(seen, title="an imagined teacher, believed from a score of 0.7 on")


# --- what the teacher says ---


def says(output: Output, method: Method) -> tuple[Tensor, Tensor]:
    """(B, H, W) score in [0, 1] of what the model names, and its learned id, as the method itself decides.

    The score is the one that a threshold of this method compares: with an unknown class the best sigmoid (unknown and background
    are id 0); with another ``predict`` of its own the best class's sigmoid s, and 1 - s where that names nothing; otherwise the
    best softmax probability, or the best sigmoid where the method trains by binary cross-entropy.
    """
    if "unknown" in output.extra:
        return winner(output)
    logits, ids = output.logits.float(), method.predict(output)
    if type(method).predict is not Method.predict:
        best = logits[:, 1:].sigmoid().amax(dim=1)
        return torch.where(ids > BACKGROUND, best, 1 - best), ids
    binary = getattr(method, "base_loss", "ce") == "bce"
    return (logits.sigmoid() if binary else logits.softmax(dim=1)).amax(dim=1), ids


def has_rule(method: Method) -> bool:
    """Whether the method makes pseudo-labels at all."""
    return type(method).targets is not Method.targets


def threshold_of(method: Method) -> float | None:
    """The least score by which the method believes its teacher, where it has one number for it."""
    found = next((getattr(method, name) for name in ("threshold", "tau") if hasattr(method, name)), None)
    return float(found) if found is not None and has_rule(method) else None


def believed(told: Tensor, score: Tensor, ids: Tensor, threshold: float = 0.0) -> Tensor:
    """(B, H, W) targets of the plainest rule: an untold pixel becomes what the teacher names with at least this score."""
    return torch.where((told == BACKGROUND) & (score >= threshold), ids.to(told), told)


@dataclass(frozen=True)
class Look:
    """Training images of a step, and what its teacher and its method make of them. All (B, H, W), on the CPU.

    told: labels of the step. truth: learned ids of all classes, 255 void. score, ids: see `says`. targets: the method's own, or,
    without a rule, whatever the teacher names (``own`` is False).
    """

    images: list[Tensor]
    names: list[str]
    told: Tensor
    truth: Tensor
    score: Tensor
    ids: Tensor
    targets: Tensor
    own: bool
    step: Step
    scenario: Scenario
    palette: Palette

    def at(self, threshold: float) -> Tensor:
        """Targets of the plainest rule, `believed`, at this threshold."""
        return believed(self.told, self.score, self.ids, threshold)


def look(batch: Batch, ctx: Context) -> Look | None:
    """What becomes of a training batch that brings ``extra["truth"]``; None without a teacher (step 0, the joint bound)."""
    if ctx.old_model is None:
        return None
    prepare(ctx)
    with torch.no_grad():
        teacher = ctx.old_model(batch.image)
        score, ids = says(teacher, ctx.method)
        own = has_rule(ctx.method)
        targets = ctx.method.targets(batch, teacher, ctx) if own else believed(batch.label, score, ids)
    told, truth, score, ids, targets = (t.cpu() for t in (batch.label, batch.extra["truth"], score, ids, targets))
    images = [photo(image, ctx.data.source) for image in batch.image]
    about = (own, ctx.step, ctx.scenario, ctx.data.palette)
    return Look(images, list(batch.extra["names"]), told, truth, score, ids, targets, *about)


def look_all(groups: Mapping[str, Sequence[Chain]], restore: Restore, n: int = 4) -> dict[str, dict[int, Look]]:
    """`look` at every later step of each method's first seed, at the ``n`` images of its first batch that hide most.

    Methods without a teacher are left out, and those whose weights or images are not where the runs say (`count_all` says why).
    """
    found: dict[str, dict[int, Look]] = {}
    for method, chains in groups.items():
        for run in chains[0].runs:
            try:
                ctx = restore(run)
            except KitError:
                break
            if ctx.old_model is None:
                continue
            loader = train_loader(ctx, truth=True)
            seen = look(telling(next(loader.epoch(0, ctx.device)), ctx.step, n), ctx)
            loader.close()
            if seen is not None:
                found.setdefault(method, {})[run.step] = seen
    return found


def two_to_show(looks: Mapping[str, Mapping[int, Look]]) -> list[str]:
    """A method with a rule of its own and one without, of those that are there; else the first two."""
    own = [method for method, seen in looks.items() if seen[max(seen)].own]
    rest = [method for method in looks if method not in own]
    return [*own[-1:], *rest[-1:]] if own and rest else [*own, *rest][:2]


def judge(told: Labels, targets: Labels, truth: Labels, step: Step) -> NDArray[np.uint8]:
    """What the targets make of untold pixels: 0 nothing to say, else 1 + position in `JUDGED`. All of one shape.

    Told and void pixels are not judged, nor is what is taught as background and is none of the old classes.
    """
    told, targets, truth = np.asarray(told), np.asarray(targets), np.asarray(truth)
    untold = (told == BACKGROUND) & (truth != IGNORE)
    old, given = (truth >= 1) & (truth <= step.n_old), (targets != BACKGROUND) & (targets != IGNORE)
    where = {
        "accepted": old & given & (targets == truth),
        "mixed up": old & given & (targets != truth),
        "false alarm": ~old & given,
        "denied": old & (targets == BACKGROUND),
        "spared": old & (targets == IGNORE),
        "needless": ~old & (targets == IGNORE),
    }
    kinds = np.zeros(truth.shape, dtype=np.uint8)
    for number, kind in enumerate(JUDGED, start=1):
        kinds[untold & where[kind]] = number
    return kinds


# --- pictures of a batch ---


def show_targets(told: Labels, targets: Labels, ids: Labels, palette: Palette, ax: Axes) -> set[str]:
    """Targets (H, W) in class colours: told pixels outlined; rejected (the teacher names an old class, and is not believed) and
    ignored ones white and hatched. Returns which of the three are on show."""
    told, targets = np.asarray(told), np.asarray(targets)
    ignored = (targets == IGNORE) & (told != IGNORE)
    rejected = (told == BACKGROUND) & (targets == BACKGROUND) & (np.asarray(ids) != BACKGROUND)
    named = (told != BACKGROUND) & (told != IGNORE)
    colours = palette[targets].astype(np.float64)
    colours[ignored | rejected] = 255
    ax.imshow(colours.astype(np.uint8), interpolation="nearest")
    hatch(rejected, ax, REJECTED, "#333333")
    hatch(ignored, ax, IGNORED, "#333333")
    outline(named, ax, TOLD)
    there = {"told": named, "rejected": rejected, "ignored": ignored}
    return {kind for kind, where in there.items() if where.any()}


def _region_patches(kinds: set[str]) -> list[Any]:
    grey: dict[str, Any] = {"facecolor": "white", "edgecolor": "#333333", "linewidth": 0.5}
    entries = {
        "told": Line2D([], [], color=TOLD, linewidth=1.3, label="outlined: told"),
        "rejected": Patch(hatch=REJECTED, label="rejected", **grey),
        "ignored": Patch(hatch=IGNORED, label="ignored", **grey),
    }
    return [entry for kind, entry in entries.items() if kind in kinds]


def _judged_patches(kinds: NDArray[np.uint8]) -> list[Patch]:
    there = set(np.unique(kinds).tolist())
    return [Patch(facecolor=c, label=words) for n, (c, words) in enumerate(JUDGED.values(), start=1) if n in there]


def figure_look(seen: Look, *, title: str = "") -> Figure:
    """Images, what is really there, what the teacher names and how sure it is, the targets, and what is right in them.

    A row for each of these and a column per image; a single image lies along a row.
    """
    rows = ("image", "really there,\nuntold hatched", "the teacher\nnames", "its score", "targets", "against\nthe truth")
    n, shape = len(seen.images), aspect(seen.images[0])
    if n == 1:
        fig, axes = grid(1, len(rows), cell=1.5, aspect=shape, margin=1.7, legend=0.8)
        axes = axes.T
    else:
        fig, axes = grid(len(rows), n, cell=1.5 if n <= 5 else 1.1, aspect=shape, margin=1.5, legend=1.2)
    told, truth, ids, targets = (t.numpy() for t in (seen.told, seen.truth, seen.ids, seen.targets))
    kinds, shown, regions = judge(told, targets, truth, seen.step), {*np.unique(truth).tolist(), *np.unique(ids).tolist()}, set()
    scored: Any = None
    for i, column in enumerate(axes.T):
        show_image(seen.images[i], column[0]).set_title(seen.names[i] if n > 1 else "", fontsize=7)
        show_labels(truth[i], seen.palette, column[1], hidden=hidden_by(truth[i], told[i], seen.step))
        show_labels(ids[i], seen.palette, column[2])
        scored = column[3].imshow(seen.score[i].numpy(), cmap=SCORE, vmin=0, vmax=1, interpolation="nearest")
        regions |= show_targets(told[i], targets[i], ids[i], seen.palette, column[4])
        show_on_photo(kinds[i], [colour for colour, _ in JUDGED.values()], seen.images[i], column[5])
    for ax, text in zip(axes[:, 0], rows, strict=True):
        if n == 1:
            ax.set_title(text)
        else:
            row_label(ax, text)
    if n == 1:
        fig.colorbar(scored, ax=list(axes[:, 0]), label="score (0 to 1)", pad=0.01)
    else:
        fig.colorbar(scored, ax=list(axes[3]), label="score\n(0 to 1)", shrink=0.9, pad=0.02)
    fig.suptitle(title, fontsize=9, x=0.02, ha="left")
    legend_below(
        fig, class_patches(shown, seen.scenario.classes, seen.palette) + _region_patches(regions) + _judged_patches(kinds)
    )
    return fig


def figure_accepted(seen: Look, threshold: float) -> Figure:
    """The last two rows of `figure_look` for the plainest rule at a threshold."""
    n = len(seen.images)
    fig, axes = grid(2, n, cell=1.5 if n <= 5 else 1.1, aspect=aspect(seen.images[0]), margin=0.4)
    told, truth, ids, targets = (t.numpy() for t in (seen.told, seen.truth, seen.ids, seen.at(threshold)))
    kinds, regions = judge(told, targets, truth, seen.step), set[str]()
    for i, column in enumerate(axes.T):
        regions |= show_targets(told[i], targets[i], ids[i], seen.palette, column[0])
        show_on_photo(kinds[i], [colour for colour, _ in JUDGED.values()], seen.images[i], column[1])
    for ax, text in zip(axes[:, 0], (f"targets at\nτ = {threshold:.2f}", "against\nthe truth"), strict=True):
        row_label(ax, text)
    handles = class_patches(np.unique(targets).tolist(), seen.scenario.classes, seen.palette)
    handles += _region_patches(regions) + _judged_patches(kinds)
    fig.set_figheight(fig.get_figheight() + 0.09 * len(handles))  # room for the legend
    legend_below(fig, handles)
    return fig


# --- counts ---


@dataclass(frozen=True)
class Tally:
    """Untold pixels of a step, counted once; every number at every threshold is a sum over them.

    counts: (1500, 1 + n_old, 4) int64 by score (bins `BINS`), by the class that the teacher names, and by what is really there:
    `REALLY`. score_sum: (1500, 1 + n_old) sums of the scores. truth: (1 + n_old,) pixels by true class, background and old ones.
    quality: `PseudoLabelQuality.result` of the targets that the method itself makes; None where it has no rule. threshold: that
    of its rule, if it is one number. images: how many were looked at.
    """

    counts: NDArray[np.int64]
    score_sum: Floats
    truth: NDArray[np.int64]
    quality: dict[str, Any] | None
    threshold: float | None
    images: int
    scenario: Scenario
    step: Step
    palette: Palette

    def accepted(self, threshold: float) -> NDArray[np.int64]:
        """(n_old, 4) pixels that the teacher gives to each old class with at least this score, by `REALLY`."""
        return self.counts[self._first(threshold) :, 1:].sum(axis=0)

    def sweep(self) -> tuple[Floats, Floats]:
        """(1500,) precision and recall over all old classes together at the thresholds k / 1500; NaN: nothing is accepted."""
        above = self.counts[:, 1:].sum(axis=1)[::-1].cumsum(axis=0)[::-1]
        return ratio(above[:, 0], above.sum(axis=1)), above[:, 0] / max(int(self.truth[1:].sum()), 1)

    def classes(self, threshold: float) -> pd.DataFrame:
        """Precision and recall of the plainest rule and of the method's own, fractions by learned id; NaN: no pixel."""
        taken = self.accepted(threshold)
        frame = pd.DataFrame(
            {"precision": ratio(taken[:, 0], taken.sum(axis=1)), "recall": ratio(taken[:, 0], self.truth[1:])},
            index=range(1, self.step.n_old + 1),
        )
        for name in ("precision", "recall"):
            own = (self.quality or {}).get(name, {})
            frame[f"own {name}"] = [_number(own.get(self.scenario.classes[c])) for c in frame.index]
        return frame

    def curve(self, threshold: float = 0.0) -> Curve:
        """Reliability of the teacher where it names an old class with at least this score: `BINS` narrow groups, or fewer."""
        counts = self.counts[:, 1:].sum(axis=1).astype(np.float64)
        whole = Curve(counts.sum(axis=1), self.score_sum[:, 1:].sum(axis=1), counts[:, 0])
        return whole.narrowed(slice(self._first(threshold), None))

    def brier(self, threshold: float = 0.0) -> Brier:
        """Brier score of those pixels, in groups of about equal count."""
        return brier(self.curve(threshold).grouped(GROUPS))

    def calibration_error(self) -> float:
        """Expected calibration error where the teacher names an old class, 15 bins of equal width."""
        return expected_calibration_error(self.curve().widened(WIDTH_BINS))

    def _first(self, threshold: float) -> int:
        return round(min(max(threshold, 0.0), 1.0) * BINS)


NOBODY = "No run here has a teacher: run a second step, of a method other than the joint bound."

Tallies = Mapping[str, Mapping[int, Tally]]
"""Method -> step -> counts."""


def count(ctx: Context, images: int = 300) -> Tally | None:
    """`Tally` over (about) the first ``images`` training images of a step, as `fit` cuts them; None without a teacher."""
    if ctx.old_model is None:
        return None
    prepare(ctx)
    step, own = ctx.step, has_rule(ctx.method)
    n, kinds = step.n_old + 1, len(REALLY)
    counts = torch.zeros(BINS * n * kinds, dtype=torch.int64, device=ctx.device)
    sums = torch.zeros(BINS * n, dtype=torch.float64, device=ctx.device)
    truths = torch.zeros(n, dtype=torch.int64, device=ctx.device)
    quality, seen = PseudoLabelQuality(ctx.scenario, step, ctx.device), 0
    loader = train_loader(ctx, truth=True)
    with torch.no_grad():
        for batch in loader.epoch(0, ctx.device, whole=True):
            teacher = ctx.old_model(batch.image)
            score, ids = says(teacher, ctx.method)
            truth = batch.extra["truth"].long()
            if own:
                quality.update(truth, batch.label, ctx.method.targets(batch, teacher, ctx))
            where = (batch.label == BACKGROUND) & (truth != IGNORE)
            s, k, y = score[where].double(), ids[where], truth[where]
            cell = (s * BINS + 1e-6).long().clamp(0, BINS - 1) * n + k  # a score of 0.7 in single precision is a little less
            counts += torch.bincount(cell * kinds + _really(k, y, step), minlength=len(counts))
            sums.index_add_(0, cell, s)
            truths += torch.bincount(y[y < n], minlength=n)
            seen += len(batch.label)
            if seen >= images:
                break
    loader.close()
    return Tally(
        counts.view(BINS, n, kinds).cpu().numpy(), sums.view(BINS, n).cpu().numpy(), truths.cpu().numpy(),
        quality.result() if own else None, threshold_of(ctx.method), seen, ctx.scenario, step, ctx.data.palette,
    )  # fmt: skip


def _really(ids: Tensor, truth: Tensor, step: Step) -> Tensor:
    """Positions in `REALLY`."""
    kind = torch.where(truth == BACKGROUND, 2, torch.where(truth <= step.n_old, 1, 3))
    return kind.masked_fill(ids == truth, 0)


def count_all(
    groups: Mapping[str, Sequence[Chain]], restore: Restore, images: int = 300
) -> tuple[dict[str, dict[int, Tally]], list[str]]:
    """`count` at every later step of each method's first seed. Also returns, in words, what is left out and why."""
    found: dict[str, dict[int, Tally]] = {}
    faults = []
    for method, chains in groups.items():
        try:
            counted = {run.step: count(restore(run), images) for run in chains[0].runs if run.step > 0}
        except KitError as error:
            faults.append(f"{method_title(method)} is left out: {error}")
            continue
        there = {step: tally for step, tally in counted.items() if tally is not None}
        if there:
            found[method] = there
        else:
            faults.append(
                f"{method_title(method)} is left out: {'it has no teacher' if counted else 'only step 0 has been run'}."
            )
    return found, faults


def quality_table(found: Tallies) -> pd.DataFrame:
    """One row per method and step: how often the teacher is right where it names an old class, how well its score says so (ECE,
    Brier), and what the method's own rule makes of it; percent, means over old classes.

    "contamination": share of the pixels of later classes that get an old label (a dash at the last step: there are none).
    """
    rows = []
    for method, tallies in found.items():
        for step, tally in tallies.items():
            curve, scored = tally.curve(), tally.brier()
            row = {
                "method": method_title(method),
                "step": str(step),
                "teacher right %": _percent(float(curve.right.sum()) / curve.total if curve.total else np.nan),
                "ECE": _decimal(tally.calibration_error()),
                "Brier": _decimal(scored.score),
                "own rule": "none" if tally.quality is None else "own" if tally.threshold is None else f"τ = {tally.threshold:g}",
            }
            own = tally.quality or {}
            for name in ("precision", "recall"):
                values = [_number(own.get(name, {}).get(tally.scenario.classes[c])) for c in range(1, tally.step.n_old + 1)]
                row[f"{name} %"] = _percent(float(np.nanmean(values)) if not np.isnan(values).all() else np.nan)
            row["contamination %"] = _percent(_number(own.get("contamination")))
            row["ignored %"] = _percent(1 - _number(own.get("coverage")))
            rows.append(row)
    return pd.DataFrame(rows)


# --- pictures of the counts ---


def plot_reliability(curves: Mapping[str, tuple[Curve, str]], ax: Axes, *, threshold: float | None = None) -> Axes:
    """Reliability diagram: share of right pixels (%) over the mean score of a group; on the diagonal a score means what it says.

    curves: words -> curve and colour. threshold: what lies left of it is not accepted.
    """
    ax.plot([0, 1], [0, 100], color="#999999", linestyle="--", linewidth=0.9)
    for words, (curve, colour) in curves.items():
        there = curve.count > 0
        ax.plot(curve.score[there], 100 * curve.accuracy[there], "o-", color=colour, markersize=4, linewidth=1.2, label=words)
    if threshold is not None:
        ax.axvspan(-0.02, threshold, facecolor="#eeeeee", zorder=0)
        ax.axvline(threshold, color="#444444", linewidth=1.0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-2, 102), xlabel="mean score of a group (0 to 1)", ylabel="right (%)")
    return ax


def plot_sweep(tally: Tally, ax: Axes, *, threshold: float) -> Axes:
    """Precision and recall (%) of the plainest rule at every threshold, all old classes together; the threshold is a line."""
    at = np.arange(BINS) / BINS
    for values, words, style in zip(tally.sweep(), ("precision", "recall"), ("-", "--"), strict=True):
        ax.plot(at, 100 * values, style, color="black", linewidth=1.4, label=words)
    ax.axvline(threshold, color="#444444", linewidth=1.0)
    if tally.threshold is not None and round(tally.threshold, 3) != round(threshold, 3):
        ax.axvline(tally.threshold, color="#444444", linewidth=1.0, linestyle=":", label="τ of the method")
    ax.set(xlim=(-0.02, 1.02), ylim=(-2, 102), xlabel="threshold τ", ylabel="all old classes (%)")
    ax.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none")
    return ax


def plot_classes(tally: Tally, ax: Axes, *, threshold: float, most: int = 20) -> Axes:
    """Per old class precision (disc) and recall (ring) of the plainest rule (%); strokes above and below: those of the method's
    own rule. most: classes shown, those that it finds least of. A class without a pixel is named and has no mark."""
    table = tally.classes(threshold)
    ids = sorted(table["recall"].fillna(2).sort_values(kind="stable").index[:most])
    for y, c in enumerate(ids):
        row, colour = 100 * table.loc[c], to_hex(tally.palette[c] / 255)
        ax.plot([row["precision"], row["recall"]], [y, y], color=colour, linewidth=1.2, zorder=1)
        ring: dict[str, Any] = {"markersize": 7, "markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.8}
        disc: dict[str, Any] = {"markersize": 6, "markerfacecolor": colour, "markeredgecolor": "#333333", "markeredgewidth": 0.6}
        ax.plot(row["recall"], y, "o", **ring, zorder=2)
        ax.plot(row["precision"], y, "o", **disc, zorder=3)
        for name, shift in (("own precision", -0.28), ("own recall", 0.28)):
            ax.plot(row[name], y + shift, "|", color="black", markersize=7, markeredgewidth=1.6, zorder=4)
    ax.set(yticks=range(len(ids)), ylim=(len(ids) - 0.4, -0.6), xlim=(-2, 102), xlabel="of a class (%)")
    ax.set_yticklabels([f"{c} {tally.scenario.classes[c]}" for c in ids])
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    return ax


def sentence(tally: Tally, threshold: float) -> str:
    """What the plainest rule does at this threshold, in words; numbers are computed."""
    taken, old = tally.accepted(threshold).sum(axis=0), int(tally.truth[1:].sum())
    if not taken.sum():
        return f"τ = {threshold:.2f}: nothing is accepted; every old pixel is taught as background."
    shares = 100 * taken / taken.sum()
    wrong = ", ".join(f"{words} {share:.1f} %" for words, share in zip(REALLY[1:], shares[1:], strict=True))
    found = f"{100 * taken[0] / old:.0f} % of the old pixels get their class back" if old else "no old pixel is hidden here"
    return f"τ = {threshold:.2f}: {found}; of what is accepted {shares[0]:.1f} % is right ({wrong})."


def brier_sentence(words: str, parts: Brier) -> str:
    """ "accepted: Brier 0.021 = calibration 0.003 - resolution 0.004 + uncertainty 0.022" """
    if np.isnan(parts.score):
        return f"{words}: no pixel"
    return (
        f"{words}: Brier {parts.score:.3f} = calibration {parts.calibration:.3f} − resolution {parts.resolution:.3f} "
        f"+ uncertainty {parts.uncertainty:.3f}"
    )


def figure_threshold(tally: Tally, threshold: float, *, title: str = "", colour: str = "black") -> Figure:
    """The plainest rule at ``threshold``: reliability diagram, precision and recall over thresholds, and both per class."""
    n = min(20, tally.step.n_old)
    fig = figure(10.2, max(3.6, 1.7 + 0.26 * n))
    axes = fig.subplots(1, 3, width_ratios=[1, 1, 1.15])
    curve = tally.curve()
    bars = 100 * curve.widened(20).count / max(curve.total, 1)
    axes[0].stairs(bars, np.linspace(0, 1, 21), fill=True, color="#c9c9c9", zorder=0.5)
    plot_reliability({"right": (curve.grouped(GROUPS), colour)}, axes[0], threshold=threshold)
    plot_sweep(tally, axes[1], threshold=threshold)
    plot_classes(tally, axes[2], threshold=threshold)
    for ax, words in zip(axes, ("Does the score mean what it says?", "What a threshold trades", "Class by class"), strict=True):
        ax.set_title(words)
    lines = [title] if title else []
    lines += textwrap.wrap(sentence(tally, threshold), 120)
    lines += [brier_sentence("all that is named", tally.brier()), brier_sentence("accepted", tally.brier(threshold))]
    fig.suptitle("\n".join(lines), fontsize=9, x=0.02, ha="left")
    plain: dict[str, Any] = {"linestyle": "", "color": "#555555"}
    handles: list[Any] = [
        Patch(facecolor="#c9c9c9", label="pixels by score (%)"),
        Line2D([], [], marker="o", label="precision: of what gets the class, is it", **plain),
        Line2D([], [], marker="o", markerfacecolor="white", markeredgewidth=1.8, label="recall: of the class, gets it", **plain),
    ]
    if tally.quality is not None:
        stroke: dict[str, Any] = {"marker": "|", "markersize": 8, "markeredgewidth": 1.6, "linestyle": "", "color": "black"}
        handles.append(Line2D([], [], label="above, below: both of the method's own rule", **stroke))
    legend_below(fig, handles)
    return fig


def figure_teachers(found: Tallies) -> Figure:
    """Reliability of every method's teacher where it names an old class, a panel per step (up to five)."""
    if not found:
        return note(NOBODY)
    steps = sorted({step for tallies in found.values() for step in tallies})
    steps = spread(steps)
    fig = figure(max(4.2, 2.9 * len(steps)), 3.6)
    axes = fig.subplots(1, len(steps), squeeze=False, sharey=True)[0]
    for ax, step in zip(axes, steps, strict=True):
        there = {m: tallies[step] for m, tallies in found.items() if step in tallies}
        plot_reliability({method_title(m): (t.curve().grouped(GROUPS), method_colour(m)) for m, t in there.items()}, ax)
        ax.set_title(f"the teacher of step {step}")
        if ax is not axes[0]:
            ax.set_ylabel("")
    legend_below(fig, [Line2D([], [], marker="o", color=method_colour(m), label=method_title(m)) for m in found])
    return fig


def figure_by_step(found: Tallies) -> Figure:
    """From step to step: how often the teacher is right where it names an old class, how much of the old classes it still names
    rightly, and how well the scores mean what they say (calibration error)."""
    if not found:
        return note(NOBODY)
    panels: dict[str, Callable[[Tally], float]] = {
        "right, where it names an old class": lambda t: float(t.sweep()[0][0]),
        "old pixels that it names rightly": lambda t: float(t.sweep()[1][0]),
        "calibration error of its score": Tally.calibration_error,
    }
    fig = figure(9.6, 3.2)
    axes = fig.subplots(1, len(panels))
    last = max(step for tallies in found.values() for step in tallies)
    for ax, (words, value) in zip(axes, panels.items(), strict=True):
        lines = {
            m: [np.array([value(tallies[t]) if t in tallies else np.nan for t in range(last + 1)])]
            for m, tallies in found.items()
        }
        plot_by_step(lines, ylabel="untold pixels (%)" if ax is axes[0] else "", ax=ax)
        ax.set(title=words, xlabel="teacher of step", xticks=range(1, last + 1), xlim=(0.8, last + 0.2))
    high = max(tally.calibration_error() for tallies in found.values() for tally in tallies.values())
    axes[-1].set(ylim=(0, max(10.0, 110 * high)), ylabel="points, 0 is best")
    legend_below(fig, axes[0].get_legend_handles_labels()[0])
    return fig


def explore_threshold(found: Tallies, looks: Mapping[str, Mapping[int, Look]] | None = None) -> Any:
    """Choose method and step, and move the threshold: `figure_threshold`, and on ``looks`` (method -> step -> images) also
    `figure_accepted`. Nothing is counted again. The last step of a method, one with a rule of its own if there is one, is drawn
    once as static pictures. Returns the widget."""
    import ipywidgets as widgets
    from IPython.display import display

    if not found:
        display(note(NOBODY))
        return widgets.VBox()
    first = [*found, *(m for m in found if found[m][max(found[m])].quality is not None)][-1]
    method = widgets.Dropdown(options=[(method_title(m), m) for m in found], value=first, description="method")
    step = widgets.Dropdown(options=list(found[first]), value=max(found[first]), description="step")
    slider = widgets.FloatSlider(min=0, max=1, step=0.01, value=start(found[first][max(found[first])]), description="τ")
    slider.continuous_update = False

    def draw() -> list[Figure]:
        tallies = found[method.value]
        t = step.value if step.value in tallies else max(tallies)
        words = f"{method_title(method.value)}, the teacher of step {t}, on {tallies[t].images} training images"
        colour = method_colour(method.value)
        figures = [figure_threshold(tallies[t], slider.value, title=words, colour=colour)]
        seen = (looks or {}).get(method.value, {}).get(t)
        if seen is not None:
            figures.append(figure_accepted(seen, slider.value))
        return figures

    controls = [method, step, slider]
    return widgets.VBox([widgets.HBox(controls), following(draw, controls)])


def start(tally: Tally) -> float:
    """Where a slider starts: at the method's own threshold, else at 0.7, which most papers use."""
    return tally.threshold if tally.threshold is not None else 0.7


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _percent(fraction: float) -> str:
    return MISSING if np.isnan(fraction) else f"{100 * fraction:.1f}"


def _decimal(value: float) -> str:
    return MISSING if np.isnan(value) else f"{value:.3f}"
