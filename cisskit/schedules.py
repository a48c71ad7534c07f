"""Learning-rate schedules: the factor on the base rate at iteration k = 0..K-1 of K. Plain numbers, no state.

A step restarts its schedule. Sources: the released MiB, SSUL and DKD code.
"""

import math

from cisskit.errors import KitError


def poly(k: int, K: int, *, power: float = 0.9) -> float:
    """(1 - k/K)^power: 1 at the first iteration, just above 0 at the last (MiB, PLOP, RCIL, DKD on VOC)."""
    _check(k, K)
    return (1 - k / K) ** power


def warm_poly(k: int, K: int, *, warmup: float = 0.2, start: float = 0.001, power: float = 0.9) -> float:
    """`poly` times a linear rise from ``start`` to 1 over the first ``warmup`` share of the iterations.

    DKD on ADE20K: warmup 0.2; SSUL on ADE20K: 0.1. ``warmup=0`` is `poly`.
    """
    if not 0 <= warmup <= 1:
        raise KitError(f"warmup = {warmup} is a share of all iterations: choose 0..1.")
    a = k / (warmup * K) if k < warmup * K else 1.0
    return (start * (1 - a) + a) * poly(k, K, power=power)


def poly_lr(base: float, k: int, K: int, *, floor: float = 1e-6, power: float = 0.9) -> float:
    """Learning rate, not factor: ``base`` times `poly`, never below ``floor`` (SSUL; the floor is absolute)."""
    return max(base * poly(k, K, power=power), floor)


def one_cycle(k: int, K: int, *, warmup: float = 0.3, start: float = 0.04, end: float = 0.0) -> float:
    """Half a cosine up from ``start`` to 1 over the first ``warmup`` share, half a cosine down to ``end`` after it.

    The kit's own, for the embedded scenes, where a network learns from scratch in a few hundred iterations.
    ``end`` is reached at k = K, one past the last iteration.
    """
    _check(k, K)
    if not 0 <= warmup <= 1:
        raise KitError(f"warmup = {warmup} is a share of all iterations: choose 0..1.")
    peak = warmup * K
    if k < peak:
        return start + (1 - start) * (1 - math.cos(math.pi * k / peak)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (k - peak) / (K - peak))) / 2


def _check(k: int, K: int) -> None:
    if not 0 <= k < K:
        raise KitError(f"iteration {k} is outside 0..{K - 1} (K = {K}). Has the schedule been stepped after the last iteration?")
