"""Feature space, classifier rows, and channels over the steps: values by hand, artists and labels of the figures."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words, titles
from untrained import DATA, TASK, Restore, chain

from cisskit.errors import KitError
from cisskit.losses import labels_on_grid
from cisskit.scenario import Scenario
from cisskit.views import features, invariance, masks, style

NAN = float("nan")
PALETTE = DATA.palette


def axes():
    return Figure().subplots()


# --- the same pixels after every step ---


def test_the_same_pixels_are_followed():
    pixels = features.follow(chain("ft"), Restore(move=0.1), images=7, per_class=9, classes=4)
    counts = np.bincount(pixels.labels, minlength=10)
    assert counts.max() == 9 and set(pixels.by_step) == {0, 1, 2}
    ctx = Restore(move=0.1)(chain("ft").runs[2])
    images = torch.cat([b.image for b in DATA.test(2)])[:7]
    truth = torch.cat([b.label for b in DATA.test(2)])[:7]
    with torch.no_grad():
        maps = ctx.model.eval()(images).features["decoder"]
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    ids = labels_on_grid(truth, (16, 16)).flatten().numpy()
    for label, row in zip(pixels.labels, pixels.by_step[2], strict=True):
        near = np.abs(rows - row).max(axis=1)
        assert near.min() < 1e-4 and label in ids[near < 1e-4]
    frozen = features.follow(chain("lag"), Restore(), images=7, per_class=9)
    assert np.array_equal(frozen.by_step[0], frozen.by_step[2]), "not one pixel was exchanged for another"


def test_many_classes_are_thinned_out():
    pixels = features.follow(chain("ft", 1), Restore(), per_class=5, classes=4)
    assert set(pixels.classes) <= {0, 1, 5, 9} and 0 in pixels.classes
    assert features._some_classes(Scenario.named("ade-100-50"), 3) == [1, 76, 150]
    assert features._some_classes(TASK, 0) == []


def still(*by_step: list[list[float]], labels=(0, 0, 1, 6)) -> features.Pixels:
    return features.Pixels(TASK, np.array(labels), {t: np.array(rows, dtype=np.float64) for t, rows in enumerate(by_step)})


A = [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]
B = [[1.0, 0.0], [0.0, 5.0], [0.0, 9.0], [-1.0, 0.0]]


def test_drift_by_hand():
    pixels = still(A, A, B)
    steps, table = features.drift(pixels)
    assert steps == [1, 2] and table.tolist() == [[0, 0, 0], pytest.approx([0.5, 0, 2])]
    assert pixels.centroids(0).tolist() == [[1, 0], [0, 2], [3, 0]]


def test_drift_figure_leaves_classes_without_pixels_empty():
    fig = drawn(features.figure_drift({"ft": still(A, B), "dkd": still(A, A, labels=(0, 0, 1, 1))}))
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FT, step 1", "DKD, step 1"]
    assert [text.get_text() for text in ax.texts] == ["0.50", "0.00", "2.00", "0.00", "0.00"]
    assert fig.axes[-1].get_ylabel() == "1 − cos, from the step before"
    assert "Only one step" in features.figure_drift({"ft": still(A)}).texts[0].get_text()


# --- a plane ---


def test_one_plane_for_all_steps():
    moved = [[x, y + 4] for x, y in A]
    plane = features.project(still(A, moved))
    before, after = plane.by_step[0], plane.by_step[1]
    assert after - before == pytest.approx(np.tile(after[0] - before[0], (4, 1))), "a shift stays a shift"
    assert np.linalg.norm(after[0] - before[0]) == pytest.approx(4)
    assert before.mean(axis=0) == pytest.approx([0, 0]), "centred on the first step"
    assert plane.fitted == "fitted on step 0" and "% of the variance" in plane.axes[0]
    both = features.project(still(A, moved), fit="all")
    assert both.by_step[0].mean(axis=0) != pytest.approx([0, 0]) and both.fitted == "fitted on all steps together"


def test_projections_say_what_they_need(monkeypatch):
    with pytest.raises(KitError, match="unknown projection 'umap'. Available: pca, tsne"):
        features.project(still(A), "umap")
    with pytest.raises(KitError, match="unknown choice of what a plane is fitted on 'last'"):
        features.project(still(A), fit="last")
    with pytest.raises(KitError, match="fewer than two pixels"):
        features.project(still([[1.0, 2.0]], labels=(0,)))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)  # as if it were not installed
    with pytest.raises(KitError, match="pip install scikit-learn"):
        features.project(still(A), "tsne")


def test_tsne_lays_all_steps_out_together(monkeypatch):
    """The library itself is not needed: what is asked of it counts."""
    asked = {}

    class TSNE:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, rows):
            asked["rows"] = len(rows)
            return rows[:, :2].astype(np.float32)

    module = ModuleType("sklearn.manifold")
    module.TSNE = TSNE
    monkeypatch.setitem(sys.modules, "sklearn", ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", module)
    plane = features.project(still(A, B), "tsne")
    assert asked == {"n_components": 2, "init": "pca", "perplexity": pytest.approx(7 / 3), "random_state": 0, "rows": 8}
    assert plane.by_step[1].tolist() == B and plane.axes == ("t-SNE 1", "t-SNE 2") and "all steps" in plane.fitted


def test_pixels_and_means_in_class_colours():
    plane = features.project(still(A, B))
    ax = features.plot_plane(plane, 0, PALETTE, axes())
    crosses, dots = ax.collections
    assert len(crosses.get_offsets()) == 1 and len(dots.get_offsets()) == 3, "class 6 has not arrived at step 0"
    assert to_rgb(dots.get_facecolor()[2]) == pytest.approx(tuple(PALETTE[1] / 255), abs=0.01)
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    ax = features.plot_plane(plane, 1, PALETTE, axes())
    assert [text.get_text() for text in ax.texts] == ["0", "1", "6"] and len(ax.collections[0].get_offsets()) == 0
    ways = [line for line in ax.get_lines() if line.get_marker() == "None"]
    start, end = plane.centroids(0)[1], plane.centroids(1)[1]
    assert np.stack([ways[1].get_xdata(), ways[1].get_ydata()], axis=1) == pytest.approx(np.stack([start, end]))


def test_planes_of_methods_have_rows_of_their_own():
    planes = {"ft": features.project(still(A, B)), "mbs": features.project(still(A))}
    fig = drawn(features.figure_planes(planes, PALETTE))
    assert titles(fig) == ["after step 0", "after step 1"]
    a, b, _, missing = fig.axes
    assert a.get_xlim() == b.get_xlim() and a.get_ylim() == b.get_ylim()
    assert "FT\nfitted on step 0" in a.get_ylabel() and [text.get_text() for text in missing.texts] == ["not run"]
    assert "pixels of classes to come" in legend_words(fig)


# --- rows of the classifier ---


def rows(name: str, step: int = 1) -> features.Rows:
    return features.rows_of(Restore()(chain(name).runs[step]).model)


def test_rows_of_plain_heads():
    model = Restore()(chain("ft").runs[1]).model
    found = features.rows_of(model)
    weight, bias = model.classifier()
    assert torch.equal(found.weight, weight.detach().double()) and torch.equal(found.bias, bias.detach().double())
    assert found.words == "weight row" and set(found.layer.tolist()) == {0} and not np.isnan(features.cosines(found)).any()


def test_rows_behind_layers_of_their_own_are_not_compared():
    found = rows("lag")  # heads: unknown, background, base classes, new classes
    assert found.weight.shape == (8, 48) and found.layer.tolist() == [1, 2, 2, 2, 2, 2, 3, 3]
    table = features.cosines(found)
    assert np.isnan(table[0, 1:]).all() and np.isnan(table[1:6, 6:]).all() and not np.isnan(table[6:, 6:]).any()
    assert np.diag(table) == pytest.approx(np.ones(8))


def test_rows_of_a_segmenter_are_its_tokens():
    model = Restore()(chain("mbs").runs[1]).model
    found = features.rows_of(model)
    assert torch.equal(found.weight, model.class_rows().detach().double()) and found.words == "class token"
    assert torch.allclose(found.weight[5 + 1], found.weight[0]), "born from the background"
    assert features.cosines(found)[0, 6] == pytest.approx(1, abs=1e-6)


def test_cosines_by_hand():
    table = features.cosines(
        features.Rows(torch.tensor([[3.0, 4.0], [4.0, -3.0], [-6.0, -8.0]]), torch.zeros(3), torch.zeros(3), "weight row")
    )
    assert table == pytest.approx(np.array([[1, 0, -1], [0, 1, 0], [-1, 0, 1]]), abs=1e-7)


def test_cosines_are_centred_on_zero():
    found = features.Rows(torch.tensor([[1.0, 0.0], [-1.0, 1e-3]]), torch.zeros(2), torch.zeros(2), "weight row")
    ax = features.plot_cosines(found, ["0 background", "1 a", "2 b"], axes(), n_old=1)
    assert ax.collections[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in ax.texts] == ["1.0", "-1.0", "-1.0", "1.0"], "the class that is not born has no number"
    fig = drawn(features.figure_cosines({"FT": rows("ft"), "LAG": rows("lag"), "MBS": rows("mbs", 2)}, TASK, n_old=5))
    assert titles(fig) == ["FT", "LAG", "MBS"] and fig.axes[-1].get_ylabel().startswith("cosine")


def test_sizes_of_rows_over_the_steps():
    by_step = features.rows_by_step(chain("ft"), Restore())
    ax = features.plot_rows(by_step, "norm", PALETTE, axes())
    lines = ax.get_lines()
    assert len(lines) == 10 and lines[0].get_linestyle() == "--" and lines[1].get_linestyle() == "-"
    assert list(lines[6].get_xdata()) == [1, 2] and list(lines[9].get_xdata()) == [2], "from its birth on"
    assert lines[6].get_ydata()[0] == pytest.approx(float(by_step[1].weight[6].norm()))
    biases = features.plot_rows(by_step, "bias", PALETTE, axes()).get_lines()
    assert biases[0].get_ydata() == pytest.approx([float(by_step[t].bias[0]) for t in (0, 1, 2)])
    with pytest.raises(KitError, match="unknown property of a classifier's row 'length'"):
        features.plot_rows(by_step, "length", PALETTE, axes())
    fig = drawn(features.figure_rows({"ft": by_step, "mbs": features.rows_by_step(chain("mbs", 1), Restore())}, TASK, PALETTE))
    assert [title.replace("\n", ", ") for title in titles(fig)] == ["FT, weight row", "MBS, class token"]
    assert legend_words(fig)[-1] == "dashed: the background" and len(legend_words(fig)) == 11


def test_a_hundred_and_fifty_rows():
    task = Scenario.named("ade-100-50")
    many = features.Rows(torch.randn(151, 8), torch.zeros(151), torch.zeros(151), "weight row")
    palette = np.random.default_rng(0).integers(0, 255, (256, 3)).astype(np.uint8)
    fig = drawn(features.figure_rows({"ft": {0: many}}, task, palette))
    assert len(legend_words(fig)) == 17
    ax = drawn(features.figure_cosines({"FT": many}, task, n_old=100)).axes[0]
    assert not ax.texts and len([tick for tick in ax.get_xticklabels() if tick.get_text()]) <= 25


# --- channels over the steps ---


@pytest.fixture(scope="module")
def pictures() -> list[masks.Picture]:
    return masks.test_pictures(DATA, TASK.step(2), 4)


def looked(move: float, pictures, name: str = "ft", steps: int = 3) -> dict[int, torch.Tensor]:
    return invariance.features_by_step(chain(name, steps), Restore(move=move), pictures)


def test_features_of_the_same_pictures(pictures):
    found = looked(0.1, pictures)
    ctx = Restore(move=0.1)(chain("ft").runs[1])
    images = torch.stack([(p.image.float() / 255 - 0.5) / 0.25 for p in pictures])
    with torch.no_grad():
        want = ctx.model.eval()(images).features["decoder"]
    assert list(found) == [0, 1, 2] and torch.allclose(found[1], want, atol=1e-4)
    assert looked(0.1, pictures, "mbs")[0].shape[:2] == (4, 64), "a Segmenter as well"


def test_pictures_of_several_sizes_are_cut_at_their_centres():
    image = torch.arange(6 * 8).reshape(1, 6, 8).expand(3, 6, 8).to(torch.uint8)
    large = masks.Picture("a", image, image[0].numpy())
    small = masks.Picture("b", image[:, :4, :5], image[0, :4, :5].numpy())
    a, b = invariance.same_size([large, small])
    assert a.image.shape == b.image.shape == (3, 4, 5) and a.truth[0, 0] == 8 + 1 and np.array_equal(b.truth, small.truth)


def test_what_a_step_is_compared_with():
    by_step = {t: torch.full((1, 2, 2, 2), float(t)) for t in (0, 1, 3)}
    first, before = (invariance.changes(by_step, reference) for reference in ("first", "before"))
    assert {t: (float(new.max()), float(old.max())) for t, (new, old) in first.items()} == {1: (1, 0), 3: (3, 0)}
    assert list(before) == [1], "step 2 is not there"
    with pytest.raises(KitError, match="unknown reference 'last'. Available: first, before"):
        invariance.changes(by_step, "last")


def test_frozen_features_are_said_to_be_frozen(pictures):
    found = {"lag": looked(0.0, pictures, "lag"), "ft": looked(0.1, pictures), "mib": {0: torch.zeros(1, 2, 2, 2)}}
    assert not invariance.divergences(found["lag"])[2].any()
    moved = invariance.divergences(found["ft"])
    assert list(moved) == [1, 2] and moved[2].shape == (48,) and moved[2].max() > 0
    frozen, free, single = invariance.moved_sentence(found).splitlines()
    assert frozen.startswith("LAG (released): the divergence of all 48 channels is exactly 0 after step 2, since the first step.")
    assert f"{(moved[2] > 0).sum()} of 48 channels moved after step 2" in free and f"{np.median(moved[2]):.3f} nats" in free
    assert single == "MiB: only one step was run, so nothing can have moved."
    assert invariance.choose_one(found) == "ft", "the one that moved"
    assert invariance.choose_one({**found, "lag-described": found["lag"]}) == "lag-described"
    assert invariance.choose_one(found, "lag") == "lag" and invariance.choose_one({"mib": found["mib"]}) == "mib"
    with pytest.raises(KitError, match="unknown method of these runs 'mbs'"):
        invariance.choose_one(found, "mbs")


def test_lines_rise_from_none_to_all_channels():
    ax = invariance.plot_stay({"ft": np.array([0.4, 0.1, 0.2, 0.2]), "lag": np.zeros(4)}, axes())
    ft, lag = ax.get_lines()
    assert list(ft.get_xdata()) == pytest.approx([0, 0.1, 0.2, 0.2, 0.4, 0.8]) and list(ft.get_ydata()) == [
        0,
        25,
        50,
        75,
        100,
        100,
    ]
    assert list(lag.get_xdata()[:-1]) == [0] * 5 and lag.get_color() == style.method_colour("lag")
    assert ax.get_xlabel() == "moved at most: divergence (nats)" and ax.get_xlim()[0] < 0, "a line at 0 can be seen"


def test_stay_figure(pictures):
    found = {"ft": looked(0.1, pictures), "dkd": looked(0.1, pictures, "dkd", 2)}
    fig = drawn(invariance.figure_stay(found))
    assert titles(fig) == ["step 1, since the first step", "step 2, since the first step"]
    assert legend_words(fig) == ["FT", "DKD"] and len(fig.axes[1].get_lines()) == 1
    assert fig.axes[0].get_ylabel() == "channels (%)"


def test_maps_over_images_and_steps(pictures):
    found = {t: torch.randn(4, 48, 16, 16, generator=torch.Generator().manual_seed(t)).relu() for t in (0, 1, 2)}
    fig = drawn(invariance.figure_maps_by_step(pictures, found, 0.25, shown=2))
    pictured = [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]
    assert len(pictured) == 2 * 3 * 3 and titles(fig) == ["image", "step 1", "step 2"]
    assert [pictured[k].get_ylabel() for k in (0, 3, 6, 9)] == ["SI", "SS", "SI channels\nalike", "SI"]
    clims = {ax.images[0].get_clim() for ax in pictured if ax.images and ax.images[0].get_array().ndim == 2}
    assert clims == {(0, 1)}
    si, ss = invariance.semantic_split(found[2], found[0], 0.25)
    want = invariance.semantic_maps(found[2][:2], found[0][:2], si, ss)
    assert np.allclose(pictured[2].images[0].get_array(), want.si[0]), "the split is that of all pictures"
    split = drawn(invariance.figure_split("ft", found, 0.25, reference="before"))
    assert titles(split) == [] and [ax.get_title(loc="left") for ax in split.axes[::2]] == [
        "FT, step 1, since the step before", "FT, step 2, since the step before"
    ]  # fmt: skip


def test_busy_places_by_hand():
    """Where the left half of an image is noise, a channel that fires there follows the entropy, its opposite does not."""
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :, :16] = torch.randint(0, 256, (32, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    picture = masks.Picture("a", image, np.zeros((32, 32), dtype=np.uint8))
    new = torch.zeros(1, 2, 8, 8)
    new[0, 0, :, :4], new[0, 1, :, 4:] = 1, 1
    old = new.clone()
    old[0, 0] += 2 * torch.randn(8, 8, generator=torch.Generator().manual_seed(1))  # the first channel moved: it is SS
    entropy, _, ((si, ss),) = invariance.busy_channels([picture], (new, old), 0.5)
    assert entropy.shape == (1, 32, 32) and ss > 0.8 and si == pytest.approx(-ss, abs=1e-6)
    fig = drawn(invariance.figure_busy([picture], {0: old, 1: new}, 0.5))
    assert titles(fig) == ["image", "grey entropy", f"SI, mean r = {si:+.2f}", f"SS, mean r = {ss:+.2f}"]
    assert [ax.get_xlabel() for ax in fig.axes[2:4]] == [f"r = {si:+.2f}", f"r = {ss:+.2f}"]
    flat = invariance.figure_busy([picture], {0: old, 1: torch.zeros_like(new)}, 0.5)
    assert drawn(flat).axes[2].get_xlabel() == "no contrast"


@pytest.mark.parametrize("draw", [
    lambda found: invariance.figure_stay({"ft": found}),
    lambda found: invariance.figure_split("ft", found, 0.5),
    lambda found: invariance.figure_maps_by_step([], found, 0.5),
    lambda found: invariance.figure_busy([], found, 0.5),
])  # fmt: skip
def test_a_single_step_is_no_fault(draw):
    fig = drawn(draw({0: torch.zeros(1, 2, 4, 4)}))
    assert "Only one step" in fig.texts[0].get_text() and not any(ax.axison for ax in fig.axes)


def test_widget_shows_static_pictures_first(pictures, capsys):
    found = {"ft": looked(0.1, pictures), "dkd": looked(0.1, pictures, "dkd", 2)}
    box = invariance.explore_split(pictures, found, method="dkd")
    assert capsys.readouterr().out.count("Figure") == 2
    (method, step), (which, rho) = (row.children for row in box.children[:2])
    assert method.value == "dkd" and which.max == 3 and rho.value == 0.5
    assert step.options == (1, 2) and step.value == 1
    which.value = 2
    method.value = "ft"
    step.value, rho.value = 2, 0.9
    assert capsys.readouterr().out.count("Figure") == 8
    assert not invariance.explore_split(pictures, {"ft": {0: found["ft"][0]}}).children
    assert capsys.readouterr().out.count("Figure") == 1
