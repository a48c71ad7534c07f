"""The command line: what it prints, what it refuses, its exit codes."""

import pytest

from cisskit import cli
from cisskit.errors import KitError
from cisskit.method import available


def test_methods_lists_every_method(capsys):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name:<8}" in out for name in available()) and "lambda_kd=10.0" in out


def test_scenarios_lists_data_sets_and_examples(capsys):
    assert cli.main(["scenarios"]) == 0
    out = capsys.readouterr().out
    assert "toy (9 classes)" in out and "5 + 2 + 2" in out and "isprs-2-2-1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "toy-5-3", "--method", "ft"], "places 8 of the 9 classes"),
        (["--scenario", "toy-5-2", "--method", "ftt"], "unknown method 'ftt'. Did you mean 'ft'"),
        (["--scenario", "toy-5-2", "--method", "ft", "--set", "lr"], "not of the form METHOD.FIELD=VALUE"),
        (["--scenario", "toy-5-2", "--method", "ft", "--set", "dkd.lr=1"], "unknown method in --set 'dkd'"),
        (["--scenario", "toy-5-2", "--method", "ft", "--seed", "zero"], "--seed takes whole numbers"),
        (["--scenario", "voc-15-1", "--method", "ft"], "data_prep voc"),
        (["--scenario", "voc-15-1", "--method", "ft", "--data-root", "nowhere"], "nowhere"),
        (["--scenario", "isprs-2-2-1", "--method", "ft"], "isprs"),
    ],
)
def test_a_request_that_cannot_be_carried_out_writes_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert not any(tmp_path.iterdir())


def test_overrides_are_read_as_json_else_as_text():
    found = cli._overrides(["dkd.lambda_kd=5", "epochs=1", "data.train_list=train_strat", "dkd.pos_weight=[2, 1]"], ["dkd"])
    assert found == {"dkd": {"lambda_kd": 5, "pos_weight": [2, 1]}, "": {"epochs": 1}, "data": {"train_list": "train_strat"}}
    found = cli._overrides(["later.lr=0.1", "dkd.later.freeze=[]"], ["dkd"])
    assert found == {"": {"later.lr": 0.1}, "dkd": {"later.freeze": []}}
    with pytest.raises(KitError):
        cli._overrides(["=3"], ["dkd"])


def test_a_report_without_runs_says_how_to_make_some(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "cisskit demo" in capsys.readouterr().err


def test_published_numbers(capsys):
    assert cli.main(["published", "--method", "dkd", "--task", "15-1", "--setting", "overlap", "--classes", "0-15"]) == 0
    out = capsys.readouterr().out
    assert "78.09" in out and "DKD paper" in out and "MiB" not in out
    assert cli.main(["published", "--method", "dkk"]) == 2
    assert "unknown method among the published numbers" in capsys.readouterr().err
