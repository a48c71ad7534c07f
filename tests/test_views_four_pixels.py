"""Four pixels: the arithmetic that is written is the library's value; pictures carry those numbers; controls redraw."""

import math
import re

import IPython.display
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver
from pictures import drawn

from cisskit import losses as L
from cisskit.errors import KitError
from cisskit.scenario import IGNORE
from cisskit.views import four_pixels as four
from cisskit.views.style import ERRORS

SKY, CAR, DOG, HIDDEN = range(4)


@pytest.fixture
def story() -> four.Story:
    return four.tell()


def arrows(ax) -> np.ndarray:
    """(n, 2) of the first arrows on these axes."""
    quiver = next(c for c in ax.collections if isinstance(c, Quiver))
    return np.stack([quiver.U, quiver.V], axis=1)


def heights(ax, *, hollow: bool = False) -> list[float]:
    return [bar.get_height() for bar in ax.patches if (bar.get_facecolor()[3] == 0) == hollow]


def words(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def calculated(text: str) -> float:
    """What a line of arithmetic comes to: log binds the number or the bracket behind it."""
    text = text.replace("−", "-").replace("·", "*").replace("^", "**")
    return eval(re.sub(r"log ([\d.]+)", r"log(\1)", text), {"log": math.log})


# --- the story ---


def test_features_make_the_logits(story):
    assert story.student[0, :, 0, HIDDEN].tolist() == pytest.approx([0.4, 0.6, -1.1])  # wheels 0.9, fur 0.2
    assert story.teacher[0, :, 0, HIDDEN].tolist() == pytest.approx([0.3, 0.8])
    p = story.student.softmax(dim=1)[0, :, 0]
    assert p[:, HIDDEN].argmax() == 1, "the network is right about the hidden car"
    assert story.labels.flatten().tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("wrong", [{"features": [[1, 2]] * 3}, {"old_features": [[1]] * 4}, {"labels": [0, 1, 2, 3]}])
def test_another_story_is_refused_in_words(wrong):
    with pytest.raises(KitError, match=r"four pixels \(sky, car, dog, hidden car\)"):
        four.tell(**wrong)


def test_the_opening_picture_frames_the_lie(story):
    fig = drawn(four.figure_story(story))
    tiles, bars = fig.axes
    said = words(tiles)
    assert said[:8] == ["background", "car", "dog", "car", "background", "car", "dog", "background"]
    assert said[8:] == list(four.PIXELS)
    frames = [bar for bar in tiles.patches if bar.get_edgecolor()[:3] == to_rgb(ERRORS["forgotten"][0])]
    assert len(frames) == 1 and frames[0].get_x() + frames[0].get_width() / 2 == pytest.approx(HIDDEN)
    assert heights(bars) == pytest.approx(four.probabilities("cross-entropy", story).T.flatten().tolist())
    honest = four.figure_story(four.tell(labels=[0, 1, 2, 1])).axes[0]
    assert not [bar for bar in honest.patches if bar.get_edgecolor()[:3] == to_rgb(ERRORS["forgotten"][0])]


# --- losses on logits ---


def stories() -> list[four.Story]:
    g = torch.Generator().manual_seed(0)
    made = [four.tell(), four.tell(labels=[IGNORE, 2, 1, 0])]
    for labels in ([0, 0, 2, 1], [2, IGNORE, 0, 2]):
        features, old = ((2.5 * torch.rand(4, 2, generator=g)).tolist() for _ in range(2))
        made.append(four.tell(features, old, labels))
    return made


@pytest.mark.parametrize("name", four.LOSSES)
@pytest.mark.parametrize("which", range(4))
def test_what_is_written_is_what_is_computed(name, which):
    told = stories()[which]
    options = [{key: value} for key, bounds in four.LOSSES[name].options.items() for value in bounds if value] or [{}]
    for option in options:
        by_hand = [calculated(line) for line in four.written(name, told, **option)]
        assert by_hand == pytest.approx(four.values(name, told, **option).tolist(), rel=0.01, abs=0.005)


def test_unlikely_answers_are_written_with_enough_digits():
    told = four.tell([[8.0, 0.0], [0.0, 8.0], [8.0, 8.0], [0.0, 0.0]])
    line = four.written("cross-entropy", told)[SKY]  # background at -6.5 against 15
    assert calculated(line) == pytest.approx(float(four.values("cross-entropy", told)[SKY]), rel=0.02)


def test_pushes_by_hand(story):
    p = story.student.softmax(dim=1)[0, :, 0].T
    told = torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(four.push("cross-entropy", story), told - p)
    assert (four.push("unbiased cross-entropy", story)[HIDDEN, :2] > 0).all(), "both known classes up"
    assert four.push("distillation", story)[SKY].abs().max() < 1e-12, "old and new odds agree there"
    assert four.push("distillation", story)[:, 2].abs().max() == 0, "the new channel is cut off"
    assert four.push("binary cross-entropy, new classes", story)[:, :2].abs().max() == 0


def test_every_push_lowers_its_loss(story):
    for name in four.LOSSES:
        moved = four.push(name, story).T.view(1, 3, 1, 4)
        after = four.Story(story.student + 1e-3 * moved, story.teacher, story.labels, story.features, story.old_features)
        assert (four.values(name, after) <= four.values(name, story) + 1e-12).all(), name


def test_an_unknown_loss_is_named(story):
    with pytest.raises(KitError, match="Did you mean 'cross-entropy'"):
        four.figure_loss("crossentropy", story)
    with pytest.raises(KitError, match="unknown loss on directions"):
        four.figure_circle("cosine")


@pytest.mark.parametrize("name", four.LOSSES)
def test_the_picture_of_a_loss_carries_its_numbers(name, story):
    fig = drawn(four.figure_loss(name, story))
    top, each, push = fig.axes
    assert heights(top) == pytest.approx(four.probabilities(name, story).T.flatten().tolist())
    assert top.get_ylim() == (0, 1.05) and top.get_ylabel() == ("sigmoid" if four.LOSSES[name].sigmoid else "probability")
    aims = four.aims(name, story)
    assert heights(top, hollow=True) == pytest.approx([] if aims is None else aims.flatten().tolist())
    assert words(each) == [f"{value:.2f}" for value in four.values(name, story)]
    assert arrows(push)[:, 1] == pytest.approx(four.push(name, story).flatten().tolist())
    assert push.get_ylim()[1] == -push.get_ylim()[0] > np.abs(arrows(push)).max()
    assert [tick.get_text() for tick in push.get_xticklabels()][HIDDEN] == "hidden car\nlabel: background"
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend[:3] == ["new: background", "new: car", "new: dog"]
    assert legend[3:] == ([four.LOSSES[name].target_words] if aims is not None else [])


def test_options_stand_in_the_title(story):
    assert four.figure_loss("focal loss", story, gamma=3.0).axes[0].get_title() == "focal loss, γ = 3"
    assert four.figure_loss("cross-entropy", story).axes[0].get_title() == "cross-entropy"


def test_the_table_spells_it_out(story):
    frame = four.table("label-guided distillation", story).data
    assert list(frame["pixel"]) == [*four.PIXELS, "mean"]
    assert frame["logits z"][HIDDEN] == "0.4, 0.6, -1.1" and frame["label"][HIDDEN] == "background"
    assert frame["old model, background moved to the label"][DOG] == "0.000, 0.332, 0.668"
    assert frame["arithmetic"][DOG] == "−(0.332·log 0.018 + 0.668·log 0.865) / 3"
    assert calculated(frame["arithmetic"][4]) == pytest.approx(float(frame["loss"][4]), abs=1e-3)
    assert "text-align: left" in four.table("cross-entropy", story).to_html()


def test_all_pushes_share_one_scale_around_zero(story):
    fig = drawn(four.figure_pushes(story))
    shown = [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]
    reach = max(float(four.push(name, story).abs().max()) for name in four.LOSSES)
    assert len(shown) == 4 and all(ax.collections[0].get_clim() == pytest.approx((-reach, reach)) for ax in shown)
    assert [tick.get_text() for tick in shown[0].get_yticklabels()] == list(four.LOSSES)
    assert words(shown[HIDDEN])[:3] == ["+0.59", "-0.50", "-0.09"] and "-0.00" not in words(shown[SKY])


# --- reasons, rules, features ---


def test_reasons_add_up_to_the_logit(story):
    new, old = four.reasons(story)
    assert (new[:, 0] >= 0).all() and (new[:, 1] <= 0).all()
    torch.testing.assert_close(new.sum(dim=1) + four.BIAS[1], story.student[:, 1])
    torch.testing.assert_close(old.sum(dim=1) + four.BIAS[1], story.teacher[:, 1])
    fig = drawn(four.figure_reasons(story))
    assert heights(fig.axes[0]) == pytest.approx(new[0, :, 0].flatten().tolist())
    assert heights(fig.axes[0], hollow=True) == pytest.approx(old[0, :, 0].T.flatten().tolist())


def test_rules_by_hand(story):
    found = list(four.rules(story).values())
    plain, void = [0, 1, 2, 0], [0, 1, 2, IGNORE]  # the old model's car: probability 0.62, below 0.7 but above one half
    assert found == [plain, plain, plain, void, void, [0, 1, 2, 1]]
    lower = list(four.rules(story, threshold=0.6, margin=0.2, uncertainty=0.46).values())
    assert lower == [plain] + [[0, 1, 2, 1]] * 5
    margin = four.rules(story, threshold=0.6, margin=0.3)["threshold and margin (LAG)"]
    assert margin == plain, "0.62 leads 0.38 by less"


def test_uncertainty_is_half_at_most(story):
    even = four.tell(old_features=[[5 / 6, 0]] * 4)  # both logits 2/3
    assert four.uncertainties(even).tolist() == pytest.approx([1 / 2 / math.log(3)] * 4)
    q = story.teacher.softmax(dim=1)[0, :, 0, HIDDEN]
    by_hand = float(-(q * q.log()).sum()) / 2 / math.log(2) / math.log(3)
    assert float(four.uncertainties(story)[HIDDEN]) == pytest.approx(by_hand)


def test_the_picture_of_rules(story):
    fig = drawn(four.figure_rules(story, threshold=0.65))
    sure, entropy, tiles = fig.axes
    assert any(line.get_ydata()[0] == 0.65 for line in sure.get_lines())
    assert any(line.get_ydata()[0] == 0.35 for line in entropy.get_lines())
    assert words(tiles)[3::4] == ["background"] * 3 + ["void"] * 2 + ["car"]
    assert next(tick.get_text() for tick in tiles.get_yticklabels()) == "as told"


def test_trust_decides_what_is_held(story):
    assert four.trust(story).flatten().tolist() == pytest.approx([float(story.teacher.softmax(dim=1)[0, 0, 0, SKY]), 1, 0, 0])
    assert four.trust(story, threshold=0.6).flatten()[HIDDEN] == 1
    fig = drawn(four.figure_patches(story))
    plane, bars = fig.axes
    push = arrows(plane)
    assert np.abs(push[DOG:]).max() == 0 and push[CAR, 0] < 0, "the car is pulled back, dog and hidden car are free"
    assert heights(bars)[:4] == pytest.approx(four.trust(story).flatten().tolist())
    assert bars.get_title() == f"loss {L.reliable_patches(story.features, story.old_features, four.trust(story)):.4f}"
    drawn(four.figure_patches(four.tell(labels=[IGNORE] * 4)))  # nothing is trusted


def test_pooled_strip(story):
    pooled = drawn(four.figure_pod(story)).axes[0]
    squares = story.features.square()[0, :, 0]
    by_hand = [x for row in squares for x in (row.mean(), *row)]
    assert heights(pooled) == pytest.approx([float(x) for x in by_hand])
    assert len(heights(pooled, hollow=True)) == 10
    assert [tick.get_text() for tick in pooled.get_xticklabels()][:2] == ["row mean", "sky"]
    same = four.tell(four.OLD_FEATURES)
    assert np.abs(arrows(drawn(four.figure_pod(same)).axes[1])).max() == 0, "nothing to correct, and no NaN"


def test_column_of_channels(story):
    fig = drawn(four.figure_column(story, alpha=1.0))
    assert sum(heights(fig.axes[0])) == pytest.approx(2), "two distributions over four rows"
    terms = [bar.get_height() for bar in fig.axes[1].patches]
    column = (x.transpose(2, 3) for x in (story.features, story.old_features))
    assert sum(terms) / 4 == pytest.approx(float(L.channel_decoupling(*column, alpha=1.0)))


# --- directions and pooled numbers ---


def test_orthogonality_turns_the_new_token_alone():
    loss, v, moves = four.turned("orthogonality")
    cosines = [math.cos(math.radians(20)), math.cos(math.radians(50))]
    assert loss == pytest.approx(sum(cosines) / 6)
    assert moves[:2].abs().max() == 0 and moves[2].norm() > 0
    assert float(moves[2] @ v[2]) == pytest.approx(0, abs=1e-12), "along the circle"
    flat, _, _ = four.turned("orthogonality", {"background": 0, "car": 180, "dog": 90})
    assert flat == pytest.approx(0, abs=1e-12)


def test_contrast_of_regions_by_hand():
    loss, v, _ = four.turned("contrast of regions")

    def chord(a, b):
        return 2 * math.sin(math.radians(abs(a - b)) / 2)

    assert loss == pytest.approx(chord(8, 7) - chord(8, 45) + 1, abs=1e-6)
    far, _, moves = four.turned("contrast of regions", {"sky, new": 120, "dog, new": -120})
    assert far == 0 and moves.abs().max() == 0
    assert v.norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_the_batch_repels_itself():
    _, _, moves = four.turned("contrast over the batch", {"street, new": 20, "park, new": 80})
    assert moves[2:].norm(dim=1).min() > 0.01, "at the old directions the push does not stop"
    assert moves[:2].abs().max() == 0, "the old model gets no gradient"


@pytest.mark.parametrize("name", four.CIRCLES)
def test_circles(name):
    fig = drawn(four.figure_circle(name))
    assert f"{four.turned(name)[0]:.3f}" in fig.axes[0].get_title()
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(four.CIRCLES[name].arrows)
    one = dict.fromkeys(four.CIRCLES[name].arrows, 30.0)
    assert torch.isfinite(four.turned(name, one)[2]).all()
    drawn(four.figure_circle(name, one))
    _, v, moves = four.turned(name)
    assert (v * moves).sum(dim=1).abs().max() < 1e-9, "turned, not stretched"
    with pytest.raises(KitError, match=f"unknown arrow of {name}"):
        four.turned(name, {"cat": 0})


def test_pooling_does_not_see_a_swap_as_a_whole():
    fig = drawn(four.figure_pooled())
    raw, pooled = fig.axes
    assert heights(raw) == list(four.EMBEDDING) and heights(raw, hollow=True) == list(four.OLD_EMBEDDING)
    new, old = heights(pooled), heights(pooled, hollow=True)
    assert new[0] == old[0] and new[1] != old[1] and len(new) == 7
    assert raw.get_title() == "MBS: number by number, 0.500"
    minus = four.figure_pooled([-x for x in four.OLD_EMBEDDING])
    assert minus.axes[1].get_title().endswith("distance 0.000"), "signs are lost"


def test_the_lead(story):
    ax = drawn(four.figure_lead(story, margin=1.0)).axes[0]
    lines = {line.get_label(): line for line in ax.get_lines()}
    lead, hinge = lines["hinge: max(0, 1 − lead)"].get_data()
    assert np.asarray(hinge) == pytest.approx(np.maximum(0, 1 - np.asarray(lead)))
    ce = np.asarray(lines["cross-entropy, label background"].get_ydata())
    assert (np.diff(ce) > 0).all(), "downhill to the background"
    assert lines["the new model now"].get_xdata()[0] == pytest.approx(0.2)
    assert lines["the old model"].get_xdata()[0] == pytest.approx(0.5)
    at_now = np.interp(0.2, lead, ce)
    assert at_now == pytest.approx(float(four.values("cross-entropy", story)[HIDDEN]), abs=1e-3)


# --- controls ---


def controls(box) -> list[list]:
    return [list(column.children) for column in box.children[0].children]


def test_sliders_redraw_a_loss_at_once(story, capsys, monkeypatch):
    seen = []
    original = four.figure_loss
    monkeypatch.setattr(
        four, "figure_loss", lambda name, now, **options: seen.append((now, options)) or original(name, now, **options)
    )
    box = four.explore_loss("sharpened distillation", story)
    assert capsys.readouterr().out.count("Figure") == 1, "one static picture before the controls"
    columns = controls(box)
    assert [column[0].value for column in columns[:4]] == [f"<b>{pixel}</b>" for pixel in four.PIXELS]
    label, z_bg, z_car, z_dog, old_bg, old_car = columns[HIDDEN][1:]
    assert [c.value for c in (z_bg, z_car, z_dog, old_bg, old_car)] == pytest.approx([0.4, 0.6, -1.1, 0.3, 0.8])
    z_car.value, old_bg.value, label.value = 3.0, -2.0, IGNORE
    columns[4][0].value = 1.0  # alpha
    now, options = seen[-1]
    assert now.student[0, :, 0, HIDDEN].tolist() == pytest.approx([0.4, 3.0, -1.1])
    assert now.teacher[0, :, 0, HIDDEN].tolist() == pytest.approx([-2.0, 0.8])
    assert now.labels.flatten().tolist() == [0, 1, 2, IGNORE] and options == {"alpha": 1.0}
    assert capsys.readouterr().out.count("Figure") == 4


def test_a_loss_on_labels_has_no_sliders_for_the_old_model(story, capsys):
    columns = controls(four.explore_loss("cross-entropy", story))
    assert [len(column) for column in columns] == [5, 5, 5, 5, 0]


@pytest.fixture
def shown(monkeypatch) -> list:
    """What the explorers display, in order."""
    found: list = []
    monkeypatch.setattr(IPython.display, "display", lambda *things: found.extend(things))
    return found


def test_the_picture_follows_the_old_model_and_the_thresholds(story, shown):
    columns = controls(four.explore_rules(story, threshold=0.6))
    assert words(shown[-1].axes[2])[7] == "car", "0.62 is enough"
    columns[HIDDEN][2].value = -5.0  # old car
    assert words(shown[-1].axes[2])[7] == "background"
    columns[HIDDEN][2].value, columns[4][0].value = 1.7, 0.9  # 0.80, τ
    assert words(shown[-1].axes[2])[7::4] == ["background", "background", "void", "car", "car"], "PLOP's threshold is its own"
    columns[4][2].value = 0.1
    assert words(shown[-1].axes[2])[19] == "void"


def test_the_picture_follows_features_and_options(story, shown):
    columns = controls(four.explore_features(four.figure_patches, story, threshold=(0.7, 0.0, 1.0)))
    columns[CAR][1].value = 0.5
    columns[4][0].value = 0.6
    plane, bars = shown[-1].axes
    assert heights(bars)[HIDDEN] == 1 and len(shown) == 3
    assert [0.5, 0.2] in [[line.get_xdata()[0], line.get_ydata()[0]] for line in plane.get_lines()]


def test_the_picture_follows_directions_numbers_and_margin(story, shown):
    (angles,) = controls(four.explore_circle("orthogonality"))
    assert [control.value for control in angles] == pytest.approx([90, 20, 70])
    angles[2].value = 110.0
    turned = four.turned("orthogonality", {"dog": 110.0})[0]
    assert shown[-1].axes[0].get_title().startswith(f"orthogonality: {turned:.3f}")
    controls(four.explore_pooled())[0][0].value = 2.5
    assert heights(shown[-1].axes[0])[0] == 2.5
    controls(four.explore_lead(story))[0][0].value = 3.0
    assert "hinge: max(0, 3 − lead)" in [line.get_label() for line in shown[-1].axes[0].get_lines()]
    assert len(shown) == 6, "one before the controls, one for each change"


def test_vector_export(story, tmp_path):
    for name, fig in {"loss": four.figure_loss("distillation", story), "circle": four.figure_circle("orthogonality")}.items():
        fig.savefig(tmp_path / f"{name}.svg")
        fig.savefig(tmp_path / f"{name}.pdf")
        assert (tmp_path / f"{name}.svg").read_text(encoding="utf-8").count("<path") > 10
