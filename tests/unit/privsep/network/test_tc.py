# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker.privsep.network import tc
from novadocker.privsep.network.types import NetworkRate

KIB = 1 << 10


@pytest.mark.parametrize(
    ("rate", "burst", "peak"),
    [
        # The burst covers 10 ms, and at least one segmented packet.
        (NetworkRate(125_000_000), 1_250_000, None),
        (NetworkRate(1_250_000), 64 * KIB, None),
        (NetworkRate(1_250_000, burst=100 * KIB), 100 * KIB, None),
        # The largest packet must fit.
        (NetworkRate(1_250_000, burst=1), 16 * KIB, None),
        (NetworkRate(1_250_000, peak=2_500_000, burst=100 * KIB), 100 * KIB, 2_500_000),
        (NetworkRate(1_250_000, peak=1_250_000), 64 * KIB, None),
    ],
)
def test_shapes(rate: NetworkRate, burst: int, peak: int | None) -> None:
    shape = tc.shape_of(rate)
    assert shape is not None
    assert (shape.average.rate, shape.average.burst) == (rate.average, burst)
    assert shape.average.limit > burst
    assert (shape.peak.rate if shape.peak else None) == peak


@pytest.mark.parametrize("rate", [None, NetworkRate(1 << 32)])
def test_no_shape(rate: NetworkRate | None) -> None:
    assert tc.shape_of(rate) is None


@pytest.mark.parametrize("average", [1, 1000, (1 << 32) - 1])
def test_a_burst_fits_the_kernels_counter(average: int) -> None:
    shape = tc.shape_of(NetworkRate(average, burst=1 << 40))
    assert shape is not None
    assert shape.average.burst * tc._TICKS // average < 1 << 32
