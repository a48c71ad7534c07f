"""The contact sheet: every picture of every notebook, and notebooks that fail."""

import re

import nbformat
import pytest

from cisskit import gallery
from cisskit.errors import KitError
from cisskit.train import begin, evaluate, fit

TINY = {"data_options": {"train": 12, "heldout": 4, "test": 6}, "overrides": {"epochs": 1, "batch_size": 4}, "device": "cpu"}
DRAW = """%matplotlib inline
import matplotlib.pyplot as plt
for n in range({n}):
    plt.figure(figsize=(1, 1)); plt.plot([n]); plt.show()"""


def write(path, *cells):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for kind, text in cells:
        cell = nbformat.v4.new_markdown_cell(text) if kind == "text" else nbformat.v4.new_code_cell(text)
        cell.metadata["tags"] = ["parameters"] if kind == "parameters" else []
        book.cells.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


@pytest.fixture
def runs(tmp_path):
    for step in (0, 1, 2):
        ctx = begin("toy-5-2", "ft", step, runs=tmp_path / "runs", **TINY)
        fit(ctx, bar=False)
        evaluate(ctx)
    return tmp_path / "runs"


def test_every_picture_is_on_the_sheet(runs, tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks"
    monkeypatch.setattr(gallery, "NOTEBOOKS", notebooks)
    write(notebooks / "01_two.ipynb", ("text", "# Title\n\ntext\n\n## Two <things>"), ("code", DRAW.format(n=2)))
    write(
        notebooks / "views" / "list.ipynb", ("parameters", "runs: list = []"), ("text", "# Runs"),
        ("code", "assert len(runs) == 3 and runs[2].endswith('ft/seed0/step2'), runs"), ("code", DRAW.format(n=1)),
    )  # fmt: skip
    write(
        notebooks / "views" / "folder.ipynb", ("parameters", 'runs: str = "../runs"'),
        ("code", "import os\nassert os.path.isdir(runs + '/toy-5-2-overlap'), runs\nraise KeyError('no such thing')"),
    )  # fmt: skip
    write(notebooks / "methods" / "ft.ipynb", ("code", "raise SystemError('method notebooks are not run again')"))
    write(runs / "toy-5-2-overlap/ft/seed0/step2/notebook.ipynb", ("text", "# FT"))
    said = []
    page = gallery.build(runs, tmp_path / "gallery", said.append)
    text = page.read_text(encoding="utf-8")
    assert "<h1>3 pictures</h1>" in text and len(list(page.parent.glob("*.png"))) == 3
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == ["01_two: Two &lt;things&gt;"] * 2 + ["views/list: Runs"]
    assert text.count("<b>failed</b>") == 1 and "views/folder: " in text and "KeyError" in text and "no such thing" in text


def test_there_must_be_runs(tmp_path):
    with pytest.raises(KitError, match=r"no finished run under .*cisskit demo"):
        gallery.build(tmp_path, tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()
