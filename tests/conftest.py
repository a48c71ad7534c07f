"""What every test may rely on: one thread, folders of its own, warnings as errors (pyproject.toml)."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import lab, page  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module imports torch or Jupyter; xdist's workers and kernels inherit it."""
    # The cores belong to pytest-xdist: two threads per process were four to six times slower than one.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MPLBACKEND"] = "Agg"
    if hasattr(config, "workerinput"):
        return
    # Nothing is read from the user's home or left there: no kernel named python3, no settings, no cache of an earlier version.
    private = Path(tempfile.mkdtemp(prefix="cisskit-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(private, ignore_errors=True))
    for variable in ("CISSKIT_CACHE", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        os.environ[variable] = str(private / variable.lower())
        (private / variable.lower()).mkdir(mode=0o700)
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Files that cannot be committed (size, terms of use): CISSKIT_SHARED, else ``shared`` beside the checkout. Skips without."""
    given = os.environ.get("CISSKIT_SHARED")
    folder = Path(given) if given else ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder of large files: {folder} is not there (name it with CISSKIT_SHARED)")
    return folder


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command line of data_prep; returns its status and everything it printed."""
    from data_prep.__main__ import main

    def run(*arguments: object) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out + err

    return run
