"""What this machine can do for the kit: one line per check, and how to mend what fails.

Nothing of the kit is imported here, and every library only inside its own check: a broken installation is reported, not raised.
"""

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PINNED = "torch==2.14.1 torchvision==0.29.1"
"""The pair that a fresh set-up installs (constraints.txt; a test compares them)."""
NEEDED_GB = 5
"""Free space asked for at the run folder (10^9 bytes)."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LAYOUTS = {"voc": (("JPEGImages",), ("SegmentationClassAug", "SegmentationClass"), ("ImageSets/Segmentation",))}
"""Folders that a data root must hold, by data set: of each group, one."""
INSIDE = {"voc": (".", "VOC2012", "VOCdevkit/VOC2012")}
"""Where in a data root those folders may lie: the official archive brings two folders of its own."""
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: what was looked at, one or two words.
        ok: True = works; False = the kit cannot do its work; None = worth knowing, not needed.
        detail: what was found.
        mend: what to do about it; empty when ``ok`` is True.
    """

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


def checks(data_roots: dict[str, Path] | None = None, runs: Path = Path("runs")) -> list[Check]:
    """All checks, in the order in which a person should mend them.

    Args:
        data_roots: data set -> folder of its files; None or empty checks no data.
        runs: folder that will hold the runs; it need not exist.
    """
    found = [_guarded(check) for check in (torch_pair, device, threads, kernel, papermill, fonts, browser)]
    found.append(free_disk(runs))
    found += [data_root(dataset, Path(root)) for dataset, root in (data_roots or {}).items()]
    found.append(revision())
    return found


def report(checks: Sequence[Check]) -> str:
    """The checks as text: state, name and finding in columns, the remedy below each that needs one, a closing count."""
    width = max((len(check.name) for check in checks), default=0)
    state = {True: "ok", False: "mend", None: "note"}
    lines = []
    for check in checks:
        lines.append(f"{state[check.ok]:4}  {check.name:{width}}  {check.detail}")
        if check.mend:
            lines.append(f"{'':{width + 8}}-> {check.mend}")
    count = {ok: sum(check.ok is ok for check in checks) for ok in state}
    lines.append(f"{count[True]} ok, {count[False]} to mend, {count[None]} to note (not needed)")
    return "\n".join(lines)


def _guarded(check: Callable[[], Check]) -> Check:
    """A check that fails in a way nobody foresaw is itself a finding; the others still run."""
    try:
        return check()
    except Exception as error:
        name = check.__name__.replace("_", " ")
        return Check(name, False, f"the check itself failed: {_short(error)}", "report this line with the output of `pip list`")


def _short(error: BaseException) -> str:
    """Kind and first line of an error."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _pip_install(what: str) -> str:
    return f"{sys.executable} -m pip install {what}"


def torch_pair() -> Check:
    """torch and torchvision import and fit: one compiled operator of torchvision is really called."""
    name = "torch pair"
    try:
        torch, torchvision = importlib.import_module("torch"), importlib.import_module("torchvision")
        pair = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    except Exception as error:  # a mixed pair fails while importing, with RuntimeError or OSError
        return Check(name, False, f"import failed ({_short(error)})", _pip_install(PINNED))
    try:
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()
    except Exception as error:
        return Check(name, False, f"{pair}: torchvision.ops.nms failed ({_short(error)})", _pip_install(PINNED))
    if kept != [1]:
        return Check(name, False, f"{pair}: torchvision.ops.nms kept boxes {kept}, not [1]", _pip_install(PINNED))
    return Check(name, True, f"{pair}; torchvision.ops.nms works")


def device() -> Check:
    """Where training will run. A CUDA build without a GPU is fine; a driver that is too old is worth a line."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        return Check("device", False, f"torch cannot be imported ({_short(error)})", "mend the torch pair first")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        named = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards)
        return Check("device", True, f"cuda: {named}")
    cores = f"cpu: {_cores()} cores"
    if caught:
        why = str(caught[0].message).splitlines()[0]
        return Check("device", None, f"{cores}; CUDA was refused: {why}", "update the driver, or install a torch built for it")
    return Check("device", True, f"{cores}; no GPU is in sight of torch {torch.__version__}")


def _cores() -> int:
    """Cores this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> Check:
    """OMP_NUM_THREADS: with neighbours on the cores, two threads were four to six times slower than one."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if not value:
        advice = "export OMP_NUM_THREADS=1 when runs or other programs share the cores: one process per core, one thread each"
        return Check("threads", None, f"OMP_NUM_THREADS is not set: every process takes all {_cores()} cores", advice)
    if not value.isdigit() or int(value) < 1:
        return Check("threads", False, f"OMP_NUM_THREADS={value!r} is not a positive number", "export OMP_NUM_THREADS=1")
    if int(value) > _cores():
        return Check("threads", None, f"OMP_NUM_THREADS={value} on {_cores()} cores", "export OMP_NUM_THREADS=1")
    return Check("threads", True, f"OMP_NUM_THREADS={value}")


def kernel() -> Check:
    """The Jupyter kernel ``python3``, which notebooks name, starts this very environment."""
    name = "kernel python3"
    register = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    try:
        kernelspec = importlib.import_module("jupyter_client.kernelspec")
        importlib.import_module("ipykernel")
    except Exception as error:
        return Check(name, False, f"Jupyter cannot be imported ({_short(error)})", _pip_install("jupyter_client ipykernel"))
    try:
        spec = kernelspec.KernelSpecManager().get_kernel_spec("python3")
    except kernelspec.NoSuchKernel:
        return Check(name, False, "no kernel of this name is registered", register)
    where, command = Path(spec.resource_dir), spec.argv[0] if spec.argv else ""
    # Jupyter itself puts the running interpreter in place of a bare "python".
    if command in {"python", "python3", f"python3.{sys.version_info.minor}"}:
        return Check(name, True, f"{where} starts this interpreter ({sys.executable})")
    try:
        # Not by path: every virtual environment links to the same interpreter. Its prefix tells them apart.
        ask = [command, "-c", "import json, sys; print(json.dumps(sys.prefix))"]
        prefix = json.loads(subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Check(name, False, f"{where} starts {command}, which does not run ({_short(error)})", _unshadow(where, register))
    if Path(prefix).resolve() != Path(sys.prefix).resolve():
        return Check(name, False, f"{where} starts {command}, another environment", _unshadow(where, register))
    return Check(name, True, f"{where} starts this environment ({command})")


def _unshadow(where: Path, register: str) -> str:
    """Remedy for a wrong kernel: register this one; a kernel outside this environment also has to be put behind it."""
    inside = where.resolve().is_relative_to(Path(sys.prefix).resolve())
    return register if inside else f"{register} and export JUPYTER_PREFER_ENV_PATH=1 (or remove {where})"


def papermill() -> Check:
    """papermill executes the notebooks of a run."""
    try:
        importlib.import_module("papermill")
        return Check("papermill", True, f"papermill {importlib.metadata.version('papermill')}")
    except Exception as error:
        return Check("papermill", False, f"import failed ({_short(error)})", _pip_install("papermill"))


def fonts() -> Check:
    """matplotlib finds the font that every figure uses; it comes with matplotlib."""
    try:
        manager = importlib.import_module("matplotlib.font_manager")
    except Exception as error:
        return Check("fonts", False, f"matplotlib cannot be imported ({_short(error)})", _pip_install("matplotlib"))
    try:
        return Check("fonts", True, f"DejaVu Sans: {manager.findfont('DejaVu Sans', fallback_to_default=False)}")
    except ValueError:
        mend = f"{_pip_install('--force-reinstall --no-deps matplotlib')} and delete {_font_cache()}"
        return Check("fonts", False, "matplotlib does not find DejaVu Sans", mend)


def _font_cache() -> str:
    return os.path.join(importlib.import_module("matplotlib").get_cachedir(), "fontlist-*.json")


def browser() -> Check:
    """A Chromium for the browser tests. Reports and notebooks open in any browser."""
    for command in BROWSERS:
        if path := shutil.which(command):
            return Check("browser", True, path)
    mend = "only for the browser tests: apt-get install chromium, or any of these on the PATH"
    return Check("browser", None, f"none of {', '.join(BROWSERS)} on the PATH", mend)


def free_disk(runs: Path) -> Check:
    """The run folder, or the nearest folder above it that exists, can be written and has room."""
    name, folder = "free disk", runs.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Check(name, False, f"{folder} is a file; run folders cannot lie in it", "choose another folder with --runs")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check(name, False, f"{folder} cannot be written", "choose another folder with --runs")
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEEDED_GB:
        found = f"{free:.1f} GB free at {folder}; {NEEDED_GB} GB are needed"
        return Check(name, False, found, "free some, or choose another folder with --runs")
    return Check(name, True, f"{free:.0f} GB free at {folder}")


def data_root(dataset: str, root: Path) -> Check:
    """The folder of a data set exists and holds the folders of its official layout."""
    name, mend = f"data {dataset}", f"python -m data_prep {dataset} --root {root} makes it, and with --check says what is missing"
    if not root.is_dir():
        return Check(name, False, f"{root} is not a folder", mend)
    wanted = LAYOUTS.get(dataset, ())
    missing: list[str] = []
    for place in INSIDE.get(dataset, (".",)):
        base = root / place
        absent = [" or ".join(group) for group in wanted if not any((base / part).is_dir() for part in group)]
        if not absent:
            if not any(base.iterdir()):
                return Check(name, False, f"{base} is empty", mend)
            return Check(name, True, str(base))
        if not missing or len(absent) < len(missing):
            missing = absent
    return Check(name, False, f"{root} lacks {', '.join(missing)}", mend)


def revision() -> Check:
    """The git revision that a run's config.json records."""
    name, folder = "git revision", Path(__file__).resolve().parent
    without = "runs will record no revision; work from a git clone if you want it"
    try:
        ask = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, None, f"git does not run ({_short(error)})", without)
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["no answer"])[0]
        return Check(name, None, f"cannot be read ({said})", without)
    return Check(name, True, answer.stdout.strip()[:12])
