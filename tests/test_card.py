"""The data card: numbers by hand, files and pictures of every kind of data set."""

import json

import numpy as np
import pandas as pd
import pytest
from layouts import opened, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cisskit.data import Toy, open_source
from cisskit.data.card import card
from cisskit.errors import KitError
from cisskit.views.card import describe, examples, figure_classes, figure_samples, figure_sizes, figure_together, summary


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CISSKIT_CACHE", str(tmp_path / "cache"))


FILES = ["card.json", "classes.csv", "samples.png", "classes.png", "together.png", "sizes.png"]


def by_hand(root, background=False):
    """Two training images and one for tests; classes a, b, c (and a background before them)."""
    labels = {
        "train/x": [[0, 0, 1, 1], [0, 0, 1, 255]],
        "train/y": [[1, 1], [1, 1], [1, 1]],
        "test/z": [[2, 2, 255, 255], [2, 0, 0, 0]],
    }
    for name, rows in labels.items():
        label = np.array(rows, dtype=np.uint8)
        for kind, content in (("labels", label), ("images", np.repeat(label[..., None], 3, axis=2))):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / kind / f"{name}.png")
    (root / "classes.txt").write_text("background\na\nb" if background else "a\nb\nc")
    return open_source("folder", root)


def test_numbers_by_hand(tmp_path):
    numbers = card(by_hand(tmp_path))
    train, test = numbers["splits"]["train"], numbers["splits"]["test"]
    assert numbers["dataset"] == "folder" and numbers["source"] == {"split": "folders"}
    assert numbers["classes"] == ["", "a", "b", "c"]
    assert train["images"] == 2 and train["sizes"] == [[2, 3, 1], [4, 2, 1]]  # width, height, images
    assert train["images_per_class"] == [0, 1, 2, 0] and train["pixels_per_class"] == [0, 4, 9, 0]
    assert train["void_share"] == 1 / 14 and test["void_share"] == 2 / 8
    assert train["together"] == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert test["images_per_class"] == [0, 1, 0, 1] and test["together"] == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]
    assert json.loads(json.dumps(numbers)) == numbers


def test_a_background_is_counted_and_shares_no_image(tmp_path):
    numbers = card(by_hand(tmp_path, background=True))
    train = numbers["splits"]["train"]
    assert numbers["classes"] == ["background", "a", "b"] and train["pixels_per_class"] == [4, 9, 0]
    assert train["images_per_class"] == [1, 2, 0] and train["together"] == [[2, 0], [0, 0]]


def test_the_published_lists_do_not_shift_the_card(tmp_path):
    write("isprs", tmp_path)
    clean, compat = (card(open_source(name, tmp_path))["splits"]["train"] for name in ("isprs", "isprs_compat"))
    assert compat["images_per_class"][1:] == clean["images_per_class"][2:]  # building .. car


def test_summary_says_what_is_empty(tmp_path):
    text = summary(card(by_hand(tmp_path)))
    assert "train: 2 images, 2 sizes, 1 of 2 x 3, 7.14% void" in text and "no image shows c (1 in all)" in text
    assert "test: 1 images, all 4 x 2, 25.00% void" in text
    rows = [line.split() for line in text.splitlines()[-3:]]
    assert rows[1] == ["2", "b", "2", "69.23%", "0", "0.00%"]


def test_the_scenes_need_no_root(tmp_path):
    text = describe("toy", out=tmp_path / "card", options={"train": 30, "heldout": 4, "test": 6})
    assert "train: 30 images, all 64 x 64" in text and text.endswith(f"in {tmp_path / 'card'}")
    assert sorted(p.name for p in (tmp_path / "card").iterdir()) == sorted(FILES)
    assert describe("toy", options={"train": 30, "heldout": 4, "test": 6}) == text.split("\n\nwritten")[0]
    with pytest.raises(KitError, match="needs the folder of its files"):
        describe("voc")


@pytest.mark.parametrize("layout", ["voc", "folder"])
def test_a_card_from_files(layout, tmp_path):
    write(layout, tmp_path / "data")
    describe(layout.split()[0], tmp_path / "data", tmp_path / "card")
    numbers = json.loads((tmp_path / "card/card.json").read_text())
    assert numbers == card(opened(layout, tmp_path / "data")) and str(tmp_path) not in json.dumps(numbers)
    table = pd.read_csv(tmp_path / "card/classes.csv", keep_default_na=False)
    train = numbers["splits"]["train"]
    first = table["id"][0]
    assert first == (0 if numbers["classes"][0] else 1) and table["class"].tolist() == numbers["classes"][first:]
    assert table["train_images"].tolist() == train["images_per_class"][first:]
    for name in FILES[2:]:
        with Image.open(tmp_path / "card" / name) as image:
            assert len(np.unique(np.array(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20  # something is drawn


def test_a_site_without_test_images_gets_a_card(tmp_path):
    write("isprs mmsegmentation", tmp_path / "data", counts={"train": 5})
    describe("isprs", tmp_path / "data", tmp_path / "card")
    assert list(json.loads((tmp_path / "card/card.json").read_text())["splits"]) == ["train"]


def test_examples_show_as_many_classes_as_possible():
    presence = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    assert examples(presence, 2) == [0, 2]
    assert sorted(examples(presence, 12)) == [0, 1, 2, 3, 4]  # the class that nothing shows delays nobody


def texts_inside(fig):
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    drawn = fig.get_tightbbox(canvas.get_renderer())  # inches
    width, height = fig.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height, drawn


@pytest.mark.parametrize("layout", ["toy", "ade"])
def test_axes_are_labelled_and_no_text_is_cut(layout, tmp_path):
    if layout != "toy":
        write(layout, tmp_path, counts={"train": 14, "test": 3})
    source = Toy(train=20, heldout=2, test=3) if layout == "toy" else opened(layout, tmp_path)
    numbers = card(source)
    for made in (figure_classes(numbers, source.palette), figure_together(numbers), figure_sizes(numbers)):
        texts_inside(made)
        assert all(ax.get_xlabel() or ax.get_label() == "<colorbar>" for ax in made.axes) and made.get_suptitle()
        assert made.axes[0].get_ylabel() or [t.get_text() for t in made.axes[0].get_yticklabels()] == numbers["classes"]
    sheet = figure_samples(source, numbers)
    texts_inside(sheet)
    assert sum(bool(ax.images) for ax in sheet.axes) == 12
