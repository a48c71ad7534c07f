"""One look for all pictures: a colour per method, a colour per kind of error, legends and grids."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cisskit.errors import KitError
from cisskit.method import title_of

METHOD_COLOURS = {
    "ft": "#8c8c8c", "lwf": "#ddcc77", "ilt": "#999933", "mib": "#cc6677", "plop": "#88ccee", "ssul": "#44aa99",
    "dkd": "#332288", "idec": "#117733", "lag": "#aa4499", "mbs": "#882255", "amis": "#ee7733", "joint": "#000000",
}  # fmt: skip
"""In the order of legends and tables. The bounds are grey and black, the papers carry Paul Tol's muted colours."""

SPARE = ("#0077bb", "#cc3311", "#ee3377", "#009988")
"""For methods that are not in the table yet."""

ERRORS = {
    "forgotten": ("#d7191c", "old → background"),
    "taken over": ("#7a0177", "old → new class"),
    "missed": ("#fdae61", "new → background"),
    "false alarm": ("#1a1a1a", "background → a class"),
    "mixed up": ("#4393c3", "one class for another"),
}
"""Kind of error -> colour, words; old and new are relative to the step. Drawn on a pale photograph, never on class colours."""

HIDES = {
    "nothing": ("#dddddd", "nothing"),
    "old": ("#009e73", "classes of earlier steps"),
    "future": ("#cc79a7", "classes of later steps"),
    "both": ("#8c510a", "classes of earlier and of later steps"),
}
"""What the background of an image's labels hides -> colour, words."""

MOST_STEPS = 5
"""Steps side by side in one picture; longer chains show their first and last ones and some between."""

T = TypeVar("T")

RIGHT = "#b8d8c0"
"""Colour of what is right, where errors are counted."""


def use() -> None:
    """Set matplotlib's defaults for a notebook: sizes, no frames. Call it once, in its first code cell."""
    mpl.rcParams.update({
        "figure.dpi": 100, "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
        "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    })  # fmt: skip


def method_colour(method: str) -> str:
    """The colour of a method, everywhere; one that has none yet gets a spare one, always the same, and a variant a paler one."""
    own, _, variant = method.partition("-")
    colour = METHOD_COLOURS.get(own, SPARE[zlib.crc32(own.encode()) % len(SPARE)])
    red, green, blue = (0.55 * part / 255 + 0.45 for part in rgb(colour))
    return to_hex((red, green, blue)) if variant else colour


def rgb(colour: str) -> tuple[int, int, int]:
    """ "#d7191c" -> (215, 25, 28)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def method_title(method: str) -> str:
    """Name as the field writes it ("MiB"), or the id itself where the kit does not know it."""
    try:
        return title_of(method)
    except KitError:
        return method


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of `METHOD_COLOURS`; unknown ones before the joint bound, by name."""
    known = list(METHOD_COLOURS)

    def place(method: str) -> tuple[float, str]:
        own = method.partition("-")[0]
        return (known.index(own) if own in known else len(known) - 1.5, method)

    return sorted(set(methods), key=place)


def figure(width: float, height: float) -> Figure:
    """A figure that belongs to nobody but the caller: pyplot does not know it. Inches."""
    return Figure(figsize=(width, height), layout="constrained")


def grid(
    rows: int, columns: int, *, cell: float = 1.4, aspect: float = 1.0, margin: float = 0.6, legend: float = 0.0
) -> tuple[Figure, NDArray[Any]]:
    """A figure with (rows, columns) picture axes without ticks. cell: width in inches; aspect: height over width.

    margin: inches of height for titles and what lies below; legend: inches of width beside the pictures.
    """
    fig = figure(columns * cell + 0.4 + legend, rows * cell * aspect + margin)
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return fig, axes


def row_label(ax: Axes, text: str) -> None:
    """A horizontal label at the left of a row of pictures."""
    ax.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=6)


def class_patches(classes: Iterable[int], names: Sequence[str], palette: NDArray[np.uint8]) -> list[Patch]:
    """Legend entries for classes, by learned id; 255 is "not told (void)"."""
    words = {255: "void"}
    return [
        Patch(facecolor=to_hex(palette[c] / 255), edgecolor="#555555", linewidth=0.5, label=words.get(c) or f"{c} {names[c]}")
        for c in sorted(set(map(int, classes)))
    ]


def error_patches(kinds: Iterable[str] = tuple(ERRORS)) -> list[Patch]:
    """Legend entries for kinds of error."""
    return [Patch(facecolor=ERRORS[kind][0], label=f"{kind}: {ERRORS[kind][1]}") for kind in kinds]


def legend_below(fig: Figure, handles: Sequence[Any], *, columns: int = 0) -> Legend:
    """A legend under the figure, as many columns as fit its width."""
    longest = max((len(str(h.get_label())) for h in handles), default=1)
    fits = max(1, int(fig.get_figwidth() / (0.066 * longest + 0.45)))
    return fig.legend(handles=list(handles), loc="outside lower center", ncols=columns or min(fits, max(1, len(handles))))


def legend_right(fig: Figure, handles: Sequence[Any]) -> Legend:
    """A legend beside the figure, one entry a line."""
    return fig.legend(handles=list(handles), loc="outside right center", ncols=1)


def note(text: str) -> Figure:
    """A figure that says why there is nothing to see."""
    fig = figure(7.4, 0.5)
    fig.subplots().set_axis_off()  # IPython shows no figure without axes
    fig.text(0.01, 0.5, text, va="center", color="#555555")
    return fig


def spread(items: Sequence[T], most: int = MOST_STEPS) -> list[T]:
    """At most this many of them, evenly from first to last."""
    at = np.unique(np.linspace(0, max(len(items) - 1, 0), min(most, len(items))).round().astype(int))
    return [items[int(i)] for i in at]


def following(draw: Callable[[], Sequence[Any]], controls: Iterable[Any]) -> Any:
    """Show what ``draw()`` returns, once, so that a page reads without a kernel; the widget that is returned shows it again
    whenever the value of a control changes."""
    import ipywidgets as widgets
    from IPython.display import display

    out = widgets.Output()

    def redraw(_: Any) -> None:
        with out:
            out.clear_output(wait=True)
            display(*draw())

    display(*draw())
    for control in controls:
        control.observe(redraw, names="value")
    return out
