"""How a step is trained: the terms of one batch, the curves of `Run.history`, and which term moves which part of the network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

from cisskit.data import Batch
from cisskit.errors import KitError
from cisskit.method import Context, Method
from cisskit.models import Output, trainable
from cisskit.runs import Run
from cisskit.train import train_loader
from cisskit.views.style import figure, method_title
from cisskit.views.tables import Chain

TERM_COLOURS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#ee3377", "#33bbee", "#bbbbbb")
"""Loss terms, in the order of the method's dictionary."""

NOT_TERMS = ("epoch", "iteration", "lr")


def terms_of(history: pd.DataFrame) -> list[str]:
    """Names of the loss terms in a history, in the order of the method's dictionary."""
    return [name for name in history.columns if name not in NOT_TERMS]


def term_table(terms: Mapping[str, Tensor]) -> pd.DataFrame:
    """Loss terms of one batch as `Method.losses` returns them: value, and share of the sum in percent."""
    values = {name: float(term) for name, term in terms.items()}
    total = sum(values.values())
    rows = [
        {"term": name, "value": float(f"{v:.4g}"), "share of the sum %": round(100 * v / total, 1)} for name, v in values.items()
    ]
    return pd.DataFrame([*rows, {"term": "sum", "value": round(total, 4), "share of the sum %": 100.0}])


def shape_table(output: Output) -> pd.DataFrame:
    """What the network hands to a method, with shapes: (batch, channels, height, width)."""
    parts = {
        **{f'features["{name}"]': f for name, f in output.features.items()},
        "scores": output.scores,
        "logits": output.logits,
    }
    return pd.DataFrame({"output": list(parts), "shape": [" x ".join(map(str, t.shape)) for t in parts.values()]})


def running_mean(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` values around each (fewer at both ends), same length."""
    return pd.Series(np.asarray(values, dtype=np.float64)).rolling(width, min_periods=1, center=True).mean().to_numpy()


def figure_terms(history: pd.DataFrame) -> Figure:
    """One panel per loss term over iterations: every iteration, and the running mean over a twentieth of them."""
    names = terms_of(history)
    fig = figure(max(4.0, 2.3 * len(names)), 2.3)
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
        colour = TERM_COLOURS[k % len(TERM_COLOURS)]
        ax.plot(history["iteration"], history[name], color=colour, alpha=0.3, linewidth=0.7)
        ax.plot(history["iteration"], running_mean(history[name], max(1, len(history) // 20)), color=colour, linewidth=1.6)
        top = float(np.nanquantile(history[name], 0.995))  # one spike at the start must not flatten the curve
        ax.set(title=name, xlabel="iteration")
        if top > 0:
            ax.set_ylim(min(0.0, float(history[name].min())), 1.1 * top)
    axes[0].set_ylabel("weighted term")
    return fig


def figure_losses(groups: Mapping[str, Sequence[Chain]]) -> Figure:
    """Small multiples, methods x steps: size of every loss term, logarithmic, running mean (first seed of each method)."""
    steps = max(chain.last.step for chains in groups.values() for chain in chains) + 1
    fig = figure(min(13.0, 2.3 * steps + 1.6), 1.75 * len(groups) + 0.4)
    grid = fig.subplots(len(groups), steps, squeeze=False, sharey="row")
    for row, (method, chains) in zip(grid, groups.items(), strict=True):
        for ax in row:
            ax.set_visible(False)
        seen: dict[str, str] = {}
        for run in chains[0].runs:
            ax, history = row[run.step], run.history
            ax.set_visible(True)
            for name in terms_of(history):
                colour = seen.setdefault(name, TERM_COLOURS[len(seen) % len(TERM_COLOURS)])
                line = running_mean(history[name], max(1, len(history) // 20))
                ax.plot(history["iteration"], np.maximum(np.abs(line), 1e-6), color=colour, label=name, linewidth=1.3)
            ax.set(yscale="log")
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.set_title(f"{method_title(method)}, step {run.step}")
        row[chains[0].runs[0].step].set_ylabel("size of weighted term")
        lines = [Line2D([], [], color=colour, label=name) for name, colour in seen.items()]
        row[chains[0].last.step].legend(handles=lines, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1)
    for ax in grid[-1]:
        ax.set_xlabel("iteration")
    return fig


# --- what moves what ---

PARTS = ("backbone", "decoder", "old heads", "new head", "aux")
"""Groups of weights. Old heads are all but the last one, background and unknown included; at step 0 every head is new. Aux is
what a method keeps beside the network (`Model.aux`)."""

SHARES = "Blues"
"""Shares of a gradient, 0 to 100 %."""


def parts_of(ctx: Context) -> dict[str, list[nn.Parameter]]:
    """Weights that may learn, by `PARTS`; a frozen part has none."""
    model, first = ctx.model, len(ctx.model.heads) - 1 if ctx.step.index > 0 else 0
    return {
        "backbone": trainable(model.backbone),
        "decoder": trainable(model.decoder),
        "old heads": trainable(*model.heads[:first]),
        "new head": trainable(*model.heads[first:]),
        "aux": trainable(model.aux),
    }


def gradient_shares(ctx: Context, batch: Batch) -> pd.DataFrame:
    """Which term moves which part: each term of the loss on this batch, differentiated on its own.

    One row per term and part of `PARTS`, terms in the method's order. "value": of the weighted term. "norm": L2 norm of its
    gradient by the weights of the part. "share": norm over the sum of the norms of all terms in this part, 0..1; NaN where no
    term reaches it. "reached", "weights": tensors whose gradient is not 0, and tensors that may learn; none in a frozen part.
    "inert": whether `Method.inert` lists the term. Norms are not lengths of steps: learning rates differ between parts, and Adam
    divides by the size of past gradients.
    The network is left in evaluation mode, in which no method changes what it keeps beside it, and is not changed.
    """
    model, parts = ctx.model.eval(), parts_of(ctx)
    weights = [weight for part in parts.values() for weight in part]
    with torch.no_grad():
        teacher = ctx.old_model(batch.image) if ctx.old_model is not None else None
    terms = ctx.method.losses(batch, model(batch.image), teacher, ctx)
    rows = []
    for name, term in terms.items():
        found: Sequence[Tensor | None] = [None] * len(weights)
        if term.requires_grad:
            found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        sizes = iter([0.0 if g is None else float(g.float().norm()) for g in found])
        for part, own in parts.items():
            norms = np.array([next(sizes) for _ in own])
            rows.append({
                "term": name, "part": part, "value": float(term.detach()), "norm": float(np.sqrt((norms**2).sum())),
                "reached": int((norms > 0).sum()), "weights": len(own), "inert": name in ctx.method.inert,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    total = table.groupby("part")["norm"].transform("sum")
    table.insert(4, "share", np.divide(table["norm"], total, out=np.full(len(table), np.nan), where=total > 0))
    return table


def prepare(ctx: Context) -> None:
    """Have the method of a restored run gather once more what it had gathered before the step (`Method.prepare`)."""
    if not ctx.stats and ctx.old_model is not None and type(ctx.method).prepare is not Method.prepare:
        with torch.no_grad():
            ctx.stats = ctx.method.prepare(ctx, train_loader(ctx).epoch(0, ctx.device))


def two_to_compare(groups: Mapping[str, Sequence[Chain]]) -> list[str]:
    """The modes of IDEC or LAG, if both were run; else the last two methods, in the order of legends, that have an old model."""
    there = [method for method, chains in groups.items() if chains[0].last.step > 0 and method != "joint"]
    pairs = [pair for pair in (["idec", "idec-described"], ["lag", "lag-described"]) if set(pair) <= set(there)]
    return pairs[0] if pairs else there[-2:]


def shares_of(
    groups: Mapping[str, Sequence[Chain]], restore: Callable[[Run], Context], methods: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Heading -> `gradient_shares` of each method's network after its last step (first seed), on the first batch of that step.

    Raises `KitError` for a method that was not run, and when weights or images are not where the runs say.
    """
    found = {}
    for method in methods:
        if method not in groups:
            raise KitError(
                f"{method} is not among these runs ({', '.join(groups)}). Run it first: cisskit run --method {method}."
            )
        ctx = restore(groups[method][0].last)
        prepare(ctx)
        loader = train_loader(ctx)
        found[f"{method_title(method)}, step {ctx.step.index}"] = gradient_shares(ctx, next(loader.epoch(0, ctx.device)))
        loader.close()
    return found


def over_parts(shares: pd.DataFrame) -> pd.DataFrame:
    """`gradient_shares` with all parts together: one row per term, in the method's order, with the same columns but "part"."""
    groups = shares.assign(norm=shares["norm"] ** 2).groupby("term", sort=False)
    table = groups.agg({"value": "first", "norm": "sum", "reached": "sum", "weights": "sum", "inert": "first"}).reset_index()
    table["norm"] = table["norm"] ** 0.5
    table.insert(3, "share", table["norm"] / (table["norm"].sum() or float("nan")))
    return table


def plot_gradient_shares(shares: pd.DataFrame, ax: Axes, *, labels: bool = True) -> Axes:
    """Heat map (%): rows are terms, columns the loss itself and the parts of the network. Every column adds up to 100.

    First column: share of the value of the loss. Others: `gradient_shares`. Hatched: a part that is frozen, or that no term
    reaches. An inert term is named in italics; its gradient is 0 everywhere, whatever its value. labels: name the terms.
    """
    terms = list(dict.fromkeys(shares["term"]))
    wide = shares.pivot(index="term", columns="part", values="share").loc[terms, list(PARTS)]
    weights, present = shares.groupby("part")["weights"].first(), _shown_parts(shares)
    values = shares.groupby("term")["value"].first().loc[terms].abs()
    table = pd.concat([values / (values.sum() or float("nan")), wide[present]], axis=1).to_numpy() * 100
    for column, part in enumerate(["", *present]):
        if np.isnan(table[:, column]).all():
            look: dict[str, Any] = {"facecolor": "#eeeeee", "hatch": "////", "edgecolor": "#999999", "linewidth": 0}
            ax.axvspan(column, column + 1, **look)
            text = "frozen" if part and not weights[part] else "no gradient"
            box = {"facecolor": "#eeeeee", "edgecolor": "none", "pad": 1.5}
            ax.text(column + 0.5, len(terms) / 2, text, rotation=90, ha="center", va="center", fontsize=8, bbox=box)
    sns.heatmap(
        table, vmin=0, vmax=100, cmap=SHARES, annot=_percents(table), fmt="", annot_kws={"size": 8}, linewidths=0.5, ax=ax,
        cbar=False, xticklabels=["value of\nthe loss", *(part.replace(" ", "\n") for part in present)], yticklabels=terms,
    )  # fmt: skip
    ax.axvline(1, color="white", linewidth=6)
    ax.tick_params(axis="both", length=0)
    ax.tick_params(axis="y", rotation=0, labelleft=labels)
    ax.tick_params(axis="x", rotation=0)
    inert = set(shares.loc[shares["inert"], "term"])
    for tick, term in zip(ax.get_yticklabels(), terms, strict=True):
        if term in inert:
            tick.set(style="italic", color="#b2182b")
    ax.set(xlabel="", ylabel="")
    return ax


def _shown_parts(shares: pd.DataFrame) -> list[str]:
    """All parts, and what a method keeps beside the network only where some of it learns."""
    there = set(shares.loc[shares["weights"] > 0, "part"])
    return [part for part in PARTS if part != "aux" or part in there]


def _percents(table: np.ndarray) -> np.ndarray:
    """Texts for cells: "<1" where there is something that rounds to nothing, so that a 0 is a 0."""
    return np.array([["" if np.isnan(v) else "<1" if 0 < v < 0.5 else f"{v:.0f}" for v in row] for row in table])


def figure_gradient_shares(found: Mapping[str, pd.DataFrame]) -> Figure:
    """`plot_gradient_shares` side by side. found: heading -> `gradient_shares`."""
    columns = {name: 1 + len(_shown_parts(table)) for name, table in found.items()}
    terms = max(table["term"].nunique() for table in found.values())
    fig = figure(1.2 + sum(0.72 * n + 0.9 for n in columns.values()), 1.4 + 0.3 * terms)
    axes = fig.subplots(1, len(found), squeeze=False, width_ratios=list(columns.values()))[0]
    for ax, (name, table) in zip(axes, found.items(), strict=True):
        plot_gradient_shares(table, ax)
        ax.set_title(name)
    fig.colorbar(axes[0].collections[0], ax=list(axes), label="share of the column (%)", shrink=0.9, pad=0.02)
    if any(table["inert"].any() for table in found.values()):
        fig.supxlabel("red italics: inert, as its method says: in the value of the loss, in no gradient", fontsize=8)
    return fig
