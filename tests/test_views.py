"""Views: artists, labels, ranges and legends on small arrays and one tiny chain of runs; never pixels of a rendering."""

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words
from PIL import Image

from cisskit.data import Batch, Data, Toy
from cisskit.errors import KitError
from cisskit.method import available
from cisskit.protocols import protocol
from cisskit.runs import Run, find_runs
from cisskit.scenario import Scenario, Step
from cisskit.train import begin, evaluate, fit, restore, train_loader
from cisskit.views import forgetting, masks, reasoning, report, style, tables, training

TINY = {"data_options": {"train": 64, "test": 16, "heldout": 16}, "overrides": {"epochs": 1}}
TASK = Scenario.named("toy-5-2")

runs_needed = pytest.mark.xdist_group("views")  # one worker makes the runs


def axes() -> mpl.axes.Axes:
    return Figure().subplots()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """FT on two seeds, MiB stopped after step 1, DKD: short chains, not good ones."""
    root = tmp_path_factory.mktemp("runs")
    for method, seed, steps in (("ft", 0, 3), ("ft", 1, 3), ("mib", 0, 2), ("dkd", 0, 3)):
        for step in range(steps):
            ctx = begin("toy-5-2", method, step, runs=root, seed=seed, **TINY)
            fit(ctx, bar=False)
            evaluate(ctx)
    return find_runs(root)


@pytest.fixture
def groups(runs: list[Run]) -> dict[str, list[tables.Chain]]:
    return tables.by_method(runs)


# --- style ---


def test_one_colour_per_method():
    assert set(available()) <= set(style.METHOD_COLOURS)
    assert len(set(style.METHOD_COLOURS.values())) == len(style.METHOD_COLOURS)
    assert style.method_colour("eleventh") == style.method_colour("eleventh")  # unknown: a spare one, always the same


def test_order_of_methods_keeps_the_bounds_outside():
    assert style.in_order(["joint", "eleventh", "dkd", "ft", "mib", "ft"]) == ["ft", "mib", "dkd", "eleventh", "joint"]


def test_class_patches_name_ids_and_void():
    palette = Toy(train=1, heldout=1, test=1).palette
    labels = [patch.get_label() for patch in style.class_patches([255, 2, 0, 2], TASK.classes, palette)]
    assert labels == ["0 background", f"2 {TASK.classes[2]}", "void"]


# --- curves and heat maps ---


def test_heat_map_shows_percent_and_leaves_unseen_cells_empty():
    iou = [[0.9, 0.5, np.nan], [0.8, 0.25, 0.7]]
    ax = forgetting.plot_iou_by_step(iou, classes=["background", "a", "b"], ax=axes())
    assert [text.get_text() for text in ax.texts] == ["90", "50", "80", "25", "70"]
    assert ax.collections[0].get_clim() == (0, 100)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["background", "a", "b"]


def test_curve_is_the_mean_over_seeds_with_a_band():
    lines = {"ft": [np.array([0.8, 0.2]), np.array([0.6, 0.0])], "dkd": [np.array([0.7])]}
    ax = forgetting.plot_by_step(lines, ylabel="mIoU (%)", ax=axes())
    ft, dkd = ax.get_lines()
    assert ft.get_ydata() == pytest.approx([70, 10]) and dkd.get_ydata() == pytest.approx([70])
    assert ft.get_color() == style.METHOD_COLOURS["ft"] and ft.get_label() == "FT"
    assert len(ax.collections) == 1, "a band for the method with two seeds only"
    assert ax.get_ylabel() == "mIoU (%)" and list(ax.get_xticks()) == [0, 1]


def test_curve_without_values_draws_nothing():
    ax = forgetting.plot_by_step({"ft": [np.array([np.nan, np.nan])]}, ylabel="%", ax=axes())
    assert not ax.get_lines()


def test_forgetting_is_centred_on_zero():
    ax = forgetting.plot_forgetting({"ft": [0.5, np.nan], "mib": [-0.1, 0.2]}, classes=["a", "b"], ax=axes())
    assert ax.collections[0].get_clim() == (-100, 100)
    assert [text.get_text() for text in ax.texts] == ["50", "-10", "20"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FT", "MiB"]


def test_old_pixels_by_hand():
    confusion = [[50, 0, 0, 0], [4, 3, 2, 1], [6, 1, 3, 0], [0, 0, 0, 9]]  # classes 1 and 2 are old, 3 is new
    shares = forgetting.old_pixels(confusion, Step(1, n_old=2, n_new=1))
    assert shares == pytest.approx({"right": 6 / 20, "forgotten": 10 / 20, "taken over": 1 / 20, "mixed up": 3 / 20})
    ax = forgetting.plot_old_pixels({"ft": shares}, ax=axes())
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([30, 50, 5, 15])
    assert to_rgb(ax.patches[1].get_facecolor()) == to_rgb(style.ERRORS["forgotten"][0])
    assert np.isnan(forgetting.old_pixels(confusion, Step(0, 0, 3))["right"])


def test_loss_panels_one_per_term():
    history = pd.DataFrame({"epoch": 0, "iteration": range(40), "lr": 1e-3, "ce": np.linspace(2, 1, 40), "kd": 0.0})
    fig = drawn(training.figure_terms(history))
    assert [ax.get_title() for ax in fig.axes] == ["ce", "kd"]
    raw, mean = fig.axes[0].get_lines()
    assert len(raw.get_xdata()) == len(mean.get_xdata()) == 40
    assert mean.get_ydata()[-1] == pytest.approx(np.linspace(2, 1, 40)[-2:].mean())


def test_term_table_adds_up():
    table = training.term_table({"ce": torch.tensor(3.0), "kd": torch.tensor(1.0)}).set_index("term")
    assert table["value"].to_dict() == {"ce": 3.0, "kd": 1.0, "sum": 4.0}
    assert table.loc["ce", "share of the sum %"] == 75.0


# --- masks ---


def test_errors_by_hand():
    step = Step(1, n_old=2, n_new=1)  # 1, 2 old; 3 new; 4 future
    truth = np.array([[0, 0, 1, 1, 1, 3, 3, 4, 255, 2]])
    found = np.array([[0, 1, 0, 3, 2, 0, 3, 1, 1, 2]])
    names = ["", *style.ERRORS]
    kinds = [names[k] for k in masks.errors(truth, found, step)[0]]
    assert kinds == ["", "false alarm", "forgotten", "taken over", "mixed up", "missed", "", "", "", ""]


def test_hidden_classes_are_split_into_old_and_future():
    truth, told = np.array([[0, 1, 6, 8, 255]]), np.array([[0, 0, 6, 0, 255]])
    hidden = masks.hidden_by(truth, told, TASK.step(1))
    assert hidden["old"].tolist() == [[False, True, False, False, False]]
    assert hidden["future"].tolist() == [[False, False, False, True, False]]


def test_labels_are_painted_in_class_colours_and_hatched():
    palette = Toy(train=1, heldout=1, test=1).palette
    labels = np.zeros((8, 8), dtype=np.int64)
    labels[2:6, 2:6] = 3
    ax = masks.show_labels(labels, palette, axes(), hidden={"future": labels == 3, "old": labels == 9})
    painted = ax.images[0].get_array()
    assert (painted[0, 0] == palette[0]).all() and not (painted[3, 3] == palette[3]).all(), "hidden ones are dimmed"
    assert [h for c in ax.collections for h in getattr(c, "hatches", [])] == [masks.HIDDEN["future"]]


def test_chosen_images_hide_most():
    image = torch.zeros(3, 3, 4, 4)
    truth = torch.zeros(3, 4, 4, dtype=torch.long)
    truth[0, 0, 0] = 6  # told
    truth[1, 0, 0], truth[1, 0, 1], truth[1, 0, 2] = 1, 8, 6
    truth[2, 0, 0] = 1
    label = torch.where(truth == 6, 6, 0)
    extra = {"names": ["a", "b", "c"], "from_memory": torch.zeros(3, dtype=torch.bool), "truth": truth}
    chosen = masks.telling(Batch(image, label, extra), TASK.step(1), 2)
    assert chosen.extra["names"] == ["b", "c"] and chosen.extra["truth"].equal(truth[[1, 2]])


def test_test_pictures_show_old_and_new_together():
    data = Data(TASK, Toy(train=1, heldout=1, test=30), protocol=protocol("clean", TASK, "crop32"))
    for picture in masks.test_pictures(data, TASK.step(1), 3):
        present = set(np.unique(picture.truth).tolist())
        assert picture.truth.shape == picture.image.shape[1:] == (32, 32)
        assert present & set(range(1, 6))


def test_problem_needs_no_run():
    fig = drawn(masks.figure_problem())
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles[0] == "image" and titles[-1] == "really there" and "told at step 1\nclasses 6-7" in titles
    assert "0 background" in legend_words(fig)


def test_contact_sheet_has_the_legend_of_all_classes():
    data = Data(TASK, Toy(train=1, heldout=1, test=5))
    fig = drawn(masks.figure_scenes(masks.test_pictures(data, TASK.steps[-1], 5), TASK, data.palette, columns=3))
    assert len(legend_words(fig)) == len(TASK.classes)
    assert sum(len(ax.images) for ax in fig.axes) == 10


def test_same_logit_draws_equal_sums():
    ax = reasoning.plot_same_logit(axes())
    bars = [bar.get_width() for bar in ax.patches]
    sums = [a + b for a, b in zip(bars[::2], bars[1::2], strict=True)]
    assert sums == pytest.approx([2.0] * 3)
    drawn(reasoning.figure_problem())


# --- with runs ---


@runs_needed
def test_chains_are_grouped_by_method_and_seed(groups):
    assert list(groups) == ["ft", "mib", "dkd"]
    assert [(c.seed, c.steps) for c in groups["ft"]] == [(0, [0, 1, 2]), (1, [0, 1, 2])]
    iou = groups["mib"][0].iou()
    assert iou.shape == (2, 10) and np.isnan(iou[0, 6:]).all() and not np.isnan(iou[1, :8]).all()


@runs_needed
def test_results_name_the_classes_of_every_mean(runs):
    table = tables.results(runs)
    assert {"old [1-5] %", "new [6-9] %", "all [0-9] %", "hIoU [1-5 | 6-9] %", "old → bg [1-7] %", "forgetting [1-7] %"} <= set(
        table
    )
    assert table["method"].tolist() == ["FT", "MiB", "DKD"] and table["seeds"].tolist() == ["0, 1", "0", "0"]
    row = table.set_index("method")
    assert "±" in row.loc["FT", "all [0-9] %"] and "±" not in row.loc["DKD", "all [0-9] %"]
    assert row.loc["MiB", "all [0-9] %"].endswith("[0-7]"), "a chain that ended early says which classes it means"
    last = next(run for run in runs if run.settings["method"] == "dkd" and run.step == 2)
    assert row.loc["DKD", "all [0-9] %"] == f"{100 * last.metrics['miou']['all']['value']:.1f}"


@runs_needed
def test_results_on_a_page_lead_to_their_runs(runs, tmp_path):
    page = runs[0].folder.parents[2] / "report.html"
    text = report.results_html(runs, page)
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert len(rows) == 4 and rows[0].count("<th>") == len(tables.results(runs).columns)
    targets = {row: re.findall(r'href="([^"]+)"', rows[row]) for row in (1, 3)}
    assert targets[1][:2] == ["ft/seed0/step2/", "ft/seed1/step2/"] and set(targets[1][2:]) == {"ft/"}, (
        "a mean leads to all seeds"
    )
    assert set(targets[3]) == {"dkd/seed0/step2/"}
    assert all((page.parent / target).is_dir() for target in targets[1] + targets[3])
    saved = {name: unquote(text) for name, text in re.findall(r'download="([^"]+)" href="data:[^,]+,([^"]+)"', text)}
    assert saved["results.csv"] == tables.results(runs).to_csv(index=False)
    assert r"\toprule" in saved["results.tex"] and r"$\pm$" in saved["results.tex"] and r"\%" in saved["results.tex"]
    assert not set("→±–|") & set(saved["results.tex"])


@runs_needed
def test_results_of_a_single_step(runs):
    table = tables.results([run for run in runs if run.settings["method"] == "dkd" and run.step == 0])
    assert table["new [none] %"].tolist() == table["forgetting [none] %"].tolist() == [tables.MISSING]


@runs_needed
def test_chain_and_class_tables(groups):
    run = groups["dkd"][0].last
    table = tables.chain_table(run)
    assert table.index.tolist() == [0, 1, 2] and table.loc[0, "new %"] == tables.MISSING
    assert table.loc[2, "new %"].endswith("[6-9]") and table.loc[1, "all %"].endswith("[0-7]")
    classes = tables.class_table(run)
    assert classes["class"].tolist() == list(TASK.classes) and classes["step"].tolist()[1:] == [0] * 5 + [1] * 2 + [2] * 2
    assert not tables.files(run)["kB"].isna().any()


@runs_needed
def test_protocol_says_under_which_rules(runs):
    text = tables.protocol(runs)
    for word in ("toy-5-2 (5 + 2 + 2", "overlap", "future_as = ignore", "Protocol clean", "[1-5]", "[6-9]", "Seeds: 0, 1"):
        assert word in text


@runs_needed
def test_report_figures(groups):
    by_step = drawn(forgetting.figure_by_step(groups))
    assert [ax.get_title() for ax in by_step.axes] == ["all seen classes [0-…]", "old [1-5]", "new [6-…]"]
    assert legend_words(by_step) == ["FT", "MiB", "DKD"]
    drawn(forgetting.figure_shift(groups))
    drawn(forgetting.figure_iou(groups))
    assert drawn(forgetting.figure_forgetting(groups)) and drawn(forgetting.figure_old_pixels(groups))
    losses = drawn(training.figure_losses(groups))
    assert [ax.get_title() for ax in losses.axes if ax.get_visible()][:3] == ["FT, step 0", "FT, step 1", "FT, step 2"]


@runs_needed
def test_report_of_one_method_and_one_step(runs):
    groups = tables.by_method([run for run in runs if run.settings["method"] == "dkd" and run.step == 0])
    assert len(drawn(forgetting.figure_by_step(groups)).axes) == 2, "no panel for classes that have not come"
    assert forgetting.figure_forgetting(groups) is None and forgetting.figure_old_pixels(groups) is None
    drawn(forgetting.figure_shift(groups))
    drawn(forgetting.figure_iou(groups))
    drawn(training.figure_losses(groups))
    assert len(report.strips(groups, restore, 1)) == 1


@runs_needed
def test_strips_put_methods_below_the_truth(groups):
    fig = drawn(report.strips(groups, restore, 1)[0])
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()] == ["truth so far", "FT", "MiB", "DKD"]
    assert len(fig.axes) == 4 * 4
    words = {text.get_text() for ax in fig.axes for text in ax.texts}
    assert words == {"not run"}, "MiB has no step 2"


@runs_needed
def test_opening_runs_refuses_a_mixture(runs, tmp_path):
    assert report.open_runs([run.folder for run in runs], tmp_path) == runs
    with pytest.raises(KitError, match="no finished run"):
        report.open_runs([], tmp_path)
    other = begin("toy-5-2", "ft", 0, setting="disjoint", runs=tmp_path, **TINY)
    fit(other, bar=False)
    evaluate(other)
    with pytest.raises(KitError, match="one scenario, setting and protocol"):
        report.open_runs([runs[0].folder, other.run.folder], tmp_path)


@runs_needed
@pytest.mark.parametrize("method", ["mib", "dkd"])
def test_looking_at_a_step_changes_nothing(groups, method):
    """The figures of sections 4 to 8 leave weights, batch-norm statistics and the batch as they are."""
    ctx = restore(groups[method][0].runs[1])
    batch = masks.telling(next(train_loader(ctx, truth=True).epoch(0, ctx.device)), ctx.step)
    state = {name: value.clone() for name, value in ctx.model.state_dict().items()}
    label = batch.label.clone()
    told = drawn(masks.figure_told(batch, ctx))
    assert "old class, not told" in legend_words(told) and "future class, not told" in legend_words(told)
    teacher = drawn(masks.figure_teacher(batch, ctx.method.targets(batch, None, ctx), ctx))
    assert [ax.get_ylabel() for ax in teacher.axes if ax.get_ylabel()][2] == "the teacher\nsays"
    pictures = masks.test_pictures(ctx.data, ctx.step, 2)
    before, was = masks.before(ctx, pictures)
    assert was == "the teacher" and max(labels.max() for labels in before) <= ctx.step.n_old
    drawn(masks.figure_before_after(pictures, before, masks.predict(ctx, pictures, ctx.model), ctx, was))
    i, c = reasoning.class_to_explain(batch, ctx)
    assert 1 <= c <= ctx.step.n_old and (batch.extra["truth"][i] == c).any()
    fig = drawn(reasoning.figure_evidence(batch, i, c, ctx.old_model, ctx))
    assert [ax.get_title() for ax in fig.axes[1:4]] == ["evidence for", "evidence against", "logit (sum + bias)"]
    assert all(torch.equal(value, state[name]) for name, value in ctx.model.state_dict().items())
    assert batch.label.equal(label)


@runs_needed
def test_evidence_adds_up_to_the_logit(groups):
    ctx = restore(groups["dkd"][0].runs[0])
    batch = next(train_loader(ctx, truth=True).epoch(0))
    positive, negative, logit = reasoning.evidence(ctx.model, batch.image, 2)
    assert (positive >= 0).all() and (negative <= 0).all()
    torch.testing.assert_close(positive + negative + ctx.model.classifier()[1][2].detach(), logit, atol=1e-4, rtol=1e-4)
    assert reasoning.class_to_explain(batch, ctx)[1] in range(1, 6), "without a teacher: a class of this step"


@runs_needed
def test_step_zero_has_no_teacher(groups):
    ctx = restore(groups["ft"][0].runs[0])
    batch = masks.telling(next(train_loader(ctx, truth=True).epoch(0)), ctx.step)
    fig = drawn(masks.figure_teacher(batch, batch.label, ctx))
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()] == [
        "image",
        "as labelled\nat step 0",
        "targets of\nthe method",
    ]
    assert masks.before(ctx, masks.test_pictures(ctx.data, ctx.step, 1))[1].startswith("already trained")
    ctx.run = replace(ctx.run, folder=Path("nowhere"))
    assert masks.before(ctx, [])[1] == "untrained"


@runs_needed
def test_controls_redraw(groups, capsys):
    pictures, found, ctx = report.predictions({"dkd": groups["dkd"]}, restore, 2)
    box = masks.explore_steps(pictures, found, ctx.scenario, ctx.data.palette)
    assert "Figure" in capsys.readouterr().out, "one static picture before the controls"
    method, step, which = box.children[0].children
    assert step.options == (0, 1, 2) and which.max == 1 and method.options == (("DKD", "dkd"),)
    step.value, which.value = 1, 1
    assert capsys.readouterr().out.count("Figure") == 2


def test_the_explorer_offers_the_steps_that_every_method_has_run():
    blank = np.zeros((8, 8), dtype=np.int64)
    picture = masks.Picture("p", torch.zeros(3, 8, 8, dtype=torch.uint8), blank)
    found = [{"ft": {0: blank, 1: blank, 2: blank}, "mib": {0: blank, 1: blank}}]  # the chain of mib ended early
    box = masks.explore_steps([picture], found, Scenario.named("toy-5-2"), np.zeros((256, 3), dtype=np.uint8))
    method, step, _ = box.children[0].children
    assert step.options == (0, 1)
    method.value, step.value = "mib", 0


@runs_needed
def test_readme_picture_is_small_and_has_a_palette(runs, tmp_path):
    path = report.readme_picture(runs, restore, tmp_path / "images" / "forgetting.png")
    with Image.open(path) as picture:
        assert picture.mode == "P" and min(picture.size) > 300
        shown = set(map(tuple, np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()))
    palette = restore(runs[0]).data.palette[:10].tolist()
    assert {tuple(palette[0]), (255, 255, 255), style.rgb(style.ERRORS["missed"][0])} <= shown, "no colour was bent"
    assert len(shown) <= 96
    assert path.stat().st_size <= 60 * 1024
