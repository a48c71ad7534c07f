"""Label tables, image selection and batches, on hand-made labels and small scenes."""

import json
import multiprocessing
import os
import random
from itertools import islice

import numpy as np
import pytest
import torch

import cisskit.data.toy
from cisskit.data import Data, Source, Toy, kept, label_table, open_source, renumber, select, select_test, shows, step_table
from cisskit.data.transforms import crop_box, crop_resize, normalise, scale_crop
from cisskit.errors import KitError
from cisskit.protocols import protocol
from cisskit.scenario import DATASETS, Scenario

SMALL = {"train": 60, "heldout": 5, "test": 22}


@pytest.fixture(scope="module")
def toy():
    return Toy(**SMALL)


@pytest.fixture
def data(toy):
    return Data(Scenario.named("toy-5-2"), toy, batch_size=8, seed=3)


def presence_of(*images):
    """(n, 256) from lists of ids; 0 is added to each."""
    out = np.zeros((len(images), 256), dtype=bool)
    for row, ids in zip(out, images, strict=True):
        row[[0, *ids]] = True
    return out


def same(one, two):
    assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label)
    assert one.extra["names"] == two.extra["names"] and torch.equal(one.extra["from_memory"], two.extra["from_memory"])


# --- tables ---


def test_label_table_by_hand():
    table = label_table({7: 1, 3: 2}, other=9, background=4, void=250)
    assert table.dtype == torch.uint8 and table.shape == (256,)
    assert renumber(torch.tensor([[0, 3, 7], [8, 254, 255]], dtype=torch.uint8), table).tolist() == [[4, 2, 1], [9, 9, 250]]


@pytest.mark.parametrize(
    ("setting", "use", "expected"),
    # original ids 0, 6, 2 | 4 | 9, then 1 (not in the scenario) and void
    [
        ("overlap", "train", [0, 0, 0, 3, 0, 0, 255]),
        ("disjoint", "train", [0, 0, 0, 3, 0, 0, 255]),
        ("sequential", "train", [0, 1, 2, 3, 0, 0, 255]),
        ("overlap", "train_seen", [0, 1, 2, 3, 0, 0, 255]),
        ("overlap", "val", [0, 1, 2, 3, 0, 0, 255]),
        ("overlap", "truth", [0, 1, 2, 3, 4, 0, 255]),
    ],
)
def test_step_table_by_hand(setting, use, expected):
    scenario = Scenario("toy", ((6, 2), (4,), (9,)), setting)
    assert step_table(scenario, 1, use)[[0, 6, 2, 4, 9, 1, 255]].tolist() == expected


def test_joint_tells_everything():
    scenario = Scenario("toy", ((6, 2), (4,)), "joint")
    assert step_table(scenario, 0, "train")[[0, 6, 2, 4, 1, 255]].tolist() == [0, 1, 2, 3, 0, 255]


def test_unknown_use_of_labels():
    with pytest.raises(KitError, match="Did you mean 'train'"):
        step_table(Scenario.named("toy-5-2"), 0, "trian")


# --- selection ---

IMAGES = presence_of([1], [1, 3], [3], [2, 4], [3, 4], [9], [])


@pytest.mark.parametrize(
    ("setting", "step", "sees", "expected"),
    # classes 1, 2 | 3 | 4
    [
        ("overlap", 0, "step", [0, 1, 3]),
        ("overlap", 1, "step", [1, 2, 4]),
        ("overlap", 2, "step", [3, 4]),
        ("disjoint", 0, "step", [0]),
        ("disjoint", 1, "step", [1, 2]),
        ("disjoint", 2, "step", [3, 4]),
        ("sequential", 1, "step", [1, 2]),
        ("overlap", 1, "seen", [0, 1, 2, 3, 4]),
        ("disjoint", 1, "seen", [0, 1, 2]),
        ("joint", 0, "step", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_selection_by_hand(setting, step, sees, expected):
    scenario = Scenario("toy", ((1, 2), (3,), (4,)), setting)
    assert np.flatnonzero(select(IMAGES, scenario, step, sees)).tolist() == expected


def test_test_images_by_hand():
    scenario = Scenario("toy", ((1, 2), (3,), (4,)))
    assert select_test(IMAGES, scenario, 0).all()
    assert np.flatnonzero(select_test(IMAGES, scenario, 0, "seen")).tolist() == [0, 1, 3]
    assert np.flatnonzero(select_test(IMAGES, scenario, 2, "seen")).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(KitError, match="'some'"):
        select_test(IMAGES, scenario, 0, "some")


@pytest.mark.parametrize("seed", range(5))
def test_properties_of_the_settings(seed):
    rng = np.random.default_rng(seed)
    presence = np.zeros((300, 256), dtype=bool)
    presence[:, 1:10] = rng.random((300, 9)) < 0.3
    order = rng.permutation(9) + 1
    groups = tuple(tuple(map(int, g)) for g in np.split(order, [4, 6, 7]))
    by = {s: [select(presence, Scenario("toy", groups, s), t) for t in range(4)] for s in ("overlap", "disjoint", "sequential")}
    for overlap, disjoint, sequential in zip(*by.values(), strict=True):
        assert (overlap | disjoint == overlap).all()
        assert (disjoint == sequential).all()
    assert (sum(m.astype(int) for m in by["disjoint"]) == shows(presence, range(1, 10))).all()  # each image once
    assert (by["overlap"][3] == by["disjoint"][3]).all()  # nothing is in the future of the last step


def test_an_empty_step_is_named():
    with pytest.raises(KitError, match=r"step 1 of .* has no training image: none of the 7 images") as caught:
        select(presence_of(*[[1]] * 7), Scenario("toy", ((1,), (2,))), 1)
    assert f"{DATASETS['toy'].names[1]} (2)" in str(caught.value)
    with pytest.raises(KitError, match="without a class of a later step"):
        select(presence_of([1, 2]), Scenario("toy", ((1,), (2,)), "disjoint"), 0)


# --- batches of scenes ---


def test_batches_are_the_samples_mirrored_or_not(data, toy):
    mirrored = 0
    loader = data.train(1)
    for batch in loader.epoch(0, whole=True):
        assert batch.image.dtype == torch.float32 and batch.label.dtype == torch.int64
        for image, label, name in zip(batch.image, batch.label, batch.extra["names"], strict=True):
            plain, truth = data.sample("train", name, 1, "train")
            plain = normalise(plain, toy.mean, toy.std)
            as_is = torch.equal(image, plain) and torch.equal(label, truth.long())
            turned = torch.equal(image, plain.flip(-1)) and torch.equal(label, truth.flip(-1).long())
            assert as_is or turned, name
            mirrored += turned
    assert 0.2 < mirrored / loader.n_images < 0.8
    assert not set(range(1, 6)) & set(batch.label.unique().tolist())  # old classes are not told


def test_an_epoch_is_a_permutation_and_drops_the_rest(data):
    loader = data.train(0)
    names = [n for batch in loader.epoch(0) for n in batch.extra["names"]]
    assert loader.batches_per_epoch == loader.n_images // 8 and len(names) == 8 * loader.batches_per_epoch == len(set(names))
    whole = [n for batch in loader.epoch(0, whole=True) for n in batch.extra["names"]]
    assert whole[: len(names)] == names and sorted(whole) == sorted(loader.names)


def test_epochs_steps_and_seeds_differ(data, toy):
    def names(loader, epoch):
        return next(loader.epoch(epoch)).extra["names"]

    first = names(data.train(0), 0)
    assert first == names(data.train(0), 0)
    assert first != names(data.train(0), 1)
    assert first != names(Data(data.scenario, toy, batch_size=8, seed=4).train(0), 0)
    one, two = data.train(1), data.train(2)
    two.n_images = one.n_images  # the same number of images, so that only the step differs
    assert not np.array_equal(one.plan(0).order, two.plan(0).order)


def test_a_resumed_epoch_sees_the_same_batches(data):
    through, resumed = data.train(0), data.train(0)
    for epoch in range(2):
        list(through.epoch(epoch))
    list(islice(resumed.epoch(0), 1))  # an interrupted epoch leaves nothing behind
    for one, two in zip(through.epoch(2), resumed.epoch(2), strict=True):
        same(one, two)


def test_scenes_take_the_fast_path_and_it_gives_the_same_batches(toy, monkeypatch):
    scenario = Scenario.named("toy-5-2")
    names = list(toy.names("train")[:3])
    fast, slow = (Data(scenario, toy, batch_size=8).train(1, memory=names) for _ in range(2))
    slow._arrays = None
    for one, two in zip(fast.epoch(4), slow.epoch(4), strict=True):
        same(one, two)
    monkeypatch.setattr(Toy, "pair", lambda *_: pytest.fail("per-sample work"))
    list(fast.epoch(0))
    list(Data(scenario, toy).test(0))


def test_workers_change_nothing(toy):
    scenario = Scenario.named("toy-5-2")
    alone, helped = (Data(scenario, toy, crop=48, batch_size=8, workers=w).train(0) for w in (0, 2))
    list(islice(helped.epoch(7), 2))  # abandoned, with batches under way
    for epoch in (0, 1):
        batches = list(alone.epoch(epoch))
        assert batches[0].image.shape == (8, 3, 48, 48)
        for one, two in zip(batches, helped.epoch(epoch), strict=True):
            same(one, two)


class Marked(Source):
    """Images that hold the number of the process that read them."""

    dataset = "toy"
    palette = np.zeros((256, 3), dtype=np.uint8)

    def names(self, split):
        return tuple(f"{split}{i}" for i in range(8))

    def image(self, split, i):
        pid = os.getpid()
        return (
            torch.tensor([pid >> 16, pid >> 8, pid], dtype=torch.int64)
            .bitwise_and(255)
            .to(torch.uint8)
            .view(3, 1, 1)
            .expand(3, 4, 4)
        )

    def label(self, split, i):
        return torch.ones(4, 4, dtype=torch.uint8)

    def pixels(self, split):
        return 16 * presence_of(*[[1]] * 8).astype(np.int64)

    def sizes(self, split):
        return np.full((8, 2), 4)

    def fingerprint(self, split):
        return "marked"

    def describe(self):
        return {}


def test_loader_processes_live_from_epoch_to_epoch():
    loader = Data(Scenario("toy", ((1,),)), Marked(), batch_size=1, workers=2).train(0)

    def readers(epoch):
        return {tuple(b.image[0, :, 0, 0].tolist()) for b in loader.epoch(epoch)}

    first = readers(0)
    assert len(first) == 2 and readers(1) == readers(2) == first
    loader.close()
    assert not multiprocessing.active_children()
    assert len(readers(3)) == 2 and not readers(3) & first


def test_a_small_step_gives_one_small_batch(toy):
    loader = Data(Scenario.named("toy-5-2"), toy, batch_size=500).train(0)
    (batch,) = loader.epoch(0)
    assert loader.batches_per_epoch == 1 and len(batch.image) == loader.n_images < 60


def test_memory_comes_on_top_and_is_marked(data):
    members = data.train(1).names
    memory = [*sorted(set(data.source.names("train")) - set(members))[:2], members[0]]
    loader = data.train(1, memory=memory)
    assert loader.n_images == len(members) + 3 and loader.names == (*members, *memory)
    replayed = []
    for batch in loader.epoch(0, whole=True):
        marked = batch.extra["from_memory"].tolist()
        replayed += [name for name, m in zip(batch.extra["names"], marked, strict=True) if m]
        assert set(batch.label.unique().tolist()) <= {0, 6, 7}
    assert sorted(replayed) == sorted(memory)
    with pytest.raises(KitError, match=r"no image 'train-99999'.*train-00000"):
        data.train(1, memory=["train-99999"])


def outside(data, step, n):
    """Names of n training images that do not belong to a step."""
    return sorted(set(data.source.names("train")) - set(data.train(step).names))[:n]


@pytest.mark.parametrize(("size", "n_memory"), [(8, 3), (8, 20), (5, 2), (500, 4), (1, 3)])
def test_half_of_every_batch_is_replaced(toy, size, n_memory):
    data = Data(Scenario.named("toy-5-2"), toy, batch_size=size, seed=3)
    memory, plain = outside(data, 1, n_memory), data.train(1)
    loader = data.train(1, memory=memory, replay="half")
    assert loader.n_images == plain.n_images and loader.batches_per_epoch == plain.batches_per_epoch
    places, replayed = set(), set()
    for epoch in range(12):
        for one, two in zip(loader.epoch(epoch), plain.epoch(epoch), strict=True):
            marked, names = one.extra["from_memory"].tolist(), one.extra["names"]
            assert len(names) == len(two.extra["names"]) and sum(marked) == len(names) // 2
            for k, m in enumerate(marked):  # where nothing is replaced the batch is what it would have been
                assert names[k] in memory if m else torch.equal(one.image[k], two.image[k])
            chosen = [name for name, m in zip(names, marked, strict=True) if m]
            assert max(map(chosen.count, chosen), default=0) <= -(-len(names) // n_memory)
            places |= {k for k, m in enumerate(marked) if m}
            replayed |= set(chosen)
    if size > 1:  # of one image none is replaced
        assert replayed == set(memory) and places == set(range(min(size, loader.n_images)))


def test_exemplars_of_a_half_batch_show_all_classes_seen_and_the_others_their_step(data, toy):
    loader = data.train(1, memory=outside(data, 1, 6), replay="half", extras=["truth"])
    old = 0
    for batch in loader.epoch(0):
        truth = batch.extra["truth"]
        seen = torch.where((truth > 0) & (truth <= 7), truth, 0)
        told = torch.where(truth > 5, seen, 0)
        marked = batch.extra["from_memory"].view(-1, 1, 1)
        assert torch.equal(batch.label, torch.where(marked, seen, told))
        old += int(((batch.label >= 1) & (batch.label <= 5)).sum())
        assert truth.max() <= 9
    assert old > 0


def test_exemplars_are_cropped_and_mirrored_like_the_others(toy):
    data = Data(Scenario.named("toy-5-2"), toy, crop=40, augment="scale", batch_size=8, seed=3)
    memory = outside(data, 1, 4)
    loader = data.train(1, memory=memory, replay="half")
    plan, turned = loader.plan(2), set()
    batch = next(loader.epoch(2))
    for k in range(8):
        name, flipped = batch.extra["names"][k], bool(plan.flips[k])
        image, label = toy.pair("train", toy.position("train", name))
        image, label = scale_crop(image, label, 40, random.Random(int(plan.seeds[k])))
        table = step_table(data.scenario, 1, "train_seen" if batch.extra["from_memory"][k] else "train")
        image, label = normalise(image, toy.mean, toy.std), renumber(label, table).long()
        assert torch.equal(batch.image[k], image.flip(-1) if flipped else image)
        assert torch.equal(batch.label[k], label.flip(-1) if flipped else label)
        turned |= {flipped} if name in memory else set()
    assert turned == {True, False}


def test_half_replay_is_reproducible_and_a_resumed_epoch_sees_it(toy):
    scenario = Scenario.named("toy-5-2")
    through, resumed, helped = (
        Data(scenario, toy, crop=32, batch_size=6, seed=5, workers=w).train(1, memory=toy.names("train")[:3], replay="half")
        for w in (0, 0, 2)
    )
    for epoch in range(2):
        list(through.epoch(epoch))
    list(islice(resumed.epoch(0), 1))
    for one, two, three in zip(through.epoch(2), resumed.epoch(2), helped.epoch(2), strict=True):
        same(one, two)
        same(one, three)
    helped.close()
    assert not np.array_equal(through.plan(0).order >= through.n_step, through.plan(1).order >= through.n_step)


def test_half_replay_without_memory_changes_nothing(data):
    for one, two in zip(data.train(1, replay="half").epoch(0), data.train(1).epoch(0), strict=True):
        same(one, two)
    with pytest.raises(KitError, match="unknown kind of replay 'halve'. Did you mean 'half'"):
        data.train(1, replay="halve")


@pytest.mark.parametrize("augment", ["area", "scale", "shorter_scale"])
def test_every_way_to_crop(toy, augment):
    scenario = Scenario.named("toy-5-2")
    loader, helped = (Data(scenario, toy, crop=40, augment=augment, batch_size=8, workers=w).train(0) for w in (0, 2))
    plan, batch = loader.plan(1), next(loader.epoch(1))
    same(batch, next(helped.epoch(1)))
    helped.close()
    for k, name in enumerate(batch.extra["names"]):
        image, label = toy.pair("train", toy.position("train", name))
        rng = random.Random(int(plan.seeds[k]))
        if augment == "area":
            image, label = crop_resize(image, label, crop_box(64, 64, rng), 40)
        else:
            image, label = scale_crop(image, label, 40, rng, shorter=augment == "shorter_scale")
        turn = bool(plan.flips[k])
        image, label = normalise(image, toy.mean, toy.std), renumber(label, step_table(scenario, 0, "train")).long()
        assert torch.equal(batch.image[k], image.flip(-1) if turn else image)
        assert torch.equal(batch.label[k], label.flip(-1) if turn else label)


def test_kept_rounds_halves_to_the_even_number():
    assert [kept(n, 0.5) for n in (299, 301, 487, 500)] == [150, 150, 244, 250]
    assert [kept(2145, ratio) for ratio in (1.0, 0.5, 0.25, 0.1)] == [2145, 1072, 536, 214]
    assert kept(3, 0.1) == 0


def test_ratio_keeps_the_first_images_of_later_steps(data, toy):
    limited = Data(data.scenario, toy, batch_size=8, seed=3, ratio=0.3)
    for step in range(3):
        whole, few = data.members(step).tolist(), limited.members(step).tolist()
        assert few == (whole[: round(0.3 * len(whole))] if step else whole)
        assert limited.train(step).n_images == len(few)
        assert limited.members(step, "seen").tolist() == data.members(step, "seen").tolist()  # the upper bound sees all
    tiny = Data(data.scenario, toy, ratio=1e-9)
    assert [len(tiny.members(step)) for step in (1, 2)] == [1, 1]  # never none
    assert sum(len(b.image) for b in limited.test(2)) == len(toy.names("test"))


def test_seen_keeps_old_images_and_labels(data):
    loader = data.train(1, sees="seen")
    assert set(loader.names) == set(data.train(0).names) | set(data.train(1).names)
    labels = torch.cat([b.label.flatten() for b in loader.epoch(0)]).unique().tolist()
    assert labels == list(range(8))


def test_truth_is_mirrored_with_the_label(data):
    for batch in data.train(1, extras=["truth"]).epoch(0):
        truth = batch.extra["truth"]
        told = torch.where((truth == 6) | (truth == 7), truth, 0)
        assert torch.equal(told, batch.label)
    assert truth.max() > 7


def test_evaluation_covers_every_image_with_future_classes(data, toy):
    batches = list(data.test(0))
    assert sorted(n for b in batches for n in b.extra["names"]) == sorted(toy.names("test"))
    for batch in batches:
        for image, label, name in zip(batch.image, batch.label, batch.extra["names"], strict=True):
            plain, truth = data.sample("test", name, 0, "truth")
            assert torch.equal(image, normalise(plain, toy.mean, toy.std)) and torch.equal(label, truth.long())
    assert torch.cat([b.label.flatten() for b in batches]).unique().tolist() == list(range(10))
    assert sum(len(b.image) for b in data.test(0, split="heldout")) == 5


def test_evaluation_of_seen_images_only(toy):
    scenario = Scenario("toy", ((1,), (2, 3, 4, 5, 6, 7, 8, 9)))
    data = Data(scenario, toy)
    names = {n for b in data.test(0, which="seen") for n in b.extra["names"]}
    expected = {toy.names("test")[i] for i in range(22) if (toy.label("test", i) == 1).any()}
    assert names == expected and 0 < len(names) < 22


def test_evaluation_crop_cuts_labels_too(toy):
    data = Data(Scenario.named("toy-5-2"), toy, protocol=protocol("clean", Scenario.named("toy-5-2"), "crop32"), batch_size=4)
    batch = next(data.test(2))
    assert batch.image.shape == (4, 3, 32, 32) and batch.label.shape == (4, 32, 32)


def test_batch_to_device_moves_tensors_only(data):
    batch = next(data.train(0).epoch(0))
    moved = batch.to("meta")
    assert moved.image.device.type == moved.label.device.type == moved.extra["from_memory"].device.type == "meta"
    assert moved.extra["names"] == batch.extra["names"] and batch.image.device.type == "cpu"


# --- description, colours, the source of scenes ---


def test_description_is_json_and_decides(data, toy):
    said = data.describe()
    assert json.loads(json.dumps(said)) == said
    assert said["images_per_step"] == [len(data.members(t)) for t in range(3)] and said["test_images"] == 22
    assert said["source"] == {"seed": 0, "size": 64, "domain": "day", "counts": SMALL}
    assert said == Data(data.scenario, Toy(**SMALL), batch_size=8, seed=3, workers=2).describe()  # workers decide nothing
    assert said["augment"] == "area" and said["ratio"] == 1
    for other in (
        {"crop": 32}, {"seed": 4}, {"batch_size": 4}, {"augment": "scale"}, {"ratio": 0.5},
    ):  # fmt: skip
        assert said != Data(data.scenario, toy, **{"batch_size": 8, "seed": 3} | other).describe()
    assert said["fingerprint"] != Data(data.scenario, Toy(**SMALL, seed=1)).describe()["fingerprint"]


def test_description_fails_before_the_first_step_if_a_later_one_is_empty():
    with pytest.raises(KitError, match=r"step 1 of .* has no training image"):
        Data(Scenario("toy", ((1,), (2,))), Marked()).describe()


def test_palette_follows_learned_ids(toy):
    data = Data(Scenario("toy", ((6, 2), (4,))), toy)
    assert (data.palette[[0, 1, 2, 3, 255]] == toy.palette[[0, 6, 2, 4, 255]]).all()


def test_toy_presence_sizes_and_names(toy):
    assert toy.names("train")[12] == "train-00012" and len(toy.names("heldout")) == 5
    presence = toy.presence("test")
    for i in range(22):
        label = toy.label("test", i)
        assert np.flatnonzero(presence[i]).tolist() == label.unique().tolist()
        assert toy.pixels("test")[i].tolist() == np.bincount(label.flatten(), minlength=256).tolist()
    assert toy.image("test", 0).shape == (3, 64, 64) and (toy.sizes("test") == 64).all()
    with pytest.raises(KitError, match="'val'"):
        toy.names("val")
    with pytest.raises(KitError, match="at least one scene"):
        Toy(train=0)


def test_scenes_are_drawn_when_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr("cisskit.data.toy.scenes", lambda seed, split, count, **_: drawn.append(split) or _blank(count))
    source = Toy(**SMALL, seed=12345)  # scenes that no other test has drawn
    source.names("train")
    assert drawn == []
    source.image("test", 0), source.presence("test"), source.label("test", 1)
    Toy(**SMALL, seed=12345).arrays("test")
    assert drawn == ["test"]
    cisskit.data.toy._drawn.cache_clear()  # the blank ones are for this test alone


def _blank(count):
    return np.zeros((count, 64, 64, 3), dtype=np.uint8), np.zeros((count, 64, 64), dtype=np.uint8)


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 0}, "crop=0"), ({"batch_size": 0}, "batch_size=0"), ({"workers": -1}, "workers=-1"), ({"seed": -1}, "seed=-1"),
        ({"crop": 22.5}, "whole number"), ({"augment": "scales"}, "Did you mean 'scale'"),
        ({"ratio": 0}, "ratio=0 is the share"), ({"ratio": 1.5}, "at most 1"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(toy, options, words):
    with pytest.raises(KitError, match=words):
        Data(Scenario.named("toy-5-2"), toy, **options)


def test_scenario_of_another_data_set(toy):
    with pytest.raises(KitError, match=r"'voc-15-1' is about 'voc', but the images are 'toy'"):
        Data(Scenario.named("voc-15-1"), toy)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: open_source("vok"), "Did you mean 'voc'"),
        (lambda: open_source("toy", domains="night"), "'domains'. Did you mean 'domain'"),
        (lambda: open_source("toy", "somewhere"), "no files"),
        (lambda: open_source("voc"), "python -m data_prep voc --root DATA"),
        (lambda: open_source("voc", "x", train="train"), "Did you mean 'train_list'"),
    ],
)
def test_open_source_names_mistakes(call, words):
    with pytest.raises(KitError) as caught:
        call()
    assert words in str(caught.value)


def test_saliency_says_where_objects_are_whatever_the_step_tells():
    data = Data(Scenario.named("toy-5-2"), Toy(train=24, heldout=1, test=1), batch_size=8)
    for batch in data.train(1, extras=["saliency", "truth"]).epoch(0):
        assert batch.extra["saliency"].dtype == torch.bool
        assert torch.equal(batch.extra["saliency"], batch.extra["truth"] > 0)
        assert (batch.extra["saliency"] & (batch.label == 0)).any()  # hidden objects are salient too
    with pytest.raises(KitError, match="unknown extra of a batch 'salience'. Did you mean 'saliency'"):
        data.train(1, extras=["salience"])
