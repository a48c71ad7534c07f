"""Protocols: what each covers, what it does to training labels and test images, which checkpoint it hands on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cisskit import train
from cisskit.data import Data, Toy
from cisskit.errors import KitError
from cisskit.metrics import summarise
from cisskit.protocols import PROTOCOLS, protocol
from cisskit.runs import Run, load_tensors
from cisskit.scenario import BACKGROUND, IGNORE, Scenario
from cisskit.train import begin, evaluate, fit
from cisskit.views.tables import results

VOC, ADE = Scenario.named("voc-15-1"), Scenario.named("ade-100-10")


def ranges(name, scenario):
    """Headline ranges after the last step, by the protocol."""
    n = len(scenario.classes)
    miou = summarise(np.eye(n), scenario, scenario.steps[-1], protocol(name, scenario))["miou"]
    return tuple(miou[part]["classes"] for part in ("old", "new", "all"))


@pytest.mark.parametrize(
    ("name", "voc", "ade"),
    [
        ("clean", ("1-15", "16-20", "0-20"), ("1-100", "101-150", "0-150")),
        ("mib", ("1-15", "16-20", "1-20"), ("1-100", "101-150", "1-150")),
        ("plop", ("0-15", "16-20", "0-20"), ("0-100", "101-150", "0-150")),
        ("ssul", ("0-15", "16-20", "0-20"), ("0-100", "101-150", "0-150")),
        ("dkd", ("0-15", "16-20", "0-20"), ("0-100", "101-150", "0-150")),
        ("mbs", ("1-15", "16-20", "0-20"), ("1-100", "101-150", "1-150")),
        ("idec", ("0-15", "16-20", "0-20"), ("0-100", "101-150", "0-150")),
    ],
)
def test_what_the_means_cover(name, voc, ade):
    assert ranges(name, VOC) == voc and ranges(name, ADE) == ade


def test_data_without_background_never_count_channel_0():
    for name in PROTOCOLS:
        assert ranges(name, Scenario.named("isprs-2-2-1")) == ("1-2", "3-5", "1-5"), name
    assert ranges("idec", Scenario.named("isprs_compat-2-2-1")) == ("0-1", "2-4", "0-4")


def test_the_conventions_of_each_code_base():
    table = {
        name: (p.void_in_training, p.future_as, p.test_images, p.eval_size, p.checkpoint, p.absent)
        for name, p in ((name, protocol(name, VOC)) for name in PROTOCOLS)
    }
    assert table == {
        "clean": (255, "ignore", "all", "full", "last", "nan"),
        "mib": (0, "ignore", "seen", "crop512", "last", "skip"),
        "plop": (255, "background", "seen", "crop512", "last", "skip"),
        "ssul": (255, "ignore", "all", "crop513", "best", "zero"),
        "dkd": (255, "background", "seen", "crop512", "last", "zero"),
        "mbs": (255, "ignore", "all", "crop512", "best_or_last", "zero"),
        "idec": (255, "ignore", "all", "crop513", "best", "zero"),
    }
    assert [protocol(name, VOC).zero_at_test for name in PROTOCOLS] == [True] * 7
    assert {name for name in PROTOCOLS if not protocol(name, ADE).zero_at_test} == {"mib", "mbs"}
    assert protocol("dkd", ADE).future_as == "ignore"


def test_one_matrix_many_numbers():
    scenario = Scenario.named("ade:wall,building/sky/tree")
    counts = np.array([
        [40, 0, 0, 10, 0],
        [0, 30, 0, 10, 0],
        [0, 0, 0, 0, 0],  # building: neither there nor predicted
        [5, 0, 0, 15, 0],
        [20, 0, 0, 0, 0],  # tree arrives later
    ])  # fmt: skip

    def headline(name):
        return summarise(counts, scenario, scenario.step(1), protocol(name, scenario))["miou"]["all"]["value"]

    bg, wall, sky = 40 / 55, 30 / 40, 15 / 40
    assert headline("clean") == pytest.approx((bg + wall + sky) / 3)  # building has no IoU
    assert headline("plop") == pytest.approx((60 / 75 + wall + sky) / 3, abs=1e-6)  # tree found as background
    for name in ("ssul", "idec", "dkd"):
        assert headline(name) == pytest.approx((bg + wall + 0 + sky) / 4, abs=1e-6), name
    assert headline("mib") == pytest.approx((wall + 15 / 30) / 2, abs=1e-6)  # what is truly "other" is not scored
    assert headline("mbs") == pytest.approx((wall + 15 / 30) / 2, abs=1e-6)  # and building's 0 is left out


def test_unknown_protocol_and_own_size():
    with pytest.raises(KitError, match="unknown protocol 'idek'.*Did you mean 'idec'"):
        protocol("idek", VOC)
    assert protocol("mbs", VOC).label == "mbs" and protocol("mbs", VOC, "full").label == "mbs, full"


@pytest.fixture(scope="module")
def toy():
    return Toy(train=40, heldout=1, test=30)


def test_void_in_training_and_images_of_the_test(toy, monkeypatch):
    scenario = Scenario.named("toy-5-2")
    void = toy.arrays("train")[1].clone()
    void[:, :4] = IGNORE
    monkeypatch.setattr(
        Toy, "arrays", lambda self, split, kept=toy.arrays: (kept(split)[0], void if split == "train" else kept(split)[1])
    )
    rows = {
        name: next(Data(scenario, toy, protocol=protocol(name, scenario), batch_size=40).train(1).epoch(0)).label[:, :4].unique()
        for name in ("clean", "mib")
    }
    assert rows["clean"].tolist() == [IGNORE] and rows["mib"].tolist() == [BACKGROUND]
    data = Data(scenario, toy, batch_size=64)
    for which, classes in (("seen", range(1, 8)), ("current", (6, 7))):
        label = torch.cat([batch.label for batch in data.test(1, which=which)])
        shown = toy.presence("test")[:, list(classes)].any(axis=1)
        assert len(label) == shown.sum() < 30


# --- which checkpoint ---

QUICK = {"data_options": {"train": 12, "heldout": 1, "test": 6}, "device": "cpu"}


def trained(runs, name, epochs, **changes):
    options = {**QUICK, "protocol": name, "overrides": {"epochs": epochs, "batch_size": 2}, "eval_size": "full", **changes}
    ctx = begin("toy-5-2", "ft", 0, runs=runs, **options)
    before = {k: v.clone() for k, v in ctx.model.state_dict().items()}
    fit(ctx, bar=False)
    return ctx, before


def saved(ctx):
    return load_tensors(ctx.run.folder / "model.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def looks(monkeypatch):
    """(iteration, score, weights) of every look at the current classes."""
    seen = []
    usual = train._Best.look

    def look(self, done):
        before = {k: v.clone() for k, v in self.ctx.model.state_dict().items()}
        usual(self, done)
        if self.rule != "last" and done % self.every == 0:
            seen.append((done, self.score, before))
            assert self.ctx.model.training

    monkeypatch.setattr(train._Best, "look", look)
    return seen


def test_the_best_checkpoint_is_handed_on(tmp_path, looks, monkeypatch):
    scores = iter([0.3, 0.5, 0.4])
    monkeypatch.setattr(train, "mean_iou", lambda iou, classes: next(scores))
    ctx, _ = trained(tmp_path, "ssul", 60)  # 360 iterations
    assert [done for done, *_ in looks] == [100, 200, 300]
    assert same(saved(ctx), looks[1][2])
    monkeypatch.undo()
    assert evaluate(ctx)["checkpoint"] == {"rule": "best", "iteration": 200, "score": 0.5}


def test_the_score_is_that_of_the_current_classes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "mean_iou", lambda iou, classes: asked.append((len(iou), classes)) or 0.5)
    monkeypatch.setattr(train, "predictions", lambda ctx, model, **how: asked.append(how) or iter(()))
    trained(tmp_path, "ssul", 20)
    assert asked == [{"which": "current", "use": "train"}, (6, slice(0, 6))]  # step 0: with the background


def test_a_continued_run_chooses_the_same_checkpoint(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(train, "mean_iou", lambda iou, classes: 1 - len(looks) / 10)  # the first look is the best
    whole, _ = trained(tmp_path / "whole", "ssul", 40)
    looks.clear()

    def stop(self, **values):
        if values["epoch"] == 21:
            raise KeyboardInterrupt

    note = Run.note
    monkeypatch.setattr(Run, "note", lambda self, **values: stop(self, **values) or note(self, **values))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "part", "ssul", 40)
    monkeypatch.setattr(Run, "note", note)
    part, _ = trained(tmp_path / "part", "ssul", 40)
    assert same(saved(whole), saved(part))
    assert json.loads((part.run.folder / "checkpoint.json").read_text())["iteration"] == 100


def test_short_steps_never_compare(tmp_path):
    ssul, before = trained(tmp_path, "ssul", 2)
    assert same(saved(ssul), before)  # as released: the weights from before the first iteration
    clean, _ = trained(tmp_path, "clean", 2)
    mbs, _ = trained(tmp_path, "mbs", 2)
    assert same(saved(clean), saved(mbs)) and not same(saved(clean), before)


# --- tables ---


def test_numbers_of_two_protocols_do_not_share_a_table(tmp_path):
    runs = []
    for name in ("clean", "mib"):
        ctx, _ = trained(tmp_path, name, 1)
        evaluate(ctx)
        runs.append(ctx.run)
    assert runs[0].folder.parents[2].name == "toy-5-2-overlap" and runs[1].folder.parents[2].name == "toy-5-2-overlap-mib"
    with pytest.raises(KitError, match=r"several protocols \(clean; mib, full\)"):
        results(runs)
    table = results(runs, across_protocols=True)
    assert table["protocol"].tolist() == ["clean", "mib, full"]
    assert {"all [0-5] %", "all [1-5] %"} <= set(table.columns)


def test_settings_hold_the_whole_protocol(tmp_path):
    ctx, _ = trained(tmp_path, "dkd", 1)
    assert Run.load(ctx.run.folder).protocol == protocol("dkd", ctx.scenario, "full")
    assert ctx.run.protocol != replace(ctx.run.protocol, epsilon=0.0)


def test_an_older_run_is_refused_in_words(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"scenario": "toy-5-2"}}))
    with pytest.raises(KitError, match="older cisskit"):
        Run.load(tmp_path)
