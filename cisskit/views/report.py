"""What notebooks/report.ipynb shows and the page it becomes; the picture of the README."""

import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from cisskit.errors import KitError
from cisskit.files import written_whole
from cisskit.method import Context
from cisskit.runs import Run, find_runs
from cisskit.views import masks, style
from cisskit.views.style import method_title
from cisskit.views.tables import MISSING, Chain, by_method, results

Restore = Callable[[Run], Context]
"""`cisskit.train.restore`, handed in by the caller: views do not import what trains."""


def open_runs(folders: Sequence[str | Path], default: str | Path) -> list[Run]:
    """Finished runs from their folders; without any, those of the first scenario found under ``default``.

    Raises `KitError` when there is none, and when they differ in scenario, setting or protocol.
    """
    runs = [run for run in map(Run.load, folders) if run.done] if folders else find_runs(default)
    if not runs:
        raise KitError(f"no finished run among {len(folders)} folders or under {default}. Make some first: cisskit demo.")
    tasks = {(run.settings["scenario"], run.settings["setting"], run.protocol.label) for run in runs}
    if folders and len(tasks) > 1:
        raise KitError(
            f"one report shows one scenario, setting and protocol, these runs are of {sorted(tasks)}. Make a report for each."
        )
    first = runs[0].folder.resolve().parents[2]
    return [run for run in runs if run.folder.resolve().parents[2] == first]


def predictions(
    groups: Mapping[str, Sequence[Chain]], restore: Restore, n: int = 3
) -> tuple[list[masks.Picture], list[dict[str, dict[int, masks.Labels]]], Context]:
    """Test images and what every method says of them, after every step of its first seed.

    Returns the pictures, for each of them method -> step -> (H, W) learned ids, and the context of one run (scenario,
    palette). Raises `KitError` when the images or the weights are not where the runs say.
    """
    furthest = max((chains[0].last for chains in groups.values()), key=lambda run: run.step)
    shown = restore(furthest)
    pictures = masks.test_pictures(shown.data, shown.step, n)
    found: list[dict[str, dict[int, masks.Labels]]] = [{method: {} for method in groups} for _ in pictures]
    for method, chains in groups.items():
        for run in style.spread(chains[0].runs):
            ctx = restore(run)
            for by_step, labels in zip(found, masks.predict(ctx, pictures, ctx.model), strict=True):
                by_step[method][run.step] = labels
    return pictures, found, shown


def strips(groups: Mapping[str, Sequence[Chain]], restore: Restore, n: int = 3) -> list[Figure]:
    """One figure per test image: truth and masks of all methods after every step, and the errors at the end."""
    pictures, found, ctx = predictions(groups, restore, n)
    return [masks.figure_strip(p, f, ctx.scenario, ctx.data.palette) for p, f in zip(pictures, found, strict=True)]


def readme_picture(runs: Sequence[Run], restore: Restore, path: str | Path, *, image: int = 0) -> Path:
    """Draw ``path``: one test scene, rows truth and methods, columns steps, errors at the end.

    image: which of the pictures that `masks.test_pictures` puts first. Raises `KitError` as `save_small` does.
    """
    pictures, found, ctx = predictions(by_method(runs), restore, image + 1)
    palette = ctx.data.palette
    with mpl.rc_context():
        style.use()
        fig = masks.figure_strip(pictures[image], found[image], ctx.scenario, palette, cell=1.1, title=False)
    return save_small(fig, path, exact=palette[: len(ctx.scenario.classes)].tolist())


def save_small(fig: Figure, path: str | Path, *, exact: Sequence[Sequence[int]] = (), most: int = 58) -> Path:
    """Write a figure as a PNG with a palette. exact: colours that must not change; those of the kinds of error never do.

    Raises `KitError` if the file exceeds ``most`` kB.
    """
    raw, small, path = io.BytesIO(), io.BytesIO(), Path(path)
    with mpl.rc_context():
        style.use()
        fig.savefig(raw, format="png", dpi=120)
    keep = [*exact, (0, 0, 0), (255, 255, 255), *(style.rgb(colour) for colour, _ in style.ERRORS.values())]
    _few_colours(Image.open(raw).convert("RGB"), keep).save(small, format="PNG", optimize=True)
    if small.tell() > most * 1024:
        raise KitError(f"{path.name} has {small.tell() / 1024:.0f} kB, more than {most}; show fewer methods or another image.")
    with written_whole(path) as beside:
        beside.write_bytes(small.getvalue())
    return path


def _few_colours(picture: Image.Image, exact: Sequence[Sequence[int]], n: int = 96) -> Image.Image:
    """The picture in ``n`` colours. Those of ``exact`` are among them unchanged: a legend must not lie."""
    others = picture.quantize(n - len(exact), dither=Image.Dither.NONE).getpalette() or []
    table = np.array([*(value for colour in exact for value in colour), *others], dtype=np.int64).reshape(-1, 3)[:n]
    pixels = np.asarray(picture)
    found, at = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    nearest = ((found[:, None].astype(np.int64) - table) ** 2).sum(axis=2).argmin(axis=1)  # Pillow's own search rounds
    small = Image.fromarray(nearest[at].reshape(pixels.shape[:2]).astype(np.uint8)).convert("P")
    small.putpalette(table.astype(np.uint8).tobytes())
    return small


def results_html(runs: Sequence[Run], page: Path) -> str:
    """`tables.results` for a page at ``page``: sortable, each seed and number linked to its runs, and as CSV and LaTeX to save.

    A seed leads to the folder of its last step; a number that is a mean over seeds to the folder that holds them.
    """
    table = results(list(runs))
    chains = {method_title(m): {chain.seed: chain.last.folder for chain in found} for m, found in by_method(runs).items()}

    def link(folder: Path, text: str) -> str:
        away = os.path.relpath(folder.resolve(), page.resolve().parent)
        return f'<a href="{quote(Path(away).as_posix())}/">{html.escape(text)}</a>'

    rows = []
    for _, row in table.iterrows():
        folders = {seed: chains[row["method"]][seed] for seed in map(int, row["seeds"].split(", "))}
        runs_of = next(iter(folders.values())) if len(folders) == 1 else next(iter(folders.values())).parents[1]
        cells = [html.escape(row["method"]), ", ".join(link(folder, str(seed)) for seed, folder in folders.items())]
        cells += [link(runs_of, str(row[name])) for name in table.columns[2:]]
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    saves = {"results.csv": table.to_csv(index=False), "results.tex": latex(table)}
    downloads = " ".join(
        f'<a download="{name}" href="data:text/plain;charset=utf-8,{quote(text)}">{name}</a>' for name, text in saves.items()
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>Save as {downloads}.</p>'


def latex(table: pd.DataFrame) -> str:
    """A LaTeX table (needs booktabs) of a table of texts."""
    text = table.to_latex(index=False, escape=True, column_format="l" + "r" * (len(table.columns) - 1))
    for letter, command in {"→": r"$\to$", "±": r"$\pm$", MISSING: "--", "|": r"$\mid$"}.items():
        text = text.replace(letter, command)
    return text


def page(body: str, title: str) -> str:
    """A complete HTML page around the exported cells of a notebook: own style and script, nothing fetched from anywhere."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SORT}</script>
</body>
</html>
"""


SORT = """
for (const head of document.querySelectorAll("table.sortable th")) {
  head.title = "click to sort";
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex, down = head.dataset.order !== "down";
    for (const other of head.parentNode.cells) delete other.dataset.order;
    head.dataset.order = down ? "down" : "up";
    const key = (row) => row.cells[column].textContent, number = (text) => Number.parseFloat(text);
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || key(a).localeCompare(key(b));
      return down ? y - x : x - y;
    });
    body.append(...rows);
  });
}
"""

STYLE = """
body { margin: 0; background: #f4f4f1; color: #222; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.5rem 2.5rem 4rem; background: #fff; }
h1 { font-size: 1.9rem; line-height: 1.2; }
h2 { margin-top: 2.6rem; padding-top: .8rem; border-top: 1px solid #ddd; font-size: 1.35rem; }
img { display: block; max-width: 100%; margin: .6rem 0; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border: 0; border-bottom: 1px solid #ddd; text-align: right; }
th { font-weight: 600; font-size: .8rem; vertical-align: bottom; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
tbody tr:hover { background: #f2f6fa; }
td a { color: inherit; text-decoration-color: #bbb; }
table.sortable th { cursor: pointer; }
th[data-order=down]::after { content: " ▾"; }
th[data-order=up]::after { content: " ▴"; }
pre { overflow-x: auto; white-space: pre-wrap; font-size: .88rem; }
code { background: #f2f2ef; padding: 0 .2em; }
.anchor-link { display: none; }
.output_subarea, .jp-OutputArea-output { overflow-x: auto; }
"""
