# SPDX-License-Identifier: Apache-2.0
"""Every parser of data from a tenant, an image, a registry or a peer, with random input.

The parsers of the runtime shim, of moves, of the engine's answers, of the exporter and of HTTP have
such tests with the same bounds beside their other tests. One more parser is one more entry here.
"""

import gzip
import json
import lzma
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker import exception, extra_specs
from novadocker.actions import hook
from novadocker.exporter import ovn
from novadocker.linux import cgroup, ovsdb, signals, user_files
from novadocker.privsep.guest import lxcfs
from novadocker.privsep.storage import layer_archive
from novadocker.recovery import dataroot
from novadocker.runtime import accounts
from novadocker.virt.docker.guest import console, environment
from novadocker.virt.docker.images import (
    archive,
    registry,
    squash,
    streaming,
    tar_check,
    tar_reader,
    writer,
)
from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import ArchiveError, Region
from novadocker.virt.docker.migration import registry_client
from novadocker.virt.docker.operations import spec
from tests import archives, fuzz

Parse = Callable[[bytes, Path], object]

LAYER = archives.tar_of(
    [
        archives.entry("etc", type=tarfile.DIRTYPE),
        archives.entry("etc/one", b"1" * 600),
        archives.entry("etc/two", type=tarfile.LNKTYPE, linkname="etc/one"),
        archives.entry("etc/.wh.three"),
        archives.entry("var/.wh..wh..opq"),
        archives.entry("long" * 40, b"", mtime=1.5, pax_headers={"SCHILY.xattr.user.a": "b"}),
    ]
)
HOST = Platform("amd64")
CONFIG = archives.config([LAYER])
DOCKER = archives.tar(archives.docker_files(CONFIG, [LAYER], tags=["web:1"]))
OCI = archives.tar(archives.oci_files(CONFIG, [LAYER], compression="gzip"))
CONTAINER = "0123456789abcdef" * 4
DIGEST = f"sha256:{'1' * 64}"
FLOW = "01234567-89ab-cdef-0123-456789abcdef"
MOUNTS = (
    b"36 35 0:9 / / rw - overlay overlay rw,lowerdir=/l\n"
    b"37 36 0:8 /proc/stat /proc/stat ro shared:1 - fuse.lxcfs lxcfs rw\n"
)
TAR_WORDS = (
    *(b"x", b"L", b"S", b"5", b"9" * 11, b"\x80\xff", b"ustar\x0000", b"/", b"../", b".wh."),
    *(b"30 mtime=99999999999999999999\n", b"12 size=100\n", b"12 path=a/b\n", b"\0" * 512),
)
JSON_WORDS = (
    *(b"[", b'{"', b'{"a":', b'":', b"]", b"}", b",", b"null", b"true", b"-1", b"1e999", b'""'),
    *(b"9" * 400, b'"\\ud800"', b"NaN", DIGEST.encode()),
)


@contextmanager
def region(content: bytes) -> Iterator[Region]:
    descriptor = os.memfd_create("content")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield Region(descriptor, 0, len(content))
    finally:
        os.close(descriptor)


def read_image(content: bytes, folder: Path) -> None:
    with region(content) as found, archive.open_image(found, HOST, folder, 8 << 20) as image:
        for _ in writer.docker_archive(image):
            pass


def read_root(content: bytes, folder: Path) -> None:
    with region(content) as found, archive.open_root(found, HOST, folder, 8 << 20) as image:
        for _ in writer.docker_archive(image):
            pass


def forward_layers(content: bytes, folder: Path) -> None:
    def fetch(file: streaming.Arrival) -> None:
        file.write(content)

    def unpack(chunks: Iterator[bytes]) -> str:
        for _ in chunks:
            pass
        return ""

    with streaming.arriving(folder, 0, fetch) as arrival:
        for _ in arrival.layers(unpack):
            pass


def merge(content: bytes, _folder: Path) -> None:
    output = os.memfd_create("output")
    try:
        with region(content) as found, region(LAYER) as other:
            for layers in ([found, other], [other, found]):
                os.truncate(output, 0)
                squash.merge(layers, output)
    finally:
        os.close(output)


def add_snapshot(content: bytes, _folder: Path) -> None:
    found = len(archive.layer_digests(content))
    with region(LAYER) as stored:
        layer = Layer(archives.sha256(LAYER), stored)
        output = os.memfd_create("output")
        try:
            squash.on_top(ArchivedImage(content, (layer,) * found), layer, 1, lambda: output)
        finally:
            os.close(output)


def read_cgroups(content: bytes, folder: Path) -> None:
    (folder / "proc/7").mkdir(parents=True, exist_ok=True)
    (folder / "proc/7/cgroup").write_bytes(content)
    cgroup.container_of_process(7, folder)
    cgroup.groups(7, CONTAINER, folder)


def ask_database(content: bytes, folder: Path) -> None:
    """Let Open vSwitch's database answer with the content, whatever is asked."""
    path = folder / "db"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(content)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    # The client has closed the connection.
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            ovsdb.has_port(f"unix:{path}", "br-int", "tap1")
        finally:
            thread.join()


def read_limits_of_ports(content: bytes, folder: Path) -> None:
    """Read the content as each answer that the limits of OVN come from."""
    text = content.decode(errors="replace")
    # ``ovsdb`` refuses JSON that is too deep.
    with suppress(KeyError, IndexError, TypeError, ValueError, RecursionError):
        ovn.remotes_of(json.loads(content))
    (folder / "ovn-controller.pid").write_bytes(content)
    with suppress(ValueError):
        ovn.control(folder)
    rates = {flow: int(rate) for flow, rate in ovn._METER.findall(text)}
    ovn._limits({FLOW: 1, **rates}, dict.fromkeys([FLOW, *rates], text), {"port": "tap1"})


def read_status(content: bytes, folder: Path) -> None:
    """Read the file of a process that gave itself the content as its name.

    The kernel escapes line feeds and backslashes (proc_task_name in fs/proc/array.c).
    """
    name = content.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").translate(None, b"\0")
    (folder / "proc/7/fd").mkdir(parents=True, exist_ok=True)
    (folder / "proc/self/ns").mkdir(parents=True, exist_ok=True)
    (folder / "proc/self/ns/user").touch()
    (folder / "proc/7/ns").mkdir(exist_ok=True)
    (folder / "proc/7/ns/user").unlink(missing_ok=True)
    (folder / "proc/7/ns/user").hardlink_to(folder / "proc/self/ns/user")
    (folder / "proc/7/fd/3").unlink(missing_ok=True)
    (folder / "proc/7/fd/3").symlink_to("anon_inode:inotify")
    (folder / "proc/7/status").write_bytes(
        b"Name:\t%b\nUid:\t7\t5\t7\t7\nSigBlk:\t0000000000000000\nSigCgt:\t0000000000004000\n"
        % name
    )
    assert user_files.count(str(folder / "proc")).inotify == {5: 1}
    assert signals.handles(7, 15, folder)
    assert not signals.handles(7, 1, folder)


def read_mounts(content: bytes, _folder: Path) -> None:
    """Read the mounts of a server that mounted something at a path of the content.

    The kernel escapes spaces, tabs, line feeds and backslashes (show_mountinfo). A path has at most
    4,096 bytes.
    """
    path = b"/" + content.translate(None, b"\0")[:4095]
    for byte in b"\\ \t\n":
        path = path.replace(bytes([byte]), b"\\%03o" % byte)
    lines = (
        b"36 35 0:9 %b %b rw - tmpfs %b rw" % (path, path, path),
        b"37 35 0:8 /proc/stat /proc/stat ro shared:1 - fuse.lxcfs lxcfs rw",
        b"38 35 0:7 /x%b /x%b ro - fuse.lxcfs %b rw" % (path, path, path),
    )
    found = list(lxcfs.parse_mounts(b"\n".join(lines) + b"\n"))
    assert [(mount.device, mount.root == mount.point) for mount in found] == [
        ("0:8", True),
        ("0:7", True),
    ]


def read_any_mounts(content: bytes, _folder: Path) -> None:
    for _ in lxcfs.parse_mounts(content):
        pass


def find_image(content: bytes, _folder: Path) -> None:
    found = registry_client.Repository("registry.example.com/moves", "", 1.0)
    client: Any = SimpleNamespace(
        get_manifest_and_response=lambda _tag: (
            content.decode(errors="replace"),
            SimpleNamespace(content=content),
        ),
        pull_blob=lambda _digest, chunk_size: iter([content]),
    )
    found._client = client
    found.find_image("copy")


def read_refusal(content: bytes, _folder: Path) -> None:
    response: Any = SimpleNamespace(
        status_code=500, reason="broken", json=lambda: json.loads(content)
    )
    registry_client._status(response)


def read_accounts(content: bytes, _folder: Path) -> None:
    fields = accounts.find_entry(content, "root")
    accounts.shadowed(content, "root")
    accounts.set_password(content, "root", "$6$a", 1)
    accounts.read_identity(fields or [])


def filter_sizes(content: bytes, _folder: Path) -> None:
    reports = console.SizeReports()
    for begin in range(0, len(content), 4096):
        reports.feed(content[begin : begin + 4096])
        assert len(reports._held) < 32


def read_image_config(content: bytes, folder: Path) -> None:
    (folder / "file").write_bytes(content)
    dataroot.parse(CONTAINER, dataroot.read_json(folder / "file"))


def read_command(content: bytes, _folder: Path) -> None:
    text = content.decode("utf-8", "surrogateescape")[: 1 << 13]
    properties = SimpleNamespace(get=lambda _name: text)
    meta: Any = SimpleNamespace(id="an id", properties=properties)
    spec._command_line(meta)


def read_extra_specs(content: bytes, _folder: Path) -> None:
    text = content.decode(errors="replace")
    for extra_spec in extra_specs.ALL.values():
        with suppress(ValueError):
            extra_spec.parse(text)


def read_environment(content: bytes, _folder: Path) -> None:
    text = content.decode(errors="replace")
    instance: Any = SimpleNamespace(
        system_metadata={"image_docker_env_A": text}, metadata={f"docker_env_{text}": text}
    )
    found = environment.variables(instance, from_metadata=True)
    assert all(len(value) <= 1 << 16 for value in found.values())


@dataclass(frozen=True)
class Parser:
    """A parser, the faults by which it refuses, and what its input is made of."""

    parse: Parse
    refusals: tuple[type[Exception], ...] = ()
    seeds: Sequence[bytes] = ()
    words: Sequence[bytes] = ()


PARSERS = {
    "image": Parser(
        read_image,
        (ArchiveError,),
        (DOCKER, OCI, gzip.compress(DOCKER), lzma.compress(DOCKER)),
        TAR_WORDS + JSON_WORDS,
    ),
    "root": Parser(read_root, (ArchiveError,), (LAYER, gzip.compress(LAYER)), TAR_WORDS),
    "arriving": Parser(forward_layers, (ArchiveError,), (DOCKER, OCI), TAR_WORDS + JSON_WORDS),
    "layer": Parser(
        lambda content, _folder: tar_check.Check().feed(content),
        (ArchiveError,),
        (LAYER,),
        TAR_WORDS,
    ),
    "merged": Parser(merge, (ArchiveError,), (LAYER,), TAR_WORDS),
    "image_config": Parser(add_snapshot, (ArchiveError,), (CONFIG,), JSON_WORDS),
    "json": Parser(
        lambda content, _folder: tar_reader.parse(content, "manifest"),
        (ArchiveError,),
        (CONFIG,),
        JSON_WORDS,
    ),
    "layer_record": Parser(
        lambda content, _folder: layer_archive._parse(content),
        (OSError,),
        (b'{"type":1,"name":"etc/one","size":4}', b'{"type":2,"payload":"AAAA"}'),
        (b'"name_raw":"/w=="', b'"size":-1', b'"type":', *JSON_WORDS),
    ),
    "cgroups": Parser(
        read_cgroups,
        (OSError,),
        (f"0::/docker/{CONTAINER}\n4:memory:/system.slice/docker-{CONTAINER}.scope\n".encode(),),
        (b":", b"/", b"memory", CONTAINER.encode(), b"\f", b"\x85", b"../"),
    ),
    "switch": Parser(
        ask_database,
        (OSError,),
        (
            b'{"id":0,"error":null,"result":[{"rows":[{"ports":["set",[["uuid","a"]]]}]},'
            b'{"rows":[{"_uuid":["uuid","a"]}]}]}',
            b'{"id":1,"method":"echo","params":[]}',
        ),
        (b'"rows":', b'"ports":', b'"set"', *JSON_WORDS),
    ),
    "limits_of_ports": Parser(
        read_limits_of_ports,
        (),
        (
            b'[{"external_ids":["map",[["ovn-remote","tcp:192.0.2.1:6642"]]]}]',
            f"__string: uuid {FLOW} kbps stats bands=type=drop rate=1000".encode(),
            b'inport == "port"',
            b"42\n",
        ),
        (b"__string: uuid ", b" kbps", b"rate=", FLOW.encode(), b'outport == "', *JSON_WORDS),
    ),
    "status": Parser(
        read_status,
        (),
        (b"bash", b"x\nUid:\t0\t0\t0\t0\nSigCgt:\t0000000000000001"),
        (b"Uid:\t0", b"SigCgt:\t1", b"SigBlk:", b"\t", b"\f", b"\x85", b"\\"),
    ),
    "mounts": Parser(
        read_mounts,
        (),
        (b"srv/a", b"a - fuse.lxcfs lxcfs rw", MOUNTS),
        (b" - ", b"fuse.lxcfs ", b"\f", b"\x85", b"\\040"),
    ),
    "any_mounts": Parser(read_any_mounts, (ValueError,), (MOUNTS,), (b" - fuse.lxcfs ", b" ")),
    "registry_image": Parser(
        find_image,
        (exception.RegistryFailed,),
        (
            archives.dump({"config": {"digest": DIGEST}, "layers": [{"digest": DIGEST}]}),
            b'[["image","a"]]',
        ),
        JSON_WORDS,
    ),
    "registry_refusal": Parser(
        read_refusal,
        (),
        (
            b'{"errors":[{"message":"denied","detail":{"Enclosed":{"Err":28}}}]}',
            b'{"errors":[{"message":"denied","detail":"text"}]}',
        ),
        (b'{"Enclosed":', b'"Err":', *JSON_WORDS),
    ),
    "registry_challenge": Parser(
        lambda content, _folder: registry_client._token_server(content.decode("latin-1")),
        (registry_client.RefusedAnswer,),
        (b'Bearer realm="https://auth.example.com/token",service="a",scope="b"', b"Basic realm=a"),
        (b'"', b"=", b",", b"Bearer ", b"Basic ", b"realm=", b"http://", b"\\", b"@", b"["),
    ),
    "image_reference": Parser(
        lambda content, _folder: registry.parse(
            content.decode(errors="replace"), "an id", frozenset({"docker.io", "r.example.com"})
        ),
        (exception.InvalidImage,),
        (b"r.example.com/a/b:1", f"web@{DIGEST}".encode()),
        (b"/", b":", b"@", b".", b"-", b"a", b"__"),
    ),
    "command_line": Parser(
        read_command, (exception.InvalidImage,), (b"/bin/sh -c 'a b'",), (b"'", b'"', b"\\", b" ")
    ),
    "extra_specs": Parser(
        read_extra_specs,
        (),
        (b"65536", b"true", b"nofile=1024:2048", b"NET_ADMIN,SYS_TIME", b"1024 65000"),
        (b",", b":", b"=", b" ", b"-1", b"9" * 400, b"0x", b"1_0", "\u0661".encode()),
    ),
    "environment": Parser(read_environment, (), (b"PATH=/bin", b"A"), (b"=", b"_", b"PATH")),
    "accounts": Parser(
        read_accounts,
        (ValueError,),
        (b"root:x:0:0:root:/root:/bin/sh\nweb:x:08:1::/:\n", b"root:$6$a:1:0:99999:7:::\n"),
        (b":", b"root", b"x", b"4294967295", b"-1"),
    ),
    "console": Parser(
        filter_sizes, (), (b"ls\r\x1b[8;24;80t",), (b"\x1b[8;", b"\x1b", b";", b"0" * 4, b"t")
    ),
    "container_record": Parser(
        read_image_config,
        (dataroot.RecoveryError, KeyError, TypeError, AttributeError, ValueError),
        (
            archives.dump(
                {
                    "Config": {"Labels": {"org.opencontainers.image.title": "a"}},
                    "Name": "/nova-1",
                    "Driver": "overlay2",
                    "Image": DIGEST,
                    "MountPoints": {"/v": {"Type": "volume", "Name": "a", "Destination": "/v"}},
                }
            ),
        ),
        JSON_WORDS,
    ),
    "alert": Parser(
        lambda content, _folder: hook._parse(content),
        (ValueError,),
        (b'{"alerts":[{"status":"firing","labels":{"alertname":"a","uuid":"b"}}]}',),
        JSON_WORDS,
    ),
}


@pytest.mark.parametrize("name", PARSERS)
@fuzz.examples(60)
@given(data=st.data())
def test_anything_is_parsed_or_refused(name: str, tmp_path: Path, data: Any) -> None:
    parser = PARSERS[name]
    content = data.draw(fuzz.mutations(parser.seeds, parser.words))
    fuzz.withstand(lambda found: parser.parse(found, tmp_path), content, parser.refusals)


@pytest.mark.parametrize(
    "file",
    sorted(path for path in fuzz.CORPUS.rglob("*") if path.is_file()),
    ids=lambda path: str(path.relative_to(fuzz.CORPUS)),
)
def test_what_a_parser_once_did_not_withstand(file: Path, tmp_path: Path) -> None:
    parser = PARSERS[file.parent.name]
    fuzz.withstand(lambda found: parser.parse(found, tmp_path), file.read_bytes(), parser.refusals)


DEEP = [b"[" * 200_000, b'{"a":' * 200_000]


@pytest.mark.parametrize("content", DEEP, ids=["lists", "objects"])
@pytest.mark.parametrize("name", [name for name in PARSERS if b"NaN" in PARSERS[name].words])
def test_depth(name: str, content: bytes, tmp_path: Path) -> None:
    parser = PARSERS[name]
    fuzz.withstand(lambda found: parser.parse(found, tmp_path), content, parser.refusals)
