"""What was forgotten, where pixels went, and which term moves what: values by hand, artists, labels, legends, bad weather."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pictures import drawn, legend_words
from torch import nn
from untrained import step_of

from cisskit.data import Toy
from cisskit.errors import KitError
from cisskit.method import configure
from cisskit.metrics import ConfusionMatrix, summarise
from cisskit.models import trainable
from cisskit.protocols import protocol
from cisskit.runs import Run, find_runs
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit, restore
from cisskit.views import forgetting, masks, report, style, tables, training

TASK = Scenario.named("voc:cat,dog/car/bus")  # learned ids: 1 cat, 2 dog at step 0; 3 car at step 1; 4 bus at step 2
TINY = {"data_options": {"train": 64, "test": 16, "heldout": 16}, "overrides": {"epochs": 1}}
AFTER = {
    0: [[90, 0, 10, 0, 0], [20, 80, 0, 0, 0], [0, 0, 50, 0, 0], [50, 0, 0, 0, 0], [40, 0, 0, 0, 0]],
    1: [[95, 0, 0, 5, 0], [50, 40, 5, 5, 0], [10, 0, 30, 10, 0], [10, 10, 0, 30, 0], [40, 0, 0, 0, 0]],
    2: [[99, 0, 0, 0, 1], [60, 10, 0, 10, 20], [0, 0, 50, 0, 0], [40, 0, 0, 0, 10], [0, 0, 0, 0, 40]],
}
"""Confusion matrices after each step, rows truth."""


def axes():
    return Figure().subplots()


def made(root, method: str, confusions: dict, task: Scenario = TASK, seed: int = 0) -> list[Run]:
    """Finished runs with these confusion matrices and empty weights."""
    runs, earlier = [], []
    for step, confusion in confusions.items():
        folder = root / method / f"seed{seed}" / f"step{step}"
        folder.mkdir(parents=True)
        rules = protocol("clean", task)
        settings = {
            "scenario": task.text, "setting": "overlap", "labels": None, "protocol": rules.settings(), "method": method,
            "step": step, "seed": seed, "arch": "toy",
        }  # fmt: skip
        metrics = summarise(confusion, task, task.step(step), rules, earlier=earlier)
        earlier.append(list(metrics["iou"].values()))
        np.save(folder / "confusion.npy", np.array(confusion))
        (folder / "config.json").write_text(json.dumps({"settings": settings}))
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "history.csv").write_text("epoch,iteration,lr,ce\n0,0,0.1,1.0\n")
        (folder / "model.safetensors").write_bytes(b"")
        runs.append(Run.load(folder))
    return runs


@pytest.fixture
def groups(tmp_path):
    perfect = {t: np.diag(np.array(m).sum(axis=1)) for t, m in AFTER.items()}
    for t, matrix in perfect.items():  # classes that have not arrived are background
        seen = TASK.step(t).n_seen
        matrix[seen + 1 :, 0] = np.diag(matrix)[seen + 1 :]
        matrix[range(seen + 1, 5), range(seen + 1, 5)] = 0
    made(tmp_path, "mib", AFTER)
    made(tmp_path, "joint", perfect)
    return tables.by_method(find_runs(tmp_path))


# --- measures ---


def test_measures_by_hand():
    iou = [[0.9, 0.8, 0.6, np.nan, np.nan], [0.8, 0.9, 0.5, 0.7, np.nan], [0.7, 0.4, 0.7, 0.5, 0.3]]
    joint = [[0.9, 0.8, 0.8, np.nan, np.nan], [0.9, 0.9, 0.8, 0.9, np.nan], [0.9, 0.9, 0.9, 0.9, 0.9]]
    found = forgetting.measures(iou, TASK, joint)
    expected = {
        "forgetting": [np.nan, 0.5, -0.1, 0.2, np.nan],
        "transfer": [np.nan, -0.4, 0.1, -0.2, np.nan],
        "plasticity": [np.nan, 0.8, 0.6, 0.7, 0.3],
        "intransigence": [np.nan, 0.0, 0.2, 0.2, 0.6],
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, nan_ok=True), name
    assert np.isnan(forgetting.measures(iou, TASK)["intransigence"]).all()
    first = forgetting.measures(iou[:1], TASK, joint)
    assert np.isnan(first["forgetting"]).all() and first["plasticity"][1] == 0.8 and np.isnan(first["plasticity"][3])


def test_classes_know_their_step():
    assert forgetting.taught_at(TASK).tolist() == [-1, 0, 0, 1, 2]


def test_heat_map_of_a_measure_is_centred():
    ax = forgetting.plot_measure("transfer", {"ft": [-0.5, np.nan], "mib": [-0.001, 0.2]}, classes=["a", "b"], ax=axes())
    assert ax.collections[0].get_clim() == (-100, 100) and "Backward transfer" in ax.get_title(loc="left")
    assert [text.get_text() for text in ax.texts] == ["-50", "0", "20"], "no minus zero, no text where there is no value"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FT", "MiB"]
    assert forgetting.plot_measure("plasticity", {"ft": [0.5]}, classes=["a"], ax=axes()).collections[0].get_clim() == (0, 100)


def test_measures_of_runs(groups):
    fig = drawn(forgetting.figure_measures(groups))
    heads = [ax.get_title(loc="left").split(":")[0] for ax in fig.axes if ax.get_title(loc="left")]
    assert heads == ["Forgetting", "Backward transfer", "Plasticity", "Intransigence"]
    rows = {head: [t.get_text() for t in ax.get_yticklabels()] for head, ax in zip(heads, fig.axes, strict=False)}
    assert rows["Forgetting"] == ["MiB", "Joint"] and rows["Intransigence"] == ["MiB"], "joint is its own bound"
    assert fig.axes[3].get_xlabel() == "class, in order of arrival"
    without = drawn(forgetting.figure_measures({"mib": groups["mib"]}))
    assert not any("Intransigence" in ax.get_title(loc="left") for ax in without.axes)


def test_table_of_measures_by_hand(groups):
    table = forgetting.measures_table(groups).set_index("method")
    values = forgetting.mean_iou_table(groups["mib"])
    assert float(table.loc["MiB", "plasticity"]) == pytest.approx(100 * (values[1, 3] + values[2, 4]) / 2, abs=0.05)
    transfer = ((values[2, 1:3] - values[0, 1:3]).mean() + values[2, 3] - values[1, 3]) / 2
    assert float(table.loc["MiB", "backward transfer"]) == pytest.approx(100 * transfer, abs=0.05)
    lost = [max(values[:2, c][~np.isnan(values[:2, c])]) - values[2, c] for c in (1, 2, 3)]
    assert float(table.loc["MiB", "forgetting"]) == pytest.approx(100 * np.mean(lost), abs=0.05)
    assert float(table.loc["MiB", "to joint"]) == pytest.approx(100 - 100 * values[2].mean(), abs=0.05)
    assert float(table.loc["MiB", "intransigence"]) == pytest.approx(100 - float(table.loc["MiB", "plasticity"]), abs=0.1)
    assert table.loc["Joint", ["intransigence", "to joint"]].tolist() == [tables.MISSING] * 2


def test_curves_of_single_classes(groups):
    fig = drawn(forgetting.figure_classes(groups))
    assert [ax.get_title() for ax in fig.axes] == ["1 cat\n(step 0)", "2 dog\n(step 0)", "3 car\n(step 1)", "4 bus\n(step 2)"]
    mib, joint = fig.axes[2].get_lines()
    assert mib.get_xdata().tolist() == [1, 2] and mib.get_color() == style.METHOD_COLOURS["mib"]
    assert joint.get_ydata() == pytest.approx([100, 100])
    assert legend_words(fig) == ["MiB", "Joint"] and fig.axes[0].get_ylabel() == "IoU (%)"


# --- where pixels go ---


def test_fates_by_hand():
    kinds = list(forgetting.FATES)
    after = forgetting.fates(AFTER[1], TASK, TASK.step(1))
    assert dict(zip(kinds, after[1].tolist(), strict=True)) == {
        "to come": 0, "kept": 40, "mixed up": 5, "taken over": 5, "forgotten": 50,
    }  # fmt: skip
    assert dict(zip(kinds, after[3].tolist(), strict=True)) == {
        "to come": 0, "kept": 30, "mixed up": 10, "taken over": 0, "forgotten": 10,
    }  # fmt: skip
    assert after[4].tolist() == [40, 0, 0, 0, 0] and after[0].tolist() == [0] * 5
    last = forgetting.fates(AFTER[2], TASK, TASK.step(2))
    assert last[1].tolist() == [0, 10, 0, 30, 60], "car took cat over at step 1 and is still a newcomer to it at step 2"


def test_fates_agree_with_the_bars_right_after_step_1():
    shares = forgetting.old_pixels(AFTER[1], TASK.step(1))
    old = forgetting.fates(AFTER[1], TASK, TASK.step(1))[1:3].sum(axis=0) / 150
    assert dict(zip(forgetting.FATES, old, strict=True)) == pytest.approx(
        {"to come": 0, "kept": shares["right"], **{k: shares[k] for k in ("mixed up", "taken over", "forgotten")}}
    )


def test_least_moves_by_hand():
    moves = forgetting.least_moves([[150, 50, 0]], [[90, 60, 50]])[0]
    assert moves.tolist() == [[90, 10, 50], [0, 50, 0], [0, 0, 0]]
    assert forgetting.least_moves([[1.0, 0.0]], [[1.0, 0.0]])[0].tolist() == [[1, 0], [0, 0]]


def test_moves_lead_from_one_column_to_the_next(groups):
    flow = forgetting.stream(groups["mib"])
    assert flow.steps == [0, 1, 2] and flow.levels.sum(axis=1) == pytest.approx([1, 1, 1])
    assert (flow.moves >= 0).all()
    assert flow.moves.sum(axis=2) == pytest.approx(flow.levels[:-1]) and flow.moves.sum(axis=1) == pytest.approx(flow.levels[1:])
    kinds = dict(zip(forgetting.FATES, flow.levels.T, strict=True))
    assert kinds["to come"] == pytest.approx([50 / 200, 0, 0]), "3 car comes at step 1; 4 bus is never old"
    assert kinds["kept"] == pytest.approx([130 / 200, 100 / 200, 60 / 200])
    assert kinds["taken over"] == pytest.approx([0, 15 / 200, 40 / 200])


def test_seeds_are_averaged(tmp_path):
    runs = made(tmp_path, "mib", AFTER) + made(tmp_path, "mib", {**AFTER, 2: AFTER[1]}, seed=1)
    one, other = tables.by_method(runs)["mib"]
    both = forgetting.stream([one, other])
    assert both.levels == pytest.approx((forgetting.stream([one]).levels + forgetting.stream([other]).levels) / 2)
    short = tables.Chain(other.runs[:2])
    assert forgetting.stream([short, one]).levels == pytest.approx(forgetting.stream([one]).levels), "furthest seeds only"


def test_classes_without_pixels_weigh_nothing(tmp_path):
    empty = {t: np.array(m) for t, m in AFTER.items()}
    for matrix in empty.values():
        matrix[2] = 0
    flow = forgetting.stream(tables.by_method(made(tmp_path, "mib", empty))["mib"])
    assert flow.levels.sum(axis=1) == pytest.approx([1, 1, 1])
    for matrix in empty.values():
        matrix[1:] = 0
    chains = tables.by_method(made(tmp_path / "none", "mib", empty))["mib"]
    assert forgetting.stream(chains) is None and forgetting.figure_alluvial({"mib": chains}) is None


def test_alluvial_has_a_column_per_step_and_ribbons_between(groups):
    flow = forgetting.stream(groups["mib"])
    ax = forgetting.plot_alluvial(flow, axes())
    bars = [bar for container in ax.containers for bar in container]
    assert len(bars) == sum((level > 0).sum() for level in flow.levels)
    tops = {round(bar.get_x() + bar.get_width() / 2): 0.0 for bar in bars}
    for bar in bars:
        column = round(bar.get_x() + bar.get_width() / 2)
        assert bar.get_y() == pytest.approx(tops[column]), "stacked without a gap"
        tops[column] += bar.get_height()
    assert list(tops.values()) == pytest.approx([100, 100, 100])
    ribbons = {r.get_label(): r for r in ax.collections}
    assert len(ax.collections) == (flow.moves > 5e-4).sum() and "kept to forgotten" in ribbons and "to come to kept" in ribbons
    red = ribbons["kept to forgotten"].get_facecolor()[0][:3]
    assert red == pytest.approx([c / 255 for c in style.rgb(style.ERRORS["forgotten"][0])]), "in the colour of where it leads"
    assert ax.get_xlabel() == "after step" and ax.get_ylim() == (0, 100)


def test_alluvial_of_several_methods(groups):
    fig = drawn(forgetting.figure_alluvial(groups))
    assert [ax.get_title() for ax in fig.axes] == ["MiB", "Joint"]
    assert "before the last step (%)" in fig.axes[0].get_ylabel() and not fig.axes[1].get_ylabel()
    assert legend_words(fig) == [words for _, words in forgetting.FATES.values()]


def test_thieves_by_name(groups):
    table = forgetting.thieves(groups["mib"][0].last).set_index("class")
    assert list(table.index) == ["1 cat", "2 dog", "3 car"], "classes of the last step are not old"
    assert table.loc["1 cat"].tolist() == ["10.0", "0 background 60.0, 4 bus 20.0", tables.MISSING]
    assert table.loc["3 car", "takes from %"] == "1 cat 100.0" and table.loc["3 car", "still right %"] == "0.0"
    assert forgetting.thieves(groups["mib"][0].runs[0]).empty


def test_thieves_of_a_class_without_pixels(tmp_path):
    matrix = np.array(AFTER[1])
    matrix[1] = 0
    last = made(tmp_path, "ft", {0: AFTER[0], 1: matrix})[-1]
    assert forgetting.thieves(last).iloc[0].tolist() == ["1 cat", tables.MISSING, tables.MISSING, "3 car 100.0"]


def test_who_forgets_most(groups):
    assert forgetting.forgets_most(groups) == "mib"
    assert forgetting.forgets_most({"ft": groups["mib"], "dkd": groups["joint"]}) == "dkd", "FT is a bound"
    assert forgetting.forgets_most({"ft": groups["mib"], "joint": groups["joint"]}) == "ft"
    first = {m: [tables.Chain(c[0].runs[:1])] for m, c in groups.items()}
    assert forgetting.forgets_most(first) == "mib"


# --- few steps, many classes ---


def test_a_single_step_has_nothing_to_forget(groups):
    first = {m: [tables.Chain(c[0].runs[:1])] for m, c in groups.items()}
    assert forgetting.figure_measures(first) is None and forgetting.figure_alluvial(first) is None
    assert forgetting.figure_old_pixels(first) is None
    assert forgetting.measures_table(first)["backward transfer"].tolist() == [tables.MISSING] * 2
    drawn(forgetting.figure_classes(first))
    drawn(forgetting.figure_iou(first))


def test_a_step_that_is_missing_leaves_a_gap(groups, tmp_path):
    chain = groups["mib"][0]
    gap = {"mib": [tables.Chain((chain.runs[0], chain.runs[2]))]}
    assert forgetting.stream(gap["mib"]).steps == [0, 2]
    for fig in (forgetting.figure_alluvial(gap), forgetting.figure_measures(gap), forgetting.figure_classes(gap)):
        drawn(fig)


def test_half_written_and_foreign_folders_are_left_out(groups, tmp_path):
    shutil.copytree(tmp_path / "mib/seed0/step2", tmp_path / "ft/seed0/step2")
    (tmp_path / "ft/seed0/step2/metrics.json").unlink()
    (tmp_path / "x/step0").mkdir(parents=True)
    (tmp_path / "x/step0/config.json").write_text('{"kernel": 1}')
    with pytest.warns(UserWarning, match="left out"):
        assert {run.settings["method"] for run in find_runs(tmp_path)} == {"mib", "joint"}


def test_150_classes_show_those_that_were_forgotten_most(tmp_path):
    task, rng = Scenario.named("ade-100-50"), np.random.default_rng(0)
    confusions = {}
    for t in (0, 1):
        matrix = np.diag(rng.integers(50, 100, 151))
        matrix[1 : task.step(t).n_seen + 1, 0] = rng.integers(0, 20, task.step(t).n_seen)
        future = slice(task.step(t).n_seen + 1, None)
        matrix[future, 0] = np.diag(matrix)[future]
        matrix[range(task.step(t).n_seen + 1, 151), range(task.step(t).n_seen + 1, 151)] = 0
        confusions[t] = matrix
    confusions[1][77, 77], confusions[1][77, 0] = 0, 500
    groups = tables.by_method(made(tmp_path, "mib", confusions, task))
    words = "30 of 150 classes, those that any method forgot most"
    iou = drawn(forgetting.figure_iou(groups))
    names = [tick.get_text() for tick in iou.axes[0].get_xticklabels()]
    assert len(names) == 31 and names[0] == "background" and task.classes[77] in names and words in iou.axes[0].get_xlabel()
    assert drawn(forgetting.figure_forgetting(groups)).axes[0].get_xlabel().count("30 of 100 classes") == 1
    assert words in drawn(forgetting.figure_measures(groups)).axes[3 - 1].get_xlabel()
    classes = drawn(forgetting.figure_classes(groups))
    assert len(classes.axes) == 30 and classes.get_suptitle() == words
    drawn(forgetting.figure_alluvial(groups))
    assert len(forgetting.thieves(groups["mib"][0].last)) == 100


# --- pictures ---


def test_the_story_of_an_image():
    fig = drawn(forgetting.figure_problem())
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown[:4]] == ["image", "after step 0", "after step 1", "after step 2"]
    below = [ax.get_xlabel() for ax in shown if "wrong" in ax.get_xlabel()]
    assert below == ["new: 0 % wrong", "old: 100 % wrong\nnew: 0 % wrong", "old: 100 % wrong\nnew: 0 % wrong"]
    assert "forgotten: old → background" in legend_words(fig) and not any("missed" in w for w in legend_words(fig))
    assert [ax.get_ylabel() for ax in shown if ax.get_ylabel()] == ["truth\nso far", "predicted", "errors"]


def test_the_story_tells_errors_apart():
    task, palette = Scenario.named("toy-5-2"), Toy(train=1, heldout=1, test=1).palette
    truth = np.array([[1, 1, 6, 6], [1, 1, 6, 6], [0, 0, 255, 8], [0, 0, 255, 8]])
    said = np.array([[0, 6, 0, 6], [1, 2, 7, 6], [3, 0, 1, 0], [0, 0, 1, 0]])
    picture = masks.Picture("a", torch.zeros(3, 4, 4, dtype=torch.uint8), truth)
    fig = drawn(forgetting.figure_story(picture, {1: said}, task, palette))
    assert [w.split(":")[0] for w in legend_words(fig) if ": " in w] == list(style.ERRORS)
    assert [ax.get_xlabel() for ax in fig.axes if "wrong" in ax.get_xlabel()] == ["old: 75 % wrong\nnew: 50 % wrong"]


def test_controls_redraw(capsys):
    task, palette = Scenario.named("toy-5-2"), Toy(train=1, heldout=1, test=1).palette
    pictures = [masks.Picture(n, torch.zeros(3, 8, 8, dtype=torch.uint8), np.full((8, 8), k)) for k, n in enumerate("ab")]
    said = [{"ft": {0: np.zeros((8, 8), int)}, "mib": {0: np.ones((8, 8), int), 1: np.ones((8, 8), int)}} for _ in pictures]
    box = forgetting.explore_story(pictures, said, task, palette)
    first = capsys.readouterr().out
    assert first.count("Figure(600x") == 1, "a static picture first"
    method, which = box.children[0].children
    method.value = "mib"
    assert capsys.readouterr().out.count("Figure(750x") == 1, "one step more"
    which.value = 1
    assert capsys.readouterr().out.count("Figure(") == 1 and which.max == 1


# --- which term moves what ---


class TwoTerms(nn.Module):
    """A network of four weights in each of backbone (two tensors), decoder and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.decoder = nn.Linear(3, 1), nn.Linear(4, 1, bias=False)
        self.heads, self.aux = nn.ModuleList(nn.Linear(4, 1, bias=False) for _ in range(2)), nn.ModuleDict()

    def forward(self, image):
        return self


def by_hand(**losses) -> SimpleNamespace:
    model = TwoTerms()
    model.decoder.requires_grad_(False)
    method = SimpleNamespace(losses=lambda *_: {name: term(model) for name, term in losses.items()}, inert=frozenset({"dead"}))
    return SimpleNamespace(model=model, old_model=None, method=method, step=SimpleNamespace(index=1))


def test_shares_by_hand():
    ctx = by_hand(
        a=lambda m: 3 * (m.backbone.weight.sum() + m.backbone.bias.sum()) + m.heads[1].weight.sum(),
        b=lambda m: m.backbone.weight.sum() + m.backbone.bias.sum() + m.decoder.weight.sum(),
        dead=lambda m: m.decoder.weight.detach().abs().sum() + 5,
    )
    table = training.gradient_shares(ctx, SimpleNamespace(image=None)).set_index(["term", "part"])
    assert table.loc[("a", "backbone"), "norm"] == pytest.approx(6) and table.loc[("b", "backbone"), "norm"] == pytest.approx(2)
    assert table["share"].unstack()["backbone"].to_dict() == pytest.approx({"a": 0.75, "b": 0.25, "dead": 0.0})
    assert table["share"].unstack()["new head"].to_dict() == pytest.approx({"a": 1.0, "b": 0.0, "dead": 0.0})
    assert table["share"].unstack()["old heads"].isna().all(), "no term reaches it"
    assert table.loc[("a", "decoder"), "weights"] == 0 and table.loc[("a", "old heads"), "weights"] == 1
    assert table["inert"].unstack()["backbone"].to_dict() == {"a": False, "b": False, "dead": True}
    whole = training.over_parts(table.reset_index()).set_index("term")
    assert whole.loc["a", "norm"] == pytest.approx(np.sqrt(36 + 4)) and whole.loc["a", "reached"] == 3
    assert list(whole.index) == ["a", "b", "dead"] and whole["share"].sum() == pytest.approx(1)


def test_heat_map_names_what_is_frozen_and_what_is_inert():
    ctx = by_hand(live=lambda m: m.backbone.weight.sum() ** 2, dead=lambda m: m.decoder.weight.detach().sum() ** 2 + 1)
    table = training.gradient_shares(ctx, SimpleNamespace(image=None))
    fig = drawn(training.figure_gradient_shares({"here": table}))
    ax = fig.axes[0]
    words = [text.get_text() for text in ax.texts]
    assert words.count("frozen") == 1 and words.count("no gradient") == 2, "decoder; both heads"
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        "value of\nthe loss",
        "backbone",
        "decoder",
        "old\nheads",
        "new\nhead",
    ]
    assert [t.get_style() for t in ax.get_yticklabels()] == ["normal", "italic"]
    assert ax.collections[0].get_clim() == (0, 100) and ax.get_title() == "here" and "inert" in fig.get_supxlabel()
    assert {"100", "0"} <= set(words)
    live = training.gradient_shares(by_hand(live=lambda m: m.backbone.weight.sum()), SimpleNamespace(image=None))
    assert "inert" not in drawn(training.figure_gradient_shares({"here": live})).get_supxlabel()


def test_a_small_share_is_not_written_as_zero():
    assert training._percents(np.array([[0.0, 0.4, 0.5001, 99.7, np.nan]])).tolist() == [["0", "<1", "1", "100", ""]]


def test_idec_as_released_moves_heads_by_one_term():
    ctx, batch = step_of("idec")
    table = training.gradient_shares(ctx, batch)
    inert = table[table["inert"]]
    assert (
        set(inert["term"]) == {"kd_l1", "kd_l2", "kd_l3", "kd_out"} and (inert["norm"] == 0).all() and (inert["value"] > 0).all()
    )
    weights = table.groupby("part")["weights"].first()
    assert weights["backbone"] == weights["decoder"] == 0 and weights["old heads"] and weights["new head"]


def test_idec_as_described_moves_every_part():
    ctx, batch = step_of("idec-described")
    shares = training.gradient_shares(ctx, batch).pivot(index="term", columns="part", values="share")
    assert (shares.loc[["seg", "kd_l1", "kd_l2", "kd_l3", "kd_out", "kd_logits", "arcl"], "backbone"] > 0).all()
    assert shares[["backbone", "decoder", "old heads", "new head"]].sum().to_numpy() == pytest.approx([1] * 4)


@pytest.mark.parametrize("name", ["idec", "idec-described", "dkd"])
def test_looking_at_gradients_changes_nothing(name):
    ctx, batch = step_of(name)
    if name == "idec":
        ctx.method, _ = configure("idec", {"pseudo": "class_dynamic"})
        ctx.method.grow(ctx.model, ctx.step)
    before = {key: value.clone() for key, value in ctx.model.state_dict().items()}
    training.gradient_shares(ctx, batch)
    assert all(torch.equal(value, before[key]) for key, value in ctx.model.state_dict().items())
    assert all(p.grad is None for p in ctx.model.parameters())


def test_at_step_zero_every_head_is_new():
    ctx, _ = step_of("dkd")
    ctx.step, ctx.old_model = ctx.scenario.step(0), None
    parts = training.parts_of(ctx)
    assert not parts["old heads"] and len(parts["new head"]) == len(trainable(*ctx.model.heads))


def test_which_two_to_compare(groups):
    chains = groups["mib"]
    assert training.two_to_compare({m: chains for m in ("ft", "mib", "dkd", "joint")}) == ["mib", "dkd"]
    both = dict.fromkeys(("ft", "idec", "idec-described", "lag", "lag-described", "mbs"), chains)
    assert training.two_to_compare(both) == ["idec", "idec-described"]
    assert training.two_to_compare({"ft": [tables.Chain(chains[0].runs[:1])]}) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[Run]:
    """PLOP, whose losses need what `prepare` gathers, for two steps."""
    root = tmp_path_factory.mktemp("plop")
    for step in (0, 1):
        ctx = begin("toy-5-2", "plop", step, runs=root, **TINY)
        fit(ctx, bar=False)
        evaluate(ctx)
    return find_runs(root)


def test_shares_of_finished_runs(trained):
    chains = tables.by_method(trained)
    found = training.shares_of(chains, restore, ["plop"])
    assert list(found) == ["PLOP, step 1"] and set(found["PLOP, step 1"]["term"]) == {"ce", "pod"}
    with pytest.raises(KitError, match="mbs is not among these runs"):
        training.shares_of(chains, restore, ["mbs"])


def test_counts_are_those_of_the_predictions(trained):
    """The matrix that every picture here reads is that of the masks."""
    run = trained[-1]
    ctx = restore(run)
    counter = ConfusionMatrix(len(ctx.scenario.classes))
    for batch in ctx.data.test(1):
        with torch.no_grad():
            counter.update(batch.label, ctx.method.predict(ctx.model.eval()(batch.image)))
    assert np.array_equal(counter.numpy(), run.confusion)
    pictures, said, _ = report.predictions(tables.by_method(trained), restore, 1)
    assert set(said[0]["plop"]) == {0, 1} and pictures[0].truth.shape == said[0]["plop"][1].shape


def test_prepare_gathers_once(trained):
    ctx = restore(trained[-1])
    training.prepare(ctx)
    stats = ctx.stats
    training.prepare(ctx)
    assert ctx.stats is stats and "thresholds" in stats
    first = restore(trained[0])
    training.prepare(first)
    assert first.stats == {}
