# SPDX-License-Identifier: Apache-2.0
"""Containers that join their instance's network namespace through the runtime shim."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import docker
import pytest
from nova.network import model

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.network import vif
from novadocker.virt.docker.network.nic import nics_from_network_info
from tests.engine import networks
from tests.engine.switch import Switch

TRICK = '{"type":"network"}'


class Container:
    """A container bound to an instance, as the driver creates it."""

    def __init__(self, client: docker.APIClient, image: str, **options: Any) -> None:
        self.client = client
        self.id = client.create_container(
            image,
            network_disabled=True,
            host_config=client.create_host_config(runtime="novadocker", network_mode="none"),
            **options,
        )["Id"]

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.inspect_container(self.id)["State"]
        return found

    def start(self) -> None:
        self.client.start(self.id)

    def exec(self, *command: str) -> str:
        created = self.client.exec_create(self.id, list(command))
        output: bytes = self.client.exec_start(created)
        return output.decode()

    def output(self) -> str:
        """Return the container's output when it has ended."""
        assert self.client.wait(self.id, timeout=30)["StatusCode"] == 0
        output: bytes = self.client.logs(self.id)
        return output.decode()


Create = Callable[..., Container]


@pytest.fixture
def port() -> model.VIF:
    return networks.vif(
        networks.subnet("10.7.0.0/24", ["10.7.0.5"], "10.7.0.1"),
        networks.subnet("2001:db8::/64", ["2001:db8::5"], "2001:db8::1"),
    )


@pytest.fixture
def wired(instance_uuid: str, port: model.VIF) -> Iterator[str]:
    """Yield an instance with a complete namespace and without a switch."""
    nics = nics_from_network_info(model.NetworkInfo([port]))
    namespace.wire_nics(instance_uuid, [asdict(nic) for nic in nics])
    yield instance_uuid
    namespace.unwire_nic(instance_uuid, port["devname"])
    runtime.delete_namespace(instance_uuid)


@pytest.fixture
def create(docker_client: docker.APIClient, busybox_image: str) -> Create:
    def call(instance_uuid: str | None, **options: Any) -> Container:
        made = Container(docker_client, busybox_image, **options)
        if instance_uuid:
            runtime.bind_container(made.id, instance_uuid)
        return made

    return call


def assert_network(container: Container, port: model.VIF) -> None:
    """Check that the running container is in its instance's namespace and sees all of it."""
    shown = container.exec("ip", "address", "show", "eth0")
    assert "10.7.0.5/24" in shown
    assert "2001:db8::5/64" in shown
    assert port["address"] in shown
    assert "default via 10.7.0.1" in container.exec("ip", "route")
    assert "default via 2001:db8::1" in container.exec("ip", "-6", "route")


def same_namespace(container: Container, instance_uuid: str) -> bool:
    own = os.stat(f"/proc/{container.state['Pid']}/ns/net")
    return os.path.samestat(own, os.stat(namespace.namespace_path(instance_uuid)))


def test_first_process_finds_the_finished_network(
    create: Create, wired: str, port: model.VIF
) -> None:
    script = "ip address; ip route; ip -6 route; cat /sys/class/net/eth0/mtu; hostname"
    container = create(wired, command=["sh", "-c", script], hostname="web-1")
    container.start()
    shown = container.output()
    names = re.findall(r"^\d+: (\w+)", shown, re.MULTILINE)
    assert names == ["lo", "eth0"]
    assert f"link/ether {port['address']}" in shown
    assert "inet 10.7.0.5/24" in shown
    assert "inet6 2001:db8::5/64" in shown
    assert "tentative" not in shown
    assert "default via 10.7.0.1 dev eth0" in shown
    assert "default via 2001:db8::1 dev eth0" in shown
    assert shown.splitlines()[-2:] == ["1450", "web-1"]


def test_network_survives_every_kind_of_restart(
    create: Create, wired: str, port: model.VIF, docker_client: docker.APIClient
) -> None:
    container = create(wired, command=["sleep", "1d"])
    container.start()
    assert same_namespace(container, wired)
    assert_network(container, port)

    docker_client.restart(container.id, timeout=0)
    assert same_namespace(container, wired)
    assert_network(container, port)

    docker_client.stop(container.id, timeout=0)
    assert networks.ip(wired, "address", "show", "eth0")
    container.start()
    assert_network(container, port)

    os.kill(container.state["Pid"], signal.SIGKILL)
    docker_client.wait(container.id, timeout=30)
    assert networks.ip(wired, "address", "show", "eth0")
    container.start()
    assert same_namespace(container, wired)
    assert_network(container, port)


def test_restart_goes_on_answering_on_the_switch(
    create: Create,
    ovs: Switch,
    docker_client: docker.APIClient,
    new_instance_uuid: Callable[[], str],
) -> None:
    ports = [networks.simple_vif("10.7.0.5"), networks.simple_vif("10.7.0.6")]
    uuids = [new_instance_uuid(), new_instance_uuid()]
    try:
        for uuid, port in zip(uuids, ports, strict=True):
            vif.plug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
        serve = "echo up | nc -l -p 7 -e cat"
        container = create(uuids[0], command=["sh", "-c", f"while :; do {serve}; done"])
        container.start()
        assert networks.pings(uuids[1], "10.7.0.5")
        docker_client.restart(container.id, timeout=0)
        assert networks.pings(uuids[1], "10.7.0.5")
        assert "0% packet loss" in container.exec("ping", "-c", "1", "-w", "3", "10.7.0.6")
        # By TCP, the text covers more than one checksum.
        other = create(uuids[1], command=["sh", "-c", "echo hello | nc -w 5 10.7.0.5 7"])
        other.start()
        assert other.output() == "hello\n"
    finally:
        for uuid, port in zip(uuids, ports, strict=True):
            vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
            runtime.delete_namespace(uuid)


def test_first_process_finds_its_files_and_keeps_its_own(create: Create, wired: str) -> None:
    container = create(wired, command=["sh", "-c", "cat /etc/hosts; echo own >/etc/hosts"])
    runtime.bind_container(container.id, wired, etc_files={"hosts": b"ours\n", "resolv.conf": b""})
    container.start()
    assert container.output() == "ours\n"
    runtime.bind_container(container.id, wired)
    container.start()
    assert container.output() == "ours\nown\n"


def test_etc_hostname_is_the_tenant_s(
    create: Create, docker_client: docker.APIClient, wired: str
) -> None:
    container = create(wired, command=["sleep", "1d"], hostname="web-1")
    files = {"hostname": b"web-1\n", "hosts": b"ours\n", "resolv.conf": b"ours\n"}
    runtime.bind_container(container.id, wired, etc_files=files)
    container.start()
    assert " /etc/" not in container.exec("cat", "/proc/self/mountinfo")
    for name in files:
        assert container.exec("sed", "-i", "s/^/the tenant s /", f"/etc/{name}") == ""
    assert container.exec("sh", "-c", "echo db-1 >/etc/new; mv /etc/new /etc/hostname") == ""
    docker_client.restart(container.id, timeout=0)
    assert container.exec("cat", "/etc/hostname", "/etc/hosts") == "db-1\nthe tenant s ours\n"
    assert container.exec("hostname") == "db-1\n"


def test_the_terminal_has_its_size_when_the_first_process_starts(
    create: Create, wired: str
) -> None:
    container = create(wired, command=["stty", "size"], tty=True)
    container.start()
    assert container.output() == "24 80\r\n"


@pytest.mark.parametrize("missing", ["record", "namespace", "both"])
def test_never_starts_without_its_network(
    create: Create, docker_client: docker.APIClient, wired: str, missing: str
) -> None:
    container = create(wired, command=["sleep", "1d"])
    if missing != "record":
        runtime.delete_namespace(wired)
    if missing == "record":
        runtime.release_container(container.id)
    if missing == "namespace":
        runtime.bind_container(container.id, wired)
    reason = (
        f"novadocker: network namespace /run/netns/nova-{wired} of container {container.id} "
        "is missing"
        if missing == "namespace"
        else f"novadocker: no network namespace is recorded for container {container.id}"
    )
    with pytest.raises(docker.errors.APIError) as caught:
        container.start()
    assert reason in caught.value.explanation
    assert container.state["Running"] is False
    assert container.state["Pid"] == 0
    assert reason in container.state["Error"]
    namespace.wire_nics(wired, [])
    runtime.bind_container(container.id, wired)
    container.start()
    assert same_namespace(container, wired)


@pytest.mark.parametrize("file", ["plain file", "another kind of namespace"])
def test_path_that_is_no_network_namespace(create: Create, instance_uuid: str, file: str) -> None:
    namespace.wire_nics(instance_uuid, [])
    runtime.delete_namespace(instance_uuid)
    path = namespace.namespace_path(instance_uuid)
    if file == "plain file":
        os.close(os.open(path, os.O_CREAT))
    else:
        os.symlink("/proc/self/ns/uts", path)
    container = create(instance_uuid, command=["sleep", "1d"])
    with pytest.raises(docker.errors.APIError):
        container.start()
    assert container.state["Running"] is False
    os.unlink(path)
    runtime.delete_namespace(instance_uuid)


def test_tenant_s_text_does_not_confuse_the_shim(create: Create, wired: str) -> None:
    text = f"{TRICK} \\{TRICK} жё\u0081\u2028 '$(id)' & | \\1"
    container = create(
        wired,
        command=["sh", "-c", 'printf %s "$X$0"; ip -o link | wc -l', text],
        environment={"X": text, TRICK: TRICK},
        labels={TRICK: TRICK, "x": text},
        hostname="web-1",
        working_dir=f"/tmp/{TRICK}",
    )
    container.start()
    assert container.output() == f"{text}{text}2\n"


def test_a_large_environment_does_not_hold_up_the_start(create: Create, wired: str) -> None:
    def start(environment: dict[str, str]) -> float:
        container = create(wired, command=["sleep", "1d"], environment=environment)
        before = time.monotonic()
        container.start()
        return time.monotonic() - before

    usual = start({})
    # A program that is quadratic in the configuration's length takes minutes.
    assert start({f"X{number}": 'a"{}:,' * 8000 for number in range(4)}) < usual + 2


def test_a_record_of_an_older_driver(create: Create, wired: str, port: model.VIF) -> None:
    container = create(wired, command=["sleep", "1d"])
    record = runtime.FOLDER / container.id
    record.write_text(f"{namespace.namespace_path(wired)}\n")
    container.start()
    assert_network(container, port)
    assert container.id in runtime.containers_of(namespace.namespace_path(wired))
