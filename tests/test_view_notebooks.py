"""The notebooks of the views and the teaching ones, executed on small runs: every picture is there, nothing fails."""

import os

import nbformat
import pytest

from cisskit.errors import KitError
from cisskit.pipeline import NOTEBOOKS, execute
from cisskit.runs import find_runs
from cisskit.train import begin, evaluate, fit

TINY = {"data_options": {"train": 80, "test": 16, "heldout": 1}, "overrides": {"epochs": 1}, "device": "cpu"}
SMALL = {"background_shift": {"images": 12}, "pseudo_labels": {"images": 24}, "attribution": {"images": 12, "objects": 2}}
VIEWS = sorted(path.stem for path in NOTEBOOKS.glob("views/*.ipynb"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two steps of a method without and of one with pseudo-labels, on both kinds of network."""
    root = tmp_path_factory.mktemp("runs")
    for method in ("ft", "mbs"):
        for step in (0, 1):
            ctx = begin("toy-5-2", method, step, runs=root, **TINY)
            fit(ctx, bar=False)
            evaluate(ctx)
    return [str(run.folder) for run in find_runs(root)]


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)


def shown(path):
    """Pictures, and all text, of an executed notebook."""
    outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
    texts = [out.get("text", "") or str(out.get("data", {}).get("text/plain", "")) for out in outputs]
    return sum("image/png" in out.get("data", {}) for out in outputs), "\n".join(texts)


def test_the_notebooks_are_there():
    assert VIEWS == ["attribution", "background_shift", "forgetting", "pseudo_labels", "semantic_invariance"]
    assert {path.name for path in NOTEBOOKS.glob("0*.ipynb")} == {
        "00_start_here.ipynb", "01_scenarios.ipynb", "02_losses_on_four_pixels.ipynb", "03_your_own_method.ipynb",
    }  # fmt: skip


@pytest.mark.xdist_group("views")
@pytest.mark.parametrize("name", VIEWS)
def test_view_notebook(name, runs, tmp_path, inline):
    out = tmp_path / "notebook.ipynb"
    execute(NOTEBOOKS / "views" / f"{name}.ipynb", {"runs": runs, **SMALL.get(name, {})}, out)
    pictures, text = shown(out)
    assert pictures >= 5, pictures
    assert "with 0 Axes" not in text, text[-2000:]


@pytest.mark.xdist_group("views")
def test_views_of_a_single_step_say_what_is_missing(runs, tmp_path, inline):
    first = [folder for folder in runs if folder.endswith("ft/seed0/step0")]
    with pytest.raises(KitError, match="no method has a finished step 1 with a step before it"):
        execute(NOTEBOOKS / "views" / "attribution.ipynb", {"runs": first}, tmp_path / "attribution.ipynb")
    for name in sorted({*VIEWS} - {"attribution"}):
        execute(NOTEBOOKS / "views" / f"{name}.ipynb", {"runs": first, **SMALL.get(name, {})}, tmp_path / f"{name}.ipynb")
        assert shown(tmp_path / f"{name}.ipynb")[0] >= 1, name


def test_scenarios(tmp_path, inline):
    out = tmp_path / "notebook.ipynb"
    execute(NOTEBOOKS / "01_scenarios.ipynb", {"data_options": TINY["data_options"]}, out)
    assert shown(out)[0] == 8


def test_four_pixels(tmp_path, inline):
    out = tmp_path / "notebook.ipynb"
    execute(NOTEBOOKS / "02_losses_on_four_pixels.ipynb", {"threshold": 0.6}, out)
    pictures, text = shown(out)
    assert pictures == 22 and text.count("by hand and by the library") >= 25


def test_your_own_method(tmp_path, inline, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "notebook.ipynb"
    small = {"data_options": {"train": 200, "test": 16, "heldout": 16}, "overrides": {"step0.epochs": 4, "later.epochs": 1}}
    execute(NOTEBOOKS / "03_your_own_method.ipynb", small, out)
    pictures, text = shown(out)
    assert pictures == 4 and "Anchor minus MiB" in text
    assert not [name for name in os.listdir(tmp_path) if name.startswith("cisskit-own-")], "nothing is left behind"
