# SPDX-License-Identifier: Apache-2.0
"""Transfer of a container's data into another container: all of it, and nothing else."""

import io
import itertools
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from nova import conf

from novadocker import exception, naming
from novadocker.linux import pipes
from novadocker.privsep.storage import staging, tree_stream
from novadocker.privsep.storage.allowance import Allowance
from novadocker.virt.docker.engine.client import Engine
from tests.engine import engines, moving
from tests.engine.images.test_snapshot import Guest, base, boot, check, prepare
from tests.engine.images.test_store import folder, store
from tests.engine.moving import Arrive, Opened, arrive, data_root, guest, host, opened

__all__ = ["arrive", "base", "boot", "data_root", "folder", "guest", "host", "opened", "store"]


def test_all_that_a_server_has(
    docker_client: docker.APIClient, guest: Guest, opened: Opened, arrive: Arrive
) -> None:
    prepare(guest)
    guest.run(
        "mkdir -p /tree/a/b && echo moved >/tree/a/b/file && echo before >/changed &&"
        "echo soon >/soon-gone && echo x >/file-then-folder && mkdir /folder-then-link"
    )
    os.setxattr(guest.root / "folder", "user.old", b"1")
    with opened() as (session, move):
        session.send(live=True)
        # A file in a renamed directory keeps its times, so they do not show the change.
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
    found = arrive(move)
    check(found)
    assert found.run("cat /other/a/b/file /changed /linked /file-then-folder/z") == (
        "moved\nafter\nafter\ny\n"
    )
    assert found.run("readlink /folder-then-link; stat -c %a /changed") == "changed\n640\n"
    assert found.run("ls -d /tree /soon-gone 2>/dev/null | wc -l") == "0\n"
    assert os.listxattr(found.root / "folder") == []
    # The file is as sparse as the original.
    assert os.lstat(found.root / "sparse").st_blocks < 100


def test_a_directory_that_becomes_a_link_to_the_host(
    docker_client: docker.APIClient,
    guest: Guest,
    opened: Opened,
    arrive: Arrive,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the file at the tenant's path nor its hard link is a file of the host."""
    outside = Path(tempfile.mkdtemp(prefix="novadocker-outside-"))
    (outside / "shadow").write_text("the host's\n")
    guest.run(
        "mkdir /x && echo mine >/x/shadow && ln /x/shadow /z && sleep 3 &&"
        "dd if=/dev/zero of=/x/a_big bs=1M count=20"
    )
    copy = tree_stream._copy
    attacks = iter([f"mv /x /y && ln -s {outside} /x"])

    def attacked(source: Any, stream: Any, begin: int, end: int, live: bool) -> None:
        # While the large file is copied, which comes before the other one.
        if end - begin > 1 << 20:
            for attack in attacks:
                guest.run(attack)
        copy(source, stream, begin, end, live)

    try:
        with opened() as (session, move):
            monkeypatch.setattr(tree_stream, "_copy", attacked)
            session.send(live=True)
            assert next(attacks, None) is None
            guest.run("rm /x && mv /y /x")
            session.send(live=True)
            docker_client.kill(guest.id)
            docker_client.wait(guest.id)
            session.send(live=False)
            session.commit()
        found = arrive(move)
        assert found.run("cat /z /x/shadow") == "mine\nmine\n"
        assert os.lstat(found.root / "z").st_ino == os.lstat(found.root / "x/shadow").st_ino
    finally:
        shutil.rmtree(outside)


def test_a_server_that_swaps_a_directory_all_the_time_moves(
    docker_client: docker.APIClient, guest: Guest, opened: Opened, arrive: Arrive
) -> None:
    guest.run("mkdir /x /other && for i in $(seq 500); do echo $i >/x/$i; done")
    guest.client.exec_start(
        guest.client.exec_create(
            guest.id,
            ["sh", "-c", "while :; do mv /x /y; ln -s /other /x; rm /x; mv /y /x; done"],
        )["Id"],
        detach=True,
    )
    with opened() as (session, move):
        for _ in range(3):
            session.send(live=True)
        docker_client.kill(guest.id)
        docker_client.wait(guest.id)
        session.send(live=False)
        session.commit()
    found = arrive(move)
    assert found.run("cat /[xy]/* | sort -n | uniq | wc -l") == "500\n"


def test_a_second_time_only_what_changed(engine: Engine, guest: Guest) -> None:
    guest.run("dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sleep 3; echo x >/small")
    storage = engine.inspect_storage(guest.id)
    reader = tree_stream.Reader([storage.upper])
    with open(os.devnull, "wb") as nowhere:
        assert reader.write(nowhere, live=True) > 20 << 20
        guest.run("echo y >/small")
        assert reader.write(nowhere, live=True) < 1000


@pytest.mark.parametrize("when", ["live", "final", "commit"])
def test_nothing_is_kept_of_a_move_that_is_cut_off(opened: Opened, when: str) -> None:
    with ExitStack() as stack:
        session, _ = stack.enter_context(opened())
        stack.enter_context(pytest.raises(exception.ResizeRefused, match="could not be sent"))
        if when != "live":
            session.send(live=True)
        if when == "commit":
            session.send(live=False)
        session._target._process.kill()
        session._target._process.wait()
        if when == "commit":
            session.commit()
        session.send(live=when == "live")


def test_a_host_that_has_the_server_refuses(
    docker_client: docker.APIClient, guest: Guest, opened: Opened, instance_uuid: str
) -> None:
    docker_client.rename(guest.id, naming.container_name(instance_uuid))
    with (
        pytest.raises(exception.ResizeRefused, match="has a container of the server already"),
        opened(),
    ):
        pass


def test_an_image_that_the_host_lacks_is_sent(
    base: str, opened: Opened, state_folder: Path
) -> None:
    with engines.own_engine(state_folder / "other", "overlay2") as other:
        conf.CONF.set_override("api_url", other.url, group="docker")
        there = Engine(other.url, timeout=30, load_timeout=60)
        for _ in range(2):
            with opened() as (session, _):
                session.send(live=True)
                assert there.inspect_image(base).id == base
            # The image has one of the driver's names, so the image cache can age it.
            (name,) = there.list_images("novadocker/*")
            assert name == f"novadocker/moved:{base.removeprefix('sha256:')[:12]}"


def test_a_host_whose_disk_is_full(
    opened: Opened, guest: Guest, state_folder: Path, instance_uuid: str
) -> None:
    guest.run("dd if=/dev/urandom of=/big bs=1M count=16")
    with engines.own_engine(state_folder / "small", "overlay2", "ext4") as other:
        conf.CONF.set_override("api_url", other.url, group="docker")
        with opened() as (session, _):
            with (other.data_root / "filler").open("wb") as filler, suppress(OSError):
                for begin in itertools.count(0, 1 << 20):
                    os.posix_fallocate(filler.fileno(), begin, 1 << 20)
            with pytest.raises(exception.ResizeRefused, match="No space left on device"):
                session.send(live=True)
        assert not (other.data_root / staging.FOLDER).exists()
    assert guest.run("echo goes on") == "goes on\n"


def test_more_than_the_root_disk_of_the_flavor(
    opened: Opened, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``data_root`` checks that nothing stays staged."""
    monkeypatch.setattr(moving, "MOST", 8 << 20)
    guest.run("dd if=/dev/urandom of=/big bs=1M count=6")
    with opened() as (session, _):
        session.send(live=True)
        # The second stream alone has less than the flavor's disk.
        guest.run("dd if=/dev/urandom of=/more bs=1M count=4")
        with pytest.raises(exception.ResizeRefused, match="more data than the 8 MiB"):
            session.send(live=True)
    assert guest.run("echo goes on") == "goes on\n"


def test_ten_thousand_files_and_a_large_one_of_nothing(
    guest: Guest, opened: Opened, arrive: Arrive
) -> None:
    guest.run(
        "mkdir /many && cd /many && i=0; while [ $i -lt 10000 ]; do echo $i >$i; i=$((i+1)); done;"
        "truncate -s 5G /sparse && printf end | dd of=/sparse bs=1M seek=3000 conv=notrunc"
    )
    look = "cd /many && ls | wc -l && cat $(ls | sort -n) | md5sum && stat -c %s /sparse"
    before = guest.run(look)
    assert before.startswith("10000\n")
    with opened() as (session, move):
        session.send(live=True)
        session.send(live=False)
        session.commit()
    found = arrive(move)
    assert found.run(look) == before
    assert os.lstat(found.root / "sparse").st_blocks < 100
    assert found.run("dd if=/sparse bs=1M skip=3000 count=1 2>/dev/null | head -c 3") == "end"


class _NoClock:
    """A replacement for ``time`` on the other host, whose clock may be arbitrary."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"time.{name} of the destination")


def test_clocks_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination ignores its clock, and the source's may jump during the transfer."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (target / "0").mkdir(parents=True)
    hour = 3600 * 10**9
    now = time.time_ns()
    for number, offset in enumerate((-hour, 0, hour)):
        (source / f"{number}").write_text("before")
        os.utime(source / f"{number}", ns=(now, now + offset))
    reader = tree_stream.Reader([str(source)])
    streams = []
    for jump in (0, -hour, hour):
        with monkeypatch.context() as clock:
            clock.setattr(tree_stream.time, "time_ns", lambda jump=jump: now + jump)
            streams.append(io.BytesIO())
            reader.write(streams[-1], live=False)
        for number in range(3):
            status = (source / f"{number}").stat()
            (source / f"{number}").write_text(f"after {jump}")
            # The reader compares ctime, which no program can set.
            os.utime(source / f"{number}", ns=(now, status.st_mtime_ns))
    streams.append(io.BytesIO())
    reader.write(streams[-1], live=False)
    monkeypatch.setattr(tree_stream, "time", _NoClock())
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for stream in streams:
            stream.seek(0)
            tree_stream.Writer(top, Allowance(0)).apply(stream)
    finally:
        os.close(top)
    for number in range(3):
        assert (target / f"0/{number}").read_text() == f"after {hour}"
        mtimes = [(place / f"{number}").stat().st_mtime_ns for place in (source, target / "0")]
        assert mtimes[0] == mtimes[1]


def test_a_host_that_is_not_reached(opened: Opened) -> None:
    for command in (["/nowhere"], ["sh", "-c", "echo no route to host >&2; exit 255"]):
        with (
            pytest.raises(exception.ResizeRefused, match=r"can't be run|no route to host"),
            opened(command),
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
        with stream.open("rb") as content, pytest.raises((pipes.StreamError, OSError)):
            tree_stream.Writer(top, Allowance(0)).apply(content)
    finally:
        os.close(top)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["staged", "stream"]
    assert Path("/etc/hosts").exists()


class Vanishing:
    """A stream that deletes a file when another file has been written."""

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
    """The stream then sends the file under its other name."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (target / "0").mkdir(parents=True)
    (source / "a").write_text("first")
    (source / "b").write_text("content")
    os.link(source / "b", source / "c")
    reader = tree_stream.Reader([str(source)])
    stream = Vanishing(source / "b", b'"path": "0/a"')
    reader.write(stream, live=True)  # type: ignore[arg-type]
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        tree_stream.Writer(top, Allowance(0)).apply(io.BytesIO(stream.written))
    finally:
        os.close(top)
    assert sorted(path.name for path in (target / "0").iterdir()) == ["a", "c"]
    assert (target / "0/c").read_text() == "content"
