"""The data card: what a data set holds, as numbers and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cisskit.data import Source, open_source
from cisskit.data.card import card
from cisskit.errors import first_ten
from cisskit.files import write_json, write_text, written_whole
from cisskit.scenario import BACKGROUND
from cisskit.views.style import class_patches, figure, grid, legend_below, use

FEW = 40
"""Up to so many classes each has its name on an axis; of more, every tenth."""
Card = Mapping[str, Any]


def describe(name: str, root: str | Path | None = None, out: str | Path = "", options: Mapping[str, Any] | None = None) -> str:
    """Open a data set and say what it holds; with ``out`` also write its card there.

    name, root, options: as in `open_source`. Returns the text to print. Raises `KitError` as the source does.
    """
    source = open_source(name, root, **(options or {}))
    numbers = card(source)
    text = summary(numbers)
    if out:
        files = write_card(source, out, numbers)
        text += f"\n\nwritten: {', '.join(file.name for file in files)} in {Path(out)}"
    return text


def write_card(source: Source, folder: str | Path, numbers: Card | None = None) -> list[Path]:
    """Write card.json, classes.csv and the pictures into a folder; returns the files. numbers: `card`, if it is there."""
    folder, numbers = Path(folder), numbers or card(source)
    write_json(folder / "card.json", numbers)
    write_text(folder / "classes.csv", class_table(numbers).to_csv(index=False, float_format="%.6g"))
    with mpl.rc_context():
        use()
        figures = {
            "samples": figure_samples(source, numbers),
            "classes": figure_classes(numbers, source.palette),
            "together": figure_together(numbers),
            "sizes": figure_sizes(numbers),
        }
        for name, made in figures.items():
            with written_whole(folder / f"{name}.png") as beside:
                made.savefig(beside, format="png", dpi=110)
    return [folder / "card.json", folder / "classes.csv", *(folder / f"{name}.png" for name in figures)]


def class_table(numbers: Card) -> pd.DataFrame:
    """One row per class: id, name, and of each split the images that show it and its share of all pixels that are not void."""
    table = pd.DataFrame({"id": range(len(numbers["classes"])), "class": numbers["classes"]})
    for split, of in numbers["splits"].items():
        table[f"{split}_images"] = of["images_per_class"]
        table[f"{split}_share"] = np.array(of["pixels_per_class"]) / max(1, sum(of["pixels_per_class"]))
    return table if numbers["classes"][0] else table[1:]


def summary(numbers: Card) -> str:
    """The card as text for a terminal."""
    options = {key: value for key, value in numbers["source"].items() if value not in ("", None)}
    lines = [", ".join([numbers["dataset"], *(f"{key} {value}" for key, value in options.items())])]
    for split, of in numbers["splits"].items():
        width, height, often = of["sizes"][0]
        sizes = f"all {width} x {height}" if len(of["sizes"]) == 1 else f"{len(of['sizes'])} sizes, {often} of {width} x {height}"
        lines.append(f"{split}: {of['images']} images, {sizes}, {of['void_share']:.2%} void")
        empty = [n for n, images in zip(numbers["classes"][1:], of["images_per_class"][1:], strict=True) if not images]
        if empty:
            lines.append(f"  no image shows {first_ten(empty)}")
    table = class_table(numbers)
    for split in numbers["splits"]:
        table[f"{split}_share"] = table[f"{split}_share"].map("{:.2%}".format)
    return "\n".join(lines) + "\n\n" + table.to_string(index=False)


# --- pictures ---


def examples(presence: NDArray[np.bool_], n: int = 12) -> list[int]:
    """n images that show as many classes as possible: always the one that adds most; presence (n, C) without background."""
    chosen: list[int] = []
    missing = np.ones(presence.shape[1], dtype=bool)
    for _ in range(min(n, len(presence))):
        gain = (presence & missing).sum(axis=1) + 1e-3 * presence.sum(axis=1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        missing &= ~presence[chosen[-1]]
        if not missing.any():
            missing[:] = True
    return chosen


def figure_samples(source: Source, numbers: Card) -> Figure:
    """Twelve training images under their labels: classes in their colours, background as it is, void pale."""
    at = examples(source.pixels("train")[:, 1 : len(numbers["classes"])] > 0)
    samples = [source.pair("train", i) for i in at]
    shown = np.sum([np.bincount(label.flatten(), minlength=256) for _, label in samples], axis=0)
    handles = _legend(shown, numbers["classes"], source.palette)
    aspect = float(np.clip(np.mean([label.shape[0] / label.shape[1] for _, label in samples]), 0.5, 1.5))
    fig, axes = grid(-(-len(at) // 4), 4, cell=2.2, aspect=aspect, margin=0.8 + 0.2 * -(-len(handles) // 4))
    for ax, i, (image, label) in zip(axes.flat, at, samples, strict=False):
        pixels, ids = image.permute(1, 2, 0).numpy().astype(np.float32), label.numpy()
        covered = (ids != BACKGROUND)[..., None]
        ax.imshow(np.where(covered, 0.45 * pixels + 0.55 * source.palette[ids], pixels).astype(np.uint8), interpolation="nearest")
        ax.set_title(_short(source.names("train")[i]), fontsize=7)
    fig.suptitle(f"{numbers['dataset']}: training images and their labels", fontsize=10)
    legend_below(fig, handles, columns=4)
    return fig


def _legend(shown: NDArray[np.integer[Any]], names: Sequence[str], palette: NDArray[np.uint8]) -> list[Patch]:
    """Entries for the classes of a contact sheet, the largest ones. shown: (256,) pixels of each original id."""
    classes = [int(c) for c in np.argsort(-shown, kind="stable") if shown[c] and c != BACKGROUND]
    handles = class_patches(classes[:FEW], [*names, *[""] * 256], palette)
    if shown[BACKGROUND] and names[0]:
        handles.insert(0, Patch(facecolor="none", edgecolor="#555555", label=f"no colour: {names[0]}"))
    if len(classes) > FEW:
        handles.append(Patch(facecolor="none", label=f"and {len(classes) - FEW} smaller ones"))
    return handles


def figure_classes(numbers: Card, palette: NDArray[np.uint8]) -> Figure:
    """Images that show each class, and its share of the pixels, for each split."""
    first = 0 if numbers["classes"][0] else 1
    names = numbers["classes"][first:]
    splits = numbers["splits"]
    fig = figure(9, 1.6 + max(0.17, 0.3 - 0.002 * len(names)) * len(names))
    axes = fig.subplots(1, 2, sharey=True)
    at = np.arange(len(names))
    colours = [to_hex(palette[c + first] / 255) for c in at]
    thick = 0.84 / len(splits)
    for k, of in enumerate(splits.values()):
        where = at + (k - (len(splits) - 1) / 2) * thick
        images, pixels = np.array(of["images_per_class"]), np.array(of["pixels_per_class"])
        for ax, value in zip(axes, (images, 100 * pixels / pixels.sum()), strict=True):
            ax.barh(where, value[first:], thick, color=colours, edgecolor="#444444", linewidth=0.4, hatch=_HATCHES[k])
    axes[0].set_yticks(at, names, fontsize=8 if len(names) <= FEW else 6)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for ax, title in zip(axes, ("images that show the class", "share of the pixels, without void (%)"), strict=True):
        ax.set_xlabel(title)
        ax.set_xscale("symlog", linthresh=1 if ax is axes[0] else 0.1)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(axis="x", color="#dddddd", linewidth=0.5)
        ax.set_axisbelow(True)
    fig.suptitle(f"{numbers['dataset']}: classes (logarithmic axes)", fontsize=10)
    handles = [
        Patch(facecolor="white", edgecolor="#444444", hatch=_HATCHES[k], label=f"{split} ({of['images']} images)")
        for k, (split, of) in enumerate(splits.items())
    ]
    legend_below(fig, handles)
    return fig


_HATCHES = ("", "////", "....")


def figure_together(numbers: Card) -> Figure:
    """Which classes share training images."""
    names, counts = numbers["classes"][1:], np.array(numbers["splits"]["train"]["together"], dtype=np.float64)
    share = 100 * counts / np.maximum(1, counts.diagonal()[:, None])
    n = len(names)
    side = min(10.0, 2.2 + 0.32 * n)
    fig = figure(side + 2.0, side + 1.0)
    ax = fig.subplots()
    mesh = ax.imshow(share, vmin=0, vmax=100, cmap="viridis", interpolation="nearest")
    at = np.arange(n) if n <= FEW else np.arange(0, n, 10)
    ax.set_xticks(at, [names[k] for k in at], rotation=90, fontsize=8)
    ax.set_yticks(at, [names[k] for k in at], fontsize=8)
    if n <= 12:
        for row, column in np.ndindex(n, n):
            value = share[row, column]
            colour = "white" if value < 60 else "black"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set_ylabel("of the images that show this class" + ("" if n <= FEW else " (every tenth is named)"))
    ax.set_xlabel("the share that also shows this one")
    fig.colorbar(mesh, ax=ax, label="share of the images (%)", shrink=0.8)
    fig.suptitle(f"{numbers['dataset']}: classes that share training images", fontsize=10)
    return fig


def figure_sizes(numbers: Card) -> Figure:
    """Width and height of the images; the area of a dot grows with their number."""
    splits = numbers["splits"]
    fig = figure(3.6 * len(splits) + 0.4, 3.9)
    axes = fig.subplots(1, len(splits), squeeze=False, sharex=True, sharey=True)[0]
    sizes = [np.array(of["sizes"]) for of in splits.values()]
    largest = max(int(s[:, :2].max()) for s in sizes)
    for ax, (split, of), size in zip(axes, splits.items(), sizes, strict=True):
        area = 12 + 300 * size[:, 2] / size[:, 2].max()
        ax.scatter(size[:, 0], size[:, 1], area, color="#4477aa", alpha=0.5, linewidth=0.5, edgecolor="white")
        often = "\n".join(f"{w} x {h}: {count}" for w, h, count in of["sizes"][:3])
        more = f"\nand {len(size) - 3} more sizes" if len(size) > 3 else ""
        ax.text(0.03, 0.03, often + more, transform=ax.transAxes, fontsize=8, va="bottom")
        ax.set(xlim=(0, 1.1 * largest), ylim=(0, 1.1 * largest), aspect="equal", xlabel="width in pixels")
        ax.set_title(f"{split}, {of['images']} images")
    axes[0].set_ylabel("height in pixels")
    fig.suptitle(f"{numbers['dataset']}: sizes of the images", fontsize=10)
    return fig


def _short(name: str, longest: int = 30) -> str:
    return name if len(name) <= longest else f"...{name[3 - longest :]}"
