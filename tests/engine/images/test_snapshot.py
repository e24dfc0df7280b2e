# SPDX-License-Identifier: Apache-2.0
"""Snapshots on a real engine, checked in a container of the snapshot."""

import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from nova import exception as nova_exception

from novadocker import exception
from novadocker.privsep.storage import containerd_layers, sparse_files
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store as images_store
from tests import archives
from tests.engine.busybox import busybox_archive
from tests.engine.engines import OwnEngine
from tests.engine.images.test_store import folder, store, tags
from tests.fake_glance import FakeGlance

__all__ = ["folder", "store"]

# A minimal access list: user 1000 may read (linux/posix_acl_xattr.h).
ACL = (
    b"\x02\x00\x00\x00"
    b"\x01\x00\x06\x00\xff\xff\xff\xff"
    b"\x02\x00\x04\x00\xe8\x03\x00\x00"
    b"\x04\x00\x04\x00\xff\xff\xff\xff"
    b"\x10\x00\x04\x00\xff\xff\xff\xff"
    b"\x20\x00\x04\x00\xff\xff\xff\xff"
)
# cap_net_raw+ep (linux/capability.h).
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")[:20]

CONFIG = {
    "Cmd": ["sleep", "1d"],
    "Env": ["PATH=/bin", "COLOUR=blue"],
    "ExposedPorts": {"80/tcp": {}},
    "Labels": {"maker": "test"},
    "User": "0:0",
    "Volumes": {"/data": {}, "/run/link/deep": {}},
    "WorkingDir": "/tmp",
}


class Guest:
    """A running container, and its files as the host sees them."""

    def __init__(self, client: docker.APIClient, image_id: str) -> None:
        host = client.create_host_config(network_mode="none")
        self._start(client, client.create_container(image_id, host_config=host)["Id"])

    @classmethod
    def started(cls, client: docker.APIClient, container: str) -> "Guest":
        """Start an existing container."""
        found = cls.__new__(cls)
        found._start(client, container)
        return found

    def _start(self, client: docker.APIClient, container: str) -> None:
        self.client, self.id = client, container
        client.start(self.id)
        self.root = Path(f"/proc/{client.inspect_container(self.id)['State']['Pid']}/root")

    def run(self, script: str) -> str:
        command = self.client.exec_create(self.id, ["sh", "-c", script])["Id"]
        output = self.client.exec_start(command).decode()
        assert self.client.exec_inspect(command)["ExitCode"] == 0, output
        return output


Boot = Callable[[str], Guest]


@pytest.fixture
def boot(store: images_store.ImageStore, docker_client: docker.APIClient) -> Iterator[Boot]:
    """Yield a function that runs a container of an image; delete containers before their images."""
    guests = []

    def start(image_id: str) -> Guest:
        guests.append(Guest(docker_client, image_id))
        return guests[-1]

    yield start
    for guest in guests:
        docker_client.remove_container(guest.id, force=True, v=True)


@pytest.fixture
def base(
    store: images_store.ImageStore, fake_glance: FakeGlance, docker_client: docker.APIClient
) -> str:
    """Return an image with volumes, one of them behind a link, and files to delete."""
    entries = [
        archives.entry("data", type=b"5", mode=0o755),
        archives.entry("data/from-image", b"old\n"),
        archives.entry("real", type=b"5", mode=0o751),
        archives.entry("run", type=b"5", mode=0o755),
        archives.entry("run/link", type=b"2", linkname="../real"),
        archives.entry("gone", b"gone\n"),
        archives.entry("folder", type=b"5", mode=0o755),
        archives.entry("folder/below", b"below\n"),
        archives.entry("etc/hostname", b"of-the-image\n"),
    ]
    layers = [busybox_archive(), archives.tar_of(entries)]
    architecture = docker_client.version()["Arch"]
    config = archives.config(layers, config=CONFIG, architecture=architecture)
    meta = fake_glance.add(str(uuid.uuid4()), archives.tar(archives.docker_files(config, layers)))
    return store.ensure(None, meta).id


@pytest.fixture
def snapshot(
    store: images_store.ImageStore, fake_glance: FakeGlance, engine_url: str
) -> Callable[[str], str]:
    """Return a function that snapshots a container and returns the id of the snapshot's image."""

    def make(container: str) -> str:
        image_id = str(uuid.uuid4())
        with store.snapshot(Engine(engine_url, 30, 120).inspect_container(container)) as image:
            store.upload(None, image_id, image)
        return store.ensure(None, fake_glance.meta(image_id)).id

    return make


@pytest.fixture
def graph_driver(pytestconfig: pytest.Config) -> bool:
    """Return True if the engine has a storage driver of its own."""
    return not pytestconfig.getoption("--containerd-store")


def prepare(guest: Guest) -> None:
    guest.run(
        "rm /gone && rm -r /folder && mkdir /folder && echo new >/folder/new &&"
        "echo kept >/data/kept && rm /data/from-image && echo deep >/run/link/deep/file &&"
        "ln /data/kept /data/same && echo one >/one && ln /one /two && ln -s nowhere /dangling &&"
        "mknod /null c 1 3 && mkfifo /pipe && chmod 1777 /real && chown 12:34 /one &&"
        "echo tenant >/etc/hostname && echo tenant >/etc/mine &&"
        "printf end | dd of=/sparse bs=1 seek=50000000 2>/dev/null &&"
        "echo x >/$(printf 'caf\\351') && touch -d @1000000000 /two &&"
        "touch -d @1000000001 /sparse"
    )
    for name in ("one", "data/kept"):
        os.setxattr(guest.root / name, "system.posix_acl_access", ACL)
        os.setxattr(guest.root / name, "security.capability", CAPABILITY)
        os.setxattr(guest.root / name, "trusted.test", b"\0\xff\n")


def check(guest: Guest, graph_driver: bool = True) -> None:
    root = guest.root
    for name in ("one", "data/kept"):
        assert os.getxattr(root / name, "system.posix_acl_access") == ACL
        assert os.getxattr(root / name, "security.capability") == CAPABILITY
        if graph_driver:
            # containerd unpacks no such attributes, so it does not mark sparse files, either.
            assert os.getxattr(root / name, "trusted.test") == b"\0\xff\n"
    assert guest.run("ls /folder /data /run/link/deep").split() == [
        *("/data:", "kept", "same"),
        *("/folder:", "new"),
        *("/run/link/deep:", "file"),
    ]
    assert guest.run("cat /data/same /one /run/link/deep/file") == "kept\none\ndeep\n"
    assert not (root / "gone").exists()
    assert os.lstat(root / "one").st_ino == os.lstat(root / "two").st_ino
    assert os.lstat(root / "data/kept").st_ino == os.lstat(root / "data/same").st_ino
    one = os.lstat(root / "one")
    assert (one.st_uid, one.st_gid, int(one.st_mtime)) == (12, 34, 1000000000)
    assert os.readlink(root / "dangling") == "nowhere"
    null = os.lstat(root / "null")
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO(os.lstat(root / "pipe").st_mode)
    assert stat.S_IMODE(os.lstat(root / "real").st_mode) == 0o1777
    assert stat.S_IMODE(os.lstat(root / "run").st_mode) == 0o755
    sparse = os.lstat(root / "sparse")
    assert (sparse.st_size, int(sparse.st_mtime)) == (50000003, 1000000001)
    assert sparse.st_blocks * 512 < 1 << 20 or not graph_driver
    assert sparse_files.MARK not in os.listxattr(root / "sparse")
    assert guest.run("tr -d '\\0' </sparse") == "end"
    assert b"caf\xe9" in os.listdir(os.fsencode(root))
    assert guest.run("cat /etc/mine") == "tenant\n"


@pytest.mark.parametrize("state", ["running", "paused", "exited"])
def test_a_snapshot_has_all_of_a_server(
    base: str,
    boot: Boot,
    snapshot: Callable[[str], str],
    docker_client: docker.APIClient,
    graph_driver: bool,
    state: str,
) -> None:
    guest = boot(base)
    prepare(guest)
    if state == "paused":
        docker_client.pause(guest.id)
    elif state == "exited":
        docker_client.stop(guest.id, timeout=0)
    image = snapshot(guest.id)
    assert docker_client.inspect_container(guest.id)["State"]["Status"] == state
    found = docker_client.inspect_image(image)["Config"]
    assert {name: found[name] for name in CONFIG} == CONFIG
    copied = boot(image)
    check(copied, graph_driver)
    # A snapshot of the snapshot changes the first snapshot's files.
    copied.run("rm /one && echo more >/data/more")
    again = boot(snapshot(copied.id))
    assert again.run("cat /two /data/more /data/kept") == "one\nmore\nkept\n"
    assert not (again.root / "one").exists()


def test_what_the_driver_put_in_stays_behind(
    base: str,
    boot: Boot,
    snapshot: Callable[[str], str],
    session_engine: OwnEngine,
    docker_client: docker.APIClient,
    graph_driver: bool,
) -> None:
    guest = boot(base)
    prepare(guest)
    copied = boot(snapshot(guest.id))
    if graph_driver:
        storage = docker_client.inspect_container(copied.id)["GraphDriver"]["Data"]
        upper = storage["LowerDir"].split(":")
    else:
        _, *upper = containerd_layers.list_folders(str(session_engine.containerd_socket), copied.id)
    # The layers are the engine's own, the snapshot's and the image's.
    assert not (Path(upper[1]) / "etc/hostname").exists()
    assert (Path(upper[1]) / "etc/mine").read_text() == "tenant\n"
    assert (Path(upper[2]) / "etc/hostname").read_text() == "of-the-image\n"


def test_no_image_is_left_when_glance_is_full(
    base: str,
    boot: Boot,
    store: images_store.ImageStore,
    fake_glance: FakeGlance,
    docker_client: docker.APIClient,
    engine_url: str,
    folder: Path,
) -> None:
    guest = boot(base)
    guest.run("dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null")
    before = tags(docker_client), docker_client.images(all=True), set(fake_glance.records)
    fake_glance.room = 1 << 20
    image_id = str(uuid.uuid4())
    found = Engine(engine_url, 30, 120).inspect_container(guest.id)
    with pytest.raises(nova_exception.ImageQuotaExceeded), store.snapshot(found) as image:
        store.upload(None, image_id, image)
    assert (tags(docker_client), docker_client.images(all=True), set(fake_glance.records)) == before
    assert [entry.name for entry in folder.iterdir()] == ["locks"]
    assert guest.run("ls /big") == "/big\n"


def test_a_damaged_layer_below_makes_no_image(
    base: str,
    boot: Boot,
    store: images_store.ImageStore,
    fake_glance: FakeGlance,
    docker_client: docker.APIClient,
    engine_url: str,
    graph_driver: bool,
) -> None:
    if not graph_driver:
        pytest.skip("a snapshot reads the archives of the layers, not their files")
    guest = boot(base)
    storage = docker_client.inspect_image(base)["GraphDriver"]["Data"]
    file = Path(storage["UpperDir"], "gone")
    assert file.read_text() == "gone\n"
    found = Engine(engine_url, 30, 120).inspect_container(guest.id)
    image_id = str(uuid.uuid4())
    file.write_text("evil\n")
    with (
        pytest.raises(exception.SnapshotFailed, match="layer 2 does not match its digest"),
        store.snapshot(found) as image,
    ):
        store.upload(None, image_id, image)
    assert image_id not in fake_glance.records


FREEZE_AND_DIE = """
import os, sys
from pathlib import Path
from novadocker import exception
from novadocker.virt.docker.containers import freeze
from novadocker.virt.docker.engine.client import Engine
engine = Engine(sys.argv[1], 30, 60)
with freeze.frozen(engine, engine.inspect_container(sys.argv[2]), Path(sys.argv[3])):
    os.kill(os.getpid(), 9)
"""


def test_a_freeze_does_not_outlive_its_process(
    engine: Engine,
    engine_url: str,
    base: str,
    boot: Boot,
    docker_client: docker.APIClient,
    folder: Path,
) -> None:
    def status(guest: Guest) -> str:
        return str(docker_client.inspect_container(guest.id)["State"]["Status"])

    frozen, resting = boot(base), boot(base)
    docker_client.pause(resting.id)
    command = [sys.executable, "-c", FREEZE_AND_DIE, engine_url]
    killed = subprocess.run([*command, frozen.id, str(folder)], check=False)
    assert (killed.returncode, status(frozen)) == (-9, "paused")
    freeze.thaw_left(engine, folder)
    assert (status(frozen), status(resting)) == ("running", "paused")
    assert [entry.name for entry in folder.iterdir()] == ["locks"]


def test_many_generations(
    base: str,
    boot: Boot,
    store: images_store.ImageStore,
    snapshot: Callable[[str], str],
    docker_client: docker.APIClient,
    pytestconfig: pytest.Config,
) -> None:
    generations = pytestconfig.getoption("--generations")
    images_store.CONF.set_override("snapshot_depth", 2, group="docker")
    try:
        image = base
        for generation in range(generations):
            guest = boot(image)
            guest.run(
                f"echo {generation} >/latest; touch /data/{generation}; rm -f /old; touch /old"
            )
            image = snapshot(guest.id)
    finally:
        images_store.CONF.clear_override("snapshot_depth", group="docker")
    assert len(docker_client.inspect_image(image)["RootFS"]["Layers"]) <= 4
    guest = boot(image)
    latest, *data = guest.run("cat /latest; ls /data").split()
    assert latest == str(generations - 1)
    assert sorted(data) == sorted(["from-image", *map(str, range(generations))])
