"""The embedded benchmark: what it plans, how it reads runs, what it writes."""

import pandas as pd
import pytest

from cisskit import benchmark
from cisskit.errors import KitError
from cisskit.method import available, method_class
from cisskit.pipeline import chains, run_chains
from cisskit.views.tables import BENCHMARK_COLUMNS, ablation_table, family_of

COMMON = {
    "setting": "overlap", "device": "cpu", "data_root": "", "arch": "", "weights": "none", "protocol": "clean", "eval_size": "",
    "data_options": {"train": 24, "heldout": 4, "test": 4},
}  # fmt: skip
QUICK = {"": {"epochs": 1, "batch_size": 8}}


def test_every_method_variant_and_ablation_is_planned(tmp_path):
    names = benchmark.names()
    assert names[0] == "ft" and names[-1] == "joint" and set(available()) <= set(names)
    assert {"dkd-m", "ssul-m", "idec-described", "lag-described"} <= set(names)
    assert not set(names) & set(benchmark.ablations())
    for method in ("dkd", "idec", "lag", "mbs", "amis"):
        assert len(method_class(method).ablations) >= 3
    todo = benchmark.todo(tmp_path, [0], [0])
    assert len(todo) == 2 * len(names) + len(benchmark.ablations())
    memory = {chain.method: chain.parameters["overrides"] for chain in todo}
    assert memory["dkd-m"] == memory["ssul-m"] == {"memory": benchmark.MEMORY} and memory["dkd"] == {}


def test_steps_without_notebooks_share_step_zero_and_resume(tmp_path):
    said = []
    for expected in (False, True):
        todo = chains("toy-5-4", ["ft", "mib", "idec", "idec-described"], [0], QUICK, runs=str(tmp_path), **COMMON)
        assert run_chains(todo, 2, said.append, notebooks=False)
        assert not list(tmp_path.rglob("*.ipynb"))
        assert all(("done before" in line) == expected for line in said if " step " in line)
        said.clear()
    table = benchmark.collect(tmp_path)
    assert sorted(table["name"]) == ["ft", "idec", "idec-described", "mib"] and list(table.columns[-6:]) == list(
        BENCHMARK_COLUMNS
    )
    first = [(tmp_path / f"toy-5-4-overlap/{m}/seed0/step0/confusion.npy").read_bytes() for m in ("ft", "mib")]
    assert first[0] == first[1]


def table(**old):
    rows = []
    for name, values in old.items():
        for seed, value in enumerate(values):
            numbers = dict.fromkeys(BENCHMARK_COLUMNS, 0.5) | {"old": value}
            name = name.replace("_", "-")
            rows.append({"scenario": "toy-5-2", "name": name, "seed": seed, "arch": "toy", **numbers})
    return pd.DataFrame(rows)


def test_the_page_says_who_is_above_the_baselines_and_who_is_not(tmp_path):
    page = benchmark.render(
        table(ft=(0.0, 0.01), lwf=(0.5, 0.52), dkd=(0.85, 0.86), idec=(0.4, 0.4), idec_described=(0.52, 0.53))
    )
    assert "toy-5-2, old [1-5]: FT 0.5, LwF 51.0." in page and "- DKD 85.5: clearly above both." in page
    assert "- IDEC (released) 40.0, IDEC (described) 52.5: IDEC (described) is **not clearly above both.**" in page
    assert "| DKD | dkd | toy | 85.5 ± 0.7 |" in page
    assert "{" not in page


def test_a_seed_that_is_not_finished_is_left_out_of_the_tables():
    page = benchmark.render(table(ft=(0.0, 0.0, 0.3), lwf=(0.5, 0.6)))
    assert "Seeds 0, 1;" in page and "| FT | ft | toy | 0.0 ± 0.0 |" in page


def test_ablation_table_keeps_to_the_seeds_of_the_ablations(tmp_path):
    file = tmp_path / "results.csv"
    table(mbs=(0.8, 0.6), mbs_no_lgod=(0.7,)).to_csv(file, index=False)
    rows = ablation_table("mbs", file=file)
    assert rows["run as"].tolist() == ["mbs", "mbs-no-lgod"] and rows["old"].tolist() == ["80.0", "70.0"]
    assert family_of("mbs")[:2] == ["mbs", "mbs-no-spl"]
    with pytest.raises(KitError, match="make benchmark"):
        ablation_table("mbs", file=tmp_path / "none.csv")


def test_nothing_to_collect_is_said(tmp_path):
    with pytest.raises(KitError, match="Run it first: cisskit benchmark"):
        benchmark.collect(tmp_path)
