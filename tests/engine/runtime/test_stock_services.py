# SPDX-License-Identifier: Apache-2.0
"""Debian 12 and 13 with many packages as they come, in a server with systemd.

The systems are built only with ``--stock``, because that takes minutes.
"""

from collections.abc import Iterator

import docker
import pytest

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.model import Limits
from tests.engine import systemd_image
from tests.engine.systems import Server

# One CPU.
LIMITS = Limits(
    cpu_shares=1024,
    cpu_period_us=100_000,
    cpu_quota_us=100_000,
    memory_bytes=2 << 30,
    swap_bytes=0,
    pids=2000,
)
SERVICES = (
    "cron",
    "haproxy",
    "mariadb",
    "memcached",
    "named",
    "nginx",
    "polkit",
    "postfix",
    "postgresql",
    "rabbitmq-server",
    "redis-server",
    "rsyslog",
    "squid",
    "ssh",
    "systemd-logind",
    "systemd-resolved",
)
ANSWERS = {
    "redis-cli ping": "PONG",
    "mariadb --batch --skip-column-names --execute 'select 6 * 7'": "42",
    "su postgres -c 'psql --tuples-only --no-align --command \"select 6 * 7\"'": "42",
    "rabbitmqctl --quiet eval 'rabbit:is_running().'": "true",
    "curl --silent --output /dev/null --write-out '%{http_code}' http://localhost/": "200",
    "java -XshowSettings:system -version 2>&1 | grep 'Effective CPU Count'": "Count: 1",
    "java -XshowSettings:system -version 2>&1 | grep 'Memory Limit'": "2.00G",
}
USER = """
useradd --create-home --shell /bin/bash user
su user -c 'mkdir -m 700 ~/.ssh; ssh-keygen -q -N "" -f ~/.ssh/id_ed25519 -t ed25519'
su user -c 'cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys'
"""
LOGIN = "su user -c 'ssh -o StrictHostKeyChecking=no -o BatchMode=yes localhost \"%s\"' 2>&1"


@pytest.fixture(params=["bookworm", "trixie"])
def server(
    request: pytest.FixtureRequest,
    engine: Engine,
    engine_url: str,
    docker_client: docker.APIClient,
    home_network: str,
    instance_uuid: str,
) -> Iterator[Server]:
    if not request.config.getoption("--stock"):
        pytest.skip("only with --stock")
    archive = systemd_image.stock_archive(request.param, home_network)
    client = docker.APIClient(base_url=engine_url, timeout=600)
    client.import_image(str(archive), repository="stock", tag=request.param)
    image = client.inspect_image(f"stock:{request.param}")["Id"]
    namespace.wire_nics(instance_uuid, [])
    made = Server(engine, docker_client, image, instance_uuid, LIMITS)
    files = identity.etc_files(instance_uuid, "sd1", "", ["127.0.0.1"], [])
    runtime.bind_container(made.id, instance_uuid, etc_files=files)
    made.start()
    yield made
    runtime.delete_namespace(instance_uuid)
    client.remove_container(made.id, force=True, v=True)
    client.remove_image(image, force=True)
    client.close()


def test_stock_services(server: Server) -> None:
    def shell(text: str) -> str:
        return server.run("timeout", "120", "sh", "-c", text).strip()

    assert server.state() == "running", shell("systemctl --failed --no-pager")
    shell("systemctl start polkit")
    assert {name: shell(f"systemctl is-active {name}") for name in SERVICES} == dict.fromkeys(
        SERVICES, "active"
    )
    for command, answer in ANSWERS.items():
        assert answer in shell(command), command

    # a login by sshd with the PAM modules of logind and loginuid
    assert shell(USER) == ""
    assert shell(LOGIN % "systemctl --user is-system-running --wait").endswith("running")
    assert shell(LOGIN % "loginctl show-user user --property=State").endswith("active")
    assert shell(LOGIN % "stat -c %U \\$XDG_RUNTIME_DIR").endswith("user")
    assert shell(LOGIN % "cat /proc/self/loginuid").endswith("1000")
    assert shell(LOGIN % "sudo -n true").endswith("a password is required")

    # mail and cron
    shell("echo text | sendmail user; echo '* * * * * user touch ~/cron' >/etc/cron.d/test")
    wait = "until [ -e %s ]; do sleep 1; done; echo there"
    assert shell(wait % "/var/mail/user") == "there"
    assert shell(wait % "/home/user/cron") == "there"
    assert server.state() == "running", shell("systemctl --failed --no-pager")
