# SPDX-License-Identifier: Apache-2.0
"""Network rates as token buckets (tc-tbf) on the devices of an instance, through netlink.

Traffic to the server leaves the host end of its veth pair, traffic from it the guest end: both
are shaped where they are sent, which every switch heeds. What tc does to packets that arrive at
the host end is lost on an Open vSwitch in user space, which reads them before.

Neutron's QoS has the switch put a queueing discipline (linux-htb) on the host end. It stays, and
ours goes into its classes, so that the lower rate wins. Kept free of Nova: the privileged process
imports it.
"""

import dataclasses
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg.common import calc_xmittime

from novadocker import privsep
from novadocker.linux import namespaces
from novadocker.privsep import arguments
from novadocker.privsep.network import namespace
from novadocker.privsep.network.types import NetworkRate

# major number of ours; those in the classes of a foreign one follow it
_MAJOR = 0x7D0
# so much higher is that of a peak's
_INNER = 0x20
# of a tbf without RATE64; no veth is faster
_TOP_RATE = (1 << 32) - 1
# as much as may be sent in one turn of the CPU's, and no less than a segmented packet
_BURST_SECONDS = 0.01
_LEAST_BURST = 1 << 16
# a packet of the largest MTU that is in use must fit
_SMALLEST_BURST = 1 << 14
# how long a packet may wait
_QUEUE_SECONDS = 0.05
# the kernel's unit of time here, in a second
_TICKS = calc_xmittime(1, 1)
# what a device has before anybody asks for another
_DEFAULT_KINDS = ("noqueue", "pfifo_fast", "fq_codel", "fq", "mq")


@dataclass(frozen=True)
class Bucket:
    """A token bucket, in bytes and bytes per second; ``limit`` bytes may wait for tokens."""

    rate: int
    burst: int
    limit: int


@dataclass(frozen=True)
class Shape:
    """The token buckets of one direction: of the average, and one in it while bursts last."""

    average: Bucket
    peak: Bucket | None


_UNLIMITED = Bucket(rate=_TOP_RATE, burst=1 << 23, limit=1 << 25)


_RATE_FIELDS = [field.name for field in dataclasses.fields(NetworkRate)]


def shape_of(rate: NetworkRate | None) -> Shape | None:
    """Pure: return the token buckets of a rate; None where there is no limit.

    A rate beyond 34 Gbit/s is none: the kernel's shaper counts no further, nor is a veth faster.
    """
    if rate is None or rate.average > _TOP_RATE:
        return None
    peak = rate.average < rate.peak <= _TOP_RATE
    return Shape(_bucket(rate.average, rate.burst), _bucket(rate.peak, 0) if peak else None)


def _bucket(rate: int, burst: int) -> Bucket:
    chosen = max(burst, _SMALLEST_BURST) if burst else _burst(rate)
    # the kernel counts it in ticks, of 32 bits
    chosen = min(chosen, ((1 << 32) - 1) * rate // _TICKS)
    return Bucket(rate, chosen, chosen + max(_LEAST_BURST, int(rate * _QUEUE_SECONDS)))


def _burst(rate: int) -> int:
    return max(_LEAST_BURST, int(rate * _BURST_SECONDS))


def shape(netlink: IPRoute, device: str, wanted: Shape | None, own: bool) -> None:
    """Make traffic that leaves a device obey token buckets; what is right is left alone.

    To put a first queueing discipline on a device, or to take it away, loses what is sent at that
    moment; to change one loses nothing. So one that is no longer wanted gets the top rate.

    :param netlink: of the network namespace that the calling thread is in
    :param own: whether nobody else has a say in the device's queueing discipline
    :raises OSError: there is no such device, or the kernel does not keep the buckets
    :raises NetlinkError: the kernel refuses
    """
    index = socket.if_nametoindex(device)
    qdiscs = list(netlink.get_qdiscs(index=index))
    targets = {}
    for parent, major in _places(netlink, index, qdiscs, own):
        targets[parent, major << 16] = wanted.average if wanted else None
        # a tbf is a class of its own, with the minor number 1
        targets[major << 16 | 1, (major + _INNER) << 16] = wanted.peak if wanted else None
    present = _buckets(qdiscs)
    changed = {}
    for place, bucket in targets.items():
        target = bucket or (_UNLIMITED if place in present else None)
        if target and not (place in present and _alike(present[place], target)):
            changed[place] = target
            parent, handle = place
            netlink.tc("replace", "tbf", index, handle, parent=parent, **asdict(target))
    kept = _buckets(netlink.get_qdiscs(index=index)) if changed else {}
    for place, target in changed.items():
        if place not in kept or not _alike(kept[place], target):
            raise OSError(f"the kernel keeps {kept.get(place)} instead of {target}")


def lacking(qdiscs: Sequence[Any], devices: Mapping[int, NetworkRate]) -> set[int]:
    """Pure: return those devices, by index, on which no token bucket of ours has the rate.

    :param qdiscs: of all devices, as netlink tells them
    """
    present: dict[int, list[Bucket]] = {}
    for message in qdiscs:
        if _MAJOR <= message["handle"] >> 16 < _MAJOR + _INNER:
            found = _bucket_of(message)
            if found:
                present.setdefault(message["index"], []).append(found)
    return {
        index
        for index, rate in devices.items()
        if (wanted := shape_of(rate))
        and not any(_alike(found, wanted.average) for found in present.get(index, ()))
    }


def _places(
    netlink: IPRoute, index: int, qdiscs: Sequence[Any], own: bool
) -> list[tuple[int, int]]:
    """Return where a device needs token buckets: the parent, and the major number of ours."""
    roots = [
        message
        for message in qdiscs
        if message["parent"] == TC_H_ROOT and message["handle"] >> 16 != _MAJOR
    ]
    foreign = [root for root in roots if root.get_attr("TCA_KIND") not in _DEFAULT_KINDS]
    if own or not foreign:
        return [(TC_H_ROOT, _MAJOR)]
    classes = list(netlink.get_classes(index=index))
    parents = {message["parent"] for message in classes}
    # ours have classes, too
    leaves = sorted(
        message["handle"]
        for message in classes
        if message["handle"] not in parents and message["handle"] >> 16 < _MAJOR
    )
    return [(leaf, _MAJOR + 1 + number) for number, leaf in enumerate(leaves[: _INNER - 1])]


def _buckets(qdiscs: Iterable[Any]) -> dict[tuple[int, int], Bucket]:
    found = {(message["parent"], message["handle"]): _bucket_of(message) for message in qdiscs}
    return {place: value for place, value in found.items() if value is not None}


def _bucket_of(message: Any) -> Bucket | None:
    if message.get_attr("TCA_KIND") != "tbf":
        return None
    told = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    return Bucket(
        rate=told["rate"],
        burst=told["buffer"] * told["rate"] // _TICKS,
        limit=told["limit"],
    )


def _alike(first: Bucket, second: Bucket) -> bool:
    # the kernel keeps a burst as the ticks that it takes
    return (first.rate, first.limit) == (second.rate, second.limit) and (
        abs(first.burst - second.burst) <= max(second.burst // 50, 1024)
    )


@privsep.network_pctxt.entrypoint
def set_port_rates(
    instance_uuid: str,
    devices: Sequence[tuple[str, str]],
    inbound: Mapping[str, int] | None,
    outbound: Mapping[str, int] | None,
) -> None:
    """Set the rates of a server's wired VIFs, and see that the kernel keeps them.

    :param devices: the host end and the guest end of each VIF
    :param inbound: ``model.NetworkRate`` as a dictionary, of each VIF's traffic to the server
    :param outbound: the same for traffic from it
    :raises ValueError: an argument is not well-formed
    :raises OSError: the kernel does not keep a rate
    """
    path = namespace.namespace_path(instance_uuid)
    to_server, from_server = _parse(inbound), _parse(outbound)
    pairs = [arguments.device_pair(pair) for pair in arguments.items(devices)]
    namespaces.run_in_thread(_shape, path, pairs, to_server, from_server)


def _shape(
    path: str,
    pairs: Sequence[tuple[str, str]],
    inbound: Shape | None,
    outbound: Shape | None,
) -> None:
    try:
        with IPRoute() as host:
            for device, _ in pairs:
                shape(host, device, inbound, own=False)
        namespaces.enter_namespace_at(path)
        with IPRoute() as guest:
            for _, device in pairs:
                shape(guest, device, outbound, own=True)
    except NetlinkError as error:
        # an error that the caller can know without pyroute2
        raise OSError(error.code, str(error)) from error


def _parse(rate: object) -> Shape | None:
    if rate is None:
        return None
    found = NetworkRate(**arguments.rates(_RATE_FIELDS, rate))
    if not found.average:
        raise ValueError(f"{found} is no rate")
    return shape_of(found)
