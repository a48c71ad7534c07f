"""The loop and the run folder: resume, refusal, sharing, bad weather. Tiny scenes, seconds."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cisskit.runs
from cisskit import train
from cisskit.errors import KitError
from cisskit.files import written_whole
from cisskit.method import Method
from cisskit.runs import Run, find_runs, load_tensors, save_tensors
from cisskit.schedules import one_cycle
from cisskit.train import begin, evaluate, fit, restore, train_loader

TINY = {"data_options": {"train": 24, "heldout": 4, "test": 6}, "overrides": {"epochs": 2, "batch_size": 8}, "device": "cpu"}


def finish(runs, method="ft", step=0, **changes):
    ctx = begin("toy-5-2", method, step, runs=runs, **{**TINY, **changes})
    fit(ctx, bar=False)
    return ctx, evaluate(ctx)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Finished step 0 of ft, mib and dkd; copy it, do not write into it."""
    runs = tmp_path_factory.mktemp("base")
    for method in ("ft", "dkd"):
        finish(runs, method)
    return runs


@pytest.fixture
def runs(base, tmp_path):
    shutil.copytree(base, tmp_path / "runs")
    return tmp_path / "runs"


def weights(runs, method="ft", step=0):
    return load_tensors(runs / "toy-5-2-overlap" / method / "seed0" / f"step{step}" / "model.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_step_leaves_the_files_that_the_docs_name(runs):
    ctx, metrics = finish(runs, "mib", 0)
    files = {p.name for p in ctx.run.folder.iterdir() if not p.name.startswith(".")}
    assert files == {"config.json", "history.csv", "model.safetensors", "confusion.npy", "metrics.json"}
    config = json.loads((ctx.run.folder / "config.json").read_text())
    assert config["settings"]["recipe"]["epochs"] == 2
    assert config["environment"].keys() == {"cisskit", "python", "torch", "torchvision", "numpy", "git"}
    assert ctx.run.history.columns.tolist() == ["epoch", "iteration", "lr", "ce"] and len(ctx.run.history) == 6
    assert metrics["miou"]["old"]["classes"] == "1-5" and metrics["miou"]["all"]["classes"] == "0-5"
    confusion = ctx.run.confusion
    assert confusion.shape == (10, 10) and confusion.sum() == 6 * 64 * 64 and not confusion[:, 6:].any()


def test_two_runs_of_one_configuration_are_identical(runs, tmp_path):
    finish(tmp_path / "again", "dkd")
    assert same(weights(runs, "dkd"), weights(tmp_path / "again", "dkd"))
    finish(tmp_path / "other", "dkd", seed=1)
    other = load_tensors(tmp_path / "other" / "toy-5-2-overlap" / "dkd" / "seed1" / "step0" / "model.safetensors")[0]
    assert not same(weights(runs, "dkd"), other)


def test_mib_takes_over_the_first_step_of_ft(runs, monkeypatch):
    monkeypatch.setattr("cisskit.train._train", lambda *a: pytest.fail("trained step 0 a second time"))
    finish(runs, "mib")
    assert same(weights(runs, "ft"), weights(runs, "mib"))
    assert Run.load(runs / "toy-5-2-overlap" / "mib" / "seed0" / "step0").settings["method"] == "mib"


def test_dkd_does_not_take_over_the_first_step_of_ft_nor_of_other_settings(runs):
    settings = begin("toy-5-2", "dkd", 0, runs=runs.parent / "x", **TINY).run
    assert not settings.adopt()
    ctx = begin("toy-5-2", "mib", 0, runs=runs, **{**TINY, "overrides": {"epochs": 3, "batch_size": 8}})
    assert not (ctx.run.folder / "model.safetensors").exists()


@pytest.mark.parametrize("method", ["ft", "mib", "dkd", "joint"])
def test_three_steps_end_to_end(runs, method):
    for step in range(3):
        ctx, metrics = finish(runs, method, step)
        assert set(metrics["iou"]) == set(ctx.scenario.classes[: ctx.step.n_seen + 1])
    assert len(metrics["forgetting"]) == 7 and metrics["miou"]["new"]["classes"] == "6-9"
    assert (ctx.old_model is None) == (method == "joint")
    assert len(find_runs(runs, lambda r: r.settings["method"] == method)) == 3


def test_memory_is_chosen_once_and_replayed(runs):
    memory = {**TINY, "overrides": {**TINY["overrides"], "memory": 5}}
    shutil.rmtree(runs / "toy-5-2-overlap" / "dkd")
    for step in range(3):
        ctx, metrics = finish(runs, "dkd", step, **memory)
    assert len(ctx.memory) == 5 and metrics["exemplars"] == 5
    assert begin("toy-5-2", "dkd", 2, runs=runs, **memory).memory == ctx.memory
    assert all(1 <= c <= 7 for e in ctx.memory for c in e.classes)


def test_a_finished_step_is_not_computed_again(runs, monkeypatch):
    monkeypatch.setattr("cisskit.train._train", lambda *a: pytest.fail("trained a finished step"))
    monkeypatch.setattr("cisskit.train.predictions", lambda *a: pytest.fail("evaluated a finished step"))
    stamps = {p: p.stat().st_mtime_ns for p in runs.rglob("step0/*")}
    finish(runs, "ft")
    assert stamps == {p: p.stat().st_mtime_ns for p in runs.rglob("step0/*") if p in stamps}


def test_other_settings_are_refused_with_the_fields_that_differ(runs):
    before = (runs / "toy-5-2-overlap/ft/seed0/step0/config.json").read_bytes()
    with pytest.raises(KitError, match=r"recipe\.epochs is 2, asked for 5.*--runs"):
        begin("toy-5-2", "ft", 0, runs=runs, **{**TINY, "overrides": {"batch_size": 8, "epochs": 5}})
    assert (runs / "toy-5-2-overlap/ft/seed0/step0/config.json").read_bytes() == before


def test_a_step_needs_the_one_before(tmp_path):
    with pytest.raises(KitError, match="step 1 continues from step 0, which is not finished"):
        begin("toy-5-2", "ft", 1, runs=tmp_path, **TINY)
    assert not list(tmp_path.rglob("config.json"))


def test_a_chain_does_not_continue_from_a_step_that_was_replaced(runs):
    finish(runs, "ft", 1)
    shutil.rmtree(runs / "toy-5-2-overlap/ft/seed0/step0")
    finish(runs, "ft", 0, overrides={"epochs": 1, "batch_size": 8})
    with pytest.raises(KitError, match="previous is"):
        begin("toy-5-2", "ft", 1, runs=runs, **TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy-5-2", "mbi", 0), r"unknown method 'mbi'\. Did you mean 'mib'"),
        (("toi-5-2", "mib", 0), r"unknown data set 'toi'\. Did you mean 'toy'"),
        (("toy-5-2", "mib", 7), r"has steps 0\.\.2; step 7"),
    ],
)
def test_unknown_names_say_the_nearest(arguments, message, tmp_path):
    with pytest.raises(KitError, match=message):
        begin(*arguments, runs=tmp_path, **TINY)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lambda_kdd": 1}, r"unknown field of mib 'lambda_kdd'\. Did you mean 'lambda_kd'"),
        ({"lambda_kd": "five"}, r"mib: lambda_kd = 'five'"),
        ({"epochs": 0}, r"epochs and batch_size are at least 1"),
        ({"schedule": "cosine"}, r"schedule = 'cosine'"),
    ],
)
def test_bad_overrides_are_named(overrides, message, tmp_path):
    with pytest.raises(KitError, match=message):
        begin("toy-5-2", "mib", 0, runs=tmp_path, **{**TINY, "overrides": overrides})
    assert not any(tmp_path.iterdir())


def test_a_recipe_may_differ_between_step_0_and_later(runs):
    options = {**TINY, "overrides": {"epochs": 2, "batch_size": 8, "later.epochs": 1, "step0.lr": 0.5}}
    later = begin("toy-5-2", "ft", 1, runs=runs, **options).recipe
    assert later.epochs == 1 and later.lr < 0.5
    with pytest.raises(KitError, match=r"recipe\.lr is 0\.006, asked for 0\.5"):
        begin("toy-5-2", "ft", 0, runs=runs, **options)
    for key, message in (("step1.lr", "Did you mean 'step0'"), ("later.lambda_kd", "unknown field of a recipe after 'later'")):
        with pytest.raises(KitError, match=message):
            begin("toy-5-2", "mib", 1, runs=runs, **{**TINY, "overrides": {key: 1}})


def test_a_step_that_cannot_begin_leaves_no_run(tmp_path, monkeypatch):
    def missing(*args):
        raise KitError("no weights")

    monkeypatch.setattr("cisskit.method.create", missing)
    with pytest.raises(KitError, match="no weights"):
        begin("toy-5-2", "ft", 0, runs=tmp_path, **TINY)
    assert not any(tmp_path.iterdir())


def test_a_truncated_or_foreign_checkpoint_is_refused(runs):
    file = runs / "toy-5-2-overlap/ft/seed0/step0/model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KitError, match="is damaged"):
        begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    file.write_bytes((runs / "toy-5-2-overlap/dkd/seed0/step0/model.safetensors").read_bytes())
    with pytest.raises(KitError, match="belongs to another run.*method is 'dkd', asked for 'ft'"):
        begin("toy-5-2", "ft", 1, runs=runs, **TINY)


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    save_tensors(file, {"w": torch.zeros(3)}, {})
    old = file.read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cisskit.runs, "save_file", full)
    with pytest.raises(KitError, match="the disk is full"):
        save_tensors(file, {"w": torch.ones(3)}, {})
    assert file.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_a_killed_process_left_half_written_is_swept_away(runs):
    ctx = begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    (ctx.run.folder / ".model.safetensors.123.tmp").write_bytes(b"half")
    fit(ctx, bar=False)
    assert not list(ctx.run.folder.glob(".*.tmp"))


def test_files_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "a.txt") as beside:
        beside.write_text("half")
        raise RuntimeError
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(runs, monkeypatch):
    losses = type(begin("toy-5-2", "ft", 1, runs=runs, **TINY).method).losses

    def poisoned(self, batch, student, teacher, ctx):
        terms = losses(self, batch, student, teacher, ctx)
        return {"ce": terms["ce"] * (float("nan") if ctx.progress >= 0.5 else 1.0)}

    ctx = begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    monkeypatch.setattr(type(ctx.method), "losses", poisoned)
    with pytest.raises(KitError, match=r"loss term ce is not finite at epoch 1, iteration \d+ \(images train-0.*checkpoint"):
        fit(ctx, bar=False)
    tensors, about = load_tensors(ctx.run.folder / "checkpoint.safetensors")
    assert about["epochs"] == 1 and all(v.isfinite().all() for v in tensors.values())
    assert not (ctx.run.folder / "model.safetensors").exists()
    with pytest.raises(KitError, match="no trained model yet"):
        evaluate(ctx)


KILLED = """
import sys, os, signal
sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
import cisskit.train as t
from test_train import TINY
t.LOG_EVERY = 1
note = t.Run.note
def die(self, **values):
    note(self, **values)
    if values["epoch"] == {epoch}:
        os.kill(os.getpid(), signal.SIGKILL)
t.Run.note = die if {before} else t.Run.note
save = t.save_tensors
def die_after(path, *a):
    save(path, *a)
    if path.name == "checkpoint.safetensors" and not {before}:
        os.kill(os.getpid(), signal.SIGKILL)
t.save_tensors = die_after
ctx = t.begin("toy-5-2", "dkd", 1, runs={runs!r}, **TINY | {{"overrides": {{"epochs": 3, "batch_size": 8, "memory": 4}}}})
t.fit(ctx, bar=False)
"""


@pytest.mark.parametrize(("epoch", "before"), [(1, True), (1, False), (2, True), (3, True)])
def test_kill_minus_nine_then_again_gives_identical_weights(tmp_path, epoch, before):
    options = {**TINY, "overrides": {"epochs": 3, "batch_size": 8, "memory": 4}}
    for folder in ("straight", "killed"):
        finish(tmp_path / folder, "dkd", 0, **options)
    finish(tmp_path / "straight", "dkd", 1, **options)
    script = KILLED.format(tests=str(Path(__file__).parent), epoch=epoch, before=before, runs=str(tmp_path / "killed"))
    gone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert gone.returncode == -signal.SIGKILL, gone.stderr
    folder = tmp_path / "killed/toy-5-2-overlap/dkd/seed0/step1"
    assert not (folder / "model.safetensors").exists()
    finish(tmp_path / "killed", "dkd", 1, **options)
    assert same(weights(tmp_path / "straight", "dkd", 1), weights(tmp_path / "killed", "dkd", 1))
    a, b = (Run.load(tmp_path / f / "toy-5-2-overlap/dkd/seed0/step1") for f in ("straight", "killed"))
    assert a.history.equals(b.history) and (a.confusion == b.confusion).all()


HOLD = "import sys, time, filelock as f; a = f.FileLock(sys.argv[1]); a.acquire(); print('held', flush=True); time.sleep(60)"


def test_a_folder_in_use_is_left_to_its_user(runs):
    ctx = begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(ctx.run.folder / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(KitError, match="in use by another process"):
            fit(ctx, bar=False)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_restore_brings_back_a_run_for_pictures(runs):
    ctx, _ = finish(runs, "ft", 1)
    again = restore(ctx.run)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again.model.eval()(x).scores, ctx.model.eval()(x).scores)
    assert again.old_model is not None and again.data.source.describe() == ctx.data.source.describe()


def test_pseudo_labels_are_scored_when_a_method_makes_them(runs, monkeypatch):
    ctx = begin("toy-5-2", "ft", 1, runs=runs, **TINY)

    class Teaching(type(ctx.method)):
        def targets(self, batch, teacher, ctx):
            guess = teacher.logits.argmax(dim=1)
            return torch.where(batch.label == 0, guess, batch.label)

    fit(ctx, bar=False)
    ctx.method = Teaching()
    quality = evaluate(ctx)["pseudo_labels"]
    assert quality["coverage"] == 1.0 and set(quality["precision"]) == set(ctx.scenario.classes[:6])
    assert type(ctx.method).targets is not Method.targets


def test_teacher_and_history_do_not_depend_on_what_a_notebook_looked_at(runs):
    ctx = begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    torch.rand(7)  # a picture that draws random numbers
    ctx.model.eval()(torch.randn(2, 3, 64, 64))
    fit(ctx, bar=False)
    looked = weights(runs, "ft", 1)
    shutil.rmtree(ctx.run.folder)
    finish(runs, "ft", 1)
    assert same(looked, weights(runs, "ft", 1))


def test_another_revision_of_the_kit_is_recorded_but_not_refused(runs, monkeypatch):
    monkeypatch.setattr(cisskit.runs, "environment", lambda: {"git": "another"})
    begin("toy-5-2", "ft", 0, runs=runs, **TINY)
    begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    assert json.loads((runs / "toy-5-2-overlap/ft/seed0/step1/config.json").read_text())["environment"] == {"git": "another"}


def test_unfinished_steps_have_no_metrics(tmp_path):
    ctx = begin("toy-5-2", "ft", 0, runs=tmp_path, **TINY)
    with pytest.raises(KitError, match="not finished"):
        _ = ctx.run.metrics
    assert find_runs(tmp_path) == []


def test_the_setting_joint_is_one_step_with_old_and_new_ranges(tmp_path):
    ctx, metrics = finish(tmp_path, "joint", 0, setting="joint")
    assert ctx.run.folder.parts[-4] == "toy-5-2-joint" and len(ctx.scenario.steps) == 1
    assert ctx.model.classifier()[0].shape[0] == 10
    assert [metrics["miou"][k]["classes"] for k in ("old", "new", "all")] == ["1-5", "6-9", "0-9"]


def test_classes_left_out_of_a_scenario_are_background_everywhere(tmp_path):
    ctx = begin("toy:9,8/1", "ft", 0, runs=tmp_path, **TINY)
    fit(ctx, bar=False)
    metrics = evaluate(ctx)
    assert ctx.scenario.classes == ("background", "dotted crescent", "checked disc", "striped square")
    assert ctx.run.confusion.shape == (4, 4) and metrics["pixels"] < ctx.run.confusion.sum() == 6 * 64 * 64


def test_the_recipe_decides_schedule_and_frozen_parts(runs):
    ctx, _ = finish(runs, "dkd", 1)
    history, recipe = ctx.run.history, ctx.recipe
    expected = [recipe.lr * one_cycle(k, len(history)) for k in range(len(history))]
    assert history["lr"].tolist() == pytest.approx(expected, rel=1e-5)
    before, after = weights(runs, "dkd", 0), weights(runs, "dkd", 1)
    norms = [k for k in before if ".bn" in k or "running" in k]
    assert norms and recipe.freeze == ("bn",) and all(torch.equal(before[k], after[k]) for k in norms)
    moved = [k for k in before if k not in norms and before[k].ndim == 4 and not torch.equal(before[k], after[k])]
    assert any(k.startswith("backbone") for k in moved) and any(k.startswith("decoder") for k in moved)


def test_the_teacher_is_the_model_after_the_previous_step(runs):
    ctx = begin("toy-5-2", "ft", 1, runs=runs, **TINY)
    assert same(dict(ctx.old_model.state_dict()), weights(runs, "ft", 0))
    assert not ctx.old_model.training and not any(p.requires_grad for p in ctx.old_model.parameters())


def test_joint_sees_every_image_and_label_so_far_and_starts_anew(runs):
    finish(runs, "joint", 0)
    joint, ft = (begin("toy-5-2", name, 1, runs=runs, **TINY) for name in ("joint", "ft"))
    told = {c for batch in train_loader(joint).epoch(0) for c in batch.label.unique().tolist()}
    assert told == set(range(8)) and joint.old_model is None
    assert {c for batch in train_loader(ft).epoch(0) for c in batch.label.unique().tolist()} == {0, 6, 7}
    assert not same(dict(joint.model.state_dict()), weights(runs, "joint", 0))
    assert train_loader(joint).n_images >= train_loader(ft).n_images


@pytest.mark.parametrize("name", ["ssul", "mbs"])
def test_a_frozen_trunk_is_shared_and_changes_nothing(name, tmp_path, monkeypatch):
    """Student and teacher read one pass through the backbone; the weights are those of two passes."""
    ends = {}
    for share in (True, False):
        if not share:
            monkeypatch.setattr(train, "_share_trunk", lambda ctx: False)
        for step in range(2):
            options = {"runs": tmp_path / str(share), "data_options": {"train": 32, "heldout": 4, "test": 4}, "device": "cpu"}
            overrides = {"epochs": 1, "batch_size": 8, "later.freeze": ["backbone", "bn"]}
            ctx = train.begin("toy-5-4", name, step, overrides=overrides, **options)
            if share:
                assert train._share_trunk(ctx) == (step == 1)
            train.fit(ctx, bar=False)
            train.evaluate(ctx)
        ends[share] = ctx.run.weights()
    assert all(torch.equal(value, ends[False][key]) for key, value in ends[True].items())
