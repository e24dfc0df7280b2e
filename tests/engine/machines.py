# SPDX-License-Identifier: Apache-2.0
"""An image with a tenant's tools for attempts at escape, and containers of it."""

import io
import re
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import docker

from novadocker.privsep.guest import runtime
from novadocker.privsep.guest.runtime import Login
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Isolation, Limits
from tests.engine.busybox import busybox_archive

IMAGE = "machine:test"
PLAIN = Isolation(capabilities=isolation.CAPABILITIES)
LIMITS = Limits(cpu_shares=1024, memory_bytes=64 << 20, swap_bytes=0, pids=64)
ETC = {
    "hostname": b"web-1\n",
    "hosts": b"127.0.0.1 localhost\n",
    "resolv.conf": b"",
}
# perl can make any system call, and every Debian has it.
_PROGRAMS = ("/usr/bin/perl",)
_ACCOUNTS = {
    "etc/passwd": "root::0:0:root:/root:/bin/sh\nuser::1000:1000::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
}


@contextmanager
def connected(url: str, *programs: str) -> Iterator[docker.APIClient]:
    """Connect to an engine and import the image ``IMAGE`` into it.

    :param programs: the paths of programs for the image besides busybox and perl
    """
    with closing(docker.APIClient(base_url=url, timeout=60)) as client:
        repository, tag = IMAGE.split(":")
        client.import_image_from_data(archive(*programs), repository=repository, tag=tag)
        yield client


def archive(*more: str) -> bytes:
    """Return a root file system with accounts, a setuid ``su`` and programs of the machine."""
    programs = (*_PROGRAMS, *more)
    buffer = io.BytesIO(busybox_archive())
    with tarfile.open(fileobj=buffer, mode="a") as root:
        for name, content in _ACCOUNTS.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            root.addfile(entry, io.BytesIO(content.encode()))
        setuid = root.gettarinfo("/bin/busybox", "usr/bin/su")
        setuid.mode = 0o4755
        with Path("/bin/busybox").open("rb") as content:
            root.addfile(setuid, content)
        for path in sorted({*programs, *(lib for name in programs for lib in _libraries(name))}):
            entry = root.gettarinfo(Path(path).resolve(), path.lstrip("/"))
            with Path(path).open("rb") as content:
                root.addfile(entry, content)
    return buffer.getvalue()


def _libraries(program: str) -> list[str]:
    shown = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", shown)


@dataclass
class Machine:
    """A running container."""

    client: docker.APIClient
    name: str
    id: str
    pid: int

    def run(self, *command: str, user: str = "root") -> tuple[int, str]:
        """Run a command inside; return its exit status and its output."""
        execution = self.client.exec_create(self.id, list(command), user=user)["Id"]
        output = self.client.exec_start(execution).decode(errors="replace").strip()
        return self.client.exec_inspect(execution)["ExitCode"], output

    def shell(self, script: str, user: str = "root") -> tuple[int, str]:
        """Run a shell script inside; return its exit status and its output."""
        return self.run("sh", "-c", script, user=user)


@contextmanager
def machine(
    engine: Engine,
    client: docker.APIClient,
    image: str = IMAGE,
    limits: Limits = LIMITS,
    apart: Isolation = PLAIN,
    command: tuple[str, ...] = ("sleep", "1000"),
) -> Iterator[Machine]:
    """Run a container with plain runc, because the shim has its own tests."""
    name = f"nova-machine-{secrets.token_hex(4)}"
    spec = ContainerSpec(
        name=name,
        image_id=image,
        hostname="machine",
        labels={"org.openstack.nova.test": name},
        runtime="runc",
        limits=limits,
        isolation=apart,
        console_log_max_mb=1,
        entrypoint=command[:1],
        command=command[1:],
    )
    container = engine.create_container(spec)
    try:
        engine.start_container(container)
        yield Machine(client, name, container, engine.inspect_container(container).pid)
    finally:
        engine.remove_container(container)


def describe(instance_uuid: str, apart: Isolation = PLAIN) -> ContainerSpec:
    """Return the container of an instance that has a namespace."""
    return ContainerSpec(
        name=f"nova-{instance_uuid}",
        image_id=IMAGE,
        hostname="web-1",
        labels={},
        runtime="novadocker",
        limits=LIMITS,
        isolation=apart,
        console_log_max_mb=1,
        entrypoint=("sleep", "1000"),
    )


def start(
    engine: Engine, client: docker.APIClient, instance_uuid: str, spec: ContainerSpec
) -> Machine:
    """Create an instance's container with files and a login, and start it."""
    container = engine.create_container(spec)
    login = Login(user="root", keys=b"ssh-ed25519 AAAA\n", password_hash="$6$a$b", password_day=1)
    runtime.bind_container(container, instance_uuid, etc_files=ETC, login=asdict(login))
    engine.start_container(container)
    return Machine(client, spec.name, container, engine.inspect_container(container).pid)
