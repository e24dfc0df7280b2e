# SPDX-License-Identifier: Apache-2.0
"""The wanted network devices of an instance: dataclasses that privileged calls carry."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """A route of one NIC; without ``gateway`` the destination is on the NIC's own link."""

    destination: str
    gateway: str | None


@dataclass(frozen=True)
class Bridge:
    """The Linux bridge into which the host device of a port is put.

    :ivar interface: the host's interface to the physical network, or a bridge that contains this
        interface; None if Neutron or os-vif connects the bridge to its network
    :ivar vlan: the network's VLAN on that interface, None for a flat network
    """

    name: str
    interface: str | None = None
    vlan: int | None = None


@dataclass(frozen=True)
class Nic:
    """A network device of an instance.

    :ivar host_device: name of the end of the veth pair that is plugged into the switch
    :ivar guest_device: name of the end in the instance's namespace
    :ivar mtu: bytes, None for the kernel's default
    :ivar addresses: with the prefix length of their subnet, as ``192.0.2.5/24``
    :ivar routes: all but the subnets of the addresses; destinations as ``192.0.2.0/24``
    :ivar software_checksums: True if the kernel must complete the checksums of sent packets
    :ivar bridge: the Linux bridge of the host device; None if a virtual switch takes the device
    :ivar unknown_destinations: the routes to these destinations stay as they are, because nobody
        knows now whether the NIC has to have them
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
    unknown_destinations: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkRate:
    """The rate limit of each of a server's VIFs in one direction.

    :ivar average: bytes per second in the long run
    :ivar peak: bytes per second during a burst; 0 means unlimited
    :ivar burst: bytes that may be sent at ``peak``; 0 for a size computed from the rate
    """

    average: int
    peak: int = 0
    burst: int = 0
