"""The embedded scenes and the small network that learns them."""

import numpy as np
import pytest
import torch

from cisskit.data.scenes import CLASSES, DOMAINS, MIN_VISIBLE, PALETTE, SIZES, SPLITS, scene, scenes
from cisskit.errors import KitError
from cisskit.models.toy import CHANNELS, STAGE_CHANNELS, STAGE_STRIDES, STRIDE, ToyBackbone, ToyDecoder
from cisskit.scenario import DATASETS, Scenario

SHARES = [61.63, 4.65, 5.05, 3.43, 4.64, 3.98, 4.37, 4.32, 4.34, 3.58]  # % of all pixels, by label
OBJECTS = 1432
MEAN_COLOUR = [171.5, 163.6, 157.5]


@pytest.fixture(scope="module")
def many():
    return scenes(0, "train", 400)


def presence(labels):
    """(n, 10) bool: which labels an image shows."""
    return np.stack([(labels == c).any(axis=(1, 2)) for c in range(10)], axis=1)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", SIZES)
def test_same_arguments_same_scene_whatever_was_drawn_before(size, domain):
    image, label = scene(7, "test", 3, size, domain)
    scene(8, "train", 0)
    again, label_again = scene(7, "test", 3, size, domain)
    assert image.shape == (size, size, 3) and label.shape == (size, size)
    assert image.dtype == label.dtype == np.uint8
    assert np.array_equal(image, again) and np.array_equal(label, label_again)
    images, labels = scenes(7, "test", 4, size, domain)
    assert np.array_equal(images[3], image) and np.array_equal(labels[3], label)


def test_the_scenes_are_still_those_of_the_published_numbers(many):
    """Statistics, not bytes: the last bit of a sine differs between machines. A change here is a change of numbers."""
    images, labels = many
    share = np.bincount(labels.ravel(), minlength=10) / labels.size
    assert 100 * share == pytest.approx(SHARES, abs=0.02)
    assert presence(labels)[:, 1:].sum() == OBJECTS
    assert images.mean(axis=(0, 1, 2)) == pytest.approx(MEAN_COLOUR, abs=0.3)


def test_splits_seeds_and_indices_share_no_scene():
    drawn = [scene(seed, split, index) for seed in (0, 1) for split in SPLITS for index in range(5)]
    assert len({image.tobytes() for image, _ in drawn}) == len({label.tobytes() for _, label in drawn}) == len(drawn)


def test_two_to_five_classes_each_in_sight(many):
    _, labels = many
    for label in labels:
        found, pixels = np.unique(label, return_counts=True)
        assert found[0] == 0 and found[-1] <= 9
        assert 2 <= len(found) - 1 <= 5
        assert pixels.min() >= MIN_VISIBLE


def test_every_class_is_common(many):
    assert presence(many[1])[:, 1:].mean(axis=0).min() >= 0.25


@pytest.mark.parametrize("index", [0, 1, 2])
def test_old_and_future_classes_are_in_the_background_of_every_step(many, index):
    """What makes the problem: most images of a step also show classes that this step does not label."""
    scenario = Scenario.named("toy-5-2")
    shown, step = presence(many[1]), scenario.step(index)
    told = np.zeros(10, dtype=bool)
    told[step.new] = True
    of_step = shown[:, told].any(axis=1)
    hides = shown[:, 1:][:, ~told[1:]].any(axis=1)
    assert hides[of_step].mean() > 0.80


def test_a_domain_is_another_light_on_the_same_things():
    for size in SIZES:
        day, label = scene(0, "train", 5, size, "day")
        night, label_by_night = scene(0, "train", 5, size, "night")
        assert np.array_equal(label, label_by_night)
        assert day.mean() > night.mean() + 50


def test_names_and_palette_fit_the_classes():
    assert DATASETS["toy"].names == tuple(f"{texture} {shape}" for texture, shape in CLASSES)
    assert PALETTE.shape == (10, 3) and PALETTE.dtype == np.uint8
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 10


@pytest.mark.parametrize("size", [0, 63, 65, 128])
def test_another_size_is_refused_with_the_sizes_there_are(size):
    with pytest.raises(KitError, match=rf"{size} px.*64 or 96"):
        scene(0, "train", 0, size)


def test_other_mistakes_are_named():
    with pytest.raises(KitError, match=r"'tets'.*'test'.*train, heldout, test"):
        scene(0, "tets", 0)
    with pytest.raises(KitError, match=r"'nite'.*'night'"):
        scenes(0, "train", 2, domain="nite")
    with pytest.raises(KitError, match="seed of a scene is -1"):
        scene(-1, "train", 0)
    with pytest.raises(KitError, match="index of a scene is -2"):
        scene(0, "train", -2)
    with pytest.raises(KitError, match="-3 scenes"):
        scenes(0, "train", -3)


# --- the network ---


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 48), (51, 37)])
def test_network_shapes(size):
    backbone, decoder = ToyBackbone().eval(), ToyDecoder().eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
        out = decoder(features)["decoder"]
    assert set(features) == {f"layer{k}{end}" for k in range(1, 5) for end in ("", "_sum")}
    for name, stride in STAGE_STRIDES.items():
        feature = features[name]
        assert torch.equal(feature, features[f"{name}_sum"].relu())
        assert feature.shape == (2, STAGE_CHANNELS[name], -(-size[0] // stride), -(-size[1] // stride))
        assert feature.min() >= 0, "after the ReLU"
    assert out.shape == (2, CHANNELS, -(-size[0] // STRIDE), -(-size[1] // STRIDE))
    assert out.min() >= 0 and out.max() > 0


def test_network_is_small_and_has_no_bias_but_batch_norm():
    parts = torch.nn.ModuleList([ToyBackbone(), ToyDecoder()])
    assert 0.15e6 < sum(p.numel() for p in parts.parameters()) < 0.30e6
    assert all(m.bias is None for m in parts.modules() if isinstance(m, torch.nn.Conv2d))


def test_every_parameter_learns_even_from_one_image_in_channels_last():
    parts = torch.nn.ModuleList([ToyBackbone(), ToyDecoder()]).to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    out = parts[1](parts[0](image))["decoder"]
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.square().mean().backward()
    for name, parameter in parts.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
