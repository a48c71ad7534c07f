"""`data_prep` where it converts: ISPRS tiles, labels in colour, saliency maps. Tiles are made of the embedded scenes."""

import struct
import zipfile
from itertools import pairwise

import numpy as np
import pytest
from layouts import write
from PIL import Image

from cisskit.data import open_source
from cisskit.data.colours import colours_to_ids, tell_colours
from cisskit.data.files import read_saliency
from cisskit.data.manifest import check_manifest, read_manifest
from cisskit.data.scenes import scenes
from cisskit.errors import KitError
from data_prep import isprs, saliency

WHITE, BLUE, CYAN, GREEN, YELLOW, RED = (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)
SIX = np.array([WHITE, BLUE, CYAN, GREEN, YELLOW, RED], dtype=np.uint8)
HEIGHT, WIDTH = 160, 192


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    monkeypatch.setenv("CISSKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(said, data, *arguments, words):
    """The command fails with ``words`` and changes nothing in ``data``."""
    before = {path: state for path, state in contents(data).items() if path.name != ".data_prep.lock"}
    status, text = said(*arguments)
    missing = [word for word in words if word not in text]
    assert status == 1 and not missing and "Traceback" not in text, f"{missing} not in: {text}"
    assert {path: state for path, state in contents(data).items() if path.name != ".data_prep.lock"} == before
    assert not [p for p in data.rglob("*") if p.name.startswith(".data_prep-")]
    return text


# --- colours ---


def test_colours_become_numbers():
    colours = {WHITE: 1, BLUE: 2, (0, 1, 0): 0, (1, 0, 0): 255}
    rgb = np.array([[WHITE, BLUE, (0, 1, 0)], [(1, 0, 0), (0, 0, 1), BLUE]], dtype=np.uint8)
    ids, unknown = colours_to_ids(rgb, colours)
    assert ids.tolist() == [[1, 2, 0], [255, 255, 2]] and ids.dtype == np.uint8 and unknown == {(0, 0, 1): 1}
    assert tell_colours(unknown) == "1 pixels of 1 unknown colours: (0, 0, 1) 1"
    assert colours_to_ids(rgb, {BLUE: 2})[1] == {WHITE: 1, (0, 1, 0): 1, (1, 0, 0): 1, (0, 0, 1): 1}


def test_every_colour_comes_back():
    rng = np.random.default_rng(0)
    palette = np.unique(rng.integers(0, 256, (200, 3), dtype=np.uint8), axis=0)
    truth = rng.integers(0, len(palette), (50, 60))
    ids, unknown = colours_to_ids(palette[truth], {tuple(map(int, c)): k for k, c in enumerate(palette)})
    assert (ids == truth).all() and not unknown
    others = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    ids, unknown = colours_to_ids(others, {(256 - 1, 254, 253): 7})
    assert (ids == 255).all() and unknown.total() == 81 and all(0 <= v < 256 for colour in unknown for v in colour)


# --- tiles ---


def tile(seed, eroded=False, height=HEIGHT, width=WIDTH):
    """Image and label in colour of a tile: scenes side by side."""
    images, labels = scenes(seed, "train", 9)
    image, label = (
        np.concatenate([np.concatenate(list(part[k : k + 3]), axis=1) for k in (0, 3, 6)])[:height, :width]
        for part in (images, labels % 6)
    )
    colour = SIX[label]
    if eroded:
        colour[:, :-1][label[:, 1:] != label[:, :-1]] = 0
    return image, colour


POTSDAM = {"2_10": "train", "3_11": "train", "2_13": "test"}
VAIHINGEN = {"area1": "train", "area2": "test"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """DATA/isprs_source with three tiles of Potsdam, in folders; these are all there are."""
    monkeypatch.setattr(isprs, "SITES", {
        site: isprs.SITES[site]._replace(splits={s: tuple(t for t in tiles if tiles[t] == s) for s in ("train", "test")})
        for site, tiles in (("potsdam", POTSDAM), ("vaihingen", VAIHINGEN))
    })  # fmt: skip
    folder = tmp_path / "DATA/isprs_source"
    for name in ("2_Ortho_RGB", "5_Labels_all", "5_Labels_all_noBoundary"):
        (folder / name).mkdir(parents=True)
    for k, name in enumerate(POTSDAM):
        for eroded, below in (
            (False, "5_Labels_all/top_potsdam_{}_label"),
            (True, "5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary"),
        ):
            image, label = tile(k, eroded)
            Image.fromarray(label).save(folder / f"{below.format(name)}.tif", compression="tiff_lzw")
        Image.fromarray(image).save(folder / f"2_Ortho_RGB/top_potsdam_{name}_RGB.tif")
    (folder / "2_Ortho_RGB/top_potsdam_2_10_RGB.tfw").write_text("0.05")
    return folder


def label_file(source, name="2_10"):
    return source / f"5_Labels_all/top_potsdam_{name}_label.tif"


def test_tiles_become_crops(source, said):
    data = source.parent
    status, table = said("isprs", "--root", data, "--tile", 64)
    assert status == 0 and table.count("2 tiles") == 2 and "complete" in table
    made = data / "isprs/potsdam"
    assert sorted(p.name for p in (data / "isprs").iterdir()) == ["potsdam"]
    names = sorted(p.stem for p in (made / "images/train").iterdir())
    assert len(names) == 2 * 9 and names == sorted(p.stem for p in (made / "labels/train").iterdir())
    assert "2_10_0_0_64_64" in names and "3_11_128_96_192_160" in names  # the last row is aligned to the border: 96, not 128
    image, colour = tile(0)
    for box in ((0, 0, 64, 64), (64, 96, 128, 160)):
        x0, y0, x1, y1 = box
        name = f"2_10_{'_'.join(map(str, box))}.png"
        assert (np.array(Image.open(made / "images/train" / name)) == image[y0:y1, x0:x1]).all()
        label = Image.open(made / "labels/train" / name)
        assert label.mode == "P" and (np.array(label.convert("RGB")) == colour[y0:y1, x0:x1]).all()
        assert (SIX[np.array(label) - 1] == colour[y0:y1, x0:x1]).all()
    read = open_source("isprs", data)
    assert len(read.names("train")) == 18 and len(read.names("test")) == 9
    assert read.pixels("train")[:, 1:6].sum() > 0
    manifest = read_manifest(made)
    assert manifest.options == {"tile": 64, "overlap": 0, "eroded": False, "round_colours": False}
    assert {s: m.images for s, m in manifest.splits.items()} == {"train": 18, "test": 9}


def test_the_published_grid():
    assert len(isprs.starts(6000, 600, 0)) ** 2 == 100
    assert 24 * len(isprs.starts(6000, 512, 0)) ** 2 == 3456 and isprs.starts(6000, 512, 0)[-2:] == [5632 - 512, 6000 - 512]
    assert (
        isprs.starts(6000, 512, 256)[:3] == [0, 256, 512]
        and isprs.starts(512, 512, 0) == [0]
        and isprs.starts(300, 512, 0) == [0]
    )


@pytest.mark.parametrize(("length", "side", "overlap"), [(160, 64, 0), (192, 64, 16), (100, 64, 63), (64, 64, 1), (65, 64, 0)])
def test_a_grid_covers_everything_and_stays_inside(length, side, overlap):
    begins = isprs.starts(length, side, overlap)
    covered = np.zeros(length, dtype=int)
    for begin in begins:
        covered[begin : begin + side] += 1
    assert covered.min() >= 1 and begins[-1] + side == length and begins == sorted(set(begins))
    assert all(b - a <= side - overlap for a, b in pairwise(begins))


def test_the_official_tiles():
    counts = {site: {split: len(set(tiles)) for split, tiles in one.splits.items()} for site, one in isprs.SITES.items()}
    assert counts == {"potsdam": {"train": 24, "test": 14}, "vaihingen": {"train": 16, "test": 17}}
    assert not any(set(one.splits["train"]) & set(one.splits["test"]) for one in isprs.SITES.values())


def test_eroded_labels_and_overlap(source, said):
    data = source.parent
    status, table = said("isprs", "--root", data, "--tile", 96, "--overlap", 32, "--eroded")
    assert status == 0 and "0..6" in table
    label = np.array(Image.open(data / "isprs/potsdam/labels/train/2_10_64_64_160_160.png"))
    colour = tile(0, eroded=True)[1][64:160, 64:160]
    assert (np.concatenate([[(0, 0, 0)], SIX])[label] == colour).all() and (label == 0).any()
    assert (open_source("isprs", data).pixels("train")[:, 255] > 0).any()


def test_again_and_checked(source, said):
    data = source.parent
    said("isprs", "--root", data, "--tile", 64)
    before = contents(data / "isprs")
    status, text = said("isprs", "--root", data, "--tile", 64)
    assert status == 0 and "exists; it is kept" in text and contents(data / "isprs") == before
    refused(said, data, "isprs", "--root", data, "--tile", 32, words=["'tile': 64", "'tile': 32", "Move it away"])
    next((data / "isprs/potsdam/images/train").glob("2_10_64_64*")).unlink()
    next((data / "isprs/potsdam/labels/train").glob("2_10_64_64*")).unlink()
    table = refused(said, data, "isprs", "--root", data, "--check", words=["train has 17 images, 1 fewer than the 18"])
    assert "not as expected: train grids, manifest" in table and "tiles with other grids: 2_10 (1 in all)" in table


def test_another_grid_than_the_name_says(source, said):
    data = source.parent
    said("isprs", "--root", data, "--tile", 64)
    for kind in ("images", "labels"):
        next((data / "isprs/potsdam" / kind / "train").glob("2_10_0_0_*")).rename(data / f"isprs/potsdam/{kind}/train/mine.png")
    refused(said, data, "isprs", "--root", data, "--check", words=["mine.png is not named <tile>_x0_y0_x1_y1"])


def test_a_part_of_the_tiles(source, said):
    for path in source.rglob("*3_11*"):
        path.unlink()
    status, table = said("isprs", "--root", source.parent, "--tile", 64)
    assert (
        status == 1 and "Only the number of images differs" in table and (source.parent / "isprs/potsdam/manifest.json").is_file()
    )


def pack(archive, files, stored=None):
    with zipfile.ZipFile(archive, "w") as packed:
        for file, name in files:
            packed.write(file, name)
        for name, data in (stored or {}).items():
            packed.writestr(name, data)


@pytest.fixture
def vaihingen(source):
    """Vaihingen's archives: images and the training labels in one, the complete labels in another; names are the same."""
    folder = source.parent / "made"
    folder.mkdir()
    for k, name in enumerate(VAIHINGEN):
        image, label = tile(10 + k, height=130, width=192 - 20 * k)
        Image.fromarray(image).save(folder / f"top_{name}.tif")
        Image.fromarray(label).save(folder / f"gt_{name}.tif")
        Image.fromarray(tile(10 + k, True, 130, 192 - 20 * k)[1]).save(folder / f"eroded_{name}.tif")
    pack(source / "ISPRS_semantic_labeling_Vaihingen.zip", [
        *((folder / f"top_{name}.tif", f"top/top_mosaic_09cm_{name}.tif") for name in VAIHINGEN),
        (folder / "gt_area1.tif", "gts_for_participants/top_mosaic_09cm_area1.tif"),
        (folder / "top_area1.tif", "dsm/dsm_09cm_matching_area1.tif"),
    ])  # fmt: skip
    for kind, end in (("gt", ""), ("eroded", "_noBoundary")):
        name = f"ISPRS_semantic_labeling_Vaihingen_ground_truth_{kind.replace('gt', '')}{'_' * (kind != 'gt')}COMPLETE.zip"
        pack(source / name, [(folder / f"{kind}_{a}.tif", f"top_mosaic_09cm_{a}{end}.tif") for a in VAIHINGEN])
    return source


@pytest.mark.parametrize("eroded", [[], ["--eroded"]])
def test_both_sites_from_archives(vaihingen, said, eroded):
    data = vaihingen.parent
    status, table = said("isprs", "--root", data, "--tile", 64, *eroded)
    assert status == 0 and table.count("complete\n") >= 2
    made = data / "isprs/vaihingen"
    assert len(list((made / "images/train").iterdir())) == 3 * 3
    crop = np.array(Image.open(made / "labels/test/area2_0_0_64_64.png"))
    colour = tile(11, bool(eroded), 130, 172)[1][:64, :64]
    assert (np.concatenate([[(0, 0, 0)], SIX])[crop] == colour).all()
    assert (np.array(Image.open(made / "images/test/area2_108_66_172_130.png")) == tile(11)[0][66:130, 108:172]).all()
    assert len(open_source("isprs", data, later_site="vaihingen").names("train")) == 18 + 9
    assert not list(vaihingen.rglob("dsm*"))  # only what is needed is unpacked
    before = contents(data)
    assert said("isprs", "--root", data, "--tile", 64, *eroded)[0] == 0 and contents(data) == before


def test_archives_in_an_archive(source, said):
    data = source.parent
    inner = {}
    for folder in ("2_Ortho_RGB", "5_Labels_all"):
        pack(source / "x.zip", [(file, f"{folder}/{file.name}") for file in sorted((source / folder).iterdir())])
        inner[f"Potsdam/{folder}.zip"] = (source / "x.zip").read_bytes()
    inner["Potsdam/1_DSM.zip"] = b"not needed"
    for path in source.rglob("*"):
        if path.is_file():
            path.unlink()
    pack(source / "Potsdam.zip", [], inner)
    assert said("isprs", "--root", data, "--tile", 64)[0] == 0 and not list(source.rglob("1_DSM*"))


def test_what_a_killed_run_unpacked_is_not_taken_for_tiles(source, said):
    half = source / ".data_prep-dead/2_Ortho_RGB"
    half.mkdir(parents=True)
    (half / "top_potsdam_2_10_RGB.tif").write_bytes(b"half")
    (half / "5_Labels_all.zip").write_bytes(b"half")
    assert said("isprs", "--root", source.parent, "--tile", 64)[0] == 0


@pytest.mark.parametrize("name", ["../top_potsdam_2_10_RGB.tif", "/tmp/top_potsdam_2_10_RGB.tif"])
def test_archives_that_reach_outside(source, said, name):
    pack(source / "2_Ortho_RGB_more.zip", [], {name: b"bad"})
    refused(said, source.parent, "isprs", "--root", source.parent, words=["reaches outside", "2_Ortho_RGB_more.zip"])


def put(path, array):
    Image.fromarray(array).save(path)


def test_other_colours_are_counted_and_named(source, said):
    _, label = tile(0)
    label[:3, :5], label[9, 9] = (250, 120, 3), (1, 2, 3)
    put(label_file(source), label)
    refused(said, source.parent, "isprs", "--root", source.parent, "--tile", 64, words=[
        "labels of 1 tiles", "2_10: 16 pixels of 2 unknown colours: (250, 120, 3) 15, (1, 2, 3) 1", "Nothing was written",
        "--round-colours",
    ])  # fmt: skip
    words = ["2_10: 15 pixels of 1 unknown colours: (255, 120, 0) 15", "Correct these labels"]
    put(label_file(source), np.where((label == (1, 2, 3)).all(axis=2, keepdims=True), np.uint8([[[2, 252, 1]]]), label))
    refused(said, source.parent, "isprs", "--root", source.parent, "--tile", 64, "--round-colours", words=words)


def test_a_border_is_an_unknown_colour_in_full_labels(source, said):
    put(label_file(source, "2_13"), tile(2, eroded=True)[1])
    words = ["2_13", "(0, 0, 0)", "--eroded"]
    refused(said, source.parent, "isprs", "--root", source.parent, "--tile", 64, words=words)


def test_colours_are_rounded_only_when_asked_and_told(source, said):
    _, label = tile(0)
    faulty = label.copy()
    faulty[(label == YELLOW).all(axis=2)] = (252, 255, 0)
    faulty[:2, :5] = np.abs(label[:2, :5].astype(int) - 30)  # 255 -> 225, 0 -> 30
    n = int((faulty != label).any(axis=2).sum())
    put(label_file(source), faulty)
    status, text = said("isprs", "--root", source.parent, "--tile", 64, "--round-colours")
    made = source.parent / "isprs/potsdam"
    origin = f"tiles of ISPRS potsdam; rounded colours: 2_10 {n} pixels"
    assert status == 0 and origin in text and read_manifest(made).origin == origin
    assert (SIX[np.array(Image.open(made / "labels/train/2_10_0_0_64_64.png")) - 1] == label[:64, :64]).all()


def tiff(path, array):
    """An uncompressed TIFF of any type of number, which Pillow does not write."""
    height, width, channels = array.shape
    bits, kind = array.dtype.itemsize * 8, 3 if array.dtype.kind == "f" else 1
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 300),
            (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, array.nbytes), (339, 3, 3, 220)]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    extra = struct.pack("<3H", *[bits] * 3).ljust(20, b"\0") + struct.pack("<3H", *[kind] * 3)
    path.write_bytes((head.ljust(200, b"\0") + extra).ljust(300, b"\0") + array.tobytes())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("16 bits, three channels", ["mode RGB", "(16, 16, 16) bits", "8 bits"]),
        ("16 bits, grey", ["mode I;16", "8 bits"]),
        ("fractions, three channels", ["cannot be read"]),
        ("fractions, grey", ["mode F", "8 bits"]),
        ("four channels", ["mode RGBA"]),
        ("a PNG", ["mode RGB and None bits"]),
        ("truncated", ["cannot be read"]),
        ("empty", ["cannot be read"]),
    ],
)
@pytest.mark.parametrize("which", ["image", "label"])
def test_tiles_of_other_kinds(source, said, kind, words, which):
    file = label_file(source) if which == "label" else source / "2_Ortho_RGB/top_potsdam_2_10_RGB.tif"
    rgb = np.array(Image.open(file))
    {
        "16 bits, three channels": lambda: tiff(file, rgb.astype(np.uint16)),
        "16 bits, grey": lambda: put(file, rgb[..., 0].astype(np.uint16)),
        "fractions, three channels": lambda: tiff(file, rgb.astype(np.float32)),
        "fractions, grey": lambda: put(file, rgb[..., 0].astype(np.float32)),
        "four channels": lambda: put(file, np.concatenate([rgb, rgb[..., :1]], axis=2)),
        "a PNG": lambda: Image.fromarray(rgb).save(file, format="PNG"),
        "truncated": lambda: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "empty": lambda: file.write_bytes(b""),
    }[kind]()
    refused(said, source.parent, "isprs", "--root", source.parent, "--tile", 64, words=[file.name, *words])
    assert not (source.parent / "isprs/potsdam").exists()


def test_the_tiff_of_this_test_is_one(tmp_path):
    rgb = tile(0)[0]
    tiff(tmp_path / "x.tif", rgb)
    assert (np.array(Image.open(tmp_path / "x.tif")) == rgb).all()


def test_sizes_that_differ(source, said):
    put(label_file(source), tile(0)[1][:-1])
    refused(
        said, source.parent, "isprs", "--root", source.parent, words=["2_10", "(192, 160)", "(192, 159)", "Nothing was written"]
    )


def test_tiles_without_labels_and_unknown_ones(source, said):
    data = source.parent
    away = label_file(source).rename(data / "away")
    refused(said, data, "isprs", "--root", data, words=["tiles without labels: 2_10 (1 in all)", "5_Labels_all.zip", "isprs.org"])
    away.rename(label_file(source))
    image = source / "2_Ortho_RGB/top_potsdam_3_11_RGB.tif"
    image.rename(data / "away")
    refused(said, data, "isprs", "--root", data, words=["labels without tile: 3_11 (1 in all)"])
    (data / "away").rename(source / "2_Ortho_RGB/top_potsdam_9_9_RGB.tif")
    refused(said, data, "isprs", "--root", data, words=["no tiles 9_9 (1 in all)"])


def test_two_files_of_one_tile(source, said):
    data = source.parent
    copy = source / label_file(source).name
    copy.write_bytes(label_file(source).read_bytes())
    assert said("isprs", "--root", data, "--tile", 64)[0] == 0  # the same label twice is no question
    (data / "isprs").rename(data / "before")
    put(copy, np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8))
    refused(said, data, "isprs", "--root", data, words=[str(copy), str(label_file(source)), "other contents", "Keep one"])


@pytest.mark.parametrize("pixels", [("64", "64"), ("64", "-1"), ("0", "0")])
def test_grids_that_do_not_end(source, said, pixels):
    refused(
        said, source.parent, "isprs", "--root", source.parent, "--tile", pixels[0], "--overlap", pixels[1], words=["--overlap"]
    )


def test_without_tiles_the_publisher_is_named(tmp_path, said):
    words = ["isprs_source", "https://www.isprs.org/education/benchmarks/UrbanSemLab/", "2_Ortho_RGB.zip", str(tmp_path)]
    refused(said, tmp_path, "isprs", "--root", tmp_path, words=words)
    refused(said, tmp_path, "isprs_compat", "--root", tmp_path, "--check", words=words)


def test_an_error_while_cutting(source, said, monkeypatch):
    data = source.parent
    real = Image.Image.save

    def full(image, path, *rest, **more):
        if "3_11_64" in str(path):
            raise OSError(28, "No space left on device")
        return real(image, path, *rest, **more)

    monkeypatch.setattr(Image.Image, "save", full)
    refused(said, data, "isprs", "--root", data, "--tile", 64, words=["No space left", "Nothing was changed"])
    monkeypatch.undo()


# --- a person's own labels ---


COLOURS = [(40 * k, 255 - k, 7) for k in range(6)]


@pytest.fixture
def own(tmp_path):
    """A folder with labels in colour of the classes 0..5; two pixels of the first label are void."""
    root = tmp_path / "own"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    images, labels = scenes(0, "train", 10)
    for k in range(10):
        colour = np.array([*COLOURS, (9, 9, 9)], dtype=np.uint8)[labels[k] % 6]
        if k == 0:
            colour[0, :2] = 9
        put(root / f"images/x{k}.jpg", images[k])
        put(root / f"labels/x{k}.png", colour)
    names = ["background", "small car", "tree", "wall", "bird", "void"]
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(names, COLOURS, strict=True)]
    lines[5] = "door " + lines[5].removeprefix("void ")
    (root / "classes.txt").write_text("\n".join([*lines, "void 9 9 9"]) + "\n")
    return root


def test_colours_become_index_labels(own, said):
    status, text = said("folder", "--root", own)
    assert status == 0 and "labels in labels_ids" in text
    _, labels = scenes(0, "train", 10)
    expected = labels % 6
    expected[0, 0, :2] = 255
    for k in range(10):
        made = Image.open(own / f"labels_ids/x{k}.png")
        assert made.mode in ("L", "P") and (np.array(made) == expected[k]).all()
    source = open_source("folder", own)
    assert source.labels.names == ("small car", "tree", "wall", "bird", "door") and source.labels.background
    assert source.presence("train").any()
    before = contents(own)
    assert said("folder", "--root", own)[0] == 0 and contents(own) == before
    assert read_manifest(own / "labels_ids").options["colours"]["9 9 9"] == 255
    put(own / "labels_ids/x1.png", np.zeros((64, 64), dtype=np.uint8))
    assert "names or sizes of files have changed" in said("folder", "--root", own, "--check")[1]


def test_other_classes_than_those_of_the_conversion(own, said):
    assert said("folder", "--root", own)[0] == 0
    lines = (own / "classes.txt").read_text().splitlines()
    (own / "classes.txt").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    refused(said, own, "folder", "--root", own, words=["made with other classes or colours", "Move it away"])


def test_sub_folders_keep_their_place(own, said):
    for kind, end in (("images", "jpg"), ("labels", "png")):
        for k in range(10):
            split = own / kind / ("test" if k > 6 else "train")
            split.mkdir(exist_ok=True)
            (own / f"{kind}/x{k}.{end}").rename(split / f"x{k}.{end}")
    assert said("folder", "--root", own)[0] == 0
    assert len(open_source("folder", own).names("test")) == 3 and (own / "labels_ids/test/x9.png").is_file()


def test_colours_that_no_class_has(own, said):
    for k in (3, 4):
        colour = np.array(Image.open(own / f"labels/x{k}.png"))
        colour[5, :4] = (1, 2, 3)
        put(own / f"labels/x{k}.png", colour)
    words = ["8 pixels of 1 unknown colours: (1, 2, 3) 8", "x3.png, x4.png (2 in all)", "Nothing was written", "void"]
    refused(said, own, "folder", "--root", own, words=words)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.zeros((64, 64, 4), dtype=np.uint8), "x2.png (RGBA)"),
        (np.zeros((64, 64), dtype=np.uint16), "x2.png (I;16)"),
        (np.zeros((64, 64), dtype=np.uint8), "mixes RGB and index PNGs: x2.png (1 in all)"),
        (b"", "x2.png (cannot be read"),
    ],
)
def test_labels_of_other_kinds(own, said, label, words):
    if isinstance(label, bytes):
        (own / "labels/x2.png").write_bytes(label)
    else:
        put(own / "labels/x2.png", label)
    refused(said, own, "folder", "--root", own, words=[words])


def test_a_truncated_label_in_colour(own, said):
    file = own / "labels/x2.png"
    file.write_bytes(file.read_bytes()[:300])
    refused(said, own, "folder", "--root", own, words=[str(file), "Nothing was written"])


def test_index_labels_need_no_conversion(tmp_path, said):
    write("folder", tmp_path / "own")
    status, text = said("folder", "--root", tmp_path / "own")
    assert status == 0 and "nothing to convert" in text and not (tmp_path / "own/labels_ids").exists()
    assert "none: the folder was not made by data_prep" in text


def test_colours_without_a_list_of_them(own, said):
    (own / "classes.txt").write_text("background\nroad\n")
    refused(said, own, "folder", "--root", own, words=["names no colours", "road 128 64 128"])
    (own / "classes.txt").unlink()
    refused(said, own, "folder", "--root", own, words=[str(own / "classes.txt")])


def test_colours_where_numbers_are_expected_offer_the_conversion(own, said):
    with pytest.raises(KitError) as caught:
        open_source("folder", own).presence("train")
    assert "mode RGB" in str(caught.value) and "python -m data_prep folder" in str(caught.value)
    refused(said, own, "folder", "--root", own, "--check", words=["mode RGB", "python -m data_prep folder"])


# --- CamVid ---


def test_camvid_is_checked(tmp_path, said):
    write("camvid", tmp_path, {"train": 3, "test": 2})
    write("camvid", tmp_path / "other", {"train": 2})
    for kind in ("", "annot"):
        (tmp_path / f"other/CamVid/train{kind}").rename(tmp_path / f"CamVid/val{kind}")
    status, table = said("camvid", "--root", tmp_path)
    assert status == 1 and "367 images" in table and "3 images" in table and "Only the number of images differs" in table
    (tmp_path / "CamVid/valannot").rename(tmp_path / "away")
    refused(said, tmp_path, "camvid", "--root", tmp_path, "--check", words=["there is no folder", "valannot"])


# --- saliency ---


DATASETS = {"voc": "voc", "ade20k": "ade", "isprs": "isprs", "folder": "folder"}
PLACES = {"voc": "VOCdevkit/VOC2012", "ade20k": "ADEChallengeData2016", "isprs": "isprs/potsdam", "folder": "."}


@pytest.fixture(params=DATASETS)
def data(request, tmp_path):
    """Name for data_prep, DATA, and the folder of published maps: for every image a map whose upper half is salient."""
    write(DATASETS[request.param], tmp_path / "DATA")
    source = open_source(DATASETS[request.param], tmp_path / "DATA")
    (tmp_path / "maps").mkdir()
    for split in ("train", "test"):
        for i, name in enumerate(source.names(split)):
            height, width = source.label(split, i).shape
            salient = np.zeros((height, width), dtype=np.uint8)
            salient[: height // 2], salient[0, 0] = 200, 3
            put(tmp_path / f"maps/{name}.png", salient)
    return request.param, tmp_path / "DATA", tmp_path / "maps"


def test_published_maps_are_taken(data, said):
    name, root, maps = data
    status, text = said("saliency", "--root", root, "--data", name, "--maps", maps)
    assert status == 0 and "published maps from maps" in text
    source = open_source(DATASETS[name], root)
    assert source.without_saliency("train") == source.without_saliency("test") == []
    salient = source.saliency("train", 0).numpy()
    assert set(np.unique(salient)) == {0, 255} and (salient[: len(salient) // 2] == 255).all() and salient[-1, -1] == 0
    assert "published maps from maps" in source.saliency_origin()
    before = contents(root)
    assert said("saliency", "--root", root, "--data", name, "--maps", maps)[0] == 0 and contents(root) == before
    assert said("saliency", "--root", root, "--data", name, "--check")[0] == 0
    refused(said, root, "saliency", "--root", root, "--data", name, "--compute", words=["holds published maps", "Move it away"])
    made = root / PLACES[name] / "saliency_map"
    next(made.rglob("*.png")).unlink()
    refused(
        said, root, "saliency", "--root", root, "--data", name, "--check", words=["lacks files", "python -m data_prep saliency"]
    )


def test_soft_maps_have_a_threshold(data, said):
    name, root, maps = data
    assert said("saliency", "--root", root, "--data", name, "--maps", maps, "--threshold", 128)[0] == 0
    source = open_source(DATASETS[name], root)
    assert (
        source.saliency("train", 0)[0, 0] == 0 and read_manifest(root / PLACES[name] / "saliency_map").options["threshold"] == 128
    )


def test_maps_of_the_training_images_alone(data, said):
    name, root, maps = data
    source = open_source(DATASETS[name], root)
    for test in source.names("test"):
        if name != "folder":  # which split an image belongs to is not known before training there
            (maps / f"{test}.png").unlink()
    status, text = said("saliency", "--root", root, "--data", name, "--maps", maps)
    assert status == 0 and ("are left out" in text) == (name != "folder")
    assert source.without_saliency("train") == []
    first = source.names("train")[0]
    (root / PLACES[name] / "saliency_map").rename(root / "before")
    (maps / f"{first}.png").unlink()
    refused(said, root, "saliency", "--root", root, "--data", name, "--maps", maps, words=[f"lacks {first} (1 in all)"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file, image: image[:-1], ["(64, 63)", "(64, 64)"]),
        (lambda file, image: np.stack([image] * 3, axis=2), ["mode RGB", "grey"]),
        (lambda file, image: image.astype(np.uint16), ["mode I;16", "grey"]),
        (lambda file, image: file.write_bytes(file.read_bytes()[:40]) and None, ["cannot read"]),
    ],
)
def test_maps_that_cannot_be_used(tmp_path, said, spoil, words):
    write("voc", tmp_path / "DATA")
    maps = tmp_path / "maps"
    maps.mkdir()
    source = open_source("voc", tmp_path / "DATA")
    for split in ("train", "test"):
        for i, name in enumerate(source.names(split)):
            put(maps / f"{name}.png", np.zeros(source.label(split, i).shape, dtype=np.uint8))
    file = maps / f"{source.names('train')[0]}.png"
    spoilt = spoil(file, np.array(Image.open(file)))
    if spoilt is not None:
        put(file, spoilt)
    arguments = ("saliency", "--root", tmp_path / "DATA", "--data", "voc", "--maps", maps)
    refused(said, tmp_path / "DATA", *arguments, words=[file.name, *words])
    assert not (tmp_path / "DATA/VOCdevkit/VOC2012/saliency_map").exists()


def test_black_and_white_maps(tmp_path):
    put(tmp_path / "x.jpg", np.zeros((2, 2, 3), dtype=np.uint8))
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / "x.png")
    from cisskit.data.files import Pair

    pair = Pair("x", tmp_path / "x.jpg", tmp_path / "saliency_map/x.png")
    read = saliency._reader(saliency.Target(tmp_path, {}), tmp_path, 1)
    assert read(pair).tolist() == [[True, False], [False, True]]


def test_what_is_asked_for_must_be_said(tmp_path, said):
    write("voc", tmp_path)
    root = tmp_path
    refused(said, root, "saliency", "--root", root, "--data", "voc", words=["--maps FOLDER", "--compute"])
    refused(said, root, "saliency", "--root", root, "--data", "voc", "--maps", root / "no", words=["has no map"])
    refused(said, root, "saliency", "--root", root, "--data", "voc", "--maps", root, "--threshold", 0, words=["1..255"])
    refused(said, root, "saliency", "--root", root, "--data", "voc", "--check", words=["there is no folder", "saliency_map"])
    refused(said, root, "saliency", "--root", root, "--data", "isprs", "--compute", words=["python -m data_prep isprs"])


def test_without_opencv_its_package_is_named(tmp_path, said, monkeypatch):
    write("voc", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    words = ["pip install opencv-contrib-python-headless"]
    refused(said, tmp_path, "saliency", "--root", tmp_path, "--data", "voc", "--compute", words=words)
    monkeypatch.setitem(__import__("sys").modules, "cv2", np)  # some other OpenCV, without saliency
    refused(said, tmp_path, "saliency", "--root", tmp_path, "--data", "voc", "--compute", words=words)


def test_computed_maps(tmp_path, said):
    cv2 = pytest.importorskip("cv2", reason="needs opencv-contrib-python-headless")
    if not hasattr(cv2, "saliency"):
        pytest.skip("this OpenCV is without its contributions; needs opencv-contrib-python-headless")
    write("voc", tmp_path)
    status, text = said("saliency", "--root", tmp_path, "--data", "voc", "--compute")
    assert status == 0 and "opencv StaticSaliencyFineGrained, Otsu" in text
    made = tmp_path / "VOCdevkit/VOC2012/saliency_map"
    assert check_manifest(made, {}).origin == "opencv StaticSaliencyFineGrained, Otsu"
    shares = [(read_saliency(file) > 0).mean() for file in made.glob("*.png")]
    assert len(shares) == 17 and 0.02 < np.mean(shares) < 0.7
