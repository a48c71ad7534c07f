"""Notebooks: committed clean, alike in structure, and executed from top to bottom by papermill on tiny scenes."""

import re
from pathlib import Path

import layouts
import nbformat
import papermill
import pytest

from cisskit.errors import KitError
from cisskit.pipeline import NOTEBOOKS, execute, make_report, method_notebook
from cisskit.runs import find_runs
from cisskit.train import begin, evaluate, fit

TINY = {"data_options": {"train": 64, "test": 16, "heldout": 16}, "overrides": {"epochs": 1}}
FILES = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
METHODS = [path for path in FILES if path.parent.name == "methods"]
RUNNER = {"scenario", "method", "seed", "overrides", "setting", "runs", "device", "data_root", "data_options", "arch", "weights",
          "eval_size", "step"}  # fmt: skip


def short(path: Path) -> str:
    return str(path.relative_to(NOTEBOOKS))


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel draw into the notebook, as it does for a person."""
    monkeypatch.delenv("MPLBACKEND", raising=False)


def outputs(path: Path) -> str:
    """All text that the cells of an executed notebook printed or returned."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        for out in cell.get("outputs", []):
            parts.append(out.get("text", "") or str(out.get("data", {}).get("text/plain", "")))
    return "\n".join(parts)


def pictures(path: Path) -> int:
    cells = nbformat.read(path, as_version=4).cells
    return sum("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))


# --- as committed ---


def test_the_notebooks_are_there():
    assert {short(path) for path in FILES} >= {
        "00_start_here.ipynb",
        "01_scenarios.ipynb",
        "report.ipynb",
        "methods/baseline.ipynb",
        *(f"methods/{name}.ipynb" for name in ("dkd", "idec", "lag", "mbs", "amis")),
    }


@pytest.mark.parametrize("path", FILES, ids=short)
def test_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"papermill", "widgets", "language_info"} & set(notebook.metadata)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata), cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@pytest.mark.parametrize("path", FILES, ids=short)
def test_opens_with_a_claim_and_a_picture(path):
    first, second = nbformat.read(path, as_version=4).cells[:2]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert second.cell_type == "code" and second.source.startswith("%matplotlib inline")
    if path.name != "report.ipynb":
        assert "$" in first.source, "the equation"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_parameters_can_be_set_from_outside(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in tags(cell)]
    assert len(cells) == 1
    for line in cells[0].source.splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool|list|dict) = [^=]+  # [^=]+", line), line
    known = papermill.inspect_notebook(str(path))
    assert len(known) == len(cells[0].source.splitlines())
    assert all(entry["inferred_type_name"] != "None" and entry["help"] for entry in known.values())
    if path in METHODS:
        assert set(known) >= RUNNER


@pytest.mark.parametrize("path", FILES, ids=short)
def test_cells_are_short(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" not in tags(cell):
            assert len(cell.source.splitlines()) <= 18, f"{cell.id}: move it into the library"


@pytest.mark.parametrize("path", METHODS, ids=short)
def test_method_notebooks_share_a_skeleton(path):
    def skeleton(file: Path) -> list[tuple[str, str]]:
        cells = nbformat.read(file, as_version=4).cells
        sections = [cell for cell in cells if "section" in tags(cell)]
        return [(c.id, c.source.splitlines()[0] if c.source.startswith("## ") else "#") for c in sections]

    ours = skeleton(path)
    assert ours == skeleton(NOTEBOOKS / "methods" / "baseline.ipynb")
    assert [title.split(".")[0] for _, title in ours[1:]] == [f"## {n}" for n in range(2, 12)]


# --- executed ---


def trained(root: Path, method: str, steps: int, **more) -> None:
    for step in range(steps):
        ctx = begin("toy-5-2", method, step, runs=root, **{**TINY, **more})
        fit(ctx, bar=False)
        evaluate(ctx)


PICTURES = {
    ("ft", 0): 5, ("mib", 1): 5, ("joint", 1): 5, ("plop", 1): 5, ("ssul-m", 1): 5, ("dkd", 0): 6, ("dkd", 1): 6,
    ("idec", 0): 6, ("idec", 1): 9, ("idec-described", 1): 9, ("lag", 0): 5, ("lag", 1): 10, ("lag-described", 1): 11,
    ("mbs", 0): 7, ("mbs", 1): 10, ("amis", 0): 9, ("amis", 1): 11,
}  # fmt: skip


@pytest.mark.parametrize(("method", "step"), PICTURES, ids=lambda value: str(value))
def test_method_notebook(method, step, tmp_path, inline):
    more = {"overrides": {"epochs": 1, "memory": 6}} if method in ("dkd", "ssul-m") else {}
    trained(tmp_path, method, step, **more)
    out = tmp_path / "notebook.ipynb"
    execute(method_notebook(method), {"method": method, "step": step, "runs": str(tmp_path), **TINY, **more}, out)
    run = next(run for run in find_runs(tmp_path) if run.step == step)
    assert run.done and run.settings["method"] == method
    assert pictures(out) == PICTURES[method, step]
    text = outputs(out)
    assert str(run.folder) in text and "shape" in text and "model.safetensors" in text
    if (method, step) == ("dkd", 1):
        assert "6 images in memory" in text and "the loss on logits sees a difference of 0.0000" in text


def test_start_here(tmp_path, inline, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the notebook trains in a temporary folder
    out = tmp_path / "start.ipynb"
    parameters = {"runs": str(tmp_path / "none"), "methods": ["ft", "mib"], **TINY}
    execute(NOTEBOOKS / "00_start_here.ipynb", parameters, out)
    assert pictures(out) == 7
    assert "6 finished steps in" in outputs(out)
    assert not (tmp_path / "none").exists()


def test_scenarios(tmp_path, inline):
    trained(tmp_path / "runs", "ft", 2)
    run = find_runs(tmp_path / "runs")[1]
    out = tmp_path / "scenarios.ipynb"
    execute(NOTEBOOKS / "01_scenarios.ipynb", {"run": str(run.folder), "data_options": TINY["data_options"]}, out)
    assert pictures(out) == 8
    text = outputs(out)
    assert "step 1: checked square, striped cross (2 classes)" in text
    assert f"{100 * run.metrics['miou']['all']['value']:.1f} [0-7]" in text, "the run's own matrix is scored"
    assert "no published numbers for the scenes" in text and "VBox" in text


def test_scenarios_of_photographs(tmp_path, inline):
    layouts.write("voc", tmp_path / "data")
    out = tmp_path / "scenarios.ipynb"
    parameters = {"dataset": "voc", "scenario": "voc-4-2", "setting": "disjoint", "data_root": str(tmp_path / "data")}
    execute(NOTEBOOKS / "01_scenarios.ipynb", parameters, out)
    assert pictures(out) == 8
    assert "15-1   overlap      6" in outputs(out) and "12, 0, 0, 0, 0, 0" in outputs(out)


def test_wrong_parameters_stop_in_the_first_cell_that_can_know(tmp_path):
    out = tmp_path / "notebook.ipynb"
    with pytest.raises(KitError, match=r"KitError: unknown method 'mlb'. Did you mean 'mib'\?"):
        execute(NOTEBOOKS / "methods" / "baseline.ipynb", {"method": "mlb", "runs": str(tmp_path)}, out)
    assert not out.exists() and (tmp_path / "notebook.partial.ipynb").exists()
    with pytest.raises(KitError, match="unknown parameter of baseline.ipynb 'stepp'"):
        execute(NOTEBOOKS / "methods" / "baseline.ipynb", {"stepp": 1}, out)


def test_report_is_one_self_contained_page(tmp_path, inline):
    trained(tmp_path, "ft", 2)
    trained(tmp_path, "dkd", 1)
    page = make_report(tmp_path, find_runs(tmp_path)).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "<title>cisskit: toy-5-2, overlap</title>" in page
    assert page.count("<script") == 1 and "<link" not in page  # the one that sorts tables
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""", page)
    assert page.count("data:image/png;base64,") >= 9
    assert "old [1-5] %" in page and "future_as" in page
    assert "import " not in re.sub(r"base64,[^\"']+", "", page), "code is hidden"
    assert (tmp_path / "report.ipynb").exists()


def test_report_without_images_says_so(tmp_path, inline):
    trained(tmp_path, "ft", 1)
    (tmp_path / "toy-5-2-overlap/ft/seed0/step0/model.safetensors").write_bytes(b"moved away")
    page = make_report(tmp_path, find_runs(tmp_path)).read_text(encoding="utf-8")
    assert "No masks in this report" in page and "Only one step has been run" in page
