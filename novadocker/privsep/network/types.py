# SPDX-License-Identifier: Apache-2.0
"""What network devices of an instance must be: frozen dataclasses that privileged calls carry."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """A route of one NIC; without ``gateway`` the destination is on the link itself."""

    destination: str
    gateway: str | None


@dataclass(frozen=True)
class Bridge:
    """The Linux bridge that a port's host end is put into.

    :ivar interface: the host's interface to the physical network, or a bridge that has it; None
        leaves the other ports of this bridge to whoever made it
    :ivar vlan: the network's VLAN on that interface, None for a flat network
    """

    name: str
    interface: str | None = None
    vlan: int | None = None


@dataclass(frozen=True)
class Nic:
    """A network device of an instance.

    :ivar host_device: the end that is plugged into the switch
    :ivar guest_device: the instance's end
    :ivar mtu: bytes, None for the kernel's default
    :ivar addresses: with the prefix length of their subnet, as ``192.0.2.5/24``
    :ivar routes: those beyond the subnets of the addresses; destinations as ``192.0.2.0/24``
    :ivar software_checksums: whether packets must leave with their checksums filled in
    :ivar bridge: the Linux bridge of the host's end; None where a virtual switch takes it
    """

    port_id: str
    host_device: str
    guest_device: str
    mac: str
    mtu: int | None
    addresses: tuple[str, ...]
    routes: tuple[Route, ...]
    software_checksums: bool = False
    bridge: Bridge | None = None


@dataclass(frozen=True)
class NetworkRate:
    """How fast traffic of each of a server's VIFs may be in one direction.

    :ivar average: bytes per second in the long run
    :ivar peak: bytes per second while a burst lasts; 0 is no limit
    :ivar burst: bytes that may go at ``peak``; 0 leaves the size to whoever applies the rate
    """

    average: int
    peak: int = 0
    burst: int = 0
