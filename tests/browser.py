"""Notebooks in a real browser: a JupyterLab of its own, and what a person does there. Needs playwright and a Chromium.

The fixtures are `lab` (one server per test process) and `page` (a fresh browser); conftest.py makes them known. A test module
marks itself with `together`, so that pytest-xdist keeps one server:

    pytestmark = browser.together

    def test_it(lab, page):
        browser.open_notebook(page, lab, "00_start_here.ipynb", methods=["ft"])
        browser.run_all(page)
        assert browser.errors_in(page) == []
"""

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120
"""The longest wait for anything; a healthy machine needs a tenth of it."""

IDLE = "#jp-main-statusbar :text-matches('\\\\| Idle')"
"""In the status bar. The notebook's own indicator says idle before there is a kernel, and what is run then is lost."""
STDERR = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'
"""JupyterLab shows errors of cells like this too."""
FAILED = ("Traceback (most recent call last)", "KitError: ")
LIVE = ".widget-output img"
"""The picture in an Output widget."""

together = pytest.mark.xdist_group("browser")

SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell is in the document, seen or not
}
"""Of JupyterLab: no pop-ups, no cells that exist only while they are looked at."""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab. folder: what it serves."""

    url: str
    token: str
    folder: Path

    def ask(self, what: str, how: str = "GET") -> Any:
        """A request to the server's REST interface, ``"sessions"``; the JSON it answers."""
        request = urllib.request.Request(f"{self.url}/api/{what}", headers={"Authorization": f"token {self.token}"}, method=how)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.loads(answer.read() or "null")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a copy of the notebooks, reachable from this machine only, with a token, and with no settings of the user."""
    find_chromium()
    root = tmp_path_factory.mktemp("lab")
    folder = root / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, text in SETTINGS.items():
        file = root / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    own = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "JUPYTER_PATH", "JUPYTER_TOKEN")}
    env |= {name: str(root / part) for name, part in own.items()} | {"JUPYTER_PREFER_ENV_PATH": "1"}
    port, token = _free_port(), secrets.token_hex(16)
    found = Lab(f"http://127.0.0.1:{port}", token, folder)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly",
        *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    log = root / "lab.log"
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=root) as server:
        try:
            _wait_until_up(found, server, log)
            yield found
        finally:
            server.terminate()  # its kernels go with it
            server.wait(SECONDS)


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser of its own. Playwright's loop ends with the test: papermill's tests could not run beside it."""
    executable = find_chromium()
    from playwright.sync_api import sync_playwright

    quiet = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", *quiet])
        found = browser.new_page(viewport={"width": 1500, "height": 1100})
        found.set_default_timeout(1000 * SECONDS)
        yield found
        browser.close()


def find_chromium() -> str:
    """The browser's path; skips the test where there is no browser or no playwright."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright: pip install -e '.[test]'")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"needs a Chromium; looked for {', '.join(CHROMIUM)}")
    return found


def open_notebook(page: Any, lab: Lab, name: str, **parameters: Any) -> None:
    """Open a notebook of the served folder, with these parameters (as papermill sets them), and wait for its kernel."""
    if parameters:
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook

        notebook = parameterize_notebook(load_notebook_node(str(NOTEBOOKS / name)), parameters)
        nbformat.write(notebook, lab.folder / name)
    for session in lab.ask("sessions"):  # no kernel remembers what an earlier test did
        lab.ask(f"sessions/{session['id']}", "DELETE")
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_selector(IDLE)


def run_all(page: Any) -> None:
    """Menu Run, Run All Cells; returns when every code cell has run, or one has failed (see `errors_in`)."""
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    _until(
        page,
        "the end of Run All Cells",
        """([outputs, marks]) => {
            const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(p => p.textContent);
            const failed = [...document.querySelectorAll(outputs)].some(o => marks.some(mark => o.textContent.includes(mark)));
            return failed || prompts.every(text => /[0-9]/.test(text));
        }""",
        [STDERR, list(FAILED)],
    )
    page.wait_for_selector(IDLE)


def errors_in(page: Any) -> list[str]:
    """Every error on the page: of cells, and of what an Output widget caught. Of a `KitError` only the message is there."""
    return [text for text in page.locator(STDERR).all_text_contents() if any(mark in text for mark in FAILED)]


def control(page: Any, label: str, inside: str) -> Any:
    """The part ``inside`` ("select", "input", ".noUi-handle") of the ipywidgets control with this label."""
    return page.locator(f'.jupyter-widgets:has(> .widget-label:text-is("{label}")) {inside}')


def picture(page: Any) -> str:
    """The ``src`` of the picture in the (first) Output widget that holds one."""
    return str(page.locator(LIVE).first.get_attribute("src"))


def redrawn(page: Any, before: str = "") -> str:
    """Wait until the `picture` is another one than ``before``; returns it."""
    _until(
        page,
        "another picture",
        """([live, before]) => {
            const image = document.querySelector(live);
            return image !== null && image.naturalWidth > 0 && image.src !== before;
        }""",
        [LIVE, before],
    )
    return picture(page)


def _until(page: Any, what: str, script: str, arg: list[str]) -> None:
    """Wait until the page's ``script`` is true; if that never comes, say how far the notebook was."""
    from playwright.sync_api import TimeoutError as Late

    try:
        page.wait_for_function(script, arg=arg)
    except Late:
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
        pytest.fail(f"waited {SECONDS} s for {what}. Cells: {' '.join(prompts)}. Errors: {errors_in(page)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(lab: Lab, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            lab.ask("status")
            return
        except (URLError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
