"""Attributions: identities that hold exactly, results that are kept, and their pictures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import drawn, legend_words
from torch import nn

from cisskit import attribution as at
from cisskit.data import Toy
from cisskit.errors import KitError
from cisskit.losses.contrast import merged
from cisskit.method import configure
from cisskit.models import create
from cisskit.runs import Run, load_tensors, save_tensors
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit, restore
from cisskit.views import attribution as view
from cisskit.views import tables
from cisskit.views.masks import Picture

TASK = Scenario.named("toy-5-2")
SOURCE = Toy(train=1, heldout=1, test=1)
STEP = TASK.step(1)  # 1..5 old, 6 and 7 new, 8 and 9 to come


def network(arch: str = "toy", *, biases: bool = True, unknown: bool = False, heads: tuple[int, ...] = (3, 2), seed: int = 0):
    """Random weights; batch norm has the statistics of random images, so that signals stay of size 1. biases: else all are 0."""
    torch.manual_seed(seed)
    model = create(arch, None, **({"conv_heads": True, "taps": True} if unknown else {}))
    if unknown:
        model.add_head(1, unknown=True)
    for n in heads:
        model.add_head(n)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # average over all batches
                module.bias.normal_(std=0.2)
        model.train()
        for _ in range(3):
            model(torch.randn(4, 3, 32, 40))
        for module in model.modules():
            if not biases and isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
            if not biases and isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.zero_()
    return model.eval()


def image_and_mask(height: int = 32, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 8:20, 10:31] = True
    return image, mask


def gradient(scores: at.Scores, image: torch.Tensor, mask: torch.Tensor, target: int) -> torch.Tensor:
    x = image.clone().requires_grad_()
    return torch.autograd.grad(scores(x, mask)[0, target], x)[0]


def close(found: torch.Tensor, want: torch.Tensor, share: float = 1e-4) -> bool:
    """Equal but for ``share`` of the largest value."""
    return bool((found - want).abs().max() <= share * want.abs().max())


# --- one score per class ---


def test_scores_by_hand():
    logits = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]]).view(1, 2, 2, 2)
    same = torch.tensor([[[True, False], [False, True]]])
    assert at.class_scores(logits, same).tolist() == [[5, 50]]
    own = torch.tensor([[[0, 1], [1, 1]]])
    assert at.class_scores(logits, own).tolist() == [[1, 90]]
    assert at.class_scores(logits, torch.full_like(own, 7)).tolist() == [[0, 0]]
    with pytest.raises(KitError, match=r"the mask has shape \(1, 4, 4\).*needs \(B, H, W\)"):
        at.class_scores(logits, torch.ones(1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize(("arch", "unknown"), [("toy", False), ("toy", True), ("toy_segmenter", False)])
def test_scores_say_what_the_network_says(arch, unknown):
    model, (image, mask) = network(arch, unknown=unknown), image_and_mask(35, 41)  # a Segmenter pads it
    with torch.no_grad():
        out = model(image)
        want = merged(out.open_logits) if unknown else out.logits
        scores = at.Scores(model)
        torch.testing.assert_close(scores.logits(image), want)
        torch.testing.assert_close(scores(image, mask), at.class_scores(want, mask))
    assert scores.layers["decoder"](out.features["decoder"]).shape == out.features["decoder"].shape


def test_the_network_is_left_alone():
    model, (image, mask) = network(), image_and_mask()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = at.Scores(model)
    for explain in (at.grad_cam, at.integrated_gradients, at.occlusion, at.lrp):
        explain(scores, image, mask, 1)
    assert model.training and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(scores.logits(image), model.eval()(image).logits, msg="explained is the trained network")
    assert not image.requires_grad and image.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    left = {"rule", "activations"}
    assert not any(left & set(vars(module)) for module in scores.modules()), "Captum's own traces are gone, too"


# --- identities ---


def test_grad_cam_of_a_linear_head_by_hand():
    model, (image, mask) = network(), image_and_mask()
    with torch.no_grad():
        features = model(image).features["decoder"]
        weight, _ = model.classifier()
    positions = features.shape[2] * features.shape[3]
    for target in (0, 4):  # interpolation hands each pixel of the mask to the grid with weights that add up to 1
        want = (weight[target].view(1, -1, 1, 1) * features).sum(dim=1, keepdim=True) * mask.sum() / positions
        torch.testing.assert_close(at.grad_cam(at.Scores(model), image, mask, target), want, rtol=1e-4, atol=1e-3)


def test_grad_cam_of_a_head_that_shapes_no_features():
    torch.manual_seed(0)
    model = create("toy", None)
    model.add_head(1, detached=True)
    model.add_head(2)
    image, mask = image_and_mask()
    assert at.grad_cam(at.Scores(model), image, mask, 0).abs().max() > 0
    assert at.lrp(at.Scores(model), image, mask, 0).abs().max() > 0
    assert model.detached == [True, False]


@pytest.mark.parametrize("arch", ["toy", "toy_segmenter"])
def test_integrated_gradients_are_complete(arch):
    scores, (image, mask) = at.Scores(network(arch)), image_and_mask()
    with torch.no_grad():
        rise = scores(image, mask) - scores(torch.zeros_like(image), mask)
    for target in (0, 3):
        found, delta = at.integrated_gradients(scores, image, mask, target, steps=256, batch=64)
        assert found.sum().item() == pytest.approx((rise[0, target] + delta[0]).item(), rel=1e-3, abs=1e-2)
        assert abs(delta[0]) < 0.02 * rise.abs().max(), "within its convergence delta, which is small"
    _, rough = at.integrated_gradients(scores, image, mask, 3, steps=4)
    assert abs(rough[0]) > abs(delta[0])


def test_integrated_gradients_do_not_depend_on_the_batch():
    scores, (image, mask) = at.Scores(network()), image_and_mask()
    one, many = (at.integrated_gradients(scores, image, mask, 1, steps=6, batch=n)[0] for n in (1, 6))
    assert close(one, many)


def blanked(scores: at.Scores, image: torch.Tensor, mask: torch.Tensor, where: torch.Tensor, target: int) -> float:
    """The fall of the score when the pixels ``where`` (H, W) are 0."""
    with torch.no_grad():
        return float((scores(image, mask) - scores(image * ~where, mask))[0, target])


@pytest.mark.parametrize("arch", ["toy", "toy_segmenter"])
def test_occlusion_is_a_finite_difference(arch):
    scores, (image, mask) = at.Scores(network(arch)), image_and_mask()
    found = at.occlusion(scores, image, mask, 2, window=12, stride=12)
    assert found.shape == image.shape and torch.equal(found[:, 0], found[:, 2])
    for top in (0, 12, 24):  # the last window of 32 rows is cut
        for left in (0, 12, 24, 36):
            where = torch.zeros(32, 40, dtype=torch.bool)
            where[top : top + 12, left : left + 12] = True
            want = torch.full((int(where.sum()),), blanked(scores, image, mask, where, 2))
            torch.testing.assert_close(found[0, 0][where], want, rtol=1e-3, atol=2e-2)


def test_overlapping_windows_are_averaged():
    scores, (image, mask) = at.Scores(network()), image_and_mask()
    found = at.occlusion(scores, image, mask, 2, window=16, stride=8)
    falls = []
    for top in (0, 8):  # those that cover the pixel in row 10
        for left in (8, 16):  # and in column 20
            where = torch.zeros(32, 40, dtype=torch.bool)
            where[top : top + 16, left : left + 16] = True
            falls.append(blanked(scores, image, mask, where, 2))
    assert found[0, 0, 10, 20].item() == pytest.approx(np.mean(falls), rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("arch", ["toy", "toy_segmenter"])
def test_ablation_of_a_segment_is_a_finite_difference(arch):
    scores, (image, mask) = at.Scores(network(arch)), image_and_mask()
    segments = torch.zeros(32, 40, dtype=torch.long)
    segments[:, 20:], segments[4:9] = 9, 255
    for target in (0, 4):
        found = at.ablation(scores, image, mask, target, segments)[0]
        for segment in (0, 9, 255):
            where = segments == segment
            want = blanked(scores, image, mask, where, target)
            torch.testing.assert_close(found[:, where], torch.full((3, int(where.sum())), want), rtol=1e-3, atol=2e-2)
    with pytest.raises(KitError, match=r"segments have shape \(3, 3\), the image needs \(32, 40\)"):
        at.ablation(scores, image, mask, 0, torch.zeros(3, 3))


CNNS = [("toy", False), ("toy", True), ("deeplabv3_mobilenet_v2", False), ("deeplabv3_resnet50", False)]


@pytest.mark.parametrize(("arch", "unknown"), CNNS)
def test_relevance_is_conserved_without_biases(arch, unknown):
    scores, (image, mask) = at.Scores(network(arch, biases=False, unknown=unknown)), image_and_mask()
    with torch.no_grad():
        score = scores(image, mask)[0]
    for target in (0, 4):  # 0: the background, to which the unknown is added
        assert at.lrp(scores, image, mask, target).sum().item() == pytest.approx(score[target].item(), rel=1e-3)
    assert at.lrp(scores, image, mask, 1, layer="decoder").sum().item() == pytest.approx(score[1].item(), rel=1e-3)
    equal = at.lrp(scores, image, mask, 1, equal=True)
    assert equal.sum().item() == pytest.approx(score[1].item() * mask.sum().item(), rel=1e-2), "as Captum gives it"


@pytest.mark.parametrize(("arch", "unknown"), CNNS[:2])
def test_the_epsilon_rule_is_gradient_times_input(arch, unknown):
    scores, (image, mask) = at.Scores(network(arch, unknown=unknown)), image_and_mask()
    for target in (0, 3):
        assert close(at.lrp(scores, image, mask, target), image * gradient(scores, image, mask, target), 1e-3)


@pytest.mark.parametrize("arch", ["toy", "deeplabv3_mobilenet_v2", "deeplabv3_resnet50"])
def test_every_relu_has_its_own_place(arch):
    model = create(arch, None, conv_heads=True, taps=True).eval()
    model.add_head(2)
    relus = [module for module in model.modules() if isinstance(module, (nn.ReLU, nn.ReLU6))]
    calls: list[nn.Module] = []
    for relu in relus:
        relu.register_forward_hook(lambda module, inputs, out: calls.append(module))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert not any(relu.inplace for relu in relus)
    assert len(calls) == len(relus) == len(set(calls))


def test_names_of_weights_are_those_of_older_checkpoints():
    names = {arch: set(create(arch, None).state_dict()) for arch in ("toy", "deeplabv3_mobilenet_v2", "deeplabv3_resnet50")}
    assert {"backbone.layer2.shortcut.0.weight", "backbone.layer4.bn2.bias", "decoder.project.1.weight"} <= names["toy"]
    assert {"backbone.layer4.2.conv3.weight", "backbone.layer1.0.downsample.0.weight"} <= names["deeplabv3_resnet50"]
    assert {"backbone.layer1.3.conv.2.weight", "backbone.layer4.0.conv.1.0.weight"} <= names["deeplabv3_mobilenet_v2"]
    assert [len(found) for found in names.values()] == [92, 348, 360]


def test_relevance_of_a_label_map_is_that_of_its_pixels():
    scores, (image, mask) = at.Scores(network()), image_and_mask()
    assert torch.equal(at.lrp(scores, image, mask, 1), at.lrp(scores, image, mask.long(), 1))


def test_relevance_is_refused_where_it_has_no_rule():
    image, mask = image_and_mask()
    with pytest.raises(KitError, match="attention.* of a Segmenter, so relevance would not be conserved. Use Grad-CAM"):
        at.lrp(at.Scores(network("toy_segmenter")), image, mask, 0)
    foreign = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish())
    with pytest.raises(KitError, match="LRP cannot explain this network.*Hardswish"):
        at.lrp(at.Scores(foreign), image, mask, 0)


@pytest.mark.parametrize("explain", [at.grad_cam, at.lrp, at.occlusion, lambda *a: at.integrated_gradients(*a)[0]])
def test_images_of_a_batch_do_not_mix(explain):
    scores, (image, mask) = at.Scores(network()), image_and_mask()
    images, masks = torch.cat([image, image.flip(3)]), torch.cat([mask, mask.roll(5, 2)])
    both = explain(scores, images, masks, 1)
    for i in (0, 1):
        assert close(both[i : i + 1], explain(scores, images[i : i + 1], masks[i : i + 1], 1), 1e-3)


@pytest.mark.parametrize("explain", [at.integrated_gradients, at.occlusion])
def test_slow_ones_show_a_bar(explain, capsys):
    scores, (image, mask) = at.Scores(network()), image_and_mask()
    explain(scores, image, mask, 1)
    assert capsys.readouterr().err == ""
    explain(scores, image, mask, 1, bar=True)
    shown = capsys.readouterr().err
    assert at.WORDS[explain.__name__] in shown and "image/s" in shown


# --- one image, one map ---


@pytest.fixture(scope="module")
def scores() -> at.Scores:
    return at.Scores(network())


def settings_of(method: str) -> dict:
    return {"integrated_gradients": {"steps": 4}, "occlusion": {"window": 16}}.get(method, {})


@pytest.mark.parametrize("method", at.WORDS)
def test_one_map_at_the_size_of_the_image(scores, method):
    image, mask = image_and_mask()
    segments = mask[0].long()
    found = at.attribute(scores, method, image[0], mask[0], 1, segments=segments, **settings_of(method))
    assert found.shape == (32, 40) and found.dtype == torch.float32 and found.isfinite().all()
    if method == "ablation":
        want = blanked(scores, image, mask, mask[0], 1) / mask.sum()
        assert found[12, 15].item() == pytest.approx(want.item(), rel=1e-3)
    if method == "lrp":
        assert close(found, (at.lrp(scores, image, mask, 1).sum(dim=1)[0]) / mask.sum())


def test_a_map_of_a_segmenter_covers_the_image_not_its_padding():
    scores, (image, mask) = at.Scores(network("toy_segmenter")), image_and_mask(35, 41)
    found = at.attribute(scores, "grad_cam", image[0], mask[0], 1, layer="backbone")
    cam = at.grad_cam(scores, image, mask, 1, layer="backbone")
    assert cam.shape[2:] == (5, 6) and found.shape == (35, 41)
    whole = at.upsample(cam, (40, 48), mode="bilinear")[0, 0, :35, :41] / mask.sum()
    torch.testing.assert_close(found, whole)


def test_questions_that_make_no_sense(scores):
    image, mask = image_and_mask()
    with pytest.raises(KitError, match="unknown method of attribution 'occlusoin'. Did you mean 'occlusion'"):
        at.attribute(scores, "occlusoin", image[0], mask[0], 0)
    with pytest.raises(KitError, match="unknown setting of occlusion 'step'. Did you mean 'stride'|unknown setting of occlusion"):
        at.attribute(scores, "occlusion", image[0], mask[0], 0, step=3)
    with pytest.raises(KitError, match="the mask has no pixel"):
        at.attribute(scores, "lrp", image[0], torch.zeros(32, 40, dtype=torch.bool), 0)
    with pytest.raises(KitError, match="pass segments"):
        at.attribute(scores, "ablation", image[0], mask[0], 0)
    with pytest.raises(KitError, match=r"this model has no class 5: it scores 5 of them, 0..4"):
        at.attribute(scores, "grad_cam", image[0], mask[0], 5)
    with pytest.raises(KitError, match="unknown layer 'middle'"):
        at.attribute(scores, "grad_cam", image[0], mask[0], 0, layer="middle")


# --- kept results ---


def asked(scores, folder, monkeypatch, **more) -> tuple[torch.Tensor, int]:
    """A map, and how often it was computed for that."""
    calls = []
    real = at.occlusion
    monkeypatch.setattr(at, "occlusion", lambda *a, **k: calls.append(1) or real(*a, **k))
    # the signature says what the settings are
    monkeypatch.setattr(at.occlusion, "__signature__", at.inspect.signature(real), raising=False)
    image, mask = image_and_mask()
    given = {"image": image[0], "mask": mask[0], "target": 1, "window": 16, **more}
    try:
        return at.attribute(scores, "occlusion", folder=folder, **given), len(calls)
    finally:
        monkeypatch.undo()


def test_results_are_kept_and_asked_again_when_anything_differs(scores, tmp_path, monkeypatch):
    image, mask = image_and_mask()
    first, computed = asked(scores, tmp_path, monkeypatch)
    assert computed == 1 and not asked(scores, tmp_path, monkeypatch)[1]
    assert torch.equal(asked(scores, tmp_path, monkeypatch)[0], first)
    assert not asked(scores, tmp_path, monkeypatch, batch=3)[1], "how many at once decides nothing"
    others = [{"target": 2}, {"window": 8}, {"image": image[0] + 1}, {"mask": ~mask[0]}]
    assert [asked(scores, tmp_path, monkeypatch, **other)[1] for other in others] == [1, 1, 1, 1]
    assert asked(at.Scores(network(seed=1)), tmp_path, monkeypatch)[1] == 1, "another model"
    files = list((tmp_path / "attribution").iterdir())
    assert len(files) == 6 and all(f.name.startswith("occlusion-class") and f.suffix == ".safetensors" for f in files)


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "other question", "other values", "no values"])
def test_damaged_results_are_not_trusted(scores, tmp_path, monkeypatch, damage):
    first, _ = asked(scores, tmp_path, monkeypatch)
    (file,) = (tmp_path / "attribution").iterdir()
    tensors, about = load_tensors(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        file.write_bytes(b"not ours at all, but long enough to be read as a header")
    elif damage == "other question":
        save_tensors(file, tensors, {**about, "question": {**about["question"], "class": 3}})
    elif damage == "other values":
        save_tensors(file, {"found": tensors["found"] + 1}, about)
    else:
        save_tensors(file, {"map": tensors["found"]}, about)
    again, computed = asked(scores, tmp_path, monkeypatch)
    assert computed == 1 and torch.equal(again, first)
    assert not asked(scores, tmp_path, monkeypatch)[1], "and the file is whole again"


def test_where_nothing_can_be_written_nothing_is_kept(scores, tmp_path, monkeypatch):
    (tmp_path / "attribution").write_text("a file where a folder should be")
    assert [asked(scores, tmp_path, monkeypatch)[1] for _ in range(2)] == [1, 1]


# --- comparisons ---


def test_one_model_against_itself_and_against_another(scores):
    image, mask = image_and_mask()
    segments = torch.where(mask[0], 2, 0)
    same = at.compare(scores, scores, "ablation", image[0], mask[0], 1, segments=segments)
    assert not same.difference.any() and same.score_old == same.score_new and same.own == 2
    other = at.Scores(network(seed=1))
    found = at.compare(scores, other, "occlusion", image[0], mask[0], 1, segments=segments, window=16)
    assert np.allclose(found.difference, found.new - found.old) and found.difference.any()
    both = np.abs(np.concatenate([found.old.ravel(), found.new.ravel()]))
    assert found.scale == pytest.approx(np.percentile(both, 99.5))
    with torch.no_grad():
        assert found.score_new == pytest.approx((other(image, mask)[0, 1] / mask.sum()).item(), rel=1e-5)


def test_a_class_that_only_the_new_model_knows():
    image, mask = image_and_mask()
    old, new = at.Scores(network(heads=(3,))), at.Scores(network())
    with pytest.raises(KitError, match="this model has no class 4: it scores 3 of them"):
        at.compare(old, new, "grad_cam", image[0], mask[0], 4, segments=mask[0].long())


def by_hand(method: str) -> at.Comparison:
    """Segments 0 (six pixels) and 4 (two, both of the mask)."""
    segments = np.array([[0, 0, 4, 4], [0, 0, 0, 0]])
    old = np.where(segments == 4, 3.0, -0.5).astype(np.float32)
    new = np.where(segments == 4, 0.0, 0.5).astype(np.float32)
    return at.Comparison(method, 4, segments == 4, segments, old, new, 1.0, -1.0)


def test_support_by_segment_by_hand():
    table = by_hand("ablation").support()
    assert table["segment"].tolist() == [0, 4] and table["pixels"].tolist() == [6, 2]
    assert table["old"].tolist() == [-0.5, 3] and table["new"].tolist() == [0.5, 0] and table["change"].tolist() == [1, -3]
    assert table["old share"].tolist() == pytest.approx([-50 / 3.5, 300 / 3.5])
    assert table["new share"].tolist() == pytest.approx([50 / 3.5, 0]), "of the larger total"
    summed = by_hand("lrp").support()
    assert summed["old"].tolist() == [-3, 6] and summed["old share"].tolist() == pytest.approx([-100 / 3, 200 / 3])
    nothing = at.Comparison("lrp", 0, *(x[None] for x in (np.ones(2, bool), np.zeros(2, int), *np.zeros((2, 2)))), 0, 0)
    assert nothing.scale == 1 and not nothing.support()["old share"].any()


def test_consistency_by_hand():
    a, b = torch.tensor([3.0, 4, -9]), torch.tensor([-7.0, 2, -1])
    assert at.consistency(a, b) == pytest.approx(4 * 2 / (5 * 2)), "only positive parts count"
    assert at.consistency(a, 5 * a) == pytest.approx(1)
    assert at.consistency(a, -a.abs()) == 0, "no evidence is left"
    assert np.isnan(at.consistency(-a.abs(), -a.abs()))


@pytest.mark.parametrize("method", ["grad_cam", "lrp"])
def test_relevance_consistency_of_images(scores, tmp_path, method):
    image, mask = image_and_mask()
    images, masks = [image[0], image[0].flip(2)], [mask[0], mask[0]]
    same = at.relevance_consistency(scores, scores, images, masks, 2, method=method)
    assert same.tolist() == pytest.approx([1, 1])
    other = at.Scores(network(seed=1))
    found = at.relevance_consistency(scores, other, images, masks, 2, method=method, folder=tmp_path)
    explain = {"grad_cam": at.grad_cam, "lrp": at.lrp}[method]
    want = at.consistency(*(explain(s, image, mask, 2, layer="decoder") for s in (scores, other)))
    assert found[0].item() == pytest.approx(want, abs=1e-5) and found.shape == (2,)
    assert len(list((tmp_path / "attribution").iterdir())) == 1
    with pytest.raises(KitError, match="unknown method of relevance 'occlusion'"):
        at.relevance_consistency(scores, other, images, masks, 2, method="occlusion")


# --- pictures ---


def test_the_problem_adds_up():
    fig = drawn(view.figure_problem())
    axes = [ax for ax in fig.axes if ax.get_label() != "<colorbar>"][:5]
    score, *left = (float(ax.get_xlabel().removeprefix("score ")) for ax in axes[:4])
    falls = axes[4].images[1].get_array()
    assert score - left[0] == pytest.approx(falls.max(), abs=0.011), "the disc itself is most of its score"
    assert left[1] > score > left[2] > left[0] and axes[4].get_title() == "support = fall of the score"


def pictures(n: int = 2, side: int = 32) -> list[Picture]:
    """Class 2 in the upper left, 5 at the right, the new class 6 below; the last one shows background alone."""
    draw, found = torch.Generator().manual_seed(0), []
    for i in range(n):
        truth = np.zeros((side, side), dtype=np.int64)
        if i < n - 1 or n == 1:
            truth[4:14, 4 + i : 16 + i], truth[4:16, 20:30], truth[20:30, 8:24], truth[0] = 2, 5, 6, 255
        found.append(Picture(f"p{i}", torch.randint(0, 255, (3, side, side), generator=draw, dtype=torch.uint8), truth))
    return found


def pair_of(name: str, folder, arch: str = "toy") -> view.Pair:
    """Untrained networks before and after step 1."""
    method, _ = configure(name, {})
    nets = network(arch, heads=(6,), unknown=name == "lag"), network(arch, heads=(6, 2), seed=1, unknown=name == "lag")
    ctx = SimpleNamespace(
        step=STEP, scenario=TASK, data=SimpleNamespace(palette=SOURCE.palette, source=SOURCE), method=method, model=nets[1],
        run=SimpleNamespace(folder=folder, settings={"method": name}), device=torch.device("cpu"),
    )  # fmt: skip
    return view.Pair(ctx, *map(at.Scores, nets))


@pytest.fixture
def pair(tmp_path) -> view.Pair:
    return pair_of("ft", tmp_path)


def grid_of(fig: Figure, rows: int) -> np.ndarray:
    """(rows, 5) axes without colour bars."""
    return np.array([ax for ax in fig.axes if ax.get_label() != "<colorbar>"][: 5 * rows]).reshape(rows, 5)


def test_cases_are_classes_large_enough(pair):
    found = view.old_cases(pair, pictures())
    assert [(case.picture.name, case.label) for case in found] == [("p0", 2), ("p0", 5)], "6 is new, p1 is empty"
    assert found[0].mask.sum() == 120
    assert view.old_cases(pair, pictures(), least=0.118) == []
    with pytest.raises(KitError, match="in no test image a class from before step 1 covers 50 %. Take more images."):
        view.most_lost(pair, pictures(), least=0.5)


def test_the_most_lost_object_comes_first(pair, monkeypatch):
    shots = pictures(3)
    lost = {(0, 2): 0.25, (0, 5): 1.0, (1, 2): 0.5, (1, 5): 0.0}

    def says(pair, given, new=True):
        found = []
        for i, picture in enumerate(given):
            labels = picture.truth.copy()
            for c in (2, 5):
                rows, columns = np.nonzero(picture.truth == c)
                n = int(len(rows) * lost[i, c])
                labels[rows[:n], columns[:n]] = 0 if new else c
                labels[rows[n:], columns[n:]] = 7 if new else c  # not lost to the background
            found.append(labels)
        return found

    monkeypatch.setattr(view, "says", says)
    found = view.old_cases(pair, shots)
    assert view.lost_share(pair, found).tolist() == pytest.approx([0.25, 1, 0.5, 0])
    assert [(case.picture.name, case.label) for case in view.most_lost(pair, shots)] == [("p0", 5), ("p1", 2)]
    name, case = view.victim({"mib": pair, "ft": pair}, shots)
    assert name == "mib" and case.label == 5


def test_the_question(pair):
    case = view.old_cases(pair, pictures())[0]
    fig = drawn(view.figure_question(pair, case, window=16))
    axes = grid_of(fig, 2)
    assert [ax.get_title() for ax in axes[0, 1:4]] == ["model after step 0", "model after step 1", "change"]
    assert axes[0, 4].get_title("right") == "support by segment"
    words = TASK.classes[2]
    assert [ax.get_ylabel().replace("\n", " ") for ax in axes[:, 0]] == [
        f"score of {words} on the {words}", f"score of background on the {words}",
    ]  # fmt: skip
    for row, target in zip(axes, (2, 0), strict=True):
        found = view.explain(pair, case, "occlusion", target, window=16)
        old, new, change = (ax.images[1] for ax in row[1:4])
        assert old.get_clim() == new.get_clim() == pytest.approx((-found.scale, found.scale)), "one scale for both"
        assert change.get_clim()[0] == -change.get_clim()[1] and change.get_cmap().name == view.CHANGE
        assert np.array_equal(new.get_array(), found.new) and np.array_equal(change.get_array(), found.new - found.old)
        assert row[1].get_xlabel() == f"score {found.score_old:+.1f}" and row[2].get_xlabel() == f"score {found.score_new:+.1f}"
        table = found.support()
        widths = [[bar.get_width() for bar in bars] for bars in row[4].containers]
        assert widths == [pytest.approx(table["old"].tolist()), pytest.approx(table["new"].tolist())]
        assert [t.get_text() for t in row[4].get_yticklabels()] == [
            "0 background", f"2 {words}", f"5 {TASK.classes[5]}", f"6 {TASK.classes[6]}", "void",
        ]  # fmt: skip
        assert [t.get_fontweight() for t in row[4].get_yticklabels()] == ["normal", "bold", "normal", "normal", "normal"]
        assert row[4].get_xlabel() == "support (logits)"
    assert legend_words(fig)[:3] == ["the pixels whose score is explained", "support after step 0", "support after step 1"]
    assert "FT, test image p0: occlusion" in fig.get_suptitle()
    bars = [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]
    bars = bars or [child for ax in fig.axes for child in ax.child_axes]
    assert len(bars) == 4 and {"against", "for", "less", "more"} == {w for ax in bars for w in ax.get_ylabel().split()}


def test_segments_can_be_those_of_the_old_model(pair):
    case = view.old_cases(pair, pictures())[0]
    found = view.explain(pair, case, "ablation", 0, segments="old model", keep=False)
    assert np.array_equal(found.segments, view.says(pair, [case.picture], new=False)[0])
    with pytest.raises(KitError, match="segments come from 'truth' or 'old model', not 'new'"):
        view.explain(pair, case, "ablation", 0, segments="new")


def test_several_methods_side_by_side(tmp_path):
    pairs = {name: pair_of(name, tmp_path, arch) for name, arch in (("ft", "toy"), ("lag", "toy"), ("mbs", "toy_segmenter"))}
    case = view.old_cases(pairs["ft"], pictures())[0]
    fig = drawn(view.figure_methods(pairs, case, "ablation"))
    axes = grid_of(fig, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["FT", "LAG (released)", "MBS"]
    assert axes[0, 0].get_title() == "what it says" and fig.get_suptitle().startswith(
        f"score of background on the {TASK.classes[2]}"
    )
    assert all(row[1].images[1].get_clim() == row[2].images[1].get_clim() for row in axes)


@pytest.mark.parametrize(("arch", "rows"), [("toy", 5), ("toy_segmenter", 4)])
def test_all_kinds_of_attribution(tmp_path, arch, rows):
    pair = pair_of("ft", tmp_path, arch)
    case = view.old_cases(pair, pictures())[1]
    fig = drawn(view.figure_kinds(pair, case))
    labels = [ax.get_ylabel().replace("\n", " ") for ax in grid_of(fig, rows)[:, 0]]
    assert labels == [w for m, w in at.WORDS.items() if rows == 5 or m != "lrp"]
    assert grid_of(fig, rows)[0, 4].get_xlabel() == "support (no unit)"
    kept = {f.name.split("-")[0] for f in (tmp_path / "attribution").iterdir()}
    assert len(kept) == rows, "all of them are kept in the folder of the step"


def test_many_segments_show_those_with_most_support():
    n = 150
    table = pd.DataFrame({"segment": range(n), "old": 0.0, "new": np.arange(n) - 100.0})
    ax = view.plot_support(table, {i: str(i) for i in range(n)}, Figure().subplots(), own=101)
    assert [int(t.get_text()) for t in ax.get_yticklabels()] == [0, 1, 2, 3, 4, 5, 6, 101], "and the object's own"


def test_what_an_object_does_to_scores_on_itself(pair):
    still = view.Pair(pair.ctx, pair.new, pair.new)
    found = view.old_cases(pair, pictures())
    table = view.own_support({"ft": pair, "mib": still}, found)
    assert len(table) == 2 * 2 * 2 and set(table["score"]) == {"class", "background"}
    assert table[["old", "new"]].abs().max().max() <= 100
    own = view.explain(pair, found[1], "ablation", 5).support().set_index("segment").loc[5]
    row = table[(table["method"] == "ft") & (table["class"] == 5) & (table["score"] == "class")].iloc[0]
    assert (row["old"], row["new"]) == pytest.approx((own["old share"], own["new share"]))
    same = table[table["method"] == "mib"]
    assert same["old"].tolist() == pytest.approx(same["new"].tolist())
    fig = drawn(view.figure_own_support(table))
    left, right = fig.axes
    means = table[(table["method"] == "ft") & (table["score"] == "background")][["old", "new"]].mean()
    assert right.get_lines()[0].get_xdata() == pytest.approx(means.tolist())
    assert [t.get_text() for t in left.get_yticklabels()] == ["FT", "MiB"] and left.get_xlabel() == "share of all support (%)"
    ring, disc = right.get_lines()[1:3]
    assert ring.get_markerfacecolor() == "white" and disc.get_markerfacecolor() == ring.get_markeredgecolor()
    text = view.support_sentence(table)
    assert "Mean over 2 objects" in text and f"background {means['old']:+.0f} -> {means['new']:+.0f} %" in text


def consistencies() -> pd.DataFrame:
    rows = [("ft", 1, 1, "grad_cam", 0.2, 3), ("ft", 1, 2, "grad_cam", 0.6, 3), ("ft", 2, 1, "grad_cam", 0.1, 3)]
    rows += [("ft", 1, 1, "lrp", 0.5, 3), ("joint", 1, 1, "grad_cam", 0.9, 3), ("joint", 1, 1, "lrp", np.nan, 3)]
    rows += [("mbs", 1, 1, "grad_cam", 0.8, 3)]
    return pd.DataFrame(rows, columns=["method", "step", "class", "kind", "consistency", "images"])


def test_consistency_is_a_curve_per_class(pair):
    fig = drawn(view.figure_consistency(consistencies(), pair.ctx))
    axes = np.array(fig.axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["FT", "Joint\n(trained anew)", "MBS"]
    lines = axes[0, 0].get_lines()
    assert [line.get_label() for line in lines] == [f"1 {TASK.classes[1]}", f"2 {TASK.classes[2]}", "mean"]
    assert to_rgb(lines[0].get_color()) == pytest.approx(tuple(SOURCE.palette[1] / 255), abs=0.01)
    assert lines[0].get_ydata().tolist() == [0.2, 0.1] and lines[2].get_ydata().tolist() == pytest.approx([0.4, 0.1])
    assert axes[0, 0].get_ylim()[1] < 1.05 and axes[1, 0].get_xlabel() == "step t" and axes[0, 0].get_xlabel() == ""
    assert axes[1, 0].get_ylabel() == "LRP\nconsistency t - 1, t"
    assert [text.get_text() for text in axes[1, 2].texts] == ["no rule for\na Segmenter"]
    assert legend_words(fig)[-1] == "mean of the old classes"
    many = pd.concat([consistencies().iloc[:1].assign(**{"class": c}) for c in range(1, 151)])
    scenario = SimpleNamespace(classes=[f"class {c}" for c in range(151)])
    wide = SimpleNamespace(scenario=scenario, data=SimpleNamespace(palette=np.zeros((256, 3), np.uint8)))
    assert legend_words(drawn(view.figure_consistency(many, wide))) == ["mean of the old classes; thin: 150 single classes"]


def test_one_step_has_nothing_to_compare(pair, tmp_path):
    empty = view.consistency_by_step({}, restore, pictures())
    fig = drawn(view.figure_consistency(empty, pair.ctx))
    assert "Only step 0 has been run" in fig.texts[0].get_text()
    first = Run(tmp_path / "step0", {"step": 0})
    with pytest.raises(KitError, match="before step 0 there is no model to compare with"):
        view.open_pair(first, restore)
    groups = {"ft": SimpleNamespace(runs=(first,))}
    with pytest.raises(KitError, match="no method has a finished step 1 with a step before it"):
        view.open_pairs(groups, restore, 1)
    with pytest.raises(KitError, match="no method has run a second step"):
        view.explore(groups, restore, pictures())


# --- on runs ---


@pytest.fixture(scope="module")
def chains(tmp_path_factory) -> dict[str, tables.Chain]:
    """Two steps of FT and of the joint bound, trained on next to nothing."""
    root = tmp_path_factory.mktemp("runs")
    tiny = {"data_options": {"train": 32, "test": 8, "heldout": 8}, "overrides": {"epochs": 1}}
    found = {}
    for method in ("ft", "joint"):
        runs = []
        for step in (0, 1):
            ctx = begin("toy-5-2", method, step, runs=root, **tiny)
            fit(ctx, bar=False)
            evaluate(ctx)
            runs.append(ctx.run)
        found[method] = tables.Chain(tuple(runs))
    return found


def test_a_pair_holds_the_models_of_both_steps(chains):
    pairs = view.open_pairs(chains, restore, 1)
    image = torch.randn(1, 3, 64, 64)
    for name, pair in pairs.items():
        assert pair.method == name
        with torch.no_grad():
            for scores, run in zip((pair.old, pair.new), chains[name].runs, strict=True):
                torch.testing.assert_close(scores.logits(image), restore(run).model.eval()(image).logits)


def test_consistency_of_a_run(chains):
    table = view.consistency_by_step(chains, restore, pictures(2, 64), most=1)
    assert set(table["method"]) == {"ft", "joint"} and set(table["step"]) == {1} and set(table["class"]) <= {2, 5}
    assert set(table["kind"]) == {"grad_cam", "lrp"} and (table["images"] == 1).all()
    assert table["consistency"].dropna().between(0, 1).all()


def test_the_widget_redraws(chains, capsys):
    box = view.explore(chains, restore, pictures(3, 64), method="grad_cam")
    assert capsys.readouterr().out.count("Figure") == 1, "one static picture before the controls"
    (run, step, label), (image, kind, segments) = (row.children for row in box.children[:2])
    assert [o[1] for o in run.options] == ["ft", "joint"] and step.value == 1
    assert [o[1] for o in label.options] == [2, 5] and [o[1] for o in image.options] == ["p0", "p1"]
    for control, value in ((label, 5), (image, "p1"), (kind, "ablation"), (segments, "old model"), (run, "joint")):
        control.value = value
        assert capsys.readouterr().out.count("Figure") == 1, control.description
    assert (label.value, image.value) == (5, "p1"), "what was chosen stays chosen"


def test_pictures_without_old_classes(chains, capsys):
    view.explore(chains, restore, pictures(2, 64)[1:], method="grad_cam")
    assert capsys.readouterr().out.count("Figure") == 1
