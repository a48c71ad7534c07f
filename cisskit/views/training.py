"""How a step is trained: the terms of one batch, and the curves of `Run.history`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from torch import Tensor

from cisskit.models import Output
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
