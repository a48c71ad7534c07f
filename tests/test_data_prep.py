"""`data_prep`: fetching, unpacking, manifests and checks, for VOC and ADE20K. The archives are made of the embedded scenes."""

import hashlib
import http.server
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from layouts import write
from PIL import Image

from cisskit.data import open_source
from cisskit.data.files import Pair
from cisskit.data.manifest import check_manifest, read_manifest, write_manifest
from cisskit.errors import KitError
from data_prep import ade20k, download, unpack, voc
from data_prep.__main__ import main
from data_prep.check import each
from data_prep.download import Archive, fetch

NOWHERE = "http://127.0.0.1:9/"  # a port where nobody listens


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch):
    """No network, a cache of its own, and no room for temporary files but beside the data."""
    monkeypatch.setenv("CISSKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(voc, "TRAINVAL", voc.TRAINVAL._replace(url=NOWHERE))
    monkeypatch.setattr(ade20k, "ARCHIVE", ade20k.ARCHIVE._replace(url=NOWHERE))


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def leftovers(folder):
    return [p for p in folder.rglob("*") if p.name.startswith(".data_prep-")]


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder DATA with the three files of VOC."""
    write("voc", tmp_path / "source")
    made = tmp_path / "source/VOCdevkit/VOC2012"
    data = tmp_path / "DATA"
    data.mkdir()
    monkeypatch.setattr(voc, "SIZES", {"train_aug": 12, "train": 12, "val": 5})
    (made / "Annotations").mkdir()
    (made / "Annotations/x.xml").write_text("not needed")
    with zipfile.ZipFile(data / voc.AUGMENTED, "w") as packed:
        packed.writestr("__MACOSX/SegmentationClassAug/._x.png", "junk")
        for file in sorted((made / "SegmentationClassAug").iterdir()):
            packed.write(file, f"SegmentationClassAug/{file.name}")
    (made / "SegmentationClassAug").rename(made / "SegmentationClass")
    (data / voc.NAMES).write_text((made / "ImageSets/Segmentation/train.txt").read_text())
    with tarfile.open(data / voc.TRAINVAL.name, "w") as packed:
        packed.add(tmp_path / "source/VOCdevkit", "VOCdevkit")
    return data


@pytest.fixture
def ade(tmp_path, monkeypatch):
    """A folder DATA with ADE20K's archive."""
    write("ade", tmp_path / "ade")
    data = tmp_path / "DATA"
    data.mkdir(exist_ok=True)
    monkeypatch.setattr(ade20k, "SIZES", {"train": 12, "test": 5})
    monkeypatch.setattr(ade20k, "STEPS", {})
    with zipfile.ZipFile(data / ade20k.ARCHIVE.name, "w") as packed:
        packed.writestr("ADEChallengeData2016/objectInfo150.txt", "not needed")
        packed.writestr("ADEChallengeData2016/images/training/Thumbs.db", "not needed")
        for file in sorted((tmp_path / "ade").rglob("*.*")):
            packed.write(file, file.relative_to(tmp_path / "ade"))
    return data


# --- made, repeated, checked ---


def test_archives_become_vocs_layout(archives, said):
    status, table = said("voc", "--root", archives)
    assert status == 0 and "complete" in table and table.count("\n  ok ") == 6
    made = archives / "VOCdevkit/VOC2012"
    folders = ["ImageSets", "JPEGImages", "SegmentationClass", "SegmentationClassAug", "manifest.json"]
    assert sorted(p.name for p in made.iterdir()) == folders
    assert len(list((made / "SegmentationClassAug").iterdir())) == 17  # and none of the junk of another system
    assert {p.name for p in archives.iterdir()} - {".data_prep.lock"} == {
        "VOCdevkit", voc.TRAINVAL.name, voc.AUGMENTED, voc.NAMES,
    }  # fmt: skip
    source = open_source("voc", archives)
    assert source.describe()["train_list"] == "train_aug" and source.presence("train").any()
    manifest = read_manifest(made)
    assert manifest.origin == voc.TRAINVAL.name and {s: m.images for s, m in manifest.splits.items()} == {
        "train_aug": 12,
        "val": 5,
    }


def test_ades_archive_becomes_its_layout(ade, said):
    status, table = said("ade20k", "--root", ade)
    assert status == 0 and "complete" in table
    made = ade / "ADEChallengeData2016"
    assert sorted(p.name for p in made.iterdir()) == ["annotations", "images", "manifest.json"]
    assert len(open_source("ade", ade).names("test")) == 5 and not list(made.rglob("Thumbs.db"))
    assert said("ade", "--root", made, "--check")[0] == 0  # the name in scenarios, and the folder itself
    assert read_manifest(made).dataset == "ade20k"


@pytest.mark.parametrize("name", ["voc", "ade20k"])
def test_a_second_run_rewrites_nothing(name, request, said):
    data = request.getfixturevalue({"voc": "archives", "ade20k": "ade"}[name])
    assert said(name, "--root", data)[0] == 0
    before = contents(data)
    status, text = said(name, "--root", data)
    assert status == 0 and "exists; it is kept" in text and contents(data) == before


def test_what_a_person_changed_is_kept_and_told(archives, said):
    said("voc", "--root", archives)
    mine = archives / "VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt"
    mine.write_text(mine.read_text().split()[0] + "\n")
    before = contents(archives)
    status, table = said("voc", "--root", archives)
    assert status == 1 and contents(archives) == before
    assert "1 images" in table and "11 fewer than the 12 of the manifest" in table


@pytest.mark.parametrize("name", ["voc", "ade20k"])
def test_what_is_incomplete_gets_no_manifest(name, request, said):
    data = request.getfixturevalue({"voc": "archives", "ade20k": "ade"}[name])
    said(name, "--root", data)
    (manifest,) = data.rglob("manifest.json")
    manifest.unlink()
    next(data.rglob("*.jpg")).unlink()
    status, table = said(name, "--root", data)
    assert status == 1 and "label without image" in table and not manifest.exists()


def test_a_folder_from_elsewhere_is_recorded_as_such(ade, said):
    said("ade20k", "--root", ade)
    (ade / "ADEChallengeData2016/manifest.json").unlink()
    assert said("ade20k", "--root", ade)[0] == 0 and read_manifest(ade / "ADEChallengeData2016").origin == "found in place"


def test_labels_that_arrive_later_are_recorded(archives, said):
    later = (archives / voc.AUGMENTED).rename(archives / "later")
    (archives / voc.NAMES).rename(archives / "names")
    assert said("voc", "--root", archives)[0] == 0
    made = archives / "VOCdevkit/VOC2012"
    assert read_manifest(made).options == {"labels": "SegmentationClass"} and "train" in read_manifest(made).splits
    later.rename(archives / voc.AUGMENTED)
    (archives / "names").rename(archives / voc.NAMES)
    assert said("voc", "--root", archives)[0] == 0
    assert read_manifest(made).options == {"labels": "SegmentationClassAug"} and "train_aug" in read_manifest(made).splits


def test_check_writes_nothing_and_finds_every_fault(archives, tmp_path, said):
    said("voc", "--root", archives)
    made = archives / "VOCdevkit/VOC2012"
    names = (made / "ImageSets/Segmentation/train_aug.txt").read_text().split()
    Image.fromarray(np.ones((41, 30), dtype=np.uint8)).save(made / f"SegmentationClassAug/{names[1]}.png")
    jpeg = made / f"JPEGImages/{names[2]}.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:400])
    (made / f"JPEGImages/{names[4]}.jpg").unlink()
    before = contents(archives)
    status, table = said("voc", "--root", archives, "--check")
    assert status == 1 and contents(archives) == before and not (tmp_path / "cache").exists()
    assert f"label without image: {names[4]} (1 in all)" in table
    assert f"{names[1]}: image 48 x 64, label 30 x 41" in table and f"{names[2]}.jpg" in table
    assert "not as expected: pairs, images, manifest" in table and "Only the number" not in table


def test_check_compares_contents_with_the_manifest(ade, said):
    said("ade20k", "--root", ade)
    made = ade / "ADEChallengeData2016"
    label = next((made / "annotations/training").iterdir())
    size, pixels = label.stat().st_size, np.array(Image.open(label))
    for value in range(1, 150):  # another label of the same size, which only its contents give away
        Image.fromarray(np.where(pixels == pixels.max(), value, pixels)).save(label)
        if label.stat().st_size == size and value != pixels.max():
            break
    assert label.stat().st_size == size
    check_manifest(made, ade20k.pairs_of(made))
    status, table = said("ade20k", "--root", ade, "--check")
    assert status == 1 and "train has labels of other contents" in table and "not as expected: manifest" in table


def test_a_part_of_a_data_set_is_fine_but_not_comparable(ade, said, monkeypatch):
    monkeypatch.setattr(ade20k, "SIZES", {"train": 20210, "test": 2000})
    monkeypatch.setattr(ade20k, "STEPS", {("100-50", "overlap"): (20192, 9390)})
    status, table = said("ade20k", "--root", ade)
    assert status == 1 and "DIFFERS" in table and "Only the number of images differs" in table
    assert "20192, 9390" in table and "not compared: 12 of 20210 training images" in table


def test_step_counts_are_compared_when_all_images_are_there(ade, said, monkeypatch):
    said("ade20k", "--root", ade)
    presence = open_source("ade", ade).presence("train")
    counts = [int(presence[:, 1:101].any(axis=1).sum()), int(presence[:, 101:151].any(axis=1).sum())]
    monkeypatch.setattr(ade20k, "STEPS", {("100-50", "overlap"): tuple(counts)})
    assert said("ade20k", "--root", ade, "--check")[0] == 0
    monkeypatch.setattr(ade20k, "STEPS", {("100-50", "overlap"): (counts[0], counts[1] + 1), ("100-5", "overlap"): (1,)})
    status, table = said("ade20k", "--root", ade, "--check")
    assert status == 1 and f"{counts[0]}, {counts[1]}\n" in table and "not as expected: 100-50 overlap, 100-5 overlap" in table
    assert "no training image" in table  # of the classes 101..105: told in the table, not the end of it


def test_published_steps_are_those_of_the_protocol():
    tasks = {f"{task} {setting}": len(counts) for (task, setting), counts in ade20k.STEPS.items()}
    assert tasks == {
        "100-50 overlap": 2, "100-50 disjoint": 2, "100-10 overlap": 6, "100-10 disjoint": 6, "100-5 overlap": 11,
        "100-5 disjoint": 11, "50-50 overlap": 3, "50-50 disjoint": 3, "50-20 overlap": 6,
    }  # fmt: skip
    for (_, setting), counts in ade20k.STEPS.items():
        assert setting == "overlap" or sum(counts) == 20196  # every image that shows a class, once


def test_without_archives_the_files_are_named(tmp_path, said):
    status, text = said("voc", "--root", tmp_path)
    assert status == 1 and "Traceback" not in text
    assert all(word in text for word in (voc.TRAINVAL.name, voc.AUGMENTED, voc.NAMES, "host.robots.ox.ac.uk", str(tmp_path)))
    status, text = said("voc", "--root", tmp_path, "--check")
    assert status == 1 and "looked for" in text
    status, text = said("voc", "--root", tmp_path / "typo")
    assert status == 1 and "does not exist" in text
    assert [p.name for p in tmp_path.iterdir() if p.name != ".data_prep.lock"] == []


@pytest.mark.parametrize("name", ["voc", "ade20k", "isprs", "camvid", "folder"])
def test_an_empty_folder_is_explained(tmp_path, said, name):
    (tmp_path / "data").mkdir()
    for check in ([], ["--check"]):
        status, text = said(name, "--root", tmp_path / "data", *check)
        assert status == 1 and str(tmp_path / "data") in text and "Traceback" not in text


def test_a_list_of_missing_files_and_a_name_twice(archives, said):
    said("voc", "--root", archives)
    made = archives / "VOCdevkit/VOC2012"
    listed = made / "ImageSets/Segmentation/train_aug.txt"
    names = listed.read_text()
    listed.write_text(names + "nobody\n")
    table = said("voc", "--root", archives, "--check")[1]
    assert "listed, but neither image nor label: nobody (1 in all)" in table and "13 images" in table
    listed.write_text(names + names.split()[0])
    table = said("voc", "--root", archives, "--check")[1]
    assert f"lists images twice: {names.split()[0]} (1 in all)" in table


def test_two_images_of_one_name(ade, said):
    said("ade20k", "--root", ade)
    image = next((ade / "ADEChallengeData2016/images/training").iterdir())
    image.with_suffix(".jpeg").write_bytes(image.read_bytes())
    status, text = said("ade20k", "--root", ade, "--check")
    assert status == 1 and f"{image.stem}.jpeg, {image.name}" in text and "several images of one name" in text


def test_two_runs_do_not_work_in_one_folder(archives, said):
    from filelock import FileLock

    with FileLock(archives / ".data_prep.lock"):
        status, text = said("voc", "--root", archives)
    assert status == 1 and "another data_prep is at work" in text and not (archives / "VOCdevkit").exists()
    assert said("voc", "--root", archives)[0] == 0
    (archives / ".data_prep.lock").unlink(missing_ok=True)
    (archives / ".data_prep.lock").mkdir()  # as in a folder that cannot be written; root may write everywhere
    status, text = said("voc", "--root", archives)
    assert status == 1 and "cannot write in" in text and said("voc", "--root", archives, "--check")[0] == 0


def test_work_on_many_files_stops_at_the_first_error():
    done = []

    def work(i):
        if i == 3:
            raise KitError("the third")
        time.sleep(0.01)
        done.append(i)

    with pytest.raises(KitError, match="the third"):
        each(work, range(500), "")
    assert len(done) < 100


# --- archives of strangers ---


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/tmp/outside.txt", "VOCdevkit/VOC2012/ImageSets/Segmentation/../../../../../x.txt"]
)
def test_tars_that_reach_outside_are_refused(archives, tmp_path, name, said):
    with tarfile.open(archives / voc.TRAINVAL.name, "a") as packed:
        member = tarfile.TarInfo(name)
        member.size = 3
        packed.addfile(member, io.BytesIO(b"bad"))
    before = {*tmp_path.rglob("*"), archives / ".data_prep.lock"}
    status, text = said("voc", "--root", archives)
    if name.startswith("/"):  # the filter strips a leading slash: harmless, and not one of the wanted folders
        assert status == 0 and not os.path.exists(name)
    else:
        assert status == 1 and voc.TRAINVAL.name in text and "was not unpacked" in text
        assert {*tmp_path.rglob("*"), archives / ".data_prep.lock"} == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_out_of_a_tar_are_refused(archives, tmp_path, kind, said):
    with tarfile.open(archives / voc.TRAINVAL.name, "a") as packed:
        member = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/a.jpg")
        member.type, member.linkname = kind, "../../../../outside"
        packed.addfile(member)
    assert said("voc", "--root", archives)[0] == 1
    assert not (archives / "VOCdevkit").exists() and not leftovers(tmp_path)


def link(name):
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("SegmentationClassAug/../../../x.png", "reaches outside"),
        ("/SegmentationClassAug/x.png", "reaches outside"),
        ("..\\SegmentationClassAug\\x.png", "reaches outside"),
        ("C:\\SegmentationClassAug\\x.png", "reaches outside"),
        ("C:SegmentationClassAug/x.png", "reaches outside"),
        (link("SegmentationClassAug/x.png"), "is a link"),
        ("other/SegmentationClassAug/scene.png", "would be one file"),
    ],
)
def test_zips_that_reach_outside_are_refused(archives, tmp_path, said, member, words):
    with zipfile.ZipFile(archives / voc.AUGMENTED, "a") as packed:
        packed.writestr("SegmentationClassAug/scene.png", "good")
        packed.writestr(member, "../../../../outside")
    outside = {p for p in tmp_path.rglob("*") if archives not in p.parents}
    status, text = said("voc", "--root", archives)
    assert status == 1 and words in text and voc.AUGMENTED in text
    assert not (archives / "VOCdevkit/VOC2012/SegmentationClassAug").exists() and not leftovers(tmp_path)
    assert {p for p in tmp_path.rglob("*") if archives not in p.parents} == outside


def test_archives_that_fill_the_disk_are_refused(archives, tmp_path, said, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("SegmentationClassAug/x.png", bytes(10**7))
    assert (tmp_path / "bomb.zip").stat().st_size < 20_000
    monkeypatch.setattr(unpack, "LARGEST", 10**6)
    (archives / voc.AUGMENTED).write_bytes((tmp_path / "bomb.zip").read_bytes())
    status, text = said("voc", "--root", archives)
    assert status == 1 and "10000000 bytes, 1000000 are the limit" in text and not leftovers(tmp_path)
    monkeypatch.setattr(unpack, "LARGEST", 10**4)
    (tmp_path / "again").mkdir()
    (archives / voc.TRAINVAL.name).rename(tmp_path / "again" / voc.TRAINVAL.name)
    assert "10000 are the limit" in said("voc", "--root", tmp_path / "again")[1]


def test_a_zip_that_lies_about_its_size_writes_no_more_than_it_says(tmp_path):
    file = tmp_path / "liar.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x.png", bytes(10**6))
    file.write_bytes(file.read_bytes().replace((10**6).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(KitError, match="cannot unpack"):
        unpack.unzip(file, tmp_path / "out", lambda path: path)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) <= 1000


@pytest.mark.parametrize("cut", [3000, 0])
def test_a_truncated_archive_leaves_nothing(archives, tmp_path, said, cut):
    tar = archives / voc.TRAINVAL.name
    tar.write_bytes(tar.read_bytes()[:cut])
    before = {*tmp_path.rglob("*"), archives / ".data_prep.lock"}
    status, text = said("voc", "--root", archives)
    assert status == 1 and "cannot unpack" in text and {*tmp_path.rglob("*"), archives / ".data_prep.lock"} == before


def test_another_archive_under_the_right_name(archives, ade, said):
    with tarfile.open(archives / voc.TRAINVAL.name, "w") as packed:
        packed.addfile(tarfile.TarInfo("VOCdevkit/VOC2007/JPEGImages/a.jpg"))
    assert "another archive" in said("voc", "--root", archives)[1]
    with zipfile.ZipFile(ade / ade20k.ARCHIVE.name, "w") as packed:
        packed.writestr("ADE20K_2016_07_26/images/a.jpg", "")
    assert "another archive" in said("ade20k", "--root", ade)[1]
    assert not leftovers(ade)


# --- killed ---

KILLED = """
import sys, time
import data_prep.{module} as module
from data_prep.__main__ import main
{patch}
sys.exit(main([{name!r}, "--root", {root!r}]))
"""


def kill_when(ready, root, name, patch):
    """Start ``data_prep`` in a process of its own and kill it as soon as ``ready`` says so."""
    code = KILLED.format(module=name, name=name, root=str(root), patch=patch)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not ready():
            assert process.poll() is None and time.monotonic() < end, "it ended before it was killed"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_while_unpacking(ade, said):
    slow = "module.move = lambda *a: time.sleep(100)"
    kill_when(lambda: any(p.suffix == ".png" for p in ade.rglob("*")), ade, "ade20k", slow)
    assert leftovers(ade) and not (ade / "ADEChallengeData2016").exists()
    (ade / ".data_prep-of-mine").mkdir()
    (ade / "data_prep-mine").mkdir()
    assert said("ade20k", "--root", ade)[0] == 0
    assert not leftovers(ade) and (ade / "data_prep-mine").exists() and (ade / "ADEChallengeData2016/manifest.json").is_file()


@pytest.mark.parametrize("at", ["move", "write_manifest", "unzip"])
def test_an_error_in_the_middle(archives, said, monkeypatch, at):
    """After the first, and with the second thing that is done, whatever that is: the next run ends as if nothing had been."""
    real, calls = getattr(voc, at), []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == (2 if at == "move" else 1):
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(voc, at, fails)
    if at == "write_manifest":
        with pytest.raises(OSError):
            main(["voc", "--root", str(archives)])
    else:
        assert "No space left" in said("voc", "--root", archives)[1]
    assert not leftovers(archives) and not (archives / "VOCdevkit/VOC2012/manifest.json").exists()
    monkeypatch.setattr(voc, at, real)
    assert said("voc", "--root", archives)[0] == 0


# --- downloads ---

DATA = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


class Server(http.server.ThreadingHTTPServer):
    """Serves `DATA`. ranges: what was asked for. stop: bytes after which the connection is cut, or waits for ``go_on``."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.stop, self.honest, self.shift, self.total, self.go_on = [], None, True, 0, len(DATA), None
        self.url = f"http://127.0.0.1:{self.server_port}/file"

    def handle_error(self, *_):
        pass  # clients that are killed


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.honest else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(server.total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{server.total - 1}/{server.total}")
        self.end_headers()
        end = len(DATA) if server.stop is None else server.stop
        self.wfile.write(DATA[start:end])
        if server.stop is not None and server.go_on is not None:
            server.go_on.wait(60)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        if server.go_on:
            server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server():
    with serving() as one:
        yield one


def archive(server, digest=None, size=None):
    return Archive("file.tar", server.url, size or len(DATA), digest or f"sha256:{hashlib.sha256(DATA).hexdigest()}")


def test_a_file_is_fetched_once(server, tmp_path, capsys):
    assert fetch(archive(server), tmp_path).read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["file.tar"] and server.url in capsys.readouterr().out
    (tmp_path / "file.tar").write_bytes(b"mine")
    assert fetch(archive(server), tmp_path).read_bytes() == b"mine" and server.ranges == [None]


def test_a_broken_connection_is_continued_where_it_ended(server, tmp_path):
    for stop in (1_000_000, 2_500_000):
        server.stop = stop
        with pytest.raises(KitError, match=f"ended after {stop} of 3000000 bytes. Run the same command again, it continues"):
            fetch(archive(server), tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["file.tar.part"]
    server.stop = None
    assert fetch(archive(server), tmp_path).read_bytes() == DATA
    assert server.ranges == [None, "bytes=1000000-", "bytes=2500000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["file.tar"]


def test_killed_while_fetching(server, tmp_path):
    server.stop, server.go_on = 1_500_000, threading.Event()
    part = tmp_path / "file.tar.part"
    patch = f"module.TRAINVAL = module.TRAINVAL._replace(name='file.tar', url={server.url!r}, size={len(DATA)})"
    kill_when(lambda: part.is_file() and part.stat().st_size > 1_000_000, tmp_path, "voc", patch)
    there = part.stat().st_size
    server.stop = None
    server.go_on.set()
    assert fetch(archive(server), tmp_path).read_bytes() == DATA and server.ranges == [None, f"bytes={there}-"]


def test_a_complete_part_is_only_verified(server, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(DATA)
    assert fetch(archive(server), tmp_path).read_bytes() == DATA and server.ranges == []


def test_a_server_that_sends_another_part(server, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(DATA[:1000])
    server.shift = -500
    with pytest.raises(KitError, match="byte 1000 was asked for, the server sent bytes 500-2999999/3000000"):
        fetch(archive(server), tmp_path)
    assert (tmp_path / "file.tar.part").read_bytes() == DATA[:1000]


@pytest.mark.parametrize("part", [1000, 4_000_000])
def test_a_server_that_cannot_continue_and_a_part_that_is_too_long(server, tmp_path, part):
    server.honest = part > len(DATA)
    (tmp_path / "file.tar.part").write_bytes(bytes(part))
    assert fetch(archive(server), tmp_path).read_bytes() == DATA
    assert server.ranges == ["bytes=1000-" if part == 1000 else None]


def test_another_file_is_refused_with_both_digests(server, tmp_path):
    expected = "0" * 64
    with pytest.raises(KitError) as caught:
        fetch(archive(server, f"sha256:{expected}"), tmp_path)
    text = str(caught.value)
    assert expected in text and hashlib.sha256(DATA).hexdigest() in text and "again" in text
    assert [p.name for p in tmp_path.iterdir()] == ["file.tar.wrong"]
    assert fetch(archive(server), tmp_path).read_bytes() == DATA and server.ranges == [None, None]  # from the start


@pytest.mark.parametrize("start", [0, 1000])
def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, tmp_path, start):
    if start:
        (tmp_path / "file.tar.part").write_bytes(DATA[:start])
    with pytest.raises(KitError, match="offers 3000000 bytes, 3000001 are expected"):
        fetch(archive(server, size=3_000_001), tmp_path)
    assert [p.stat().st_size for p in tmp_path.iterdir()] == ([start] if start else [])


def test_a_server_that_is_silent_or_not_there(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.stop, server.go_on = 0, threading.Event()
    with pytest.raises(KitError, match="timed out"):
        fetch(archive(server), tmp_path)
    with pytest.raises(KitError, match=r"cannot fetch http://127.0.0.1:9/: .*put it to .*file.tar"):
        fetch(archive(server)._replace(url=NOWHERE), tmp_path)
    with pytest.raises(KitError, match="needs 3000000 bytes, .* has 7 left"), monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 7}))
        fetch(archive(server), tmp_path)


def test_the_whole_way_from_the_address_to_the_layout(archives, server, said, monkeypatch):
    packed = (archives / voc.TRAINVAL.name).read_bytes()
    (archives / voc.TRAINVAL.name).unlink()
    monkeypatch.setattr(sys.modules[__name__], "DATA", packed)
    server.total = len(packed)
    digest = "md5:" + hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(voc, "TRAINVAL", Archive(voc.TRAINVAL.name, server.url, len(packed), digest))
    assert said("voc", "--root", archives)[0] == 0 and (archives / voc.TRAINVAL.name).read_bytes() == packed
    assert said("voc", "--root", archives)[0] == 0 and server.ranges == [None]


def test_published_archives_have_address_size_and_digest():
    for one in (voc.TRAINVAL._replace(url="http://x"), ade20k.ARCHIVE):
        algorithm, _, digest = one.digest.partition(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size and one.size > 9e8 and one.url.startswith("http")


# --- the manifest ---


@pytest.fixture
def pairs(tmp_path):
    made = []
    for name in "abc":
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.png").write_bytes(f"{kind} {name}".encode())
        made.append(Pair(name, tmp_path / "images" / f"{name}.png", tmp_path / "labels" / f"{name}.png"))
    return made


def test_a_manifest_is_written_whole_and_read_back(tmp_path, pairs):
    assert read_manifest(tmp_path) is None and check_manifest(tmp_path, {"train": pairs}) is None
    written = write_manifest(tmp_path, "isprs", {"tile": 512}, {"train": pairs[:2], "test": pairs[2:]}, "tiles")
    assert read_manifest(tmp_path) == written
    assert (
        check_manifest(tmp_path, {"train": pairs[1::-1], "test": pairs[2:], "mine": pairs}, contents=True) == written
    )  # any order
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert stored["format"] == 1 and stored["splits"]["train"]["images"] == 2 and stored["options"] == {"tile": 512}
    assert str(tmp_path) not in (tmp_path / "manifest.json").read_text()


def renamed(pair):
    return pair._replace(label=pair.label.rename(pair.label.with_name("other.png")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pairs: pairs[:2], "train has 2 images, 1 fewer than the 3 of the manifest"),
        (lambda pairs: [*pairs, pairs[0]], "train has 4 images, 1 more than the 3 of the manifest"),
        (lambda pairs: pairs[1].label.unlink() or pairs, "train lacks files: "),
        (lambda pairs: pairs[1].image.write_bytes(b"other") and pairs, "names or sizes of files have changed"),
        (lambda pairs: [pairs[0], renamed(pairs[1]), pairs[2]], "names or sizes of files have changed"),
    ],
)  # fmt: skip
def test_a_folder_that_has_changed_is_noticed(tmp_path, pairs, change, words):
    write_manifest(tmp_path, "isprs", {}, {"train": pairs}, "tiles")
    with pytest.raises(KitError) as caught:
        check_manifest(tmp_path, {"train": change(pairs)})
    text = str(caught.value)
    assert words in text and "python -m data_prep isprs" in text and str(tmp_path) in text


def test_changed_contents_of_one_size_are_noticed_by_reading(tmp_path, pairs):
    write_manifest(tmp_path, "isprs", {}, {"train": pairs}, "tiles")
    pairs[0].label.write_bytes(b"labels A")
    check_manifest(tmp_path, {"train": pairs})
    with pytest.raises(KitError, match="labels of other contents"):
        check_manifest(tmp_path, {"train": pairs}, contents=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 2, "kit": "9.0"}', ["format 2", "cisskit 9.0", "Update"]),
        ('{"format": 1, "kit": "0.1.0"}', ["is damaged", "python -m data_prep"]),
        ('{"format": 1, "ki', ["is damaged", "Delete it"]),
        ("[]", ["is damaged"]),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(KitError) as caught:
        read_manifest(tmp_path)
    assert all(word in str(caught.value) for word in [*words, str(tmp_path / "manifest.json")])


def test_no_manifest_of_files_that_are_not_there(tmp_path, pairs):
    pairs[2].image.unlink()
    with pytest.raises(KitError, match="train lacks files"):
        write_manifest(tmp_path, "isprs", {}, {"train": pairs}, "tiles")
    assert not (tmp_path / "manifest.json").exists()
