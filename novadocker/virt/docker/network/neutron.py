# SPDX-License-Identifier: Apache-2.0
"""Requests to Neutron: waits for its events, the ports of this host, reports of wired ports."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from keystoneauth1 import exceptions as keystone_exceptions
from keystoneauth1 import loading
from neutronclient.common import exceptions as neutron_exceptions
from nova import conf, objects
from nova import context as nova_context
from nova import exception as nova_exception
from nova.network import model as network_model
from nova.network import neutron
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import exception, privsep
from novadocker.virt.docker.network import metadata

CONF = conf.CONF
LOG = logging.getLogger(__name__)

Plug = Callable[[objects.Instance, network_model.NetworkInfo], None]

# neutron_lib.api.definitions.data_plane_status; the mechanism driver novadocker waits for it.
_WIRED = {"port": {"data_plane_status": "ACTIVE"}}

# Nova's own client waits without a limit unless [neutron]timeout is set.
_LONGEST_ANSWER_SECONDS = 10
_SLOW_FAILURE_SECONDS = 2
_PAUSE_SECONDS = 60

# Nova translates two faults of neutronclient to its own types (nova.network.neutron.ClientWrapper).
_FAULTS = (
    neutron_exceptions.NeutronException,
    keystone_exceptions.ClientException,
    nova_exception.Forbidden,
    nova_exception.NeutronAdminCredentialConfigurationInvalid,
)


@contextlib.contextmanager
def plugged(
    virtapi: Any,
    instance: objects.Instance,
    network_info: network_model.NetworkInfo,
    plug: Callable[
        [objects.Instance, network_model.NetworkInfo], contextlib.AbstractContextManager[None]
    ],
    plug_anew: Plug,
    up: Callable[[], Set[str]] = frozenset,
) -> Iterator[None]:
    """Plug the VIFs while the body runs, then wait until Neutron reports each as up.

    Only VIFs that were down are awaited, because Neutron sends no event for a VIF that is up
    (the contract of ``wait_for_instance_event``, as in every driver of Nova). With
    ``[DEFAULT]vif_plugging_timeout`` 0 nothing is awaited. If ``vif_plugging_is_fatal`` is false,
    a missing event is logged instead of raised.

    :param plug_anew: called once if events are missing after half of the time-out
    :param up: called when the VIFs are plugged; returns ports whose events may have come before the
        wait began, so they are not awaited
    :raises StartFailed: Neutron reported a failure, or no event came in time
    """
    timeout = CONF.vif_plugging_timeout
    ports = [vif["id"] for vif in network_info if vif.get("active", True) is False]
    events = [("network-vif-plugged", port) for port in ports] if timeout else []

    def on_failure(event_name: str, failed: objects.Instance) -> bool:
        _report(failed, f"Neutron reported a failure for {event_name}")
        return True

    watch = timeutils.StopWatch()
    try:
        with (
            contextlib.ExitStack() as awaiting,
            virtapi.wait_for_instance_event(instance, events, timeout, on_failure),
        ):
            with plug(instance, network_info):
                watch.start()
                yield
            if events:
                awaiting.enter_context(_reminder(timeout / 2, plug_anew, instance, network_info))
                if early := up() & set(ports):
                    virtapi.exit_wait_early([("network-vif-plugged", port) for port in early])
        LOG.info("Waited %.2f s for Neutron's ports", watch.elapsed(), instance=instance)
    except _event_timeout():
        _report(
            instance,
            f"Neutron did not report the ports {', '.join(ports)} as wired within {timeout} s; "
            "look at its agent on this host",
        )


@contextlib.contextmanager
def _reminder(
    seconds: float,
    plug_anew: Plug,
    instance: objects.Instance,
    network_info: network_model.NetworkInfo,
) -> Iterator[None]:
    """Plug the VIFs again, in a thread, if the body takes longer than ``seconds``.

    The thread has ended when the body ends.
    """

    def remind() -> None:
        LOG.warning(
            "Neutron has not reported the ports after %g s; plugging them again",
            seconds,
            instance=instance,
        )
        try:
            plug_anew(instance, network_info)
        except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
            # If no event comes, the thread that waits for it raises the fault.
            LOG.warning("Failed to plug the ports again: %s", error, instance=instance)

    timer = threading.Timer(seconds, remind)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _report(instance: objects.Instance, reason: str) -> None:
    if CONF.vif_plugging_is_fatal:
        raise exception.StartFailed(instance_uuid=instance.uuid, reason=reason)
    LOG.warning(reason, instance=instance)


def _event_timeout() -> type[BaseException]:
    try:
        kind: type[BaseException] = nova_exception.InstanceEventTimeout
    except AttributeError:
        # Nova 31 raises the time-out of eventlet, and has loaded that module itself.
        kind = sys.modules["eventlet.timeout"].Timeout
    return kind


def _client() -> Any:
    """Return a client that waits a limited time for each answer; Nova's own stays as it is."""
    client = neutron.get_client(nova_context.get_admin_context(), admin=True)
    client.base_client.httpclient.session = _bounded_session()
    return client


def _impatient_client() -> Any:
    """Return a client that waits a limited time for one answer and does not ask again."""
    client = _client()
    client.base_client.httpclient.connect_retries = 0
    return client


@functools.cache
def _bounded_session() -> Any:
    longest = min(CONF.neutron.timeout or _LONGEST_ANSWER_SECONDS, _LONGEST_ANSWER_SECONDS)
    return loading.load_session_from_conf_options(CONF, conf.neutron.NEUTRON_GROUP, timeout=longest)


def report_wired(
    instance: objects.Instance,
    vifs: Iterable[network_model.VIF],
    client: Callable[[], Any] = _client,
) -> None:
    """Report ports to Neutron as wired, so that it sets them ACTIVE and notifies Nova.

    A failure is logged: the server keeps its network, and a boot that waits for Neutron ends
    with a fault that names the port.

    :param client: returns a client of Neutron
    """
    for vif in vifs:
        try:
            client().update_port(vif["id"], _WIRED)
        except _FAULTS as error:
            LOG.warning(
                "Failed to report to Neutron that port %s is wired: %s",
                vif["id"],
                error,
                instance=instance,
            )


def bound_ports(host: str, client: Callable[[], Any] = _client) -> Mapping[str, Set[str]]:
    """Return the ids of the ports that Neutron has bound to a host, by instance UUID.

    :raises NeutronUnavailable: Neutron does not answer
    """
    ports: dict[str, set[str]] = {}
    for port in _list_ports(client, {"binding:host_id": host}):
        if port["device_owner"].startswith("compute:"):
            ports.setdefault(port["device_id"], set()).add(port["id"])
    return ports


def active_ports(
    instance: objects.Instance, host: str, client: Callable[[], Any] = _client
) -> Set[str]:
    """Return the ids of an instance's ports that are bound to a host and up.

    If Neutron does not answer, log the failure and return no port.
    """
    try:
        ports = _list_ports(client, {"device_id": instance.uuid, "binding:host_id": host})
    except exception.NeutronUnavailable as error:
        LOG.warning("Failed to read the status of the ports: %s", error, instance=instance)
        return frozenset()
    return {port["id"] for port in ports if port["status"] == "ACTIVE"}


def refresh_ports(
    context: nova_context.RequestContext,
    instance: objects.Instance,
    client: Callable[[], Any] = _client,
) -> network_model.NetworkInfo:
    """Write Neutron's present ports of an instance into Nova's cache, and return them.

    Nova deletes a port at its detachment, unless the port existed before its attachment. The cache
    cannot tell that of a port that it lacks, so Nova keeps such a port.

    :raises NeutronUnavailable: Neutron does not answer
    """
    known = {vif["id"] for vif in instance.get_network_info()}
    unknown = [
        port["id"]
        for port in _list_ports(client, {"device_id": instance.uuid})
        if port["id"] not in known
    ]
    with _translated():
        return neutron.API().get_instance_nw_info(
            context,
            instance,
            force_refresh=True,
            preexisting_port_ids=unknown,
            # Otherwise Nova asks with its own client, which may wait for ever.
            admin_client=client(),
        )


class ServicePorts:
    """Requests for the ports of Neutron's own agents, which do not hold up a wiring for long."""

    def __init__(
        self,
        client: Callable[[], Any] = _impatient_client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the requests.

        :param client: returns a client of Neutron
        :param clock: returns seconds
        """
        self._client = client
        self._clock = clock
        self._paused_until = clock()

    def find(self, networks: Sequence[str]) -> tuple[metadata.ServicePort, ...] | None:
        """Return the ports of Neutron's own agents in networks.

        If Neutron does not answer, log the failure and return None. After a failure that took
        long, Neutron is not asked for a minute, because each server at the start of nova-compute
        would wait as long.
        """
        if not networks:
            return ()
        try:
            ports = self._list(networks)
        except exception.NeutronUnavailable as error:
            LOG.warning(
                "Failed to read the ports of the networks %s, so a server may lack the route to "
                "the metadata service until its next start: %s",
                ", ".join(networks),
                error,
            )
            return None
        return tuple(
            metadata.ServicePort(
                network_id=port["network_id"],
                device_owner=port["device_owner"],
                device_id=port["device_id"],
                addresses=tuple(ip["ip_address"] for ip in port["fixed_ips"]),
            )
            for port in ports
        )

    def _list(self, networks: Sequence[str]) -> list[dict[str, Any]]:
        began = self._clock()
        if began < self._paused_until:
            raise exception.NeutronUnavailable(reason="it is not asked for a minute after a wait")
        filters = {"network_id": list(networks), "device_owner": list(metadata.OWNERS)}
        try:
            return _list_ports(
                self._client, filters, ("network_id", "device_owner", "device_id", "fixed_ips")
            )
        except exception.NeutronUnavailable:
            if self._clock() - began > _SLOW_FAILURE_SECONDS:
                self._paused_until = self._clock() + _PAUSE_SECONDS
            raise


service_ports = ServicePorts().find


def _list_ports(
    client: Callable[[], Any],
    filters: Mapping[str, Any],
    fields: Sequence[str] = ("id", "device_id", "device_owner", "status"),
) -> list[dict[str, Any]]:
    with _translated():
        found: list[dict[str, Any]] = client().list_ports(**filters, fields=list(fields))["ports"]
    return found


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise exception.NeutronUnavailable(reason=error) from error
