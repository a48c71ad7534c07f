"""Chains of notebooks, executed with papermill: one notebook per step, one chain per method and seed.

Chains are independent and run side by side, one process per core on a CPU; the steps of a chain follow each other. A
failing step stops its own chain. This is the only module that knows papermill.
"""

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
import torch
from papermill.exceptions import PapermillExecutionError

from cisskit.data import Data, Source, read_scenario
from cisskit.errors import KitError, unknown
from cisskit.files import write_text
from cisskit.method import Method, Recipe, method_class
from cisskit.runs import Run, digest, folder_of, shared
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit, plan

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

Say = Callable[[str], None]


def method_notebook(method: str) -> Path:
    """``notebooks/methods/<id>.ipynb``, or the notebook that the plain baselines share."""
    own = NOTEBOOKS / "methods" / f"{method.partition('-')[0]}.ipynb"  # a variant runs in its method's
    path = own if own.exists() else NOTEBOOKS / "methods" / "baseline.ipynb"
    if not path.exists():
        raise KitError(f"no notebooks at {NOTEBOOKS}: install the kit from a checkout (pip install -e .), which carries them.")
    return path


def check_parameters(notebook: Path, parameters: Iterable[str]) -> None:
    """Raise `KitError` for a parameter that the notebook does not have; papermill itself would only warn."""
    known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of {notebook.name}", name, sorted(known))


def execute(notebook: Path, parameters: Mapping[str, Any], output: Path) -> None:
    """Run a notebook with these parameters; ``output`` appears when all its cells have run.

    Until then, and after a failure, the partial notebook lies beside it. Raises `KitError` with the failing cell's error.
    """
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook), str(partial), parameters=dict(parameters), kernel_name="python3", progress_bar=False,
            cwd=str(Path.cwd()),
            autosave_cell_every=5, extra_arguments=["--log-level=50"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        raise KitError(
            f"cell {error.exec_count} failed with {error.ename}: {error.evalue}\n    partial notebook: {partial}"
        ) from error
    except Exception as error:  # a dead kernel, a full disk: whatever it is, the chain stops here and says so
        raise KitError(f"{type(error).__name__}: {error}\n    partial notebook: {partial}") from error
    partial.replace(output)


@dataclass
class Chain:
    """The steps of one method and seed, in order."""

    method: str
    parameters: dict[str, Any]
    scenario: Scenario
    next: int = 0
    error: str = ""

    @property
    def steps(self) -> int:
        return len(self.scenario.steps)

    @property
    def open(self) -> bool:
        return not self.error and self.next < self.steps

    def plan(self, step: int) -> dict[str, Any]:
        """Settings of one step; raises `KitError` for whatever is wrong with them."""
        return self._plan(step)[3]

    def check(self, source: Source | None = None) -> Source:
        """Plan every step; raises `KitError` for whatever is wrong. source: the data set, if an earlier check has opened it;
        it is returned for the next one."""
        for step in range(self.steps):
            source = self._plan(step, source)[2].source
        assert source is not None
        return source

    def _plan(self, step: int, source: Source | None = None) -> tuple[Method, Recipe, Data, dict[str, Any]]:
        keys = {k: v for k, v in self.parameters.items() if k != "device"}
        return plan(step=step, source=source, **keys)

    @property
    def folder(self) -> Path:
        """The run folder of the next step."""
        given = self.parameters
        return folder_of(Path(given["runs"]), self.scenario, given["protocol"], self.method, given["seed"], self.next)


def chains(
    scenario: str,
    methods: Iterable[str],
    seeds: Iterable[int],
    overrides: Mapping[str, Mapping[str, Any]],
    **common: Any,
) -> list[Chain]:
    """One chain per method and seed, every parameter checked before anything runs.

    overrides: method id (or "" for all) -> fields. common: further parameters of the method notebooks.
    """
    task = read_scenario(scenario, setting=common["setting"], root=common["data_root"])
    todo, source = [], None
    for seed in seeds:
        for method in methods:
            method_class(method)  # raises for a name that nothing answers to
            fields = {**overrides.get("", {}), **overrides.get(method, {})}
            parameters = {"scenario": task.text, "method": method, "seed": seed, "overrides": fields, **common}
            chain = Chain(method, parameters, task)
            check_parameters(method_notebook(method), [*parameters, "step"])
            source = chain.check(source)
            todo.append(chain)
    return todo


def run_chains(todo: list[Chain], jobs: int, say: Say = print, *, notebooks: bool = True) -> bool:
    """Execute chains, ``jobs`` at a time; one line per step. Returns True when all of them reached their end.

    notebooks: run the method notebooks; else the same steps without text and pictures, which is faster. Methods that share
    step 0 do not train it twice: the second one waits for the first and takes it over.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    total, finished = sum(chain.steps for chain in todo), 0
    running: dict[Future[str], tuple[Chain, str]] = {}
    last_word = time.monotonic()
    pool: Executor = ThreadPoolExecutor(jobs)
    if not notebooks:
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        while running or any(chain.open for chain in todo):
            busy = {id(chain) for chain, _ in running.values()}
            keys = {key for _, key in running.values()}
            for chain in todo:
                if len(running) < jobs and chain.open and id(chain) not in busy and (key := _key(chain)) not in keys:
                    running[pool.submit(_step if notebooks else _trained, chain)] = (chain, key)
                    keys.add(key)
            done, _ = wait(running, timeout=30, return_when=FIRST_COMPLETED)
            for future in done:
                chain, _ = running.pop(future)
                finished += 1
                where = f"[{finished:>2}/{total}] {chain.method} seed {chain.parameters['seed']} step {chain.next}"
                error = future.exception()
                if error is None:
                    say(f"{where}: {future.result()}")
                    chain.next += 1
                elif isinstance(error, KitError):
                    chain.error = str(error)
                    finished += chain.steps - chain.next - 1
                    say(f"{where}: FAILED, the later steps of this chain are skipped\n    {chain.error}")
                else:
                    raise error
                last_word = time.monotonic()
            if not done and time.monotonic() - last_word > 25:
                say("    " + ";  ".join(_progress(chain) for chain, _ in running.values()))
                last_word = time.monotonic()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the notebooks at work are not waited for
    return not any(chain.error for chain in todo)


def _key(chain: Chain) -> str:
    """Chains with equal keys must not run their next step at the same time."""
    if chain.next > 0:
        return str(chain.folder)
    return digest(shared(chain.plan(0)))


def _step(chain: Chain) -> str:
    """Execute the next step of a chain, or find it done; returns the words for its line."""
    began = time.perf_counter()
    settings = chain.plan(chain.next)
    folder = chain.folder
    notebook = folder / "notebook.ipynb"
    if (folder / "config.json").exists():
        Run.open(chain.parameters["runs"], settings)  # refuses other settings
    cached = Run(folder, settings).done and notebook.exists()
    if not cached:
        execute(method_notebook(chain.method), {**chain.parameters, "step": chain.next}, notebook)
    return _words(Run.load(folder), None if cached else time.perf_counter() - began)


def _trained(chain: Chain) -> str:
    """As `_step`, without a notebook."""
    began = time.perf_counter()
    run = Run.open(chain.parameters["runs"], chain.plan(chain.next))
    if run.done:
        return _words(run, None)
    ctx = begin(step=chain.next, **chain.parameters)
    fit(ctx, bar=False)
    evaluate(ctx)
    return _words(run, time.perf_counter() - began)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _words(run: Run, seconds: float | None) -> str:
    miou = run.metrics["miou"]["all"]
    rules = "" if run.protocol.label == "clean" else f" (protocol {run.protocol.label})"
    words = f"mIoU all [{miou['classes']}] {100 * miou['value']:5.1f} %{rules}"
    return f"{words}, done before" if seconds is None else f"{words}, {seconds:.0f} s"


def _progress(chain: Chain) -> str:
    """The last line of progress.jsonl, in words."""
    file = chain.folder / "progress.jsonl"
    name = f"{chain.method} step {chain.next}"
    try:
        last = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return f"{name} is starting"
    if last["epoch"] == last["epochs"]:
        return f"{name} is trained, now evaluated and drawn"
    left = (last["epochs"] - last["epoch"]) * last["seconds"]
    return f"{name} epoch {last['epoch']}/{last['epochs']}, loss {last['loss']:.3f}, about {left:.0f} s of training left"


def default_jobs(device: str = "") -> int:
    """One process per core on a CPU, one in all on a GPU."""
    if device.startswith("cuda") or (not device and torch.cuda.is_available()):
        return 1
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def make_report(folder: Path, runs: list[Run]) -> Path:
    """Execute notebooks/report.ipynb on these runs and write ``folder/report.html``, one file that opens offline."""
    from nbconvert import HTMLExporter

    from cisskit.views.report import page

    executed = folder / "report.ipynb"
    execute(NOTEBOOKS / "report.ipynb", {"runs": [str(run.folder.resolve()) for run in runs]}, executed)
    hidden = {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True, **hidden)  # cells only: page() is the rest
    cells, _ = exporter.from_filename(str(executed))
    path = folder / "report.html"
    write_text(path, page(cells, f"cisskit: {runs[0].scenario.name}, {runs[0].scenario.setting}"))
    return path
