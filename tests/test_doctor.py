"""Each check passes where the kit works, and each failure says how to mend it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path

import pytest

from cisskit import doctor
from cisskit.doctor import Check


def without(monkeypatch, *names):
    """Make the import of these modules fail inside doctor."""
    real = importlib.import_module

    def load(name):
        if name in names:
            raise ImportError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", load)


def fails(check: Check, *words: str) -> None:
    assert check.ok is False and check.mend
    for word in words:
        assert word in check.detail + check.mend, f"{word!r} is not in {check}"


def write_kernel(folder: Path, *argv: str) -> Path:
    """A kernelspec named python3 in a Jupyter data folder."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": list(argv), "display_name": "x", "language": "python"}))
    return spec


def test_torch_pair_works():
    check = doctor.torch_pair()
    assert check.ok is True and "nms works" in check.detail and not check.mend


def test_torch_missing(monkeypatch):
    without(monkeypatch, "torch")
    fails(doctor.torch_pair(), "No module named 'torch'", doctor.PINNED)
    fails(doctor.device(), "torch", "mend the torch pair first")


def test_torchvision_of_another_torch(monkeypatch):
    import torchvision

    def nms(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    fails(doctor.torch_pair(), "nms does not exist", doctor.PINNED)


def test_operator_that_answers_wrongly(monkeypatch):
    import torch
    import torchvision

    monkeypatch.setattr(torchvision.ops, "nms", lambda *args: torch.tensor([0, 1]))
    fails(doctor.torch_pair(), "[0, 1]", doctor.PINNED)


def test_device_without_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = doctor.device()
    assert check.ok is True and check.detail.startswith("cpu: ") and "cores" in check.detail


def test_device_names_every_card(monkeypatch):
    import torch

    card = namedtuple("card", "name total_memory")("Some Card", 80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert doctor.device() == Check("device", True, "cuda: Some Card (80 GiB), Some Card (80 GiB)")


def test_device_with_a_driver_that_is_too_old(monkeypatch):
    import torch

    def available():
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", available)
    check = doctor.device()
    assert check.ok is None and "too old" in check.detail and "driver" in check.mend


@pytest.mark.parametrize(("value", "ok"), [("1", True), ("", None), ("100000", None), ("many", False), ("0", False)])
def test_threads(monkeypatch, value, ok):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    check = doctor.threads()
    assert check.ok is ok and ("export OMP_NUM_THREADS=1" in check.mend) is (ok is not True)


def test_kernel_is_the_one_of_this_environment_whatever_the_home_holds(monkeypatch, tmp_path):
    write_kernel(tmp_path, "/nowhere/python", "-m", "ipykernel_launcher")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    check = doctor.kernel()
    assert check.ok is True, check
    assert str(tmp_path) not in check.detail


def test_kernel_in_the_home_that_shadows_this_one(monkeypatch, tmp_path):
    spec = write_kernel(tmp_path, "/nowhere/python", "-m", "ipykernel_launcher")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    fails(
        doctor.kernel(), "/nowhere/python", "does not run", str(spec), "ipykernel install --sys-prefix", "JUPYTER_PREFER_ENV_PATH"
    )


def test_kernel_of_another_environment(monkeypatch, tmp_path):
    other = tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.write_text(f"#!/bin/sh\necho '\"{tmp_path}\"'\n")
    other.chmod(0o755)
    write_kernel(tmp_path, str(other), "-m", "ipykernel_launcher")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    fails(doctor.kernel(), "another environment", "ipykernel install --sys-prefix --name python3")


@pytest.mark.parametrize("command", ["python", sys.executable])
def test_kernel_that_starts_this_interpreter(monkeypatch, tmp_path, command):
    write_kernel(tmp_path, command, "-m", "ipykernel_launcher")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert doctor.kernel().ok is True


def test_kernel_that_is_not_registered(monkeypatch):
    from jupyter_client import kernelspec

    def none(self, name):
        raise kernelspec.NoSuchKernel(name)

    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", none)
    fails(doctor.kernel(), "no kernel", f"{sys.executable} -m ipykernel install --sys-prefix --name python3")


@pytest.mark.parametrize("module", ["jupyter_client.kernelspec", "ipykernel"])
def test_jupyter_missing(monkeypatch, module):
    without(monkeypatch, module)
    fails(doctor.kernel(), module, "pip install")


def test_papermill():
    assert doctor.papermill().ok is True


def test_papermill_missing(monkeypatch):
    without(monkeypatch, "papermill")
    fails(doctor.papermill(), "papermill", "pip install papermill")


def test_fonts():
    check = doctor.fonts()
    assert check.ok is True and "DejaVu" in check.detail


def test_font_missing(monkeypatch):
    from matplotlib import font_manager

    def nothing(*args, **kwargs):
        raise ValueError("Failed to find font DejaVu Sans")

    monkeypatch.setattr(font_manager, "findfont", nothing)
    fails(doctor.fonts(), "DejaVu Sans", "matplotlib", "fontlist-")


def test_matplotlib_missing(monkeypatch):
    without(monkeypatch, "matplotlib.font_manager")
    fails(doctor.fonts(), "pip install matplotlib")


def test_browser_is_only_worth_a_note(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = doctor.browser()
    assert check.ok is None and "chromium" in check.detail and "apt-get install chromium" in check.mend


def test_browser_found(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}" if name == "google-chrome" else None)
    assert doctor.browser() == Check("browser", True, "/somewhere/google-chrome")


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "ok"), [(doctor.NEEDED_GB * 10**9, True), (doctor.NEEDED_GB * 10**9 - 10**8, False)])
def test_free_disk(monkeypatch, tmp_path, free, ok):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, free))
    check = doctor.free_disk(tmp_path / "not" / "there" / "yet")
    assert check.ok is ok and str(tmp_path) in check.detail
    if not ok:
        fails(check, "4.9 GB free", "5 GB", "--runs")
    assert not (tmp_path / "not").exists()


def test_disk_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *args: False)
    fails(doctor.free_disk(tmp_path), "cannot be written", "--runs")


def test_runs_below_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    fails(doctor.free_disk(tmp_path / "runs"), "is a file", "--runs")


@pytest.mark.parametrize("labels", ["SegmentationClass", "SegmentationClassAug"])
@pytest.mark.parametrize("place", doctor.INSIDE["voc"])
def test_data_root_with_the_official_layout(tmp_path, place, labels):
    for part in ("JPEGImages", labels, "ImageSets/Segmentation"):
        (tmp_path / place / part).mkdir(parents=True)
    assert doctor.data_root("voc", tmp_path).ok is True


def test_data_root_that_lacks_a_part(tmp_path):
    (tmp_path / "VOC2012" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "VOC2012" / "SegmentationClass").mkdir()
    check = doctor.data_root("voc", tmp_path)
    fails(check, "lacks ImageSets/Segmentation", "python -m data_prep voc")
    assert "JPEGImages" not in check.detail


def test_data_root_that_is_not_there(tmp_path):
    fails(doctor.data_root("voc", tmp_path / "gone"), "gone is not a folder", "python -m data_prep voc")


def test_data_root_of_another_data_set(tmp_path):
    fails(doctor.data_root("other", tmp_path), "is empty", "python -m data_prep other")
    (tmp_path / "file").write_text("")
    assert doctor.data_root("other", tmp_path).ok is True


def test_revision(monkeypatch):
    done = subprocess.CompletedProcess([], 0, "0123456789abcdef\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    assert doctor.revision() == Check("git revision", True, "0123456789ab")


def test_revision_outside_git_is_only_worth_a_note(monkeypatch):
    refused = subprocess.CompletedProcess([], 128, "", "fatal: not a git repository\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: refused)
    check = doctor.revision()
    assert check.ok is None and "not a git repository" in check.detail and check.mend


def test_git_missing(monkeypatch):
    def run(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.revision().ok is None


def test_a_check_that_breaks_is_a_finding_and_the_others_still_run(monkeypatch, tmp_path):
    def threads():
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "threads", threads)
    found = doctor.checks({"voc": tmp_path / "gone"}, runs=tmp_path)
    broken = next(check for check in found if "boom" in check.detail)
    fails(broken, "the check itself failed")
    assert [check.name for check in found] == [
        "torch pair", "device", "threads", "kernel python3", "papermill", "fonts", "browser", "free disk", "data voc",
        "git revision",
    ]  # fmt: skip


def test_report_aligns_and_puts_each_remedy_below_its_line():
    text = doctor.report(
        [Check("a", True, "fine"), Check("longer", False, "broken", "do this"), Check("b", None, "absent", "or that")]
    )
    assert text.splitlines() == [
        "ok    a       fine",
        "mend  longer  broken",
        "              -> do this",
        "note  b       absent",
        "              -> or that",
        "1 ok, 1 to mend, 1 to note (not needed)",
    ]


def test_every_check_that_is_not_ok_says_how_to_mend(tmp_path):
    for check in doctor.checks(runs=tmp_path):
        assert bool(check.mend) is (check.ok is not True), check
