"""Pascal VOC: layout, lists, label files, the index and its cache.

Small trees are made here; real files are used when present.
"""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from layouts import unpacked
from PIL import Image

from cisskit.data import Data, arrivals, open_source, select, select_test, shows
from cisskit.data import files as module
from cisskit.data.files import voc_palette
from cisskit.errors import KitError
from cisskit.protocols import protocol
from cisskit.scenario import Scenario

SIZES = [(30, 40), (40, 30), (30, 40), (33, 25)]


def save_label(path, array, mode="P"):
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(voc_palette().tobytes())
    image.save(path)


def tree(root, n_train=8, n_test=5, labels="SegmentationClassAug", train_list="train"):
    """A small data set in the official layout; image k shows class k % 4 + 1 and, if k is even, class 20."""
    voc = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", labels, "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"2007_{k:06d}" for k in range(n_train + n_test)]
    for k, name in enumerate(names):
        height, width = SIZES[k % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
        label = np.zeros((height, width), dtype=np.uint8)
        label[2:9, 3:20], label[9] = k % 4 + 1, 255
        if k % 2 == 0:
            label[-1, -1] = 20
        save_label(voc / labels / f"{name}.png", label)
    (voc / "ImageSets/Segmentation" / f"{train_list}.txt").write_text("\n".join(names[:n_train]) + "\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(names[n_train:]) + "\n")
    return voc


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CISSKIT_CACHE", str(folder))
    return folder


@pytest.fixture
def voc(tmp_path):
    return tree(tmp_path / "data")


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(call, *words, untouched=None):
    """``call`` raises a KitError that holds ``words``, and leaves every file of ``untouched`` as it was."""
    before = files(untouched) if untouched else None
    with pytest.raises(KitError) as caught:
        call()
    text = str(caught.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    assert "Traceback" not in text
    assert before is None or files(untouched) == before
    return text


SCENARIO = Scenario("voc", ((1, 2), (3, 4), (20,)))

# --- what a good folder gives ---


def test_images_labels_and_names(voc):
    source = open_source("voc", voc)
    assert source.names("train")[:2] == ("2007_000000", "2007_000001") and len(source.names("test")) == 5
    image, label = source.pair("train", 1)
    assert image.shape == (3, 40, 30) and image.dtype == label.dtype == torch.uint8
    assert label.unique().tolist() == [0, 2, 255]
    on_disk = np.array(Image.open(voc / "JPEGImages/2007_000001.jpg"))
    assert (image.permute(1, 2, 0).numpy() == on_disk).all()
    assert torch.equal(source.image("train", 1), image) and torch.equal(source.label("train", 1), label)


def test_index_equals_the_labels(voc):
    source = open_source("voc", voc)
    for split in ("train", "test"):
        for i, (found, size) in enumerate(zip(source.presence(split), source.sizes(split), strict=True)):
            label = source.label(split, i)
            assert np.flatnonzero(found).tolist() == label.unique().tolist() and tuple(size) == tuple(label.shape)
            assert source.pixels(split)[i].tolist() == np.bincount(label.flatten(), minlength=256).tolist()


def test_every_usual_root_is_found(voc):
    for root in (voc, voc.parent, voc.parent.parent):
        assert open_source("voc", root).root == voc


def test_both_forms_of_a_list(voc):
    listed = voc / "ImageSets/Segmentation/pairs.txt"
    names = (voc / "ImageSets/Segmentation/train.txt").read_text().split()
    listed.write_text("".join(f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in names) + "\n")
    one, two = open_source("voc", voc), open_source("voc", voc, train_list="pairs")
    assert one.pairs["train"] == two.pairs["train"]


def test_defaults_prefer_augmented_labels_and_list(tmp_path):
    plain = open_source("voc", tree(tmp_path / "a", labels="SegmentationClass"))
    assert plain.describe() == {"train_list": "train", "test_list": "val", "labels": "SegmentationClass"}
    folder = tree(tmp_path / "b", train_list="train_aug")
    (folder / "SegmentationClass").mkdir()
    assert open_source("voc", folder).describe() == {
        "train_list": "train_aug",
        "test_list": "val",
        "labels": "SegmentationClassAug",
    }


def test_grey_index_images_are_labels_too(voc):
    save_label(voc / "SegmentationClassAug/2007_000001.png", np.full((40, 30), 20, dtype=np.uint8), mode="L")
    assert open_source("voc", voc).label("train", 1).unique().tolist() == [20]


def test_palette_is_vocs():
    colours = voc_palette()
    assert colours[[0, 1, 15, 20, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]


def test_full_size_evaluation_groups_sizes_and_covers_all(voc):
    data = Data(SCENARIO, open_source("voc", voc), batch_size=2)
    batches = list(data.test(0))
    assert sorted(n for b in batches for n in b.extra["names"]) == list(data.source.names("test"))
    assert {len(b.image) for b in batches} <= {1, 2} and len({b.label.shape[1:] for b in batches}) == 3
    for batch in batches:
        for label, name in zip(batch.label, batch.extra["names"], strict=True):
            assert torch.equal(label, data.sample("test", name, 0, "truth")[1].long())


def test_workers_and_decoded_cache_change_nothing(voc):
    runs = []
    for workers, cache_mb in ((0, 2000), (0, 0), (2, 2000), (2, 0)):
        data = Data(SCENARIO, open_source("voc", voc, cache_mb=cache_mb), crop=16, batch_size=3, workers=workers)
        train = [b for e in range(2) for b in data.train(0, memory=["2007_000003"]).epoch(e)]
        runs.append((train, sorted(data.test(0), key=lambda b: b.extra["names"])))
    for others in runs[1:]:
        for one, two in zip(runs[0][0] + runs[0][1], others[0] + others[1], strict=True):
            assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label)
            assert one.extra["names"] == two.extra["names"]


def test_decoded_images_are_kept_within_the_budget(voc, monkeypatch):
    source = open_source("voc", voc)
    source.cache.room = 2 * 4 * 30 * 40  # two of the 30 x 40 images and labels
    source.warm("train", np.arange(8))
    assert sorted(i for _, i in source.cache.kept) == [0, 1] and source.cache.room == 0
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail(f"decoded {path} again"))
    source.pair("train", 0)
    monkeypatch.undo()
    source.pair("train", 2)
    assert len(source.cache.kept) == 2


def test_images_of_several_sizes_need_a_crop(voc):
    refused(lambda: Data(SCENARIO, open_source("voc", voc)).train(0), "different sizes", "crop=224")


# --- the index on disk ---


def test_second_start_reads_no_label(voc, cache, monkeypatch):
    first = open_source("voc", voc)
    presence, mark = first.presence("train"), first.fingerprint("train")
    assert [p.suffix for p in cache.iterdir()] == [".npz"]
    monkeypatch.setattr(module, "index_labels", lambda *_: pytest.fail("read again"))
    second = open_source("voc", voc)
    assert (second.presence("train") == presence).all() and second.fingerprint("train") == mark


def test_a_changed_label_is_seen(voc):
    before = open_source("voc", voc)
    assert not before.presence("train")[:, 17].any()
    save_label(voc / "SegmentationClassAug/2007_000001.png", np.full((40, 30), 17, dtype=np.uint8))
    after = open_source("voc", voc)
    assert after.presence("train")[1, 17] and after.fingerprint("train") != before.fingerprint("train")


def test_a_changed_label_of_the_same_size_is_seen(voc):
    file = voc / "SegmentationClassAug/2007_000001.png"
    marks, lengths = [], []
    for value in (5, 6):
        Image.fromarray(np.full((40, 30), value, dtype=np.uint8)).save(file, compress_level=0)
        os.utime(file, ns=(value * 10**9, value * 10**9))
        lengths.append(file.stat().st_size)
        marks.append(open_source("voc", voc).presence("train")[1, [5, 6]].tolist())
    assert lengths[0] == lengths[1] and marks == [[True, False], [False, True]]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_a_damaged_index_is_made_again(voc, cache, damage):
    presence = open_source("voc", voc).presence("train")
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
    assert (open_source("voc", voc).presence("train") == presence).all()
    np.load(file, allow_pickle=False)["pixels"]  # and written anew


def test_an_index_that_cannot_be_kept_is_only_a_warning(voc, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CISSKIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="CISSKIT_CACHE"):
        assert open_source("voc", voc).presence("train").any()


def test_fingerprint_is_about_contents_only(tmp_path):
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    os.utime(two / "SegmentationClassAug/2007_000001.png", (1, 1))
    assert open_source("voc", one).fingerprint("train") == open_source("voc", two).fingerprint("train")


def test_description_holds_no_path(voc):
    text = json.dumps(Data(SCENARIO, open_source("voc", voc), crop=16).describe())
    assert str(voc.parent) not in text and "/" not in text


# --- bad folders: what, where, what to do; nothing is written ---


def test_missing_root_and_other_layout(tmp_path):
    command = f"python -m data_prep voc --root {tmp_path / 'no'}"
    refused(lambda: open_source("voc", tmp_path / "no"), "does not exist", "VOCdevkit/VOC2012/ImageSets/Segmentation", command)
    (tmp_path / "other").mkdir()
    refused(lambda: open_source("voc", tmp_path / "other"), "another layout", "ImageSets/Segmentation")


@pytest.mark.parametrize(
    ("folder", "words"), [("SegmentationClassAug", "SegmentationClassAug or SegmentationClass"), ("JPEGImages", "JPEGImages")]
)
def test_missing_folders_are_named(voc, folder, words):
    (voc / folder).rename(voc / "elsewhere")
    refused(lambda: open_source("voc", voc), f"no folder {words}", "python -m data_prep voc")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", ["train.txt lists no image"]),
        ("2007_000000\n2007_000001\n2007_000000", ["twice", "2007_000000 (1 in all)"]),
        ("2007_000000\na b c", ["line 2", "'a b c'", "/JPEGImages/x.jpg"]),
        ("JPEGImages/2007_000000.jpg", ["line 1", "neither"]),
        ("2007_000000\n2007_000008", ["'train' and 'val' share images: 2007_000008 (1 in all)"]),
    ],
)
def test_faulty_lists(voc, lines, words):
    (voc / "ImageSets/Segmentation/train.txt").write_text(lines)
    refused(lambda: open_source("voc", voc), *words, untouched=voc)


def test_unknown_list(voc):
    refused(lambda: open_source("voc", voc, train_list="trian"), "'trian'", "Did you mean 'train'", "Available: train, val")
    refused(lambda: open_source("voc", voc).names("heldout"), "'heldout'", "train, test")


def test_images_without_label_and_labels_without_image(tmp_path):
    voc = tree(tmp_path / "data", n_train=20)
    for k in range(12):
        (voc / f"SegmentationClassAug/2007_{k:06d}.png").unlink()
    (voc / "JPEGImages/2007_000022.jpg").unlink()
    (voc / "JPEGImages/2007_000003.jpg").unlink()
    text = refused(lambda: open_source("voc", voc), "label without image: 2007_000022 (1 in all)", untouched=tmp_path)
    assert "image without label: 2007_000000, 2007_000001, 2007_000002, 2007_000004" in text
    assert "2007_000010 and 1 more (11 in all)" in text and "neither image nor label: 2007_000003 (1 in all)" in text


@pytest.mark.parametrize("workers", [0, 2])
def test_label_of_another_size(voc, workers):
    save_label(voc / "SegmentationClassAug/2007_000001.png", np.ones((41, 30), dtype=np.uint8))
    data = Data(SCENARIO, open_source("voc", voc, cache_mb=0), crop=16, batch_size=2, workers=workers)
    refused(
        lambda: list(data.train(0).epoch(0, whole=True)),
        "30 x 40",
        "30 x 41",
        "2007_000001.jpg",
        "2007_000001.png",
        untouched=voc,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_jpeg(voc, workers):
    file = voc / "JPEGImages/2007_000001.jpg"
    file.write_bytes(file.read_bytes()[:400])
    data = Data(SCENARIO, open_source("voc", voc, cache_mb=0), crop=16, batch_size=2, workers=workers)
    refused(lambda: list(data.train(0).epoch(0, whole=True)), str(file), "fetch it again", untouched=voc)


def damage(voc, name, array=None, mode="P", cut=None):
    file = voc / "SegmentationClassAug" / f"{name}.png"
    if array is not None:
        save_label(file, array, mode)
    if cut is not None:
        file.write_bytes(file.read_bytes()[:cut])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"array": np.full((40, 30), 21, dtype=np.uint8)}, ["holds the values 21", "0..20 or 255"]),
        ({"array": np.zeros((40, 30, 3), dtype=np.uint8), "mode": "RGB"}, ["mode RGB", "palette"]),
        ({"array": np.zeros((40, 30), dtype=np.uint16), "mode": "I;16"}, ["mode I;16"]),
        ({"cut": 820}, ["cannot be read"]),
        ({"cut": 0}, ["cannot be read"]),
    ],
)
def test_faulty_labels(voc, cache, fault, words):
    damage(voc, "2007_000001", **fault)
    source = open_source("voc", voc)
    refused(lambda: source.presence("train"), "2007_000001.png", "(1 in all)", *words, untouched=voc)
    refused(lambda: source.label("train", 1), str(voc / "SegmentationClassAug/2007_000001.png"), *words)
    assert not cache.exists() or not list(cache.iterdir())  # a faulty index is not kept
    assert source.presence("test").any()


def test_all_faulty_labels_are_told_at_once(tmp_path):
    voc = tree(tmp_path / "data", n_train=20)
    for k in range(12):
        damage(voc, f"2007_{k:06d}", np.full((30, 40), 30 + k, dtype=np.uint8))
    data = Data(SCENARIO, open_source("voc", voc), crop=16)
    refused(
        lambda: data.train(0), "2007_000000.png holds the values 30", "2007_000009.png", "and 2 more (12 in all)", untouched=voc
    )


def test_no_image_of_a_class(voc):
    refused(lambda: Data(Scenario("voc", ((1,), (7,))), open_source("voc", voc), crop=16).train(1), "step 1", "car (7)")


# --- real files, when they are there ---


@pytest.mark.parametrize("name", ["voc_mini", "voc_subset"])
def test_real_photographs_load(shared, tmp_path, name):
    source = open_source("voc", unpacked(shared, name, tmp_path / "real"))
    scenario = Scenario.named("voc:person,chair,sofa,car,dog,cat/horse,cow/sheep,pottedplant/bottle,tvmonitor")
    data = Data(scenario, source, crop=96, protocol=protocol("clean", scenario, "crop96"), batch_size=4)
    assert len(data.describe()["images_per_step"]) == 4
    train, test = next(data.train(1).epoch(0)), next(data.test(1))
    assert train.image.shape == test.image.shape == (4, 3, 96, 96)
    assert set(train.label.unique().tolist()) <= {0, 7, 8, 255} and train.label.unique().numel() > 1
    assert 0.3 < train.image.std() < 2 and abs(train.image.mean()) < 1.5  # ImageNet statistics fit photographs


PER_CLASS = [586, 486, 698, 461, 654, 385, 1086, 1000, 1081, 264, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548]
PER_CLASS_VAL = [90, 79, 103, 72, 96, 74, 127, 119, 123, 71, 75, 128, 79, 76, 446, 85, 57, 90, 84, 74]
SEEN_15_1 = [1240, 1277, 1329, 1353, 1421, 1449]
# published: task, train overlap, train disjoint, val images with a seen class
PUBLISHED = {
    "19-1": ([10410, 548], [10034, 548], [1421, 1449]),
    "15-5": ([9568, 2145], [8437, 2145], [1240, 1449]),
    "15-1": ([9568, 487, 299, 491, 500, 548], [8437, 378, 299, 420, 500, 548], SEEN_15_1),
    "10-10": ([6139, 6876], [3706, 6876], [869, 1449]),
    "10-5": ([6139, 5542, 2145], [3706, 4731, 2145], [869, 1240, 1449]),
    "10-1": (
        [6139, *PER_CLASS[10:]],
        [3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548],
        [869, 893, 1005, 1081, 1140, *SEEN_15_1],
    ),
    "5-5": ([2836, 3604, 5542, 2145], [1753, 1953, 4731, 2145], [433, 869, 1240, 1449]),
    "5-3": ([2836, 2331, 1542, 2095, 4484, 1468], [1753, 1517, 624, 1296, 3924, 1468], [433, 699, 893, 1140, 1329, 1449]),
    "5-1": ([2836, *PER_CLASS[5:]], None, None),
    "4-2": ([2216, 1039, 2080, 1345, 1701, 925, 4236, 790, 1048], [1589, 303, 1378, 436, 1056, 428, 3625, 719, 1048], None),
    "2-2": (
        [1072, 1151, 1039, 2080, 1345, 1701, 925, 4236, 790, 1048],
        [653, 936, 303, 1378, 436, 1056, 428, 3625, 719, 1048],
        None,
    ),
    "2-1": ([1072, *PER_CLASS[2:]], None, None),
}  # fmt: skip


def id_hash(names, chosen):
    """As split_counts.json says: 16 hex digits of the SHA-256 of the sorted stems."""
    return hashlib.sha256("\n".join(sorted(n for n, c in zip(names, chosen, strict=True) if c)).encode()).hexdigest()[:16]


def test_published_split_counts(shared, root, tmp_path):
    folder = unpacked(shared, "voc_labels_all", tmp_path / "real")
    refused(lambda: open_source("voc", folder), "no folder JPEGImages")  # labels alone train nothing
    source = open_source("voc", folder, labels_only=True)
    train, test = source.presence("train"), source.presence("test")
    names, test_names = source.names("train"), source.names("test")
    assert len(names) == 10582 and len(test_names) == 1449
    assert train.sum(axis=0)[1:21].tolist() == PER_CLASS and test.sum(axis=0)[1:21].tolist() == PER_CLASS_VAL

    for task, (overlap, disjoint, seen) in PUBLISHED.items():
        for setting, counts in (("overlap", overlap), ("disjoint", disjoint)):
            scenario = Scenario.named(f"voc-{task}", setting=setting)
            steps = range(len(scenario.steps))
            chosen = [select(train, scenario, t) for t in steps]
            assert counts is None or [int(c.sum()) for c in chosen] == counts, (task, setting)
            if setting == "disjoint":
                assert (sum(c.astype(int) for c in chosen) == 1).all(), task
            assert seen is None or [int(select_test(test, scenario, t, "seen").sum()) for t in steps] == seen, task

    checked = 0
    for setting, tasks in json.loads((root / "tests/golden/dkd/split_counts.json").read_text())["voc"].items():
        for task, stored in tasks.items():
            scenario = Scenario.named(f"voc-{task}", setting=setting)
            for t in range(len(scenario.steps)):
                for split, listed, chosen in (
                    ("train", names, select(train, scenario, t)),
                    ("val", test_names, shows(test, arrivals(scenario, t)[1])),
                    ("test", test_names, select_test(test, scenario, t, "seen")),
                ):
                    assert int(chosen.sum()) == stored[split][t], (setting, task, t, split)
                    assert id_hash(listed, chosen) == stored[f"{split}_sha256"][t], (setting, task, t, split)
                    checked += 1
    assert checked == 3 * 37
