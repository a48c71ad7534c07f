"""Chains of notebooks: order, sharing, failure, resume. A notebook of four cells stands in for the real ones."""

import signal
import subprocess
import sys
import threading
import time

import nbformat
import pytest

from cisskit import pipeline, train
from cisskit.errors import KitError
from cisskit.pipeline import Chain, chains, check_parameters, execute, run_chains
from cisskit.scenario import Scenario

COMMON = {
    "setting": "overlap", "device": "cpu", "data_root": "", "data_options": {"train": 24, "heldout": 4, "test": 6}, "arch": "",
    "weights": "none", "protocol": "clean", "eval_size": "",
}  # fmt: skip
PARAMETERS = """method: str = "ft"
scenario: str = "toy-5-4"
setting: str = "overlap"
step: int = 0
seed: int = 0
runs: str = "runs"
data_root: str = ""
data_options: dict = {}
arch: str = ""
weights: str = "none"
protocol: str = "clean"
eval_size: str = ""
device: str = ""
overrides: dict = {}"""
BODY = """from cisskit.train import begin, evaluate, fit
options = dict(setting=setting, seed=seed, data_options=data_options, weights=weights, overrides=overrides)
ctx = begin(scenario, method, step, runs=runs, **options)
fit(ctx, bar=False)
evaluate(ctx)"""


def write_notebook(path, *cells):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    book.cells[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "NOTEBOOKS", tmp_path / "notebooks")
    write_notebook(tmp_path / "notebooks/methods/baseline.ipynb", PARAMETERS, BODY)
    return tmp_path / "notebooks"


def plan(tmp_path, methods, overrides=None):
    return chains(
        "toy-5-4", methods, [0], {"": {"epochs": 1, "batch_size": 8}, **(overrides or {})}, runs=str(tmp_path / "runs"), **COMMON
    )


def test_all_plans_share_one_look_at_the_data(notebooks, tmp_path, monkeypatch):
    opened, usual = [], train.open_source
    monkeypatch.setattr(train, "open_source", lambda *args, **options: opened.append(args) or usual(*args, **options))
    todo = plan(tmp_path, ["ft", "mib"])
    assert len(opened) == 1 and [chain.steps for chain in todo] == [2, 2]
    todo[0].plan(0)
    assert len(opened) == 2, "later, files may have changed"


def test_chains_run_and_a_second_call_finds_everything_done(notebooks, tmp_path):
    said = []
    assert run_chains(plan(tmp_path, ["ft", "mib"]), jobs=2, say=said.append)
    folder = tmp_path / "runs/toy-5-4-overlap"
    assert sorted(p.parent.name for p in folder.glob("*/seed0/step*/notebook.ipynb")) == ["step0", "step0", "step1", "step1"]
    assert not list(folder.rglob("*.partial.ipynb")) and not list(folder.rglob("*.tmp"))
    assert len(said) == 4 and "[ 4/4]" in said[-1] and all("mIoU all [0-" in line for line in said)
    (notebooks / "methods/baseline.ipynb").unlink()  # nothing may be executed again
    write_notebook(notebooks / "methods/baseline.ipynb", PARAMETERS, "raise RuntimeError")
    said.clear()
    assert run_chains(plan(tmp_path, ["ft", "mib"]), jobs=2, say=said.append)
    assert len(said) == 4 and all("done before" in line for line in said)


def test_a_failing_cell_stops_its_chain_and_no_other(notebooks, tmp_path):
    write_notebook(
        notebooks / "methods/mib.ipynb", PARAMETERS, "x = 1", "if step == 0:\n    raise ZeroDivisionError('on purpose')", BODY
    )
    said = []
    todo = plan(tmp_path, ["mib", "ft"])
    assert not run_chains(todo, jobs=1, say=said.append)
    failed = next(chain for chain in todo if chain.method == "mib")
    assert "ZeroDivisionError: on purpose" in failed.error and failed.next == 0
    partial = tmp_path / "runs/toy-5-4-overlap/mib/seed0/step0/notebook.partial.ipynb"
    assert str(partial) in failed.error and "on purpose" in partial.read_text()
    assert not (partial.parent / "metrics.json").exists()
    assert next(chain for chain in todo if chain.method == "ft").next == 2
    assert any("FAILED, the later steps of this chain are skipped" in line for line in said)


def test_a_dead_kernel_is_reported(tmp_path):
    book = write_notebook(tmp_path / "dies.ipynb", "step: int = 0", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(KitError, match=r"DeadKernelError(.|\n)*partial notebook"):
        execute(book, {"step": 1}, tmp_path / "out/notebook.ipynb")
    assert not (tmp_path / "out/notebook.ipynb").exists()


def test_parameter_names_are_checked_before_anything_runs(notebooks, tmp_path):
    with pytest.raises(KitError, match=r"unknown parameter of baseline.ipynb 'seeed'\. Did you mean 'seed'"):
        check_parameters(notebooks / "methods/baseline.ipynb", ["method", "seeed"])
    write_notebook(notebooks / "methods/baseline.ipynb", "method: str = 'ft'")
    with pytest.raises(KitError, match="unknown parameter of baseline.ipynb 'scenario'"):
        plan(tmp_path, ["ft"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("methods", "overrides", "message"),
    [
        (["ft", "dkdd"], {}, "unknown method 'dkdd'. Did you mean 'dkd'"),
        (["mib"], {"mib": {"lambda_k": 1}}, "unknown field of mib 'lambda_k'. Did you mean 'lambda_kd'"),
        (["ft"], {"": {"lr": "fast"}}, "recipe: lr = 'fast'"),
    ],
)
def test_bad_requests_fail_before_anything_runs(notebooks, tmp_path, methods, overrides, message):
    with pytest.raises(KitError, match=message):
        plan(tmp_path, methods, overrides)
    assert not (tmp_path / "runs").exists()


def test_equal_first_steps_never_run_at_the_same_time(monkeypatch):
    """ft and mib share step 0; dkd does not and takes the free place."""
    running, seen, guard = set(), [], threading.Lock()

    def step(chain):
        with guard:
            running.add((chain.method, chain.next))
            seen.append(set(running))
        time.sleep(0.05)
        with guard:
            running.discard((chain.method, chain.next))
        return "done"

    monkeypatch.setattr(pipeline, "_step", step)
    monkeypatch.setattr(pipeline, "_key", lambda c: f"{c.method}{c.next}" if c.next or c.method == "dkd" else "cross-entropy")
    todo = [Chain(m, {"seed": 0}, Scenario.named("toy-5-2")) for m in ("ft", "mib", "dkd")]
    assert run_chains(todo, jobs=2, say=lambda text: None)
    assert not any({("ft", 0), ("mib", 0)} <= at_once for at_once in seen)
    assert {("ft", 0), ("dkd", 0)} in seen and max(map(len, seen)) == 2 and len(seen) == 9


STOP = """
import sys
from pathlib import Path
from cisskit import pipeline, train
from cisskit.cli import main
pipeline.NOTEBOOKS = Path(sys.argv[1])
main(["run", "--scenario", "toy-5-4", "--method", "ft", "--runs", sys.argv[2], "--set", "epochs=1000", "--set", "data.train=24",
      "--set", "data.test=2", "--set", "batch_size=8", "--weights", "none"])
"""


def test_ctrl_c_stops_at_once_and_leaves_a_checkpoint(notebooks, tmp_path):
    runs = tmp_path / "runs"
    # a shell gives SIGINT back to what it starts in the background only if it is a terminal's: set it here
    command = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler){STOP}"]
    started = subprocess.Popen([*command, str(notebooks), str(runs)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        folder = runs / "toy-5-4-overlap/ft/seed0/step0"
        while not (folder / "checkpoint.safetensors").exists():
            assert started.poll() is None
            time.sleep(0.2)
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=20) == 130
        assert "run the same command again to continue" in started.stderr.read()
    finally:
        started.kill()
        started.stderr.close()
    assert not (folder / "model.safetensors").exists()
