"""Grey-level entropy and OpenMax: worked by hand, and against the definition written out."""

import math

import numpy as np
import pytest
import torch

from cisskit.errors import KitError
from cisskit.openset import class_distances, grey_entropy, grey_entropy_released, openmax


def grey(*rows):
    return torch.tensor(rows, dtype=torch.uint8)


def test_one_value_has_no_entropy():
    assert grey_entropy(torch.full((5, 7), 9, dtype=torch.uint8)).tolist() == [[0.0] * 7] * 5


def test_entropy_by_hand():  # reach 1: rows and columns -1 and 0
    found = grey_entropy(grey([1, 1, 1], [1, 2, 2], [3, 3, 4]), reach=1)
    quarter = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    assert found[0].tolist() == [0, 0, 0], "the first row sees itself alone"
    assert found[1].tolist() == pytest.approx([0, quarter, 1])
    assert found[2].tolist() == pytest.approx([1, 1.5, 1.5])  # {1,3}; {1,2,3,3}; {2,2,3,4}


def test_the_window_is_one_short_at_its_end():
    image = torch.zeros(1, 9, dtype=torch.uint8)
    image[0, 4] = 7
    assert (grey_entropy(image, reach=3)[0] > 0).tolist() == [False, False, True, True, True, True, True, True, False]


@pytest.mark.parametrize("reach", [1, 2, 3, 5, 20])
def test_entropy_is_the_definition(reach):
    image = np.random.default_rng(reach).integers(0, 6, (11, 8)).astype(np.uint8)
    want = np.zeros(image.shape)
    for r in range(11):
        for c in range(8):
            window = image[max(0, r - reach) : r + reach, max(0, c - reach) : c + reach]
            p = np.unique(window, return_counts=True)[1] / window.size
            want[r, c] = -(p * np.log2(p)).sum()
    assert grey_entropy(torch.from_numpy(image), reach=reach).numpy() == pytest.approx(want, abs=1e-12)


def test_the_released_map_loses_its_fraction_and_whole_bits_stay():
    rows = torch.arange(8, dtype=torch.uint8).repeat(8, 1)  # a full window holds four values, each in four places: 2 bits
    full, released = grey_entropy(rows, reach=2), grey_entropy_released(rows, reach=2)
    assert full[4, 4] == 2 and released[4, 4] == 2
    assert released.dtype == torch.uint8 and torch.equal(released, full.floor().to(torch.uint8))
    assert full[4, 1] == pytest.approx(math.log2(3)) and released[4, 1] == 1


def test_entropy_of_a_batch():
    images = torch.randint(0, 256, (2, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = grey_entropy(images)
    assert found.shape == images.shape and torch.equal(found[1, 2], grey_entropy(images[1, 2]))


def test_entropy_says_what_it_needs():
    with pytest.raises(KitError, match=r"\(.., H, W\) uint8, not \(4, 4\) torch.float32; take an image's mean"):
        grey_entropy(torch.zeros(4, 4))
    with pytest.raises(KitError, match="reach=0 leaves no window"):
        grey_entropy(grey([1, 2]), reach=0)


def test_distances_by_hand():
    features, mean = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]]), torch.tensor([[0.0, 1.0]])
    assert class_distances(features, mean, kind="euclidean").tolist() == [pytest.approx([math.sqrt(18), 1])]
    assert class_distances(features, mean, kind="cosine").tolist() == [pytest.approx([0.2, 0], abs=1e-6)]
    assert class_distances(features, mean, weight=2.0).tolist() == [pytest.approx([2 * math.sqrt(18) + 0.2, 2], abs=1e-6)]
    with pytest.raises(KitError, match="unknown distance 'cosin'. Did you mean 'cosine'"):
        class_distances(features, mean, kind="cosin")


def test_openmax_by_hand():
    """Far out of every class (w = 1): the best score keeps nothing of itself, the second half, the third all."""
    scores = torch.tensor([[2.0, 4.0, 1.0]], dtype=torch.float64)
    means, tiny = torch.ones(3, 1, 3, dtype=torch.float64), torch.full((3,), 1e-6, dtype=torch.float64)
    found = openmax(scores, means, tiny, torch.ones(3, dtype=torch.float64), alpha=2)
    kept = torch.tensor([1.0, 0.0, 1.0, 5.0], dtype=torch.float64)  # and 1 + 4 for "none of them"
    assert torch.allclose(found.openmax, kept.softmax(dim=0), atol=1e-12)
    assert torch.allclose(found.softmax, scores[0].softmax(dim=0), atol=1e-12)


def test_how_far_out_a_sample_lies():
    """Euclidean distance 3 from the leading class: w = 1 - exp(-(3 / 2)^3), and all of it counts (α = 1)."""
    scores = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    two, three = (torch.full((2,), v, dtype=torch.float64) for v in (2.0, 3.0))
    found = openmax(scores, torch.zeros(2, 1, 2, dtype=torch.float64), two, three, alpha=1, kind="euclidean")
    left = 3 * math.exp(-(1.5**3))
    assert torch.allclose(found.openmax, torch.tensor([left, 0.0, 3 - left], dtype=torch.float64).softmax(dim=0), atol=1e-9)


def test_a_sample_in_the_middle_of_its_class_keeps_its_scores():
    scores = torch.tensor([[2.0, -1.0]])
    found = openmax(scores, torch.randn(2, 1, 2), torch.full((2,), 1e9), torch.ones(2), alpha=2)
    assert torch.allclose(found.openmax, torch.tensor([2.0, -1.0, 0.0]).softmax(dim=0), atol=1e-6)


def test_several_channels_are_averaged_and_ranked_by_the_last():
    scores = torch.tensor([[5.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    tiny, ones = torch.full((2,), 1e-6, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = openmax(scores, torch.full((2, 2, 2), 0.3, dtype=torch.float64), tiny, ones, alpha=1)
    first, last = (torch.tensor(v, dtype=torch.float64).softmax(0) for v in ([5.0, 0.0, 0.0], [0.0, 0.0, 3.0]))
    assert torch.allclose(found.openmax, (first + last) / 2, atol=1e-12), "class 1 leads in the last channel: it alone gives"
    assert found.softmax.shape == (4,) and float(found.softmax.sum()) == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0, 4])
def test_more_corrections_than_classes_are_refused(alpha):
    with pytest.raises(KitError, match=f"alpha={alpha} classes cannot be corrected: there are 3"):
        openmax(torch.zeros(1, 3), torch.zeros(3, 1, 3), torch.ones(3), torch.ones(3), alpha=alpha)


def test_openmax_says_which_shapes_belong_together():
    with pytest.raises(KitError, match=r"need means \(3, 1, 3\) and 3 scales and shapes, not \(2, 1, 3\)"):
        openmax(torch.zeros(1, 3), torch.zeros(2, 1, 3), torch.ones(3), torch.ones(3), alpha=1)
