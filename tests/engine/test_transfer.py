# SPDX-License-Identifier: Apache-2.0
"""A container's data on its way into another container: all of it, and nothing else."""

import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import docker
import pytest
from nova import conf

from novadocker import exception, naming
from novadocker.cmd import receive
from novadocker.virt.docker import staging, transfer, trees
from novadocker.virt.docker.engine import Engine
from tests.engine import engines
from tests.engine.test_images import folder, store
from tests.engine.test_snapshots import Boot, Guest, base, boot, check, prepare

__all__ = ["base", "boot", "folder", "store"]

# what ssh is between two hosts
RELAY = """
import socket, sys, threading, os
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
def back():
    while data := link.recv(65536):
        os.write(1, data)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    link.sendall(data)
link.shutdown(socket.SHUT_WR)
"""


@pytest.fixture
def host(tmp_path: Path, engine_url: str, data_root: Path) -> Iterator[list[str]]:
    """A host that takes servers; the command that reaches it."""
    path = tmp_path / "socket"
    conf.CONF.set_override("api_url", engine_url, group="docker")
    served = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                with (
                    link,
                    link.makefile("rb", buffering=0) as source,
                    link.makefile("w") as answers,
                ):
                    served.append(receive.serve(source, answers))  # type: ignore[arg-type]

        thread = threading.Thread(target=serve)
        thread.start()
        yield [sys.executable, "-c", RELAY, str(path)]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    conf.CONF.clear_override("api_url", group="docker")


@pytest.fixture
def data_root(engine: Engine) -> Iterator[Path]:
    root = Path(engine.info().data_root)
    yield root
    assert not (root / staging.FOLDER).exists()


def opened(engine: Engine, guest: Guest, host: list[str], server: str) -> Any:
    found = engine.inspect_container(guest.id)
    return transfer.session(
        *(host, "there", server, found.image_id, engine.save_image),
        *(engine.inspect_storage(guest.id), ""),
    )


def arrive(
    client: docker.APIClient, engine: Engine, image: str, move: transfer.Move, server: str
) -> str:
    """Make a container of what came; return its id."""
    made: str = client.create_container(
        image, host_config=client.create_host_config(network_mode="none")
    )["Id"]
    transfer.adopt(engine.info().data_root, server, move, engine.inspect_storage(made))
    client.start(made)
    return made


def test_all_that_a_server_has(
    engine: Engine,
    docker_client: docker.APIClient,
    base: str,
    boot: Boot,
    host: list[str],
    data_root: Path,
    instance_uuid: str,
) -> None:
    guest = boot(base)
    prepare(guest)
    guest.run(
        "mkdir -p /tree/a/b && echo moved >/tree/a/b/file && echo before >/changed &&"
        "echo soon >/soon-gone && echo x >/file-then-folder && mkdir /folder-then-link"
    )
    os.setxattr(guest.root / "folder", "user.old", b"1")
    with opened(engine, guest, host, instance_uuid) as (session, move):
        session.send(live=True)
        # no time of change tells of a file in a folder that got another name
        guest.run(
            "mv /tree /other && echo after >/changed && rm /soon-gone && ln /changed /linked &&"
            "rm /file-then-folder && mkdir /file-then-folder && echo y >/file-then-folder/z &&"
            "rmdir /folder-then-link && ln -s changed /folder-then-link && chmod 640 /changed &&"
            "rm /data/kept && echo kept >/data/kept && ln -f /data/kept /data/same"
        )
        os.removexattr(guest.root / "folder", "user.old")
        for name in ("data/kept",):
            attributes = {"system.posix_acl_access", "security.capability", "trusted.test"}
            for key in attributes:
                os.setxattr(guest.root / name, key, os.getxattr(guest.root / "one", key))
        docker_client.kill(guest.id)
        docker_client.wait(guest.id)
        session.send(live=False)
        session.commit()
    made = arrive(docker_client, engine, base, move, instance_uuid)
    try:
        found = Guest.__new__(Guest)
        found.client, found.id = docker_client, made
        pid = docker_client.inspect_container(made)["State"]["Pid"]
        found.root = Path(f"/proc/{pid}/root")
        check(found)
        assert found.run("cat /other/a/b/file /changed /linked /file-then-folder/z") == (
            "moved\nafter\nafter\ny\n"
        )
        assert found.run("readlink /folder-then-link; stat -c %a /changed") == "changed\n640\n"
        assert found.run("ls -d /tree /soon-gone 2>/dev/null | wc -l") == "0\n"
        assert os.listxattr(found.root / "folder") == []
        # as sparse as it was
        assert os.lstat(found.root / "sparse").st_blocks < 100
    finally:
        docker_client.remove_container(made, force=True, v=True)


def test_a_second_time_only_what_changed(
    engine: Engine, base: str, boot: Boot, host: list[str], data_root: Path, instance_uuid: str
) -> None:
    guest = boot(base)
    guest.run("dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sleep 3; echo x >/small")
    storage = engine.inspect_storage(guest.id)
    reader = trees.Reader([storage.upper])
    with open(os.devnull, "wb") as nowhere:
        assert reader.write(nowhere, live=True) > 20 << 20
        guest.run("echo y >/small")
        assert reader.write(nowhere, live=True) < 1000


@pytest.mark.parametrize("when", ["live", "final", "commit"])
def test_nothing_is_kept_of_a_move_that_is_cut_off(
    engine: Engine,
    base: str,
    boot: Boot,
    host: list[str],
    data_root: Path,
    instance_uuid: str,
    when: str,
) -> None:
    guest = boot(base)
    with ExitStack() as stack:
        session, _ = stack.enter_context(opened(engine, guest, host, instance_uuid))
        stack.enter_context(pytest.raises(exception.ResizeRefused, match="could not be sent"))
        if when != "live":
            session.send(live=True)
        if when == "commit":
            session.send(live=False)
        session._process.kill()
        session._process.wait()
        if when == "commit":
            session.commit()
        session.send(live=when == "live")


def test_a_host_that_has_the_server_refuses(
    engine: Engine,
    docker_client: docker.APIClient,
    base: str,
    boot: Boot,
    host: list[str],
    data_root: Path,
    instance_uuid: str,
) -> None:
    guest = boot(base)
    docker_client.rename(guest.id, naming.container_name(instance_uuid))
    with (
        pytest.raises(exception.ResizeRefused, match="has a container of the server already"),
        opened(engine, guest, host, instance_uuid),
    ):
        pass


def test_an_image_that_the_host_lacks_is_sent(
    engine: Engine,
    base: str,
    boot: Boot,
    host: list[str],
    state_folder: Path,
    instance_uuid: str,
) -> None:
    guest = boot(base)
    with engines.own_engine(state_folder / "other", "overlay2") as other:
        conf.CONF.set_override("api_url", other.url, group="docker")
        there = Engine(other.url, timeout=30, load_timeout=60)
        for _ in range(2):
            with opened(engine, guest, host, instance_uuid) as (session, _):
                session.send(live=True)
                assert there.inspect_image(base).id == base
            # it has a name of ours, so that it can grow old
            (name,) = there.list_images("novadocker/*")
            assert name == f"novadocker/moved:{base.removeprefix('sha256:')[:12]}"


def test_a_host_that_is_not_reached(
    engine: Engine, base: str, boot: Boot, data_root: Path, instance_uuid: str
) -> None:
    guest = boot(base)
    for command in (["/nowhere"], ["sh", "-c", "echo no route to host >&2; exit 255"]):
        with (
            pytest.raises(exception.ResizeRefused, match=r"can't be run|no route to host"),
            opened(engine, guest, command, instance_uuid),
        ):
            pass


@pytest.mark.parametrize(
    "line",
    [
        '{"path": "0/../../etc/evil", "mode": 33188, "uid": 0, "gid": 0, "mtime": 0}',
        '{"path": "/etc/evil", "mode": 33188, "uid": 0, "gid": 0, "mtime": 0}',
        '{"path": "0/link/evil", "mode": 33188, "uid": 0, "gid": 0, "mtime": 0}',
        '{"path": "0/a", "mode": 33188, "uid": 0, "gid": 0, "mtime": 0, "link": "../../etc/hosts"}',
        '{"gone": ["0/../../etc"]}',
        '{"path": 5}',
        "[]",
        "{",
    ],
)
def test_a_stream_reaches_nothing_outside(tmp_path: Path, line: str) -> None:
    place = tmp_path / "staged"
    (place / "0").mkdir(parents=True)
    (place / "0/link").symlink_to(tmp_path)
    stream = tmp_path / "stream"
    stream.write_text(line + '\n{"end": 1}\n')
    top = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with stream.open("rb") as content, pytest.raises((trees.StreamError, OSError)):
            trees.Writer(top).apply(content)
    finally:
        os.close(top)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["staged", "stream"]
    assert Path("/etc/hosts").exists()


class Vanishing:
    """A stream that removes a file when another one has been written."""

    def __init__(self, path: Path, after: bytes) -> None:
        self.path, self.after, self.written = path, after, b""

    def write(self, data: bytes) -> int:
        self.written += data
        if self.after in data:
            self.path.unlink(missing_ok=True)
        return len(data)

    def flush(self) -> None:
        pass


def test_a_file_that_vanishes_while_it_is_read(tmp_path: Path) -> None:
    """Its other name is the file then."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (target / "0").mkdir(parents=True)
    (source / "a").write_text("first")
    (source / "b").write_text("content")
    os.link(source / "b", source / "c")
    reader = trees.Reader([str(source)])
    stream = Vanishing(source / "b", b'"path": "0/a"')
    reader.write(stream, live=True)  # type: ignore[arg-type]
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        trees.Writer(top).apply(io.BytesIO(stream.written))
    finally:
        os.close(top)
    assert sorted(path.name for path in (target / "0").iterdir()) == ["a", "c"]
    assert (target / "0/c").read_text() == "content"
