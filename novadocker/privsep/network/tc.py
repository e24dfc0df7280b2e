# SPDX-License-Identifier: Apache-2.0
"""Network rates as token buckets (tc-tbf) on the devices of an instance, through netlink.

Traffic to the server leaves the host end of its veth pair, and traffic from the server leaves the
guest end. Both directions are shaped at the sending end, which works with every switch. Policing
at the receiving host end would have no effect on the userspace datapath of Open vSwitch, which
reads packets earlier.

With Neutron's QoS, Open vSwitch puts a queueing discipline (linux-htb) on the host end. The token
buckets of novadocker go into its classes, so that the lower rate wins.
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
from novadocker.privsep.network import link as network_link
from novadocker.privsep.network import namespace, rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink
from novadocker.privsep.network.types import NetworkRate

# The major number of novadocker's queueing disciplines; those in the classes of another queueing
# discipline have the following numbers.
_MAJOR = 0x7D0
# added to the major number for the token bucket of the peak rate
_INNER = 0x20
# the highest rate of a tbf without TCA_TBF_RATE64; no veth device is faster
_TOP_RATE = (1 << 32) - 1
# the traffic of one time slice of a CPU, but at least one packet before segmentation
_BURST_SECONDS = 0.01
_LEAST_BURST = 1 << 16
# larger than a packet of the largest MTU in use
_SMALLEST_BURST = 1 << 14
# the longest time that a packet waits for tokens
_QUEUE_SECONDS = 0.05
# ticks in a second; the kernel counts a burst in ticks
_TICKS = calc_xmittime(1, 1)
# the queueing disciplines that the kernel gives to a device
_DEFAULT_KINDS = ("noqueue", "pfifo_fast", "fq_codel", "fq", "mq")


@dataclass(frozen=True)
class Bucket:
    """A token bucket, in bytes and bytes per second; ``limit`` bytes may wait for tokens."""

    rate: int
    burst: int
    limit: int


@dataclass(frozen=True)
class Shape:
    """The token buckets of one direction: for the average rate, and inside it for the peak rate."""

    average: Bucket
    peak: Bucket | None


_UNLIMITED = Bucket(rate=_TOP_RATE, burst=1 << 23, limit=1 << 25)


_RATE_FIELDS = [field.name for field in dataclasses.fields(NetworkRate)]


def shape_of(rate: NetworkRate | None) -> Shape | None:
    """Return the token buckets of a rate, or None if there is no limit. Pure.

    A rate beyond 34 Gbit/s means unlimited: the kernel's shaper has no higher rate, and no veth
    device is faster.
    """
    if rate is None or rate.average > _TOP_RATE:
        return None
    peak = rate.average < rate.peak <= _TOP_RATE
    return Shape(_bucket(rate.average, rate.burst), _bucket(rate.peak, 0) if peak else None)


def _bucket(rate: int, burst: int) -> Bucket:
    chosen = max(burst, _SMALLEST_BURST) if burst else _burst(rate)
    # Because the kernel counts a burst in ticks of 32 bits, the burst has a maximum.
    chosen = min(chosen, ((1 << 32) - 1) * rate // _TICKS)
    return Bucket(rate, chosen, chosen + max(_LEAST_BURST, int(rate * _QUEUE_SECONDS)))


def _burst(rate: int) -> int:
    return max(_LEAST_BURST, int(rate * _BURST_SECONDS))


def shape(netlink: IPRoute, device: str, wanted: Shape | None, own: bool) -> None:
    """Put token buckets on a device for the traffic that leaves it; change only what differs.

    Adding the first queueing discipline to a device, or deleting it, loses packets that are sent
    at that moment; changing it loses none. So a bucket that is no longer wanted gets the top rate.

    :param netlink: of the network namespace that the calling thread is in
    :param own: True if only novadocker sets queueing disciplines on the device
    :raises OSError: the device does not exist, or the kernel does not keep the buckets
    :raises NetlinkError: the kernel refuses
    """
    index = socket.if_nametoindex(device)
    qdiscs = list(netlink.get_qdiscs(index=index))
    targets = {}
    for parent, major in _places(netlink, index, qdiscs, own):
        targets[parent, major << 16] = wanted.average if wanted else None
        # Because a tbf has one class, with the minor number 1, the peak's bucket goes into it.
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


def devices_without_rate(rates: Mapping[str, NetworkRate]) -> set[str]:
    """Return the devices on which no token bucket of novadocker has the rate.

    Ignores devices that do not exist. Needs no privilege.

    :param rates: the rate by the name of the device, in the calling thread's namespace
    :raises OSError: the kernel refuses, or its list changes during each attempt
    """
    if not rates:
        return set()
    with Netlink() as netlink:
        links = network_link.find_links(netlink, rates)
        names = {link["index"]: name for name, link in links.items()}
        qdiscs = netlink.dump(rtnetlink.list_qdiscs())
    lacking = _lacking(qdiscs, {index: rates[name] for index, name in names.items()})
    return {names[index] for index in lacking}


def _lacking(qdiscs: Sequence[Any], devices: Mapping[int, NetworkRate]) -> set[int]:
    """Return the devices, by index, on which no token bucket of novadocker has the rate. Pure.

    :param qdiscs: the queueing disciplines of all devices, as messages of netlink
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
    """Return the parent and the major number of each token bucket that a device needs."""
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
    # Because novadocker's own queueing disciplines have classes, too, those are left out.
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
    parameters = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    return Bucket(
        rate=parameters["rate"],
        burst=parameters["buffer"] * parameters["rate"] // _TICKS,
        limit=parameters["limit"],
    )


def _alike(first: Bucket, second: Bucket) -> bool:
    # Because the kernel rounds a burst to ticks, bursts are compared with a tolerance.
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
    """Set the rates of a server's wired VIFs, and check that the kernel keeps them.

    :param devices: the host end and the guest end of each VIF
    :param inbound: ``types.NetworkRate`` as a dictionary, of each VIF's traffic to the server
    :param outbound: ``types.NetworkRate`` as a dictionary, of each VIF's traffic from the server
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
        # Because the caller does not import pyroute2, the error becomes an OSError.
        raise OSError(error.code, str(error)) from error


def _parse(rate: object) -> Shape | None:
    if rate is None:
        return None
    found = NetworkRate(**arguments.rates(_RATE_FIELDS, rate))
    if not found.average:
        raise ValueError(f"The average of {found} is 0.")
    return shape_of(found)
