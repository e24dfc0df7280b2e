# SPDX-License-Identifier: Apache-2.0
"""The VIFs of an instance: wired into its network namespace and plugged into a virtual switch.

``kinds`` describes each kind of VIF. This module orders their steps and plugs ports in parallel.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any, Protocol

from nova import objects
from nova.network import model as network_model

from novadocker import exception, privsep
from novadocker.conf import CONF
from novadocker.linux.threads import meanwhile
from novadocker.privsep.network import namespace, wiring
from novadocker.privsep.network.types import Nic
from novadocker.virt.docker.network import device_names, metadata, neutron, ovs
from novadocker.virt.docker.network import nic as network_nic
from novadocker.virt.docker.network.kinds.kind import Kind, Plugging
from novadocker.virt.docker.network.kinds.registry import Registry


class Namespaces(Protocol):
    """The network namespaces of instances, as root; ``privsep.network.namespace``."""

    def wire_nics(
        self, instance_uuid: str, nics: Sequence[Mapping[str, Any]], keep_own: bool
    ) -> tuple[str, ...]:
        """Create and configure the devices of an instance; return the ports with new devices."""

    def unwire_nic(
        self, instance_uuid: str, host_device: str, bridge: Mapping[str, Any] | None = None
    ) -> None:
        """Delete a device of an instance, and its bridge if no other device uses it."""

    def silence_nics(self, instance_uuid: str, host_devices: Sequence[str]) -> None:
        """Set host devices down."""

    def announce_nics(self, instance_uuid: str, guest_devices: Sequence[str]) -> None:
        """Send the MAC addresses of an instance's addresses to its neighbours."""


class Plugger:
    """Plugs and unplugs the VIFs of instances on this host."""

    def __init__(
        self,
        kind_of: Callable[[network_model.VIF], Kind],
        namespaces: Namespaces,
        report_wired: Callable[[objects.Instance, Iterable[network_model.VIF]], None],
        host_devices: Callable[[], Iterable[str]],
        service_ports: Callable[[Sequence[str]], Iterable[metadata.ServicePort] | None],
    ) -> None:
        """Create a plugger.

        :param report_wired: reports ports to Neutron as wired
        :param host_devices: returns the names of the host's network devices
        :param service_ports: returns the ports of Neutron's own agents in networks; None if
            Neutron does not answer
        """
        self._kind_of = kind_of
        self._namespaces = namespaces
        self._report_wired = report_wired
        self._host_devices = host_devices
        self._service_ports = service_ports
        self._pending_routes: set[str] = set()

    def check_supported(self, network_info: network_model.NetworkInfo) -> None:
        """Refuse VIFs that this host cannot wire.

        :raises PlugFailed: names the port and the fault of its binding
        """
        for vif in network_info:
            if reason := self._kind_of(vif).refusal(vif):
                raise exception.PlugFailed(port_id=vif["id"], reason=reason)

    @contextmanager
    def plugged_vifs(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        keep_own: bool = False,
        prepare: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Plug all VIFs of an instance while the block runs; wait for them when the block ends.

        Correct VIFs stay untouched. The block must not rely on any VIF.

        :param keep_own: True if addresses and routes stay that the tenant added (CAP_NET_ADMIN)
        :param prepare: called before the first VIF, also while the block runs
        :raises PlugFailed: names the port; other ports may be plugged already
        """
        self.check_supported(network_info)

        def plug() -> None:
            if prepare is not None:
                prepare()
            self._wire_and_plug(instance, network_info, keep_own)

        with meanwhile(plug):
            yield
        self._report_wired(
            instance,
            [vif for vif in network_info if self._kind_of(vif).reported and vif["active"] is False],
        )

    def plug_vifs(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        keep_own: bool = False,
    ) -> None:
        """Wire and plug all VIFs of an instance; correct VIFs stay untouched.

        :param keep_own: as for ``plugged_vifs``
        :raises PlugFailed: names the port; other ports may be plugged already
        """
        with self.plugged_vifs(instance, network_info, keep_own):
            pass

    def complete_routes(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Add the route to the metadata service, if a network lacked its DHCP server before.

        Call it before a new instance starts, when Neutron has reported its ports as up.

        :raises PlugFailed: the route cannot be added
        """
        if instance.uuid in self._pending_routes:
            self._wire(instance, network_info, keep_own=False)

    def silence_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Set the VIFs of an instance down until they are plugged again.

        Because the namespace keeps the addresses when the instance stops, the kernel would
        otherwise answer for them.
        """
        if network_info:
            names = [network_nic.host_device_name(vif) for vif in network_info]
            self._namespaces.silence_nics(instance.uuid, names)

    def announce_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Send the MAC addresses of a running instance's addresses to its neighbours.

        A neighbour may remember, for a minute or longer, the MAC address of an instance that had
        the address before.
        """
        if network_info:
            names = network_nic.device_names(network_info, device_names.recorded_names(instance))
            self._namespaces.announce_nics(instance.uuid, list(names.values()))

    def replug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Delete an instance's ports from Open vSwitch and insert them again; the devices stay.

        If Neutron's agent is notified of a port before its own copy of the switch's database has
        the port, the agent skips the port until it is inserted once more. Does nothing for a port
        with a Linux bridge before the switch.

        :raises PlugFailed: names the port
        """
        for vif in network_info:
            self._kind_of(vif).replug(instance, vif)

    def unplug_vifs(
        self, instance: objects.Instance, network_info: Iterable[network_model.VIF]
    ) -> None:
        """Unplug all VIFs of an instance and delete their devices. Idempotent.

        A failure of one VIF does not prevent the attempt for the others.

        :raises PlugFailed: the first failure
        """
        self._pending_routes.discard(instance.uuid)
        failures = []
        for vif in network_info:
            for step in (self._unplug, self._unplug_other_form, self._delete_device):
                try:
                    step(instance, vif)
                except exception.PlugFailed as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def _wire_and_plug(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo, keep_own: bool
    ) -> None:
        stages: dict[Plugging, list[network_model.VIF]] = {stage: [] for stage in Plugging}
        for vif in network_info:
            stages[self._kind_of(vif).plugging].append(vif)
        before, after = stages[Plugging.BEFORE_WIRING], stages[Plugging.AFTER_WIRING]
        absent = [vif for vif in before + after if not self._has_devices(vif)]
        for vif in absent:
            # Because the userspace datapath of Open vSwitch reads from the device that it opened
            # once, a new device of the same name would receive nothing.
            self._kind_of(vif).unplug_stale(instance, vif)
        self._plug(instance, before)
        made = self._wire(instance, network_info, keep_own)
        replaced = [vif for vif in before + after if vif["id"] in made and vif not in absent]
        if replaced:
            for vif in replaced:
                self._unplug(instance, vif)
            self._plug(instance, before)
            # Because unplugging a VIF deletes its device, too, the device is created again.
            self._wire(instance, network_info, keep_own)
        self._plug_at_once(instance, after)

    def _plug(self, instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
        for vif in vifs:
            self._kind_of(vif).plug(instance, vif)()

    def _plug_at_once(self, instance: objects.Instance, vifs: Iterable[network_model.VIF]) -> None:
        """Begin to plug all VIFs, then wait for each, even if one fails."""
        with ExitStack() as stack:
            for vif in vifs:
                stack.callback(self._kind_of(vif).plug(instance, vif))

    def _wire(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo, keep_own: bool
    ) -> tuple[str, ...]:
        """Wire all VIFs into the instance's namespace; return the ports whose devices are new.

        If Neutron does not answer, the namespace keeps the route to the metadata service that it
        has.
        """
        names = device_names.recorded_names(instance)
        services = self._service_ports(metadata.networks(network_info))
        self._pending_routes.discard(instance.uuid)
        if services is None or metadata.is_pending(network_info, services):
            self._pending_routes.add(instance.uuid)
        unknown = (metadata.DESTINATION,) if services is None else ()
        found = network_nic.nics_from_network_info(
            network_info, names, metadata.route(network_info, services or ())
        )
        wanted = [
            asdict(replace(_of_kind(self._kind_of(vif), nic, vif), unknown_destinations=unknown))
            for nic, vif in zip(found, network_info, strict=True)
        ]
        try:
            return self._namespaces.wire_nics(instance.uuid, wanted, keep_own)
        except wiring.WiringFailed as error:
            port_id, reason = error.args
            raise exception.PlugFailed(port_id=port_id, reason=reason) from error
        except (OSError, ValueError, *privsep.UNANSWERED) as error:
            # Because a tenant can make the kernel's lists fail, and nova-compute starts after
            # PlugFailed only, no other exception leaves this method.
            ports = ", ".join(vif["id"] for vif in network_info)
            raise exception.PlugFailed(port_id=ports, reason=error) from error

    def _unplug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        self._kind_of(vif).unplug(instance, vif)

    def _unplug_other_form(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Unplug a port that moved to a host with another firewall driver.

        Neutron describes such a port as the new host has it plugged.
        """
        other = self._kind_of(vif).other_form(vif)
        if other is None:
            return
        kind = self._kind_of(other)
        devices = kind.devices(other)
        if not devices or not self._absent(devices).issuperset(devices):
            kind.unplug_stale(instance, other)

    def _delete_device(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        kind = self._kind_of(vif)
        bridge = None if kind.refusal(vif) else kind.bridge(vif)
        try:
            self._namespaces.unwire_nic(
                instance.uuid,
                network_nic.host_device_name(vif),
                None if bridge is None else asdict(bridge),
            )
        except (OSError, *privsep.UNANSWERED) as error:
            raise exception.PlugFailed(port_id=vif["id"], reason=error) from error

    def _has_devices(self, vif: network_model.VIF) -> bool:
        names = (network_nic.host_device_name(vif), *self._kind_of(vif).devices(vif))
        return not self._absent(names)

    def _absent(self, names: Iterable[str]) -> set[str]:
        """Return the names that no device of the host bears."""
        return set(names).difference(self._host_devices())


def _of_kind(kind: Kind, nic: Nic, vif: network_model.VIF) -> Nic:
    """Return a NIC with the fields that depend on the kind of its VIF."""
    return replace(nic, bridge=kind.bridge(vif), software_checksums=kind.software_checksums(vif))


def _host_devices() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _interfaces() -> Mapping[str, str]:
    mappings: Mapping[str, str] = CONF.docker.physical_interface_mappings
    return mappings


initialize = ovs.initialize
find_vifs = ovs.find_vifs
_PLUGGER = Plugger(
    Registry(ovs.Switch(), _interfaces).kind_of,
    namespace,
    neutron.report_wired,
    _host_devices,
    neutron.service_ports,
)
check_supported = _PLUGGER.check_supported
plugged_vifs = _PLUGGER.plugged_vifs
plug_vifs = _PLUGGER.plug_vifs
complete_routes = _PLUGGER.complete_routes
silence_vifs = _PLUGGER.silence_vifs
announce_vifs = _PLUGGER.announce_vifs
replug_vifs = _PLUGGER.replug_vifs
unplug_vifs = _PLUGGER.unplug_vifs
