"""The page over a folder of runs: what is drawn once, what happens to folders that are not whole, and that a click works."""

import json
import re
import shutil
import warnings

import pytest
from PIL import Image

from cisskit import dashboard
from cisskit.cli import main
from cisskit.errors import KitError
from cisskit.train import begin, evaluate, fit

TINY = {"data_options": {"train": 24, "heldout": 4, "test": 8}, "overrides": {"epochs": 1, "batch_size": 8}, "device": "cpu"}


def train(runs, methods):
    for method in methods:
        for step in (0, 1):
            ctx = begin("toy-5-2", method, step, runs=runs, **TINY)
            fit(ctx, bar=False)
            evaluate(ctx)


def make(runs, methods):
    """The page over two steps of these methods."""
    train(runs, methods)
    return dashboard.build(runs, say=lambda text: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two steps of ft and mbs; copy it, do not write into it."""
    runs = tmp_path_factory.mktemp("runs")
    train(runs, ["ft", "mbs"])
    return runs


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r"^const DATA = (.*);$", text, re.MULTILINE)[1])


def test_every_finished_step_is_on_the_page(runs):
    page = dashboard.build(runs, say=lambda text: None)
    text, data = page.read_text(encoding="utf-8"), data_of(page)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|fetch\(""", text), "nothing comes from elsewhere"
    (scene,) = data["scenes"].values()
    assert set(scene["runs"]) == {"ft/0/0", "ft/0/1", "mbs/0/0", "mbs/0/1"}
    assert [m["title"] for m in scene["methods"]] == ["FT", "MBS"] and scene["steps"] == [[1, 2, 3, 4, 5], [6, 7], [8, 9]]
    for panel in scene["runs"].values():
        names = [name for part in ("images", "training") for each in panel[part] for key, name in each.items() if key != "name"]
        assert len(panel["images"]) == 6 and len(panel["training"]) == 4 and panel["note"] == ""
        assert all((page.parent / panel["path"] / name).is_file() for name in names)
    one, other = scene["runs"]["ft/0/1"], scene["runs"]["mbs/0/1"]
    assert one["pseudo"] is None and 0 <= other["pseudo"]["coverage"] <= 1 and one["old_pixels"].keys() == {
        "right", "forgotten", "taken over", "mixed up"
    }  # fmt: skip
    assert [i["name"] for i in one["images"]] == [i["name"] for i in other["images"]], "all methods show the same images"
    told = [(page.parent / panel["path"] / panel["training"][0]["told"]).read_bytes() for panel in (one, other)]
    assert told[0] == told[1]
    with Image.open(page.parent / one["path"] / one["images"][0]["said"]) as mask:
        assert mask.mode == "P" and mask.size == (64, 64)
        assert mask.getpalette()[3:6] == one["palette"][1]


def test_pictures_are_drawn_once(runs, monkeypatch):
    page = dashboard.build(runs, say=lambda text: None)
    said, restored = [], []
    monkeypatch.setattr(dashboard, "restore", lambda *args, **kwargs: restored.append(args))
    assert dashboard.build(runs, say=said.append) == page and not said and not restored
    monkeypatch.undo()
    step = runs / "dashboard/toy-5-2-overlap/ft/seed0/step1"
    (step / "panel.json").write_text("{", encoding="utf-8")  # half written by a process that was killed
    dashboard.build(runs, say=said.append)
    assert len(said) == 1 and "ft/seed0/step1" in said[0]
    metrics = runs / "toy-5-2-overlap/mbs/seed0/step1/metrics.json"
    metrics.write_text(metrics.read_text().replace('"test_images": 8', '"test_images": 9'))  # run again
    dashboard.build(runs, say=said.append)
    assert len(said) == 2 and "mbs/seed0/step1" in said[1]


def test_what_is_not_whole_is_told(runs):
    with pytest.raises(KitError, match="no finished run under .*cisskit demo"):
        dashboard.build(runs / "nothing")
    folder = runs / "toy-5-2-overlap"
    (folder / "mbs/seed0/step1/metrics.json").unlink()  # unfinished
    (folder / "ft/seed0/step1/model.safetensors").write_bytes(b"half")
    (folder / "ft/seed9/step0").mkdir(parents=True)
    (folder / "ft/seed9/step0/config.json").write_text("{}")
    with pytest.warns(UserWarning, match="left out: .*seed9/step0 is not a run folder"):
        page = dashboard.build(runs, say=lambda text: None)
    (scene,) = data_of(page)["scenes"].values()
    assert set(scene["runs"]) == {"ft/0/0", "ft/0/1", "mbs/0/0"}
    damaged = scene["runs"]["ft/0/1"]
    assert "model.safetensors is damaged" in damaged["note"] and damaged["images"] == [] and damaged["iou"][0] is not None


def test_command(runs, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["dashboard", str(runs)]) == 0
    assert "index.html (opens from disk, without a server)" in capsys.readouterr().out
    assert main(["dashboard", str(runs / "none")]) == 2


def test_a_name_cannot_end_the_script(runs, monkeypatch):
    monkeypatch.setattr(dashboard, "method_title", lambda method: "</script><b>")
    text = dashboard.build(runs, say=lambda text: None).read_text(encoding="utf-8")
    assert text.count("</script>") == 1
