# SPDX-License-Identifier: Apache-2.0
"""Every privileged function refuses malformed arguments before it has any effect.

Each parameter has a kind: a valid value, and strategies for invalid values. Python's audit events,
which every file, process, socket and thread causes, show a function's effects.
"""

import importlib
import os
import pkgutil
import re
import string
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import novadocker.cmd.privileged
import novadocker.privsep
import novadocker.virt.docker
from novadocker.cmd import privileged
from novadocker.privsep.guest import (
    cgroup,
    checkpoint,
    config_drive,
    containerd,
    files,
    lxcfs,
    root_volumes,
    runtime,
    user_files,
    user_namespaces,
    volumes,
)
from novadocker.privsep.network import namespace, ovs_support, tc
from novadocker.privsep.storage import (
    btrfs,
    containerd_layers,
    hidden,
    layer_archive,
    layer_diff,
    overlay_names,
    owners,
    sparse_files,
    staging,
    unpacking,
)
from tests import fuzz

EXAMPLES = fuzz.examples(40)

# -- kinds of parameters ----------------------------------------------------------------------

JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=4)), max_size=4),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)


@dataclass(frozen=True)
class Kind:
    """A kind of parameter: a valid value, and a strategy of invalid values."""

    right: Any
    wrong: st.SearchStrategy[Any]


def words(right: str, allowed: str, *wrong: str) -> Kind:
    """Return a kind of texts that match a pattern; some invalid texts resemble the valid one."""

    def is_wrong(value: object) -> bool:
        return not isinstance(value, str) or not re.fullmatch(allowed, value)

    alphabet = st.sampled_from([*"/.-:~;$%*'\n\0 é٣", "..", "/../", "\ud800", *string.hexdigits])
    edited = st.builds(
        lambda begin, end, inserted: right[:begin] + "".join(inserted) + right[end:],
        st.integers(0, len(right)),
        st.integers(0, len(right)),
        st.lists(alphabet, max_size=3),
    )
    return Kind(right, st.one_of(st.sampled_from(["", *wrong]), edited, JUNK).filter(is_wrong))


def numbers(right: int, least: int, most: int) -> Kind:
    def is_wrong(value: object) -> bool:
        return type(value) is not int or not least <= value <= most

    edges = st.sampled_from([least - 1, most + 1, -right, str(right), float(right)])
    return Kind(right, st.one_of(edges, JUNK).filter(is_wrong))


def flags() -> Kind:
    return Kind(True, JUNK.filter(lambda value: not isinstance(value, bool)))


def contents(right: bytes, most: int) -> Kind:
    junk = JUNK.filter(lambda value: not isinstance(value, bytes))
    return Kind(right, st.one_of(st.just(bytes(most + 1)), junk))


def optional(kind: Kind) -> Kind:
    return Kind(kind.right, kind.wrong.filter(lambda value: value is not None))


def sequences(kind: Kind, may_be_empty: bool = True) -> Kind:
    """Return a kind of sequences; invalid sequences include those with one invalid item."""

    def is_wrong(value: object) -> bool:
        return not isinstance(value, (list, tuple)) or not (value or may_be_empty)

    return Kind(
        [kind.right],
        st.one_of(JUNK.filter(is_wrong), kind.wrong.map(lambda item: [kind.right, item])),
    )


def records(**kinds: Kind) -> Kind:
    """Return a kind of mappings with fixed keys.

    Invalid mappings include those with an invalid value, a missing key or an additional key.
    """
    right = {name: kind.right for name, kind in kinds.items()}
    wrong_field = st.sampled_from(sorted(kinds)).flatmap(
        lambda name: kinds[name].wrong.map(lambda value: {**right, name: value})
    )
    missing = st.sampled_from(sorted(kinds)).map(
        lambda name: {key: value for key, value in right.items() if key != name}
    )
    return Kind(right, st.one_of(JUNK, wrong_field, missing, st.just({**right, "more": 1})))


def mappings(key: Kind, value: Kind) -> Kind:
    """Return a kind of mappings from one kind to another."""
    hashable = key.wrong.filter(lambda found: not isinstance(found, (list, dict)))
    return Kind(
        {key.right: value.right},
        st.one_of(
            JUNK.filter(lambda found: not isinstance(found, dict)),
            hashable.map(lambda found: {key.right: value.right, found: value.right}),
            value.wrong.map(lambda found: {key.right: found}),
        ),
    )


def pairs(first: Kind, second: Kind) -> Kind:
    def is_no_pair(value: object) -> bool:
        return not isinstance(value, list | tuple) or len(value) != 2

    return Kind(
        (first.right, second.right),
        st.one_of(
            JUNK.filter(is_no_pair),
            first.wrong.map(lambda value: (value, second.right)),
            second.wrong.map(lambda value: (first.right, value)),
        ),
    )


PATH_WORD = r"(?!\.{1,2}(/|$))[\w.@+-]+"

UUID = words(
    "7e570000-0000-4000-8000-00000000000a",
    "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "7E570000-0000-4000-8000-00000000000A",
    "../../../etc",
)
CONTAINER = words("ab" * 32, "[0-9a-f]{64}", "../" * 21 + "a", "AB" * 32, "ab" * 32 + "\n")
HOST_DEVICE = words("tap0e6e0b4b-7a", "(tap|nic)[0-9a-f][0-9a-f-]{0,11}", "eth0", "lo", "br-int")
GUEST_DEVICE = words("eth0", "eth[0-9]{1,3}", "lo", "eth0\n", "eth٣")
PROCESS = numbers(4711, 1, 1 << 22)
DAY = numbers(20_000, 0, 999_999)
SINCE = numbers(1_700_000_000, 0, (1 << 40) - 1)
FOLDER = words("/var/lib/docker", f"(/{PATH_WORD})+", "/", "relative", "/var/../etc", "/var//lib")
SOCKET = words(
    "/run/containerd/containerd.sock", f"(/{PATH_WORD})+", "/", "relative", "--help", "/run/../x"
)
OPEN_FILE = pairs(PROCESS, numbers(7, 0, (1 << 30) - 1))
TOKEN = words("0123456789abcdef" * 2, "[0-9a-f]{32}", "../" * 10 + "aa")
OVERLAY = words(
    f"/var/lib/docker/overlay2/{'a' * 64}/diff",
    rf"(/{PATH_WORD})+/(overlay2/([0-9a-z]{{25,64}}(-init)?/diff|l/[0-9A-Z]{{26}})|"
    r"io\.containerd\.snapshotter\.v1\.overlayfs/snapshots/[0-9]+/fs)",
    f"/var/lib/docker/overlay2/../overlay2/{'a' * 64}/diff",
    "/r/io.containerd.snapshotter.v1.overlayfs/snapshots/../fs",
    "/etc",
)
IMAGE_LAYER = words(
    f"/var/lib/docker/overlay2/{'a' * 64}/diff",
    rf"(/{PATH_WORD})+/overlay2/[0-9a-z]{{25,64}}/diff",
    f"/var/lib/docker/overlay2/../overlay2/{'a' * 64}/diff",
    f"/var/lib/docker/overlay2/{'a' * 64}/work",
)
LAYER = words(
    f"/var/lib/docker/overlay2/{'a' * 64}/work",
    rf"(/{PATH_WORD})+/overlay2/([0-9a-z]{{25,64}}(-init)?/(diff|work)|l/[0-9A-Z]{{26}})",
    f"/var/lib/docker/overlay2/../overlay2/{'a' * 64}/diff",
    "/etc",
)
VOLUME_PATTERN = rf"(/{PATH_WORD})+/volumes/[A-Za-z0-9][\w.-]+/_data"
VOLUME = words(
    f"/var/lib/docker/volumes/{'a' * 64}/_data", VOLUME_PATTERN, "/etc", "/x/volumes/../_data"
)
DRIVER = words("overlay2", "[a-z0-9][a-z0-9-]{0,31}", "/", "../overlay2", "overlay2\n")
SERVERS_FOLDER = words(
    f"/var/lib/docker/overlay2/{'a' * 64}/diff",
    rf"(/{PATH_WORD})+/overlay2/[0-9a-z]{{25,64}}/diff|{VOLUME_PATTERN}",
    "/etc",
    "/x/overlay2/../../etc",
    "/x/overlay2/short/diff",
    f"/x/../overlay2/{'a' * 64}/diff",
)
HOST = words("host1", r"(?!\.)[A-Za-z0-9._-]{1,255}", "..", "a/b", "a" * 256)
CRIU = words(
    "/opt/criu/criu", f"((/{PATH_WORD})+/criu)?", "criu", "/opt/../criu", "/opt/runc", "/criu\n"
)
TIME = words("2026-12-01T10:00:00.123456789Z", "[0-9TZ:.+-]{1,64}", "", "now", "../x")
USER = words("root", r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", "../x", "a b", "a:b")
HASH = words("$6$salt$hash", r"[./0-9A-Za-z$=,]{0,256}", "h:", "a b", "x" * 257)
IDS = sequences(Kind((0, 100_000, 65536), st.sampled_from([
    (0, 0, 1), (0, -1, 1), (0, 1, 0), (0, "1", 1), (0, 1), (True, 1, 1), (0, 1, 1 << 32),
    ((1 << 32) - 2, 1, 10), (0, 1, 1, 1), 5, "abc", None,
])), may_be_empty=False)  # fmt: skip
RATE_NUMBER = numbers(1 << 20, 0, 1 << 62)
RATE = records(average=numbers(1 << 20, 1, 1 << 62), peak=RATE_NUMBER, burst=RATE_NUMBER)
DISK_RATES = records(
    read_bytes=RATE_NUMBER, write_bytes=RATE_NUMBER, read_iops=RATE_NUMBER, write_iops=RATE_NUMBER
)
BRIDGE = records(
    name=words("brq0e6e0b4b-7a", "(brq|qbr)[0-9a-f][0-9a-f-]{0,11}", "br-int", "docker0"),
    interface=optional(words("eth1", r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,15}", "..", "a/b")),
    vlan=optional(numbers(100, 1, 4094)),
)
ADDRESSES = ["", "10.0.0.0.0/8", "10.0.0.5/33", "fe80::1%eth0/64", 5, b"\x0a\x00\x00\x05", None]
NETWORK = Kind("0.0.0.0/0", st.sampled_from([*ADDRESSES, "10.0.0.5/8"]))
NIC = records(
    port_id=UUID,
    host_device=HOST_DEVICE,
    guest_device=GUEST_DEVICE,
    mac=words("fa:16:3e:00:00:05", "[0-9a-f]{2}(:[0-9a-f]{2}){5}", "fa:16:3e:00:00:05\n"),
    mtu=optional(numbers(1450, 68, 65535)),
    addresses=sequences(Kind("10.0.0.5/24", st.sampled_from(ADDRESSES))),
    routes=sequences(
        records(
            destination=NETWORK,
            gateway=optional(Kind("10.0.0.1", st.sampled_from([*ADDRESSES, "10.0.0.1/32"]))),
        )
    ),
    software_checksums=flags(),
    bridge=optional(BRIDGE),
    unknown_destinations=sequences(NETWORK),
)
LOGIN = records(
    user=USER, keys=contents(b"ssh-ed25519 AAAA\n", 1 << 20), password_hash=HASH, password_day=DAY
)
ETC_FILES = mappings(
    words("hosts", "hostname|hosts|resolv.conf|machine-id", "passwd", "../hosts"),
    contents(b"127.0.0.1 localhost\n", 64 << 10),
)
DRIVE_NAME = r"(?!\.)[A-Za-z0-9._-]{1,64}"
DRIVE_FILES = mappings(
    words(
        "openstack/latest/meta_data.json",
        f"({DRIVE_NAME}/){{0,8}}{DRIVE_NAME}",
        *("../a", "/a", "a//b", "a/../b", "a/" * 9 + "a", "openstack/latest", "openstack"),
    ),
    contents(b"{}", 32 << 20),
)
OWNER = pairs(numbers(0, 0, (1 << 32) - 2), numbers(0, 0, (1 << 32) - 2))

VOLUME_IN_CONTAINER = {
    "instance_uuid": UUID,
    "volume_id": UUID,
    "container_id": CONTAINER,
    "pid": PROCESS,
}

PARAMETERS: Mapping[Any, Mapping[str, Kind]] = {
    namespace.create_owned_namespace: {"instance_uuid": UUID, "users": IDS, "groups": IDS},
    runtime.create_own_namespace: {
        "instance_uuid": UUID,
        "first_id": numbers(1879048192, 65536, (1 << 32) - 131072),
        "id_count": numbers(65536, 65536, (1 << 32) - 2),
    },
    runtime.leave_own_namespace: {"instance_uuid": UUID},
    namespace.wire_nics: {"instance_uuid": UUID, "nics": sequences(NIC), "keep_own": flags()},
    namespace.silence_nics: {"instance_uuid": UUID, "host_devices": sequences(HOST_DEVICE)},
    namespace.announce_nics: {"instance_uuid": UUID, "guest_devices": sequences(GUEST_DEVICE)},
    namespace.unwire_nic: {
        "instance_uuid": UUID,
        "host_device": HOST_DEVICE,
        "bridge": optional(BRIDGE),
    },
    runtime.delete_namespace: {"instance_uuid": UUID},
    runtime.bind_container: {
        "container_id": CONTAINER,
        "instance_uuid": UUID,
        "etc_files": optional(ETC_FILES),
        "login": optional(LOGIN),
    },
    runtime.release_container: {"container_id": CONTAINER},
    tc.set_port_rates: {
        "instance_uuid": UUID,
        "devices": sequences(pairs(HOST_DEVICE, GUEST_DEVICE)),
        "inbound": optional(RATE),
        "outbound": optional(RATE),
    },
    cgroup.set_disk_rates: {
        "container_id": CONTAINER,
        "pid": PROCESS,
        "disk": words("254:0", "[0-9]{1,4}:[0-9]{1,8}", "/dev/vda", "254:0 1\n7:0"),
        "disk_rates": DISK_RATES,
    },
    cgroup.reclaim_memory: {
        "pid": PROCESS,
        "container_id": CONTAINER,
        "size": numbers(1 << 20, 1, (1 << 60) - 1),
    },
    files.set_password: {
        "container_id": CONTAINER,
        "pid": PROCESS,
        "user": USER,
        "password_hash": HASH,
        "day": DAY,
    },
    files.has_program: {
        "container_id": CONTAINER,
        "pid": PROCESS,
        "path": words("/bin/sh", "|".join(files.PROGRAMS), "/bin/su", "/bin/../sh"),
    },
    files.read_etc_file: {
        "container_id": CONTAINER,
        "pid": PROCESS,
        "name": words("hosts", "hostname|hosts|resolv.conf|machine-id", "passwd", "../hosts"),
    },
    files.put_etc_file: {
        "container_id": CONTAINER,
        "pid": PROCESS,
        "name": words("hosts", "hostname|hosts|resolv.conf|machine-id", "passwd", "../hosts"),
        "content": contents(b"127.0.0.1 localhost\n", 64 << 10),
    },
    files.hang_up: {"container_id": CONTAINER, "pid": PROCESS},
    checkpoint.list_instances: {"host": HOST},
    checkpoint.why_impossible: {"program": CRIU},
    checkpoint.dump: {
        "host": HOST,
        "instance_uuid": UUID,
        "container_id": CONTAINER,
        "pid": PROCESS,
        "started_at": TIME,
        "program": CRIU,
    },
    checkpoint.end_processes: {"host": HOST, "instance_uuid": UUID, "container_id": CONTAINER},
    checkpoint.has_ended_processes: {
        "host": HOST,
        "instance_uuid": UUID,
        "container_id": CONTAINER,
        "started_at": TIME,
    },
    checkpoint.restore_next: {
        "host": HOST,
        "instance_uuid": UUID,
        "container_id": CONTAINER,
        "started_at": TIME,
        "program": CRIU,
    },
    checkpoint.discard: {"host": HOST, "instance_uuid": UUID},
    config_drive.write_drive: {
        "host": HOST,
        "instance_uuid": UUID,
        "files": DRIVE_FILES,
        "owner": OWNER,
        "image": contents(b"iso", 32 << 20),
    },
    config_drive.delete_drive: {"host": HOST, "instance_uuid": UUID},
    config_drive.list_drives: {"host": HOST},
    config_drive.attach_device: {"host": HOST, "instance_uuid": UUID},
    config_drive.detach_device: {"host": HOST, "instance_uuid": UUID},
    staging.send_folders: {
        "token": TOKEN,
        "folders": sequences(SERVERS_FOLDER),
        "target": OPEN_FILE,
        "live": flags(),
    },
    staging.receive_folders: {
        "data_root": FOLDER,
        "instance_uuid": UUID,
        "token": TOKEN,
        "source": OPEN_FILE,
        "most": numbers(1, 0, (1 << 63) - 1),
    },
    staging.adopt_folder: {
        "data_root": FOLDER,
        "instance_uuid": UUID,
        "token": TOKEN,
        "number": numbers(1, 0, 999),
        "target": SERVERS_FOLDER,
    },
    staging.discard_folders: {"data_root": FOLDER, "instance_uuid": UUID},
    layer_diff.write_layer: {
        "upper": OVERLAY,
        "lowers": sequences(OVERLAY),
        "volumes": mappings(words("/data", r"/[^\0]*", "data"), VOLUME),
        "target": OPEN_FILE,
        "limit": numbers(1 << 30, 0, (1 << 62) - 1),
    },
    hidden.hidden_servers: {"data_root": FOLDER, "driver": DRIVER},
    containerd_layers.list_folders: {"socket": SOCKET, "container": CONTAINER},
    unpacking.begins: {"data_root": FOLDER, "since": SINCE},
    unpacking.break_off: {"data_root": FOLDER, "since": SINCE, "until": SINCE},
    layer_archive.read_config: {"data_root": FOLDER, "image": CONTAINER},
    layer_archive.measure_layer: {"data_root": FOLDER, "chain": CONTAINER},
    layer_archive.write_layer: {"data_root": FOLDER, "chain": CONTAINER, "target": OPEN_FILE},
    containerd.end_shim: {"container_id": CONTAINER},
    overlay_names.make: {"instance_uuid": UUID, "folders": sequences(LAYER)},
    overlay_names._remove: {"instance_uuid": UUID},
    owners.find_above: {
        "folders": sequences(OVERLAY),
        "most": numbers(65535, 0, (1 << 32) - 2),
    },
    sparse_files.dig: {"folders": sequences(IMAGE_LAYER)},
    user_namespaces.why_impossible: {"data_root": FOLDER},
    btrfs.count_again: {"data_root": FOLDER},
    btrfs.resize_disk: {
        "data_root": FOLDER,
        "container_id": CONTAINER,
        "size": numbers(1 << 30, 1, 1 << 60),
    },
    btrfs.read_size_and_usage: {"data_root": FOLDER, "container_id": CONTAINER},
    volumes.hold: {
        "instance_uuid": UUID,
        "device": records(
            volume_id=UUID,
            path=words(
                "/dev/vdb",
                "/dev/(xv|[vsh])d[a-z]{1,3}",
                *("/dev/../x", "/dev/null", "/dev/vdb1", "/dev/vdb\n"),
            ),
            source=words(
                "/dev/disk/by-path/ip-192.0.2.1:3260-iscsi-iqn.2010-10.org:x-lun-1",
                r"/dev(/(?!\.{1,2}(/|$))[\w.@:+-]+)+",
                *("/dev", "/etc/passwd", "/dev/../etc/passwd", "/dev//x", "/dev/x\n"),
            ),
            writable=flags(),
            shared=Kind(False, flags().wrong),
            root=flags(),
            rates=DISK_RATES,
        ),
    },
    volumes.release: {"instance_uuid": UUID, "volume_id": UUID},
    volumes.forget: {"instance_uuid": UUID},
    volumes.give: VOLUME_IN_CONTAINER,
    volumes.take: VOLUME_IN_CONTAINER,
    root_volumes.examine: {
        "instance_uuid": UUID,
        "image_id": optional(UUID),
        "checksum": words("0" * 32, "([0-9a-f]{32})?", "A" * 32),
        "length": numbers(1 << 20, 0, (1 << 63) - 1),
    },
    root_volumes.fill: {"instance_uuid": UUID, "image_id": UUID, "pipe": OPEN_FILE},
    root_volumes.complete: {"instance_uuid": UUID, "image_id": UUID},
    root_volumes.prepare: {"instance_uuid": UUID},
    lxcfs.restore_view: {"container_id": CONTAINER, "pid": PROCESS, "source": FOLDER},
}

WITHOUT = {
    layer_diff.start,
    ovs_support.missing_means,
    privileged.read_capabilities,
    # This function changes only a table in memory.
    staging.forget_folders,
    user_files.count_user_files,
}
"""Privileged functions without parameters, or without effects."""

# -- effects of a function ----------------------------------------------------------------------


class Touched(BaseException):
    """The function reached a request to the kernel."""


_EFFECTS = re.compile(
    r"(open|os|shutil|tempfile|subprocess|socket|signal|fcntl|ctypes|glob)(\..*)?"
)
_watched = threading.local()


def _heed(event: str, _details: object) -> None:
    if getattr(_watched, "now", False) and _EFFECTS.fullmatch(event):
        raise Touched(event)


sys.addaudithook(_heed)


def _touch(*_arguments: object, **_options: object) -> None:
    raise Touched


@contextmanager
def watched() -> Iterator[None]:
    """Raise Touched in place of any effect during the body."""
    # No release of Python has audit events for these functions.
    with (
        mock.patch.multiple(os, stat=_touch, readlink=_touch, pidfd_open=_touch),
        mock.patch.object(threading.Thread, "start", _touch),
    ):
        _watched.now = True
        try:
            yield
        finally:
            _watched.now = False


def plain(entrypoint: Any) -> Callable[..., Any]:
    """Return a privileged function as the privileged process calls it."""
    function: Callable[..., Any] = entrypoint.args[0]
    return function


def entrypoints() -> set[Any]:
    """Return all privileged functions."""
    found = set()
    for package in (novadocker.privsep, novadocker.virt.docker, novadocker.cmd):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if getattr(value, "privsep_entrypoint", None) is not None:
                    found.add(value)
    return found


def test_none_is_left_out() -> None:
    assert entrypoints() == PARAMETERS.keys() | WITHOUT


def name_of(entrypoint: Any) -> str:
    return str(plain(entrypoint).__name__)


@pytest.mark.parametrize("entrypoint", PARAMETERS, ids=name_of)
def test_right_arguments_are_acted_upon(entrypoint: Any) -> None:
    right = {name: kind.right for name, kind in PARAMETERS[entrypoint].items()}
    with pytest.raises(Touched), watched():
        plain(entrypoint)(**right)


EVERY = [(entrypoint, name) for entrypoint, kinds in PARAMETERS.items() for name in kinds]


@pytest.mark.parametrize(
    ("entrypoint", "name"), EVERY, ids=[f"{name_of(function)}-{name}" for function, name in EVERY]
)
@EXAMPLES
@given(data=st.data())
def test_wrong_arguments_are_refused(entrypoint: Any, name: str, data: st.DataObject) -> None:
    arguments = {key: kind.right for key, kind in PARAMETERS[entrypoint].items()}
    arguments[name] = data.draw(PARAMETERS[entrypoint][name].wrong)
    with pytest.raises(ValueError, match=r"."), watched():
        plain(entrypoint)(**arguments)


@EXAMPLES
@given(token=TOKEN.wrong)
def test_only_tokens_are_forgotten(token: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        plain(staging.forget_folders)(token)
