"""``python -m data_prep <data set> --root DATA [--check]``"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from cisskit.errors import KitError
from data_prep import ade20k, camvid, folder, isprs, saliency, voc

DATASETS = {"voc": voc, "ade20k": ade20k, "isprs": isprs, "camvid": camvid, "folder": folder, "saliency": saliency}
ALSO = {"ade20k": ["ade"], "isprs": ["isprs_compat"]}
"""Names of the same data sets in scenarios."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: ready. 1: something is missing or wrong, and was printed."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description="Put a data set into the layout that the kit reads, or check it."
    )
    datasets = parser.add_subparsers(dest="dataset", required=True)
    for name, module in DATASETS.items():
        one = datasets.add_parser(name, aliases=ALSO.get(name, []), help=(module.__doc__ or "").splitlines()[0],
                                  description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.add_argument("--root", type=Path, required=True, metavar="DATA", help="folder of the archives and of the data set")
        one.add_argument("--check", action="store_true", help="print what is there and what should be; change nothing")
        module.options(one)
        one.set_defaults(module=module)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.check:
            return int(chosen.module.check(chosen))
        if not chosen.root.is_dir():
            raise KitError(f"{chosen.root} does not exist. Make the folder, so that nothing lands in a mistyped place.")
        lock = FileLock(chosen.root / ".data_prep.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise KitError(f"another data_prep is at work in {chosen.root}; wait for it.") from error
        except OSError as error:
            raise KitError(f"cannot write in {chosen.root}: {error}. --check looks and writes nothing.") from error
        try:
            return int(chosen.module.assemble(chosen))
        finally:
            lock.release()
    except KitError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
