# SPDX-License-Identifier: Apache-2.0
"""What a flavor can permit to a server with a user namespace, as docs/limits.rst lists it."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from novadocker import extra_specs
from novadocker.virt.docker.limits import isolation
from tests.engine import attacks, machines, namespaced
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine

Run = Callable[..., AbstractContextManager[Machine]]

SPEC = machines.describe("")

# Scripts that fail without the capability.
PERMITTED = {
    "SYS_ADMIN": (
        "mkdir -p /mnt && mount -t tmpfs none /mnt && echo >/mnt/file && umount /mnt",
        "mount -t tmpfs none /mnt && cd /mnt && mkdir l u w m && touch l/file &&"
        " mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m"
        " && rm m/file && test -c u/file",
        "mount -t proc none /mnt && test -d /mnt/1",
        "mount -o bind /bin /mnt && test -e /mnt/busybox",
        "hostname other && test $(hostname) = other",
        "unshare -m true && unshare -n true && unshare -U true",
    ),
    "NET_ADMIN": (
        "ip address add 10.9.9.9/24 dev lo",
        "ip link add br0 type bridge && ip link delete br0",
        "ip link add left type veth peer name right && ip link delete left",
    ),
    "SYS_NICE": (
        "su -c 'sleep 9 >/dev/null 2>&1 & echo $!' user >/tmp/pid && renice -n 5 $(cat /tmp/pid)",
    ),
}


@pytest.fixture(scope="module", params=namespaced.KINDS)
def outer(
    request: pytest.FixtureRequest, session_engine: OwnEngine, privileged: None, state_folder: Path
) -> Iterator[OwnEngine]:
    """Yield an engine whose servers can have a user namespace."""
    with namespaced.engine_of_kind(
        request.param, session_engine, state_folder, "permitted"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(outer: OwnEngine) -> Iterator[docker.APIClient]:
    with machines.connected(outer.url) as found:
        yield found


@pytest.fixture
def run(outer: OwnEngine, client: docker.APIClient, instance_uuid: str) -> Run:
    """Return a function that runs a server with capabilities."""

    def started(*capabilities: str) -> AbstractContextManager[Machine]:
        asked = {extra_specs.CAPABILITY_LIST.name: ",".join(capabilities)} if capabilities else {}
        spec = replace(SPEC, isolation=isolation.isolation(asked))
        return namespaced.server(outer, client, instance_uuid, spec)

    return started


def test_each_permission_needs_its_capability(run: Run) -> None:
    with run() as server:
        done = [
            script
            for scripts in PERMITTED.values()
            for script in scripts
            if server.shell(script)[0] == 0
        ]
    assert done == []


@pytest.mark.parametrize("capability", PERMITTED)
def test_what_a_capability_permits(run: Run, capability: str) -> None:
    with run(capability) as server:
        for script in PERMITTED[capability]:
            code, output = server.shell(script)
            assert code == 0, f"{script}: {output}"


def test_fuse(session_engine: OwnEngine, instance_uuid: str) -> None:
    """With userns-remap, a server can open a device of the host only if all users can."""
    asked = {"docker:capabilities": "SYS_ADMIN", "docker:devices": "/dev/fuse"}
    spec = replace(SPEC, isolation=isolation.isolation(asked))
    mount = attacks.Attempt(
        "",
        "mount_fuse",
        frozenset(("done",)),
        "mkdir('/mnt'), sysopen(F, '/dev/fuse', O_RDWR) ? call('mount', 'none', '/mnt', 'fuse', 0,"
        " 'fd='.fileno(F).',rootmode=40000,user_id=0,group_id=0') : $!+0",
    )
    with (
        machines.connected(session_engine.url) as client,
        namespaced.server(session_engine, client, instance_uuid, spec) as server,
    ):
        assert server.run("perl", "-e", attacks.program([mount])) == (0, "mount_fuse 0")


def test_all_capabilities_together_leave_the_host_alone(run: Run) -> None:
    with run(*extra_specs.CAPABILITIES, *extra_specs.NAMESPACE_CAPABILITIES) as server:
        assert attacks.wrong_answers(server.run, os.getpid()) == {}
