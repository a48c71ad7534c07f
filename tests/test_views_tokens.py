"""Views of MBS and AMIS: artists, labels and numbers on small arrays and untrained networks; never pixels of a rendering."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words

from cisskit.data import Batch, Toy
from cisskit.errors import KitError
from cisskit.losses import class_embeddings, label_guided_distillation, pooled_embeddings, pooled_statistics
from cisskit.models import Output, create
from cisskit.scenario import Scenario, Step
from cisskit.views import style, tokens

TASK = Scenario.named("toy-5-2")
SOURCE = Toy(train=1, heldout=1, test=1)
NAMES = list(TASK.classes)


def axes():
    return Figure().subplots()


@pytest.fixture
def ctx(tmp_path):
    """What a view looks at of step 1, without data or networks."""
    data = SimpleNamespace(palette=SOURCE.palette, source=SOURCE)
    return SimpleNamespace(step=TASK.step(1), scenario=TASK, data=data, old_model=None, run=SimpleNamespace(folder=tmp_path))


@pytest.fixture
def batch():
    """Two images of 16 x 16: an old class (2) on top, the new 6 at the left of the lower half, a later 8 at its right."""
    truth = torch.zeros(2, 16, 16, dtype=torch.long)
    truth[:, :6], truth[:, 10:, :6], truth[:, 10:, 12:] = 2, 6, 8
    label = torch.where(truth == 6, 6, 0)
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch(image, label, {"names": ["a", "b"], "from_memory": torch.zeros(2, dtype=torch.bool), "truth": truth})


def outputs(n_old: int = 6, n_all: int = 8) -> tuple[Output, Output]:
    """Student and teacher scores for the two images of `batch`."""
    g = torch.Generator().manual_seed(1)
    return Output(torch.randn(2, n_all, 4, 4, generator=g), (16, 16)), Output(torch.randn(2, n_old, 4, 4, generator=g), (16, 16))


# --- what is ignored ---


def test_what_ignoring_does_by_hand():
    step = Step(1, n_old=2, n_new=1)  # 1, 2 old; 3 new; 4 to come
    truth = np.array([[0, 0, 1, 1, 1, 2, 3, 4, 4, 255]])
    plain = np.array([[0, 0, 0, 0, 1, 0, 3, 0, 0, 255]])
    kept = np.array([[0, 255, 255, 0, 1, 255, 3, 255, 0, 255]])
    names = ["", *tokens.MISSES]
    kinds = tokens.ignoring(plain, kept, truth, step)
    assert [names[k] for k in kinds[0]] == ["", "needless", "caught", "kept", "", "caught", "", "later", "", ""]
    assert tokens.ignoring_scores(kinds) == pytest.approx({"precision": 2 / 4, "recall": 2 / 3})
    assert all(np.isnan(value) for value in tokens.ignoring_scores(np.zeros((1, 3))).values())


def test_misses_are_hatched_and_counted(ctx, batch):
    plain, kept = batch.label.clone(), batch.label.clone()
    plain[:, :6, :4], kept[:, :6, :4] = 2, 2
    kept[:, 3:8, 4:] = 255
    fig = drawn(tokens.figure_misses(batch, plain, kept, ctx))
    rows = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    assert rows == ["image", "really there", "sure ones are\nlabelled: ỹ", "doubtful ones\nignored: y⁻", "what the\nignored are"]
    words = [text for _, text in tokens.MISSES.values()]
    assert set(words) & set(legend_words(fig)) == {words[0], words[2], words[3]}, "no ignored pixel is of a class to come"
    hatched = [ax for ax in fig.axes if any(getattr(c, "hatches", [""]) == ["////"] for c in ax.collections)]
    assert len(hatched) == 2
    below = np.asarray(fig.axes[8].images[0].get_array()) / 255
    assert below[4, 10] == pytest.approx(to_rgb(tokens.MISSES["caught"][0]))
    assert below[1, 10] == pytest.approx(to_rgb(style.ERRORS["forgotten"][0])), "old to background looks as everywhere"
    assert plain[0, 0, 0] == 2 and kept[0, 4, 10] == 255


def test_nothing_ignored_draws_no_hatching(ctx, batch):
    fig = drawn(tokens.figure_misses(batch, batch.label, batch.label, ctx))
    assert not any(getattr(c, "hatches", None) for ax in fig.axes for c in ax.collections)


# --- trust ---


def test_trust_covers_the_image(ctx, batch):
    r = torch.rand(2, 4, 4)
    fig = drawn(tokens.figure_reliability(batch, batch.label, r, ctx))
    maps = [ax.images[0] for ax in fig.axes[4:6]]
    assert all(m.get_clim() == (0, 1) and list(m.get_extent()) == [-0.5, 15.5, 15.5, -0.5] for m in maps)
    assert np.asarray(maps[1].get_array()) == pytest.approx(r[1].numpy())
    assert fig.axes[-1].get_ylabel() == "trust r (0 to 1)"
    assert all(len(ax.collections) == 2 for ax in fig.axes[4:6]), "the outline of the old object, twice for contrast"
    assert "trust r\n4 x 4\npatches" in [ax.get_ylabel() for ax in fig.axes]


# --- angles ---


def test_angles_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [5.0, 5.0], [0.0, 0.0]])
    table = tokens.angles(rows)
    assert table[0] == pytest.approx([0, 90, 180, 45, 90], abs=1e-5)
    assert table == pytest.approx(table.T)


def test_a_copy_lies_at_zero_degrees_and_a_small_turn_is_seen():
    row = torch.randn(48, generator=torch.Generator().manual_seed(0))
    assert tokens.angles(torch.stack([row, row]))[0, 1] == pytest.approx(0, abs=1e-5)
    turned = torch.tensor([[1.0, 0.0], [1.0, 1e-5]])
    assert tokens.angles(turned)[0, 1] == pytest.approx(np.degrees(1e-5), rel=1e-3)


def test_the_heat_map_of_angles_is_centred_on_right_angles():
    ax = tokens.plot_angles(torch.eye(3), ["a", "b", "c", "later"], axes(), n_old=1)
    assert ax.collections[0].get_clim() == (0, 180)
    assert [text.get_text() for text in ax.texts] == ["0", "90", "90", "90", "0", "90", "90", "90", "0"], "the later one is empty"
    assert len(ax.get_lines()) == 2 and ax.get_lines()[0].get_ydata()[0] == 2
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c", "later"]
    assert tokens.TURN(0.5)[:3] == pytest.approx(to_rgb("#f7f7f7"), abs=0.01)


def test_many_classes_have_no_numbers():
    ax = tokens.plot_angles(torch.randn(21, 4), [str(c) for c in range(21)], axes())
    assert not ax.texts and not ax.get_lines()


def test_stages_of_angles_share_their_classes(ctx):
    rows = torch.randn(6, 5)
    fig = drawn(tokens.figure_angles({"the teacher": rows, "at birth": torch.cat([rows, rows[:1], rows[:1]])}, ctx))
    assert [ax.get_title() for ax in fig.axes[:2]] == ["the teacher", "at birth"]
    assert [ax.collections[0].get_array().shape for ax in fig.axes[:2]] == [(8, 8), (8, 8)]
    assert np.asarray(fig.axes[1].collections[0].get_array())[0, 6:] == pytest.approx([0, 0], abs=1e-5)
    assert fig.axes[2].get_ylabel() == "angle (degrees)"


def test_words_for_the_network_as_it_stands(ctx):
    assert tokens.now(ctx) == "untrained"
    ctx.old_model = "a teacher"
    assert tokens.now(ctx) == "student at birth"
    (ctx.run.folder / "model.safetensors").touch()
    assert tokens.now(ctx) == "found trained"


# --- label guidance ---


def test_the_label_takes_the_background():
    q = np.array([0.7, 0.2, 0.1])
    assert tokens.guided(q, 4, 5) == pytest.approx([0, 0.2, 0.1, 0, 0.7])
    for label in (0, 1, 255):
        assert tokens.guided(q, label, 5) == pytest.approx([0.7, 0.2, 0.1, 0, 0])


def test_what_is_drawn_is_what_is_distilled(batch):
    student, teacher = outputs()
    loss = label_guided_distillation(student.logits, teacher.logits, batch.label, reduction="none")
    for i, row, column in ((0, 12, 2), (1, 2, 9)):
        q = teacher.logits[i, :, row, column].softmax(dim=0).numpy()
        log_p = student.logits[i, :, row, column].log_softmax(dim=0).numpy()
        target = tokens.guided(q, int(batch.label[i, row, column]), 8)
        assert -(target * log_p).mean() == pytest.approx(loss[i, row, column].item(), abs=1e-5)


def test_the_pixel_is_where_the_teacher_hesitates(batch):
    _, teacher = outputs()
    batch.label[0, 8, 8] = 7
    i, row, column = tokens.new_pixel(batch, teacher, TASK.step(1))
    assert batch.label[i, row, column] in (6, 7)
    doubt = (teacher.logits.softmax(dim=1)[:, 0] - 0.5).abs()
    assert doubt[i, row, column] == doubt[batch.label > 0].min()
    batch.label.zero_()
    assert tokens.new_pixel(batch, teacher, TASK.step(1)) is None


def test_guidance_draws_the_three(ctx, batch):
    q, p = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.2, 0.1, 0.3])
    ax = tokens.plot_guidance(q, p, 3, NAMES, SOURCE.palette, axes())
    heights = [bar.get_height() for container in ax.containers for bar in container]
    assert heights == pytest.approx([0.6, 0.3, 0.1, 0, 0.3, 0.1, 0.6])
    assert to_rgb(ax.containers[1][3].get_facecolor()) == pytest.approx(SOURCE.palette[3] / 255)
    assert ax.get_lines()[0].get_ydata() == pytest.approx(p)
    assert ax.get_ylabel() == "probability at the pixel" and len(ax.get_xticklabels()) == 4
    student, teacher = outputs()
    fig = drawn(tokens.figure_guidance(batch, student, teacher, ctx))
    assert fig.axes[0].get_title() == f"labelled 6 {NAMES[6]}"
    assert len(fig.axes[0].get_lines()) == 2, "a cross, twice for contrast"
    assert legend_words(fig) == ["q: the teacher", "q̃: asked of the student", "the student now"]
    batch.label.zero_()
    assert "no pixel" in drawn(tokens.figure_guidance(batch, student, teacher, ctx)).texts[0].get_text()


# --- opening pictures ---


def test_two_shifts_need_no_run():
    fig = drawn(tokens.figure_two_shifts())
    words = legend_words(fig)
    assert words[0].startswith("cause 1") and words[1].startswith("cause 2")
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == [
        "image",
        "really there",
        "told at step 1",
        "told, and found\nby a teacher",
        "class tokens\nat birth (sketch)",
    ]
    there, told, found = (ax.images[0].get_array() for ax in fig.axes[1:4])
    colours = [{tuple(c) for c in picture.reshape(-1, 3).tolist()} for picture in (there, told, found)]
    assert colours[1] < colours[2] < colours[0], "the teacher finds some old class and misses one"


def test_pooled_statistics_do_not_see_what_elements_do():
    ax = tokens.plot_same_pool(axes())
    bars = [bar.get_height() for container in ax.containers for bar in container]
    teacher, student = torch.tensor(bars[:8]).view(1, 1, 8), torch.tensor(bars[8:]).view(1, 1, 8)
    error = class_embeddings(student, teacher)
    assert pooled_embeddings(torch.cat([student, student], dim=1), teacher).item() == pytest.approx(0, abs=1e-7)
    assert ax.get_title() == f"element by element: {error:.2f}   pooled means of squares: 0.00"
    fig = drawn(tokens.figure_ideas())
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["patches", "classes", "global"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["patches", "classes"], "the global token asks nothing"


# --- the global token ---


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = create("toy_segmenter", None, decoder_blocks=3, global_token=True)
    model.add_head(6)
    model.add_head(2)
    return model.train()


def test_a_network_that_does_not_care_reads_evenly(network, batch):
    for block in network.decoder.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
    patches, classes = tokens.reads_global(network, batch.image)
    assert classes.shape == (3, 2, 8) and patches.shape[:2] == (3, 2)
    share = 1 / (patches[0, 0].numel() + 8 + 1)
    assert patches.numpy() == pytest.approx(share) and classes.numpy() == pytest.approx(share)


def test_who_reads_the_global_token(network, batch):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    patches, classes = tokens.reads_global(network, batch.image)
    with torch.no_grad():
        last = network.attention_maps(batch.image)[2].mean(dim=1)
    torch.testing.assert_close(torch.cat([patches[2].flatten(1), classes[2]], dim=1), last[:, :, -1])
    assert (last.sum(dim=2) - 1).abs().max() < 1e-5
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_global_figure_has_a_column_per_block(ctx, batch, network):
    patches, classes = tokens.reads_global(network, batch.image[1:])
    fig = drawn(tokens.figure_global(batch, 1, network, ctx))
    above, below = fig.axes[:4], fig.axes[4:8]
    assert [ax.get_title() for ax in above] == ["image", "block 1", "block 2", "block 3"]
    assert np.asarray(above[3].images[0].get_array()) == pytest.approx(100 * patches[2, 0].numpy())
    assert len({ax.images[0].get_clim() for ax in above[1:]}) == 1, "one scale for all blocks"
    assert [bar.get_width() for bar in below[1].patches] == pytest.approx((100 * classes[0, 0]).tolist())
    assert [t.get_text() for t in below[1].get_yticklabels()] == [f"{c} {NAMES[c]}" for c in range(8)]
    even = 100 / (patches[0].numel() + 9)
    assert legend_words(fig) == [f"an even share over all tokens: {even:.2f} %"]


@pytest.mark.parametrize("arch", ["toy", "toy_segmenter"])
def test_networks_without_a_global_token_say_so(arch, ctx, batch):
    model = create(arch, None)
    model.add_head(6)
    with pytest.raises(KitError, match="no global token"):
        tokens.reads_global(model, batch.image)
    assert "no global token" in drawn(tokens.figure_global(batch, 0, model, ctx)).texts[0].get_text()


# --- statistics and sizes ---


def test_pooled_figure_shows_every_part_once(ctx):
    g = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(3, 6, 12, generator=g), torch.randn(3, 8, 12, generator=g)
    fig = drawn(tokens.figure_pooled({"at birth": teacher, "after training": student}, teacher, ctx))
    assert [ax.get_title() for ax in fig.axes[3:]] == [f"after training, {s}" for s in ("1 part", "2 parts", "4 parts")]
    rings, diamonds = fig.axes[5].get_lines()[4:6]  # class 2, four parts
    expected = pooled_statistics(student)[:, 2].mean(dim=0)[6::2]
    assert diamonds.get_xdata() == pytest.approx(expected.numpy(), rel=1e-5)
    assert rings.get_xdata() == pytest.approx(pooled_statistics(teacher)[:, 2].mean(dim=0)[6::2].numpy(), rel=1e-5)
    same = fig.axes[0].get_lines()
    assert len(same) == 12 and same[0].get_xdata() == pytest.approx(same[1].get_xdata())
    assert [ax.get_xlabel() for ax in fig.axes[3:]] == ["mean of squares", "mean of squares / 4", "mean of squares / 16"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()][2] == f"2 {NAMES[2]}"


def test_sizes_on_a_logarithmic_axis():
    stages = {"before": {"ce": 2.0, "al": 2e-4, "ocl": 1e-8}, "after": {"ce": 1.0, "al": 1e-3}}
    ax = tokens.plot_term_sizes(stages, axes())
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "weighted term (logarithmic)"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ce", "al", "ocl"]
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    left = ax.get_xlim()[0]
    assert ends == pytest.approx([2.0, 2e-4, left, 1.0, 1e-3, left])
    assert [text.get_text() for text in ax.texts] == ["2", "0.0002", "0", "1", "0.001", ""]
    fig = drawn(tokens.figure_term_sizes({"these images": {"ce": torch.tensor(0.5)}}))
    assert legend_words(fig) == ["these images"]
    drawn(tokens.figure_term_sizes({"nothing": {"ocl": 0.0}}))
