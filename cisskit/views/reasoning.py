"""DKD's reasoning: the evidence for a class and the evidence against it, whose sum is the logit."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from cisskit.data import Batch
from cisskit.losses import reasoning_scores
from cisskit.method import Context
from cisskit.models import Model
from cisskit.views.masks import aspect, photo, show_image
from cisskit.views.style import figure, grid

FOR, AGAINST = "#1b7837", "#762a83"
"""Evidence for and against: green and violet, the ends of the diverging map that shows both."""


def plot_same_logit(ax: Axes) -> Axes:
    """Two students with the teacher's logit: one kept its reasons, one did not. Distilling logits cannot tell them apart."""
    cases = {
        "teacher": (6.0, -4.0),
        "student A:\nkept its reasons": (6.0, -4.0),
        "student B:\nsame logit, other reasons": (2.4, -0.4),
    }
    for y, (p, m) in enumerate(cases.values()):
        ax.barh(y, p, color=FOR, height=0.55, label="evidence for: max(w, 0)·f" if y == 0 else None)
        ax.barh(y, m, color=AGAINST, height=0.55, label="evidence against: min(w, 0)·f" if y == 0 else None)
        ax.plot([p + m] * 2, [y - 0.38, y + 0.38], color="black", linewidth=2.2, label="logit: their sum" if y == 0 else None)
    ax.axvline(0, color="#777777", linewidth=0.8)
    ax.set(yticks=range(len(cases)), ylim=(2.6, -0.6), xlim=(-5.5, 7), xlabel="score of one class at one pixel")
    ax.set_yticklabels(cases)
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
    return ax


def figure_problem() -> Figure:
    """`plot_same_logit` on a figure of its own."""
    fig = figure(7.4, 2.5)
    plot_same_logit(fig.subplots())
    return fig


def evidence(model: Model, image: Tensor, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence for and against class ``c`` and its logit, each (B, h, w) at the decoder's size, on the CPU.

    image: (B, 3, H, W) normalised, on the model's device. positive + negative + bias = logit, exactly.
    """
    model.eval()
    with torch.no_grad():
        output = model(image)
        weight, _ = model.classifier()
        positive, negative = reasoning_scores(output.features["decoder"].float(), weight[c : c + 1])
    return positive[:, 0].cpu(), negative[:, 0].cpu(), output.scores[:, c].cpu()


def class_to_explain(batch: Batch, ctx: Context) -> tuple[int, int]:
    """(image, class): where a class that the network has learnt covers most pixels; an old one if there is a teacher."""
    ids = range(1, ctx.step.n_old + 1) if ctx.old_model is not None else range(1, ctx.step.n_seen + 1)
    truth = batch.extra["truth"].cpu().numpy()
    counts = np.array([[(label == c).sum() for c in ids] for label in truth])
    image, column = np.unravel_index(int(counts.argmax()), counts.shape)
    return int(image), ids[int(column)]


def figure_evidence(batch: Batch, i: int, c: int, model: Model, ctx: Context) -> Figure:
    """One class on one training image: image with its outline, evidence for, evidence against, logit; one common scale."""
    positive, negative, logit = (part[0] for part in evidence(model, batch.image[i : i + 1], c))
    image = photo(batch.image[i], ctx.data.source)
    fig, axes = grid(1, 4, cell=1.9, aspect=aspect(image), margin=0.7)
    show_image(image, axes[0, 0])
    truth = batch.extra["truth"][i].cpu().numpy()
    where = truth == c
    if where.any():
        axes[0, 0].contour(where.astype(np.float64), levels=[0.5], colors="white", linewidths=1.6)
        axes[0, 0].contour(where.astype(np.float64), levels=[0.5], colors="black", linewidths=0.7)
    top = float(np.quantile(torch.cat([positive.abs(), negative.abs()]).numpy(), 0.995)) or 1.0
    titles = ("evidence for", "evidence against", "logit (sum + bias)")
    maps = []
    for ax, part, title in zip(axes[0, 1:], (positive, negative, logit), titles, strict=True):
        maps.append(ax.imshow(part.numpy(), cmap="PRGn", norm=TwoSlopeNorm(0, -top, top), interpolation="nearest"))
        ax.set_title(title)
    axes[0, 0].set_title(f"{c} {ctx.scenario.classes[c]}")
    fig.colorbar(maps[0], ax=list(axes[0]), shrink=0.75, label="score")
    return fig
