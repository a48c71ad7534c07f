"""Small data sets in official layouts, made of the embedded scenes."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from cisskit.data import open_source
from cisskit.data.scenes import scenes

COUNTS = {"train": 12, "test": 5}
SIZES = ((64, 64), (64, 48), (40, 64))
"""Height and width of every third image."""

# file value of each label 0..9 of the scenes; two label pixels in the corner become "odd", a value of that data set's own
VALUES = {
    "voc": [*range(10)],
    "ade": [0, 1, 2, 3, 4, 5, 6, 7, 8, 150],
    "isprs": [1, 1, 2, 3, 4, 5, 1, 2, 3, 6],
    "camvid": [10, *range(9)],
    "folder": [*range(10)],
}
ODD = {"voc": 255, "ade": 0, "isprs": 0, "camvid": 11, "folder": 255}
LAYOUTS = ("voc", "ade", "isprs", "isprs mmsegmentation", "camvid", "folder", "folder split")


def places(layout, split, site="potsdam"):
    """Folders of images, labels and saliency maps of a split, below the root, and the images' extension."""
    inside = {
        "voc": ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClassAug", "VOCdevkit/VOC2012/saliency_map"),
        "ade": tuple(
            f"ADEChallengeData2016/{kind}/{dict(train='training', test='validation')[split]}"
            for kind in ("images", "annotations", "saliency_map")
        ),
        "isprs": tuple(f"isprs/{site}/{kind}/{split}" for kind in ("images", "labels", "saliency_map")),
        "isprs mmsegmentation": tuple(
            f"{site}/{kind}/{dict(train='train', test='val')[split]}" for kind in ("img_dir", "ann_dir", "saliency_map")
        ),
        "camvid": (f"CamVid/{split}", f"CamVid/{split}annot", f"CamVid/saliency_map/{split}"),
        "folder": ("images", "labels", "saliency_map"),
        "folder split": (f"images/{split}", f"labels/{split}", f"saliency_map/{split}"),
    }
    return inside[layout], "png" if layout.startswith(("isprs", "camvid")) else "jpg"


def label_of(layout, scene_label):
    """What the label file holds for a label (H, W) of the scenes."""
    name = layout.split()[0]
    label = np.array(VALUES[name], dtype=np.uint8)[scene_label]
    label[0, :2] = ODD[name]
    return label


def write(layout, root, counts=COUNTS, site="potsdam", saliency=False, seed=0):
    """Make a data set at ``root``; returns the names of each split."""
    root.mkdir(parents=True, exist_ok=True)
    names = {}
    for number, (split, count) in enumerate(counts.items()):
        (images, labels, maps), extension = places(layout, split, site)
        for folder in (images, labels, *([maps] if saliency else [])):
            (root / folder).mkdir(parents=True, exist_ok=True)
        names[split] = [f"{site}_{number}_{k:03d}" for k in range(count)]
        pictures, truth = scenes(seed, split, count)
        for k, name in enumerate(names[split]):
            height, width = SIZES[k % len(SIZES)]
            label = label_of(layout, truth[k, :height, :width])
            Image.fromarray(pictures[k, :height, :width]).save(root / images / f"{name}.{extension}")
            Image.fromarray(label).save(root / labels / f"{name}.png")
            if saliency:
                salient = np.where(is_object(layout, label), 255, 0).astype(np.uint8)
                Image.fromarray(salient).save(root / maps / f"{name}.png")
    if layout == "voc":
        lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        for split, file in (("train", "train"), ("test", "val")):
            (lists / f"{file}.txt").write_text("\n".join(names[split]) + "\n")
    if layout.startswith("folder"):
        (root / "classes.txt").write_text("\n".join(["background", *(f"thing {k} {20 * k} 0 99" for k in range(1, 10))]) + "\n")
    return names


def is_object(layout, label):
    """Where a label file shows some class of a scenario."""
    if layout.startswith("isprs"):
        return (label >= 1) & (label <= 5)
    if layout == "camvid":
        return label <= 10
    return (label > 0) & (label < 255)


def opened(layout, root, **options):
    return open_source(layout.split()[0], root, **options)


def unpacked(shared, name, folder):
    """A real sample, unpacked into ``folder`` unless it is there; skips without it."""
    archive = shared / "data" / "real" / f"{name}.tar.gz"
    if not archive.is_file():
        pytest.skip(f"needs {name}.tar.gz: {archive} is not there")
    if not folder.exists():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return folder
