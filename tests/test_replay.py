"""The exemplar memory: who is drawn, in which order, and that drawing ends."""

import numpy as np
import pytest
import torch

from cisskit.errors import KitError
from cisskit.replay import Exemplar, draw, presence_of, shuffled

A, B, C, D = (Exemplar(name, classes) for name, classes in (("a", (1,)), ("b", (1, 2)), ("c", (2,)), ("d", (1,))))


def names(exemplars):
    return [exemplar.name for exemplar in exemplars]


def test_round_robin_takes_the_first_that_shows_the_class():
    # class 2 first: b; class 1: a; class 2: c; class 1: d. Kept by class, 1 before 2.
    assert names(draw([A, B, C, D], [2, 1], 4)) == ["a", "d", "b", "c"]
    assert names(draw([A, B, C, D], [2, 1], 3)) == ["a", "b", "c"]
    assert names(draw([A, B, C, D], [2, 1], 1)) == ["b"]
    assert names(draw([D, C, B, A], [1, 2], 2)) == ["d", "c"]


def test_size_is_checked_after_every_class_not_every_round():
    assert len(draw([A, B, C, D], [1, 2], 3)) == 3


def test_drawing_ends_when_candidates_run_out():
    assert names(draw([A, B, C, D], [1, 2], 100)) == ["a", "d", "b", "c"]
    assert draw([], [1, 2], 5) == []
    assert draw([A], [], 5) == []
    assert draw([A], [7], 5) == []
    assert draw([A, B], [1], 0) == []


def test_a_class_without_candidates_loses_its_turns():
    assert names(draw([A, B, D], [3, 1], 2)) == ["a", "b"]


def test_an_image_listed_twice_can_be_drawn_twice():
    assert names(draw([A, A], [1], 5)) == ["a", "a"]


def test_no_candidate_is_drawn_twice_and_every_class_gets_its_share():
    rng = np.random.RandomState(0)
    candidates = [Exemplar(str(i), tuple(sorted({*rng.randint(1, 6, 2).tolist()}))) for i in range(60)]
    drawn = draw(candidates, [3, 1, 5, 2, 4], 20)
    assert len(set(names(drawn))) == 20
    for c in range(1, 6):
        assert all(c in exemplar.classes for exemplar in drawn[4 * (c - 1) : 4 * c])


def test_a_negative_size_is_an_error():
    with pytest.raises(KitError, match="-1"):
        draw([A], [1], -1)


def test_shuffles_are_the_legacy_generator_s_candidates_first():
    candidates, classes = [A, B, C, D], [1, 2, 3]
    got = shuffled(candidates, range(1, 4), np.random.RandomState(5))
    rng = np.random.RandomState(5)
    rng.shuffle(candidates)
    rng.shuffle(classes)
    assert got == (candidates, classes)
    assert shuffled([A, B, C, D], [1, 2, 3], np.random.RandomState(5)) == got


def test_shuffling_leaves_its_inputs_alone():
    candidates, classes = [A, B, C, D], [1, 2, 3, 4, 5]
    shuffled(candidates, classes, np.random.RandomState(0))
    assert candidates == [A, B, C, D] and classes == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_presence_lists_ascending_ids_without_background_and_void(dtype):
    labels = torch.tensor([[[5, 0], [2, 255]], [[0, 0], [255, 0]]], dtype=dtype)
    assert presence_of(labels) == [(2, 5), ()]


def test_confident_background_pixels_complete_the_list():
    labels = torch.tensor([[0, 0, 255, 4]])
    sure, unsure = 3.0, 2.0  # sigmoid .953, .881
    logits = torch.full((1, 4, 4), -9.0)
    logits[0, 2, 0] = sure  # channel 2 = class 2
    logits[0, 3, 1] = unsure  # below .9: nothing
    logits[0, 3, 2] = sure  # void keeps its label
    logits[0, 1, 3] = sure  # labelled pixels keep theirs
    logits[0, 0] = 99.0  # the auxiliary channel never counts
    before = labels.clone()
    assert presence_of(labels, logits) == [(2, 4)]
    assert presence_of(labels, logits, threshold=0.85) == [(2, 3, 4)]
    assert torch.equal(labels, before)


def test_the_threshold_itself_is_sure_enough():
    assert presence_of(torch.zeros(1, 1), torch.zeros(1, 2, 1), threshold=0.5) == [(1,)]


def test_logits_of_other_pixels_are_an_error():
    with pytest.raises(KitError, match="cover"):
        presence_of(torch.zeros(1, 4), torch.zeros(1, 3, 5))
