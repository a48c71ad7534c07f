"""Views of IDEC and LAG: artists, labels and numbers on small arrays and untrained networks; never pixels of a rendering."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words
from untrained import step_of

from cisskit.data import Batch, Toy
from cisskit.errors import KitError
from cisskit.losses import merged, region_contrast
from cisskit.method import configure, trainable
from cisskit.models import Output, create
from cisskit.scenario import BACKGROUND, Scenario
from cisskit.semantics import channel_change, semantic_split
from cisskit.views import invariance, regions

TASK = Scenario.named("toy-5-2")
SOURCE = Toy(train=1, heldout=1, test=1)
STEP = TASK.step(1)  # 1..5 old, 6 and 7 new, 8 and 9 to come


def axes():
    return Figure().subplots()


def shown(fig: Figure) -> list:
    return [ax for ax in fig.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Features as after a ReLU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


def names_of(kinds) -> list[str]:
    return [regions.KINDS[k] for k in np.asarray(kinds).ravel()]


@pytest.fixture
def batch() -> Batch:
    """Two images of 16 x 16: old class 2 on top, the new 6 at the left of the lower half, a later 8 at its right."""
    truth = torch.zeros(2, 16, 16, dtype=torch.long)
    truth[:, :6], truth[:, 10:, :6], truth[:, 10:, 12:] = 2, 6, 8
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    extra = {"names": ["a", "b"], "from_memory": torch.zeros(2, dtype=torch.bool), "truth": truth, "saliency": truth > 0}
    return Batch(image, torch.where(truth == 6, 6, 0), extra)


def open_teacher(truth: torch.Tensor, *, sure: float = 3.0, n: int = 7) -> Output:
    """A teacher of n open channels that gives the upper half of class 2 with score ``sure``, the lower one with 0.4, all else
    to the background."""
    scores = torch.full((len(truth), n, 16, 16), -3.0)
    scores[:, 1] = 2.0
    scores[:, 3, :6] = 0.4
    scores[:, 3, :3] = sure
    scores[:, 1, :6] = -3.0
    return Output(scores[:, 1:], (16, 16), {"decoder": maps(len(truth), 8, 16, 16, seed=3)}, {"unknown": scores[:, :1]})


@pytest.fixture
def ctx(tmp_path):
    """What a view looks at of step 1, without data or networks."""
    method, _ = configure("lag", {})
    idec, _ = configure("idec", {})
    method = SimpleNamespace(
        threshold=method.threshold, ranking=method.ranking, margin=method.margin, rho=0.5, least_threshold=idec.least_threshold,
        mode="released", title="IDEC", inert=frozenset({"kd_out"}),
    )  # fmt: skip
    data = SimpleNamespace(palette=SOURCE.palette, source=SOURCE)
    return SimpleNamespace(
        step=STEP, scenario=TASK, data=data, method=method, old_model=None, run=SimpleNamespace(folder=tmp_path)
    )


# --- what becomes of pixels ---


def test_kinds_of_pixels_by_hand():
    label = torch.tensor([[[6, 0, 0, 0, 0, 255]]])
    targets = torch.tensor([[[6, 2, 0, 0, 0, 255]]])
    won = torch.tensor([[[2, 2, 2, 0, 0, 2]]])
    salient = torch.tensor([[[1, 1, 0, 1, 0, 0]]])
    assert names_of(regions.kinds_of(label, targets, salient, won)) == [
        "told", "accepted", "rejected", "unknown", "background", "void",
    ]  # fmt: skip
    assert names_of(regions.kinds_of(label, label, None, None)) == ["told", *["unknown"] * 4, "void"], "no maps, no teacher"


def test_the_winner_is_a_class_or_nobody():
    scores = torch.tensor([[4.0, 1, 0, 0], [0, 4, 0, 0], [0, 0, 0, 2]]).T.reshape(1, 4, 1, 3)  # pixels: unknown, background, 2
    score, won = regions.winner(Output(scores[:, 1:], (1, 3), extra={"unknown": scores[:, :1]}))
    assert won[0, 0].tolist() == [0, 0, 2]
    assert score[0, 0].tolist() == pytest.approx(torch.tensor([4.0, 4, 2]).sigmoid().tolist())


def test_regions_are_outlined_hatched_and_grey(ctx, batch):
    teacher = open_teacher(batch.extra["truth"])
    targets = torch.where(batch.label == 0, 0, batch.label)
    targets[:, :3] = 2
    fig = drawn(regions.figure_regions(batch, targets, teacher, ctx))
    rows = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel() and ax.get_label() != "<colorbar>"]
    assert rows == ["image", "winning score\nof the teacher", "what becomes\nof each pixel", "really there"]
    assert legend_words(fig)[-3:] == ["outlined: told", "rejected", "unknown"]
    picture = shown(fig)[4]
    assert [h for c in picture.collections for h in getattr(c, "hatches", []) if h] == [regions.REJECTED]
    painted = picture.images[0].get_array()
    assert (painted[1, 1] == SOURCE.palette[2]).all() and (painted[4, 1] == 255).all(), "accepted, rejected"
    assert painted[15, 15].tolist() == pytest.approx([255 * part for part in to_rgb(regions.UNKNOWN)], abs=1)
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_label() == "<colorbar>"] == ["σ (0 to 1)"]


def test_regions_without_a_teacher_have_no_scores(ctx, batch):
    fig = drawn(regions.figure_regions(batch, batch.label, None, ctx))
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()] == ["image", "what becomes\nof each pixel", "really there"]
    assert "rejected" not in legend_words(fig)
    table = regions.region_table(batch, batch.label, None, ctx).set_index("pixels")
    assert list(table.index) == ["told", "unknown", "background"]
    assert table["% of all"].sum() == pytest.approx(100, abs=0.2)
    assert table.loc["background", "really background %"] == 100


def test_the_table_of_regions_by_hand(ctx, batch):
    targets = batch.label.clone()
    targets[:, :2], targets[:, 2] = 2, 1  # of 48 accepted pixels a third gets a wrong class
    table = regions.region_table(batch, targets, open_teacher(batch.extra["truth"]), ctx).set_index("pixels")
    assert table.loc["accepted", "class is right %"] == "66.7" and table.loc["rejected", "class is right %"] == "–"
    assert table.loc["accepted", "% of all"] == round(100 * 48 / 256, 1)
    assert table.loc["rejected", "really old %"] == 100 and table.loc["unknown", "really to come %"] == 100


# --- thresholds ---


def winning(medians: list[float]) -> regions.Winning:
    scores = np.concatenate([np.full(30, 0.9), np.full(10, 0.3), np.full(8, 0.55)])
    ids = np.array([1] * 40 + [3] * 8)
    return regions.Winning(ids, scores, np.array([True] * 30 + [False] * 18), np.array(medians))


def test_thresholds_of_classes_are_marked(ctx):
    fig = drawn(regions.figure_thresholds(winning([0.9, np.nan, 0.55, np.nan, np.nan]), ctx))
    panels = shown(fig)
    assert [ax.get_title().split("\n") for ax in panels] == [
        [f"1 {TASK.classes[1]}", "40 pixels"],
        [f"3 {TASK.classes[3]}", "8 pixels"],
    ]
    lines = [[line.get_xdata()[0] for line in ax.get_lines()] for ax in panels]
    assert lines == [[0.7, 0.7], [0.7, 0.55]], "never above the fixed one"
    right = sum(bar.get_height() for bar in panels[0].containers[0])
    wrong = sum(bar.get_height() for bar in panels[0].containers[1])
    assert (right, wrong) == pytest.approx((75, 25)) and panels[0].get_yscale() == "log"
    assert "class-dynamic (lower for 1 of 2)" in legend_words(fig)
    assert panels[0].get_ylabel() == "pixels (%)" and panels[1].get_xlabel() == "winning score σ"


def test_a_class_never_falls_below_the_least_threshold(ctx):
    panel = shown(regions.figure_thresholds(winning([0.1] * 5), ctx))[0]
    assert panel.get_lines()[1].get_xdata()[0] == ctx.method.least_threshold


def test_thresholds_show_the_most_frequent_classes(ctx):
    panels = shown(drawn(regions.figure_thresholds(winning([0.5] * 5), ctx, most=1)))
    assert [ax.get_title().split("\n")[0] for ax in panels] == [f"1 {TASK.classes[1]}"]


def test_nobody_wins_without_a_teacher(ctx):
    assert regions.winning(ctx) is None


# --- regions as features ---


def pair_of_outputs() -> tuple[Output, Output]:
    g = torch.Generator().manual_seed(5)
    student, teacher = (
        Output(torch.randn(2, n, 16, 16, generator=g), (16, 16), {"decoder": maps(2, 8, 16, 16, seed=n)},
               {"unknown": torch.randn(2, 1, 16, 16, generator=g)}) for n in (8, 6)
    )  # fmt: skip
    return student, teacher


def test_region_features_are_those_of_the_loss(batch):
    student, teacher = pair_of_outputs()
    found = regions.region_features(student, teacher, batch, STEP)
    near, far = found.distances
    loss = region_contrast(
        student.features["decoder"], teacher.features["decoder"], batch.label, merged(teacher.open_logits), n_old=STEP.n_old
    )
    assert len(near) > 4 and np.maximum(near - far + 1, 0).mean() == pytest.approx(loss.item(), abs=1e-5)
    assert regions.region_distances(found, TASK.classes)["triplet"].mean() == pytest.approx(loss.item(), abs=1e-3)
    assert set(found.ids) <= set(range(1, 6)) and set(found.other_ids) <= set(range(8))
    assert (found.other_images[found.nearest] == found.images).all(), "a negative is of the same image"
    assert (found.other_ids[found.nearest] != found.ids).all()


def test_a_copy_of_the_teacher_has_not_moved(ctx, batch):
    _, teacher = pair_of_outputs()
    found = regions.region_features(teacher, teacher, batch, STEP)
    assert np.abs(found.distances[0]).max() == 0
    fig = drawn(regions.figure_space({"before": found, "after": found}, ctx))
    left, right = shown(fig)
    assert left.get_title().startswith("before\nto the disc 0.000") and not left.texts, "no arrow where nothing moved"
    assert "% of the variance" in left.get_xlabel() and "second component" in left.get_ylabel() and not right.get_ylabel()
    rings = [line for line in left.get_lines() if line.get_color() == "none"]
    assert len(rings) == 2 * len(found.ids)
    assert left.get_aspect() == 1 and left.get_xlim() == right.get_xlim()


def test_moved_regions_have_arrows(ctx, batch):
    found = regions.region_features(*pair_of_outputs(), batch, STEP)
    ax = regions.plot_space(found, lambda rows: rows[:, :2], SOURCE.palette, axes())
    assert len(ax.texts) == len(found.ids)


def test_regions_of_no_old_class(ctx, batch):
    student, teacher = pair_of_outputs()
    teacher.scores[:, 0] = 50  # background wins everywhere
    found = regions.region_features(student, Output(teacher.scores, (16, 16), teacher.features, teacher.extra), batch, STEP)
    assert len(found.ids) == 0 and regions.region_distances(found, TASK.classes).empty
    drawn(regions.figure_space({"before": found}, ctx))


def test_principal_components_by_hand():
    rows = np.array([[1.0, 0, 5], [-1, 0, 5], [0, 0.5, 5], [0, -0.5, 5]])
    centre, directions, shares = regions.components(rows)
    assert centre == pytest.approx([0, 0, 5]) and shares == pytest.approx([0.8, 0.2])
    assert np.abs(directions) == pytest.approx(np.array([[1, 0, 0], [0, 1, 0]]))
    assert regions.components(rows[:1])[2] == pytest.approx([0, 0]), "one region has no variance"


# --- what acts ---


@pytest.mark.parametrize("name", ["idec", "lag"])
def test_inert_terms_reach_no_weight(name):
    ctx, batch = step_of(name)
    table = regions.gradient_table(ctx, batch).set_index("term")
    n = len(trainable(ctx.model))
    assert table.loc["seg", "share of the gradient %"] == 100 and table.loc["seg", "weight tensors reached"] == f"{n} of {n}"
    others = table.drop("seg")
    assert set(others.index) <= ctx.method.inert and {"kd_l1", "kd_out"} <= set(others.index)
    assert (others["gradient norm"] == 0).all() and (others["weight tensors reached"] == f"0 of {n}").all()
    sentence = regions.mode_sentence(ctx)
    assert 'mode = "released"' in sentence and "head 3: classes 6-7" in sentence and "kd_out" in sentence


@pytest.mark.parametrize("name", ["idec-described", "lag-described"])
def test_terms_of_the_described_mode_act(name):
    ctx, batch = step_of(name)
    if "prototypes" in ctx.model.aux:
        ctx.model.aux["prototypes"].mean.uniform_()
        ctx.model.aux["prototypes"].count.fill_(1)
    table = regions.gradient_table(ctx, batch).set_index("term")
    acting = table.drop("spm", errors="ignore")  # needs a pseudo-label, which an untrained teacher does not give
    assert (acting["gradient norm"] > 0).all() and table["share of the gradient %"].sum() == pytest.approx(100, abs=0.5)
    assert "backbone, decoder, all heads" in regions.mode_sentence(ctx) and "every term" in regions.mode_sentence(ctx)


def test_looking_at_gradients_changes_nothing():
    ctx, batch = step_of("idec")
    ctx.method, _ = configure("idec", {"pseudo": "class_dynamic"})
    ctx.method.grow(ctx.model, STEP)
    before = {name: value.clone() for name, value in ctx.model.state_dict().items()}
    regions.gradient_table(ctx, batch)
    assert all(torch.equal(value, before[name]) for name, value in ctx.model.state_dict().items())
    assert all(p.grad is None for p in ctx.model.parameters())


def test_step_zero_is_the_same_in_both_modes():
    ctx, batch = step_of("lag")
    model = ctx.method.build(TASK, "toy", None)
    first = SimpleNamespace(**{**vars(ctx), "step": TASK.step(0), "old_model": None, "model": model})
    assert "both modes are the same" in regions.mode_sentence(first)
    table = regions.gradient_table(first, Batch(batch.image, torch.zeros_like(batch.label), batch.extra))
    taps = len(list(model.decoder.taps.parameters()))
    total = len(trainable(model))
    assert table["weight tensors reached"].tolist() == [f"{total - taps} of {total}"], "nothing but KD reads the auxiliary layers"


# --- SI and SS ---


def test_divergences_are_split_at_rho():
    teacher = maps(2, 6, 4, 4)
    student = teacher.clone()
    student[:, 4:] += 3 * maps(2, 2, 4, 4, seed=9)  # two channels move
    si, ss = semantic_split(student, teacher, 4 / 6)
    assert ss.tolist() == [4, 5]
    ax = invariance.plot_divergence(channel_change(student, teacher), si, axes(), bins=10)
    heights = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert heights == [4, 2] and to_rgb(ax.patches[0].get_facecolor()) == to_rgb(invariance.SI)
    line = ax.get_lines()[0].get_xdata()[0]
    moved = channel_change(student, teacher).divergence
    assert moved[:4].max() < line < moved[4:].min()
    assert ax.get_xlabel() == "divergence KL(old || new) (nats)" and ax.get_ylabel() == "channels"


def test_frozen_features_say_that_nothing_moved():
    same = maps(2, 6, 4, 4)
    si, _ = semantic_split(same, same, 0.5)
    ax = invariance.plot_divergence(channel_change(same, same), si, axes())
    assert [text.get_text() for text in ax.texts] == ["no channel moved"] and not ax.get_lines()
    assert sum(bar.get_height() for bar in ax.patches) == 6
    scatter = invariance.plot_entropies(channel_change(same, same), si, axes())
    for points in scatter.collections:
        offsets = np.asarray(points.get_offsets())
        assert len(offsets) == 3 and offsets[:, 0] == pytest.approx(offsets[:, 1])
    assert "nats" in scatter.get_xlabel() and "nats" in scatter.get_ylabel()


def test_channels_of_several_layers_stand_below_each_other():
    pair = (maps(2, 6, 4, 4), maps(2, 6, 4, 4, seed=1))
    fig = drawn(invariance.figure_channels({"features": pair, "head": pair}, 0.5))
    assert [ax.get_title("left") for ax in fig.axes[::2]] == ["features", "head"]
    assert legend_words(fig)[0] == "semantic-invariant: the 50 % that moved least"


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_maps_of_both_kinds(ctx, batch, rho):
    pair = (maps(2, 6, 4, 4), maps(2, 6, 4, 4, seed=1))
    fig = drawn(invariance.figure_maps(batch, pair, ctx, rho))
    rows = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel() and ax.get_label() != "<colorbar>"]
    n = round(6 * rho)
    assert rows[1:3] == [f"{n} SI channels\nof the student", f"{6 - n} SS channels\nof the student"]
    assert all(ax.images[0].get_clim() == (0, 1) for ax in shown(fig)[2:])
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_label() == "<colorbar>"] == ["mean size, per image (0 to 1)", "cosine"]


def test_negative_features_widen_the_scale_of_cosines(ctx, batch):
    teacher = maps(2, 6, 4, 4)
    fig = invariance.figure_maps(batch, (-teacher, teacher), ctx, 1.0)
    assert shown(fig)[-1].images[0].get_clim() == (-1, 1)


def test_the_slider_redraws(ctx, batch, capsys):
    pair = (maps(2, 6, 4, 4), maps(2, 6, 4, 4, seed=1))
    box = invariance.explore_maps(batch, pair, ctx)
    assert capsys.readouterr().out.count("Figure") == 1, "one static picture before the control"
    rho = box.children[0]
    assert (rho.min, rho.max, rho.value) == (0, 1, 0.5)
    rho.value = 0.8
    assert capsys.readouterr().out.count("Figure") == 2


def test_a_head_has_an_inside():
    ctx, batch = step_of("lag")
    inside = invariance.inside_head(ctx.model, batch)
    features = invariance.features_of(ctx.model, batch)
    assert inside.shape == features.shape and (inside >= 0).all()
    torch.testing.assert_close(ctx.model.heads[0][-1](inside), ctx.model(batch.image).extra["unknown"], atol=1e-5, rtol=1e-4)
    assert torch.equal(features, invariance.features_of(ctx.old_model, batch)), "before training both are one network"
    plain = create("toy", None)
    plain.add_head(2)
    with pytest.raises(KitError, match="head 0 is a Conv2d without layers inside"):
        invariance.inside_head(plain, batch)


# --- rules ---


def test_rules_accept_as_they_say(ctx, batch):
    teacher = open_teacher(batch.extra["truth"]).open_logits
    found = invariance.rules(batch, teacher, ctx)
    assert len(found.scores) == 2 * 6 * 16 and set(found.ids.tolist()) == {2} and found.right.all()
    sure = found.scores > 0.7
    assert np.array_equal(found.accepted[invariance.PLAIN], sure) and sure.sum() == 2 * 3 * 16
    assert np.array_equal(found.accepted[invariance.MARGIN], sure & (found.margins >= 0.3))
    assert np.array_equal(found.accepted[invariance.RELEASED], sure & ((1 - found.margins) * 3 > 0.5)), "class 2 is channel 3"
    certain = open_teacher(batch.extra["truth"], sure=9.0).open_logits
    assert not invariance.rules(batch, certain, ctx).accepted[invariance.RELEASED].any(), "a sure pixel is refused"


def test_rules_are_drawn_with_their_areas(ctx, batch):
    teacher = open_teacher(batch.extra["truth"]).open_logits
    fig = drawn(invariance.figure_rules(invariance.rules(batch, teacher, ctx), ctx))
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == list(invariance.RULES)
    assert fig.axes[0].get_title().endswith("accepts 50 %, 100 % of them right")
    ranking = [(line.get_label(), line.get_xdata()[0]) for line in fig.axes[1].get_lines()]
    assert ranking == [("border for class 1", pytest.approx(0.75)), ("border for class 5", pytest.approx(1 - 0.5 / 6))]
    assert fig.axes[0].get_ylabel() == "winning score σ of an old class" and "lead" in fig.axes[0].get_xlabel()


def test_accepted_labels_of_each_rule(ctx, batch):
    teacher = open_teacher(batch.extra["truth"]).open_logits
    fig = drawn(invariance.figure_accepted(batch, teacher, ctx))
    rows = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    assert rows == ["image", "threshold\nalone", "released\nranking", "margin", "really\nthere"]
    labels = invariance.pseudo_labels(batch, teacher, ctx)[invariance.PLAIN]
    assert (labels[:, :3] == 2).all() and (labels[:, 3:10] == BACKGROUND).all() and (labels[:, 10:, :6] == 6).all()


# --- over the batch, prototypes ---


def test_products_by_hand():
    student = torch.tensor([[3.0, 4], [0, 2]]).view(2, 2, 1, 1)
    teacher = torch.tensor([[6.0, 8], [5, 0]]).view(2, 2, 1, 1)
    assert invariance.products((student, teacher), normalise=False).tolist() == [[50, 15], [16, 0]]
    assert invariance.products((student, teacher), normalise=True).tolist() == [pytest.approx([1, 0.6]), pytest.approx([0.8, 0])]


def test_products_of_both_modes():
    fig = drawn(invariance.figure_products((maps(3, 6, 4, 4), maps(3, 6, 4, 4, seed=1)), 0.5))
    left, right = shown(fig)
    assert left.get_title().startswith("released") and right.images[0].get_clim() == (0, 1)
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_label() == "<colorbar>"] == ["inner product", "cosine"]


def distances() -> np.ndarray:
    """Class 1 lies on its prototype, class 2 at right angles to both, class 3 is missing."""
    features = torch.zeros(1, 2, 2, 2)
    features[:, 0, 0], features[:, 1, 1] = 1, 2
    labels = torch.tensor([[[1, 1], [2, 2]]])
    prototypes = torch.tensor([[0.0, 0], [5, 0], [1, 0], [0, 1]])
    return invariance.prototype_distances(features, labels, prototypes, torch.tensor([0, 1]))


def test_distances_from_prototypes_by_hand():
    found = distances()
    assert found[1, 1:] == pytest.approx([0, 0, 1]) and found[2, 1:] == pytest.approx([1, 1, 0])
    assert np.isnan(found[3]).all() and np.isnan(found[:, 0]).all()


def test_prototypes_are_marked_per_class(ctx):
    ax = invariance.plot_prototypes({"old model": distances(), "after": distances()}, TASK.classes, SOURCE.palette, axes())
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [f"{c} {TASK.classes[c]}" for c in (1, 2, 3)]
    bars = np.asarray(ax.collections[0].get_offsets())
    assert np.ma.getdata(bars)[:2, 0] == pytest.approx([0, 0]), "the nearest other one"
    marks = [line for line in ax.get_lines() if line.get_marker() in invariance.STAGES]
    assert [mark.get_marker() for mark in marks] == ["o"] * 3 + ["s"] * 3
    assert marks[0].get_markerfacecolor() == "white" and to_rgb(marks[3].get_markerfacecolor()) == pytest.approx(
        tuple(SOURCE.palette[1] / 255), abs=0.01
    )
    fig = drawn(invariance.figure_prototypes({"old model": distances(), "after": distances()}, ctx))
    assert legend_words(fig) == ["old model", "after", "nearest other prototype"] and "1 - cos" in fig.axes[0].get_xlabel()


# --- opening pictures ---


def test_the_problem_of_idec():
    fig = drawn(regions.figure_problem())
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == [
        "image", "told at step 1", "targets, were the", "features of regions (sketch)",
    ]  # fmt: skip
    assert {text.get_text() for text in fig.axes[3].texts if text.get_text()} == {"drift", "inherit", "evolve"}
    assert "unknown" in legend_words(fig)


def test_the_problem_of_lag():
    fig = drawn(invariance.figure_problem())
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    kl = [float(title.split(" ")[2]) for title in titles if title.startswith("KL")]
    assert len(kl) == 2 and kl[0] < 0.1 < 1 < kl[1], "the channel of the class stays, that of brightness does not"
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_label() == "<colorbar>"] == ["value of the channel"]
