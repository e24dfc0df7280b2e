# SPDX-License-Identifier: Apache-2.0
"""nova-compute is killed during operations that Nova does not end; its next start ends them."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from openstack.connection import Connection
from openstack.exceptions import SDKException

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import Guest, until
from tests.cloud.owners import engine_of
from tests.cloud.servers import Servers, fault, last_events, pings
from tests.cloud.test_ports import attach, detach, devices, named, own_port

BEGUN = "compute_pause_instance"
UPLOADING = ("image_pending_upload", "image_uploading")
RESTART_SECONDS = 120

pytestmark = pytest.mark.usefixtures("long_run")


def test_interrupted_pause(
    cloud: Settings, servers: Servers, demo: Connection, admin: Connection
) -> None:
    server = servers.create("paused")
    assert server.status == "ACTIVE", fault(server)
    host = cloud.hosts[0]
    engine, compute = (
        supervise.process_id(cloud, f"{name}-{host.name}") for name in ("docker", "nova-compute")
    )
    os.kill(engine, signal.SIGSTOP)
    try:
        demo.compute.pause_server(server)
        until(lambda: [event["event"] for event in last_events(admin, server)] == [BEGUN])
        os.kill(compute, signal.SIGKILL)
    finally:
        os.kill(engine, signal.SIGCONT)
    # The engine may carry out the request of the killed nova-compute.
    server = servers.wait(server, lambda now: now.status in ("ACTIVE", "PAUSED"))
    client = engine_of(cloud, host)
    paused = client.inspect_container(f"nova-{server.id}")["State"]["Paused"]
    client.close()
    assert paused == (server.status == "PAUSED")
    result = "Success" if paused else "Error"
    until(lambda: [event["result"] for event in last_events(admin, server)] == [result])
    demo.compute.reboot_server(server, "HARD")
    servers.wait(server, lambda now: now.status == "ACTIVE")


def test_result_of_an_interrupted_attachment(
    cloud: Settings,
    servers: Servers,
    demo: Connection,
    admin: Connection,
    new_port: Callable[..., Any],
    engine: Any,
) -> None:
    server = servers.create("attaching")
    assert server.status == "ACTIVE", fault(server)
    port = new_port("private-vlan")
    host = cloud.hosts[0]
    stopped, compute = (
        supervise.process_id(cloud, f"{name}-{host.name}") for name in ("docker", "nova-compute")
    )
    os.kill(stopped, signal.SIGSTOP)
    # nova-api waits for the answer of nova-compute, and gives up after a minute.
    request = threading.Thread(target=_attach, args=(demo, server, port), daemon=True)
    request.start()
    try:
        until(lambda: admin.network.get_port(port.id).binding_host_id == host.name)
        (event,) = last_events(admin, server)
        assert (event["event"], event["result"]) == ("compute_attach_interface", None)
        os.kill(compute, signal.SIGKILL)
    finally:
        os.kill(stopped, signal.SIGCONT)
    until(lambda: last_events(admin, server)[0]["result"], RESTART_SECONDS)
    (event,) = last_events(admin, server)
    assert (event["event"], event["result"]) == ("compute_attach_interface", "Success")
    call = engine.exec_create(f"nova-{server.id}", ["ip", "link"])
    assert port.mac_address in engine.exec_start(call["Id"]).decode()
    request.join(RESTART_SECONDS)
    assert not request.is_alive()
    demo.compute.delete_server_interface(port.id, server=server)
    until(lambda: not demo.network.get_port(port).device_id)


def _attach(demo: Connection, server: Any, port: Any) -> None:
    with contextlib.suppress(SDKException):
        demo.compute.create_server_interface(server, port_id=port.id)


def test_interrupted_snapshot_attachment_and_detachment(
    cloud: Settings,
    servers: Servers,
    demo: Connection,
    admin: Connection,
    tenant_network: str,
    new_port: Callable[..., Any],
) -> None:
    server = servers.create("interrupted", image="debian", flavor="d1.small", key_name="demo")
    assert server.status == "ACTIVE", fault(server)
    guest = Guest(cloud, server, tenant_network)
    guest.wait()
    host = cloud.hosts[0].name
    attached, detached = new_port("private-vlan"), new_port("private")
    attach(demo, guest, detached)
    guest.ask("head -c 200M /dev/urandom >/var/tmp/data")
    process = supervise.process_id(cloud, f"nova-compute-{host}")
    image = demo.compute.create_server_image(server, "interrupted")
    try:
        until(lambda: demo.compute.get_server(server).task_state in UPLOADING)
        os.kill(process, signal.SIGSTOP)
        # Nova does the same before it calls the driver to attach a port, or after a detachment.
        admin.network.update_port(
            attached.id, device_id=server.id, device_owner="compute:nova", binding_host_id=host
        )
        admin.network.update_port(detached.id, device_id="", device_owner="", binding_host_id="")
        os.kill(process, signal.SIGKILL)
        until(lambda: attached.mac_address in devices(guest), RESTART_SECONDS)
        assert named(guest, attached) == "eth1"
        assert detached.mac_address not in devices(guest)
        home = attached.fixed_ips[0]["ip_address"]
        until(lambda: pings(cloud.tenant_namespace(attached.network_id), home))
        until(lambda: demo.image.find_image(image.id) is None)
    finally:
        demo.image.delete_image(image.id, ignore_missing=True)
    servers.wait(server, lambda now: now.status == "ACTIVE")
    detach(demo, guest, attached)
    assert list(devices(guest)) == [own_port(demo, guest).mac_address]
