"""Recorded values of released code, and the script that compares them."""

import json
from pathlib import Path

import golden
import numpy as np
import pytest

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.rglob("*.npz"))
UNMAPPED = {
    "baselines/rcil_pckd": "RCIL is not in the kit",
    "idec/circle": "defined in the release, never called",
    "idec/ntxent": "defined in the release, never called",
}
"""Families without a function, and why; one that is neither here nor in `golden.FAMILIES` fails."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recorded_case(path):
    case = golden.run_case(path)
    if case.family in UNMAPPED:
        assert case.status == "unmapped", "built by now: take it out of UNMAPPED"
        pytest.skip(f"{case.family}: {UNMAPPED[case.family]}")
    assert case.status == "passed", "\n".join(case.faults) or f"{case.family} is unmapped"


def test_every_mapped_family_has_a_case():
    assert set(golden.FAMILIES) == {golden.run_case(path).family for path in FILES} - UNMAPPED.keys()


def write(path, family="dkd/ac", meta=None, **arrays):
    z = np.array([[[[0.0, 1.0]]]])
    softplus = np.log1p(np.exp(z))
    right = {"aux_logit": z, "loss_map": softplus, "loss": softplus.mean(), "grad_aux": 1 / (1 + np.exp(-z)) / 2}
    text = json.dumps({"family": family, **(meta or {})}) if family else "{}"
    np.savez(path, meta=text, **(right | arrays))
    return path


def test_a_right_case_passes(tmp_path, capsys):
    write(tmp_path / "right.npz")
    assert golden.main([str(tmp_path)]) == 0
    assert "1 passed, 0 failed, 0 unmapped" in capsys.readouterr().out


def test_a_wrong_value_fails_with_its_name_and_size(tmp_path, capsys):
    write(tmp_path / "right.npz")
    write(tmp_path / "wrong.npz", loss=np.float64(0.5))
    assert golden.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "wrong.npz: loss: 1 of 1 values differ, by up to 0.503" in out
    assert "1 passed, 1 failed" in out


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"loss_map": np.zeros(3)}, r"loss_map: shape \(1, 1, 1, 2\), recorded \(3,\)"),
        ({"loss": np.float64("nan")}, "loss: 1 of 1 values differ"),
        ({"loss_squared": np.zeros(2)}, "neither used nor compared: loss_squared"),
        ({"aux_logit": np.zeros((1, 1, 1, 2), dtype=np.int64)}, "the kit raised RuntimeError"),
    ],
)
def test_what_else_is_a_failure(tmp_path, change, fault):
    case = golden.run_case(write(tmp_path / "case.npz", **change))
    assert case.status == "failed"
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError("\n".join(case.faults))


def test_files_that_cannot_be_read_fail(tmp_path, capsys):
    whole = write(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "no_meta.npz", loss=np.zeros(1))
    write(tmp_path / "no_family.npz", family=None)
    assert golden.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 passed, 4 failed" in out
    for name in ("cut", "empty", "no_meta", "no_family"):
        assert f"{name}.npz: cannot be read" in out


def test_unmapped_families_are_named_and_do_not_fail(tmp_path, capsys):
    write(tmp_path / "a.npz", family="other/thing")
    assert golden.main([str(tmp_path)]) == 0
    assert "unmapped, not checked: other/thing (1)" in capsys.readouterr().out


def test_a_folder_without_cases_fails(tmp_path, capsys):
    assert golden.main([str(tmp_path)]) == 1
    assert "no .npz file" in capsys.readouterr().out


def test_nan_equals_nan_and_integers_are_exact():
    nan = float("nan")
    assert golden.difference([1.0, nan], np.array([1.0, nan]), (0, 0)) == ""
    assert golden.difference([1.0, 2.0], np.array([1.0, nan]), (1, 1))
    assert golden.difference([1.0, nan], np.array([1.0, 2.0]), (1, 1))
    assert golden.difference([np.inf], np.array([np.inf]), (0, 0)) == ""
    assert golden.difference([1], np.array([2]), (9, 9)) == "1 of 1 values differ, by up to 1"


def test_tolerances(tmp_path):
    def allowed(family="dkd/ac", meta=None, name="loss", **arrays):
        return golden.tolerance({"family": family, **(meta or {})}, golden.Arrays(arrays), name)

    single, double = np.ones(1, dtype=np.float32), np.ones(1)
    assert allowed(x=double) == (1e-9, 1e-12)
    assert allowed(x=double, loss=single) == (2e-5, pytest.approx(2 * 2**-23))
    assert allowed(loss=100 * single) == (2e-5, pytest.approx(200 * 2**-23))
    assert allowed(x=100 * single, grad_x=single * 1e-3, name="grad_x") == (2e-5, 1e-7)
    assert allowed(x=100 * single, grad_x=single * 0.1, name="grad_x") == (2e-5, pytest.approx(20 * 2**-23))
    assert allowed(meta={"tolerance": {"rtol": 1e-6, "atol": 1e-8}}, x=double) == (1e-6, 1e-8)
    assert allowed(meta={"tolerance": {"exact": True}}, x=single) == (0, 0)
    assert allowed("dkd/aspp", x=double) == (1e-6, 1e-6)
