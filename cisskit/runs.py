"""A run is a folder of files: ``runs/<scenario>-<setting>/<method>/seed<k>/step<t>/``.

    config.json          settings (everything that decides the result) and the environment it ran in
    metrics.json         written last: its presence means the step is done
    confusion.npy        (1 + K, 1 + K) int64 over all K classes of the scenario; rows truth, columns prediction, learned ids
    history.csv          one row per iteration: every loss term and the learning rate
    model.safetensors    weights after the step, with the settings as metadata
    memory.json          exemplars kept from earlier steps (methods with a memory)
    notebook.ipynb       the executed notebook
    checkpoint.safetensors, progress.jsonl, notebook.partial.ipynb     only while the step is unfinished

Files appear complete or not at all. Nothing here is a pickle.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cisskit import __version__
from cisskit.errors import KitError
from cisskit.files import write_json, written_whole
from cisskit.protocols import Protocol
from cisskit.scenario import Labels, Scenario

FINISHED = ("config.json", "history.csv", "model.safetensors", "confusion.npy", "metrics.json")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """A safetensors file with ``about`` as its metadata."""
    with written_whole(path) as beside:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, beside, metadata={"cisskit": json.dumps(about)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. Raises `KitError` for a missing, truncated or foreign file."""
    if not path.is_file():
        raise KitError(f"no weights at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("cisskit")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise KitError(f"{path} is damaged ({error}). Delete its folder {path.parent} and run that step again.") from error
    if about is None:
        raise KitError(f"{path} was not written by cisskit: it carries no settings. Train the step here, or remove the file.")
    return tensors, json.loads(about)


def digest(value: Any) -> str:
    """Short fingerprint of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """One step of one method: its folder and the settings that decide its result (JSON values, from `cisskit.train.plan`)."""

    folder: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path | str, settings: Mapping[str, Any]) -> "Run":
        """The run with these settings; looks and writes nothing, `record` does.

        Raises `KitError`, with the fields that differ, when the folder holds a run with other settings, and when the
        previous step is not finished or belongs to other settings.
        """
        which = (settings["protocol"]["name"], settings["method"], settings["seed"], settings["step"])
        folder = folder_of(Path(root), _scenario(settings), *which)
        run = cls(folder, dict(settings))
        previous = run.previous
        if previous is not None and not previous.done:
            raise KitError(
                f"step {run.step} continues from step {previous.step}, which is not finished in {previous.folder}. Run it first: "
                f"cisskit run --scenario {settings['scenario']} --setting {settings['setting']} --method {settings['method']}."
            )
        if (folder / "config.json").exists():
            faults = differences(cls.load(folder).settings, settings)
            if faults:
                raise KitError(
                    f"{folder} holds a run with other settings; it is left alone. Different: {'; '.join(faults)}. "
                    "Choose another folder (--runs), or remove this one if you do not need it."
                )
        return run

    def record(self, place: Mapping[str, Any]) -> None:
        """Make the folder and its config.json, unless they are there.

        place: where things are on this machine (data root); recorded, but not part of what decides the result.
        """
        config = self.folder / "config.json"
        if not config.exists():
            write_json(config, {"settings": self.settings, "environment": environment(), "place": dict(place)})

    @classmethod
    def load(cls, folder: Path | str) -> "Run":
        """A run that exists. Raises `KitError` when the folder is not one."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KitError(f"{folder} is not a run folder ({type(error).__name__}: {error}).") from error
        if "protocol" not in settings:
            raise KitError(
                f"{folder} was made by an older cisskit, whose runs did not record their protocol. It is left alone; "
                "choose another folder (--runs) and run it again."
            )
        return cls(folder, settings)

    @property
    def step(self) -> int:
        return int(self.settings["step"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def place(self) -> dict[str, Any]:
        """Where things were on the machine that made the run."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("place", {})

    @property
    def previous(self) -> "Run | None":
        """The step before, or None at step 0."""
        if self.step == 0:
            return None
        folder = self.folder.with_name(f"step{self.step - 1}")
        return Run.load(folder) if (folder / "config.json").exists() else Run(folder, {**self.settings, "step": self.step - 1})

    @property
    def chain(self) -> "list[Run]":
        """This run after the finished steps before it, in order."""
        runs = [self]
        while (before := runs[0].previous) is not None and before.done:
            runs.insert(0, before)
        return runs

    @property
    def scenario(self) -> Scenario:
        return _scenario(self.settings)

    @property
    def protocol(self) -> Protocol:
        return Protocol(**self.settings["protocol"])

    @property
    def done(self) -> bool:
        return all((self.folder / name).exists() for name in FINISHED)

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json. Raises `KitError` when the step is not finished."""
        return json.loads(self._file("metrics.json").read_text(encoding="utf-8"))

    @property
    def confusion(self) -> np.ndarray:
        """(1 + K, 1 + K) int64, rows truth, columns prediction, learned ids of all classes of the scenario."""
        return np.load(self._file("confusion.npy"), allow_pickle=False)

    @property
    def history(self) -> pd.DataFrame:
        """One row per iteration: epoch, iteration, lr and every loss term."""
        return pd.read_csv(self._file("history.csv"))

    def weights(self) -> dict[str, Tensor]:
        """Weights after the step. Raises `KitError` when the file is missing, damaged, or of other settings."""
        tensors, about = load_tensors(self.folder / "model.safetensors")
        faults = differences(about, self.settings)
        if faults:
            raise KitError(f"{self.folder / 'model.safetensors'} belongs to another run. Different: {'; '.join(faults)}.")
        return tensors

    def adopt(self) -> bool:
        """Take over a finished step 0 whose result is bound to be the same; True when one was found.

        FT, MiB and the joint bound train the same first step (`Method.base_key`), so the second one copies the first.
        """
        if self.step != 0 or self.done:
            return self.done
        seed_folder = self.folder.parent.name
        for other in sorted(self.folder.parents[2].glob(f"*/{seed_folder}/step0")):
            if other == self.folder or not (other / "metrics.json").exists():
                continue
            twin = Run.load(other)
            if twin.done and shared(twin.settings) == shared(self.settings):
                weights, _ = load_tensors(other / "model.safetensors")
                save_tensors(self.folder / "model.safetensors", weights, self.settings)
                for name in ("history.csv", "confusion.npy", "metrics.json"):  # metrics.json last: it means done
                    with written_whole(self.folder / name) as beside:
                        shutil.copyfile(other / name, beside)
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder while it is written. Raises `KitError` when another one is at work."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise KitError(
                f"{self.folder} is in use by another process; wait for it, or choose another --runs folder."
            ) from error
        try:
            for left in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                left.unlink()
            yield
        finally:
            lock.release()

    def note(self, **values: Any) -> None:
        """Append a line to progress.jsonl, for whoever watches from outside."""
        with (self.folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise KitError(f"{path} does not exist: this step is not finished. Run it again, it continues where it stopped.")
        return path


def folder_of(root: Path, scenario: Scenario, protocol: str, method: str, seed: int, step: int) -> Path:
    """Where a run lives. Other protocols than the kit's own have folders of their own."""
    rules = "" if protocol == "clean" else f"-{protocol}"
    return root / f"{scenario.name}-{scenario.setting}{rules}" / method / f"seed{seed}" / f"step{step}"


def _scenario(settings: Mapping[str, Any]) -> Scenario:
    own = settings["labels"]
    labels = own and Labels(**{**own, "names": tuple(own["names"])})
    return Scenario.named(settings["scenario"], setting=settings["setting"], labels=labels)


def shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide step 0: the method counts only through its base key."""
    return {k: v for k, v in settings.items() if k not in ("method", "fields")}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``"recipe.epochs is 5, asked for 3"`` for every leaf that differs."""
    faults = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            faults += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            faults.append(f"{prefix}{key} is {a!r}, asked for {b!r}")
    return faults


def find_runs(root: Path | str, where: Callable[[Run], bool] = lambda run: run.done) -> list[Run]:
    """All runs under ``root`` that ``where`` accepts (default: finished ones), by scenario, method, seed and step.

    A folder that looks like a run and cannot be read is left out with a warning.
    """
    runs = []
    for config in Path(root).rglob("step*/config.json"):
        try:
            runs.append(Run.load(config.parent))
        except KitError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return sorted(
        (run for run in runs if where(run)),
        key=lambda run: (run.settings["scenario"], run.settings["method"], run.settings["seed"], run.step),
    )


@cache
def environment() -> dict[str, Any]:
    """Versions and revision, for the record; they do not decide whether a run is the same."""
    packages = ("torch", "torchvision", "numpy")
    return {"cisskit": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}, "git": revision()}


def revision() -> str | None:
    """Git revision of the kit's checkout, with ``+changes`` when the tree is not clean; None outside git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if dirty.strip() else "")
