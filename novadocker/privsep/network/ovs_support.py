# SPDX-License-Identifier: Apache-2.0
"""Privileged: find out whether the kernel can enforce Open vSwitch's bandwidth limits."""

import errno

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novadocker import privsep
from novadocker.linux import namespaces

# the index of the loopback device in every network namespace
_LOOPBACK = 1
# linux/pkt_sched.h, linux/if_ether.h
_INGRESS = 0xFFFF0000
_ALL_PROTOCOLS = 3
_POLICE = {"kind": "police", "rate": "10mbit", "burst": 125_000, "action": "drop"}


@privsep.network_pctxt.entrypoint
def missing_means() -> tuple[str, ...]:
    """Return ``police`` and ``htb`` if the kernel lacks them; tries both in a new namespace.

    Open vSwitch polices the ingress of a device by a filter of the kind basic with the action
    police, and shapes its egress by the queueing discipline htb: see linux-htb and
    ingress_policing_rate in ovs-vswitchd.conf.db(5).

    :raises NetlinkError: the kernel refuses for another reason
    """
    return namespaces.run_in_thread(_try_all)


def _try_all() -> tuple[str, ...]:
    namespaces.enter_new_namespace()
    with IPRoute() as netlink:
        found = []
        if not (
            _has(netlink, "add", "ingress")
            and _has(
                netlink,
                *("add-filter", "basic"),
                parent=_INGRESS,
                protocol=_ALL_PROTOCOLS,
                action=_POLICE,
            )
        ):
            found.append("police")
        if not _has(netlink, "add", "htb", handle=0x10000, default=1):
            found.append("htb")
        return tuple(found)


def _has(netlink: IPRoute, *words: str, **request: object) -> bool:
    try:
        netlink.tc(*words, index=_LOOPBACK, **request)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        return False
    return True
