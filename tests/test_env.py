"""environment.yml, pyproject.toml and constraints.txt describe one environment, and this one is inside their ranges."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cisskit import doctor

PYTHONS = ("3.11", "3.12", "3.13")  # the pins were resolved for these
FOLLOW_TORCH = ("nvidia-", "cuda-", "triton")  # Linux only; torch's metadata names their versions


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Canonical name -> requirement; a name that comes twice is a fault."""
    parsed = [Requirement(line) for line in lines]
    names = [canonicalize_name(each.name) for each in parsed]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return dict(zip(names, parsed, strict=True))


def version(pin: Requirement) -> Version:
    """The version of an exact pin."""
    (specifier,) = pin.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{pin} is not an exact pin"
    return Version(specifier.version)


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def direct(project: dict) -> dict[str, Requirement]:
    """What `.[test]` names itself."""
    return requirements(project["dependencies"] + project["optional-dependencies"]["test"])


@pytest.fixture(scope="module")
def lock(root: Path) -> dict[str, Requirement]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return requirements([line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def conda(root: Path) -> dict:
    return yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def conda_pip(conda: dict) -> list[str]:
    (nested,) = (each["pip"] for each in conda["dependencies"] if isinstance(each, dict))
    return nested


def test_conda_file_has_the_expected_form(conda, conda_pip, project):
    assert conda.keys() == {"name", "channels", "dependencies"}
    assert conda["name"] == project["name"] and conda["channels"] == ["conda-forge"]
    python, pip = (each for each in conda["dependencies"] if isinstance(each, str))
    assert pip == "pip" and python.startswith("python=")
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python.removeprefix("python="))
    assert [line for line in conda_pip if line.startswith("-")] == ["-c constraints.txt", "-e .[test]"]


def test_conda_file_pins_exactly_the_direct_dependencies(conda_pip, direct):
    pins = requirements([line for line in conda_pip if not line.startswith("-")])
    assert pins.keys() == direct.keys()
    for name, pin in pins.items():
        assert direct[name].specifier.contains(version(pin)), f"{pin} is outside pyproject's {direct[name]}"


def test_conda_file_and_lock_pin_the_same_versions(conda_pip, lock):
    pins = requirements([line for line in conda_pip if not line.startswith("-")])
    assert {name: version(pin) for name, pin in pins.items()} == {name: version(lock[name]) for name in pins}


def test_every_extra_is_pinned_inside_its_range(project, lock):
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        for name, wanted in requirements(lines).items():
            assert name in lock, f"{name} is not in constraints.txt"
            assert wanted.specifier.contains(version(lock[name])), f"{lock[name]} is outside pyproject's {wanted}"
            assert lock[name].marker is None, f"{name} is a direct dependency: one version for every Python"


def test_lock_holds_exact_pins_and_names_no_index(root, lock):
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--|@|\bfile:|^\s*-", text, flags=re.MULTILINE)
    for pin in lock.values():
        assert pin.url is None and not pin.extras and version(pin)
    assert not [name for name in lock if name.startswith(FOLLOW_TORCH)]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_covers_what_the_direct_dependencies_pull_in(python, direct, lock):
    """Walk the installed metadata as an installer for Linux would, for each Python the lock is meant for."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    missing, seen, todo = set(), set(), list(direct.values())
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen or name.startswith(FOLLOW_TORCH):
            continue
        seen.add((name, frozenset(wanted.extras)))
        pin = lock.get(name)
        if pin is None or (pin.marker and not pin.marker.evaluate(environment)):
            missing.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # only needed on another Python than this one
            continue
        for each in map(Requirement, lines):
            extras = wanted.extras or {""}
            if each.marker is None or any(each.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                todo.append(each)
    assert not missing


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_installed_pair_is_inside_the_ranges(name, direct):
    # The build after "+" (cu130, cpu) is no part of the range.
    assert direct[name].specifier.contains(Version(metadata.version(name)).public)


def test_ranges_admit_the_pairs_the_kit_is_meant_for(direct):
    for torch, torchvision in (("2.11.0", "0.26.0"), ("2.14.1", "0.29.1")):
        assert direct["torch"].specifier.contains(torch) and direct["torchvision"].specifier.contains(torchvision)
    assert not direct["torch"].specifier.contains("2.13.0")


def test_doctor_recommends_the_pinned_pair(lock):
    assert doctor.PINNED.split() == [str(lock["torch"]), str(lock["torchvision"])]


def test_this_python_is_admitted(project):
    assert Requirement(f"python{project['requires-python']}").specifier.contains(".".join(map(str, sys.version_info[:3])))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed; the README gives the commands without it")
def test_make_lists_its_targets(root):
    listed = subprocess.run(["make", "-s", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lab", "format", "lint", "types", "notebooks", "clean"):
        assert re.search(rf"^make {target} +\w", listed, flags=re.MULTILINE), target
