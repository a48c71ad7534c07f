"""Published numbers, and which of them a run may stand beside.

    rows(method="DKD", dataset="voc", task="15-1")
    compare(Run.load(folder))

``published.csv`` has one row per number, read from papers' tables, READMEs and released logs, in percent. A mean over classes
says nothing until its classes are named, and two means over the same classes say different things when the images were cut
or the checkpoint chosen by other rules. So `compare` sorts every row of a run's task into three: what matches, what covers
the same classes by other rules, and what is left out, with the reason.
"""

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cisskit.errors import KitError, unknown
from cisskit.metrics import class_range, harmonic_mean, mean_iou
from cisskit.protocols import Protocol, protocol
from cisskit.runs import Run
from cisskit.scenario import IGNORE, ORDERS, Scenario

FILE = Path(__file__).with_suffix(".csv")

DATASETS = {"voc": "VOC", "ade": "ADE20K", "isprs": "ISPRS Potsdam", "isprs_compat": "ISPRS Potsdam"}
"""Data set of the kit -> its name in the table."""
BACKBONES = {
    "deeplabv3_resnet101": "ResNet-101", "deeplabv3_resnet50": "ResNet-50", "deeplabv3_mobilenet_v2": "MobileNetV2",
    "segmenter_vit_b16": "ViT-B/16",
}  # fmt: skip
"""Architecture of the kit -> its name in the table; others are called by their own."""
IMAGES = {"VOC": {"train_list": "train_aug", "test_list": "val"}, "ISPRS Potsdam": {"site": "potsdam", "later_site": ""}}
"""What published numbers were trained and tested on, as the kit's data sets describe it."""
TEST_IMAGES = {"VOC": 1449, "ADE20K": 2000, "ISPRS Potsdam": 1400}


class Rules(NamedTuple):
    """Whose protocol the numbers of a source follow. methods: only these of its rows; empty is all. eval_size: if another."""

    protocol: str
    methods: tuple[str, ...] = ()
    eval_size: str = ""


RULES = {
    "MiB README (its Table 1)": Rules("mib"),
    "MiB README (its Table 2; its own partitioned ADE split)": Rules("mib"),
    "PLOP README": Rules("plop"),
    "PLOP README (rerun)": Rules("plop"),
    "RCIL README": Rules("plop"),
    "RCIL repository; released result csv": Rules("plop"),
    "RCIL repository; released result csv (second run)": Rules("plop"),
    "REMINDER README (result figures)": Rules("plop"),
    "SSUL README": Rules("ssul"),
    "DKD paper (submission text; mean of 5 runs)": Rules("dkd"),
    "DKD README (released checkpoints)": Rules("dkd"),
    "DKD README (mean of 5 runs; commented block)": Rules("dkd"),
    "STAR README": Rules("dkd"),
    "IDEC repository history (its Table 3 as figure)": Rules("idec"),
    "IDEC repository history (its Table 3 as figure) (rerun there)": Rules("idec"),
    "LAG repository history (its Table 11 as figure)": Rules("idec", ("LAG",)),
    "LAG repository history; training log (final test)": Rules("idec", eval_size="full"),
    "AMIS README (result figure)": Rules("mbs"),
    "AMIS README (result figure); classes with IoU 0 left out of all": Rules("mbs"),
    "AMIS README (result figure) (quoted there)": Rules("mbs", ("MBS",)),
}
"""Sources whose numbers come from one code base. What a source quotes from elsewhere follows rules that it does not state."""

ABSENT_WORDS = {"nan": "left out unless predicted", "skip": "left out", "zero": "0"}
"""What becomes of a class without a test pixel, see `cisskit.metrics.class_iou`."""
NOT_STATED = "not stated"
PARTS = ("old", "new", "all", "range", "hIoU", "mean over steps")
DISAGREES = "printed all disagrees with its columns"


class Metric(NamedTuple):
    """A metric of the table, taken apart. name: as in "mIoU old". part: of `PARTS`; "range" is a group of classes of its own.

    classes: first and last learned id of the mean, or None: the source does not say, or (hIoU, mean over steps) there is no
    one range.
    """

    name: str
    part: str
    classes: tuple[int, int] | None


def parse(metric: str) -> Metric:
    """ "mIoU old [0-15]" -> ("mIoU old", "old", (0, 15)). Raises `KitError` for what is no metric of the table."""
    if metric.startswith("hIoU"):
        return Metric("hIoU", "hIoU", None)
    if metric == "mIoU all mean over steps":
        return Metric("mIoU mean over steps", "mean over steps", None)
    match = re.fullmatch(r"mIoU ?(old|new|all|) \[(.+)\]", metric)
    if not match:
        raise KitError(f"cannot read the metric {metric!r}; write it as 'mIoU old [0-15]', 'mIoU [1-50]' or 'hIoU (..)'.")
    ids = re.fullmatch(r"(\d+)(?:-(\d+))?", match[2])
    classes = (int(ids[1]), int(ids[2] or ids[1])) if ids else None
    return Metric(f"mIoU {match[1]}".strip(), match[1] or "range", classes)


@cache
def _table() -> pd.DataFrame:
    table = pd.read_csv(FILE, dtype={"memory": str, "year": "Int64"}, keep_default_na=False, na_values={"year": [""]})
    metrics = [parse(text) for text in table["metric"]]
    table.insert(9, "name", [m.name for m in metrics])
    table.insert(10, "part", [m.part for m in metrics])
    table.insert(11, "classes", [m.classes and class_range(range(m.classes[0], m.classes[1] + 1)) for m in metrics])
    rules = zip(table["source"], table["method"], strict=True)
    table["protocol"] = [found.protocol if (found := _rules(*which)) else "" for which in rules]
    return table


def rows(
    method: str | None = None,
    dataset: str | None = None,
    task: str | None = None,
    setting: str | None = None,
    metric: str | None = None,
    classes: str | None = None,
    backbone: str | None = None,
    memory: str | int | None = None,
) -> pd.DataFrame:
    """Rows of the table; each argument keeps those with this value, in any case: ``method="mib"`` finds "MiB".

    dataset: also the kit's name ("ade"). task: "15-1". setting: as the table writes it. metric: "mIoU old", or just its part
    ("old", "mean over steps"). classes: "0-15". memory: number of stored images.
    Columns: those of published.csv, and from its metric name, part and classes (None where unclear); protocol: whose rules
    the source follows ("" unknown). Raises `KitError` for a value that no row has, listing those that exist.
    """
    found = _table()
    asked = {
        "method": method, "dataset": DATASETS.get(dataset or "", dataset), "task": task, "setting": setting, "metric": metric,
        "classes": classes, "backbone": backbone, "memory": memory,
    }  # fmt: skip
    for column, value in asked.items():
        if value is None:
            continue
        among = ["name", "part"] if column == "metric" else [column]
        known = [str(v) for v in pd.unique(_table()[among].to_numpy().ravel()) if isinstance(v, str)]
        if str(value).lower() not in (v.lower() for v in known):
            raise unknown(f"{column} among the published numbers:", value, sorted(known))
        fits = [found[c].str.lower() == str(value).lower() for c in among]
        found = found[np.logical_or.reduce(fits)]
    return found.reset_index(drop=True)


# --- a run beside them ---


@dataclass(frozen=True)
class Comparison:
    """A run beside the published numbers of its task; the tables are in percent, the run's own method first.

    matching: the same classes, setting, backbone, memory, and rules that agree. other_rules: the same but for what the column
    "differs" says ("there" is the source, "here" the run). left_out: all other rows of the task, with the reason in "why".
    """

    text: str
    matching: pd.DataFrame
    other_rules: pd.DataFrame
    left_out: pd.DataFrame

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        reasons = (
            self.left_out.groupby("why", sort=False).size().rename("rows").reset_index().sort_values("rows", ascending=False)
        )
        tables = {
            f"Matching: {len(self.matching)} rows": self.matching,
            f"The same classes by other rules: {len(self.other_rules)} rows": self.other_rules,
            f"Left out: {len(self.left_out)} rows": reasons,
        }
        parts = [f"<p>{html.escape(self.text)}</p>"]
        for title, table in tables.items():
            if len(table):
                opened = " open" * (table is self.matching)
                parts.append(f"<details{opened}><summary>{title}</summary>{table.to_html(index=False, border=0)}</details>")
        return "".join(parts)


def compare(run: Run) -> Comparison:
    """The run beside every published number of its data set and task, sorted by what may be compared. See `Comparison`.

    The run's values come from its metrics.json and, for means over steps, from the steps before it. Recipes and seeds are not
    compared. Raises `KitError` when the run is not finished.
    """
    metrics, scenario = run.metrics, run.scenario
    task = _task(scenario)
    table = _table()
    mine = table[(table["dataset"] == DATASETS.get(scenario.dataset)) & (table["task"] == task)]
    head = (
        f"{run.settings['method']} on {scenario.name}, {scenario.setting} (backbone {_backbone(run)}, memory "
        f"{_memory(run)}, protocol {run.protocol.label})"
    )
    if mine.empty:
        none = "no published numbers for " + ("the scenes" if scenario.dataset == "toy" else f"{scenario.dataset} {task}")
        return Comparison(f"{head}: {none}.", _result([]), _result([], "differs"), _result(_records(table, why=none), "why"))
    mine = mine.iloc[np.argsort(mine["method"].str.lower() != run.settings["method"], kind="stable")]
    found: dict[str, list[dict[str, Any]]] = {"matching": [], "differs": [], "why": []}
    for record in _records(mine):
        why = _why_not(record, run)
        differs = [] if why else _differences(record, run)
        if not why:
            record["run"] = round(100 * _value(record, run, metrics), 2)
            record["difference"] = round(record["run"] - record["published"], 2)
        record |= {"differs": "; ".join(differs), "why": "; ".join(why)}
        found["why" if why else "differs" if differs else "matching"].append(record)
    text = (
        f"{head}: {len(found['matching'])} published numbers match, {len(found['differs'])} cover the same classes by other "
        f"rules, {len(found['why'])} of the same task are left out."
    )
    if run.protocol.name == "clean" and found["differs"]:
        text += " No paper follows the kit's own protocol; to stand beside one, run with its protocol (protocol='dkd')."
    return Comparison(text, _result(found["matching"]), _result(found["differs"], "differs"), _result(found["why"], "why"))


def _records(table: pd.DataFrame, **more: Any) -> list[dict[str, Any]]:
    return [{**row, **more} for row in table.rename(columns={"value": "published"}).to_dict("records")]


def _result(records: list[dict[str, Any]], last: str = "") -> pd.DataFrame:
    """A table of `Comparison`."""
    columns = ["method", "venue", "year", "backbone", "setting", "memory", "metric", "published", "run", "difference", "source"]
    if last == "why":
        columns = [c for c in columns if c not in ("run", "difference")]
    else:
        columns.insert(-1, "protocol")
    return pd.DataFrame(records, columns=[*columns, *([last] if last else [])]).astype({"year": "Int64"})


# --- what speaks against a row ---


def _why_not(row: Mapping[str, Any], run: Run) -> list[str]:
    """Why the row says nothing about the run; empty when it covers the same classes of the same task."""
    scenario, last = run.scenario, len(run.scenario.steps) - 1
    setting, share = _setting(row["setting"])
    pairs = {  # what: there, here
        "setting": (setting, scenario.setting if setting != NOT_STATED else NOT_STATED),
        "data at incremental steps": (share, f"{100 * run.settings['recipe']['ratio']:g}%"),
        "backbone": (row["backbone"], _backbone(run)),
        "memory": (row["memory"], _memory(run)),
        "class order": ("natural", _order(scenario)),
        **{what: (there, run.settings["data"]["source"].get(what)) for what, there in IMAGES.get(row["dataset"], {}).items()},
    }
    why = [f"{what.replace('_', ' ')} {there}, the run has {here}" for what, (there, here) in pairs.items() if there != here]
    if run.step < last:
        why.append(f"evaluated after step {last}, the last; the run is at step {run.step}")
    if DISAGREES in row["source"]:
        why.append('the source contradicts itself: its "all" does not follow from its old and new')
    elif row["part"] not in ("hIoU", "mean over steps") and not isinstance(row["classes"], str):
        why.append("the source does not say whether background counts")
    if row["part"] == "mean over steps":
        if not row["protocol"]:
            why.append("the source does not say whether background counts")
        if run.step == last and len(run.chain) <= last:
            why.append("a mean over steps, and the earlier steps of the run are not there")
    if not scenario.labels.background:
        why.append("class 0 is impervious surface there, the run has no class 0 (isprs_compat has)")
    return why


def _differences(row: Mapping[str, Any], run: Run) -> list[str]:
    """Conventions of the row that the run does not share, "there" and "here"; only those that can move this number."""
    pairs: dict[str, tuple[Any, Any]] = {
        "test images": (TEST_IMAGES[row["dataset"]], run.settings["data"]["test_images"]),
        "backbone starts from": ("imagenet", _weights(run)),
    }
    found = [] if row["setting"] != NOT_STATED else ["the source does not state the setting"]
    rules = _rules(row["source"], row["method"])
    if rules is None:
        return [*found, "the source does not state its rules", *_there_and_here(pairs)]
    theirs, ours = protocol(rules.protocol, run.scenario, rules.eval_size), run.protocol

    def of(value: Callable[[Protocol], Any]) -> tuple[Any, Any]:
        return value(theirs), value(ours)

    pairs |= {
        "void pixels in training": of(lambda p: "ignored" if p.void_in_training == IGNORE else "background"),
        "size of test images": of(lambda p: p.eval_size),
        "checkpoint": of(lambda p: p.checkpoint if p.checkpoint == "last" else f"{p.checkpoint} of {p.looks}"),
        "pixels labelled 0": of(lambda p: "scored" if p.zero_at_test else "not scored"),
    }
    if (run.confusion[1:].sum(axis=1) == 0).any():
        pairs["classes without a test pixel"] = of(lambda p: ABSENT_WORDS[p.absent])
    if row["part"] == "all":
        pairs["classes with an IoU of 0"] = of(lambda p: "left out of all" if p.drop_zero else "counted")
    if row["part"] == "mean over steps":  # after the last step no class is to come, and every image shows a seen one
        pairs["classes to come"] = of(lambda p: "not scored" if p.future_as == "ignore" else "background")
        pairs["images of each step"] = of(lambda p: p.test_images)
    return found + _there_and_here(pairs)


def _there_and_here(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{what}: {there} there, {here} here" for what, (there, here) in pairs.items() if there != here]


def _rules(source: str, method: str) -> Rules | None:
    rules = RULES.get(source)
    return rules if rules and (not rules.methods or method in rules.methods) else None


# --- the run's side ---


def _value(row: Mapping[str, Any], run: Run, metrics: Mapping[str, Any]) -> float:
    """What the run reached where the row has its number, a fraction; NaN when there is nothing."""
    miou = metrics["miou"]
    if row["part"] == "hIoU":
        return harmonic_mean(_number(miou["old_with_background"]["value"]), _number(miou["new"]["value"]))
    if row["part"] == "mean over steps":
        rules = protocol(row["protocol"], run.scenario)
        which = "all_with_background" if rules.all_with_background else "all_without_background"
        return mean_iou([_number(each.metrics["miou"][which]["value"]) for each in run.chain])
    if row["part"] == "all" and miou["all"]["classes"] == row["classes"]:
        return _number(miou["all"]["value"])  # by the run's own protocol, which may leave out zeros
    first, _, last = row["classes"].partition("-")
    iou = np.array(list(metrics["iou"].values()), dtype=np.float64)  # by learned id; None becomes NaN
    return mean_iou(iou, range(int(first), int(last or first) + 1))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _task(scenario: Scenario) -> str:
    """ "15-1": the sizes of the groups, as names have them, whatever the order of the classes."""
    ids = iter(range(1, len(scenario.order) + 1))
    groups = tuple(tuple(next(ids) for _ in group) for group in scenario.groups)
    return replace(scenario, groups=groups).name.removeprefix(f"{scenario.dataset}-")


def _order(scenario: Scenario) -> str:
    if scenario.order == tuple(range(1, len(scenario.labels.names) + 1)):
        return "natural"
    return next((letter for letter, order in ORDERS.items() if order == scenario.order), "another")


def _setting(text: str) -> tuple[str, str]:
    """ "overlap (75% of the data at incremental steps)" -> ("overlap", "75%")."""
    match = re.fullmatch(r"(\w+) \((\d+%) of the data at incremental steps\)", text)
    return (match[1], match[2]) if match else (text, "100%")


def _backbone(run: Run) -> str:
    arch = str(run.settings["arch"])
    return BACKBONES.get(arch, arch)


def _memory(run: Run) -> str:
    return str(run.settings["fields"].get("memory", 0))


def _weights(run: Run) -> str:
    weights = run.settings["weights"]
    return str(weights["file"] if isinstance(weights, dict) else weights or "random weights")
