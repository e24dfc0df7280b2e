# SPDX-License-Identifier: Apache-2.0
"""The wait for Neutron's ``network-vif-plugged``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from nova import conf, objects
from nova import exception as nova_exception
from nova.network import model as network_model
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import exception

CONF = conf.CONF
LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def wait_for_plugged(
    virtapi: Any, instance: objects.Instance, network_info: network_model.NetworkInfo
) -> Iterator[None]:
    """Run the body, which plugs the VIFs, then wait until Neutron has every one of them up.

    Only VIFs that were down are awaited: no event comes for one that is up (nova-contract of
    ``wait_for_instance_event``, as in every driver of Nova). ``[DEFAULT]vif_plugging_timeout``
    of 0 waits for none; ``vif_plugging_is_fatal`` decides what a missing event means.

    :raises StartFailed: Neutron reported a failure, or no event came in time
    """
    timeout = CONF.vif_plugging_timeout
    ports = [vif["id"] for vif in network_info if vif.get("active", True) is False]
    events = [("network-vif-plugged", port) for port in ports] if timeout else []

    def on_failure(event_name: str, failed: objects.Instance) -> bool:
        _report(failed, f"Neutron reported a failure for {event_name}")
        return True

    try:
        with virtapi.wait_for_instance_event(instance, events, timeout, on_failure):
            yield
            watch = timeutils.StopWatch()
            watch.start()
        LOG.info("Waited %.2f s for Neutron's ports", watch.elapsed(), instance=instance)
    except _event_timeout():
        _report(
            instance,
            f"Neutron did not report the ports {', '.join(ports)} as wired within {timeout} s; "
            "look at its agent on this host",
        )


def _report(instance: objects.Instance, reason: str) -> None:
    if CONF.vif_plugging_is_fatal:
        raise exception.StartFailed(instance_uuid=instance.uuid, reason=reason)
    LOG.warning(reason, instance=instance)


def _event_timeout() -> type[BaseException]:
    try:
        kind: type[BaseException] = nova_exception.InstanceEventTimeout
    except AttributeError:
        # Nova 31 lets eventlet's time-out through, and has that module loaded itself
        kind = sys.modules["eventlet.timeout"].Timeout
    return kind
