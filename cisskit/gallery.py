"""A contact sheet of every picture the notebooks draw: ``make gallery``.

The notebooks are executed on a folder of runs, their pictures are taken out of the outputs and laid out on one page. What is
here is looked at before a release; nothing of it is committed.
"""

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill

from cisskit.errors import KitError
from cisskit.files import write_text, written_whole
from cisskit.pipeline import NOTEBOOKS, execute
from cisskit.runs import Run, find_runs
from cisskit.train import restore
from cisskit.views import background_shift, forgetting, report, style, training
from cisskit.views.tables import Chain, by_method

Say = Callable[[str], None]


@dataclass(frozen=True)
class Picture:
    """One picture of an executed notebook. heading: the last heading above it."""

    notebook: str
    heading: str
    png: bytes


def build(runs: Path, out: Path, say: Say = print) -> Path:
    """Execute the general notebooks and those of the views on ``runs``, add the notebooks of its finished last steps, and write
    ``out/index.html`` with all their pictures beside it; returns its path.

    Raises `KitError` when there is no finished run. A notebook that fails is named on the page and does not stop the others.
    """
    found = find_runs(runs)
    if not found:
        raise KitError(f"no finished run under {runs}. Make some first: cisskit demo.")
    folder = found[0].folder.resolve().parents[2]
    found = [run for run in found if run.folder.resolve().parents[2] == folder]
    pictures: list[Picture] = []
    failed: list[str] = []
    for notebook in sorted([*NOTEBOOKS.glob("0*.ipynb"), *NOTEBOOKS.glob("views/*.ipynb")]):
        name = notebook.relative_to(NOTEBOOKS).with_suffix("").as_posix()
        say(f"executing {name}")
        executed = out / "notebooks" / f"{name}.ipynb"
        try:
            execute(notebook, _parameters(notebook, found), executed)
        except KitError as error:
            failed.append(f"{name}: {error}")
            say(f"FAILED {name}: {error}")
            continue
        pictures += pictures_of(executed, name)
    for run in found:
        if run.step == len(run.scenario.steps) - 1 and (run.folder / "notebook.ipynb").exists():
            pictures += pictures_of(run.folder / "notebook.ipynb", f"methods/{run.settings['method']} step {run.step}")
    return _write(pictures, failed, out)


def readme(runs: Path, folder: Path = NOTEBOOKS / "images") -> list[Path]:
    """Draw the README's four pictures anew from finished runs of ft, mib, dkd, mbs, joint and both modes of idec on the scenes.

    Raises `KitError` when one of them is missing, and when a file grows too large.
    """
    groups = by_method(find_runs(runs))
    wanted = ("ft", "mib", "dkd", "mbs", "joint", "idec", "idec-described")
    if missing := [method for method in wanted if method not in groups]:
        raise KitError(f"no finished runs of {', '.join(missing)} under {runs}; run them on toy-5-2 first.")

    def chains(*methods: str) -> dict[str, list[Chain]]:
        return {method: groups[method] for method in methods}

    style.use()  # this is a command of its own: matplotlib's defaults may be changed for good
    said = background_shift.listen_all({m: groups[m][0] for m in ("ft", "mbs")}, restore)
    shares = training.shares_of(chains("idec", "idec-described"), restore, ["idec", "idec-described"])
    first = [run for method in ("ft", "mib", "dkd", "joint") for run in groups[method][0].runs]
    alluvial = forgetting.figure_alluvial(chains("ft", "mib", "dkd", "mbs"))
    assert alluvial is not None
    return [
        report.readme_picture(first, restore, folder / "forgetting.png"),
        report.save_small(alluvial, folder / "old_pixels.png"),
        report.save_small(background_shift.figure_comparison(said), folder / "background_shift.png"),
        report.save_small(training.figure_gradient_shares(shares), folder / "inert_terms.png"),
    ]


def pictures_of(notebook: Path, name: str) -> list[Picture]:
    """The PNG outputs of an executed notebook, in order."""
    heading, pictures = "", []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            titles = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            heading = titles[-1] if titles else heading
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                pictures.append(Picture(name, heading, base64.b64decode(output.data["image/png"])))
    return pictures


def _parameters(notebook: Path, found: list[Run]) -> dict[str, Any]:
    """The runs, in the form that the notebook's parameter ``runs`` has; none when it has no such parameter."""
    known = papermill.inspect_notebook(str(notebook)).get("runs")
    if known is None:
        return {}
    if known["default"].strip().startswith("["):
        return {"runs": [str(run.folder.resolve()) for run in found]}
    return {"runs": str(found[0].folder.resolve().parents[3])}


def _write(pictures: list[Picture], failed: list[str], out: Path) -> Path:
    parts = []
    for number, picture in enumerate(pictures, start=1):
        file = f"{number:03d}.png"
        with written_whole(out / file) as beside:
            beside.write_bytes(picture.png)
        words = html.escape(f"{picture.notebook}: {picture.heading}")
        parts.append(f'<figure><a href="{file}"><img src="{file}" alt="{words}"></a><figcaption>{words}</figcaption></figure>')
    faults = "".join(f"<p><b>failed</b> {html.escape(fault)}</p>" for fault in failed)
    page = out / "index.html"
    write_text(page, PAGE.format(n=len(pictures), faults=faults, figures="\n".join(parts)))
    return page


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>cisskit: all pictures</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1rem; }}
main {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; width: 380px; border: 1px solid #ddd; padding: .4rem; }}
img {{ max-width: 100%; }}
</style></head><body><h1>{n} pictures</h1>{faults}<main>
{figures}
</main></body></html>
"""
