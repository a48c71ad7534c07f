"""The embedded benchmark: every method on the scenes, and every part of a method left out once.

`run` trains what is missing, `collect` reads the finished runs into a table, `render` writes it as Markdown.
``notebooks/results.csv`` holds one row per run of a last step and is what the notebooks read; ``notebooks/RESULTS.md`` is for
people. Both are made anew from the runs each time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cisskit.errors import KitError
from cisskit.files import write_text
from cisskit.method import SCENES, ablations_of, configure, methods_table, title_of, variants_of
from cisskit.pipeline import NOTEBOOKS, Chain, Say, chains, run_chains
from cisskit.runs import find_runs
from cisskit.views.tables import BENCHMARK_COLUMNS, benchmark_rows, family_of, value

SCENARIOS = ("toy-5-2", "toy-5-1")
ABLATION_SCENARIO = SCENARIOS[0]
MEMORY = 16
"""Exemplars of DKD-M and SSUL-M: the share of the scenes' 1600 training images that 100 are of VOC's 10,582, and one batch."""


def names() -> list[str]:
    """Every method and its variants, oldest paper first, the bounds at the ends."""
    ids = [row["id"] for row in methods_table() if row["id"] != "joint"] + ["joint"]
    ids.remove("ft")
    return [name for method in ["ft", *ids] for name in variants_of(method)]


def ablations() -> list[str]:
    """Every ablation of every method."""
    return [name for row in methods_table() for name in ablations_of(row["id"])]


def todo(root: Path, seeds: Sequence[int], ablation_seeds: Sequence[int]) -> list[Chain]:
    """All chains of the benchmark, whole tables before ablations."""
    replaying = [name for name in (*names(), *ablations()) if getattr(configure(name, {})[0], "memory", 0)]
    memory = {name: {"memory": MEMORY} for name in replaying}
    common = {
        "setting": "overlap", "runs": str(root.resolve()), "device": "cpu", "data_root": "", "data_options": {}, "arch": "",
        "weights": "none", "protocol": "clean", "eval_size": "",
    }  # fmt: skip
    plans = [(scenario, [seed], names()) for seed in seeds for scenario in SCENARIOS]
    plans.append((ABLATION_SCENARIO, list(ablation_seeds), ablations()))
    return [chain for scenario, part, which in plans for chain in chains(scenario, which, part, memory, **common)]


def run(root: Path, seeds: Sequence[int], ablation_seeds: Sequence[int], jobs: int, say: Say = print) -> bool:
    """Train what is not finished; True when everything is. Runs on a CPU, as its numbers shall be the same everywhere."""
    return run_chains(todo(root, seeds, ablation_seeds), jobs, say, notebooks=False)


def collect(root: Path) -> pd.DataFrame:
    """One row per finished last step under ``root``: scenario, name, seed, network, and numbers as fractions.

    Raises `KitError` when there is none.
    """
    rows = []
    for last in find_runs(root):
        if last.step != len(last.scenario.steps) - 1:
            continue
        numbers = {column: value(last, *keys) for column, keys in BENCHMARK_COLUMNS.items()}
        settings = last.settings
        rows.append(
            {"scenario": settings["scenario"], "name": settings["method"], "seed": last.seed, "arch": settings["arch"], **numbers}
        )
    if not rows:
        raise KitError(f"no finished benchmark under {root}. Run it first: cisskit benchmark.")
    return pd.DataFrame(rows).sort_values(["scenario", "name", "seed"], ignore_index=True)


def render(table: pd.DataFrame) -> str:
    """The Markdown page: protocol, one table per scenario, ablations per method, and what the scenes can and cannot show."""
    parts = [INTRODUCTION.format(rule=_rule(), memory=MEMORY)]
    mains = {scenario: _whole(table[(table.scenario == scenario) & table["name"].isin(names())]) for scenario in SCENARIOS}
    for scenario, part in mains.items():
        if len(part):
            seeds = ", ".join(map(str, sorted(part.seed.unique())))
            parts.append(
                f"## {scenario}, overlap\n\nSeeds {seeds}; old 1-5, new 6-9, all 0-9.\n\n"
                + _markdown(benchmark_rows(part, names()))
            )
    parts.append("## Old classes against the plain baselines")
    for scenario, part in mains.items():
        if len(part):
            parts.append(_verdicts(part, scenario))
    parts.append(ON_LWF.format(weaker=_weaker(table)))
    parts.append(f"## What breaks without it\n\n{ABLATION_TEXT.format(scenario=ABLATION_SCENARIO)}")
    for row in methods_table():
        own = family_of(row["id"])
        part = table[(table.scenario == ABLATION_SCENARIO) & table["name"].isin(own)]
        ablated = part[part["name"].isin(ablations())]
        if len(ablated):
            part = part[part.seed.isin(ablated.seed)]
            parts.append(f"### {row['name']}\n\n{_markdown(benchmark_rows(part, own))}")
    parts.append(CLOSING)
    return "\n\n".join(parts) + "\n"


def write(root: Path, folder: Path = NOTEBOOKS) -> Path:
    """results.csv and RESULTS.md from the finished runs under ``root``; returns the page's path."""
    table = collect(root)
    write_text(folder / "results.csv", table.to_csv(index=False, float_format="%.4f"))
    page = folder / "RESULTS.md"
    write_text(page, render(table))
    return page


def _markdown(rows: pd.DataFrame) -> str:
    lines = [list(rows.columns), ["---"] * 3 + ["---:"] * (len(rows.columns) - 3), *rows.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _verdicts(main: pd.DataFrame, scenario: str) -> str:
    """Old classes of the five systems against FT and LwF, in words that follow from the numbers."""
    old = {name: 100 * main[main["name"] == name].old for name in main["name"].unique()}
    bars = {name: old[name].mean() for name in ("ft", "lwf") if name in old}
    if not bars:
        return "FT and LwF are not finished."
    high = max(bars.values())
    lines = [f"{scenario}, old [1-5]: " + ", ".join(f"{title_of(n)} {v:.1f}" for n, v in bars.items()) + "."]
    for method in ("dkd", "idec", "lag", "mbs", "amis"):
        own = {name: old[name].mean() for name in variants_of(method) if name in old}
        if not own:
            continue
        best = max(own, key=lambda name: own[name])
        spread = old[best].std(ddof=1) if len(old[best]) > 1 else 0.0
        said = ", ".join(f"{title_of(name)} {number:.1f}" for name, number in own.items())
        won = own[best] - high > max(3.0, 3 * float(np.nan_to_num(spread)))
        who = f"{title_of(best)} is " if len(own) > 1 else ""
        lines.append(f"- {said}: {who}" + ("clearly above both." if won else "**not clearly above both.**"))
    return "\n".join(lines)


def _whole(part: pd.DataFrame) -> pd.DataFrame:
    """Without the seeds that some method has not finished yet, unless that leaves nothing: all rows of a table share seeds."""
    finished = part.groupby("seed")["name"].nunique()
    seeds = finished.index[finished == part["name"].nunique()]
    return part[part.seed.isin(seeds)] if len(seeds) else part


def _weaker(table: pd.DataFrame) -> str:
    """What LwF keeps with a tenth of its weight, if that has been run."""
    old = table[(table.scenario == ABLATION_SCENARIO) & (table["name"] == "lwf-kd-10")].old
    return f" With a tenth of that weight (`lwf-kd-10` below) it keeps {100 * old.mean():.1f} of old classes." if len(old) else ""


def _rule() -> str:
    first, later = SCENES
    return (
        f"AdamW, {first.epochs} epochs at {first.lr:g}, then {later.epochs} per step at {later.lr:g}; one cycle; batch "
        f"{first.batch_size}; {' and '.join(later.freeze)} frozen after step 0"
    )


INTRODUCTION = """# Results on the embedded scenes

Made by `make benchmark` (resumable; it also writes [results.csv](results.csv), one row per chain). Numbers are percent: mean
and standard deviation over seeds of one confusion matrix over 250 test scenes of 64 x 64 pixels, last weights, full images;
pixels of classes that have not arrived are left out. "old" and "new" are means of IoU over base and later classes, without
background; "all" has the background. hIoU is the harmonic mean of old and new; "old → bg" the share of earlier steps' pixels
that are called background at the end; "forgetting" the mean loss of IoU since the best earlier step.

**One rule for all.** Every method keeps its published loss weights and thresholds. Only training is scaled to the scenes, by one
rule for all methods and networks, chosen on held-out scenes:
{rule}.

Exemplar memories hold {memory} images, the share that 100 are of VOC's. Saliency maps, used
by SSUL, IDEC and LAG, are perfect here and show every object, also those of later steps; the ablations without them tell what
that is worth. Weights are random at the start: there is nothing to pretrain on. Methods on different networks are not comparable
with each other: compare inside a network."""

ON_LWF = """\
"Clearly" is by more than three points and three standard deviations. FT forgets everything. LwF is hard to beat here: its
published weight of 100 is divided by the number of old channels, and with 6 to 9 of them instead of VOC's 16 to 20 distillation
outweighs cross-entropy more than ten times.{weaker} MBS and AMIS stand on the Segmenter, LwF on the CNN."""

ABLATION_TEXT = """One switch at a time on {scenario}, everything else as above. One seed says little about a
difference of a point or two; the standard deviations of the tables above say how much."""

CLOSING = """## What the scenes show, and what they do not

They show mechanisms: which method keeps old classes, what it pays in new ones, which term carries it, and that nothing here
is broken. Nine classes of clean shapes, a network from scratch and a few hundred iterations are kind to methods that adapt
quickly, and unkind to those that count on strong pretrained features: freezing a network that has seen five shapes is a
harder bet than freezing one that has seen ImageNet. Published loss weights were balanced for other numbers of classes,
channels and pixels. The ranking here is therefore **not** a ranking of the papers."""

__all__ = ["ablations", "collect", "names", "render", "run", "todo", "write"]
