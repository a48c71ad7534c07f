"""The explorers in a real browser: controls move, pictures follow, nothing raises."""

import browser

pytestmark = browser.together
SMALL = {"data_options": {"train": 64, "test": 12, "heldout": 1}}


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


def test_an_error_is_seen(lab, page):
    browser.open_notebook(page, lab, "01_scenarios.ipynb", scenario="toy-4-2")
    browser.run_all(page)
    (text,) = browser.errors_in(page)
    assert "KitError" in text and "places 8 of the 9 classes" in text
