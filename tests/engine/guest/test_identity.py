# SPDX-License-Identifier: Apache-2.0
"""A tenant's view inside a container that was started through the runtime shim."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from tests.engine.busybox import busybox_archive

LOGIN = {
    "user": "root",
    "keys": b"ssh-rsa A\n",
    "password_hash": "$6$salt$hash",
    "password_day": 20000,
}
ACCOUNTS = {"etc/passwd": b"root:x:0:0::/root:/bin/sh\n", "etc/shadow": b"root:*:1:0:99999:7:::\n"}

Build = Callable[..., str]
Boot = Callable[..., "Guest"]


class Guest:
    """A container bound to an instance, with files for its first start."""

    def __init__(self, client: docker.APIClient, image: str, uuid: str, **host_config: Any) -> None:
        self.client, self.uuid = client, uuid
        host_config = client.create_host_config(
            runtime="novadocker", network_mode="none", **host_config
        )
        self.id = client.create_container(
            image, ["sleep", "1d"], network_disabled=True, host_config=host_config
        )["Id"]

    @property
    def pid(self) -> int:
        return int(self.client.inspect_container(self.id)["State"]["Pid"])

    def start(self) -> None:
        self.client.start(self.id)

    def run(self, *command: str) -> str:
        call = self.client.exec_create(self.id, list(command))["Id"]
        output: bytes = self.client.exec_start(call)
        return output.decode()


@pytest.fixture(scope="module")
def build(engine_url: str) -> Iterator[Build]:
    """Yield a function that builds an image of busybox, files and links.

    ``changes`` are instructions as in a Dockerfile.
    """
    client = docker.APIClient(base_url=engine_url, timeout=60)
    made = []

    def call(
        files: dict[str, bytes] | None = None,
        links: dict[str, str] | None = None,
        changes: tuple[str, ...] = (),
        folders: tuple[str, ...] = (),
        mode: int = 0o640,
    ) -> str:
        buffer = io.BytesIO()
        links, files = links or {}, files or {}
        with (
            tarfile.open(fileobj=io.BytesIO(busybox_archive())) as source,
            tarfile.open(fileobj=buffer, mode="w") as archive,
        ):
            for entry in source:
                if entry.name not in {*links, *files, *folders}:
                    archive.addfile(entry, source.extractfile(entry) if entry.isreg() else None)
            for name, target in links.items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
            for name in folders:
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, mode | 0o111
                archive.addfile(entry)
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), mode
                archive.addfile(entry, io.BytesIO(content))
        name = f"inside:{len(made)}"
        client.import_image_from_data(
            buffer.getvalue(), repository="inside", tag=str(len(made)), changes=list(changes)
        )
        made.append(name)
        return name

    yield call
    for name in made:
        client.remove_image(name, force=True)
    client.close()


@pytest.fixture
def boot(docker_client: docker.APIClient, instance_uuid: str) -> Iterator[Boot]:
    """Yield a function that starts a container with files and a login."""
    namespace.wire_nics(instance_uuid, [])

    def call(image: str, start: bool = True, **files: Any) -> Guest:
        guest = Guest(docker_client, image, instance_uuid)
        runtime.bind_container(guest.id, instance_uuid, **files)
        if start:
            guest.start()
        return guest

    yield call
    runtime.delete_namespace(instance_uuid)


def test_identity_and_login(build: Build, boot: Boot) -> None:
    guest = boot(build(ACCOUNTS), etc_files={"hosts": b"h\n", "machine-id": b"7e57\n"}, login=LOGIN)
    assert guest.run("cat", "/etc/machine-id") == "7e57\n"
    assert guest.run("cat", "/root/.ssh/authorized_keys") == "ssh-rsa A\n"
    assert guest.run("cat", "/etc/shadow") == "root:$6$salt$hash:20000:0:99999:7:::\n"
    assert guest.run("stat", "-c", "%a %u", "/etc/shadow", "/root/.ssh") == "640 0\n700 0\n"
    # Later starts do not replace the tenant's changes.
    guest.run("sh", "-c", "echo own >/etc/machine-id")
    guest.client.restart(guest.id, timeout=0)
    assert guest.run("cat", "/etc/machine-id") == "own\n"


@pytest.mark.parametrize("folder", ["etc", "root", "home"])
@pytest.mark.parametrize("target", ["/", "../../../../..", "/proc/1/root", "/bin/../data"])
def test_folders_that_are_links(build: Build, boot: Boot, folder: str, target: str) -> None:
    before = os.listdir("/")
    user = "web" if folder == "home" else "root"
    account = f"{user}:x:0:0::/{folder}/w:/bin/sh\n"
    passwd = {"etc/passwd": account.encode()} if folder != "etc" else {}
    guest = boot(
        build(passwd, {folder: target}),
        etc_files={"hosts": b"ours\n"},
        login={**LOGIN, "user": user},
    )
    assert guest.run("cat", "/etc/hosts") == "ours\n"
    home = "/root" if folder == "etc" else f"/{folder}/w"
    if target != "/proc/1/root":  # No process runs in the shim's root yet.
        assert guest.run("cat", f"{home}/.ssh/authorized_keys") == "ssh-rsa A\n"
    assert os.listdir("/") == before


def test_what_nobody_may_write(build: Build, boot: Boot) -> None:
    files = {**ACCOUNTS, "etc/hosts": b"of the image\n"}
    image = build(files, folders=("etc", "root"), mode=0o444)
    guest = boot(image, etc_files={"hosts": b"ours\n"}, login=LOGIN)
    assert guest.run("cat", "/etc/hosts", "/root/.ssh/authorized_keys") == "ours\nssh-rsa A\n"
    assert "$6$salt$hash" in guest.run("cat", "/etc/shadow")
    assert guest.run("stat", "-c", "%a", "/etc", "/etc/shadow") == "555\n444\n"


def test_login_in_volumes(build: Build, boot: Boot) -> None:
    image = build(ACCOUNTS, changes=("VOLUME /root", "VOLUME /etc"))
    guest = boot(image, etc_files={"hosts": b"ours\n"}, login=LOGIN)
    assert guest.run("cat", "/etc/hosts", "/root/.ssh/authorized_keys") == "ours\nssh-rsa A\n"
    assert "$6$salt$hash" in guest.run("cat", "/etc/shadow")


def test_the_host_s_kernel_log_is_not_there(build: Build, boot: Boot) -> None:
    guest = boot(build())
    assert "not permitted" in guest.run("dmesg")
    assert "not permitted" in guest.run("dmesg", "-c")
    assert "No such file" in guest.run("cat", "/dev/kmsg")
    # The kernel requires a capability that no container has.
    assert guest.run("timeout", "2", "cat", "/proc/kmsg").endswith("not permitted\n")
    own = "mknod /tmp/kmsg c 1 11; timeout 2 cat /tmp/kmsg"
    assert guest.run("sh", "-c", own).endswith("not permitted\n")
