"""The picture of the package: imports point one way, methods know no other method, and the top level holds what is agreed."""

import ast
import subprocess
from pathlib import Path

import pytest

import cisskit

PACKAGE = Path(cisskit.__file__).parent
LAYERS = (  # a module may import from its own layer's left only
    ("errors",),
    ("files",),
    ("scenario", "schedules"),
    ("protocols",),
    ("losses", "metrics", "openset", "calibration", "replay", "pseudo", "semantics", "models", "data", "doctor"),
    ("method", "methods", "runs"),
    ("train", "published"),
    ("attribution",),
    ("views",),
    ("pipeline",),
    ("benchmark", "dashboard", "gallery"),
    ("cli",),
)
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imports(file):
    """Modules of ours that a file imports when it is loaded; those under TYPE_CHECKING and inside functions do not count."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cisskit":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names if alias.name in RANK]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert not list(imports(file))
        return
    for name in imports(file):
        assert RANK[name] <= RANK[own], f"{own} imports {name}, which stands above it"


@pytest.mark.parametrize("file", sorted((PACKAGE / "methods").glob("[a-z]*.py")), ids=lambda f: f.stem)
def test_a_method_imports_no_other_method_and_no_loop(file):
    assert not {"methods", "train", "runs", "views", "pipeline"} & set(imports(file))


def test_scenario_needs_no_torch(tmp_path):
    import sys

    code = "import sys; import cisskit.scenario; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_level_holds_what_is_agreed(root):
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    agreed = {"notebooks", "cisskit", "data_prep", "tests", "environment.yml", "README.md", "pyproject.toml", "Makefile"}
    agreed |= {"constraints.txt", "LICENSE", "CHANGELOG.md"}
    assert {name for name in top if not name.startswith(".")} == agreed
