"""Scenario: names, groups and channel slices."""

import pytest

from cisskit.errors import KitError
from cisskit.scenario import DATASETS, Scenario, Step


def test_steps_of_toy_5_2_by_hand():  # 5 + 2 + 2 classes: channel 0 background, 1..5, 6..7, 8..9
    steps = Scenario.named("toy-5-2").steps
    assert [(s.index, s.n_old, s.n_new, s.n_seen) for s in steps] == [(0, 0, 5, 5), (1, 5, 2, 7), (2, 7, 2, 9)]
    assert [s.known for s in steps] == [slice(0, 1), slice(0, 6), slice(0, 8)]
    assert [s.old for s in steps] == [slice(1, 1), slice(1, 6), slice(1, 8)]
    assert [s.new for s in steps] == [slice(1, 6), slice(6, 8), slice(8, 10)]


def test_known_and_new_cover_every_channel_once():
    for step in Scenario.named("voc-10-1").steps:
        channels = list(range(step.n_seen + 1))
        assert channels[step.known] + channels[step.new] == channels
        assert channels[step.old] == channels[step.known][1:]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("voc-15-1", [15, 1, 1, 1, 1, 1]), ("voc-19-1", [19, 1]), ("voc-5-3", [5] + [3] * 5), ("voc-10-10", [10, 10]),
        ("toy-3-2-4", [3, 2, 4]), ("toy-9", [9]), ("isprs-2-2-1", [2, 2, 1]), ("isprs-4-1", [4, 1]),
    ],
)  # fmt: skip
def test_names_give_group_sizes(text, sizes):
    scenario = Scenario.named(text)
    assert [len(g) for g in scenario.groups] == sizes
    assert scenario.order == tuple(range(1, sum(sizes) + 1))


@pytest.mark.parametrize(
    "text",
    ["voc-15-1", "toy-5-2", "toy-3-2-4", "isprs-2-2-1", "voc:person,chair/horse,cow", "voc:15/8,12/1", "toy:9/1,2,3/4,5,6,7,8"],
)
def test_text_is_read_back(text):
    scenario = Scenario.named(text, setting="disjoint")
    assert Scenario.named(scenario.text, setting="disjoint") == scenario


def test_groups_by_name_and_by_id_are_the_same():
    scenario = Scenario.named("voc: person, chair / horse")
    assert scenario == Scenario("voc", ((15, 9), (13,))) == Scenario.named("voc:15,9/13")
    assert scenario.classes == ("background", "person", "chair", "horse")
    assert scenario.base == range(1, 3)


def test_other_orders_have_other_names():
    one, two = Scenario.named("voc:1,2/3"), Scenario.named("voc:2,1/3")
    assert one.name != two.name and one.name.startswith("voc-2-1-") and "/" not in one.name and ":" not in one.name
    assert Scenario.named("voc-15-1").name == "voc-15-1"
    assert Scenario.named("toy-3-2-4").name == "toy-3-2-4"


def test_joint_has_one_step_with_every_class():
    scenario = Scenario.named("voc-15-1", setting="joint")
    assert scenario.steps == (Step(0, 0, 20),)
    assert scenario.base == range(1, 16)


def test_class_counts():
    assert {name: len(labels.names) for name, labels in DATASETS.items()} == {
        "toy": 9, "voc": 20, "ade": 150, "isprs": 5, "isprs_compat": 4, "camvid": 11,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "setting", "words"),
    [
        ("vok-15-1", "overlap", ["'vok'", "Did you mean 'voc'"]),
        ("voc-15-1", "overlapped", ["'overlapped'", "Did you mean 'overlap'"]),
        ("voc-15-2", "overlap", ["places 19 of the 20"]),
        ("voc-25-1", "overlap", ["places 26 of the 20"]),
        ("voc-15-0", "overlap", ["without classes"]),
        ("fifteen-one", "overlap", ["cannot read", "'voc-15-1'"]),
        ("voc:person,hors/cow", "overlap", ["'hors'", "Did you mean 'horse'"]),
        ("voc:person/person", "overlap", ["person", "twice"]),
        ("voc:21/1", "overlap", ["[21]", "1..20"]),
        ("voc:person//cow", "overlap", ["empty group"]),
        ("vok:1/2", "overlap", ["Did you mean 'voc'"]),
    ],
)
def test_mistakes_are_named(text, setting, words):
    with pytest.raises(KitError) as caught:
        Scenario.named(text, setting=setting)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_step_that_does_not_exist():
    with pytest.raises(KitError, match=r"steps 0\.\.2; step 3 was asked for"):
        Scenario.named("toy-5-2").step(3)
