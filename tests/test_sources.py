"""What every data set in files must do, and what each does in its own way. Small trees are made here; real files are used when
present."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from layouts import LAYOUTS, opened, places, write
from PIL import Image

from cisskit.data import Data, open_source, read_scenario
from cisskit.data import cache as cache_module
from cisskit.data import files as module
from cisskit.data.manifest import write_manifest
from cisskit.data.transforms import evaluation_crop
from cisskit.errors import KitError
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit
from data_prep.__main__ import main

SCENARIOS = {
    "voc": "voc:1,2,3/4,5,6/7,8", "ade": "ade:1,2,3/4,5,6/7,8", "isprs": "isprs-2-2-1", "isprs_compat": "isprs_compat-2-2-1",
    "camvid": "camvid:1,2,3/4,5/9", "folder": "folder-5-2",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CISSKIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every layout, with saliency maps; for tests that write nothing."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        write(layout, folder / layout, saliency=True)
    return folder


def refused(call, *words):
    with pytest.raises(KitError) as caught:
        call()
    text = str(caught.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    return text


def scenario_of(source, root=None):
    return read_scenario(SCENARIOS[source.dataset], root=root)


def data_of(layout, root, *, crop=32, **options):
    data_options = {k: options.pop(k) for k in list(options) if k in ("augment", "workers", "seed", "batch_size")}
    source = opened(layout, root, **options)
    return Data(scenario_of(source, root), source, crop=crop, **{"batch_size": 4} | data_options)


def same(one, two):
    assert torch.equal(one.image, two.image) and torch.equal(one.label, two.label)
    assert one.extra.keys() == two.extra.keys() and one.extra["names"] == two.extra["names"]
    for key, value in one.extra.items():
        assert key == "names" or torch.equal(value, two.extra[key])


# --- what all of them promise ---

# by hand: file value -> original id
IDS = {
    "voc": {**{v: v for v in range(10)}, 255: 255},
    "ade": {**{v: v for v in range(9)}, 150: 150},
    "isprs": {0: 255, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 255},
    "camvid": {**{v: v + 1 for v in range(11)}, 11: 255, 255: 255},
    "folder": {**{v: v for v in range(10)}, 255: 255},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_ids_pixels_and_sizes(layout, made):
    source, ids = opened(layout, made / layout), IDS[layout.split()[0]]
    total = 0
    for split in ("train", "test"):
        for i, name in enumerate(source.names(split)):
            image, label = source.pair(split, i)
            of = source.pairs[split][i]
            assert of.image.stem == of.label.stem == name
            file = np.array(Image.open(of.label))
            assert label.dtype == image.dtype == torch.uint8
            assert (label.numpy() == np.vectorize(ids.get)(file)).all()
            assert (image.permute(1, 2, 0).numpy() == np.array(Image.open(of.image))).all()
            assert source.pixels(split)[i].tolist() == np.bincount(label.flatten(), minlength=256).tolist()
            assert (source.presence(split)[i] == (source.pixels(split)[i] > 0)).all()
            assert tuple(source.sizes(split)[i]) == label.shape
            total += 1
    assert total == sum(layouts.COUNTS.values()) and source.pixels("train").dtype == np.int64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_root_is_found_and_splits_are_named(layout, made):
    source = opened(layout, made / layout)
    assert source.names("train") and source.names("test")
    refused(lambda: source.names("trian"), "'trian'. Did you mean 'train'")
    above = {"ade": "ADEChallengeData2016", "camvid": "CamVid", "isprs": "isprs", "voc": "VOCdevkit/VOC2012"}.get(layout)
    if above:
        assert opened(layout, made / layout / above).names("train") == source.names("train")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_description_holds_no_path(layout, made):
    data = data_of(layout, made / layout)
    text = str(data.describe(["saliency"]))
    assert "/" not in text.replace("no manifest", "") and data.describe()["dataset"] == layout.split()[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_workers_and_caches_change_nothing(layout, made):
    runs = []
    for workers, place, room in ((0, "memory", 2000), (2, "memory", 0), (0, "disk", 2000), (2, "disk", 2000), (0, "disk", 0)):
        data = data_of(layout, made / layout, workers=workers, cache=place, cache_mb=room, augment="scale")
        loader = data.train(0, memory=data.source.names("train")[-2:], extras=["truth", "saliency"])
        train = [b for e in range(2) for b in loader.epoch(e)]
        loader.close()
        test = sorted(Data(data.scenario, data.source, workers=workers).test(0), key=lambda b: b.extra["names"])
        runs.append(train + test)
    for others in runs[1:]:
        for one, two in zip(runs[0], others, strict=True):
            same(one, two)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_root_names_its_command(layout, tmp_path):
    command = f"python -m data_prep {layout.split()[0]}"
    if layout.startswith("folder"):
        refused(lambda: opened(layout, tmp_path / "no"), "classes.txt", "one a line")
        (tmp_path / "classes.txt").write_text("a\n")
    refused(lambda: opened(layout, tmp_path), command, str(tmp_path))
    assert not list(tmp_path.glob("*/"))


def damage(folder, name, array, mode=None):
    Image.fromarray(array, mode).save(folder / name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_faulty_labels_are_told(layout, tmp_path, cache):
    names = write(layout, tmp_path / "data")
    (_, labels, _), _ = places(layout, "train")
    folder = tmp_path / "data" / labels
    for k in range(3):
        damage(folder, f"{names['train'][3 * k]}.png", np.full((64, 64), 200, dtype=np.uint8))
    damage(folder, f"{names['train'][9]}.png", np.zeros((64, 64, 3), dtype=np.uint8))
    damage(folder, f"{names['train'][6]}.png", np.zeros((64, 64), dtype=np.uint16))
    (folder / f"{names['train'][1]}.png").write_bytes(b"")
    if layout == "folder":
        for split, listed in names.items():
            (tmp_path / "data" / f"{split}.txt").write_text("\n".join(listed))
    source = opened(layout, tmp_path / "data")
    text = refused(
        lambda: source.pixels("train"), "(5 in all)", f"{names['train'][0]}.png holds the values 200", "mode RGB", "mode I;16"
    )
    assert f"{names['train'][1]}.png cannot be read" in text
    if layout not in ("voc", "camvid"):  # VOC's and CamVid's releases hold index images
        assert "python -m data_prep" in text
    refused(lambda: source.label("train", 0), str(folder / f"{names['train'][0]}.png"), "holds the values 200 (1 in all)")
    assert not cache.exists() or not list(cache.iterdir())
    assert source.pixels("test").any()


def test_values_are_checked_again_when_the_index_is_known(made, monkeypatch):
    opened("voc", made / "voc").pixels("train")
    monkeypatch.setattr("cisskit.data.voc.CODING", module.coding({v: v for v in range(8)} | {255: 255}))
    refused(lambda: opened("voc", made / "voc").pixels("train"), "holds the values 8")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_without_label_and_two_of_one_name(layout, tmp_path):
    names = write(layout, tmp_path / "data")
    (images, labels, _), extension = places(layout, "train")
    images, labels = tmp_path / "data" / images, tmp_path / "data" / labels
    shutil.copy(labels / f"{names['train'][0]}.png", labels / "more.png")
    if layout != "voc":  # there the list decides
        refused(lambda: opened(layout, tmp_path / "data"), "label without image: more (1 in all)")
    (labels / "more.png").unlink()
    (labels / f"{names['train'][2]}.png").unlink()
    refused(lambda: opened(layout, tmp_path / "data"), f"image without label: {names['train'][2]} (1 in all)")
    if layout != "voc":
        one = images / f"{names['train'][0]}.{extension}"
        shutil.copy(one, images / f"{one.stem}.bmp")
        refused(lambda: opened(layout, tmp_path / "data"), f"{one.stem}.bmp, {one.name}", "one name")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_label_of_another_size(layout, place, tmp_path):
    names = write(layout, tmp_path / "data")
    (_, labels, _), _ = places(layout, "train")
    damage(tmp_path / "data" / labels, f"{names['train'][0]}.png", np.ones((64, 66), dtype=np.uint8))
    source = opened(layout, tmp_path / "data", cache=place)
    split, name = next((s, names["train"][0]) for s in ("train", "test") if names["train"][0] in source.names(s))
    refused(lambda: source.pair(split, source.position(split, name)), "64 x 64", "66 x 64", f"{name}.png", "same size")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8), dtype=np.uint16), "mode I;16"),
        (np.zeros((8, 8), dtype=np.float32), "mode F"),
        (np.zeros((8, 8), dtype=np.int32), "mode I"),
    ],
)
def test_images_of_more_than_eight_bits(array, words, tmp_path):
    for name in ("x.tif", *(["x.png"] if array.dtype == np.uint16 else [])):
        Image.fromarray(array).save(tmp_path / name)
        refused(lambda name=name: module.read_image(tmp_path / name), name, words, "8 bits per channel")


def test_a_colour_tiff_of_16_bits_is_refused(tmp_path):
    """Pillow reads such a file, by dropping the lower byte: of values up to 2047 nothing would be left."""
    bits, size, rows = 16, 4, 4
    pixels = np.full((rows, size, 3), 1500, dtype="<u2").tobytes()
    tags = [
        (256, 4, size), (257, 4, rows), (258, 3, None), (259, 3, 1), (262, 3, 2), (273, 4, None), (277, 3, 3), (278, 4, rows),
        (279, 4, len(pixels)), (284, 3, 1),
    ]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    for tag, kind, value in tags:
        count = 3 if tag == 258 else 1
        value = after if tag == 258 else after + 6 if tag == 273 else value
        head += b"".join(n.to_bytes(w, "little") for n, w in ((tag, 2), (kind, 2), (count, 4), (value, 4)))
    file = tmp_path / "x.tif"
    file.write_bytes(head + bytes(4) + bits.to_bytes(2, "little") * 3 + pixels)
    assert Image.open(file).convert("RGB").getpixel((0, 0)) == (5, 5, 5)
    refused(lambda: module.read_image(file), "16 bits", "8 bits per channel")


def test_usual_images_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for name, image in {
        "a.tif": Image.fromarray(pixels), "b.png": Image.fromarray(pixels).convert("RGBA"), "c.bmp": Image.fromarray(pixels),
    }.items():  # fmt: skip
        image.save(tmp_path / name)
        assert (module.read_image(tmp_path / name) == pixels).all()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "d.png")
    assert (module.read_image(tmp_path / "d.png") == pixels[..., :1]).all()


def test_a_class_that_no_training_image_shows(tmp_path):
    write("folder", tmp_path)
    with (tmp_path / "classes.txt").open("a") as file:
        file.write("unicorn\n")
    source = open_source("folder", tmp_path)
    text = refused(lambda: Data(read_scenario("folder-9-1", root=tmp_path), source, crop=16).train(1), "step 1", "unicorn (10)")
    assert "add images" in text


# --- decoded samples on disk ---


def one_file(cache):
    (file,) = cache.glob("*.pixels")
    return file


def test_what_is_on_disk_is_not_decoded_again(made, cache, monkeypatch):
    first = opened("camvid", made / "camvid", cache="disk")
    samples = [first.pair("train", i) for i in range(12)]
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail("decoded again"))
    monkeypatch.setattr(module, "read_label", lambda *_: pytest.fail("decoded again"))
    second = opened("camvid", made / "camvid", cache="disk")
    for i, (image, label) in enumerate(samples):
        again = second.pair("train", i)
        assert torch.equal(again[0], image) and torch.equal(again[1], label)
        assert torch.equal(second.image("train", i), image) and torch.equal(second.label("train", i), label)
    again[0].zero_(), again[1].zero_()  # a caller's copy: the file does not change
    assert torch.equal(second.pair("train", 11)[0], samples[11][0])
    size = sum(4 * int(h) * int(w) for h, w in first.sizes("train"))
    assert one_file(cache).stat().st_size == 12 + size and second.cache.used() == size


def test_loader_processes_fill_the_file_that_all_share(made, cache, monkeypatch):
    data = data_of("camvid", made / "camvid", workers=2, cache="disk")
    loader = data.train(0)
    for epoch in range(2):
        list(loader.epoch(epoch, whole=True))
    loader.close()
    monkeypatch.setattr(module, "read_image", lambda path: pytest.fail("decoded again"))
    for i in data.members(0):
        data.source.pair("train", int(i))


KILLED = """
import os, signal, sys
from pathlib import Path
from cisskit.data import open_source

source = open_source("camvid", sys.argv[1], cache="disk")
source.pair("train", 0)

class Dying:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

plain = Path.open
Path.open = lambda self, *mode: Dying(plain(self, *mode)) if mode == ("r+b",) else plain(self, *mode)
source.pair("train", 1)
"""


def test_a_killed_process_leaves_nothing_half_true(made, cache):
    env = {**os.environ, "CISSKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    dead = subprocess.run([sys.executable, "-c", KILLED, str(made / "camvid")], env=env, capture_output=True, timeout=60)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    source, plain = opened("camvid", made / "camvid", cache="disk"), opened("camvid", made / "camvid")
    stored = source.cache.open("train").bytes
    assert stored[0] == 1 and stored[1] == 0 and stored[source.cache.open("train").starts[1] :].any()  # half of it is there
    for i in range(12):
        assert all(map(torch.equal, source.pair("train", i), plain.pair("train", i)))


def test_changed_images_and_other_ids_get_another_file(tmp_path, cache):
    names = write("isprs", tmp_path / "data")
    (images, _, _), _ = places("isprs", "train")
    opened("isprs", tmp_path / "data", cache="disk").pair("train", 0)
    opened("isprs", tmp_path / "data", cache="disk", clutter="background").pair("train", 0)
    assert len(list(cache.glob("*.pixels"))) == 2
    file = tmp_path / "data" / images / f"{names['train'][0]}.png"
    Image.fromarray(np.full((64, 64, 3), 77, dtype=np.uint8)).save(file)
    assert (opened("isprs", tmp_path / "data", cache="disk").image("train", 0) == 77).all()


def test_the_budget_on_disk(made, cache):
    source = opened("camvid", made / "camvid", cache="disk")
    source.cache.room = 4 * 64 * 64 + 4 * 64 * 48 + 100
    for i in range(12):
        source.pair("train", i)
    assert np.flatnonzero(source.cache.open("train").bytes[:12]).tolist() == [0, 1]
    assert source.cache.used() == 4 * 64 * 64 + 4 * 64 * 48
    again = opened("camvid", made / "camvid", cache="disk")  # what others wrote counts
    again.cache.room = source.cache.room
    again.pair("train", 2), again.pair("train", 11)
    assert again.cache.used() == source.cache.used()


def test_a_full_disk_is_a_warning_and_an_unwritable_folder_an_error(made, cache, monkeypatch, tmp_path):
    source = opened("camvid", made / "camvid", cache="disk")
    plain = Path.open

    def full(path, mode="r", *args, **kwargs):
        if mode == "r+b":
            raise OSError(28, "No space left on device")
        return plain(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.warns(UserWarning, match="no further decoded images are kept in .*No space left"):
        source.pair("train", 0)
    with warnings.catch_warnings(action="error"):  # told once
        source.pair("train", 1)
    monkeypatch.undo()
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path / "taken")
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "taken")
    other = opened("camvid", made / "camvid", cache="disk")
    with pytest.warns(UserWarning, match="could not keep the label index"):
        refused(lambda: other.pair("train", 0), "CISSKIT_CACHE", "cache='memory'")


def test_a_source_travels_without_its_pixels(made):
    """To loader processes that are spawned: they open the file themselves."""
    source = opened("camvid", made / "camvid", cache="disk")
    sample = source.pair("train", 0)
    again = pickle.loads(pickle.dumps(source))
    assert not again.cache.files and all(map(torch.equal, again.pair("train", 0), sample))
    assert again.cache.used() == source.cache.used() == 4 * 64 * 64


def test_a_place_for_the_cache_is_memory_or_disk(made):
    refused(lambda: opened("voc", made / "voc", cache="dsk"), "'dsk'. Did you mean 'disk'")


# --- saliency maps from files ---


def as_derived(layout, made, monkeypatch, **options):
    """Data whose saliency is the map's, and the same data whose saliency follows from the label."""
    data, derived = (data_of(layout, made / layout, **options) for _ in range(2))
    assert data.offers("saliency")
    monkeypatch.setattr(derived.source, "perfect_saliency", True, raising=False)
    return data, derived


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("augment", ["area", "scale", "shorter_scale", "none"])
def test_a_map_goes_the_way_of_its_label(layout, augment, made, monkeypatch):
    options = {"crop": None, "batch_size": 1} if augment == "none" else {"crop": 48, "augment": augment}
    data, derived = as_derived(layout, made, monkeypatch, **options)
    memory = data.source.names("train")[:2]
    hidden = 0
    for replay in ("pool", "half"):
        one, two = (d.train(1, memory=memory, replay=replay, extras=["saliency", "truth"]) for d in (data, derived))
        assert one._reader.samples.saliency and not two._reader.samples.saliency
        for a, b in zip(one.epoch(1), two.epoch(1), strict=True):
            same(a, b)
            assert a.extra["saliency"].dtype == torch.bool and a.label.shape == a.extra["saliency"].shape
            hidden += int((a.extra["saliency"] & (a.label == 0)).sum())
        plain = data.train(1, memory=memory, replay=replay)
        for a, b in zip(plain.epoch(1), two.epoch(1), strict=True):  # and changes nothing else
            assert torch.equal(a.image, b.image) and torch.equal(a.label, b.label) and "saliency" not in a.extra
    assert hidden > 0


def test_planes_are_cropped_for_evaluation_like_a_label():
    rng = np.random.default_rng(0)
    image, planes = (torch.from_numpy(rng.integers(0, 256, (n, 37, 50), dtype=np.uint8)) for n in (3, 2))
    for size in (20, 37, 60):
        together = evaluation_crop(image, planes, size)[1]
        assert torch.equal(together, torch.stack([evaluation_crop(image, plane, size)[1] for plane in planes]))


def test_maps_are_all_there_or_it_is_an_error(tmp_path):
    names = write("voc", tmp_path / "data", saliency=True)
    maps = tmp_path / "data/VOCdevkit/VOC2012/saliency_map"
    data = data_of("voc", tmp_path / "data")
    for name in names["test"]:
        (maps / f"{name}.png").unlink()
    assert data.offers("saliency")  # tests need none
    (maps / f"{names['train'][3]}.png").unlink()
    for call in (lambda: data.offers("saliency"), lambda: data.train(0, extras=["saliency"])):
        refused(call, f"none for {names['train'][3]} (1 in all)", "python -m data_prep saliency")
    for file in maps.iterdir():
        file.unlink()
    assert not data.offers("saliency") and data.offers("truth") and not data.offers("depth")
    refused(lambda: data.train(0, extras=["saliency"]), "no saliency maps for 'voc'", "python -m data_prep saliency")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((64, 64), 128, dtype=np.uint8), "holds the values 128"),
        (np.zeros((64, 64, 3), dtype=np.uint8), "mode RGB"),
        (np.zeros((64, 65), dtype=np.uint8), "65 x 64"),
    ],
)
def test_faulty_maps(array, words, tmp_path):
    write("ade", tmp_path, saliency=True)
    data = data_of("ade", tmp_path, batch_size=12)
    name = data.train(0).names[0]
    damage(tmp_path / places("ade", "train")[0][2], f"{name}.png", array)
    refused(lambda: list(data.train(0, extras=["saliency"]).epoch(0, whole=True)), f"{name}.png", words)
    list(data.train(0).epoch(0, whole=True))


def test_the_origin_of_maps_is_described(tmp_path):
    write("ade", tmp_path, saliency=True)
    data = data_of("ade", tmp_path)
    assert data.describe(["saliency"])["saliency"] == "unknown, no manifest" and "saliency" not in data.describe()
    pairs = [p._replace(label=p.saliency) for p in data.source.pairs["train"]]
    folder = tmp_path / "ADEChallengeData2016/saliency_map"
    write_manifest(folder, "saliency", {"data": "ade20k", "threshold": 1}, {"train": pairs}, "published maps from elsewhere")
    assert data.describe(["saliency"])["saliency"] == "published maps from elsewhere, threshold 1"
    assert "saliency" not in Data(Scenario.named("toy-5-2"), open_source("toy", train=40)).describe(["saliency"])


# --- ISPRS ---


def isprs_files(root, contents):
    """Crops of 8 x 8 that hold these file values each; contents: split -> name -> values."""
    site = root / "isprs/potsdam"
    for split, crops in contents.items():
        for kind in ("images", "labels"):
            (site / kind / split).mkdir(parents=True)
        for name, values in crops.items():
            label = np.full((8, 8), values[0], dtype=np.uint8)
            label[0, : len(values)] = values
            Image.fromarray(label).save(site / "labels" / split / f"{name}.png")
            Image.fromarray(np.repeat(40 * label[..., None], 3, 2)).save(site / "images" / split / f"{name}.png")


CROPS = {"a": [1, 2], "b": [1], "c": [3], "d": [4, 5], "e": [2, 6], "f": [5], "g": [4], "h": [6, 0]}
"""File values: 1 impervious surface, 2 building, 3 low vegetation, 4 tree, 5 car, 6 clutter, 0 boundary."""


def chosen(data):
    names = data.source.names("train")
    return ["".join(names[i] for i in data.members(t)) for t in range(len(data.scenario.steps))]


@pytest.mark.parametrize(
    ("task", "corrected", "as_coded"),
    [
        ("2-1", ["abe", "c", "dg", "df"], ["ab", "ae", "c", "dg"]),
        ("2-2-1", ["abe", "cdg", "df"], ["ab", "ace", "dg"]),
        ("2-3", ["abe", "cdfg"], ["ab", "acdeg"]),
        ("4-1", ["abcdeg", "df"], ["abce", "dg"]),
    ],
)
def test_published_lists_are_one_class_off(task, corrected, as_coded, tmp_path):
    isprs_files(tmp_path, {"train": CROPS, "test": {f"t{k}": v for k, v in CROPS.items()}})
    clean = Data(Scenario.named(f"isprs-{task}"), open_source("isprs", tmp_path))
    assert chosen(clean) == corrected
    for published in (open_source("isprs_compat", tmp_path), open_source("isprs", tmp_path, isprs_compat=True)):
        assert published.dataset == "isprs_compat"
        data = Data(Scenario.named(f"isprs_compat-{task}"), published)
        assert chosen(data) == as_coded
        assert published.presence("test")[:, 1].tolist() == [1 in v for v in CROPS.values()]  # test images are chosen alike


def test_what_labels_say_in_each_protocol(tmp_path):
    isprs_files(tmp_path, {"train": {"x": [*range(7)]}, "test": {"y": [*range(7)]}})

    def ids(dataset, split, **options):
        return open_source(dataset, tmp_path, **options).label(split, 0)[0, :7].tolist()

    for split in ("train", "test"):
        assert ids("isprs", split) == [255, 1, 2, 3, 4, 5, 255]
        assert ids("isprs", split, clutter="background") == [255, 1, 2, 3, 4, 5, 0]
    assert ids("isprs_compat", "train") == [255, 0, 1, 2, 3, 4, 0]
    assert ids("isprs_compat", "test") == [255, 0, 1, 2, 3, 4, 255]
    source = open_source("isprs_compat", tmp_path)
    assert source.palette[[0, 1, 4]].tolist() == [[255, 255, 255], [0, 0, 255], [255, 255, 0]]
    assert open_source("isprs", tmp_path).palette[[1, 2, 5]].tolist() == [[255, 255, 255], [0, 0, 255], [255, 255, 0]]
    data = Data(Scenario.named("isprs_compat-2-1"), source)
    assert data.sample("train", 0, 1)[1][0, :7].tolist() == [255, 0, 0, 2, 0, 0, 0]  # untold is painted as impervious surface


@pytest.mark.parametrize("layout", ["isprs", "isprs mmsegmentation"])
def test_increments_of_domain(layout, tmp_path):
    for site in ("potsdam", "vaihingen"):
        write(layout, tmp_path, site=site, seed=len(site))
    source = open_source("isprs", tmp_path, later_site="vaihingen")
    names = source.names("train")
    scenario = Scenario.named("isprs-2-2-1")
    data = Data(scenario, source, crop=32, batch_size=2)
    assert [len(source.names(split)) for split in ("train", "test")] == [24, 10]

    def sites(members):
        return {names[i].split("_")[0] for i in members}

    assert sites(data.members(0)) == {"potsdam"} and sites(data.members(1)) == sites(data.members(2)) == {"vaihingen"}
    for step, site in ((0, "potsdam"), (1, "vaihingen"), (2, "vaihingen")):  # of that site, the same images as without the other
        alone = Data(scenario, open_source("isprs", tmp_path, site=site))
        assert [names[i] for i in data.members(step)] == [alone.source.names("train")[i] for i in alone.members(step)]
    assert sites(data.members(2, "seen")) == {"potsdam", "vaihingen"}
    assert len(Data(Scenario.named("isprs-2-2-1", setting="joint"), source).members(0)) == 24
    assert data.describe()["source"] == {"site": "potsdam", "later_site": "vaihingen", "clutter": "void"}


def test_a_site_without_test_images_can_be_looked_at(tmp_path):
    write("isprs mmsegmentation", tmp_path, counts={"train": 4})
    source = open_source("isprs", tmp_path)
    assert len(source.names("train")) == 4 and source.pair("train", 0)
    for call in (lambda: source.names("test"), lambda: Data(Scenario.named("isprs-2-3"), source).describe()):
        refused(call, "no test images", str(tmp_path / "potsdam/img_dir/val"), "python -m data_prep isprs")
    for kind in ("img_dir", "ann_dir"):  # empty folders are none
        (tmp_path / "potsdam" / kind / "val").mkdir()
    refused(lambda: open_source("isprs", tmp_path).names("test"), "no test images")


def test_sites_that_do_not_fit(tmp_path):
    write("isprs", tmp_path)
    refused(
        lambda: open_source("isprs", tmp_path, site="vaihingen"), "no crops of ISPRS vaihingen", "isprs/vaihingen/images/train"
    )
    refused(lambda: open_source("isprs", tmp_path, site="Potsdam"), "'Potsdam'. Did you mean 'potsdam'")
    refused(lambda: open_source("isprs", tmp_path, later_site="potsdam"), "the site that training starts on")
    refused(lambda: open_source("isprs_compat", tmp_path, clutter="background"), "its own rule for clutter")
    for kind in ("images", "labels"):
        folder = tmp_path / "isprs/potsdam" / kind
        shutil.copytree(folder / "train", folder / "test", dirs_exist_ok=True)
    refused(lambda: open_source("isprs", tmp_path), "both in the training and in the test split: potsdam_0_000", "(12 in all)")


def test_camvid_has_a_third_split(tmp_path):
    write("camvid", tmp_path)
    source = open_source("camvid", tmp_path)
    refused(lambda: source.names("heldout"), "no heldout images", "CamVid/val")
    for kind in ("", "annot"):
        shutil.copytree(tmp_path / f"CamVid/test{kind}", tmp_path / f"CamVid/val{kind}")
    assert open_source("camvid", tmp_path).names("heldout") == source.names("test")


# --- folders of one's own ---


def test_classes_without_background_start_at_one(tmp_path):
    write("folder split", tmp_path)
    (tmp_path / "classes.txt").write_text("\ufeff" + "\n".join([f"thing {k}" for k in range(10)]) + "\n\n", encoding="utf-8")
    scenario, source = read_scenario("folder-6-2", root=tmp_path), open_source("folder", tmp_path)
    assert scenario.labels.background == "" and scenario.labels.names[0] == "thing 0" and len(scenario.order) == 10
    label = np.array(Image.open(source.pairs["train"][0].label)).astype(int)
    assert (source.label("train", 0).numpy() == np.where(label == 255, 255, label + 1)).all()
    assert source.labels == scenario.labels


def test_colours_and_names_of_classes(made):
    source = open_source("folder", made / "folder")
    assert source.labels.names[:2] == ("thing 1", "thing 2") and source.labels.background == "background"
    assert source.palette[[1, 9]].tolist() == [[20, 0, 99], [180, 0, 99]] and source.palette[0].tolist() == [0, 0, 0]
    scenario = read_scenario("folder:thing 3,thing 1/thing 2", root=made / "folder")
    assert scenario.groups == ((3, 1), (2,))
    assert read_scenario(scenario.text, root=made / "folder") == scenario
    refused(lambda: read_scenario("folder-5-2"), "classes.txt", "root")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road\na,b\n", ["line 2", "'a,b'", ", / or :"]), ("a/b", ["line 1"]), ("x: y", ["line 1"]),
        ("road\nroad 1 2 3", ["line 2", "twice"]), ("road\n\ncar", ["line 2", "no name"]), ("128 64 128", ["no name"]),
        ("road\n12", ["line 2", "class id"]), ("road\nbackground", ["line 2", "first"]), ("road 1 2 300", ["0..255"]),
        ("a 1 2 3\nb 1 2 3", ["line 2", "colour is there twice"]), ("a\nvoid", ["line 2", "void is a colour"]),
        ("", ["names 0 classes"]), ("background", ["names 0 classes"]), ("\n".join(f"c{k}" for k in range(255)), ["255 classes"]),
    ],
)  # fmt: skip
def test_faulty_class_names(text, words, tmp_path):
    write("folder", tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    for call in (lambda: open_source("folder", tmp_path), lambda: read_scenario("folder-1-1", root=tmp_path)):
        refused(call, str(tmp_path / "classes.txt"), *words)


def test_labels_in_colour_name_the_conversion_and_converted_ones_are_preferred(tmp_path):
    names = write("folder split", tmp_path)
    shutil.copytree(tmp_path / "labels", tmp_path / "labels_ids")
    for name in names["train"]:
        damage(tmp_path / "labels/train", f"{name}.png", np.zeros((64, 64, 3), dtype=np.uint8))
    assert open_source("folder", tmp_path).pixels("train").any()
    shutil.rmtree(tmp_path / "labels_ids")
    source = open_source("folder", tmp_path)
    refused(lambda: source.pixels("train"), "mode RGB", f"`python -m data_prep folder --root {tmp_path}`", "(12 in all)")


def test_the_drawn_split_is_stable(tmp_path):
    write("folder", tmp_path, counts={"train": 60, "test": 1})
    before = open_source("folder", tmp_path)
    assert before.describe() == {"split": "hash", "test_share": 0.2} and 5 <= len(before.names("test")) <= 20
    assert set(before.names("train")).isdisjoint(before.names("test"))
    for kind, suffix in (("images", ".jpg"), ("labels", ".png")):
        for k in range(30):
            shutil.copy(tmp_path / kind / f"potsdam_0_000{suffix}", tmp_path / kind / f"0_more_{k}{suffix}")
    after = open_source("folder", tmp_path)
    assert len(after.names("train") + after.names("test")) == 91
    for split in ("train", "test"):
        assert set(before.names(split)) <= set(after.names(split))
    few = open_source("folder", tmp_path, test_share=0.05)
    assert set(few.names("test")) < set(after.names("test")) and few.describe()["test_share"] == 0.05


def test_lists_of_names(tmp_path):
    names = write("folder", tmp_path)
    (tmp_path / "test.txt").write_text("\n".join(names["test"]))
    refused(lambda: open_source("folder", tmp_path), "cannot read", "train.txt", "two")
    (tmp_path / "train.txt").write_text("\n".join(names["train"][:5]) + "\n\n")
    source = open_source("folder", tmp_path)
    assert [list(source.names(split)) for split in ("train", "test")] == [names["train"][:5], names["test"]]
    assert source.describe() == {"split": "lists"}
    for lines, words in (
        (["elsewhere", "potsdam_0_000.jpg"], ["not there: elsewhere, potsdam_0_000.jpg (2 in all)", "and extension"]),
        ([names["train"][0]] * 2, ["twice: potsdam_0_000 (1 in all)"]), ([], ["lists no image"]),
        ([names["test"][0]], ["share images: potsdam_1_000 (1 in all)"]),
    ):  # fmt: skip
        (tmp_path / "train.txt").write_text("\n".join(lines))
        refused(lambda: open_source("folder", tmp_path), "train.txt", *words)


def test_a_share_that_cannot_be(tmp_path):
    write("folder", tmp_path / "a", counts={"train": 2})
    for share in (0, 1, -0.5):
        refused(
            lambda share=share: open_source("folder", tmp_path / "a", test_share=share), f"test_share={share}", "between 0 and 1"
        )
    refused(lambda: open_source("folder", tmp_path / "a", test_share=1e-9), "of 2 images none", "test split", "test.txt")
    write("folder split", tmp_path / "b")
    refused(lambda: open_source("folder", tmp_path / "b", test_share=0.5), "has no effect", "folders")
    assert open_source("folder", tmp_path / "b").describe() == {"split": "folders"}


def test_endings_in_any_case_and_hidden_files(tmp_path):
    names = write("folder split", tmp_path)
    one = tmp_path / "images/train" / f"{names['train'][0]}.jpg"
    one.rename(one.with_suffix(".JPG"))
    for junk in ("images/train/._x.jpg", "images/train/Thumbs.db", "labels/train/.x.png"):
        (tmp_path / junk).write_bytes(b"junk")
    assert open_source("folder", tmp_path).names("train") == tuple(names["train"])


# --- what data_prep has recorded ---


@pytest.mark.parametrize("layout", ["voc", "ade", "isprs", "folder"])
def test_a_folder_that_has_changed_is_noticed(layout, tmp_path):
    names = write(layout, tmp_path)
    place = {"voc": "VOCdevkit/VOC2012", "ade": "ADEChallengeData2016", "isprs": "isprs/potsdam", "folder": "labels"}[layout]
    pairs = opened(layout, tmp_path).pairs
    splits = {
        "voc": {"train": pairs["train"], "val": pairs["test"]},
        "folder": {"all": [*pairs["train"], *pairs["test"]]},
    }.get(layout, pairs)
    options = {"colours": {f"{20 * k} 0 99": k for k in range(1, 10)}} if layout == "folder" else {}
    write_manifest(tmp_path / place, layout, options, splits, "here")
    assert opened(layout, tmp_path).pairs == pairs
    (_, labels, _), _ = places(layout, "train")
    with (tmp_path / labels / f"{names['train'][0]}.png").open("ab") as file:
        file.write(b"x")
    refused(lambda: opened(layout, tmp_path), "have changed", "manifest.json")


def test_classes_that_changed_after_the_conversion_are_noticed(tmp_path):
    names = write("folder split", tmp_path, counts={"train": 4, "test": 2})
    (tmp_path / "classes.txt").write_text("background 0 0 0\na 9 9 9\nb 200 0 0\nvoid 1 2 3\n")
    for split in ("train", "test"):
        for name in names[split]:
            with Image.open(tmp_path / "images" / split / f"{name}.jpg") as image:
                coloured = np.zeros((image.height, image.width, 3), dtype=np.uint8)
            coloured[:9], coloured[9:11], coloured[11:13] = 9, (200, 0, 0), (1, 2, 3)
            damage(tmp_path / "labels" / split, f"{name}.png", coloured)
    assert main(["folder", "--root", str(tmp_path)]) == 0
    source = open_source("folder", tmp_path)
    assert source.label("train", 0)[[0, 10, 12, 20], 0].tolist() == [1, 2, 255, 0]
    assert source.palette[[1, 2, 255]].tolist() == [[9, 9, 9], [200, 0, 0], [1, 2, 3]]
    (tmp_path / "classes.txt").write_text("background 0 0 0\nb 200 0 0\na 9 9 9\nvoid 1 2 3\n")
    refused(lambda: open_source("folder", tmp_path), "classes.txt has changed", str(tmp_path / "labels_ids"), "Move")
    for kind in ("images", "labels_ids"):  # lists may leave images out, but not change what numbers mean
        for file in (tmp_path / kind).glob("*/*"):
            file.rename(tmp_path / kind / file.name)
        for split in ("train", "test"):
            (tmp_path / kind / split).rmdir()
            (tmp_path / f"{split}.txt").write_text(names[split][0])
    refused(lambda: open_source("folder", tmp_path), "classes.txt has changed")
    (tmp_path / "classes.txt").write_text("background 0 0 0\na 9 9 9\nb 200 0 0\nvoid 1 2 3\n")
    assert open_source("folder", tmp_path).names("train") == (names["train"][0],)


# --- real files, when they are there ---


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return lambda name: layouts.unpacked(shared, name, folder / name)


def one_step(tmp_path, root, scenario, options=None):
    """Step 0 of a method of each family on 64 x 64 crops."""
    for method, arch in (("dkd", "toy"), ("mbs", "toy_segmenter")):
        ctx = begin(
            scenario, method, 0, runs=tmp_path / "runs", arch=arch, weights="none", data_root=str(root), data_options=options,
            eval_size="crop64", overrides={"crop": 64, "epochs": 1, "batch_size": 2}, device="cpu",
        )  # fmt: skip
        history = fit(ctx, bar=False)
        assert len(history) >= 1 and np.isfinite(history.select_dtypes("number").to_numpy()).all()
        assert evaluate(ctx)["test_images"] == len(ctx.data.source.names("test"))


def test_a_folder_trains(tmp_path):
    write("folder", tmp_path / "data")
    one_step(tmp_path, tmp_path / "data", "folder-7-2")


def test_real_voc_trains(real, tmp_path):
    root = real("voc_mini")
    lists = next(root.rglob("ImageSets/Segmentation"))
    for text in ("train", "val"):  # a few images are enough
        (lists / f"few_{text}.txt").write_text("\n".join((lists / f"{text}.txt").read_text().split()[:8]))
    one_step(tmp_path, root, "voc:person,chair,dog,cat,horse,cow,car,bottle", {"train_list": "few_train", "test_list": "few_val"})


def test_real_ade_trains(real, tmp_path):
    root = real("ade_mini")
    source = open_source("ade", root)
    assert (len(source.names("train")), len(source.names("test"))) == (1, 3)
    shown = source.presence("train")[0]
    assert shown[[1, 4, 66, 136]].all() and not shown[2]
    one_step(tmp_path, root, "ade:wall,floor/toilet,vase")


@pytest.mark.parametrize("site", ["potsdam", "vaihingen"])
def test_real_isprs_trains(real, tmp_path, site):
    root = tmp_path / "data"
    shutil.copytree(real("isprs_mini"), root)
    refused(lambda: open_source("isprs", root, site=site).names("test"), "no test images")
    for kind in ("img_dir", "ann_dir"):  # the sample has one crop of each site: its left half becomes the test image
        (root / site / kind / "val").mkdir()
        for file in (root / site / kind / "train").iterdir():
            with Image.open(file) as image:
                image.crop((0, 0, 256, 512)).save(root / site / kind / "val" / f"half_{file.name}")
    assert set(open_source("isprs", root, site=site).label("train", 0).unique().tolist()) == {1, 2, 3, 4, 5, 255}
    one_step(tmp_path, root, "isprs-4-1", {"site": site})
