"""Pictures of scenarios: what belongs to a step, what its labels hide, one matrix by every protocol, and the controls."""

import subprocess
import sys
from dataclasses import replace

import layouts
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words

from cisskit.data import Data, Toy, open_source, select
from cisskit.errors import KitError
from cisskit.metrics import summarise
from cisskit.protocols import PROTOCOLS, protocol
from cisskit.scenario import SETTINGS, Scenario
from cisskit.views import scenarios, style

TASK = Scenario.named("toy-5-2")


@pytest.fixture(scope="module")
def scenes():
    return Toy(train=80, heldout=1, test=12)


class Known(Toy):
    """Four images that show: a base class; base and step 1; step 1 and 2; base and step 2. And one that shows nothing."""

    def pixels(self, split):
        table = np.zeros((5, 256), dtype=np.int64)
        for image, classes in enumerate(((1,), (2, 6), (7, 8), (3, 9), ())):
            table[image, list(classes)] = 7
        return table


@pytest.fixture(scope="module")
def known():
    return Known(train=5, heldout=1, test=5)


# --- membership and what is hidden ---


@pytest.mark.parametrize(
    ("setting", "table"),
    [  # . not in the step, n nothing, o old, f future, b both
        ("overlap", ["n..", "fo.", ".fo", "f.o", "..."]),
        ("disjoint", ["n..", ".o.", "..o", "..o", "..."]),
        ("sequential", ["n..", ".n.", "..n", "..n", "..."]),
        ("joint", ["n", "n", "n", "n", "n"]),
    ],
)
def test_what_labels_hide_by_hand(known, setting, table):
    kinds = scenarios.hidden_kinds(known, replace(TASK, setting=setting))
    assert ["".join(".nofb"[k] for k in row) for row in kinds] == table


def test_both_needs_a_step_between():
    scenario = Scenario.named("toy:7/6/8,2,1,3,9")
    both = np.zeros((1, 256), dtype=np.int64)
    both[0, [7, 6, 8]] = 7
    source = type("One", (Known,), {"pixels": lambda self, split: both})(train=1, heldout=1, test=1)
    assert scenarios.hidden_kinds(source, scenario).tolist() == [[3, 4, 2]]


def test_partitioned_images_come_once(scenes):
    kinds = scenarios.hidden_kinds(scenes, replace(TASK, setting="partitioned"))
    assert ((kinds > 0).sum(axis=1) <= 1).all() and (kinds > 0).sum() == (scenes.presence("train")[:, 1:10].any(axis=1)).sum()


def test_kinds_agree_with_the_labels_themselves(scenes):
    data = Data(TASK, scenes)
    kinds = scenarios.hidden_kinds(scenes, TASK)
    for image in range(20):
        for step in TASK.steps:
            assert (kinds[image, step.index] > 0) == (image in data.members(step.index))
            told, truth = (data.sample("train", image, step.index, use=use)[1].numpy() for use in ("train", "truth"))
            hidden = {kind for kind, where in scenarios.hidden_by(truth, told, step).items() if where.any()}
            if kinds[image, step.index]:
                name = list(style.HIDES)[kinds[image, step.index] - 1]
                assert hidden == {"nothing": set(), "both": {"old", "future"}}.get(name, {name})


def test_increments_of_domain_keep_their_images(scenes, monkeypatch):
    first = np.arange(80) < 40
    monkeypatch.setattr(Toy, "allowed", lambda self, scenario: np.stack([first, ~first, ~first], axis=1))
    taken = scenarios.hidden_kinds(scenes, TASK) > 0
    assert not taken[40:, 0].any() and not taken[:40, 1:].any() and taken.any(axis=0).all()


def test_lists_that_choose_by_other_classes_do_not_decide_what_is_hidden(known, monkeypatch):
    listed = np.zeros((5, 256), dtype=bool)
    listed[0, 6] = True  # the list of step 1 names an image that shows class 1 alone
    monkeypatch.setattr(Known, "presence", lambda self, split: listed)
    assert scenarios.hidden_kinds(known, TASK)[0].tolist() == [0, 2, 0]


def test_a_step_without_images_is_empty_and_no_error(known):
    scenario = Scenario.named("toy:1/4/6")
    assert (scenarios.hidden_kinds(known, scenario) > 0).sum(axis=0).tolist() == [1, 0, 1]
    with pytest.raises(KitError, match="no training image"):
        select(known.presence("train"), scenario, 1)


def test_counts_are_those_of_the_data(scenes):
    table = scenarios.counts(scenes, scenarios.in_settings(TASK))
    assert list(table.index) == list(SETTINGS)
    for setting in SETTINGS:
        data = Data(replace(TASK, setting=setting), scenes)
        steps = [len(data.members(step.index)) for step in data.scenario.steps]
        assert [n for n in table.loc[setting, [c for c in table if c.startswith("step ")]] if n != ""] == steps
    assert table.loc["disjoint", "in two steps or more"] == 0 < table.loc["overlap", "in two steps or more"]
    assert table.loc["joint", "step 1"] == ""


def test_orders():
    assert scenarios.reordered(TASK, "reversed").groups == ((9, 8, 7, 6, 5), (4, 3), (2, 1))
    mixed = scenarios.reordered(TASK, "random", 3)
    assert mixed == scenarios.reordered(TASK, "random", 3) != scenarios.reordered(TASK, "random", 4)
    assert sorted(mixed.order) == sorted(TASK.order) and scenarios.reordered(mixed) == TASK
    with pytest.raises(KitError, match="unknown order 'backwards'"):
        scenarios.reordered(TASK, "backwards")


def test_the_telling_image_takes_part_in_most_steps(scenes):
    image = scenarios.telling_images(scenes, replace(TASK, setting="disjoint"))[0]
    taken = (scenarios.hidden_kinds(scenes, TASK) > 0).sum(axis=1)
    assert taken[image] == taken.max() == 3
    several = scenarios.telling_images(scenes, TASK, 5)
    assert several[0] == image and len(set(several)) == 5 and list(taken[several]) == sorted(taken[several])[::-1]


def test_cooccurrence_by_hand(known):
    share = scenarios.cooccurrence(known.presence("train"), Scenario.named("toy:6/2,4"))
    assert np.array_equal(share, [[1, 1, 0], [1, 1, 0], [np.nan] * 3], equal_nan=True)


def test_published_tasks_are_counted(tmp_path):
    layouts.write("voc", tmp_path)
    source = open_source("voc", tmp_path)
    table = scenarios.published_tasks(source).set_index(["task", "setting"])
    assert table.loc[("15-1", "overlap"), "training images"] == "12, 0, 0, 0, 0, 0"
    presence = source.presence("train")
    first = presence[:, 1:6].any(axis=1)
    assert table.loc[("5-3", "overlap"), "training images"].startswith(f"{first.sum()}, ")
    assert table.loc[("5-3", "disjoint"), "training images"].startswith(f"{(first & ~presence[:, 6:21].any(axis=1)).sum()}, ")
    seen = source.presence("test")[:, 1:6].any(axis=1).sum()
    assert table.loc[("5-3", "overlap"), "test images with a seen class"].startswith(f"{seen}, ")
    assert table.loc[("15-1", "overlap"), "steps"] == 6


# --- pictures ---


def test_hidden_panels_show_the_same_rows_and_all_meanings(scenes):
    settings = scenarios.in_settings(TASK)
    fig = drawn(scenarios.figure_hidden(scenes, settings, most=30))
    assert [ax.get_title() for ax in fig.axes] == list(SETTINGS)
    overlap, disjoint = (ax.collections[0].get_array().reshape(-1, 3) for ax in fig.axes[:2])
    assert overlap.shape == disjoint.shape == (30, 3)
    assert (overlap[disjoint > 0] > 0).all(), "what is in a disjoint step is in the same overlap step: the rows agree"
    colours = [to_rgb(c) for c in fig.axes[0].collections[0].get_cmap().colors]
    assert colours == [to_rgb("white"), *(to_rgb(colour) for colour, _ in style.HIDES.values())]
    assert fig.axes[0].get_ylabel() == f"30 of {(scenes.presence('train')[:, 1:10].any(axis=1)).sum()} images"
    assert legend_words(fig) == [*(f"hides {words}" for _, words in style.HIDES.values()), "not in this step"]


def test_bars_are_stacked_by_what_is_hidden(known):
    ax = scenarios.plot_counts(scenarios.hidden_kinds(known, TASK), Figure().subplots())
    heights = np.array([patch.get_height() for patch in ax.patches]).reshape(len(style.HIDES), 3)
    assert heights.tolist() == [[1, 0, 0], [0, 1, 2], [2, 1, 0], [0, 0, 0]]
    assert [text.get_text() for text in ax.texts] == ["3", "2", "2"]
    assert ax.patches[3].get_facecolor()[:3] == to_rgb(style.HIDES["old"][0])


def test_one_axis_holds_the_highest_bar_of_all(scenes):
    fig = drawn(scenarios.figure_counts(scenes, scenarios.in_settings(TASK)))
    assert all(ax.get_ylim() == (0, scenarios.ROOM * 80) for ax in fig.axes)


def test_told_grid_marks_cells_and_hidden_classes(scenes):
    image = scenarios.telling_images(scenes, TASK)[0]
    fig = drawn(scenarios.figure_told(scenes, scenarios.in_settings(TASK), image))
    cells = np.array(fig.axes).reshape(6, 3)
    assert [cells[0, 0].get_title(), cells[0, 1].get_title()] == ["image", "really there"]
    assert [ax.get_title() for ax in cells[1]] == ["step 0\nclasses 1-5", "step 1\nclasses 6-7", "step 2\nclasses 8-9"]
    assert [ax.get_ylabel() for ax in cells[1:, 0]] == list(SETTINGS)
    words = [[" ".join(text.get_text() for text in ax.texts) for ax in row] for row in cells[1:]]
    assert words[0] == ["", "", ""] and words[1] == ["not in\nthis step", "not in\nthis step", ""]
    assert words[4] == ["", "one step,\nall classes", ""]
    assert {"old class, labelled background", "future class, labelled background"} <= set(legend_words(fig))
    hatches = [{h for c in ax.collections for h in getattr(c, "hatches", [])} for ax in cells[1]]
    assert hatches == [{"...."}, {"////", "...."}, {"////"}]
    assert not cells[3, 2].collections, "sequential tells the old classes"


def test_long_scenarios_show_steps_in_which_the_image_takes_part(scenes):
    scenario = Scenario.named("toy-1-1")
    image = scenarios.telling_images(scenes, scenario)[0]
    fig = drawn(scenarios.figure_told(scenes, {"overlap": scenario}, image))
    titles = [ax.get_title().split("\n")[0] for ax in fig.axes if ax.get_title().startswith("step")]
    taking = np.flatnonzero(scenarios.hidden_kinds(scenes, scenario)[image])
    assert len(scenario.steps) == 9 > len(titles) and titles == [f"step {t}" for t in taking]


def test_some_steps():
    assert scenarios.some(range(5)) == [0, 1, 2, 3, 4]
    assert scenarios.some([*range(19)], most=4) == [0, 6, 12, 18]


def test_the_heat_map_stands_in_order_of_arrival(known):
    scenario = Scenario.named("toy:6/2,4")
    ax = scenarios.plot_cooccurrence(scenarios.cooccurrence(known.presence("train"), scenario), scenario, Figure().subplots())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(scenario.classes[1:])
    assert sorted({line.get_ydata()[0] for line in ax.get_lines() if len(set(line.get_ydata())) == 1}) == [0.5]
    assert [text.get_text() for text in ax.texts] == ["100", "0", "100", "0"]  # a class without images has no numbers
    assert ax.images[0].get_clim() == (0, 100)


def test_the_opening_picture_needs_nothing():
    assert len(drawn(scenarios.figure_problem()).axes) == 18


# --- one matrix, many numbers ---


@pytest.mark.parametrize("name", ["toy-5-2", "toy-3-3", "toy:1/2/3", "voc-15-1", "ade-100-10"])
def test_the_made_up_matrix_can_be_scored_after_every_step(name):
    scenario = Scenario.named(name)
    for step in scenario.steps:
        matrix = scenarios.made_up(scenario, step)
        assert matrix.dtype == np.int64 and (matrix >= 0).all()
        assert summarise(matrix, scenario, step, protocol("clean", scenario))["miou"]["all"]["value"] > 0
        drawn(scenarios.figure_protocols(matrix, scenario, step))


def test_every_protocol_scores_the_made_up_matrix_as_summarise_does():
    step = TASK.step(1)
    matrix = scenarios.made_up(TASK, step)
    table = scenarios.protocol_table(matrix, TASK, step)
    assert list(table.index) == list(PROTOCOLS)
    for name in PROTOCOLS:
        miou = summarise(matrix, TASK, step, protocol(name, TASK))["miou"]
        for part in ("old", "new", "all"):
            assert table.loc[name, part] == f"{100 * miou[part]['value']:.1f} [{miou[part]['classes']}]"
    assert table["all"].nunique() == 6, "six numbers; SSUL's and IDEC's rules agree on one matrix"
    assert table.loc["plop", "future pixels"] == "background" and table.loc["mbs", "IoU of 0"] == 'left out of "all"'


def test_each_change_moves_what_it_must():
    step = TASK.step(1)
    table = scenarios.change_table(scenarios.made_up(TASK, step), TASK, step)
    moved = {words: {part for part in table if value[part]} for words, value in table.iloc[1:].to_dict("index").items()}
    assert list(moved.values()) == [{"new", "all"}, {"old", "all"}, {"all"}, {"old"}, {"all"}]
    last = scenarios.change_table(scenarios.made_up(TASK, TASK.step(2)), TASK, TASK.step(2))
    assert not any(last.iloc[1]), "nothing is to come after the last step"


def test_dots_stand_at_the_values_and_name_their_classes():
    step = TASK.step(1)
    matrix = scenarios.made_up(TASK, step)
    fig = drawn(scenarios.figure_protocols(matrix, TASK, step, title="made up"))
    old = fig.axes[0]
    assert [tick.get_text() for tick in old.get_yticklabels()] == list(PROTOCOLS)
    dots = [line for line in old.get_lines() if line.get_marker() == "o"]
    for dot, text, name in zip(dots, old.texts, PROTOCOLS, strict=True):
        miou = summarise(matrix, TASK, step, protocol(name, TASK))["miou"]["old"]
        assert dot.get_xdata()[0] == pytest.approx(100 * miou["value"])
        assert text.get_text().endswith(f"[{miou['classes']}]")
        assert (dot.get_markerfacecolor() == "white") == (not miou["classes"].startswith("0"))
    assert fig.get_suptitle() == "made up"


def test_step_0_has_no_new_classes():
    table = scenarios.protocol_table(scenarios.made_up(TASK, TASK.step(0)), TASK, TASK.step(0))
    assert set(table["new"]) == {"–"}
    changes = scenarios.change_table(scenarios.made_up(TASK, TASK.step(0)), TASK, TASK.step(0))
    assert set(changes["new"]) <= {"–", ""}


# --- looking around ---


def test_what_can_be_opened(tmp_path, scenes):
    assert list(scenarios.openable(scenes)) == ["toy"]
    layouts.write("camvid", tmp_path)
    camvid = open_source("camvid", tmp_path)
    assert list(scenarios.openable(camvid, str(tmp_path))) == ["camvid", "toy"]
    assert set(scenarios.openable(scenes, str(tmp_path))) == {"toy", "camvid"}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("5-2", TASK.groups),
        (" toy-5-2 ", TASK.groups),
        ("9,8/1", ((9, 8), (1,))),
        ("toy:9/1", ((9,), (1,))),
        ("dotted star/3", ((5,), (3,))),
    ],
)
def test_a_task_in_words(scenes, text, groups):
    assert scenarios.chosen(scenes, text, "disjoint") == Scenario("toy", groups, "disjoint")


def test_own_data_bring_their_classes(tmp_path):
    layouts.write("folder", tmp_path)
    source = open_source("folder", tmp_path)
    assert scenarios.chosen(source, "3-3", "overlap").labels == source.labels


def test_a_wrong_task_says_so(scenes):
    with pytest.raises(KitError, match="places 6 of the 9 classes"):
        scenarios.chosen(scenes, "3-2-1", "overlap")


@pytest.fixture
def controls(scenes, monkeypatch):
    """The widget's controls by name, and every (task, setting, step) that was drawn."""
    seen = []
    real = scenarios.figure_scenario
    monkeypatch.setattr(
        scenarios, "figure_scenario", lambda source, s, t: seen.append((s.text, s.setting, t)) or real(source, s, t)
    )
    box = scenarios.explore_scenario({"toy": scenes}, TASK, 1)
    found = {child.description: child for row in box.children[:3] for child in row.children}
    return found | {"said": box.children[3], "out": box.children[4]}, seen


def test_controls_draw_once_and_at_once(controls, capsys):
    found, seen = controls
    assert seen == [("toy-5-2", "overlap", 1)], "a static picture first"
    found["setting"].value = "disjoint"
    found["step"].value = 2
    found["task"].value = "5-1"
    found["order"].value = "reversed"
    assert seen[1:3] == [("toy-5-2", "disjoint", 1), ("toy-5-2", "disjoint", 2)]
    assert seen[3] == ("toy-5-1", "disjoint", 2) and found["step"].max == 4
    assert seen[4][0].startswith("toy:dotted crescent,checked disc") and len(seen) == 5
    found["seed"].value = 7
    assert len(seen) == 6


def test_a_shorter_scenario_moves_the_slider_back(controls):
    found, seen = controls
    found["step"].value = 2
    found["setting"].value = "joint"
    assert seen[-1] == ("toy-5-2", "joint", 0) and found["step"].value == 0 and len(seen) == 3


def test_a_wrong_own_task_is_said_and_nothing_is_raised(controls):
    found, seen = controls
    found["or"].value = "3-2-1"
    assert "places 6 of the 9 classes" in found["said"].value and len(seen) == 1
    found["or"].value = "1,2/<b>"
    assert "&lt;b&gt;" in found["said"].value
    found["or"].value = "1,2/3"
    assert found["said"].value == "" and seen[-1][0] == "toy:striped square,dotted disc/checked triangle"


def test_another_data_set_brings_its_tasks(tmp_path, scenes, capsys):
    layouts.write("camvid", tmp_path)
    box = scenarios.explore_scenario({"toy": scenes, "camvid": open_source("camvid", tmp_path)}, TASK)
    found = {child.description: child for row in box.children[:3] for child in row.children}
    found["or"].value = "9/1"
    found["data set"].value = "camvid"
    assert found["task"].options == scenarios.TASKS["camvid"] and found["or"].value == ""


def test_a_subset_is_among_its_own_tasks(scenes):
    subset = Scenario.named("toy:9,8/1")
    box = scenarios.explore_scenario({"toy": scenes}, subset)
    task = box.children[0].children[1]
    assert task.value == task.options[0] and scenarios.chosen(scenes, task.value, "overlap") == subset


def test_the_picture_of_a_step_frames_it(scenes):
    fig = drawn(scenarios.figure_scenario(scenes, TASK, 1))
    matrix, bars, _, told = fig.axes
    frame = matrix.patches[-1]
    assert (frame.get_x(), frame.get_width(), frame.get_fill()) == (1, 1, False)
    assert bars.patches[-1].get_height() == (scenarios.hidden_kinds(scenes, TASK)[:, 1] > 0).sum()
    assert told.get_title() == "as labelled at step 1: classes 6-7" and fig.get_suptitle() == "toy-5-2, overlap"
    words = legend_words(fig)
    assert {"old class, labelled background", "future class, labelled background", "not in this step"} <= set(words)
    alone = drawn(scenarios.figure_scenario(scenes, replace(TASK, setting="disjoint"), 0))
    assert [text.get_text() for text in alone.axes[3].texts] == ["not in\nthis step"]


def test_widgets_are_imported_only_when_asked_for():
    code = "import sys; import cisskit.views.scenarios; assert 'ipywidgets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
