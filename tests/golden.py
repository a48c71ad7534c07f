"""Runs recorded cases against the kit: ``python tests/golden.py DIR...``

A case is an ``.npz`` file of arrays plus ``meta``, a JSON string. ``meta["family"]`` says which quantity was recorded;
`FAMILIES` maps it to a function that calls the kit with the arguments in ``meta`` and the arrays, and returns outputs under
the recorded names. Every array of a file must be read by that function or compared with what it returns; one that is
neither is a failure, so nothing recorded goes unchecked. Values must agree to the tolerance of the file, integers exactly.

Exit status 1 if a case failed or could not be read. Families without a function are listed as unmapped and do not fail.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # runs without installing, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from families import amis, attribution, baselines, calibration, data, dkd, idec, lag, mbs, network, openset, plop, ssul
from families.pieces import Arrays, Outputs
from torch import Tensor

from cisskit.errors import KitError

FOLDERS = (dkd, baselines, data, plop, ssul, idec, network, lag, mbs, amis, openset, calibration, attribution)
FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {k: v for m in FOLDERS for k, v in m.FAMILIES.items()}
TOLERANCES: dict[str, float] = {k: v for m in FOLDERS for k, v in getattr(m, "TOLERANCES", {}).items()}
"""Relative and absolute, where a file states none and its precision is not what limits it."""


@dataclass
class Case:
    """What became of a file. status: "passed", "failed" or "unmapped"."""

    path: Path
    family: str = "unreadable"
    status: str = "failed"
    faults: list[str] = field(default_factory=list)


def run_case(path: Path) -> Case:
    """Check one file against the kit."""
    case = Case(path)
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = Arrays({name: file[name] for name in file.files if name != "meta"})
            meta = json.loads(str(file["meta"]))
        case.family = meta["family"]
    except Exception as error:  # a damaged file can raise almost anything; each means the same here
        case.faults.append(f"cannot be read: {type(error).__name__}: {error}")
        return case
    if case.family not in FAMILIES:
        case.status = "unmapped"
        return case
    try:
        outputs = FAMILIES[case.family](meta, arrays)
    except Exception as error:  # the other cases are still worth a run
        case.faults.append(f"the kit raised {type(error).__name__}: {error}")
        return case
    compared = [name for name in outputs if name in arrays]
    for name in compared:
        fault = difference(outputs[name], arrays.all[name], tolerance(meta, arrays, name))
        if fault:
            case.faults.append(f"{name}: {fault}")
    left = sorted(set(arrays) - arrays.read - set(compared))
    if left:
        case.faults.append(f"neither used nor compared: {', '.join(left)}")
    if not compared:
        case.faults.append("holds no output that could be compared")
    case.status = "failed" if case.faults else "passed"
    return case


def tolerance(meta: Any, arrays: Arrays, name: str) -> tuple[float, float]:
    """(relative, absolute) for one array: what the file states, else by family, else by its coarsest floating type.

    Weights stored in half precision are exact and do not count. The absolute part is never below the rounding of the recorded
    value itself: released losses subtract numbers as large as the logits, so a small loss carries the last digit of the
    largest number in the file, and a gradient that share of its own size.
    """
    stated, floats = meta.get("tolerance"), [x for x in arrays.all.values() if x.dtype.kind == "f" and x.dtype != np.float16]
    if stated and stated.get("exact"):
        return 0.0, 0.0
    coarsest = max((np.finfo(x.dtype).eps for x in floats), default=0.0)
    if stated:
        relative, absolute = stated.get("rtol", 0.0), stated.get("atol", 0.0)
    elif meta["family"] in TOLERANCES:
        relative = absolute = TOLERANCES[meta["family"]]
    else:
        relative, absolute = (2e-5, 1e-7) if coarsest > 1e-10 else (1e-9, 1e-12)
    rounding = float(2 * coarsest * max(map(largest, floats), default=0))
    if name.startswith("grad"):
        rounding *= largest(arrays.all[name])
    return relative, max(absolute, rounding)


def largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def difference(got: Any, want: np.ndarray, allowed: tuple[float, float]) -> str:
    """What is wrong with ``got``, or "". NaN equals NaN; integers and truth values must be equal."""
    got = got.detach().numpy() if isinstance(got, Tensor) else np.asarray(got)
    if got.shape != want.shape:
        return f"shape {got.shape}, recorded {want.shape}"
    if want.dtype.kind != "f":
        wrong = int((got != want).sum())
        largest = np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0)
        return f"{wrong} of {want.size} values differ, by up to {largest:g}" if wrong else ""
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, got) - np.where(same, 0.0, want)))
    rtol, atol = allowed
    wrong = int((~(gap <= atol + rtol * np.abs(np.where(same, 0.0, want)))).sum())  # NaN and infinite gaps are wrong
    if not wrong:
        return ""
    return f"{wrong} of {want.size} values differ, by up to {gap.max():.3g} (allowed {rtol:g} relative, {atol:g} absolute)"


def find(places: Sequence[Path]) -> list[Path]:
    """All case files under the folders. Raises `KitError` for a place without any."""
    found = []
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob("*.npz"))
        if not files:
            raise KitError(f"no .npz file under {place}; pass folders of recorded cases, such as tests/golden.")
        found += files
    return found


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        cases = [run_case(path) for path in find([Path(a) for a in arguments])]
    except KitError as error:
        print(error)
        return 1
    tally = Counter((case.family, case.status) for case in cases)
    print(f"{'family':28}passed  failed")
    for family in sorted({case.family for case in cases if case.status != "unmapped"}):
        print(f"{family:28}{tally[family, 'passed']:6d}  {tally[family, 'failed']:6d}")
    for case in cases:
        for fault in case.faults:
            print(f"FAILED {case.path}: {fault}")
    unmapped = Counter(case.family for case in cases if case.status == "unmapped")
    if unmapped:
        print(f"unmapped, not checked: {', '.join(f'{name} ({n})' for name, n in sorted(unmapped.items()))}")
    total = Counter(case.status for case in cases)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['unmapped']} unmapped")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
