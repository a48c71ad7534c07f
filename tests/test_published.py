"""Published numbers: the table, its metrics taken apart, and what of it a run may stand beside."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cisskit import published
from cisskit.errors import KitError
from cisskit.metrics import summarise
from cisskit.protocols import PROTOCOLS, protocol
from cisskit.published import RULES, compare, parse, rows
from cisskit.runs import Run, folder_of
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit

VOC = {"train_list": "train_aug", "test_list": "val", "labels": "SegmentationClassAug"}


# --- the table ---


def test_the_table_is_the_shared_one(shared):
    there = (shared / "data/published.csv").read_bytes()  # which ends lines as DOS does
    assert published.FILE.read_bytes() == there.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mIoU old [0-15]", ("mIoU old", "old", (0, 15))),
        ("mIoU new [20]", ("mIoU new", "new", (20, 20))),
        ("mIoU [101-110]", ("mIoU", "range", (101, 110))),
        ("mIoU old [base 100]", ("mIoU old", "old", None)),
        ("mIoU all [150 classes; background unclear]", ("mIoU all", "all", None)),
        ("hIoU (old with background)", ("hIoU", "hIoU", None)),
        ("mIoU all mean over steps", ("mIoU mean over steps", "mean over steps", None)),
    ],
)
def test_metrics_taken_apart(text, parts):
    assert parse(text) == parts


def test_a_metric_that_is_none():
    with pytest.raises(KitError, match="cannot read the metric 'accuracy'"):
        parse("accuracy")


def test_every_row_can_be_read():
    table = rows()
    assert len(table) == 1188 and table["value"].between(0, 100).all()
    assert set(table["part"]) == set(published.PARTS)
    assert table["classes"].notna().sum() == 1188 - table["metric"].str.contains("base|unclear|hIoU|steps").sum()
    assert set(table["protocol"]) == {*PROTOCOLS, ""} - {"clean"}
    assert set(RULES) <= set(table["source"]) and {rules.protocol for rules in RULES.values()} <= set(PROTOCOLS)


def test_rows_are_found_by_value():
    found = rows(method="mib", dataset="voc", task="15-1", setting="overlap", metric="mIoU all", classes="1-20")
    assert found["value"].tolist() == [29.7] and found["source"].tolist() == ["MiB README (its Table 1)"]
    assert set(rows(dataset="ade")["dataset"]) == {"ADE20K"} and len(rows(dataset="ADE20K")) == len(rows(dataset="ade"))
    assert set(rows(memory=100)["memory"]) == {"100"} and set(rows(backbone="vit-b/16")["backbone"]) == {"ViT-B/16"}
    assert set(rows(metric="mean over steps")["part"]) == {"mean over steps"}
    found["value"] = 0.0
    assert rows(method="MiB")["value"].gt(0).any(), "a copy"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "MIBB"}, "unknown method .*'MIBB'.*MiB, MiB"),
        ({"task": "15-2"}, "unknown task .*'15-2'. Did you mean '15-5'.*19-1"),
        ({"dataset": "camvid"}, "unknown dataset .*ADE20K, ISPRS Potsdam, VOC"),
        ({"setting": "both"}, "unknown setting .*disjoint"),
        ({"metric": "F1"}, "unknown metric .*mIoU old"),
        ({"classes": "3-4"}, "unknown classes .*0-20"),
    ],
)
def test_unknown_values_list_what_exists(asked, message):
    with pytest.raises(KitError, match=message):
        rows(**asked)


# --- runs ---


def made(
    root: Path, scenario: str, rules: str, *, step: int | None = None, setting: str = "overlap", eval_size: str = "", **changes
):
    """A finished run with made-up numbers. changes: settings ("recipe.ratio" for a nested one); only_last: no earlier steps;
    lost: a class that is never found."""
    task = Scenario.named(scenario, setting=setting)
    how = protocol(rules, task, eval_size)
    last = len(task.steps) - 1 if step is None else step
    n = len(task.classes)
    settings = {
        "scenario": task.text, "setting": setting, "labels": None, "protocol": how.settings(), "method": "dkd", "seed": 0,
        "arch": "deeplabv3_resnet101", "weights": "imagenet", "recipe": {"ratio": 1.0}, "fields": {"memory": 0},
        "data": {"source": VOC if task.dataset == "voc" else {}, "test_images": {"voc": 1449, "ade": 2000}.get(task.dataset, 5)},
    }  # fmt: skip
    only_last, lost = changes.pop("only_last", False), changes.pop("lost", None)
    for name, value in changes.items():
        inner, _, key = name.rpartition(".")
        (settings[inner] if inner else settings)[key] = value
    for t in range(last if only_last else 0, last + 1):
        seen = task.step(t).n_seen + 1
        counts = np.zeros((n, n), dtype=np.int64)
        counts[:seen, :seen] = 1 + 40 * np.diag(1 + np.arange(seen))  # classes differ, so do all means
        if lost is not None:
            counts[lost, lost] = 0
        folder = folder_of(root, task, rules, settings["method"], 0, t)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"settings": settings | {"step": t}}))
        (folder / "metrics.json").write_text(json.dumps(summarise(counts, task, task.step(t), how)))
        np.save(folder / "confusion.npy", counts)
        for name in ("history.csv", "model.safetensors"):
            (folder / name).touch()
    return Run.load(folder)


def reason(table: pd.DataFrame, **where) -> set[str]:
    """All entries of the last column among rows with these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table), where
    return set(table.iloc[:, -1])


def test_a_run_by_a_papers_protocol_stands_beside_its_numbers(tmp_path):
    run = made(tmp_path, "voc-15-1", "dkd")
    found = compare(run)
    table = found.matching
    assert set(table["protocol"]) == {"dkd", "plop"}, "after the last step, and with every class there, PLOP's rules are DKD's"
    assert table["method"].iloc[0] == "DKD", "its own method first"
    miou, percent = run.metrics["miou"], lambda v: pytest.approx(100 * v, abs=0.01)
    values = table.drop_duplicates("metric").set_index("metric")["run"]
    assert values["mIoU old [0-15]"] == percent(miou["old_with_background"]["value"])
    assert values["mIoU new [16-20]"] == percent(miou["new"]["value"])
    assert values["mIoU all [0-20]"] == percent(miou["all_with_background"]["value"])
    assert values["hIoU (old with background)"] == percent(run.metrics["hiou"]["value"])
    dkd = table[(table["method"] == "DKD") & (table["metric"] == "mIoU old [0-15]")].iloc[0]
    assert dkd["difference"] == pytest.approx(dkd["run"] - dkd["published"], abs=0.01)
    assert dkd["published"] in rows("DKD", "VOC", "15-1", "overlap", "mIoU old")["value"].tolist()
    everything = len(rows(dataset="VOC", task="15-1"))
    assert len(table) + len(found.other_rules) + len(found.left_out) == everything
    assert "dkd on voc-15-1, overlap (backbone ResNet-101, memory 0, protocol dkd)" in found.text
    assert f"{len(table)} published numbers match" in found.text


def test_the_mean_over_steps_comes_from_the_whole_chain(tmp_path):
    run = made(tmp_path / "whole", "voc-15-1", "plop")
    table = compare(run).matching.set_index("metric")
    steps = [each.metrics["miou"]["all_with_background"]["value"] for each in run.chain]
    assert len(steps) == 6 and table.loc["mIoU all mean over steps", "run"].iloc[0] == pytest.approx(
        100 * np.mean(steps), abs=0.01
    )
    alone = compare(made(tmp_path / "alone", "voc-15-1", "plop", only_last=True))
    assert "mIoU all mean over steps" not in set(alone.matching["metric"])
    why = reason(alone.left_out, metric="mIoU all mean over steps", method="PLOP", source="PLOP README")
    assert why == {"a mean over steps, and the earlier steps of the run are not there"}


def test_rules_of_other_papers_stand_apart(tmp_path):
    other = compare(made(tmp_path, "voc-15-1", "dkd")).other_rules
    mib = reason(other, source="MiB README (its Table 1)", metric="mIoU old [1-15]")
    assert mib == {"void pixels in training: background there, ignored here"}
    assert reason(other, source="SSUL README") == {
        "size of test images: crop513 there, crop512 here; checkpoint: best of 100 there, last here"
    }
    assert reason(other, source="RCIL README (quoted)") == {"the source does not state its rules"}


def test_the_kits_own_protocol_matches_nothing_and_says_what_differs(tmp_path):
    found = compare(made(tmp_path, "voc-15-1", "clean"))
    assert found.matching.empty and "No paper follows the kit's own protocol" in found.text
    assert reason(found.other_rules, source="PLOP README", metric="mIoU all [0-20]") == {
        "size of test images: crop512 there, full here"
    }
    assert reason(found.other_rules, source="PLOP README", metric="mIoU all mean over steps") == {
        "size of test images: crop512 there, full here; classes to come: background there, not scored here; "
        "images of each step: seen there, all here"
    }
    row = found.other_rules.set_index("metric").loc["mIoU old [0-15]"].iloc[0]
    assert row["difference"] == pytest.approx(row["run"] - row["published"], abs=0.01)


def test_another_size_is_another_rule(tmp_path):
    found = compare(made(tmp_path, "voc-15-1", "dkd", eval_size="full"))
    assert found.matching.empty
    log = "LAG repository history; training log (final test)"
    assert reason(found.other_rules, source=log) == {"checkpoint: best of 100 there, last here"}, "LAG's log is of full images"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"arch": "toy"}, "backbone ResNet-101, the run has toy"),
        ({"fields.memory": 100}, "memory 0, the run has 100"),
        ({"setting": "disjoint"}, "setting overlap, the run has disjoint"),
        ({"recipe.ratio": 0.5}, "data at incremental steps 100%, the run has 50%"),
        ({"scenario": "voc-15-1_b"}, "class order natural, the run has b"),
        ({"step": 2}, "evaluated after step 5, the last; the run is at step 2"),
        ({"data.source": {**VOC, "train_list": "train"}}, "train list train_aug, the run has train"),
    ],
)
def test_left_out_with_the_reason(tmp_path, changes, why):
    found = compare(made(tmp_path, **{"scenario": "voc-15-1", "rules": "dkd", **changes}))
    table = found.left_out
    dkd = table[(table["source"] == "DKD README (mean of 5 runs; commented block)") & (table["method"] == "DKD")]
    assert len(dkd) and set(dkd["why"]) == {why}
    assert "DKD" not in set(found.matching[found.matching["memory"] == "0"]["method"]) or changes == {"setting": "disjoint"}


def test_memory_setting_and_reduced_data_match_their_rows(tmp_path):
    memory = compare(made(tmp_path / "m", "voc-15-1", "dkd", method="dkd-m", **{"fields.memory": 100})).matching
    assert set(memory["method"]) == {"DKD-M"} and set(memory["memory"]) == {"100"}
    disjoint = compare(made(tmp_path / "d", "voc-15-1", "dkd", setting="disjoint")).matching
    assert set(disjoint["setting"]) == {"disjoint"}
    reduced = compare(made(tmp_path / "r", "voc-15-1", "idec", method="lag", **{"recipe.ratio": 0.25})).matching
    assert set(reduced["method"]) == {"LAG"} and set(reduced["setting"]) == {"overlap (25% of the data at incremental steps)"}


def test_unclear_metrics_are_left_out(tmp_path):
    left = compare(made(tmp_path / "ade", "ade-100-10", "dkd")).left_out
    assert reason(left, metric="mIoU old [base 100]", method="RCIL") == {"the source does not say whether background counts"}
    left = compare(made(tmp_path / "voc", "voc-15-5", "dkd")).left_out
    assert any("the source contradicts itself" in why for why in reason(left, metric="mIoU all [20 classes; background unclear]"))
    assert reason(
        left, metric="mIoU all mean over steps", method="MiB", source="REMINDER README (result figures) (rerun or quoted)"
    ) == {"the source does not say whether background counts"}


def test_a_means_own_range_and_zeros_that_a_protocol_drops(tmp_path):
    run = made(tmp_path, "ade-100-50", "mbs", arch="segmenter_vit_b16", lost=120)
    found = compare(run)
    miou = run.metrics["miou"]
    assert miou["all"]["value"] > miou["all_without_background"]["value"] + 0.001, "the zero is left out"
    amis = found.matching[found.matching["method"] == "AMIS"].set_index("metric")["run"]
    assert amis["mIoU all [1-150]"] == pytest.approx(100 * run.metrics["miou"]["all"]["value"], abs=0.01)
    assert set(found.matching["method"]) == {"AMIS", "MBS"}, "other rows of that table are quoted from elsewhere"
    groups = compare(made(tmp_path / "mib", "ade-50-50", "mib", setting="joint", method="joint"))
    joint = groups.matching.set_index("metric")
    iou = list(Run.load(tmp_path / "mib/ade-50-50-joint-mib/joint/seed0/step0").metrics["iou"].values())
    assert joint.loc["mIoU [51-100]", "run"] == pytest.approx(100 * np.mean(iou[51:101]), abs=0.01)


def test_classes_without_a_test_pixel_make_their_treatment_matter(tmp_path):
    run = made(tmp_path, "voc-15-1", "dkd")
    counts = run.confusion
    counts[7] = 0
    np.save(run.folder / "confusion.npy", counts)
    other = compare(run).other_rules
    assert "classes without a test pixel: left out there, 0 here" in reason(other, source="PLOP README", metric="mIoU all [0-20]")


def test_random_weights_and_fewer_test_images_are_said(tmp_path):
    found = compare(made(tmp_path, "voc-15-1", "dkd", weights=None, **{"data.test_images": 50}))
    assert reason(found.other_rules, source="STAR README") == {
        "test images: 1449 there, 50 here; backbone starts from: imagenet there, random weights here"
    }


def test_isprs_needs_the_published_numbering_and_a_setting(tmp_path):
    source = {"data.source": {"site": "potsdam", "later_site": ""}, "data.test_images": 1400}
    found = compare(made(tmp_path / "compat", "isprs_compat-2-2-1", "idec", **source))
    assert reason(found.other_rules, method="IDEC") == {"the source does not state the setting"}
    own = compare(made(tmp_path / "own", "isprs-2-2-1", "idec", **source))
    assert own.matching.empty and own.other_rules.empty
    assert "class 0 is impervious surface there" in next(iter(reason(own.left_out, method="IDEC")))
    other = {"data.source": {"site": "vaihingen", "later_site": ""}}
    there = compare(made(tmp_path / "site", "isprs_compat-2-2-1", "idec", **other))
    assert "site potsdam, the run has vaihingen" in reason(there.left_out, method="IDEC")


def test_tasks_that_nobody_published(tmp_path):
    found = compare(made(tmp_path, "voc:person,cat/dog", "clean"))
    assert found.matching.empty and set(found.left_out["why"]) == {found.text.split(": ")[1].rstrip(".")}
    assert "no published numbers for voc 2-1-" in found.text


def test_a_real_run_on_the_scenes(tmp_path):
    tiny = {"data_options": {"train": 24, "test": 4, "heldout": 1}, "overrides": {"epochs": 1}}
    ctx = begin("toy-5-2", "ft", 0, runs=tmp_path, **tiny)
    fit(ctx, bar=False)
    evaluate(ctx)
    found = compare(ctx.run)
    assert found.matching.empty and found.other_rules.empty and len(found.left_out) == len(rows())
    assert set(found.left_out["why"]) == {"no published numbers for the scenes"}
    assert found.text.endswith("no published numbers for the scenes.")


def test_html_sums_up_what_is_left_out(tmp_path):
    page = compare(made(tmp_path, "voc-15-1", "dkd"))._repr_html_()
    assert page.startswith("<p>dkd on voc-15-1") and page.count("<details") == 3 and page.count("<details open>") == 1
    assert "Left out: " in page and "backbone ViT-B/16, the run has ResNet-101" in page
