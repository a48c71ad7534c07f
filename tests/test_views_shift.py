"""The background shift: shares and probability mass by hand, artists and labels of the figures; never pixels of a rendering."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words, titles
from untrained import DATA, TASK, Restore, chain

from cisskit.data import Data, Toy
from cisskit.errors import KitError
from cisskit.method import Method, available, configure
from cisskit.models import Output
from cisskit.protocols import protocol
from cisskit.scenario import IGNORE, Scenario
from cisskit.views import background_shift as shift
from cisskit.views import masks, style

NAN = float("nan")


def axes():
    return Figure().subplots()


def counted(*images: dict[int, int]) -> Toy:
    """A source whose training images have these pixels by original id; nothing is drawn."""

    class Counted(Toy):
        def pixels(self, split):
            table = np.zeros((len(images), 256), dtype=np.int64)
            for row, image in zip(table, images, strict=True):
                row[list(image)] = list(image.values())
            return table

    return Counted(train=len(images), heldout=1, test=1)


# --- what the labels call background ---


def test_composition_by_hand():
    source = counted({0: 10, 2: 5, 6: 3, 9: 2, 255: 4}, {0: 1, 2: 8}, {7: 6})
    data = Data(TASK, source)
    assert shift.composition(data, 0).tolist() == [[10, 0, 5, 0], [1, 0, 0, 0]], "void is not told background by this protocol"
    assert shift.composition(data, 1).tolist() == [[10, 5, 2, 0], [0, 0, 0, 0]], "image 2 shows a class of the step alone"
    assert shift.composition(data, 2).tolist() == [[10, 8, 0, 0]]
    assert shift.composition(data, 2, sees="seen").tolist() == [[10, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    void = Data(TASK, source, protocol=protocol("mib", TASK))
    assert shift.composition(void, 1).tolist() == [[10, 5, 2, 4], [0, 0, 0, 0]]


def test_composition_of_a_class_outside_the_scenario_is_background():
    task = Scenario.named("toy:striped square/dotted disc")
    data = Data(task, counted({0: 4, 1: 1, 2: 2, 5: 3}))
    assert shift.composition(data, 1).tolist() == [[7, 1, 0, 0]]


def test_shares_without_pixels_are_unknown():
    assert shift.shares(np.array([[3, 1, 0, 0], [0, 0, 0, 0]])).tolist()[0] == [0.75, 0.25, 0, 0]
    assert np.isnan(shift.shares(np.array([0, 0, 0, 0]))).all()


def test_composition_is_stacked_to_a_hundred_percent():
    ax = shift.plot_composition({0: np.array([0.7, 0, 0.3, 0]), 3: np.array([0.6, 0.35, 0.05, 0])}, axes())
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(2, 4)
    assert widths.tolist() == [pytest.approx([70, 0, 30, 0]), pytest.approx([60, 35, 5, 0])]
    assert to_rgb(ax.patches[1].get_facecolor()) == to_rgb(shift.KINDS["old"][0])
    assert ax.patches[1].get_hatch() == masks.HIDDEN["old"] and ax.patches[2].get_hatch() == masks.HIDDEN["future"]
    assert [text.get_text() for text in ax.texts] == ["70", "30", "60", "35"], "small parts carry no number"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "3"] and ax.get_xlim() == (0, 100)


def test_images_that_hide_most_come_first():
    parts = np.array([[0.9, 0.1, 0, 0], [NAN] * 4, [0.2, 0.5, 0.3, 0]])
    ax = shift.plot_images(parts, axes(), columns=5)
    old, future, _, background = (patch.get_data() for patch in ax.patches)
    assert old.values.tolist() == pytest.approx([50, 10]), "the image without any background is left out"
    assert future.values.tolist() == pytest.approx([80, 10]) and background.values.tolist() == pytest.approx([100, 100])
    halves = shift.plot_images(np.array([[0.2, 0.8, 0, 0], [0.4, 0.6, 0, 0], [1, 0, 0, 0.0]]), axes(), columns=2)
    assert halves.patches[0].get_data().values.tolist() == pytest.approx([70, 0]), "groups of images are averaged"
    nothing = shift.plot_images(np.full((2, 4), NAN), axes())
    assert not nothing.patches and "nothing is labelled" in nothing.texts[0].get_text()


def test_composition_of_a_scenario():
    fig = drawn(shift.figure_composition(DATA))
    assert titles(fig) == [f"step {t}: {len(DATA.members(t))} images" for t in range(3)]
    assert legend_words(fig) == [shift.KINDS[kind][1] for kind in ("background", "old", "future")]


def test_the_joint_bound_hides_nothing_at_the_end():
    fig = drawn(shift.figure_composition(DATA, sees="seen"))
    bars = [bar.get_width() for bar in fig.axes[0].patches]
    assert bars[1::4] == [0, 0, 0] and bars[8:] == pytest.approx([100, 0, 0, 0])


def test_what_hides_in_the_background_of_an_image():
    truth = np.array([[0, 2, 6, 9], [IGNORE, 2, 6, 9]])
    picture = masks.Picture("a", torch.full((3, 2, 4), 255, dtype=torch.uint8), truth)
    ax = axes()
    assert shift.show_background(picture, TASK.step(1), ax) == {"old", "future", "void"}
    colours = ax.images[0].get_array()
    assert colours[0, 2].tolist() == pytest.approx(to_rgb(shift.TOLD))
    assert colours[0, 1].tolist() == pytest.approx(to_rgb(shift.KINDS["old"][0]))
    assert colours[1, 3].tolist() == pytest.approx(to_rgb(shift.KINDS["future"][0]))
    assert shift.show_background(picture, TASK.step(2), axes()) == {"old", "void"}


def test_the_problem_needs_no_run():
    fig = drawn(shift.figure_problem())
    assert titles(fig) == ["image", "step 0", "step 1", "step 2"] and len(fig.axes) == 8
    assert legend_words(fig)[0] == "told: a class of this step"


def test_long_scenarios_show_five_steps():
    assert shift.spread(list(range(11))) == [0, 2, 5, 8, 10] and shift.spread([4]) == [4] and shift.spread([]) == []
    picture = masks.Picture("a", torch.zeros(3, 8, 8, dtype=torch.uint8), np.zeros((8, 8), dtype=np.uint8))
    fig = shift.figure_background([picture], Scenario.named("voc-10-1"))
    assert titles(fig) == ["image", "step 0", "step 2", "step 5", "step 8", "step 10"]


# --- what models say ---


def outputs(name: str) -> tuple[Output, Method]:
    """Random scores of a network of this method after step 1."""
    method, _ = configure(name, {})
    scores = 3 * torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    unknown_class = {"unknown": 3 * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))}
    model = method.build(TASK, method.arch(TASK), None)
    return Output(scores, (9, 9), {}, unknown_class if model.unknown is not None else {}), method


@pytest.mark.parametrize("name", [*available(), "lwf-mc", "mbs-bce", "idec-described"])
def test_the_most_likely_class_is_the_predicted_one(name):
    output, method = outputs(name)
    log_p = shift.log_probabilities(output, method)
    assert log_p.shape == (2, 8, 9, 9)
    assert torch.allclose(log_p.exp().sum(dim=1), torch.ones(2, 9, 9), atol=1e-5)
    assert torch.equal(log_p.argmax(dim=1), method.predict(output))


def test_margins_of_each_way_to_decide():
    def margin(name):
        output, method = outputs(name)
        log_p = shift.log_probabilities(output, method)
        return (log_p[:, 0] - log_p[:, 1:].amax(dim=1)), output

    softmax, output = margin("ft")
    assert torch.allclose(softmax, output.logits[:, 0] - output.logits[:, 1:].amax(dim=1), atol=1e-4)
    background_is_silence, output = margin("dkd")
    assert torch.allclose(background_is_silence, -output.logits[:, 1:].amax(dim=1), atol=1e-4)
    with_unknown, output = margin("lag")
    p = output.open_logits.sigmoid()
    assert torch.allclose(with_unknown, ((p[:, 0] + p[:, 1]) / p[:, 2:].amax(dim=1)).log(), atol=1e-4)


def test_a_method_that_decides_otherwise_is_not_read_wrongly():
    class Odd(Method):
        def predict(self, output):
            return output.logits.argmin(dim=1)

    with pytest.raises(KitError, match=r"Odd.predict\(\) and its largest probability do not agree where background is: on \d+ %"):
        shift.log_probabilities(outputs("ft")[0], Odd())


def test_listening_sums_up_all_pixels():
    restore, run = Restore(), chain("ft").runs[1]
    said, ctx = shift.listen(restore(run)), restore(run)
    batches = list(DATA.test(1))
    pixels = np.bincount(torch.cat([b.label.flatten() for b in batches]).numpy(), minlength=256)[:10]
    assert said.mass.shape == (10, 8) and said.mass.sum(axis=1) == pytest.approx(pixels, rel=1e-4)
    with torch.no_grad():
        p = torch.cat([ctx.model.eval()(b.image).logits.softmax(dim=1) for b in batches])
    truth = torch.cat([b.label for b in batches])
    assert said.mass[2] == pytest.approx(p.permute(0, 2, 3, 1)[truth == 2].sum(dim=0).numpy(), rel=1e-3)
    log_p = p.log()
    old = (truth >= 1) & (truth <= 5)
    right = (log_p[:, 0] > log_p[:, 1:6].amax(dim=1))[old].sum()
    assert said.margins["old"].sum() == old.sum() and said.margins["seen"].sum() == pixels[1:8].sum()
    assert said.margins["old"][shift.EDGES[:-1] >= 0].sum() == pytest.approx(float(right), abs=2)


def test_listening_stops_after_so_many_images():
    restore, run = Restore(), chain("ft").runs[0]
    said = shift.listen(restore(run), images=7)
    assert said.mass.sum() == pytest.approx(7 * 64 * 64, rel=1e-4), "five of the first batch, two of the second"
    assert said.margins["old"].sum() == 0, "nothing is old at step 0"


def test_margins_beyond_the_range_are_in_the_last_bins():
    found = shift._bin(torch.tensor([-99.0, -20.0, -0.01, 0.0, 0.49, 19.99, 99.0]))
    assert found.tolist() == [0, 0, 39, 40, 40, 79, 79] and shift.EDGES[40] == 0


def test_void_pixels_count_nowhere(monkeypatch):
    restore, run = Restore(), chain("ft").runs[0]
    ctx, batch = restore(run), next(iter(DATA.test(0)))
    batch.label[:, :32] = IGNORE
    ctx.data = SimpleNamespace(test=lambda step, device: [batch])
    assert shift.listen(ctx).mass.sum() == pytest.approx(5 * 32 * 64, rel=1e-4)


def test_models_that_cannot_be_opened_are_named():
    runs = [*chain("ft").runs, *chain("mib").runs, *chain("dkd").runs]
    opened = shift.open_models(runs, Restore(broken=(("mib", 1), ("dkd", 0))))
    assert {method: c.steps for method, c in opened.groups.items()} == {"ft": [0, 1, 2], "mib": [0]}
    assert opened.ctx.step.index == 2
    first, *faults = opened.about.splitlines()
    assert first == "toy-5-2, overlap: FT, MiB"
    assert faults[0] == "MiB is left out from step 1 on: mib/seed0/step1 is damaged." and "DKD is left out" in faults[1]
    only = shift.open_models(runs, Restore(), ["dkd", "ft"])
    assert list(only.groups) == ["dkd", "ft"]
    with pytest.raises(KitError, match="unknown method of these runs 'dk'. Did you mean 'dkd'"):
        shift.open_models(runs, Restore(), ["dk"])
    with pytest.raises(KitError, match="none of these runs can be opened. FT is left out from step 0 on"):
        shift.open_models(chain("ft", 1).runs, Restore(broken=(("ft", 0),)))


# --- arithmetic ---


def said(t: int, mass: list[list[float]], arch: str = "toy", **margins) -> shift.Said:
    """What a model says after step t of a scenario of the classes 1 | 2 | 3; margins: {"old": .., "seen": ..} counts by bin."""
    run = SimpleNamespace(step=t, scenario=SMALL, settings={"arch": arch})
    counts = {key: np.zeros(80, dtype=np.int64) for key in ("old", "seen")}
    for key, where in margins.items():
        for place, n in where.items():
            counts[key][place] = n
    return shift.Said(run, np.array(mass, dtype=np.float64), counts)


SMALL = Scenario.named("toy:striped square/dotted disc/checked triangle")
S0 = said(0, [[9, 1], [2, 8], [6, 4], [10, 0]], seen={30: 8, 40: 2})
S1 = said(1, [[8, 1, 1], [7, 2, 1], [3, 1, 6], [9, 0, 1]], old={30: 1, 50: 9}, seen={30: 5, 50: 5})
S2 = said(2, [[8, 1, 1, 0], [9, 1, 0, 0], [4, 0, 5, 1], [1, 0, 0, 9]], old={20: 1, 79: 19})
FT = {0: S0, 1: S1, 2: S2}


def test_old_mass_by_hand():
    assert shift.old_mass(S0, SMALL.step(1)) == {"right": 0.8, "forgotten": 0.2, "taken over": 0, "mixed up": 0}
    assert shift.old_mass(S1, SMALL.step(1)) == {"right": 0.2, "forgotten": 0.7, "taken over": 0.1, "mixed up": 0}
    after = shift.old_mass(S2, SMALL.step(2))
    assert after == pytest.approx({"right": 6 / 20, "forgotten": 13 / 20, "taken over": 1 / 20, "mixed up": 0})
    assert np.isnan(list(shift.old_mass(S0, SMALL.step(0)).values())).all()


def test_flow_by_hand():
    change = shift.flow(S0, S1, SMALL.step(1))
    assert change.tolist() == [
        pytest.approx([-0.1, 0, 0.1]), pytest.approx([0.5, -0.6, 0.1]), pytest.approx([-0.3, -0.3, 0.6]),
        pytest.approx([-0.1, 0, 0.1]),
    ]  # fmt: skip
    assert np.isnan(shift.flow(S1, S2, SMALL.step(2))[3]).all(), "no class is still to come"


def test_gained_since_it_was_learnt():
    assert shift.gained(FT).tolist() == pytest.approx([NAN, 0.7, 0.1, NAN], nan_ok=True)
    assert shift.gained_mean(FT) == pytest.approx(0.4)
    assert shift.gained({1: S1, 2: S2}).tolist() == pytest.approx([NAN, NAN, 0.1, NAN], nan_ok=True), "step 0 is not there"
    assert np.isnan(shift.gained_mean({0: S0}))
    rare = (
        said(1, [[8, 1, 1], [7, 2, 1], [0, 0, 1], [9, 0, 1]]),
        said(2, [[8, 1, 1, 0], [9, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 9]]),
    )
    assert shift.gained_mean({0: S0, 1: rare[0], 2: rare[1]}) == pytest.approx((7 + 1) / 11), "every pixel counts once"


def test_a_class_without_pixels_has_no_value():
    empty = said(1, [[8, 1, 1], [0, 0, 0], [3, 1, 6], [9, 0, 1]])
    assert np.isnan(shift.gained({0: said(0, [[9, 1], [0, 0], [6, 4], [10, 0]]), 1: empty})).all()
    assert np.isnan(list(shift.old_mass(empty, SMALL.step(1)).values())).all()


def test_pairs_need_the_step_before():
    assert list(shift.pairs(FT)) == [1, 2] and shift.pairs(FT)[2] == (S1, S2)
    assert list(shift.pairs({0: S0, 2: S2})) == []


# --- figures ---

KEPT = {0: S0, 1: said(1, [[8, 1, 1], [2, 7, 1], [3, 1, 6], [9, 0, 1]], arch="toy_segmenter", old={30: 10})}


def test_mass_before_and_after():
    fig = drawn(shift.figure_mass({"ft": FT, "mbs": KEPT}))
    assert titles(fig) == ["step 1: pixels of classes 1", "step 2: pixels of classes 1-2"]
    first, second = fig.axes
    assert [bar.get_width() for bar in first.patches] == pytest.approx(
        [80, 20, 0, 0, 20, 70, 10, 0, 80, 20, 0, 0, 20 + 50, 20, 10, 0]
    )
    assert to_rgb(first.patches[1].get_facecolor()) == to_rgb(style.ERRORS["forgotten"][0])
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["FT  before", "after", "MBS  before", "after"]
    assert "not run" in [text.get_text() for text in second.texts], "MBS stopped after step 1"
    assert legend_words(fig) == [words for _, words in shift.GOES.values()]


def test_mass_without_pixels_says_so():
    nothing = dict.fromkeys(shift.GOES, NAN)
    ax = shift.plot_mass({"ft": (nothing, nothing)}, axes())
    assert [text.get_text() for text in ax.texts] == ["no such pixels"]


def test_flow_is_centred_on_zero():
    ax = shift.plot_flow(np.array([[-0.1, 0.003, 0.1], [0.5, -0.6, 0.1], [NAN] * 3, [0, 0, 0]]), axes())
    assert ax.collections[0].get_clim() == (-100, 100)
    assert [text.get_text() for text in ax.texts] == ["-10", "0", "+10", "+50", "-60", "+10", "0", "0", "0"]
    fig = drawn(shift.figure_flow({"ft": FT, "mbs": KEPT}))
    assert titles(fig) == ["FT", "MBS"] and fig.axes[-1].get_ylabel().startswith("probability gained")
    assert [text.get_text() for text in fig.axes[3].texts] == ["not run"]


def test_a_comparison_computes_its_numbers():
    text = shift.comparison({"ft": FT, "mbs": KEPT}, "ft", "mbs")
    assert "to step 1" in text, "the last step that both have"
    assert "grew by 50.0 points under FT and grew by 0.0 points under MBS" in text
    assert "MBS keeps 50.0 points out of the background that FT moves there: the expected direction" in text
    assert "The networks differ, too: toy and toy_segmenter." in text
    better = {0: S0, 1: said(1, [[8, 1, 1], [1, 8, 1], [3, 1, 6], [9, 0, 1]])}
    text = shift.comparison({"ft": FT, "mbs": better}, "ft", "mbs")
    assert "fell by 10.0 points under MBS. MBS keeps 60.0 points" in text and "networks" not in text


def test_a_comparison_admits_the_wrong_direction():
    text = shift.comparison({"ft": FT, "mbs": KEPT}, "mbs", "ft")
    assert "FT moves 50.0 points more than MBS: against the expected direction" in text


def test_a_comparison_without_pixels():
    empty = {t: said(t, [[9, 1], [0, 0], [0, 0], [0, 0]]) for t in (0, 1)}
    assert "nothing can be compared" in shift.comparison({"ft": empty, "mbs": empty}, "ft", "mbs")
    drawn(shift.figure_comparison({"ft": empty, "mbs": empty}, ["ft", "mbs"]))


def test_which_two_are_compared():
    joint = {0: S0, 1: said(1, [[8, 1, 1], [0, 9, 1], [3, 1, 6], [9, 0, 1]])}
    assert shift.choose_two({"ft": FT, "dkd": KEPT, "mbs": FT}) == ("ft", "mbs")
    assert shift.choose_two({"ft": FT, "mib": FT, "dkd": KEPT, "joint": joint}) == ("ft", "dkd"), "the bound is no method"
    assert shift.choose_two({"ft": FT, "joint": joint}) == ("ft", "joint")
    assert shift.choose_two({"lag": FT, "dkd": KEPT}) == ("lag", "dkd"), "without FT the one that moves most is the plain one"
    assert shift.choose_two({"ft": FT, "dkd": {0: S0}}) is None
    assert shift.choose_two({"ft": FT, "dkd": KEPT}, ["dkd", "ft"]) == ("dkd", "ft")
    with pytest.raises(KitError, match=r"two methods of these runs can be compared \(ft\), not ft, mbs."):
        shift.choose_two({"ft": FT}, ["ft", "mbs"])


def test_the_caption_is_in_the_figure():
    fig = drawn(shift.figure_comparison({"ft": FT, "mbs": KEPT}))
    assert "MBS keeps 50.0 points" in fig.get_suptitle().replace("\n", " ")
    (ax,) = fig.axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([50, 0])
    assert to_rgb(ax.patches[1].get_facecolor()) == to_rgb(style.METHOD_COLOURS["mbs"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["1 striped square"] and legend_words(fig) == ["FT", "MBS"]
    assert "two methods with two steps" in shift.figure_comparison({"ft": {0: S0}}).texts[0].get_text()


def test_gained_of_all_methods():
    fig = drawn(shift.figure_gained({"ft": FT, "mbs": KEPT, "dkd": {0: S0}}))
    ax = fig.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FT", "MBS"], "one step moves nothing"
    assert [text.get_text() for text in ax.texts] == ["+70", "+10", "0"] and ax.collections[0].get_clim() == (-100, 100)


def test_margins_right_of_zero():
    ax = shift.plot_margins(S0.margins["seen"], S1.margins["old"], axes(), colour="#332288")
    assert ax.texts[0].get_text() == "right of 0:\nbefore 20 %\nafter 90 %"
    after, before = ax.patches
    assert after.get_fill() and not before.get_fill() and before.get_data().values.sum() == pytest.approx(100)
    assert (
        shift.plot_margins(0 * S0.margins["seen"], S1.margins["old"], axes(), colour="k").texts[0].get_text().count("no pixel")
        == 1
    )
    fig = drawn(shift.figure_margins({"ft": FT, "mbs": KEPT}))
    assert titles(fig) == [f"step {t}: % of pixels of old classes" for t in (1, 2)]
    assert fig.axes[0].texts[0].get_text() == "right of 0:\nbefore 20 %\nafter 90 %"
    assert fig.axes[2].get_xlabel() == "background − best old class (nats)"
    assert "before the step" in legend_words(fig) and "±20" in legend_words(fig)[-1]


@pytest.mark.parametrize("draw", ["figure_mass", "figure_flow", "figure_margins", "figure_gained", "figure_comparison"])
def test_a_single_step_is_no_fault(draw):
    fig = drawn(getattr(shift, draw)({"ft": {0: S0}}))
    assert len(fig.texts) == 1 and not any(ax.axison for ax in fig.axes)


def test_a_hundred_and_fifty_classes():
    task = Scenario.named("ade-100-50")
    rng = np.random.default_rng(0)
    runs = [SimpleNamespace(step=t, scenario=task, settings={"arch": "toy"}) for t in (0, 1)]
    counts = {key: np.ones(80, dtype=np.int64) for key in ("old", "seen")}
    found = {t: shift.Said(runs[t], rng.random((151, task.step(t).n_seen + 1)), counts) for t in (0, 1)}
    for draw in (shift.figure_mass, shift.figure_flow, shift.figure_margins, shift.figure_gained):
        drawn(draw({"ft": found, "mbs": found}))
    drawn(shift.figure_comparison({"ft": found, "mbs": found}))


# --- where ---


@pytest.fixture(scope="module")
def pictures() -> list[masks.Picture]:
    return masks.test_pictures(DATA, TASK.step(2), 2)


@pytest.fixture(scope="module")
def maps(pictures):
    return shift.background_maps({"ft": chain("ft"), "dkd": chain("dkd", 2)}, Restore(move=0.1), pictures)


def test_maps_are_probabilities_of_the_background(pictures, maps):
    assert list(maps) == ["ft", "dkd"] and list(maps["ft"]) == [0, 1, 2] and list(maps["dkd"]) == [0, 1]
    one = maps["ft"][1][0]
    assert one.shape == (64, 64) and 0 <= one.min() <= one.max() <= 1
    ctx = Restore(move=0.1)(chain("ft").runs[1])
    with torch.no_grad():
        image = (pictures[0].image.float() / 255 - 0.5) / 0.25
        want = ctx.model.eval()(image[None]).logits.softmax(dim=1)[0, 0]
    assert one == pytest.approx(want.numpy(), abs=1e-4)


def test_where_it_moved(pictures, maps):
    ax = axes()
    shown = shift.plot_where(np.zeros((64, 64)), np.full((64, 64), 0.25), pictures[0], TASK.step(1), ax)
    assert shown.get_clim() == (-100, 100) and float(shown.get_array().max()) == pytest.approx(25)
    styles = [c.get_linestyle()[0][1] for c in ax.collections if to_rgb(c.get_edgecolor()[0]) == (0, 0, 0)]
    assert styles[0] is None and styles[1] is not None, "old classes solid, new ones dotted"
    fig = drawn(shift.figure_where(0, pictures[0], maps, TASK))
    assert titles(fig) == ["image", "FT", "DKD"] and [fig.axes[k].get_ylabel() for k in (0, 3)] == ["step 1", "step 2"]
    assert [text.get_text() for text in fig.axes[5].texts] == ["not run"]
    assert legend_words(fig) == ["outline of old classes", "outline of this step's classes"]
    one_step = {"ft": {0: maps["ft"][0]}}
    assert "Only one step" in shift.figure_where(0, pictures[0], one_step, TASK).texts[0].get_text()


def test_widget_shows_a_static_picture_first(pictures, maps, capsys):
    box = shift.explore_where(pictures, maps, TASK)
    assert capsys.readouterr().out.count("Figure") == 1
    which, chosen = box.children[0].children
    which.value = 1
    chosen.value = ("dkd",)
    assert capsys.readouterr().out.count("Figure") == 2
    assert which.max == 1 and dict(chosen.options)["DKD"] == "dkd"


def test_ranges_of_classes():
    assert shift.class_range(range(1, 6)) == "1-5" and shift.class_range(range(1, 2)) == "1"
