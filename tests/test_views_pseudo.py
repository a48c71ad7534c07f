"""Teachers and pseudo-labels: values by hand, artists, labels, the slider, bad weather."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pictures import drawn, legend_words

from cisskit.calibration import equal_width_edges, expected_calibration_error, reliability
from cisskit.data import Batch, Toy
from cisskit.errors import KitError
from cisskit.method import configure
from cisskit.metrics import PseudoLabelQuality
from cisskit.models import Output
from cisskit.runs import Run, find_runs
from cisskit.scenario import IGNORE, Scenario
from cisskit.train import begin, evaluate, fit, restore, train_loader
from cisskit.views import pseudo_labels as view
from cisskit.views import style, tables

TASK = Scenario.named("toy-5-2")
STEP = TASK.step(1)  # classes 1-5 old, 6 and 7 new, 8 and 9 later
SOURCE = Toy(train=1, heldout=1, test=1)
TINY = {"data_options": {"train": 64, "test": 16, "heldout": 16}, "overrides": {"epochs": 1}}


def axes():
    return Figure().subplots()


def method(name: str):
    return configure(name, {})[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """DKD has no rule, MBS and IDEC have one, PLOP's needs statistics; joint has no teacher, FT one step only."""
    root = tmp_path_factory.mktemp("runs")
    for name, steps in (("dkd", 2), ("mbs", 2), ("idec", 2), ("plop", 2), ("joint", 2), ("ft", 1)):
        for step in range(steps):
            easy = {"threshold": 0.3} if name == "idec" else {}  # nothing is sure of anything after one epoch
            ctx = begin("toy-5-2", name, step, runs=root, **{**TINY, "overrides": {"epochs": 1, **easy}})
            fit(ctx, bar=False)
            evaluate(ctx)
    return find_runs(root)


@pytest.fixture(scope="module")
def groups(runs):
    return tables.by_method(runs)


@pytest.fixture(scope="module")
def found(groups):
    return view.count_all(groups, restore, 64)


# --- what the teacher says ---


def scores_of(logits: list[float], **extra) -> Output:
    z = torch.tensor(logits).view(1, -1, 1, 1)
    return Output(z, (1, 1), {}, {k: torch.tensor(v).view(1, 1, 1, 1) for k, v in extra.items()})


def test_the_score_is_the_one_that_decides():
    z = [1.0, 3.0, 0.0]
    score, ids = view.says(scores_of(z), method("ft"))
    assert ids.item() == 1 and score.item() == pytest.approx(torch.tensor(z).softmax(0)[1].item())
    score, ids = view.says(scores_of(z), configure("mbs", {"base_loss": "bce"})[0])
    assert ids.item() == 1 and score.item() == pytest.approx(torch.tensor(3.0).sigmoid().item())
    score, ids = view.says(scores_of([9.0, 0.4, -1.0]), method("dkd"))  # its channel 0 is auxiliary
    assert ids.item() == 1 and score.item() == pytest.approx(torch.tensor(0.4).sigmoid().item())
    score, ids = view.says(scores_of([9.0, -0.4, -1.0]), method("dkd"))
    assert ids.item() == 0 and score.item() == pytest.approx(1 - torch.tensor(-0.4).sigmoid().item())
    score, ids = view.says(scores_of(z, unknown=4.0), method("idec"))
    assert ids.item() == 0 and score.item() == pytest.approx(torch.tensor(4.0).sigmoid().item())
    score, ids = view.says(scores_of(z, unknown=0.0), method("idec"))
    assert ids.item() == 1


def test_who_has_a_rule():
    assert {name: view.has_rule(method(name)) for name in ("ft", "mib", "dkd", "mbs", "idec", "lag", "ssul", "plop")} == {
        "ft": False, "mib": False, "dkd": False, "mbs": True, "idec": True, "lag": True, "ssul": True, "plop": True,
    }  # fmt: skip
    taus = {name: view.threshold_of(method(name)) for name in ("dkd", "mbs", "idec", "plop")}
    assert taus == {"dkd": None, "mbs": 0.7, "idec": 0.7, "plop": None}


def test_the_plainest_rule():
    told, ids = torch.tensor([[[0, 0, 6, 255]]]), torch.tensor([[[2, 2, 2, 2]]])
    score = torch.tensor([[[0.7, 0.69, 0.9, 0.9]]])
    assert view.believed(told, score, ids, 0.7).tolist() == [[[2, 0, 6, 255]]]
    assert view.believed(told, score, ids).tolist() == [[[2, 2, 6, 255]]]


def test_judgement_by_hand():
    told = np.array([[0, 0, 0, 0, 0, 0, 0, 6, 255, 0]])
    truth = np.array([[1, 1, 8, 1, 1, 0, 0, 6, 255, 255]])
    made = np.array([[1, 2, 1, 0, 255, 255, 0, 6, 255, 1]])
    kinds = view.judge(told, made, truth, STEP)
    words = ["accepted", "mixed up", "false alarm", "denied", "spared", "needless"]
    assert [list(view.JUDGED)[k - 1] for k in kinds[0, :6]] == words and list(view.JUDGED) == words
    assert kinds[0, 6:].tolist() == [0, 0, 0, 0], "background as such, told, void, and truth unknown: nothing to say"
    colours = [colour for colour, _ in view.JUDGED.values()]
    assert len(set(colours)) == 6 and colours[3] == style.ERRORS["forgotten"][0]


# --- pictures of a batch ---


@pytest.fixture
def seen() -> view.Look:
    """Two images of 12 x 12: class 2 on top (half of it sure), new 6 below at the left, later 8 at its right."""
    truth = torch.zeros(2, 12, 12, dtype=torch.long)
    truth[:, :4], truth[:, 8:, :4], truth[:, 8:, 9:] = 2, 6, 8
    told = torch.where(truth == 6, 6, 0)
    ids = torch.where((truth == 2) | (truth == 8), 2, 0)
    score = torch.full((2, 12, 12), 0.9)
    score[:, 2:4] = 0.5
    targets = view.believed(told, score, ids, 0.7)
    targets[:, 5] = IGNORE
    images = [torch.zeros(3, 12, 12, dtype=torch.uint8)] * 2
    return view.Look(images, ["a", "b"], told, truth, score, ids, targets, True, STEP, TASK, SOURCE.palette)


def test_targets_are_outlined_hatched_and_white(seen):
    ax = axes()
    kinds = view.show_targets(seen.told[0].numpy(), seen.targets[0].numpy(), seen.ids[0].numpy(), SOURCE.palette, ax)
    assert kinds == {"told", "rejected", "ignored"}
    picture = ax.images[0].get_array()
    assert picture[0, 0].tolist() == SOURCE.palette[2].tolist(), "accepted: in the colour of its class"
    assert picture[3, 0].tolist() == [255, 255, 255] and picture[5, 0].tolist() == [255, 255, 255]
    hatches = {h for c in ax.collections if hasattr(c, "hatches") for h in c.hatches if h}
    assert hatches == {view.REJECTED, view.IGNORED}


def test_rows_of_a_look(seen):
    fig = drawn(view.figure_look(seen, title="words"))
    labels = [ax.get_ylabel().replace("\n", " ") for ax in fig.axes if ax.get_ylabel()]
    assert labels[:6] == [
        "image",
        "really there, untold hatched",
        "the teacher names",
        "its score",
        "targets",
        "against the truth",
    ]
    assert [ax.get_title() for ax in fig.axes[:2]] == ["a", "b"] and fig.get_suptitle() == "words"
    words = legend_words(fig)
    assert {"outlined: told", "rejected", "ignored", "old class, taught as such", "no old class, taught as one"} <= set(words)
    assert "taught as another old class" not in words, "only what is on show"
    assert next(ax for ax in fig.axes if ax.images and ax.images[0].get_clim() == (0, 1))


def test_a_single_image_lies_along_a_row(seen):
    one = view.Look(
        seen.images[:1],
        ["a"],
        *(m[:1] for m in (seen.told, seen.truth, seen.score, seen.ids, seen.targets)),
        True,
        STEP,
        TASK,
        SOURCE.palette,
    )
    fig = drawn(view.figure_look(one))
    assert [ax.get_title() for ax in fig.axes[:6]][-1] == "against\nthe truth"


def test_the_threshold_moves_the_picture(seen):
    low, high = (view.judge(seen.told, seen.at(t), seen.truth, STEP) for t in (0.4, 0.7))
    denied = 1 + list(view.JUDGED).index("denied")
    assert (low == denied).sum() == 0 and (high == denied).sum() == 2 * 2 * 12
    assert "targets at\nτ = 0.40" in [ax.get_ylabel() for ax in drawn(view.figure_accepted(seen, 0.4)).axes]


def test_the_problem_needs_no_run():
    fig = drawn(view.figure_problem())
    assert {"old class, taught as such", "no old class, taught as one", "old class, taught as background"} <= set(
        legend_words(fig)
    )


# --- counts ---


def tally(cells: dict[tuple[float, int, str], int], truth: dict[int, int], **more) -> view.Tally:
    """From (score, class that the teacher names, what it really is) -> pixels."""
    counts = np.zeros((view.BINS, 6, 4), dtype=np.int64)
    sums = np.zeros((view.BINS, 6))
    for (score, k, really), n in cells.items():
        at = min(int(score * view.BINS + 1e-6), view.BINS - 1)
        counts[at, k, view.REALLY.index(really)] += n
        sums[at, k] += n * score
    totals = np.array([truth.get(c, 0) for c in range(6)])
    given = {"quality": None, "threshold": None, "images": 1, "scenario": TASK, "step": STEP, "palette": SOURCE.palette, **more}
    return view.Tally(counts, sums, totals, **given)


@pytest.fixture
def counted() -> view.Tally:
    """The second group of the notebook's exercise: 0.95 with 380 of 400 right, 0.65 with 40 of 100."""
    return tally(
        {
            (0.95, 1, "right"): 380, (0.95, 1, "background"): 20, (0.65, 2, "right"): 40, (0.65, 2, "another old class"): 50,
            (0.65, 2, "a class it cannot know"): 10, (0.99, 0, "another old class"): 80, (0.99, 0, "right"): 900,
        },
        {0: 920, 1: 400, 2: 150},
    )  # fmt: skip


def test_sums_by_hand(counted):
    assert counted.accepted(0.7).tolist() == [[380, 0, 20, 0], [0] * 4, [0] * 4, [0] * 4, [0] * 4]
    assert counted.accepted(0.0)[1].tolist() == [40, 50, 0, 10]
    low, high = counted.classes(0.5), counted.classes(0.9)
    assert low.loc[1].tolist()[:2] == pytest.approx([0.95, 0.95]) and low.loc[2].tolist()[:2] == pytest.approx([0.4, 40 / 150])
    assert np.isnan(high.loc[2, "precision"]) and high.loc[2, "recall"] == 0 and np.isnan(high.loc[3, "recall"]), "no pixel of 3"
    precision, recall = counted.sweep()
    assert precision[0] == pytest.approx(420 / 500) and recall[0] == pytest.approx(420 / 550)
    assert precision[int(0.9 * view.BINS)] == pytest.approx(0.95) and np.isnan(precision[-1]) and recall[-1] == 0


def test_brier_and_calibration_by_hand(counted):
    parts = counted.brier()
    assert parts.calibration == pytest.approx(0.2 * 0.25**2) and parts.uncertainty == pytest.approx(0.84 * 0.16)
    assert counted.calibration_error() == pytest.approx(0.2 * 0.25)
    above = counted.brier(0.9)
    assert above.score == pytest.approx(0.95 * 0.05) and above.resolution == pytest.approx(0)
    assert np.isnan(counted.brier(0.97).score)


def test_a_threshold_is_an_edge_of_the_bins():
    exactly = tally({(k / 100, 1, "right"): 1 for k in range(100)}, {1: 100})
    for k in range(101):
        assert exactly.accepted(k / 100).sum() == 100 - k, "a score that equals the threshold is accepted"


def test_sentences_are_computed(counted):
    assert view.sentence(counted, 0.9) == (
        "τ = 0.90: 69 % of the old pixels get their class back; of what is accepted 95.0 % is right (another old class 0.0 %, "
        "background 5.0 %, a class it cannot know 0.0 %)."
    )
    assert "nothing is accepted" in view.sentence(counted, 0.97)
    assert view.brier_sentence("all", counted.brier()).startswith("all: Brier 0.")
    assert view.brier_sentence("accepted", counted.brier(0.97)) == "accepted: no pixel"
    assert "no old pixel is hidden" in view.sentence(tally({(0.9, 1, "background"): 5}, {0: 5}), 0.5)


def test_counts_equal_a_loop_over_pixels(groups):
    """Every number again, from the pixels themselves, for a softmax, a sigmoid and an unknown class."""
    for name in ("mbs", "dkd", "idec"):
        ctx = restore(groups[name][0].last)
        counted = view.count(ctx, 64)
        quality, scores, ids, truths = PseudoLabelQuality(ctx.scenario, ctx.step), [], [], []
        with torch.no_grad():
            for batch in train_loader(ctx, truth=True).epoch(0, whole=True):
                teacher = ctx.old_model(batch.image)
                score, won = view.says(teacher, ctx.method)
                where = (batch.label == 0) & (batch.extra["truth"] != IGNORE)
                scores.append(score[where])
                ids.append(won[where])
                truths.append(batch.extra["truth"][where])
                quality.update(batch.extra["truth"], batch.label, ctx.method.targets(batch, teacher, ctx))
        score, won, truth = (torch.cat(parts).numpy() for parts in (scores, ids, truths))
        named = won > 0
        assert counted.counts.sum() == len(score) and counted.counts[:, 1:].sum() == named.sum()
        assert counted.truth.tolist() == [(truth == c).sum() for c in range(6)]
        for t in (0.0, 0.31, 0.7, 0.95):
            taken = named & (score >= np.float32(t))
            assert counted.accepted(t).sum() == pytest.approx(taken.sum(), abs=1), (name, t)
            assert counted.accepted(t)[:, 0].sum() == pytest.approx((taken & (won == truth)).sum(), abs=1)
        exact = expected_calibration_error(reliability(score[named], won[named] == truth[named], equal_width_edges()))
        assert counted.calibration_error() == pytest.approx(exact, abs=1e-6)
        if name != "dkd":
            assert counted.quality == quality.result()
        else:
            assert counted.quality is None and counted.threshold is None


def test_own_threshold_and_plain_rule_agree_where_they_are_the_same(found):
    """IDEC's fixed threshold is the plainest rule."""
    table = found[0]["idec"][1].classes(0.3)
    assert table["recall"].max() > 0
    assert table["precision"].to_numpy() == pytest.approx(table["own precision"].to_numpy(), nan_ok=True, abs=1e-6)
    assert table["recall"].to_numpy() == pytest.approx(table["own recall"].to_numpy(), nan_ok=True, abs=1e-6)


def test_what_is_left_out_is_said(found, groups, runs, tmp_path):
    tallies, faults = found
    assert set(tallies) == {"dkd", "idec", "mbs", "plop"} and all(list(each) == [1] for each in tallies.values())
    assert faults == ["FT is left out: only step 0 has been run.", "Joint is left out: it has no teacher."]
    assert view.count_all({"joint": groups["joint"]}, restore) == ({}, ["Joint is left out: it has no teacher."])

    def broken(run):
        raise KitError("its weights are gone.")

    assert view.count_all({"mbs": groups["mbs"]}, broken) == ({}, ["MBS is left out: its weights are gone."])
    assert view.look_all({"mbs": groups["mbs"]}, broken) == {}
    assert view.count(restore(runs[0])) is None or runs[0].step > 0
    first = next(run for run in runs if run.step == 0)
    assert view.count(restore(first)) is None and view.look(Batch(torch.zeros(1), torch.zeros(1)), restore(first)) is None


def test_table_of_teachers(found):
    table = view.quality_table(found[0]).set_index("method")
    assert table["own rule"].to_dict() == {"PLOP": "own", "DKD": "none", "IDEC (released)": "τ = 0.3", "MBS": "τ = 0.7"}
    assert table.loc["DKD", ["precision %", "recall %", "contamination %", "ignored %"]].tolist() == [tables.MISSING] * 4
    assert float(table.loc["PLOP", "ignored %"]) >= 0 and table.loc["IDEC (released)", "ignored %"] == "0.0"


def test_images_of_every_method(groups):
    looks = view.look_all(groups, restore, 2)
    assert {m: seen[1].own for m, seen in looks.items()} == {"plop": True, "dkd": False, "idec": True, "mbs": True}
    assert view.two_to_show(looks) == ["mbs", "dkd"]
    assert view.two_to_show({m: looks[m] for m in ("idec", "mbs")}) == ["idec", "mbs"] and view.two_to_show({}) == []
    dkd = looks["dkd"][1]
    assert torch.equal(dkd.targets, torch.where(dkd.told == 0, dkd.ids, dkd.told)), "every word of the teacher"
    idec = looks["idec"][1]
    assert torch.equal(idec.targets, idec.at(0.3)) and not torch.equal(idec.targets, idec.told), "its own rule"
    for name, seen in looks.items():
        drawn(view.figure_look(seen[1], title=name))


# --- pictures of the counts ---


def test_reliability_diagram(counted):
    ax = view.plot_reliability({"ft": (counted.curve().grouped(10), "#8c8c8c")}, axes(), threshold=0.7)
    diagonal, curve, line = ax.get_lines()
    assert list(diagonal.get_ydata()) == [0, 100] and curve.get_xdata() == pytest.approx([0.65, 0.95])
    assert curve.get_ydata() == pytest.approx([40, 95]) and list(line.get_xdata()) == [0.7, 0.7]
    assert ax.get_xlim() == (-0.02, 1.02) and ax.get_ylim() == (-2, 102) and "0 to 1" in ax.get_xlabel()
    empty = tally({}, {})
    assert len(view.plot_reliability({"ft": (empty.curve().grouped(10), "k")}, axes()).get_lines()[1].get_xdata()) == 0


def test_sweep_shows_both_thresholds():
    own = tally({(0.9, 1, "right"): 5}, {1: 10}, threshold=0.7)
    ax = view.plot_sweep(own, axes(), threshold=0.5)
    labels = [line.get_label() for line in ax.get_lines()]
    assert labels[:2] == ["precision", "recall"] and "τ of the method" in labels
    assert "τ of the method" not in [line.get_label() for line in view.plot_sweep(own, axes(), threshold=0.7).get_lines()]


def test_classes_have_disc_ring_and_strokes(counted):
    ax = view.plot_classes(counted, axes(), threshold=0.5)
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{c} {TASK.classes[c]}" for c in range(1, 6)]
    discs = [line for line in ax.get_lines() if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
    assert [line.get_xdata()[0] for line in discs[:2]] == pytest.approx([95, 40])
    assert discs[1].get_markerfacecolor() == to_hex(SOURCE.palette[2] / 255)
    names = {TASK.classes[c]: 0.5 for c in range(6)}
    own = tally({(0.9, 1, "right"): 5}, {1: 10}, quality={"precision": names, "recall": names})
    strokes = [line for line in view.plot_classes(own, axes(), threshold=0.5).get_lines() if line.get_marker() == "|"]
    assert {line.get_xdata()[0] for line in strokes} == {50.0}


def test_of_many_classes_the_least_found_are_shown():
    task = Scenario.named("ade-100-50")
    counts = np.zeros((view.BINS, 101, 4), dtype=np.int64)
    counts[-1, 1:, 0] = np.arange(1, 101)
    many = view.Tally(
        counts, counts.sum(axis=2) * 1.0, np.full(101, 100), None, None, 1, task, task.step(1), np.zeros((256, 3), np.uint8)
    )
    ax = view.plot_classes(many, axes(), threshold=0.5)
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{c} {task.classes[c]}" for c in range(1, 21)]
    drawn(view.figure_threshold(many, 0.5))


def test_the_whole_picture(counted):
    fig = drawn(view.figure_threshold(counted, 0.9, title="DKD"))
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == ["Does the score mean what it says?", "What a threshold trades", "Class by class"]
    assert fig.get_suptitle().startswith("DKD\nτ = 0.90: 69 %") and "uncertainty" in fig.get_suptitle()
    assert not any("own rule" in w for w in legend_words(fig))
    drawn(view.figure_threshold(tally({}, {}), 0.5))


def test_teachers_side_by_side(found):
    fig = drawn(view.figure_teachers(found[0]))
    assert [ax.get_title() for ax in fig.axes] == ["the teacher of step 1"]
    assert legend_words(fig) == [style.method_title(m) for m in found[0]]
    steps = drawn(view.figure_by_step(found[0]))
    assert len(steps.axes) == 3 and steps.axes[0].get_xlabel() == "teacher of step" and steps.axes[2].get_ylim()[0] == 0


def test_the_slider_sums_and_does_not_count_again(counted, seen, capsys, monkeypatch):
    own = tally({(0.9, 1, "right"): 5}, {1: 10}, threshold=0.8, quality={"precision": {}, "recall": {}})
    monkeypatch.setattr(view, "count", None)
    box = view.explore_threshold({"mbs": {1: own}, "dkd": {1: counted}}, {"dkd": {1: seen}})
    assert capsys.readouterr().out.count("Figure(") == 1, "a static picture first, of the method with a rule"
    method_, step, slider = box.children[0].children
    assert (method_.value, step.value, slider.value) == ("mbs", 1, 0.8)
    method_.value = "dkd"
    assert capsys.readouterr().out.count("Figure(") == 2, "with images, where there are some"
    slider.value = 0.3
    assert capsys.readouterr().out.count("Figure(") == 2


def test_start_of_the_slider(counted):
    assert view.start(counted) == 0.7
    assert view.start(tally({}, {}, threshold=0.55)) == 0.55


def test_without_a_teacher_the_pictures_say_so(capsys):
    for fig in (view.figure_teachers({}), view.figure_by_step({})):
        assert drawn(fig).texts[0].get_text() == view.NOBODY
    assert view.explore_threshold({}).children == () and "Figure(" in capsys.readouterr().out
    assert view.quality_table({}).empty
