"""LAG's helper that judges scores: the parts of a Brier score."""

from collections.abc import Callable
from typing import Any

from cisskit.calibration import brier, equal_count_edges, reliability
from families.pieces import Arrays, Outputs


def parts(meta: Any, a: Arrays) -> Outputs:
    forecast, outcome = a["forecast"], a["outcome"]
    edges = equal_count_edges(forecast, meta["args"]["bins"])
    found = brier(reliability(forecast, outcome, edges))
    return {
        "edges": edges,
        "CAL": found.calibration,
        "RES": found.resolution,
        "UNC": found.uncertainty,
        "BS": found.score,
        "brier_direct": ((forecast - outcome) ** 2).mean(),
    }


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "lag/brier": parts,
}
TOLERANCES: dict[str, float] = {}
