# SPDX-License-Identifier: Apache-2.0
import socket
import struct
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, nlmsg
from pyroute2.netlink.rtnl import RTM_NEWLINK, RTM_NEWQDISC
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from novadocker.privsep.network import tc
from novadocker.privsep.network.types import NetworkRate

KIB = 1 << 10
RATE = NetworkRate(1_250_000)
DEVICE = 7
# struct nlmsgerr of linux/netlink.h without an error
ACKNOWLEDGEMENT = struct.pack("=IHHIIi16x", 36, NLMSG_ERROR, 0, 0, 0, 0)


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


def encoded(message: Any, kind: int, flags: int = 0, **attributes: object) -> bytes:
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message["attrs"] = list(attributes.items())
    message.encode()
    return bytes(message.data)


def link(name: str) -> bytes:
    """Return the response to the request of a device."""
    message = ifinfmsg()
    message["index"] = DEVICE
    return encoded(message, RTM_NEWLINK, IFLA_IFNAME=name) + ACKNOWLEDGEMENT


def qdiscs(*rates: NetworkRate, changed: bool = False) -> bytes:
    """Return a list with a token bucket of novadocker for each rate."""
    found = b""
    for rate in rates:
        shape = tc.shape_of(rate)
        assert shape is not None
        bucket = shape.average
        message = tcmsg()
        message["index"] = DEVICE
        message["handle"] = tc._MAJOR << 16
        ticks = bucket.burst * tc._TICKS // bucket.rate
        parameters = {"rate": bucket.rate, "buffer": ticks, "limit": bucket.limit}
        options = {"attrs": [("TCA_TBF_PARMS", parameters)]}
        found += encoded(message, RTM_NEWQDISC, TCA_KIND="tbf", TCA_OPTIONS=options)
    return found + encoded(nlmsg(), NLMSG_DONE, NLM_F_DUMP_INTR if changed else 0)


@pytest.mark.parametrize(
    ("present", "lacking"),
    [([RATE], set()), ([], {"tap1"}), ([NetworkRate(2_500_000)], {"tap1"})],
)
def test_devices_without_rate(
    kernel: socket.socket, present: list[NetworkRate], lacking: set[str]
) -> None:
    kernel.send(link("tap1"))
    kernel.send(qdiscs(*present))
    assert tc.devices_without_rate({"tap1": RATE}) == lacking


def test_no_device_has_a_rate() -> None:
    assert tc.devices_without_rate({}) == set()


def test_qdiscs_that_change_are_listed_again(kernel: socket.socket) -> None:
    kernel.send(link("tap1"))
    kernel.send(qdiscs(changed=True))
    kernel.send(qdiscs(RATE))
    assert tc.devices_without_rate({"tap1": RATE}) == set()


def test_qdiscs_that_change_all_the_time(kernel: socket.socket) -> None:
    kernel.send(link("tap1"))
    for _ in range(5):
        kernel.send(qdiscs(changed=True))
    with pytest.raises(OSError, match="changed during each attempt"):
        tc.devices_without_rate({"tap1": RATE})


def test_devices_of_the_kernel() -> None:
    assert tc.devices_without_rate({"lo": RATE, "absent0": RATE}) == {"lo"}
