# SPDX-License-Identifier: Apache-2.0
"""What the engine module sends and how it reads answers; the real engine has tests/engine."""

import io
import tarfile
from typing import Any

import pytest
import requests
import urllib3

from novadocker.virt.docker import engine
from novadocker.virt.docker.model import ContainerSpec, Limits

SPEC = ContainerSpec(
    name="nova-u",
    image_id="sha256:1",
    hostname="web",
    labels={"a": "b"},
    runtime="novadocker",
    limits=Limits(nano_cpus=2, cpu_shares=3, memory_bytes=4, swap_bytes=1, pids=5),
    console_log_max_mb=10,
)


def test_container_without_any_network_of_the_engine() -> None:
    config = engine._config(SPEC)
    assert config["NetworkDisabled"] is True
    assert config["HostConfig"]["NetworkMode"] == "none"
    assert config["HostConfig"]["Runtime"] == "novadocker"
    assert config["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert "Privileged" not in config["HostConfig"]
    assert "Entrypoint" not in config
    assert "Cmd" not in config


def test_container_limits() -> None:
    host = engine._config(SPEC)["HostConfig"]
    assert (host["NanoCpus"], host["CpuShares"], host["PidsLimit"]) == (2, 3, 5)
    assert (host["Memory"], host["MemorySwap"]) == (4, 5)
    assert host["LogConfig"]["Config"] == {"max-size": "5120k", "max-file": "2"}


def test_tar_holds_root_owned_files_below_the_root() -> None:
    content = engine._tar({"/etc/hosts": b"x", "motd": b"yy"})
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    assert [(m.name, m.size, m.mode, m.uid) for m in members] == [
        ("etc/hosts", 1, 0o644, 0),
        ("motd", 2, 0o644, 0),
    ]


ROWS_V1 = [
    {"op": "Read", "value": 10, "major": 254},
    {"op": "Write", "value": 1, "major": 254},
    {"op": "Read", "value": 5, "major": 7},
]


@pytest.mark.parametrize(
    ("blkio", "cpu", "read", "each"),
    [
        (ROWS_V1, {"total_usage": 3, "percpu_usage": [1, 2]}, 15, (1, 2)),
        ([{"op": "read", "value": 7}], {"total_usage": 3}, 7, ()),
        (None, {"total_usage": 3}, 0, ()),
    ],
)
def test_usage(blkio: Any, cpu: Any, read: int, each: tuple[int, ...]) -> None:
    usage = engine._usage(
        {
            "cpu_stats": {"cpu_usage": cpu},
            "memory_stats": {"usage": 8, "limit": 9},
            "blkio_stats": {"io_service_bytes_recursive": blkio, "io_serviced_recursive": None},
        }
    )
    assert usage.disk_read_bytes == read
    assert usage.cpu_nanoseconds_each == each
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (8, 9)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (requests.ReadTimeout(), True),
        (requests.ConnectionError(urllib3.exceptions.ReadTimeoutError(None, "u", "m")), True),  # type: ignore[arg-type]
        (requests.ConnectionError("refused"), False),
        (requests.ConnectTimeout(), False),
        (None, False),
    ],
)
def test_read_timeouts(error: Any, expected: bool) -> None:
    assert engine._is_read_timeout(error) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "failed to create shim task: OCI runtime create failed: runc create failed: unable to "
            'start container process: exec: "/x": stat /x: no such file or directory: unknown',
            'exec: "/x": stat /x: no such file or directory',
        ),
        ("OCI runtime create failed: novadocker: no record: unknown", "novadocker: no record"),
        ("Conflict. The name is in use", "Conflict. The name is in use"),
    ],
)
def test_errors_start_with_the_cause(text: str, expected: str) -> None:
    assert engine._concise(text) == expected
