"""Every command of the README works: cheap ones are run, trainings are planned to the last check, make targets exist."""

import re
import shlex
import subprocess
import sys

import pytest

from cisskit import cli, pipeline

RUN_ELSEWHERE = (  # by other tests, or by CI
    "make demo",  # test_notebooks executes the chain; its set-up is that of make test
    "make test",  # CI
    "make lab",
    "make benchmark",  # test_benchmark runs it in small
    "make dashboard",  # test_dashboard
    "make gallery",  # test_gallery
    ". .venv/bin/activate",
    "python3 -m venv",  # CI makes the environment with the same pins
    "conda env create",  # test_env compares the file; the README says that the solve was not run
)


def commands(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("   #")[0].split("  #")[0].strip()
            if line:
                yield line


def test_the_readme_names_both_commands(root):
    assert {"make demo", "make test"} <= set(commands(root))


def test_every_command_of_the_readme_works(root, monkeypatch, tmp_path, capsys):
    planned = []
    monkeypatch.setattr(pipeline, "run_chains", lambda todo, jobs, say: planned.append(todo) or True)
    monkeypatch.setattr(cli, "_whole", lambda path: path)
    monkeypatch.chdir(tmp_path)
    for line in commands(root):
        words = [w.removeprefix(".venv/bin/") for w in shlex.split(line)]
        if line.startswith(RUN_ELSEWHERE):
            continue
        if words[0] == "cisskit" and words[1] in ("methods", "scenarios"):
            assert cli.main(words[1:]) == 0, line
        elif words[0] == "cisskit" and words[1] in ("run", "demo"):
            if "--data-root" in words:
                cli._parser().parse_args(words[1:])  # the data are not here; the options are right
            else:
                assert cli.main([*words[1:], "--set", "data.train=24", "--set", "data.test=2"]) == 0, line
        elif words[0] == "cisskit" and words[1] in ("report", "doctor", "benchmark", "dashboard", "data", "published", "compare"):
            cli._parser().parse_args(words[1:])
        elif words[:2] == ["python", "tests/golden.py"]:
            subprocess.run([sys.executable, *words[1:]], cwd=root, check=True, capture_output=True)
        elif words[:3] == ["python", "-m", "data_prep"]:
            done = subprocess.run([sys.executable, *words[1:]], cwd=root, capture_output=True, text=True)
            assert done.returncode in (0, 1) and "usage" not in done.stderr, done.stderr
        else:
            pytest.fail(f"the README has a command that no test knows: {line}")
    assert planned and all(chain.steps for todo in planned for chain in todo)
    capsys.readouterr()


def test_python_of_the_readme_runs(root, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), flags=re.S)
    monkeypatch.chdir(tmp_path)
    tiny = 'overrides={"lambda_kd": 10.0, "epochs": 1, "batch_size": 8}, data_options={"train": 24, "heldout": 2, "test": 2}'
    exec(block.replace('overrides={"lambda_kd": 10.0}', tiny).replace("fit(ctx)", "fit(ctx, bar=False)"), {})
    assert (tmp_path / "runs/toy-5-2-overlap/mib/seed0/step2/metrics.json").exists()


def test_no_path_of_a_machine_and_no_placeholder_is_left(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z_]+@|/home/|/Users/|/tmp/", text)


def test_pictures_of_the_readme_exist(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", text)
    assert pictures and all((root / path).stat().st_size < 60_000 and len(alt) > 20 for alt, path in pictures)
