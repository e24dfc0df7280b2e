# SPDX-License-Identifier: Apache-2.0
"""Real alarms: they fire with the culprit's name, reach the owner and operators, and end."""

import email
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email import policy
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud import supervise, watch
from devcloud.network import NAMESPACES
from devcloud.settings import CHECKOUT, Settings
from novadocker.actions.hook import Hook
from novadocker.actions.policy import Policy, Rule
from tests.cloud.guests import until
from tests.cloud.owners import engine_of
from tests.cloud.servers import Servers, fault

# In a quiet cloud, this takes a minute: probes run every 10 s, and alarms keep firing for 20 s.
ALARM_SECONDS = 240
FLAVOR, SLOW_FLAVOR = "test-watched", "test-watched-slow"
PIDS = 50
HUNGRY = "for i in 1 2 3 4; do tail /dev/zero; done"
BOMB = f"for i in $(seq {PIDS + 10}); do sleep 1000 & done"
# With so few, the kernel finds no older connection to evict.
MOST_CONNECTIONS = Path("/proc/sys/net/netfilter/nf_conntrack_max")
FEW_CONNECTIONS = 4096
FILL_BYTES = 4 << 30
ACTIVE = "activeAlertmanagers"

Alarm = dict[str, str]


@pytest.fixture(scope="module")
def watched(cloud: Settings) -> Settings:
    """Return the cloud's settings when Prometheus has scraped all exporters."""
    until(lambda: value("count(novadocker_host_process_up == 1)") == 5 * len(cloud.hosts))
    return cloud


@pytest.fixture(scope="module")
def bomber(watched: Settings, admin: Connection, demo: Connection) -> Iterator[Server]:
    """Yield a small server on the first host."""
    pids = {"docker:pids_limit": str(PIDS)}
    flavors = []
    for name, specs in ((FLAVOR, pids), (SLOW_FLAVOR, {**pids, "quota:cpu_quota": "20000"})):
        flavors.append(admin.compute.create_flavor(name=name, vcpus=1, ram=64, disk=1))
        admin.compute.create_flavor_extra_specs(flavors[-1], specs)
    made = Servers(demo)
    server = made.create("bomber", flavor=FLAVOR)
    assert server.status == "ACTIVE", fault(server)
    yield admin.compute.get_server(server.id)
    made.delete_all()
    for flavor in flavors:
        admin.compute.delete_flavor(flavor)


@pytest.fixture(scope="module")
def engine(watched: Settings) -> Iterator[docker.APIClient]:
    client = engine_of(watched, watched.hosts[0])
    yield client
    client.close()


def ask(port: int, path: str, data: bytes | None = None) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(watch.url(port, path), data=data, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def alarms() -> list[Alarm]:
    """Return the labels of Alertmanager's active alarms."""
    return [alert["labels"] for alert in ask(watch.ALERTMANAGER_PORT, "/api/v2/alerts")]


def is_there(**labels: str) -> bool:
    return any(labels.items() <= alarm.items() for alarm in alarms())


def value(query: str) -> float:
    """Return the value of a query; NaN if there is none yet."""
    path = f"/api/v1/query?query={urllib.parse.quote(query)}"
    found = ask(watch.PROMETHEUS_PORT, path)["data"]["result"]
    return float(found[0]["value"][1]) if found else math.nan


@contextmanager
def threshold(settings: Settings, number: float, **labels: str) -> Iterator[None]:
    """Set a threshold of one host while a block runs."""
    path = watch.folder(settings) / "overrides.yml"
    before = path.read_text()
    rule = {"record": "novadocker_threshold", "expr": f"vector({number})", "labels": labels}
    path.write_text(yaml.safe_dump({"groups": [{"name": "overrides", "rules": [rule]}]}))
    try:
        reload_rules()
        yield
    finally:
        path.write_text(before)
        reload_rules()


def reload_rules() -> None:
    """Reload Prometheus's rules and wait until it has found Alertmanager again."""
    ask(watch.PROMETHEUS_PORT, "/-/reload", b"")
    until(lambda: ask(watch.PROMETHEUS_PORT, "/api/v1/alertmanagers")["data"][ACTIVE])


@contextmanager
def stopped(settings: Settings, *programs: str) -> Iterator[None]:
    supervise.stop_programs(settings, programs)
    try:
        yield
    finally:
        supervise.start_programs(settings, programs)


@contextmanager
def full_disk(settings: Settings) -> Iterator[None]:
    """Fill the last host's data root beyond its own threshold while a block runs."""
    host = settings.hosts[-1]
    root = settings.host_data(host) / "docker"
    disk = os.statvfs(root)
    size = disk.f_blocks * disk.f_frsize
    used = size - disk.f_bavail * disk.f_frsize
    labels = {"alarm": "NovadockerStorage", "level": "critical", "instance": host.name}
    filling = root / "test-watch-fills"
    with threshold(settings, (used + FILL_BYTES / 2) / size, **labels):
        try:
            with filling.open("wb") as output:
                os.posix_fallocate(output.fileno(), 0, FILL_BYTES)
            yield
        finally:
            filling.unlink()


@contextmanager
def bomb(engine: docker.APIClient, container: str) -> Iterator[None]:
    """Start as many processes as the server may have; kill them at the end of the block."""
    engine.exec_start(engine.exec_create(container, ["sh", "-c", BOMB])["Id"], detach=True)
    try:
        yield
    finally:
        # The server cannot start another process to kill them.
        for words in engine.top(container, ps_args="-eo pid,comm")["Processes"]:
            if words[1] == "sleep":
                with suppress(ProcessLookupError):
                    os.kill(int(words[0]), signal.SIGKILL)


def flood(instance_uuid: str) -> None:
    """Fill the connection table of a server's network namespace."""
    inside = ["nsenter", f"--net={NAMESPACES}/nova-{instance_uuid}"]
    # A firewall rule in the server makes the kernel track connections.
    rule = ["-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT"]
    subprocess.run([*inside, "iptables", "-A", "INPUT", *rule], check=True, timeout=30)
    most = MOST_CONNECTIONS.read_text()
    MOST_CONNECTIONS.write_text(str(FEW_CONNECTIONS))
    try:
        command = [*inside, sys.executable, "-m", __name__]
        subprocess.run(command, check=True, timeout=60, cwd=CHECKOUT)
    finally:
        MOST_CONNECTIONS.write_text(most)


def send_from_everywhere() -> None:
    """Send packets to more ports than the kernel can track connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in range(1, 3 * FEW_CONNECTIONS):
            # The kernel refuses packets when the table is full, or because no process has the port.
            with suppress(OSError):
                sender.sendto(b"", ("127.0.0.1", port))


def mails_about(settings: Settings, to: str, *words: str) -> bool:
    """Return True if a mail to this address contains all these words."""
    for path in watch.mail_folder(settings).glob("*.eml"):
        mail = email.message_from_bytes(path.read_bytes(), policy=policy.default)
        parts = [part.get_content() for part in mail.walk() if not part.is_multipart()]
        text = "\n".join([mail["Subject"], *parts])
        if mail["X-Envelope-To"] == f"<{to}>" and all(word in text for word in words):
            return True
    return False


def test_alarms_fire_with_the_culprit_and_end(
    watched: Settings, demo: Connection, bomber: Server, engine: docker.APIClient
) -> None:
    last = watched.hosts[-1].name
    shutil.rmtree(watch.mail_folder(watched), ignore_errors=True)
    watch.mail_folder(watched).mkdir()
    server = {
        "uuid": bomber.id,
        "name": bomber.instance_name,
        "project": bomber.project_id,
        "instance": watched.hosts[0].name,
    }
    expected: list[Alarm] = [
        {"alertname": "NovadockerServerOomKills", "severity": "critical", **server},
        {"alertname": "NovadockerServerForksRefused", "severity": "critical", **server},
        {"alertname": "NovadockerServerPids", "severity": "critical", **server},
        {"alertname": "NovadockerServerConnectionTable", "severity": "critical", **server},
        {"alertname": "NovadockerProcessDown", "process": "lxcfs", "instance": last},
        {"alertname": "NovadockerProcessDown", "process": "ovs-agent", "instance": last},
        {"alertname": "NovadockerStorage", "severity": "critical", "instance": last},
    ]
    # increase() needs a scrape before the first incident.
    until(lambda: value(f'novadocker_server_pids_limit_hits_total{{uuid="{bomber.id}"}}') == 0)
    until(lambda: value(f'count(novadocker_server_incidents_total{{uuid="{bomber.id}"}})') > 0)
    assert not [alarm for alarm in expected if is_there(**alarm)]
    container = f"nova-{bomber.id}"
    seen: list[Alarm] = []

    def all_seen() -> bool:
        seen.extend(alarm for alarm in expected if alarm not in seen and is_there(**alarm))
        return len(seen) == len(expected)

    with (
        stopped(watched, f"lxcfs-{last}", watched.network_agent(watched.hosts[-1])),
        full_disk(watched),
    ):
        engine.exec_start(engine.exec_create(container, ["sh", "-c", HUNGRY])["Id"])
        with bomb(engine, container):
            flood(bomber.id)
            wait(all_seen, lambda: [alarm for alarm in expected if alarm not in seen])
    to_owner = ("NovadockerServerForksRefused", bomber.id)
    until(lambda: mails_about(watched, watch.CONTACT, *to_owner))
    until(lambda: mails_about(watched, "operators@example.org", *to_owner))
    assert not mails_about(watched, watch.CONTACT, "NovadockerStorage")

    # The server's owner sees these incidents.
    told = {"oom_kill", "pids_limit", "conntrack_full"}
    until(lambda: told <= {found.action for found in demo.compute.server_actions(bomber)})

    def left() -> list[Alarm]:
        return [alarm for alarm in expected if is_there(**alarm)]

    wait(lambda: not left(), left)


def wait(holds: Callable[[], bool], missing: Callable[[], object]) -> None:
    deadline = time.monotonic() + ALARM_SECONDS
    while not holds():
        assert time.monotonic() < deadline, missing()
        time.sleep(1)


def test_a_page_pauses_the_culprit_until_it_is_over(
    watched: Settings, admin: Connection, bomber: Server, engine: docker.APIClient
) -> None:
    host = watched.hosts[0].name
    command = ["sh", "-c", "for i in $(seq 30); do sleep 1000 & done"]
    engine.exec_start(engine.exec_create(f"nova-{bomber.id}", command)["Id"], detach=True)
    until(lambda: value(f'novadocker_server_pids{{uuid="{bomber.id}"}}') > 30)
    few = {"alarm": "NovadockerHostThreads", "level": "page", "instance": host}

    def actions() -> list[str]:
        return [action.action for action in admin.compute.server_actions(bomber)]

    with threshold(watched, 0.0, **few):
        wait(lambda: admin.compute.get_server(bomber.id).status == "PAUSED", alarms)
        assert is_there(alertname="NovadockerServerMostThreads", uuid=bomber.id)
        assert admin.compute.get_server(bomber.id).metadata == {
            "novadocker_paused_by": "NovadockerServerMostThreads"
        }
    wait(lambda: admin.compute.get_server(bomber.id).status == "ACTIVE", alarms)
    assert actions()[:2] == ["unpause", "pause"]
    until(lambda: admin.compute.get_server(bomber.id).metadata == {})


def test_an_alarm_throttles_the_culprit_until_it_is_over(
    watched: Settings, admin: Connection, bomber: Server, engine: docker.APIClient
) -> None:
    rule = Rule("Hot", "throttle", "warning", undo=True, flavors={FLAVOR: SLOW_FLAVOR})
    taker = Hook(admin, Policy(enabled=True, rules=(rule,)))
    labels = {
        "alertname": "Hot",
        "severity": "warning",
        "uuid": bomber.id,
        "project": bomber.project_id,
    }
    cores = f'novadocker_server_cpu_limit_cores{{uuid="{bomber.id}"}}'
    container = f"nova-{bomber.id}"
    before, started = value(cores), engine.inspect_container(container)["State"]["StartedAt"]
    taker.take([{"status": "firing", "labels": labels}])
    now = admin.compute.get_server(bomber.id)
    assert now.flavor["original_name"] == SLOW_FLAVOR
    assert now.metadata["novadocker_throttled_by"] == "Hot"
    until(lambda: value(cores) == pytest.approx(0.2))
    taker.take([{"status": "resolved", "labels": labels}])
    now = admin.compute.get_server(bomber.id)
    assert (now.flavor["original_name"], now.metadata) == (FLAVOR, {})
    until(lambda: value(cores) == before)
    assert engine.inspect_container(container)["State"]["StartedAt"] == started
    actions = [action.action for action in admin.compute.server_actions(bomber)]
    assert {"resize", "revertResize"} <= set(actions)


if __name__ == "__main__":
    send_from_everywhere()
