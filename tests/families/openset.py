"""LAG's helpers that stand beside the method: grey-level entropy, OpenMax."""

from collections.abc import Callable
from typing import Any

from cisskit.errors import KitError
from cisskit.openset import class_distances, grey_entropy, grey_entropy_released, openmax
from families.pieces import Arrays, Outputs


def entropy(meta: Any, a: Arrays) -> Outputs:
    args = meta["args"]
    if args.get("log_base", 2) != 2:
        raise KitError(f"the kit's entropy is in bits, not to the base {args['log_base']}.")
    grey, reach = a.tensor("gray"), args["N"]
    return {
        "entropy_uint8": grey_entropy_released(grey, reach=reach),
        "entropy_float": grey_entropy(grey, reach=reach),
    }


def recalibrated(meta: Any, a: Arrays) -> Outputs:
    args, means, features = meta["args"], a.tensor("mav"), a.tensor("feats")
    how: Any = {"kind": args.get("distance", "eucos"), "weight": args["eu_weight"]}
    found = openmax(a.tensor("score"), means, a.tensor("weib_scale"), a.tensor("weib_shape"), alpha=args["alpha"], **how)
    kinds = {"dist_eucos": "eucos", "dist_cos": "cosine", "dist_eu": "euclidean"}
    distances = {name: class_distances(features, means[0], kind=kind, weight=args["eu_weight"]) for name, kind in kinds.items()}
    return {"openmax": found.openmax, "softmax": found.softmax, **distances}


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "lag/entropy": entropy,
    "lag/openmax": recalibrated,
}
TOLERANCES: dict[str, float] = {}
