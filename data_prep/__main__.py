"""``python -m data_prep <data set> --root DATA [--check]``"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cisskit.errors import KitError
from data_prep import voc

DATASETS = {"voc": voc}


def main(arguments: Sequence[str] | None = None) -> int:
    """0: ready. 1: something is missing or wrong, and was printed."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description="Put a data set into its official layout, or check it."
    )
    datasets = parser.add_subparsers(dest="dataset", required=True)
    for name, module in DATASETS.items():
        one = datasets.add_parser(name, help=(module.__doc__ or "").splitlines()[0], description=module.__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.add_argument("--root", type=Path, required=True, metavar="DATA", help="folder of the archives and of the data set")
        one.add_argument("--check", action="store_true", help="print what is there and what should be; change nothing")
    chosen = parser.parse_args(arguments)
    module = DATASETS[chosen.dataset]
    try:
        return module.check(chosen.root) if chosen.check else module.assemble(chosen.root)
    except KitError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
