"""Schedules, by hand."""

import pytest

from cisskit.errors import KitError
from cisskit.schedules import one_cycle, poly, poly_lr, warm_poly


def test_poly_by_hand():
    assert poly(0, 10) == 1
    assert poly(5, 10) == pytest.approx(0.5**0.9)
    assert poly(9, 10) == pytest.approx(0.1**0.9)
    assert poly(3, 4, power=2) == pytest.approx(1 / 16)


def test_warm_poly_rises_then_is_poly():
    assert warm_poly(0, 10) == pytest.approx(0.001)  # rise over the first 2 of 10
    assert warm_poly(1, 10) == pytest.approx((0.001 + 0.999 / 2) * 0.9**0.9)
    assert [warm_poly(k, 10) for k in range(2, 10)] == [poly(k, 10) for k in range(2, 10)]
    assert warm_poly(0, 10, warmup=0) == 1
    assert warm_poly(0, 20, warmup=0.1, start=0.5) == 0.5
    assert warm_poly(1, 20, warmup=0.1, start=0.5) == pytest.approx(0.75 * 0.95**0.9)


def test_poly_lr_has_an_absolute_floor():
    assert poly_lr(0.01, 0, 10) == 0.01
    assert poly_lr(0.01, 99_999, 100_000) == 1e-6
    assert poly_lr(2e-6, 9, 10) == 1e-6
    assert poly_lr(2e-6, 9, 10, floor=0) == pytest.approx(2e-6 * 0.1**0.9)


def test_one_cycle_by_hand():
    assert one_cycle(0, 10) == pytest.approx(0.04)
    assert one_cycle(3, 10) == 1  # the peak, after 30 %
    assert one_cycle(1, 4, warmup=0.5, start=0) == pytest.approx(0.5)  # half a cosine at its middle
    assert one_cycle(3, 4, warmup=0.5, end=0.2) == pytest.approx(0.6)
    assert one_cycle(999, 1000) < 1e-4
    values = [one_cycle(k, 100) for k in range(100)]
    assert values[:31] == sorted(values[:31]) and values[30:] == sorted(values[30:], reverse=True)
    assert one_cycle(0, 1) == pytest.approx(0.04)
    assert one_cycle(0, 1, warmup=0) == 1
    assert one_cycle(3, 4, warmup=1, start=0) == pytest.approx((1 + 0.5**0.5) / 2)


@pytest.mark.parametrize("schedule", [poly, warm_poly, one_cycle])
def test_an_iteration_outside_the_run_is_an_error(schedule):
    for k in (-1, 10):
        with pytest.raises(KitError, match=r"outside 0\.\.9"):
            schedule(k, 10)


@pytest.mark.parametrize("schedule", [warm_poly, one_cycle])
def test_a_warmup_longer_than_the_run_is_an_error(schedule):
    with pytest.raises(KitError, match="share"):
        schedule(0, 10, warmup=2)
