"""The explorers in a real browser: controls move, pictures follow, nothing raises."""

import importlib.util
import shutil

import browser
import nbformat
import pytest

pytestmark = browser.together
SMALL = {"data_options": {"train": 64, "test": 12, "heldout": 1}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of two steps of ft and mbs."""
    from test_dashboard import train

    from cisskit.runs import find_runs

    root = tmp_path_factory.mktemp("runs")
    train(root, ["ft", "mbs"])
    return [str(run.folder) for run in find_runs(root)]


def test_scenarios(lab, page):
    browser.open_notebook(page, lab, "01_scenarios.ipynb", **SMALL)
    browser.run_all(page)
    assert browser.errors_in(page) == []
    assert page.locator(".jp-OutputArea img").count() == 8 and page.locator(browser.LIVE).count() == 0
    browser.control(page, "setting", "select").select_option("disjoint")
    disjoint = browser.redrawn(page)
    browser.control(page, "step", ".noUi-handle").press("ArrowRight")
    later = browser.redrawn(page, disjoint)
    assert browser.control(page, "step", ".widget-readout").inner_text() == "2"
    browser.control(page, "task", "select").select_option("5-1")
    longer = browser.redrawn(page, later)
    own = browser.control(page, "or", "input")
    own.fill("3-2-1")
    own.press("Enter")
    page.wait_for_selector(".widget-html:has-text('places 6 of the 9 classes')")
    assert browser.picture(page) == longer, "a wrong task leaves the picture"
    own.fill("9,8/7,1")
    own.press("Enter")
    browser.redrawn(page, longer)
    assert browser.errors_in(page) == []


def test_errors_are_seen(lab, page):
    warning = nbformat.v4.new_code_cell("import sys; print('only a warning', file=sys.stderr)")
    bug = nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]})  # the cells after it run all the same
    mistake = nbformat.v4.new_code_cell("from cisskit.errors import KitError; raise KitError('choose another')")
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[warning, bug, mistake], metadata={"kernelspec": kernel})
    nbformat.write(notebook, lab.folder / "errors.ipynb")
    browser.open_notebook(page, lab, "errors.ipynb")
    browser.run_all(page)
    page.wait_for_selector(f"{browser.STDERR}:has-text('KitError: choose another')")
    first, second = browser.errors_in(page)
    assert "ZeroDivisionError" in first and "Traceback" not in second


@pytest.mark.parametrize("lacking", ["playwright", "browser"])
def test_skipped_with_a_reason(lacking, monkeypatch):
    if lacking == "browser":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match={"browser": "needs a Chromium", "playwright": "needs playwright"}[lacking]):
        browser.find_chromium()


def test_dashboard(tmp_path, page):
    from test_dashboard import make

    index = make(tmp_path, ["ft", "mbs"]).resolve().as_uri()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(index)
    said = page.locator("#masks img[title^='MBS after']").first
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    before = said.get_attribute("src")
    page.locator("#step").press("ArrowLeft")
    assert said.get_attribute("src") != before and "step0" in said.get_attribute("src"), "at once: nothing is computed"
    page.locator("#methods-ft").uncheck()
    assert page.locator("#masks img[title^='FT after']").count() == 0 and said.count() == 1
    page.locator("#step").press("ArrowRight")
    assert "background got a target" in page.locator("#pseudo").inner_text()
    assert "→ background" in page.locator("#shift").inner_text()
    state = page.url
    page.goto("about:blank")
    page.goto(state)
    assert page.locator("#methods-ft").is_checked() is False, "a copied address opens the same view"
    assert problems == []


def test_report_sorts_its_table(tmp_path, page):
    from test_dashboard import make

    from cisskit.pipeline import make_report
    from cisskit.runs import find_runs

    make(tmp_path, ["ft", "mbs"])
    path = make_report(tmp_path / "toy-5-2-overlap", find_runs(tmp_path / "toy-5-2-overlap"))
    page.goto(path.resolve().as_uri())
    table = page.locator("table.sortable")
    head = table.locator("th", has_text="all [0-7] %")
    column = [cell.inner_text() for cell in table.locator("th").all()].index(head.inner_text())

    def values():
        return [float(row.locator("td").nth(column).inner_text()) for row in table.locator("tbody tr").all()]

    head.click()
    assert values() == sorted(values(), reverse=True)
    head.click()
    assert values() == sorted(values())
    assert table.locator("td a").first.get_attribute("href").endswith("/")


@pytest.mark.parametrize(
    ("name", "label", "small"),
    [
        ("forgetting", "image", {}),
        ("pseudo_labels", "τ", {"images": 24}),
        ("background_shift", "image", {"images": 12}),
        ("semantic_invariance", "ρ", {"images": 12}),
    ],
)
def test_views(lab, page, trained, name, label, small):
    """A slider of each view redraws its picture, twice."""
    browser.open_notebook(page, lab, f"views/{name}.ipynb", runs=trained, **small)
    browser.run_all(page)
    assert browser.errors_in(page) == []
    slider = browser.control(page, label, ".noUi-handle").last
    slider.press("ArrowRight")
    first = browser.redrawn(page)
    slider.press("ArrowRight")
    browser.redrawn(page, first)
    assert browser.errors_in(page) == []


def test_attribution(lab, page, trained):
    browser.open_notebook(page, lab, "views/attribution.ipynb", runs=trained, images=12, objects=2, explained_by="grad_cam")
    browser.run_all(page)
    assert browser.errors_in(page) == []
    browser.control(page, "segments", "select").select_option(index=1)
    first = browser.redrawn(page)
    browser.control(page, "method", "select").last.select_option(index=1)
    browser.redrawn(page, first)
    assert browser.errors_in(page) == []


def test_four_pixels(lab, page):
    browser.open_notebook(page, lab, "02_losses_on_four_pixels.ipynb")
    browser.run_all(page)
    assert browser.errors_in(page) == []
    page.locator(".jupyter-widgets .noUi-handle").first.press("ArrowRight")
    browser.redrawn(page)
    assert browser.errors_in(page) == []
