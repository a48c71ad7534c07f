"""Images per step of every published task, computed from the real label files where they are there, and of ADE20K's rules."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cisskit.data import Voc, kept, select, select_test
from cisskit.data.base import partition, shows
from cisskit.errors import KitError
from cisskit.scenario import ORDERS, Scenario

GOLDEN = Path(__file__).parent / "golden"
IDEC = json.loads((GOLDEN / "idec/split_counts.json").read_text())


@pytest.fixture(scope="module")
def voc(shared, tmp_path_factory):
    archive = shared / "data/real/voc_labels_all.tar.gz"
    if not archive.is_file():
        pytest.skip("the 12,031 real label files (voc_labels_all.tar.gz) are not here")
    root = tmp_path_factory.mktemp("labels")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return Voc(root, labels_only=True)


def sizes(presence, scenario):
    return [int(select(presence, scenario, step.index).sum()) for step in scenario.steps]


def test_every_voc_task_and_order_of_idec(voc):
    train, val = voc.presence("train"), voc.presence("test")
    tasks = IDEC["voc"]["tasks"]
    assert len(tasks) == 32
    for task, published in tasks.items():
        for setting in ("overlap", "disjoint"):
            if task == "offline":
                scenario = Scenario.named("voc-20", setting="joint")
            else:
                scenario = Scenario.named(f"voc-{task}", setting=setting)
            groups = [c for group in published["classes_per_step"] for c in group if c]
            assert list(scenario.order) == groups, task
            assert sizes(train, scenario) == published[f"train_{setting}"], (task, setting)
            assert sizes(val, scenario) == published[f"val_{setting}"], (task, setting)


def test_data_limited_steps(voc):
    for task, rows in IDEC["data_limited_voc_overlap"]["tasks"].items():
        whole = sizes(voc.presence("train"), Scenario.named(f"voc-{task}"))[1:]
        for ratio, published in rows.items():
            assert [kept(n, float(ratio)) for n in whole] == published[-len(whole) :], (task, ratio)


def test_partitioned_puts_each_image_into_one_step(voc):
    scenario = Scenario.named("voc-15-1", setting="partitioned")
    presence = voc.presence("train")
    member = np.stack([select(presence, scenario, t) for t in range(6)])
    assert (member.sum(axis=0) == 1).all()
    for t, group in enumerate(scenario.groups):
        assert shows(presence, group)[member[t]].all()
    assert [int(n) for n in member.sum(axis=1)] == pytest.approx([9031, 254, 266, 270, 434, 327], abs=40)


def constructed(n=4000, seed=0):
    """Presence of ADE20K's kind: many classes per image, and some images without any."""
    rng = np.random.RandomState(seed)
    presence = np.zeros((n, 256), dtype=bool)
    presence[:, 1:151] = rng.random_sample((n, 150)) < np.geomspace(0.5, 0.002, 150)
    presence[:7] = False
    return presence


@pytest.mark.parametrize("task", ["100-50", "100-10", "100-5", "50-50", "50-20"])
def test_the_rules_on_data_like_ade20k(task):
    presence = constructed()
    overlap, disjoint = (Scenario.named(f"ade-{task}", setting=setting) for setting in ("overlap", "disjoint"))
    by_hand_overlap, by_hand_disjoint = [], []
    for t, group in enumerate(overlap.groups):
        later = {c for g in overlap.groups[t + 1 :] for c in g}
        shown = [set(np.flatnonzero(row)) for row in presence]
        by_hand_overlap.append(sum(bool(s & set(group)) for s in shown))
        by_hand_disjoint.append(sum(bool(s & set(group)) and not s & later for s in shown))
    assert sizes(presence, overlap) == by_hand_overlap and sizes(presence, disjoint) == by_hand_disjoint
    assert sum(by_hand_disjoint) == presence[:, 1:151].any(axis=1).sum()  # every image with a class, once
    assert select_test(presence, overlap, len(overlap.steps) - 1, "seen").sum() == 3993


def test_a_drawn_step_without_images_is_an_error():
    presence = np.zeros((3, 256), dtype=bool)
    presence[:, 1] = True
    scenario = Scenario.named("voc-1-1", setting="partitioned")
    assert partition(presence, scenario).tolist() == [0, 0, 0]
    with pytest.raises(KitError, match="bicycle .2. and was drawn for this step"):
        select(presence, scenario, 1)


def test_published_orders_are_permutations():
    assert "".join(ORDERS) == "bcdefghijklmnopqrstuvw" and len(set(ORDERS.values())) == 22
    assert all(sorted(order) == list(range(1, 21)) for order in ORDERS.values())
    scenario = Scenario.named("voc-15-1_b")
    assert scenario.groups[0][:3] == (12, 9, 20) and scenario.groups[1:] == ((17,), (3,), (6,), (18,), (10,))
    assert scenario.name == scenario.text == "voc-15-1_b" and Scenario.named("voc-10-1_b").order == scenario.order
    explicit = Scenario.named("voc:" + "/".join(",".join(map(str, group)) for group in scenario.groups))
    assert explicit.name == "voc-15-1_b"
    for text in ("voc-15-1_z", "toy-5-2_b"):
        with pytest.raises(KitError, match="unknown order"):
            Scenario.named(text)
