"""Runs by method and seed, and what they reached, in percent with the class range of every mean."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cisskit.errors import KitError
from cisskit.method import ablations_of, method_class, variants_of
from cisskit.metrics import class_range
from cisskit.runs import FINISHED, Run
from cisskit.views.style import in_order, method_title

MISSING = "–"


@dataclass(frozen=True)
class Chain:
    """The finished steps of one method and seed, in order."""

    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        return str(self.last.settings["method"])

    @property
    def seed(self) -> int:
        return self.last.seed

    @property
    def last(self) -> Run:
        return self.runs[-1]

    @property
    def steps(self) -> list[int]:
        return [run.step for run in self.runs]

    def iou(self) -> NDArray[np.float64]:
        """(T, 1 + K) fractions: row t after step t, column c learned id c of all K classes; NaN where unseen or not run."""
        table = np.full((self.last.step + 1, len(self.last.scenario.classes)), np.nan)
        for run in self.runs:
            values = np.array(list(run.metrics["iou"].values()), dtype=np.float64)  # by learned id; None becomes NaN
            table[run.step, : len(values)] = values
        return table

    def values(self, *keys: str) -> NDArray[np.float64]:
        """(T,) one entry of metrics.json after every step, e.g. ``values("miou", "all", "value")``; NaN where there is none."""
        line = np.full(self.last.step + 1, np.nan)
        for run in self.runs:
            line[run.step] = value(run, *keys)
        return line


def value(run: Run, *keys: str) -> float:
    """One number of metrics.json, NaN where it is None or missing."""
    entry: Any = run.metrics
    for key in keys:
        entry = (entry or {}).get(key)
    return float("nan") if entry is None else float(entry)


def by_method(runs: Iterable[Run]) -> dict[str, list[Chain]]:
    """Chains per method, one per seed, methods in the order of legends. Runs of one scenario and setting.

    Raises `KitError` for runs of several protocols: their numbers do not mean the same.
    """
    runs = list(runs)
    labels = sorted({run.protocol.label for run in runs})
    if len(labels) > 1:
        raise KitError(
            f"these runs were scored by several protocols ({'; '.join(labels)}), so their numbers cannot stand side by side. "
            "Choose the runs of one, or ask for a table that names them: results(runs, across_protocols=True)."
        )
    found: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        found.setdefault((str(run.settings["method"]), run.seed), []).append(run)
    chains = [Chain(tuple(sorted(part, key=lambda run: run.step))) for _, part in sorted(found.items())]
    return {method: [c for c in chains if c.method == method] for method in in_order(c.method for c in chains)}


def results(runs: list[Run], *, across_protocols: bool = False) -> pd.DataFrame:
    """The last step of every chain, one row per method: percent, mean ± standard deviation when there are several seeds.

    Column heads name the classes they average (learned ids). "old" are the base classes and "new" all later ones, as in
    the papers; "old → bg" and "forgetting" are about all classes of earlier steps. "all, mean of steps" averages "all"
    after every step. A chain that ended early has a row of its own, with the class ranges in its cells.
    across_protocols: put numbers of several protocols into one table, each labelled; otherwise `KitError`, see `by_method`.
    """
    if across_protocols:
        labels = sorted({run.protocol.label for run in runs})
        tables = [results([run for run in runs if run.protocol.label == label]) for label in labels]
        for label, table in zip(labels, tables, strict=True):
            table.insert(1, "protocol", label)
        return pd.concat(tables, ignore_index=True).fillna(MISSING)
    groups = by_method(runs)
    last = max((chain.last for chains in groups.values() for chain in chains), key=lambda run: run.step)
    rows = []
    for method, chains in groups.items():
        for step in sorted({chain.last.step for chain in chains}, reverse=True):
            same = [chain for chain in chains if chain.last.step == step]
            rows.append(
                {"method": method_title(method), "seeds": _listed([c.seed for c in same]), "step": step, **_row(same, last)}
            )
    return pd.DataFrame(rows)


def _row(chains: Sequence[Chain], last: Run) -> dict[str, str]:
    """Columns of one row. last: the run whose class ranges stand in the column heads."""
    row = {}
    for name, keys in _COLUMNS.items():
        head, own = _classes(last, keys), _classes(chains[0].last, keys)
        numbers = [100 * value(chain.last, *keys) for chain in chains]
        text = _mean(numbers)
        row[f"{name.format(classes=head)} %"] = text if own == head or text == MISSING else f"{text} [{own}]"
    steps = [100 * float(np.mean(chain.values("miou", "all", "value"))) for chain in chains]
    row["all, mean of steps %"] = _mean(steps)
    return row


_COLUMNS: dict[str, tuple[str, ...]] = {
    "old [{classes}]": ("miou", "old", "value"),
    "new [{classes}]": ("miou", "new", "value"),
    "all [{classes}]": ("miou", "all", "value"),
    "hIoU [{classes}]": ("hiou", "value"),
    "old → bg [{classes}]": ("old_to_background",),
    "forgetting [{classes}]": ("forgetting_mean",),
}


def _classes(run: Run, keys: Sequence[str]) -> str:
    """Learned ids behind a number of metrics.json."""
    if keys[0] == "miou":
        return run.metrics["miou"][keys[1]]["classes"] or "none"
    if keys[0] == "hiou":
        return (run.metrics["hiou"]["classes"] or "none").replace(" and ", " | ")
    return class_range(range(1, run.scenario.step(run.step).n_old + 1)) or "none"


def chain_table(run: Run) -> pd.DataFrame:
    """One row per step up to ``run``: mIoU of old, new and all classes in percent, each with its class range."""
    rows = {}
    for each in run.chain:
        cells = {name.split(" [")[0]: (100 * value(each, *keys), _classes(each, keys)) for name, keys in _COLUMNS.items()}
        rows[each.step] = {f"{name} %": MISSING if np.isnan(v) else f"{v:.1f} [{ids}]" for name, (v, ids) in cells.items()}
    return pd.DataFrame(rows).T.rename_axis("after step")


def class_table(run: Run) -> pd.DataFrame:
    """One row per class seen so far: when it arrived, IoU now, best IoU at an earlier step, forgetting; percent."""
    metrics, scenario = run.metrics, run.scenario
    rows = []
    for c, (name, iou) in enumerate(metrics["iou"].items()):
        arrived = next((s.index for s in scenario.steps if s.new.start <= c < s.new.stop), None)
        lost = metrics["forgetting"].get(name) if c else metrics.get("forgetting_background")
        rows.append({"id": c, "class": name, "step": arrived, "IoU %": _percent(iou), "forgetting %": _percent(lost)})
    return pd.DataFrame(rows).astype({"step": "Int64"})


BENCHMARK = Path(__file__).parents[2] / "notebooks" / "results.csv"
"""One row per chain of the embedded benchmark; `cisskit benchmark` writes it."""

BENCHMARK_COLUMNS = {
    "old": ("miou", "old", "value"), "new": ("miou", "new", "value"), "all": ("miou", "all", "value"), "hIoU": ("hiou", "value"),
    "old → bg": ("old_to_background",), "forgetting": ("forgetting_mean",),
}  # fmt: skip
"""Column of that file -> where metrics.json has it."""


def family_of(method: str) -> list[str]:
    """A method, its variants and its ablations, by the names under which they run."""
    return [*variants_of(method), *ablations_of(method)]


def benchmark_rows(table: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Rows of the benchmark file as percent: mean and standard deviation over seeds, one row per name that is there."""
    rows = []
    for name in names:
        own = table[table["name"] == name]
        if len(own):
            cells = {column: _mean((100 * own[column]).tolist()) for column in BENCHMARK_COLUMNS}
            rows.append({"method": method_title(name), "run as": name, "network": own["arch"].iloc[0], **cells})
    return pd.DataFrame(rows)


def ablation_table(method: str, scenario: str = "toy-5-2", file: Path = BENCHMARK) -> pd.DataFrame:
    """What breaks without each part of a method, from the embedded benchmark: percent, the seeds that the ablations have.

    Raises `KitError` when the benchmark has not been run.
    """
    if not file.exists():
        raise KitError(f"no benchmark at {file}. Make it: make benchmark (about an hour on two cores; it can be interrupted).")
    table = pd.read_csv(file)
    table = table[(table["scenario"] == scenario) & table["name"].isin(family_of(method))]
    ablated = table[table["name"].isin(ablations_of(method))]
    seeds = ablated["seed"] if len(ablated) else table["seed"]  # ablations that have not been run yet are simply not there
    return benchmark_rows(table[table["seed"].isin(seeds)], family_of(method))


def files(run: Run) -> pd.DataFrame:
    """The files of a finished run and their sizes in kB; a missing one has no size."""
    sizes = {name: (run.folder / name).stat().st_size / 1024 if (run.folder / name).exists() else np.nan for name in FINISHED}
    return pd.DataFrame({"file": list(sizes), "kB": [round(size, 1) for size in sizes.values()]})


def protocol(runs: Sequence[Run]) -> str:
    """One paragraph that says under which rules the numbers of these runs were made."""
    last = max(runs, key=lambda run: run.step)
    scenario, metrics = last.scenario, last.metrics
    sizes = " + ".join(str(len(group)) for group in scenario.groups)
    rules = last.protocol
    future = "left out" if rules.future_as == "ignore" else "counted as background"
    without = (run.settings for run in runs if run.settings["fields"].get("saliency") and not run.settings["extras"])
    blind = sorted({method_title(each["method"]) for each in without})
    maps = f" There are no saliency maps: all unlabelled pixels are unknown to {', '.join(blind)}." if blind else ""
    used = {method_title(r.settings["method"]): (r.settings["method"], r.settings["fields"].get("mode")) for r in runs}
    modes = "".join(f" {title}: {method_class(name).modes[mode]}." for title, (name, mode) in sorted(used.items()) if mode)
    old, new, everything = (_classes(last, ("miou", part)) for part in ("old", "new", "all"))
    zeros = " Classes with an IoU of exactly 0 are left out of all." if rules.drop_zero else ""
    chosen = "" if rules.checkpoint == "last" else " The checkpoint was chosen on test images that show a current class."
    networks = {
        name: [run for run in runs if run.settings["arch"] == name] for name in sorted({r.settings["arch"] for r in runs})
    }
    arch = ", ".join(networks)
    if len(networks) > 1:
        arch = ", ".join(f"{name} ({', '.join(_titles(those))})" for name, those in networks.items())
    return (
        f"Scenario {scenario.name} ({sizes} classes), setting {scenario.setting}, network {arch}. "
        f"Protocol {rules.label} ({rules.source}): {metrics['test_images']} test images, evaluation size {rules.eval_size}, one "
        f"confusion matrix over all of them. Pixels of classes that have not arrived: {future} (future_as = {rules.future_as}); "
        f"IoU of an absent class: {rules.absent}. Old [{old}] are the base classes, new [{new}] all later ones, all "
        f"[{everything}]; 0 is the background.{zeros}{chosen} Seeds: {_listed([run.seed for run in runs])}.{maps}{modes}"
    )


def _titles(runs: Iterable[Run]) -> list[str]:
    return [method_title(m) for m in in_order(run.settings["method"] for run in runs)]


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(seeds))))


def _mean(numbers: Sequence[float]) -> str:
    """ "71.3", "71.3 ± 0.8" or a dash."""
    there = [n for n in numbers if not np.isnan(n)]
    if not there:
        return MISSING
    spread = f" ± {np.std(there, ddof=1):.1f}" if len(there) > 1 else ""
    return f"{np.mean(there):.1f}{spread}"


def _percent(fraction: float | None) -> str:
    return MISSING if fraction is None else f"{100 * fraction:.1f}"
