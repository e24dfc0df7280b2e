# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch of this host: its ports, through os-vif and the database, and bandwidth limits.

Open vSwitch accepts the bandwidth limits of Neutron's agent even if the kernel cannot enforce them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import os_vif
from nova import objects
from nova.network import model as network_model
from nova.network import os_vif_util
from os_vif import exception as os_vif_exception
from oslo_log import log as logging

from novadocker import exception
from novadocker.conf import CONF
from novadocker.linux import ovsdb
from novadocker.privsep.network import ovs_support
from novadocker.virt.docker.network.kinds.open_vswitch import vif_of_port, without_tap_device

LOG = logging.getLogger(__name__)

# os-vif sends two requests for a port, each with a time-out of its own.
_REQUESTS = 2
# An ovs_vsctl_timeout of 0 disables the time-out, so os-vif's default applies.
_LONGEST_ANSWER_SECONDS = 120


def initialize() -> None:
    """Load the plugins of os-vif, and warn if Neutron's bandwidth limits have no effect here."""
    os_vif.initialize()
    warn_of_ineffective_limits(CONF.os_vif_ovs.ovsdb_connection, CONF.neutron.ovs_bridge)


class Switch:
    """Ports of the Open vSwitch that ``[os_vif_ovs]`` configures."""

    def plug(self, instance: objects.Instance, vif: network_model.VIF) -> Callable[[], None]:
        """Begin to plug a VIF by os-vif. Idempotent.

        :returns: a function that waits for the end; it raises PlugFailed
        """
        return _begin(os_vif.plug, instance, vif)

    def unplug(self, instance: objects.Instance, vif: network_model.VIF) -> None:
        """Unplug a VIF by os-vif. Does nothing if it is not plugged.

        Deletes the devices that plugging created, and the host device if it is the port.

        :raises PlugFailed: os-vif failed or did not end in time
        """
        _begin(os_vif.unplug, instance, vif)()

    def has_port(self, vif: network_model.VIF) -> bool:
        """Return True if Open vSwitch has a port of a VIF.

        :raises PlugFailed: the database does not answer in time
        """
        with _reporting(vif):
            return ovsdb.has_port(*_place(vif))

    def delete_port(self, vif: network_model.VIF) -> None:
        """Delete the port of a VIF, but not its device. Does nothing if there is no such port.

        :raises PlugFailed: the database does not answer in time
        """
        with _reporting(vif):
            ovsdb.delete_port(*_place(vif))


def find_vifs(instance_uuid: str) -> network_model.NetworkInfo:
    """Return the VIFs of an instance as far as Open vSwitch knows them: without addresses.

    If an instance is deleted while its host is down, Nova forgets its ports. If the database does
    not answer, log the failure and return no VIF.
    """
    of_instance = ["external_ids", "includes", ["map", [["vm-uuid", instance_uuid]]]]
    try:
        interfaces, ports, bridges = ovsdb.select(
            CONF.os_vif_ovs.ovsdb_connection,
            ovsdb.Select("Interface", ("name", "external_ids"), [of_instance]),
            ovsdb.Select("Port", ("_uuid", "name")),
            ovsdb.Select("Bridge", ("name", "ports")),
        )
    except OSError as error:
        LOG.info("Failed to look for ports of instance %s: %s", instance_uuid, error)
        return network_model.NetworkInfo()
    bridge_of = {
        port["name"]: bridge["name"]
        for port in ports
        for bridge in bridges
        if port["_uuid"] in ovsdb.values(bridge["ports"])
    }
    identities = {row["name"]: dict(row["external_ids"][1]) for row in interfaces}
    return network_model.NetworkInfo(
        vif_of_port(name, identity["iface-id"], identity["attached-mac"], bridge_of[name])
        for name, identity in identities.items()
        if name in bridge_of and {"iface-id", "attached-mac"} <= identity.keys()
    )


def _begin(
    call: Callable[[Any, Any], None], instance: objects.Instance, vif: network_model.VIF
) -> Callable[[], None]:
    """Call os-vif in a thread that is abandoned when the call does not end in time.

    The requests of os-vif have a time-out, but its locks have none: while the database of Open
    vSwitch hangs, a thread that waits for a lock hangs, too. The thread ends when the database
    answers again.

    :returns: a function that waits for the end; it raises PlugFailed
    """
    done: futures.Future[None] = futures.Future()

    def work() -> None:
        try:
            call(_os_vif_vif(vif), os_vif_util.nova_to_osvif_instance(instance))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)
        else:
            done.set_result(None)

    def finish() -> None:
        with _reporting(vif):
            try:
                # Because 0 means no bound to os-vif, it means no bound here, too.
                done.result(_REQUESTS * CONF.os_vif_ovs.ovs_vsctl_timeout or None)
            except TimeoutError as error:
                raise exception.PlugFailed(
                    port_id=vif["id"], reason="Open vSwitch does not answer: timeout"
                ) from error

    threading.Thread(target=work, daemon=True, name="os-vif").start()
    return finish


def _place(vif: network_model.VIF) -> tuple[str, str, str, float]:
    """Return the database, the bridge and the name of a VIF's port, and how long to wait."""
    port = _os_vif_vif(vif)
    return (
        CONF.os_vif_ovs.ovsdb_connection,
        port.network.bridge,
        port.vif_name,
        float(CONF.os_vif_ovs.ovs_vsctl_timeout or _LONGEST_ANSWER_SECONDS),
    )


def _os_vif_vif(vif: network_model.VIF) -> Any:
    # os-vif adds the port itself if the VIF has delegate_create.
    own = without_tap_device(vif)
    own["delegate_create"] = True
    return os_vif_util.nova_to_osvif_vif(own)


@contextmanager
def _reporting(vif: network_model.VIF) -> Iterator[None]:
    """Raise errors of os-vif and of the database as PlugFailed, which names the port."""
    try:
        yield
    except os_vif_exception.ExceptionBase as error:
        # Because os-vif's own text is the whole VIF, the cause is reported instead.
        raise exception.PlugFailed(port_id=vif["id"], reason=error.__context__ or error) from error
    except OSError as error:
        raise exception.PlugFailed(port_id=vif["id"], reason=error) from error


def warn_of_ineffective_limits(connection: str, bridge: str) -> None:
    """Log one warning if Neutron's bandwidth limits have no effect on this host.

    Does not fail if Open vSwitch is down, because ports are wired when it is up again.
    """
    try:
        datapaths = read_datapaths(connection)
    except OSError as error:
        LOG.info("Failed to read the bridges of Open vSwitch: %s", error)
        return
    if reason := ineffective_limits(datapaths, bridge, ovs_support.missing_means()):
        LOG.warning("Neutron's bandwidth limits have no effect on this host: %s", reason)


def read_datapaths(connection: str) -> dict[str, str]:
    """Return the datapath type of each bridge; the empty string is the kernel's.

    :param connection: of the switch's database, as ``tcp:127.0.0.1:6640``
    :raises OSError: the database does not answer within five seconds
    """
    (rows,) = ovsdb.select(connection, ovsdb.Select("Bridge", ("name", "datapath_type")))
    return {row["name"]: row["datapath_type"] for row in rows}


def ineffective_limits(datapaths: Mapping[str, str], bridge: str, missing: Sequence[str]) -> str:
    """Return which of Neutron's bandwidth limits have no effect, and why; "" if all have. Pure.

    :param bridge: the integration bridge
    :param missing: kernel features that are missing, from ``ovs_support.missing_means``
    """
    found = []
    if datapaths.get(bridge) == "netdev":
        found.append(
            f"what servers send is not limited: {bridge} has a userspace datapath, which reads "
            "packets before the kernel polices them"
        )
    elif "police" in missing:
        found.append(
            "what servers send is not limited: the kernel lacks cls_basic or act_police, "
            "and Open vSwitch does not say so"
        )
    if "htb" in missing:
        found.append("what servers receive is not limited: the kernel lacks sch_htb")
    return "; ".join(found)
